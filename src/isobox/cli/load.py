"""``isobox load``: images from an archive into the store."""

from __future__ import annotations

import sys

import click

from isobox import Image
from isobox.cli.stored import of_the_store


@click.command("load", short_help="Read images from an archive or a folder.")
@click.option("-i", "--input", "path", metavar="ARCHIVE", type=click.Path(), help="The same as ARCHIVE.")
@click.argument("archive", type=click.Path(), required=False)
def command(path: str | None, archive: str | None) -> int:
    """Read the images of ARCHIVE, which docker save, podman save, skopeo copy or isobox save wrote.

    Docker's format or an OCI layout in a tar, plain or compressed, or a folder that is an OCI layout.
    Without ARCHIVE, or where that is -, standard input is read. Prints the names that can be run, or the id
    of an image without a name.

    \b
      docker save debian:12 -o debian.tar
      isobox load debian.tar
      isobox run debian:12 cat /etc/os-release
    """
    if path is not None and archive is not None:
        raise click.UsageError("ARCHIVE stands there twice")
    source = archive if path is None else path
    if source in (None, "-"):
        if sys.stdin.isatty():
            raise click.UsageError("Name an ARCHIVE: nobody types one")
        images = Image.load_all(sys.stdin.buffer)
    else:
        with of_the_store():
            images = Image.load_all(source)
    for image in images:
        for name in image.references or (image.id,):
            click.echo(name)
    return 0
