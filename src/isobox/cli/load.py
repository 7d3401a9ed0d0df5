"""``isobox load``: images from an archive into the store."""

from __future__ import annotations

import click

from isobox import Image, NotFound


@click.command("load", short_help="Read images from an archive.")
@click.argument("archive", type=click.Path())
def command(archive: str) -> int:
    """Read the images of ARCHIVE, which docker save, podman save or skopeo copy wrote.

    Docker's format or an OCI layout in a tar, plain or compressed. Prints the names that can be run.

    \b
      docker save debian:12 -o debian.tar
      isobox load debian.tar
      isobox run debian:12 cat /etc/os-release
    """
    try:
        images = Image.load_all(archive)
    except NotFound as error:
        raise click.ClickException(str(error)) from None  # of an archive, not of an image
    for image in images:
        for name in image.references:
            click.echo(name)
    return 0
