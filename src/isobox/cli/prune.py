"""``isobox prune``: what no image and no container needs, out of the store."""

from __future__ import annotations

import sys

import click

from isobox import Image, Store
from isobox.cli.report import size
from isobox.cli.stored import NO_NAME, say_used


@click.command("prune", short_help="Remove what no image and no container needs.")
@click.option(
    "-a", "--all", "unused", is_flag=True, help="Images with names too, where no container runs them."
)
@click.option("-f", "--force", is_flag=True, help="Don't ask before --all.")
def command(unused: bool, force: bool) -> int:
    """Remove images without a name, and blobs and unpacked layers that nothing needs any more.

    What a running container uses stays. Says what was removed, and the bytes that are free in the store.
    """
    if unused and not force:
        if not sys.stdin.isatty():
            raise click.UsageError("--all removes images with names: say --force too, as nobody can be asked")
        click.confirm("Remove all images that no container runs?", abort=True)
    store = Store.default()
    names = {image.digest: image.references for image in Image.all(store=store)}
    pruned = store.prune(unused=unused)
    for digest in pruned.images:
        click.echo(f"Deleted: {digest} {' '.join(names.get(str(digest), ())) or NO_NAME}")
    counts = (
        (len(pruned.images), "image", "images"),
        (len(pruned.blobs), "blob", "blobs"),
        (len(pruned.layers), "unpacked layer", "unpacked layers"),
    )
    words = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    click.echo(f"Freed {size(pruned.size)} in the store: {', '.join(words) or 'nothing'} removed")
    say_used(len(pruned.used))
    return 0
