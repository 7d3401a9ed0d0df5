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


def test_a_sparse_file_of_a_terabyte(tmp_path: Path) -> None:
    tib = 1 << 40
    sparse = b"%011o\0" % 0 * 2
    old = header(b"S", b"%011o\0" % 0, sparse + bytes(73) + binary(tib), at=386)
    archive = written(tmp_path, old + bytes(2 * HEADER))
    assert (trusted(archive, tmp_path / "trusted") / "file").stat().st_size == tib
    with pytest.raises(UnpackError, match="sparse"):
        ours(archive)


def test_a_sparse_file_by_pax_headers(tmp_path: Path) -> None:
    headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"}
    archive = written(tmp_path, packed(entry("file", pax_headers=headers)))
    assert (trusted(archive, tmp_path / "trusted") / "file").stat().st_size == 1 << 40
    with pytest.raises(UnpackError, match="sparse"):
        ours(archive)


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
