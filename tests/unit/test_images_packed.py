"""Layers written to a file: what the format has no room for, and what a file system would refuse."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import tarfile
from pathlib import Path

import pytest

from archives import entry, folder, link, packed
from isobox.errors import DigestMismatch, SetupError, UnpackError
from isobox.images.documents.digest import Digest
from isobox.images.layers.erofs.format import MOST_OF_ROOT, Inode
from isobox.images.layers.erofs.writer import Directory, Writer
from isobox.images.layers.layer import LayerUnpacked, unpack_layer
from isobox.images.layers.packed import pack_layer

Member = tuple[tarfile.TarInfo, bytes]


def written(tmp_path: Path, *members: Member) -> LayerUnpacked:
    return pack_layer(io.BytesIO(packed(*members)), tmp_path / "layer.erofs")


@pytest.mark.parametrize(
    "members",
    [
        [entry("n" * 256)],
        [folder("n" * 256)],
        [link("l", "t" * 4096)],
        [entry("/".join(["d" * 250] * 16) + "/" + "n" * 200)],
        [folder("d"), entry("d/f"), entry("d", b"x")],
        [folder("d"), entry("d/f"), link("d", "x")],
        [entry("f"), entry("f/g")],
        [entry("f"), folder("f/g")],
        [link("h", "f", tarfile.LNKTYPE)],
        [entry("f"), link("h", "f/g", tarfile.LNKTYPE)],
        [link("l", "l"), entry("l/f")],
        [folder("/".join(["d"] * 300))],
        [entry(".wh.a/f")],
        [entry("../f")],
    ],
)
def test_what_a_directory_would_refuse(members: list[Member], tmp_path: Path) -> None:
    said = []
    with pytest.raises(UnpackError) as raised:
        unpack_layer(io.BytesIO(packed(*members)), tmp_path / "folder", keep_owners=False)
    said.append(str(raised.value))
    with pytest.raises(UnpackError) as raised:
        written(tmp_path, *members)
    assert [str(raised.value)] == said and os.listdir(tmp_path) == []


def test_attributes_that_there_is_no_room_for(tmp_path: Path) -> None:
    """They are left out, as where a file system has no room."""
    large, small = "v" * 40_000, "v" * 1000
    file, root = entry("f"), folder("./")
    file[0].pax_headers = {f"SCHILY.xattr.user.{name}": large for name in "ab"}
    file[0].pax_headers |= {"SCHILY.xattr.user.": "no name", "SCHILY.xattr.user.huge": "v" * 65536}
    root[0].pax_headers = {f"SCHILY.xattr.user.{name}": small for name in "abcd"}
    made = written(tmp_path, root, entry(".wh..wh..opq"), file)
    assert made.attributes == 3 + 2 and made.hides_all
    for size in (MOST_OF_ROOT - 100, MOST_OF_ROOT):
        fd = os.open(tmp_path / f"root{size}", os.O_RDWR | os.O_CREAT)
        try:
            inode = Inode(stat.S_IFDIR, attributes={b"user.a": bytes(size)})
            if size < MOST_OF_ROOT:
                Writer(fd).finish([Directory(inode, {}, {})])
            else:
                with pytest.raises(OSError, match="space"):
                    Writer(fd).finish([Directory(inode, {}, {})])
        finally:
            os.close(fd)


def test_nothing_is_left_of_what_is_refused(tmp_path: Path) -> None:
    layer = packed(entry("f", b"x" * 1_000_000))
    with pytest.raises(DigestMismatch):
        pack_layer(io.BytesIO(layer), tmp_path / "layer.erofs", diff_id=Digest.of(b""))
    with pytest.raises(UnpackError, match="ends in the middle"):
        pack_layer(io.BytesIO(layer[:300_000]), tmp_path / "layer.erofs")
    with pytest.raises(UnpackError, match="more than 100"):
        pack_layer(io.BytesIO(layer), tmp_path / "layer.erofs", most_bytes=100)
    assert os.listdir(tmp_path) == []
    (tmp_path / "layer.erofs").write_bytes(b"another's")
    with pytest.raises(SetupError) as raised:
        written(tmp_path, entry("f"))
    assert raised.value.errno == errno.EEXIST and (tmp_path / "layer.erofs").read_bytes() == b"another's"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SetupError, match="No space left"):
        written(tmp_path, entry("f", b"x" * 3_000_000))
    assert os.listdir(tmp_path) == []


def test_the_same_layer_is_the_same_file(tmp_path: Path) -> None:
    members = [folder("d"), *[entry(f"d/{name}", b"x" * 5000) for name in "cab"], entry("d/.wh.e")]
    digests = set()
    for _ in range(2):
        written(tmp_path, *members)
        digests.add(Digest.of((tmp_path / "layer.erofs").read_bytes()))
        (tmp_path / "layer.erofs").unlink()
    assert len(digests) == 1


def test_small_files_share_blocks(tmp_path: Path) -> None:
    """A thousand files of a hundred bytes don't take a block each."""
    written(tmp_path, *[entry(f"f{number}", b"x" * 100) for number in range(1000)])
    size = (tmp_path / "layer.erofs").stat().st_size
    assert size < 400_000
    magic, blocks = struct.unpack_from("<I32xI", (tmp_path / "layer.erofs").read_bytes(), 1024)
    assert magic == 0xE0F5E1E2 and blocks * 4096 == size
