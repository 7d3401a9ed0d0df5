"""What layers have beside plain entries: sparse files, attributes, odd numbers, both kinds of long names."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archives import entry, header, ours, packed, written
from isobox.errors import UnpackError
from isobox.images.tar.pax import Records, nanoseconds, number, read_records
from isobox.images.tar.sparse import MOST_SEGMENTS
from isobox.images.tar.stream import Entry, TarStream

END = bytes(1024)
FORMATS = {
    "gnu": ["--format=gnu"],
    "0.0": ["--format=posix", "--sparse-version=0.0"],
    "0.1": ["--format=posix", "--sparse-version=0.1"],
    "1.0": ["--format=posix", "--sparse-version=1.0"],
}


def entries(data: bytes) -> list[Entry]:
    return list(TarStream(io.BytesIO(data), 1 << 30).entries())


def pax(**records: str) -> bytes:
    return packed(entry("f", pax_headers=records))


def block(kind: bytes, data: bytes) -> bytes:
    return header(kind, b"%011o\0" % len(data)) + data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    for length in range(len(key) + len(value) + 3, 1 << 20):
        whole = b"%d %b=%b\n" % (length, key, value)
        if len(whole) == length:
            return whole
    raise AssertionError


def with_holes(path: Path, pieces: list[tuple[int, int]], size: int) -> None:
    with open(path, "wb") as file:
        for at, length in pieces:
            os.pwrite(file.fileno(), os.urandom(length), at)
        file.truncate(size)


PIECES = {
    "a hole at the end": ([(0, 4096)], 1 << 20),
    "a hole in front": ([((1 << 20) - 10, 10)], 1 << 20),
    "only a hole": ([], 1 << 20),
    "more pieces than a header holds": ([(number * 65536, 4096) for number in range(60)], 61 * 65536),
    "a piece of odd length": ([(8192, 3001)], 3 << 20),
}


@pytest.mark.parametrize("shape", PIECES)
@pytest.mark.parametrize("format", FORMATS)
def test_sparse_files_as_gnu_tar_makes_them(format: str, shape: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with_holes(source / "f", *PIECES[shape])
    (source / "g").write_bytes(b"after it")
    archive = tmp_path / "image.tar"
    subprocess.run(["tar", "--sparse", *FORMATS[format], "-C", source, "-cf", archive, "f", "g"], check=True)
    assert archive.stat().st_size < 1 << 19  # the holes were left out
    place, made = ours(archive)
    assert (place / "f").read_bytes() == (source / "f").read_bytes()
    assert (place / "g").read_bytes() == b"after it"
    assert sorted(os.listdir(place)) == ["f", "g"]
    assert (place / "f").stat().st_blocks <= (source / "f").stat().st_blocks + 8
    assert made.size == sum((source / name).stat().st_size for name in "fg")


def sparse(**records: str) -> bytes:
    data = {f"GNU.sparse.{key}": value for key, value in records.items()}
    return packed(entry("f", b"12345", pax_headers=data))


SPARSE_LIES = {
    "another version": sparse(major="2", minor="0", realsize="10"),
    "no size": sparse(map="0,5", numblocks="1"),
    "another count": sparse(map="0,5", numblocks="2", size="9"),
    "an odd map": sparse(map="0,5,7", size="9"),
    "no numbers": sparse(map="0,x", size="9"),
    "a negative number": sparse(map="-1,5", size="9"),
    "an endless number": sparse(map="0," + "5" * 4999, size="9"),
    "more pieces than there may be": sparse(map="0,0," * MOST_SEGMENTS + "0,5", size="9"),
    "a size that lies": sparse(map="0,5", size="4"),
    "a map that is not there": sparse(major="1", minor="0", realsize="10"),
    "numbers out of order": block(b"x", record(b"GNU.sparse.numbytes", b"1")) + packed(entry("f", b"1")),
    "a map for a folder": packed(entry("d", type=tarfile.DIRTYPE, pax_headers={"GNU.sparse.size": "1"})),
    "a map without an end": packed(
        entry(
            "f", b"1" * 512, pax_headers={f"GNU.sparse.{k}": v for k, v in (("major", "1"), ("minor", "0"))}
        )
    ),
    "a map of fewer lines": packed(
        entry("f", b"9\n" * 2 + bytes(508), pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    ),
}


@pytest.mark.parametrize("lie", SPARSE_LIES)
def test_sparse_maps_that_lie(lie: str, tmp_path: Path) -> None:
    with pytest.raises(UnpackError):
        ours(written(tmp_path, SPARSE_LIES[lie]))


def test_extended_headers_of_a_sparse_file_that_never_end() -> None:
    start = header(b"S", b"%011o\0" % 0, b"ustar  \0" + bytes(121 + 96) + b"\1" + bytes(12), at=257)
    with pytest.raises(UnpackError, match="after its end"):
        entries(start + bytes(504) + b"\1" + bytes(7) + END)


def test_attributes() -> None:
    data = record(b"SCHILY.xattr.user.a", b"line\n\0\xff=") + record(b"SCHILY.xattr.user.%3D%25", b"")
    found = entries(block(b"x", data) + packed(entry("f"), entry("g")))
    assert found[0].xattrs == {b"user.a": b"line\n\0\xff=", b"user.=%": b""}
    assert found[1].xattrs == {}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (record(b"SCHILY.xattr.", b"x"), "no file can have"),
        (record(b"SCHILY.xattr.a\0b", b"x"), "no file can have"),
        (record(b"SCHILY.xattr." + b"n" * 256, b"x"), "no file can have"),
        (record(b"SCHILY.xattr.user.a", bytes(65537)), "no file can have"),
        (b"".join(record(b"SCHILY.xattr.user.%d" % n, b"") for n in range(257)), "more than 256"),
    ],
)
def test_attributes_that_no_file_has(data: bytes, what: str) -> None:
    with pytest.raises(UnpackError, match=what):
        entries(block(b"x", data) + packed(entry("f")))


def test_gnu_names_win_over_those_of_pax() -> None:
    names = [block(b"x", record(b"path", b"pax") + record(b"linkpath", b"to pax"))]
    names += [block(b"L", b"gnu\0"), block(b"K", b"to gnu\0")]
    whole = entry("f", type=tarfile.SYMTYPE, linkname="old")
    for order in (names, names[::-1]):
        (found,) = entries(b"".join(order) + packed(whole))
        assert (found.name, found.target) == (b"gnu", b"to gnu")
    (found,) = entries(names[0] + packed(whole))
    assert (found.name, found.target) == (b"pax", b"to pax")


def test_a_global_header_is_for_all_after_it() -> None:
    said = block(b"g", record(b"uid", b"7") + record(b"mtime", b"5.5") + record(b"comment", b"hello"))
    own = block(b"x", record(b"uid", b"8"))
    back = block(b"x", record(b"uid", b""))
    plain = packed(entry("f", uid=1), format=tarfile.USTAR_FORMAT)[:512]
    found = entries(plain + said + plain + own + plain + back + plain + plain + END)
    assert [item.uid for item in found] == [1, 7, 8, 1, 7]
    assert [item.mtime for item in found] == [0] + [5_500_000_000] * 4


@pytest.mark.parametrize("key", [b"path", b"linkpath", b"size", b"SCHILY.xattr.user.a", b"GNU.sparse.offset"])
def test_a_global_header_that_is_for_one_file_only(key: bytes) -> None:
    with pytest.raises(UnpackError, match="one file only"):
        entries(block(b"g", record(key, b"1")) + packed(entry("f")))


def test_numbers_as_programs_write_them() -> None:
    assert (
        number(b"0000644\0", "mode") == number(b"000644 \0", "mode") == number(b"   644 \0", "mode") == 0o644
    )
    assert number(b"00000000644", "size") == 0o644  # no end: all places are digits
    assert number(b"\0" * 8, "uid") == 0
    assert number(b"\x80" + (1 << 40).to_bytes(11, "big"), "size") == 1 << 40
    assert number(b"\xff" * 12, "mtime") == -1
    for wrong in (b"0000648\0", b"x000644\0", b"-000644\0", b"0_00644\0"):
        with pytest.raises(UnpackError, match="not a number"):
            number(wrong, "mode")


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mtime", [-1.5, -(1 << 40), 0, 1 << 33, 1 << 62])
def test_odd_times_and_large_owners(mtime: float, format: int, tmp_path: Path) -> None:
    if format == tarfile.GNU_FORMAT:
        mtime = int(mtime)
    data = packed(entry("f", b"x", mtime=mtime, uid=4_000_000_000, gid=1 << 31), format=format)
    (found,) = entries(data)
    assert found.mtime == int(mtime * 10) * 10**8
    assert (found.uid, found.gid) == (4_000_000_000, 1 << 31)
    place, _ = ours(written(tmp_path, data), keep_owners=False)
    kept = (place / "f").stat().st_mtime_ns
    assert kept == found.mtime or abs(mtime) > 1 << 32  # beyond what the file system keeps


@given(st.integers(-(10**20), 10**20))
def test_times_are_exact(time: int) -> None:
    sign, (whole, fraction) = "-" * (time < 0), divmod(abs(time), 10**9)
    assert nanoseconds(f"{sign}{whole}.{fraction:09}".encode()) == time


@given(st.dictionaries(st.binary(min_size=1, max_size=20).filter(lambda k: b"=" not in k), st.binary()))
def test_any_attributes_survive(xattrs: dict[bytes, bytes]) -> None:
    named = {name.replace(b"%", b"%25").replace(b"\0", b"0"): value for name, value in xattrs.items()}
    records = Records()
    read_records(b"".join(record(b"SCHILY.xattr." + name, value) for name, value in named.items()), records)
    assert records.xattrs == {name.replace(b"%25", b"%"): value for name, value in named.items()}


@pytest.mark.skipif(shutil.which("tar") is None, reason="no GNU tar")
def test_names_that_are_not_utf8_from_gnu_tar(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    name = b"\xff\xfe" * 90
    (source / os.fsdecode(name)).write_bytes(b"x")
    for number_, format in enumerate(("gnu", "posix")):
        archive = tmp_path / str(number_) / "image.tar"
        archive.parent.mkdir()
        subprocess.run(["tar", f"--format={format}", "-C", source, "-cf", archive, "."], check=True)
        place, _ = ours(archive)
        assert os.listdir(os.fsencode(place)) == [name]
