"""What a layer has, without a place on disk: its entries as values, to be compared with those of others."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import Factory, evolve, frozen

from isobox import _native

from ..documents.digest import Digest
from ..tar.compression import Readable
from ..tar.stream import Entry, TarStream
from .layer import Layer, read_layer
from .unpacking import MOST_BYTES, MOST_ENTRIES, NO_FILES, Place, Unpacked

__all__ = ["EMPTY", "Kind", "Listed", "differences", "list_layer", "merged"]

Kind = str
"""As `Change.kind` has it: "added", "modified" or "deleted"."""

_LONGEST_NAME: Final = 255
_ZEROS: Final = bytes(1 << 20)


@frozen(eq=False)
class Listed:
    """One file or directory. `content`: the SHA-256 of a file, the target of a link; `below`: of a directory.

    `mode` is None of a directory that a layer only has because something lies in it: it is as the one below.
    `alone`: nothing of the layers below is seen in it.
    """

    kind: str
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    content: bytes = b""
    attributes: Mapping[bytes, bytes] = Factory(dict)
    below: Mapping[bytes, Listed] = Factory(dict)
    alone: bool = False

    def same(self, other: Listed) -> bool:
        """Whether nothing of it is otherwise, whatever lies in it."""
        mine, theirs = (
            (one.kind, _mode(one), one.uid, one.gid, one.content, one.attributes) for one in (self, other)
        )
        return mine == theirs


EMPTY: Final = Listed("directory")
"""What lies below the lowest layer."""

_WHITEOUT: Final = Listed("whiteout")


def _mode(one: Listed) -> int:
    return 0o755 if one.mode is None else one.mode


def merged(lower: Listed | None, upper: Listed) -> Listed | None:
    """What is seen where one layer lies on another, as an overlay shows it; None where `upper` hides all."""
    if upper.kind == "whiteout":
        return None
    if upper.kind != "directory":
        return upper
    if lower is not None and lower.kind != "directory":
        lower = None
    below = {} if lower is None or upper.alone else dict(lower.below)
    for name, one in upper.below.items():
        found = merged(below.get(name), one)
        if found is None:
            below.pop(name, None)
        else:
            below[name] = found
    own = lower if lower is not None and upper.mode is None else upper
    return evolve(own, below=below, alone=False)


def differences(first: Listed, second: Listed, place: Place = ()) -> Iterator[tuple[Kind, Place]]:
    """Yield what the second has otherwise than the first, by place: of what is deleted, the topmost alone."""
    if first is second:
        return
    if not first.same(second):
        yield "modified", place
    for name in sorted(first.below.keys() | second.below.keys()):
        old, new = first.below.get(name), second.below.get(name)
        here = (*place, name)
        if new is None:
            if second.kind == "directory":  # else the whole directory became something else
                yield "deleted", here
        elif old is None:
            yield from _added(new, here)
        else:
            yield from differences(old, new, here)


def _added(new: Listed, place: Place) -> Iterator[tuple[Kind, Place]]:
    yield "added", place
    for name in sorted(new.below):
        yield from _added(new.below[name], (*place, name))


def list_layer(stream: Readable, diff_id: Digest, most_entries: int = MOST_ENTRIES) -> tuple[Listed, int]:
    """Read a layer up to its end; return its root, and how many entries it has. Raises as `unpack_layer`."""
    layer = _Listing(most_entries)
    made = read_layer(stream, layer, diff_id, MOST_BYTES)
    return layer.root(), made.entries


class _Listing(Layer):
    """A layer that is placed as on a file system (see `Layer`), but nowhere."""

    def __init__(self, most_entries: int) -> None:
        super().__init__("", keep_owners=True, most_entries=most_entries, lowers=())
        self._entries: dict[Place, dict[bytes, Listed]] = {(): {}}
        self._found: dict[Place, Listed] = {(): EMPTY}

    def run(self, stream: TarStream) -> Unpacked:
        return self._place_all(stream)

    def root(self) -> Listed:
        """Put the directories together, the deepest first."""
        for place in sorted(self._entries, key=len, reverse=True):
            here = evolve(self._found[place], below=self._entries[place])
            if place:
                self._entries[place[:-1]][place[-1]] = here
            else:
                root = here
        return root

    def _more_files(self, stream: TarStream, most: int) -> _native.Files:
        return NO_FILES

    # What a file system would do, with its errors

    def _put(self, place: Place, one: Listed) -> None:
        entries = self._entries.get(place[:-1])
        if entries is None:
            raise _error(errno.ENOTDIR)
        if place[-1] in entries:
            raise _error(errno.EEXIST)
        if len(place[-1]) > _LONGEST_NAME:
            raise _error(errno.ENAMETOOLONG)
        self._keep(place[-1:], 0)
        entries[place[-1]] = one

    def _mkdir(self, place: Place) -> None:
        self._put(place, EMPTY)
        self._entries[place], self._found[place] = {}, EMPTY

    def _rmdir(self, place: Place) -> None:
        if self._entries[place]:
            raise _error(errno.ENOTEMPTY)
        del self._entries[place], self._found[place], self._entries[place[:-1]][place[-1]]

    def _unlink(self, place: Place) -> None:
        self._entries.get(place[:-1], {}).pop(place[-1], None)

    def _make_hardlink(self, source: Place, place: Place) -> None:
        found = self._entries.get(source[:-1], {}).get(source[-1])
        if found is None:
            raise _error(errno.ENOENT)
        self._put(place, found)

    def _make_symlink(self, place: Place, entry: Entry) -> None:
        self._put(place, Listed("symlink", 0o777, entry.uid, entry.gid, entry.target))

    def _make_fifo(self, place: Place, entry: Entry) -> None:
        self._put(place, Listed("fifo", entry.mode, entry.uid, entry.gid))

    def _write(self, place: Place, entry: Entry, stream: TarStream) -> None:
        self._remove(place)
        content = _Content(entry)
        stream.contents(content.put)
        self._put(place, self._listed(entry, content.digest()))

    def _listed(self, entry: Entry, content: bytes = b"") -> Listed:
        attributes = {name: value for name, value in entry.xattrs.items() if self._allowed(name, entry.kind)}
        return Listed(entry.kind, entry.mode, entry.uid, entry.gid, content, attributes)

    def _finish(self, place: Place, entry: Entry) -> None:
        self._found[place] = self._listed(entry)
        self._times[place] = entry.mtime

    def _is_there(self, place: Place) -> bool:
        return place[-1] in self._entries.get(place[:-1], {})

    def _make_whiteout(self, place: Place) -> None:
        self._put(place, _WHITEOUT)

    def _make_opaque(self, place: Place) -> None:
        self._found[place] = evolve(self._found[place], alone=True)

    def _inherit(self, place: Place, below: os.stat_result | None) -> None:
        """What lies below is known where the layers are merged."""


class _Content:
    """The digest of a file, be it stored with holes or with zeros."""

    def __init__(self, entry: Entry) -> None:
        self._hasher = hashlib.sha256()
        self._size = entry.size
        self._segments = iter(((0, entry.size),) if entry.segments is None else entry.segments)
        self._at = self._end = 0

    def put(self, data: memoryview) -> None:
        """Take what the archive holds of it next."""
        while data:
            if self._at == self._end:
                offset, length = next(self._segments)
                self._skip(offset)
                self._end = offset + length
            piece = data[: self._end - self._at]
            self._hasher.update(piece)
            self._at += len(piece)
            data = data[len(piece) :]

    def digest(self) -> bytes:
        """Once all of it was taken."""
        self._skip(self._size)
        return self._hasher.digest()

    def _skip(self, to: int) -> None:
        while self._at < to:
            size = min(len(_ZEROS), to - self._at)
            self._hasher.update(_ZEROS[:size])
            self._at += size
        self._end = self._at


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
