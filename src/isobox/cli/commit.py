"""``isobox commit``: an image of a container that another ``isobox run`` has."""

from __future__ import annotations

import os
import sys

import click

from isobox.cli.instructions import change_option, config_options
from isobox.cli.protocol import field
from isobox.cli.running import get
from isobox.errors import printable
from isobox.owners import data_dir


@click.command("commit", short_help="Make an image of a running container.")
@click.option("-a", "--author", metavar="TEXT", default="", help="Who made the image.")
@click.option("-m", "--message", metavar="TEXT", default="", help="What was done.")
@change_option
@click.argument("container")
@click.argument("name")
def command(author: str, message: str, changes: tuple[str, ...], container: str, name: str) -> int:
    """Make the image NAME of what CONTAINER is now: its image, and one layer of what it changed.

    CONTAINER is one that isobox run has in another terminal: what --name called it, its id, or the beginning
    of that. It stands still meanwhile, and goes on afterwards. Prints the image's id.

    \b
      isobox run --name web -it debian:12 bash
      isobox commit -m 'Say hello' web web:2
    """
    from isobox.images.making import named

    named(name)
    request = {
        "ask": "commit",
        "name": name,
        "author": author,
        "message": message,
        "changes": config_options(changes),
        "epoch": os.environ.get("SOURCE_DATE_EPOCH", ""),
    }
    answer = get(container).ask(request)
    click.echo(printable(field(answer, "id", str)))
    store = field(answer, "store", str)
    if os.path.dirname(store) != data_dir():  # that of whoever started the container
        print(f"isobox: the image is in the store {printable(store)}", file=sys.stderr)
    return 0
