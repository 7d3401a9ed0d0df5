"""How far a pull or a push is, on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from isobox import Progress
from isobox.images.registry.progress import FINISHED

_BUSY = frozenset({"downloading", "uploading", "retrying", "unpacking"})


@contextlib.contextmanager
def bars(quiet: bool) -> Iterator[Any]:
    """Bars on a terminal, lines elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield not quiet
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[step]}"),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as shown:
        yield _Bars(shown)


class _Bars:
    """One bar for the whole image, and one for each layer that something is done with."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._all = bars.add_task("image", total=None, step="")
        self._layers: dict[int, Any] = {}
        self._seen: dict[int, Progress] = {}

    def __call__(self, progress: Progress) -> None:
        number = progress.layer
        if number not in self._layers:
            digits = progress.digest.partition(":")[2][:12]
            self._layers[number] = self._bars.add_task(digits, total=progress.size, step="", visible=False)
        self._seen[number] = progress
        self._bars.update(
            self._layers[number],
            completed=progress.received,
            step=progress.step,
            visible=progress.step in _BUSY,
        )
        seen = self._seen.values()
        done = sum(one.step in FINISHED for one in seen)
        self._bars.update(
            self._all,
            total=sum(one.size for one in seen),
            completed=sum(one.received for one in seen),
            step=f"{done} of {progress.layers} layers",
        )
