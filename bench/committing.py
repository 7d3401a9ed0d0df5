"""The case of a commit: 109 MB of this machine's own files, added to an image as a layer with gzip."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import isobox

from .cases import Bench, Case
from .pulling import run
from .samples import Subject, Take, interleave, progress
from .unpacking import PARTS, folder_in_memory, write_files

_BASE = "bench-base:1"
_MADE = "bench-made:1"


def committing(bench: Bench) -> Case:
    """What a container has changed becomes a layer of an image, in a store on a tmpfs."""
    with ExitStack() as stack:
        work = stack.enter_context(folder_in_memory())
        archive, files, base = work / "files.tar", work / "files", work / "base"
        count = write_files(archive, PARTS)
        progress(f"  {count} files, {archive.stat().st_size / 1e6:.0f} MB")
        with tarfile.open(archive) as tar:
            tar.extractall(files, filter="tar")
        archive.unlink()
        base.mkdir()
        (base / "file").touch()
        subjects = [
            Subject("podman commit", _once_made(lambda: _podman(work, base, files)), 1, "not compressed yet"),
            Subject("umoci repack", _once_made(lambda: _umoci(work, files)), 1),
            Subject("tar -czf", _once_made(lambda: _gnu_tar(work, files)), 1, "no image, no digests"),
            Subject("isobox commit", _once_made(lambda: _isobox(stack, work, base, files)), 1),
        ]
        return Case("commit 109 MB", interleave("committing", subjects, bench.rounds(2, 4)))


def _once_made(make: Callable[[], Take]) -> Take:
    """What `make` returns, called when it is needed first."""
    made: list[Take] = []

    def take(count: int) -> Sequence[float]:
        if not made:
            made.append(make())
        return made[0](count)

    return take


def _timed(once: Callable[[], object], undo: Callable[[], object]) -> Take:
    def take(count: int) -> Sequence[float]:
        samples = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            once()
            samples.append(float(time.perf_counter_ns() - begin))
            undo()
        return samples

    return take


def _isobox(stack: ExitStack, work: Path, base: Path, files: Path) -> Take:
    before = os.environ.get("ISOBOX_DATA_DIR")

    def restore() -> None:
        os.environ.pop("ISOBOX_DATA_DIR", None)
        if before is not None:
            os.environ["ISOBOX_DATA_DIR"] = before

    stack.callback(restore)
    os.environ["ISOBOX_DATA_DIR"] = str(work / "data")
    isobox.Image.from_dir(base, _BASE)
    box = stack.enter_context(isobox.Container(_BASE))
    box.copy_in(files, "/files")
    return _timed(lambda: box.commit(_MADE), lambda: isobox.Image.get(_MADE).remove())


def _podman(work: Path, base: Path, files: Path) -> Take:
    place = work / "podman"

    def podman(*arguments: str) -> None:
        # What it mounts goes with the mount namespace.
        alone = ("unshare", "--mount", "--propagation", "private")
        store = ("--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "overlay")
        run(*alone, "podman", *store, *arguments)

    run("tar", "-cf", str(work / "base.tar"), "-C", str(base), ".")
    podman("import", "-q", str(work / "base.tar"), _BASE)
    podman("create", "--name", "bench", _BASE, "/file")
    podman("cp", str(files), "bench:/files")
    return _timed(lambda: podman("commit", "-q", "bench", _MADE), lambda: podman("rmi", _MADE))


def _umoci(work: Path, files: Path) -> Take:
    image, bundle = f"{work}/umoci", f"{work}/bundle"
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run("umoci", "init", "--layout", image)
    run("umoci", "new", "--image", f"{image}:base")
    run("umoci", "unpack", *rootless, "--image", f"{image}:base", bundle)
    run("cp", "-a", str(files), f"{bundle}/rootfs/files")

    def undo() -> None:
        run("umoci", "rm", "--image", f"{image}:made")
        run("umoci", "gc", "--layout", image)

    return _timed(lambda: run("umoci", "repack", "--image", f"{image}:made", bundle), undo)


def _gnu_tar(work: Path, files: Path) -> Take:
    made = work / "made.tar.gz"
    return _timed(lambda: run("tar", "-czf", str(made), "-C", str(files), "."), made.unlink)
