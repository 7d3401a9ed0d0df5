"""A layer as one file that the kernel mounts: what `unpack_layer` makes as a directory, written as EROFS.

Nothing is made file by file: a layer of ten thousand small files costs what one of their size does, and one
unlink removes it. Its entries are placed as those of a directory are (unpacking.py); only what would be done
to a file system is done to `Writer` instead. What directories hold is remembered until the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from attrs import evolve

from isobox import _native
from isobox.errors import SetupError

from ..documents.digest import Digest
from ..tar.compression import Readable
from ..tar.stream import Entry, TarStream
from .erofs.data import Data, SparseData
from .erofs.format import MOST_ATTRIBUTES, MOST_OF_ROOT, Inode, Node, attribute_size
from .erofs.writer import Directory, Writer
from .layer import Layer, LayerUnpacked, read_layer
from .lowers import OPAQUE
from .unpacking import MOST_BYTES, MOST_ENTRIES, NO_FILES, Place, Unpacked

__all__ = ["pack_layer"]

_LONGEST_NAME: Final = 255
_LONGEST_PATH: Final = 4095
_HIDDEN: Final = Inode(stat.S_IFCHR)
_RESERVED: Final = 100  # bytes for the attributes that make a directory opaque, and what lies before all


def pack_layer(
    stream: Readable,
    into: str | os.PathLike[str],
    *,
    diff_id: Digest | None = None,
    lowers: Sequence[str | os.PathLike[str]] = (),
    most_bytes: int = MOST_BYTES,
    most_entries: int = MOST_ENTRIES,
) -> LayerUnpacked:
    """Write a layer to the new file `into`, as an EROFS that shows what `unpack_layer` makes.

    Owners are kept. Everything else is as there, errors too; but the file is
    seen before it is whole.

    >>> import io, tarfile, tempfile
    >>> packed = io.BytesIO()
    >>> with tarfile.open(fileobj=packed, mode="w:gz") as tar:
    ...     tar.addfile(tarfile.TarInfo("etc/.wh.motd"))
    >>> with tempfile.TemporaryDirectory() as place:
    ...     pack_layer(io.BytesIO(packed.getvalue()), f"{place}/layer.erofs").whiteouts
    1
    """
    fd = -1
    try:
        fd = os.open(into, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        layer = _Packing(fd, most_entries, [os.fspath(path) for path in lowers])
        return read_layer(stream, layer, diff_id, most_bytes)
    except BaseException as error:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(into)
        if isinstance(error, OSError) and not isinstance(error, SetupError):
            raise SetupError(error.errno or errno.EIO, f"write {os.fspath(into)}", stage="layer") from error
        raise
    finally:
        if fd >= 0:
            os.close(fd)


class _Packing(Layer):
    """A layer whose files are written into one."""

    def __init__(self, fd: int, most_entries: int, lowers: Sequence[str]) -> None:
        super().__init__("", keep_owners=True, most_entries=most_entries, lowers=lowers)
        self._writer = Writer(fd)
        self._files: dict[Place, dict[bytes, Node]] = {(): {}}
        self._below: dict[Place, set[bytes]] = {(): set()}
        self._inodes: dict[Place, Inode] = {}
        self._more: dict[Node, int] = {}  # how many names, of files that have had several
        self._hidden: Node | None = None
        self._closed_below: set[Place] = set()  # directories that are opaque

    def run(self, stream: TarStream) -> Unpacked:
        made = self._place_all(stream)
        for node, links in self._more.items():
            if links:
                self._writer.set_links(node, links)
        for place in self._closed_below:
            inode = self._inodes[place]
            opaque = dict.fromkeys((name.encode() for name in OPAQUE), b"y")
            self._inodes[place] = evolve(inode, attributes=dict(inode.attributes) | opaque)
        places = sorted(self._files)
        numbers = {place: number for number, place in enumerate(places)}
        self._writer.finish(
            [
                Directory(
                    self._inodes[place],
                    self._files[place],
                    {name: numbers[*place, name] for name in self._below[place]},
                )
                for place in places
            ]
        )
        return made

    def _more_files(self, stream: TarStream, most: int) -> _native.Files:
        return NO_FILES

    # What a file system would do, with its errors

    def _put(self, place: Place, node: Node) -> None:
        files = self._free(place)
        files[place[-1]] = node

    def _free(self, place: Place) -> dict[bytes, Node]:
        files = self._files.get(place[:-1])
        if files is None:
            raise _error(errno.ENOTDIR)
        if place[-1] in files or place[-1] in self._below[place[:-1]]:
            raise _error(errno.EEXIST)
        if len(place[-1]) > _LONGEST_NAME or sum(map(len, place)) + len(place) - 1 > _LONGEST_PATH:
            raise _error(errno.ENAMETOOLONG)
        self._keep(place[-1:], 0)
        return files

    def _find(self, place: Place) -> Node | None:
        return self._files.get(place[:-1], {}).get(place[-1])

    def _mkdir(self, place: Place) -> None:
        self._free(place)
        self._below[place[:-1]].add(place[-1])
        self._files[place], self._below[place] = {}, set()

    def _rmdir(self, place: Place) -> None:
        if self._files[place] or self._below[place]:
            raise _error(errno.ENOTEMPTY)
        self._below[place[:-1]].remove(place[-1])
        del self._files[place], self._below[place]
        self._inodes.pop(place, None)

    def _unlink(self, place: Place) -> None:
        node = self._files.get(place[:-1], {}).pop(place[-1], None)
        if node is not None and node in self._more:
            self._more[node] -= 1

    def _make_hardlink(self, source: Place, place: Place) -> None:
        node = self._find(source)
        if node is None:
            raise _error(errno.ENOENT)
        self._put(place, node)
        self._more[node] = self._more.get(node, 1) + 1

    def _make_symlink(self, place: Place, entry: Entry) -> None:
        if len(entry.target) > _LONGEST_PATH:
            raise _error(errno.ENAMETOOLONG)
        inode = Inode(stat.S_IFLNK | 0o777, entry.uid, entry.gid, entry.mtime)
        self._put(place, self._writer.link(inode, entry.target))

    def _make_fifo(self, place: Place, entry: Entry) -> None:
        inode = Inode(stat.S_IFIFO | entry.mode, entry.uid, entry.gid, entry.mtime)
        self._put(place, self._writer.special(inode))

    def _write(self, place: Place, entry: Entry, stream: TarStream) -> None:
        self._remove(place)
        self._free(place)  # before its data are written
        attributes = self._attributes(entry, MOST_ATTRIBUTES) if entry.xattrs else {}
        inode = Inode(stat.S_IFREG | entry.mode, entry.uid, entry.gid, entry.mtime, attributes)
        if entry.segments is not None:
            sparse = SparseData(self._writer.blocks, entry.size, entry.segments)
            stream.contents(sparse.put)
            node = self._writer.sparse_file(inode, sparse)
        else:
            data = Data(self._writer.blocks, entry.size)
            stream.contents(data.put)
            node = self._writer.file(inode, data)
        self._files[place[:-1]][place[-1]] = node

    def _attributes(self, entry: Entry, left: int) -> dict[bytes, bytes]:
        left -= _RESERVED
        found: dict[bytes, bytes] = {}
        for name, value in entry.xattrs.items():
            size = attribute_size(name, value)
            if self._allowed(name, entry.kind) and name != b"user." and size <= left:
                found[name] = value
                left -= size
            else:
                self.left_out += 1
        return found

    def _finish(self, place: Place, entry: Entry) -> None:
        attributes = self._attributes(entry, MOST_ATTRIBUTES if place else MOST_OF_ROOT)
        self._inodes[place] = Inode(stat.S_IFDIR | entry.mode, entry.uid, entry.gid, entry.mtime, attributes)
        self._times[place] = entry.mtime

    def _is_there(self, place: Place) -> bool:
        return self._find(place) is not None

    def _make_whiteout(self, place: Place) -> None:
        if self._hidden is None:  # one for all: nothing is known of a whiteout but that it is one
            self._hidden = self._writer.special(_HIDDEN)
            self._more[self._hidden] = 0
        self._put(place, self._hidden)
        self._more[self._hidden] += 1
        self.whiteouts += 1

    def _make_opaque(self, place: Place) -> None:
        self._closed_below.add(place)
        self.opaque += 1

    def _inherit(self, place: Place, below: os.stat_result | None) -> None:
        mode, uid, gid, mtime = 0o755, 0, 0, 0
        if below is not None:
            mode, uid, gid, mtime = stat.S_IMODE(below.st_mode), below.st_uid, below.st_gid, below.st_mtime_ns
        self._inodes[place] = Inode(stat.S_IFDIR | mode, uid, gid, mtime)
        self._times[place] = mtime


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
