"""The case of a layer's two forms: one EROFS file, or a folder; on the same disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import isobox
from isobox.images import local
from isobox.images.layers import unpacked
from isobox.images.layers.mounted import possible

from .cases import Bench, Case
from .samples import Failed, Subject, interleave, progress
from .unpacking import write_files

NAME = "bench-forms:1"
PARTS = {"/usr/share": 20, "/usr/lib/python3": 5}
"""Where files are taken from, and how many MB."""


class _Form:
    """Images whose layer has one form, each in a data folder of its own.

    Every sample is a process of its own: what one keeps ready keeps layers from going.
    """

    def __init__(self, above: Path, rootfs: Path, form: str) -> None:
        self._above = above
        self._rootfs = rootfs
        self._form = form
        self._places: list[str] = []

    def make(self, count: int) -> Sequence[float]:
        """The first container of an image: its layer is put in place, on disk for good."""
        samples = []
        for _ in range(count):
            self._places.append(tempfile.mkdtemp(dir=self._above))
            samples.append(self._ask("make"))
        return samples

    def start(self, count: int) -> Sequence[float]:
        """The first container in a process, of a layer that is in place."""
        return [self._ask("start") for _ in range(count)]

    def remove(self, count: int) -> Sequence[float]:
        """The image goes, and its layer with it."""
        samples = []
        for _ in range(count):
            samples.append(self._ask("remove"))
            self._places.pop()
        return samples

    def _ask(self, what: str) -> float:
        arguments = [what, self._form, str(self._above / "image.tar"), str(self._rootfs)]
        done = subprocess.run(
            [sys.executable, "-m", "bench.forms", *arguments],
            env=os.environ | {"ISOBOX_DATA_DIR": self._places[-1]},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Failed(done.stderr.strip().splitlines()[-1][:300])
        return float(json.loads(done.stdout))


def forms(bench: Bench) -> Case:
    """A layer of some thousand small files, put in place, run from and removed."""
    if os.geteuid():
        raise Failed("layers are files for root alone")
    with ExitStack() as stack:
        above = Path(tempfile.mkdtemp(prefix="isobox-bench-"))
        stack.callback(shutil.rmtree, above, ignore_errors=True)
        if not possible(str(above)):
            raise Failed(f"no EROFS of a file can be mounted in {above}: it takes Linux 6.15, and no tmpfs")
        archive = above / "image.tar"
        files = write_files(archive, PARTS)
        with tarfile.open(archive, "a") as tar:
            tar.add(bench.rootfs, arcname=".")
        progress(f"  a layer of {files} files, {archive.stat().st_size / 1e6:.0f} MB")
        both = [_Form(above, bench.rootfs, form) for form in ("file", "folder")]
        rounds = bench.rounds(2, 4)
        # All that are made, before the first is removed: ext4 is slow to use an inode again.
        series = {}
        for what, takes, each in (
            ("put in place", [form.make for form in both], 1),
            ("first start", [form.start for form in both], 3),
            ("removed", [form.remove for form in both], 1),
        ):
            names = (f"one file: {what}", f"folder: {what}")
            subjects = [Subject(name, take, each) for name, take in zip(names, takes, strict=True)]
            series |= interleave(what, subjects, rounds)
        return Case("a layer's two forms", series)


def main(what: str, form: str, archive: str, rootfs: str) -> None:
    """Print the nanoseconds that one of them takes, by itself."""
    if form == "folder":
        unpacked.possible = lambda directory: False
    isobox.run(["/true"], image=rootfs, timeout=60).check()
    if what == "make":
        isobox.Image.from_tar(archive, NAME)
    if what == "remove":
        taken = _timed(isobox.Image.get(NAME).remove)
        there = 0
    else:
        taken = _timed(lambda: isobox.run(["/true"], image=NAME, timeout=60).check())
        there = 1
    names = {"file": "layer.erofs", "folder": "root"}
    layers = Path(local.own_layers().path)
    found = {kind: len(list(layers.glob(f"layers/*/{name}"))) for kind, name in names.items()}
    if found != {"file": 0, "folder": 0, form: there}:
        raise Failed(f"the layers are {found}")
    print(taken)


def _timed(once: Callable[[], object]) -> int:
    begin = time.perf_counter_ns()
    once()
    return time.perf_counter_ns() - begin


if __name__ == "__main__":
    main(*sys.argv[1:])
