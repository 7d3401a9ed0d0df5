"""Images that are small and unpack to more than there is room for, or that never end.

Each first works: on Python's own extractor, or with isobox's bound taken away.
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from archives import HEADER, binary, entry, folder, header, ours, packed, trusted, written
from isobox import Container
from isobox.errors import UnpackError
from leftovers import nothing_left

TIB = 1 << 40
NO_PIECE = b"%011o\0" % 0 * 2


def gnu_sparse(pieces: bytes, size: int, stored: int = 0, more: bytes = b"\0") -> bytes:
    """The header of GNU's own format: up to four pieces; `more` says that extended headers follow."""
    rest = b"ustar  \0" + bytes(121) + pieces.ljust(96, b"\0") + more + binary(size)
    return header(b"S", b"%011o\0" % stored, rest, at=257)


def pieces(*numbers: int) -> bytes:
    return b"".join(binary(number) for number in numbers)


def test_a_sparse_file_of_a_terabyte(tmp_path: Path) -> None:
    """It takes no room on disk, but whoever copies or packs it again reads every byte."""
    archive = written(tmp_path, gnu_sparse(NO_PIECE, TIB) + bytes(2 * HEADER))
    assert (trusted(archive, tmp_path / "trusted") / "file").stat().st_size == TIB
    with pytest.raises(UnpackError, match="more than"):
        ours(archive)
    (tmp_path / "state").rmdir()
    place, made = ours(archive, most_bytes=2 * TIB)  # the bound taken away
    assert (place / "file").stat().st_size == made.size == TIB


def test_many_sparse_files_that_are_a_terabyte_together(tmp_path: Path) -> None:
    """Each alone is allowed."""
    archive = written(tmp_path, gnu_sparse(NO_PIECE, 1 << 34) * 3 + bytes(2 * HEADER))
    with pytest.raises(UnpackError, match="more than"):
        ours(archive)


def test_a_sparse_file_by_pax_headers(tmp_path: Path) -> None:
    headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(TIB), "GNU.sparse.numblocks": "1"}
    archive = written(tmp_path, packed(entry("file", pax_headers=headers)))
    assert (trusted(archive, tmp_path / "trusted") / "file").stat().st_size == TIB
    with pytest.raises(UnpackError, match="more than"):
        ours(archive)


