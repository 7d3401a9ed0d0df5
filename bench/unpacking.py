"""The case of a layer that is unpacked: 100 MB of this machine's own files, with gzip, on a tmpfs."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from .cases import MIB, Bench, Case
from .samples import Failed, Subject, interleave, progress

PARTS = {"/usr/bin": 20, "/usr/lib/python3": 20, "/usr/share": 30, "/usr/lib": 30}
"""Where files are taken from, and how many MB."""


def make_layer(path: Path) -> str:
    """Write the layer; return its digest (that of the tar)."""
    plain = path.with_suffix(".plain")
    files = write_files(plain, PARTS)
    with plain.open("rb") as source, gzip.open(path, "wb", 6) as target:
        shutil.copyfileobj(source, target, MIB)
    with plain.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    sizes = plain.stat().st_size / 1e6, path.stat().st_size / 1e6
    progress(f"  a layer of {files} files, {sizes[0]:.0f} MB, with gzip {sizes[1]:.0f} MB")
    plain.unlink()
    return f"sha256:{digest}"


def write_files(path: Path, parts: Mapping[str, int]) -> int:
    """Write a tar of so many MB below each folder; return how many files. Those over 20 MB are left out."""
    taken: set[str] = set()
    files = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for top, megabytes in parts.items():
            left = megabytes * 1_000_000
            for folder, folders, names in os.walk(top):
                folders.sort()
                if left < 0 or folder in taken:
                    continue
                taken.add(folder)
                tar.add(folder, recursive=False, filter=_whole_seconds)
                for name in sorted(names):
                    found = os.path.join(folder, name)
                    size = os.lstat(found).st_size
                    if left > 0 and size < 20_000_000 and os.access(found, os.R_OK, follow_symlinks=False):
                        tar.add(found, recursive=False, filter=_whole_seconds)
                        left -= size
                        files += 1
    return files


def _whole_seconds(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """As Docker and BuildKit write layers: else each file has a pax header for its time."""
    info.mtime = int(info.mtime)
    return info


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder on a tmpfs, so that no disk is compared; `Failed` where there is none."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK | os.X_OK):
        raise Failed("no tmpfs at /dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="isobox-bench-", dir=memory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpacking(bench: Bench) -> Case:
    """A gzip layer from its bytes to a folder: isobox hashes it too, the others don't."""
    with folder_in_memory() as work:
        layer = work / "layer.gz"
        digest = make_layer(layer)
        subjects = [
            Subject("tarfile", _timed(work, lambda into: _tarfile(layer, into, gzip)), 1),
            Subject("tarfile, isal", _timed(work, lambda into: _tarfile(layer, into, _isal())), 1),
            Subject("tar -xzf", _timed(work, lambda into: _gnu_tar(layer, into)), 1),
            Subject("isobox", _timed(work, lambda into: _isobox(layer, into, digest, _isal())), 1, "isal"),
            Subject(
                "isobox, zlib", _timed(work, lambda into: _isobox(layer, into, digest, gzip)), 1, "no isal"
            ),
        ]
        return Case("unpack a gzip layer", interleave("unpacking", subjects, bench.rounds(4, 10)))


def _timed(work: Path, unpack: Callable[[Path], object]) -> Callable[[int], Sequence[float]]:
    def take(count: int) -> Sequence[float]:
        samples = []
        for _ in range(count):
            into = work / "into"
            begin = time.perf_counter_ns()
            unpack(into)
            samples.append(float(time.perf_counter_ns() - begin))
            shutil.rmtree(into)
        return samples

    return take


def _isal() -> Any:
    try:
        return import_module("isal.igzip")
    except ImportError:
        raise Failed("isal is not installed") from None


def _tarfile(layer: Path, into: Path, decompressor: Any) -> None:
    with decompressor.open(layer, "rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
        tar.extractall(into, filter="fully_trusted")


def _gnu_tar(layer: Path, into: Path) -> None:
    into.mkdir()
    try:
        subprocess.run(["tar", "-xzf", layer, "-C", into], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"tar: {error}") from None


def _isobox(layer: Path, into: Path, digest: str, decompressor: Any) -> None:
    from isobox.images.documents.digest import Digest
    from isobox.images.layers.layer import unpack_layer

    keep = os.geteuid() == 0
    with layer.open("rb") as file:
        # Without isal it comes decompressed: the same library reads it, as it would then in isobox.
        stream = decompressor.open(file, "rb") if decompressor is gzip else file
        unpack_layer(stream, into, keep_owners=keep, diff_id=Digest.parse(digest))
