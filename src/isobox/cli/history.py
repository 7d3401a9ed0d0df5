"""``isobox history``: how the layers of an image came about."""

from __future__ import annotations

import click

from isobox import Image
from isobox.cli.report import size
from isobox.cli.stored import day, echo_table, get, short
from isobox.errors import printable

_WIDTH = 60


@click.command("history", short_help="Show how an image's layers came about.")
@click.option("--no-trunc", is_flag=True, help="Print all of each text.")
@click.option("--platform", metavar="OS/ARCH", help="Of what is for this one, such as linux/arm64.")
@click.argument("image", metavar="IMAGE")
def command(no_trunc: bool, platform: str | None, image: str) -> int:
    """Show the steps that made IMAGE, the last one first, and the size of each one's layer in the store.

    A step without a layer has 0 B; a layer that the image says nothing of has empty columns.
    """
    rows = [("LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT")]
    rows += [
        (
            short(layer, whole=no_trunc) or "-",
            day(created),
            _text(created_by, no_trunc),
            size(count),
            _text(comment, no_trunc),
        )
        for layer, created, created_by, count, comment in reversed(_steps(get(image, platform)))
    ]
    echo_table(rows, right=frozenset({3}))
    return 0


def _steps(image: Image) -> list[tuple[str, str | None, str, int, str]]:
    """Layer, time, command, bytes, comment; the first step first."""
    steps = []
    layers = list(zip(image.layers, image.layer_sizes, strict=True))
    for step in image.config.history:
        # An image may have more steps with a layer than layers: it says what it likes.
        layer, count = ("", 0) if step.empty_layer or not layers else layers.pop(0)
        steps.append((layer, step.created, step.created_by, count, step.comment))
    steps += [(layer, None, "", count, "") for layer, count in layers]
    return steps


def _text(text: str, whole: bool) -> str:
    text = printable(" ".join(text.split()))
    return text if whole or len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
