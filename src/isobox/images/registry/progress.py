"""How far a pull or a push is, as values, and as lines for people."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, Final, Literal, TypeAlias

from attrs import frozen

__all__ = ["FINISHED", "Lines", "Progress", "Report", "Step", "reporting", "short"]

Step: TypeAlias = Literal[
    "waiting",
    "there",
    "downloading",
    "uploading",
    "retrying",
    "downloaded",
    "mounted",
    "unpacking",
    "done",
]

FINISHED: Final = frozenset({"there", "mounted", "done"})
"""The steps after which nothing more happens to a layer."""

_WIDTH = 30  # of the bar


@frozen
class Progress:
    """What has just happened to one layer of an image that is pulled or pushed.

    `digest` is the layer's, as it is stored; `layer` its number from 1, of `layers`, the lowest first.
    `step`: "waiting" for its turn, "there" already, "downloading" (`received` of `size` bytes), "retrying"
    after a cut, "downloaded", "unpacking", "done". A push has "uploading" in the place of "downloading", and
    ends with "there", "done", or "mounted" where the registry had it in another repository.
    """

    digest: str
    layer: int
    layers: int
    step: Step
    received: int
    size: int


Report: TypeAlias = Callable[[Progress], object]


class Lines:
    """Writes progress to a stream: a bar that moves on a terminal, else a line for each layer that is done.

    Called from one thread at a time, as `Image.pull` does.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._moves = stream.isatty()
        self._layers: dict[int, Progress] = {}
        self._shown = ""

    def __call__(self, progress: Progress) -> None:
        """Take in one more."""
        self._layers[progress.layer] = progress
        if self._moves:
            self._show(bar(list(self._layers.values())))
        elif progress.step in FINISHED:
            self._stream.write(f"{short(progress.digest)}: {progress.step}\n")

    def _show(self, text: str) -> None:
        if text != self._shown:
            self._stream.write(f"\r{text.ljust(len(self._shown))}")
            self._stream.flush()
            self._shown = text

    def close(self) -> None:
        """End the line of the bar; idempotent."""
        if self._shown:
            self._stream.write("\n")
            self._shown = ""


@contextlib.contextmanager
def reporting(progress: bool | Report) -> Iterator[Report | None]:
    """Give what `Image.pull` is to tell its progress: True means lines on standard error."""
    if callable(progress):
        yield progress
    elif progress:
        lines = Lines(sys.stderr)
        try:
            yield lines
        finally:
            lines.close()
    else:
        yield None


def bar(layers: list[Progress]) -> str:
    """One line for all layers.

    >>> print(bar([Progress("sha256:" + "0" * 64, 1, 1, "downloading", 5_000_000, 10_000_000)]))
    [===============               ]  5.0 of 10.0 MB, 0 of 1 layers
    """
    received, size = sum(layer.received for layer in layers), sum(layer.size for layer in layers)
    done = sum(layer.step in FINISHED for layer in layers)
    full = _WIDTH * received // size if size else _WIDTH
    megabytes = f"{received / 1e6:.1f} of {size / 1e6:.1f} MB"
    return f"[{'=' * full}{' ' * (_WIDTH - full)}]  {megabytes}, {done} of {layers[0].layers} layers"


def short(digest: str) -> str:
    """The beginning of a digest's digits, as Docker shows it.

    >>> short("sha256:0123456789abcdef")
    '0123456789ab'
    """
    return digest.partition(":")[2][:12]
