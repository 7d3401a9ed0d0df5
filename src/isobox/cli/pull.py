"""``isobox pull``: an image from a registry into the store."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from isobox import Image, NotFound, Progress

_BUSY = frozenset({"downloading", "retrying", "unpacking"})


@click.command("pull", short_help="Fetch an image from a registry.")
@click.option("--platform", metavar="OS/ARCH", help="Such as linux/arm64. Default: this machine's.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--insecure", is_flag=True, help="Allow plain http, and any certificate.")
@click.argument("name", metavar="NAME")
def command(name: str, platform: str | None, quiet: bool, insecure: bool) -> int:
    """Fetch the image NAME from its registry, ready to run. Prints its name.

    Without a registry in front it is Docker Hub's. What is there already is not fetched again. Registries
    on this machine may speak plain http; logins are those of isobox login, Docker and podman.

    \b
      isobox pull debian:12
      isobox pull registry.example:5000/team/app:1
      isobox run debian:12 cat /etc/os-release
    """
    click.echo(fetch(name, platform=platform, quiet=quiet, insecure=insecure))
    return 0


def fetch(name: str, *, platform: str | None = None, quiet: bool = False, insecure: bool = False) -> str:
    """Pull an image with progress on standard error; return the name that it has now."""
    with _progress(quiet) as progress:
        try:
            image = Image.pull(name, platform=platform, progress=progress, insecure=insecure)
        except NotFound as error:
            raise click.ClickException(str(error)) from None  # at the registry, not in the store
    return name if name in image.references or not image.references else image.references[0]


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
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
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)


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
        done = sum(one.step in ("there", "done") for one in seen)
        self._bars.update(
            self._all,
            total=sum(one.size for one in seen),
            completed=sum(one.received for one in seen),
            step=f"{done} of {progress.layers} layers",
        )
