"""``isobox save``: images out of the store, to an archive."""

from __future__ import annotations

import sys
from typing import Literal

import click

from isobox import Image
from isobox.cli.stored import of_the_store


@click.command("save", short_help="Write images to an archive.")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(), help="Where to, instead of standard output."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["docker", "oci", "oci-dir"]),
    default="docker",
    show_default=True,
    help="docker: for docker load, podman load, skopeo and all others; oci: an OCI layout in a tar; oci-dir: "
    "such a layout as the folder FILE.",
)
@click.option("--platform", metavar="OS/ARCH", help="That alone of images for several, such as linux/arm64.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
def command(
    output: str | None,
    format_: Literal["docker", "oci", "oci-dir"],
    platform: str | None,
    images: tuple[str, ...],
) -> int:
    """Write images to one archive, each with the name that it is asked for by.

    IMAGE is a name, or a digest or id: then it has no name in the archive. FILE is replaced when the archive
    is whole.

    \b
      isobox save -o both.tar debian:12 nginx:1
      docker load -i both.tar
    """
    with of_the_store():
        if output is not None and output != "-":
            Image.save_all(images, output, format=format_, platform=platform)
        elif format_ == "oci-dir":
            raise click.UsageError("Name the folder with --output")
        elif sys.stdout.isatty():
            raise click.UsageError("A terminal has no use for an archive: name a file with --output")
        else:
            Image.save_all(images, sys.stdout.buffer, format=format_, platform=platform)
    return 0
