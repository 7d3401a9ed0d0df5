"""Read the entries of a tar archive, one after the other, without trusting a byte of it.

All of ustar, GNU's long names and sparse files, and pax that archives of root file systems use. Sizes
are bounded before anything is allocated, the checksum of every header is verified, and an archive that
ends before its end marker is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from zlib import adler32

from attrs import field, frozen

from isobox.errors import UnpackError

from . import sparse
from .compression import DAMAGED, Readable
from .pax import Records, decimal, identifier, nanoseconds, number, read_global, read_records

__all__ = ["Entry", "TarStream"]

BLOCK = 512
_LARGEST_HEADER = 1 << 20  # of pax records or a long name; the kernel takes names of 4 KiB
_MOST_HEADERS = 32  # such headers in front of one entry
# Small enough that the allocator reuses the memory: a megabyte is mapped and faulted in anew each time.
_PIECE = 1 << 16
_EMPTY = bytes(BLOCK)
_NO_XATTRS: Mapping[bytes, bytes] = {}

_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "fifo",
}


@frozen
class Entry:
    """One entry as the archive has it; `name`, `target` and `xattrs` are not checked in any way.

    `kind`: "file", "directory", "symlink", "hardlink", "fifo" or "device". `mtime` in nanoseconds.
    `size`: of the file. `segments`: None, or of a sparse file the pieces that the archive holds,
    (offset, size) each, ascending.
    """

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: bytes
    segments: sparse.Segments | None = None
    xattrs: Mapping[bytes, bytes] = field(default=_NO_XATTRS)


class TarStream:
    """The entries of a tar stream and, between two of them, the contents of the one before.

    `most`: bytes of the stream after decompression, and of the holes of its sparse files: what comes of
    it is no larger. Beyond, `UnpackError`.
    """

    def __init__(self, source: Readable, most: int) -> None:
        self._source = source
        self._left = most
        self._most = most
        self._piece = b""
        self._at = 0
        self._unread = 0  # of the entry given last
        self._padding = 0
        self._global: dict[bytes, bytes] = {}

    def entries(self) -> Iterator[Entry]:
        """Yield every entry up to the end marker, then check the rest of the stream."""
        while True:
            entry = self._next()
            if entry is None:
                break
            yield entry
        # What follows the marker is padding; reading it lets a decompressor verify its checksum.
        while self._fill():
            pass

    def contents(self, write: Callable[[memoryview], object]) -> None:
        """Hand the contents of the entry given last to `write`, in pieces."""
        while self._unread:
            if self._at == len(self._piece) and not self._fill():
                raise UnpackError("the archive ends in the middle of a file")
            data = memoryview(self._piece)[self._at : self._at + self._unread]
            self._at += len(data)
            self._unread -= len(data)
            write(data)

    def ready(self) -> tuple[bytes, int] | None:
        """What has come of the stream, and where in it the next header begins; None where it hasn't come.

        Also None while a global header says something of all entries.
        """
        at = self._at + self._padding
        if self._unread or self._global or at + BLOCK > len(self._piece):
            return None
        return self._piece, at

    def passed(self, end: int) -> None:
        """Whole entries up to there in what is `ready` were taken: the next one follows."""
        self._at = end
        self._padding = 0

    def _fill(self) -> bool:
        """Read the next piece; False at the end."""
        try:
            self._piece = self._source.read(_PIECE)
        except DAMAGED as error:
            raise UnpackError(f"damaged archive: {error}") from error
        self._at = 0
        self._count(len(self._piece))
        return bool(self._piece)

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnpackError(f"the archive unpacks to more than {self._most} bytes")

    def _exactly(self, size: int) -> bytes:
        end = self._at + size
        if end <= len(self._piece):
            data = self._piece[self._at : end]
            self._at = end
            return data
        parts: list[bytes] = []
        while size:
            if self._at == len(self._piece) and not self._fill():
                raise UnpackError("the archive ends early")
            part = self._piece[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip(self, size: int) -> None:
        while size:
            if self._at == len(self._piece) and not self._fill():
                raise UnpackError("the archive ends early")
            step = min(size, len(self._piece) - self._at)
            self._at += step
            size -= step

    def _next(self) -> Entry | None:
        # Not _exactly: what is passed over may be of any size.
        self._skip(self._unread)
        self._unread = 0
        self._skip(self._padding)
        self._padding = 0
        records: Records | None = None
        names: dict[bytes, bytes] = {}
        for _ in range(_MOST_HEADERS):
            block = self._exactly(BLOCK)
            if block == _EMPTY:
                return None
            _verify(block)
            kind = block[156:157]
            size = number(block[124:136], "size")
            if kind not in b"xgLK":
                return self._entry(block, kind, size, records, names)
            data = self._header(size)
            if kind == b"x":
                if records is None:
                    records = Records(values=dict(self._global))
                read_records(data, records)
            elif kind == b"g":
                read_global(data, self._global)
            else:
                names[kind] = data.partition(b"\0")[0]
        raise UnpackError("too many extended headers in front of one entry")

    def _header(self, size: int) -> bytes:
        if size > _LARGEST_HEADER:
            raise UnpackError(f"an extended header of {size} bytes")
        data = self._exactly(size)
        self._skip(-size % BLOCK)
        return data

    def _entry(
        self,
        block: bytes,
        kind: bytes,
        size: int,
        records: Records | None,
        names: dict[bytes, bytes],
    ) -> Entry:
        meaning = _KINDS.get(kind)
        if meaning is None:
            raise UnpackError(f"an entry of unknown kind {kind!r}")
        values = self._global if records is None else records.values
        # Where an archive has both, GNU's names win: so do they for the programs that run layers.
        name = names.get(b"L") or values.get(b"path") or _name(block, kind)
        target = names.get(b"K") or values.get(b"linkpath") or block[157:257].partition(b"\0")[0]
        if b"size" in values:
            size = decimal(values[b"size"], "size")
        if meaning == "file" and kind not in b"7S" and name.endswith(b"/"):
            meaning = "directory"  # as archives older than ustar have it
        segments: sparse.Segments | None = None
        if records is not None and (records.sparse or records.map):
            if meaning != "file" or kind == b"S":
                raise UnpackError("a sparse file's map for what is no file, or two of them")
            name = records.sparse.get(b"name") or name
        if meaning != "file":
            size = 0  # some programs write the length of a link's target here; no contents follow
        else:
            self._padding = -size % BLOCK
            size, segments = self._stored(block, kind, size, records)
        mtime = values.get(b"mtime")
        return Entry(
            name,
            meaning,
            number(block[100:108], "mode") & 0o7777,
            identifier(values.get(b"uid"), block[108:116], "uid"),
            identifier(values.get(b"gid"), block[116:124], "gid"),
            size,
            number(block[136:148], "mtime") * 10**9 if mtime is None else nanoseconds(mtime),
            target,
            segments,
            _NO_XATTRS if records is None else records.xattrs,
        )

    def _stored(
        self, block: bytes, kind: bytes, size: int, records: Records | None
    ) -> tuple[int, sparse.Segments | None]:
        """Set what is to be read of this file; return its size and, if it is sparse, its map."""
        if kind == b"S":
            found = sparse.from_header(block, size, self._exactly)
        elif records is not None and (records.sparse or records.map):
            found = sparse.from_records(records, size, self._exactly)
        else:
            self._unread = size
            return size, None
        self._unread = found.stored
        self._count(found.size - found.stored)
        return found.size, found.segments


def _name(block: bytes, kind: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    # GNU's own format, "ustar  ", has times where POSIX has the prefix.
    if block[257:263] == b"ustar\0" and block[345] and kind != b"S":
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _verify(block: bytes) -> None:
    claimed = number(block[148:156], "checksum")
    # The low half of Adler-32 is one more than the sum, modulo 65521: 256 bytes never reach that.
    low, high = adler32(block[:256]) & 0xFFFF, adler32(block[256:]) & 0xFFFF
    total = low + high - 2 - sum(block[148:156]) + 8 * 32
    if claimed != total:
        # Some old programs added the bytes up as signed numbers.
        signed = sum(1 for index, byte in enumerate(block) if byte > 127 and not 148 <= index < 156)
        if claimed != total - 256 * signed:
            raise UnpackError("not a tar archive, or a damaged one: a header's checksum is wrong")
