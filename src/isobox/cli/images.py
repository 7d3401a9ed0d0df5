"""``isobox images``: what the store has."""

from __future__ import annotations

import sys

import click

from isobox import Image
from isobox.cli.report import aligned, size


@click.command("images", short_help="List the images of the store.")
def command() -> int:
    """List every name in the store: its image's id, the size of its layers there, and when it was made."""
    rows = [("NAME", "ID", "SIZE", "CREATED")]
    for image in Image.all():
        created = (image.created or "").partition("T")[0]
        short = image.id.partition(":")[2][:12]
        rows += [(name, short, size(image.size), created) for name in image.references]
    head, *lines = aligned(rows, right=frozenset({2}))
    click.echo(click.style(head, bold=True) if sys.stdout.isatty() else head)
    for line in lines:
        click.echo(line)
    return 0
