"""How the examples print: sizes, seconds and aligned tables, coloured only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

COLOURS = {"green": "32", "red": "31", "yellow": "33", "bold": "1", "dim": "2"}


def paint(text: str, colour: str) -> str:
    """Colour for a terminal; plain text for a file, a pipe, or where NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def seconds(value: float | None) -> str:
    """`0.250 s`; `-` for what the kernel could not tell."""
    return "-" if value is None else f"{value:.3f} s"


def size(value: int | None) -> str:
    """`12.5 MiB`; `-` for what the kernel could not tell."""
    return "-" if value is None else f"{value / 2**20:.1f} MiB"


def count(value: int | None) -> str:
    """A number; `-` for what the kernel could not tell."""
    return "-" if value is None else str(value)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    colours: Sequence[str | None] = (),
    colour_at: int = -1,
) -> None:
    """Print rows below a head, aligned: what is a number (or absent) to the right, text to the left.

    `colours` has one colour or None for each row, for its cell number `colour_at`.
    """
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell == "-" or cell[:1].isdigit() for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> list[str]:
        return [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]

    print(paint("  ".join(line(head)).rstrip(), "bold"))
    print(paint("  ".join("-" * width for width in widths), "dim"))
    for index, row in enumerate(rows):
        cells = line(row)
        colour = colours[index] if index < len(colours) else None
        if colour:
            cells[colour_at] = paint(cells[colour_at], colour)
        print("  ".join(cells).rstrip())
