"""``isobox tag``: one more name for an image."""

from __future__ import annotations

import click

from isobox.cli.stored import get


@click.command("tag", short_help="Give an image one more name.")
@click.argument("image", metavar="IMAGE")
@click.argument("name", metavar="NAME")
def command(image: str, name: str) -> int:
    """Give IMAGE one more name, which another image may have had until now."""
    get(image).tag(name)
    return 0
