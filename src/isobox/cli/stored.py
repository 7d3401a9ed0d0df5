"""What the commands for images share: images by their names, and how a table or JSON is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from isobox import Image, NotFound
from isobox.cli.report import aligned
from isobox.errors import printable

NO_NAME = "<none>"


def get(name: str, platform: str | None = None) -> Image:
    """The image of the store that `name` means; what else could be run, a folder say, is none here."""
    with of_the_store():
        return Image.get(name, platform=platform)


@contextmanager
def of_the_store() -> Iterator[None]:
    """Say of a `NotFound` no more than it says itself."""
    try:
        yield
    except NotFound as error:
        raise click.ClickException(str(error)) from None


def say_used(layers: int) -> None:
    """Say on standard error of the unpacked layers of removed images that are still in use."""
    if layers:
        what = "1 unpacked layer stays" if layers == 1 else f"{layers} unpacked layers stay"
        click.echo(f"{what} while in use: isobox prune, when the containers have ended", err=True)


def short(digest: str, *, whole: bool = False) -> str:
    """A digest as people read it: its first 12 digits, unless it is to be shown whole."""
    return digest if whole else digest.partition(":")[2][:12]


def day(created: str | None) -> str:
    """The day of a time in an image's config, which may say anything."""
    return printable((created or "").partition("T")[0][:10])


def echo_table(rows: Iterable[tuple[str, ...]], right: frozenset[int] = frozenset()) -> None:
    """Print columns; on a terminal their heads are bold."""
    head, *lines = aligned(rows, right=right)
    click.echo(click.style(head, bold=True) if sys.stdout.isatty() else head)
    for line in lines:
        click.echo(line)


def echo_json(document: Any) -> None:
    """Print JSON, on a terminal in colours; nothing in it is obeyed by one."""
    text = "".join(
        [
            character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
            for character in json.dumps(document, indent=4, ensure_ascii=False)
        ]
    )
    if not sys.stdout.isatty():
        click.echo(text)
        return
    from rich.console import Console
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    Console().print(JSONHighlighter()(Text(text)), soft_wrap=True)
