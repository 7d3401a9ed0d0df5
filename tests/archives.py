"""Tar archives as an attacker makes them, and an extractor that does what they say."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from isobox.errors import UnpackError
from isobox.images.layers.root import Unpacked, unpack
from programs import ROOT

HEADER = 512


def entry(name: str, data: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def link(name: str, target: object, type: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=type, linkname=str(target))


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def packed(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def header(type: bytes, size: bytes, rest: bytes = b"", at: int = 345) -> bytes:
    """A block as no program writes it. `size`: twelve bytes; `rest` lies `at` an offset."""
    block = bytearray(tarfile.TarInfo("file").tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = type
    block[124:136] = size
    block[at : at + len(rest)] = rest
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def binary(value: int) -> bytes:
    """GNU's way of numbers that octal digits have no room for."""
    return b"\x80" + value.to_bytes(11, "big") if value >= 0 else value.to_bytes(12, "big", signed=True)


def attributes_kept(place: Path) -> None:
    """Skip a test where the file system has no user.* attributes (tmpfs before Linux 6.6)."""
    try:
        os.setxattr(place, "user.isobox", b"")
    except OSError as error:
        pytest.skip(f"no user.* attributes here: {error.strerror}")
    os.removexattr(place, "user.isobox")


class Trusting(tarfile.TarFile):
    """Does what the archive says."""

    def makelink(self, tarinfo: tarfile.TarInfo, targetpath: Any) -> None:
        if os.path.isdir(targetpath) and not os.path.islink(targetpath):
            os.rmdir(targetpath)
        super().makelink(tarinfo, targetpath)


def trusted(archive: Path, into: Path) -> Path:
    """Unpack with the wall taken down."""
    into.mkdir(parents=True, exist_ok=True)
    with Trusting.open(archive) as tar:
        tar.extraction_filter = lambda member, path: member
        tar.extractall(into)
    return into


def written(tmp_path: Path, data: bytes) -> Path:
    archive = tmp_path / "image.tar"
    archive.write_bytes(data)
    return archive


def ours(archive: Path, **options: Any) -> tuple[Path, Unpacked]:
    """Unpack as isobox does, next to the archive; nothing may be left of one that is refused."""
    state = archive.parent / "state"
    state.mkdir()
    try:
        return state / "in", unpack(archive, state / "in", **{"keep_owners": ROOT, **options})
    except UnpackError:
        assert os.listdir(state) == []
        raise


def state_of(place: Path) -> list[tuple[str, int, int, int, bytes]]:
    """What an attack may have changed of files of the host."""
    found = []
    for path in [place, *sorted(place.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found.append((str(path), status.st_mode, status.st_uid, status.st_nlink, content))
    return found
