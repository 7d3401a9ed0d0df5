"""``isobox rmi``: images out of the store."""

from __future__ import annotations

import click

from isobox import Image


@click.command("rmi", short_help="Remove images from the store.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
def command(images: tuple[str, ...]) -> int:
    """Remove images with all of their names, and what no other image and no container needs of them.

    IMAGE is a name, a digest or the beginning of its digits.
    """
    for image in [Image.get(name) for name in images]:
        image.remove()
    return 0
