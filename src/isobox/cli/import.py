"""``isobox import``: an image of a folder or of a tar."""

from __future__ import annotations

import os
import sys

import click

from isobox import Image
from isobox.cli.instructions import change_option, config_options
from isobox.cli.stored import of_the_store


@click.command("import", short_help="Make an image of a folder or a tar.")
@change_option
@click.argument("source", metavar="FOLDER|TAR|-")
@click.argument("name", required=False)
def command(changes: tuple[str, ...], source: str, name: str | None) -> int:
    """Make an image of one layer, of a folder or of the tar of a root file system, and print its id.

    The tar may be plain or compressed with gzip, zstd or xz, and come from standard input: -. Images that
    were saved are for isobox load. Otherwise than with Docker, a folder will do, and a URL won't.

    \b
      isobox import ./rootfs app:1 -c 'CMD ["/bin/sh"]'
      curl https://.../rootfs.tar.xz | isobox import - app:1
    """
    options = config_options(changes)
    if source == "-":
        if sys.stdin.isatty():
            raise click.UsageError("Name a FOLDER or a TAR: nobody types one")
        image = Image.from_tar(sys.stdin.buffer, name, **options)
    elif os.path.isfile(os.path.join(source, "oci-layout")):
        raise click.UsageError(f"{source} is an OCI layout, which holds images: isobox load {source}")
    else:
        with of_the_store():
            make = Image.from_dir if os.path.isdir(source) else Image.from_tar
            image = make(source, name, **options)
    click.echo(image.id)
    return 0