def test_a_sparse_map_of_millions_of_pieces(tmp_path: Path) -> None:
    """Each as GNU tar writes it, and all with so many pieces that a map alone fills the memory."""
    many = 3_000_000
    table = b"".join(pieces(2 * n, 0) for n in range(21)) + b"\1" + bytes(7)
    own = gnu_sparse(NO_PIECE * 4, 1 << 20, more=b"\1") + table * (many // 21)
    lines = b"%d\n" % many + b"0\n0\n" * many
    lines += bytes(-len(lines) % HEADER)
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    one = packed(entry("one", lines, pax_headers=headers))
    assert len(own) > many * 20 and len(one) > many * 4
    for archive in (own, one):
        with pytest.raises(UnpackError, match="pieces"):
            ours(written(tmp_path, archive))
        (tmp_path / "state").rmdir()


LIES = {
    "descending": (pieces(4096, 1, 0, 1), 8192, 2),
    "overlapping": (pieces(0, 2, 1, 2), 8192, 4),
    "beyond the end": (pieces(0, 1, 8191, 2), 8192, 3),
    "far beyond the end": (pieces(1 << 87, 1), 8192, 1),
    "more than is stored": (pieces(0, 600), 8192, 512),
    "less than is stored": (pieces(0, 5), 8192, 512),
    "negative": (pieces(-1, 1), 8192, 1),
    "a negative size": (pieces(0, 1, 5, -1), 8192, 0),
    "a file smaller than nothing": (pieces(0, 1), -8192, 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_sparse_map_that_lies(lie: str, tmp_path: Path) -> None:
    table, size, stored = LIES[lie]
    contents = bytes(stored + -stored % HEADER)
    with pytest.raises(UnpackError):
        ours(written(tmp_path, gnu_sparse(table, size, stored) + contents + bytes(2 * HEADER)))


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    compressed: bytes = zstandard.compress(data)
    return compressed


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd])
def test_a_decompression_bomb(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    size, most = 32 << 20, 4 << 20
    bomb = compress(packed(entry("zeros", bytes(size))))
    assert len(bomb) < size / 500
    archive = written(tmp_path, bomb)
    with pytest.raises(UnpackError, match=f"more than {most} bytes"):
        ours(archive, most_bytes=most)
    (tmp_path / "state").rmdir()
    place, _ = ours(archive)  # the bound taken away
    assert (place / "zeros").stat().st_size == size


def test_what_is_compressed_twice_is_unpacked_once(tmp_path: Path) -> None:
    twice = gzip.compress(gzip.compress(packed(entry("zeros", bytes(8 << 20)))))
    with pytest.raises(UnpackError):
        ours(written(tmp_path, twice))
    assert gzip.decompress(gzip.decompress(twice))[:5] == b"zeros"


def test_an_xz_header_that_asks_for_a_gibibyte_of_memory(tmp_path: Path) -> None:
    data = bytearray(lzma.compress(packed(entry("f", b"x"))))
    size = (data[12] + 1) * 4  # "Block Header" in xz-file-format.txt
    at = data.index(b"\x21\x01", 12) + 2
    data[at] = 36  # a dictionary of 1 GiB
    data[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(data[12 : 12 + size - 4]))
    assert lzma.decompress(data)[:1] == b"f"
    with pytest.raises(UnpackError, match="[Mm]emory"):
        ours(written(tmp_path, bytes(data)))


def test_more_entries_than_a_folder_should_have(tmp_path: Path) -> None:
    many = 300
    archive = written(tmp_path, gzip.compress(packed(*(entry(f"f{number}") for number in range(many)))))
    assert len(os.listdir(trusted(archive, tmp_path / "trusted"))) == many
    with pytest.raises(UnpackError, match="more than 200 entries"):
        ours(archive, most_entries=200)


@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE])
def test_a_name_without_an_end(type: bytes, tmp_path: Path) -> None:
    """The archive has a hole in the place of the name, so it takes no room itself."""
    size = 64 << 20
    archive = written(tmp_path, header(type, binary(size)))
    os.truncate(archive, size + HEADER)

    def peak(attack: Callable[[], object], error: type[Exception]) -> int:
        tracemalloc.start()
        try:
            with pytest.raises(error):
                attack()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: ours(archive), UnpackError) < 4 << 20
    (tmp_path / "state").rmdir()
    assert peak(lambda: trusted(archive, tmp_path / "trusted"), tarfile.ReadError) >= size


def test_folders_in_each_other_without_end(tmp_path: Path) -> None:
    name = "/".join(["d"] * 400)
    archive = written(tmp_path, packed(folder(name)))
    assert (trusted(archive, tmp_path / "trusted") / name).is_dir()
    with pytest.raises(UnpackError, match="256 directories deep"):
        ours(archive)


@pytest.mark.parametrize("size", [-512, -1, 1 << 62, (1 << 87) - 1], ids=str)
def test_sizes_that_no_file_has(size: int, tmp_path: Path) -> None:
    """A negative size would have a reader go back, and read the same entry for ever."""
    with pytest.raises(UnpackError):
        ours(written(tmp_path, header(b"0", binary(size)) + packed(entry("f"))))


@pytest.mark.parametrize("mtime", ["1e30", "-1", "99999999999999999999", "nan", "9" * 5000])
def test_times_that_no_clock_shows(mtime: str, tmp_path: Path) -> None:
    archive = written(tmp_path, packed(entry("f", b"x", pax_headers={"mtime": mtime})))
    try:
        place, _ = ours(archive)
    except UnpackError:
        return
    assert (place / "f").read_bytes() == b"x"


@pytest.mark.requires("user_namespaces", "overlay")
def test_nothing_is_left_of_an_archive_that_ends_early(tmp_path: Path) -> None:
    whole = packed(entry("a", b"a" * 5000), entry("b", b"b" * 5000))
    archive = written(tmp_path, whole[:9000])
    with pytest.raises(tarfile.ReadError):
        trusted(archive, tmp_path / "trusted")
    assert os.listdir(tmp_path / "trusted")  # half an image
    with nothing_left(), pytest.raises(UnpackError):
        Container(archive).start()
