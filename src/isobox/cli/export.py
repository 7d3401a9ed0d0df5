"""``isobox export``: the root file system of an image as a tar."""

from __future__ import annotations

import sys

import click

from isobox import Container
from isobox.cli.stored import of_the_store


@click.command("export", short_help="Write an image's root file system as a tar.")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(), help="Where to, instead of standard output."
)
@click.argument("image")
def command(output: str | None, image: str) -> int:
    """Write all files of IMAGE, its layers on one another, as one tar archive.

    Docker's command takes a container; here it is what a container of IMAGE (an image, a folder or a tar)
    begins with. Of a container in a program, Container.export writes what it is like then.

    \b
      isobox export debian:12 | tar -t
      isobox export -o rootfs.tar debian:12
    """
    if output in (None, "-") and sys.stdout.isatty():
        raise click.UsageError("A terminal has no use for an archive: name a file with --output")
    with of_the_store(), Container(image) as container:
        container.export(sys.stdout.buffer if output in (None, "-") else output)
    return 0
