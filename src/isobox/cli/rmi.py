"""``isobox rmi``: images out of the store."""

from __future__ import annotations

import click

from isobox import Store
from isobox.cli.stored import of_the_store, say_used


@click.command("rmi", short_help="Remove images from the store.")
@click.option(
    "-f", "--force", is_flag=True, help="Remove an image that is named by its id with all its names."
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
def command(force: bool, images: tuple[str, ...]) -> int:
    """Take names away; an image goes with its last one, and what no other image and no container needs.

    IMAGE is a name, a digest or id, or the beginning of its digits.
    """
    store = Store.default()
    used = 0
    with of_the_store():
        for name in images:
            store.resolve(name)  # one that is none, and nothing is removed
        for name in images:
            gone = store.discard(name, force=force)
            for one in gone.names:
                click.echo(f"Untagged: {one}")
            if gone.image is not None:
                click.echo(f"Deleted: {gone.image}")
            used = len(gone.used)
    say_used(used)
    return 0
