"""Read the entries of a tar archive, one after the other, without trusting a byte of it.

All of ustar, GNU's long names and pax that archives of root file systems use. Sizes are bounded
before anything is allocated, the checksum of every header is verified, and an archive that ends
before its end marker is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import field, frozen

from isobox.errors import UnpackError

from .compression import DAMAGED, Readable

__all__ = ["Entry", "TarStream"]

BLOCK = 512
_LARGEST_HEADER = 1 << 20  # of pax records or a long name; the kernel takes names of 4 KiB
_MOST_HEADERS = 32  # such headers in front of one entry
_USED = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
_SPARSE = b"GNU.sparse."
# Small enough that the allocator reuses the memory: a megabyte is mapped and faulted in anew each time.
_PIECE = 1 << 16

_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "fifo",
}


@frozen
class Entry:
    """One entry as the archive has it; `name` and `target` are not checked in any way.

    `kind`: "file", "directory", "symlink", "hardlink", "fifo" or "device". `mtime` in nanoseconds.
    """

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: bytes


@frozen
class _Overrides:
    """What pax and GNU headers said about the entry that follows."""

    name: bytes | None = None
    target: bytes | None = None
    values: dict[bytes, bytes] = field(factory=dict)


class TarStream:
    """The entries of a tar stream and, between two of them, the contents of the one before.

    `most`: bytes of the stream, after decompression; beyond it, `UnpackError`.
    """

    def __init__(self, source: Readable, most: int) -> None:
        self._source = source
        self._left = most
        self._most = most
        self._unread = 0  # of the entry given last
        self._padding = 0

    def entries(self) -> Iterator[Entry]:
        """Yield every entry up to the end marker, then check the rest of the stream."""
        while True:
            entry = self._next()
            if entry is None:
                break
            yield entry
        # What follows the marker is padding; reading it lets a decompressor verify its checksum.
        while self._read(_PIECE):
            pass

    def contents(self, write: Callable[[bytes], object]) -> None:
        """Hand the contents of the entry given last to `write`, in pieces."""
        while self._unread:
            data = self._read(min(self._unread, _PIECE))
            if not data:
                raise UnpackError("the archive ends in the middle of a file")
            self._unread -= len(data)
            write(data)

    def _read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except DAMAGED as error:
            raise UnpackError(f"damaged archive: {error}") from error
        self._left -= len(data)
        if self._left < 0:
            raise UnpackError(f"the archive unpacks to more than {self._most} bytes")
        return data

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            data = self._read(size)
            if not data:
                raise UnpackError("the archive ends early")
            parts.append(data)
            size -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _next(self) -> Entry | None:
        self.contents(lambda data: None)
        self._exactly(self._padding)
        self._padding = 0
        overrides = _Overrides()
        for _ in range(_MOST_HEADERS):
            block = self._exactly(BLOCK)
            if not block.strip(b"\0"):
                return None
            _verify(block)
            kind = block[156:157]
            size = _number(block[124:136], "size")
            if kind in b"xgLK":
                overrides = self._special(kind, size, overrides)
                continue
            entry = _entry(block, kind, size, overrides)
            if entry.kind == "file":
                self._unread = entry.size
                self._padding = -entry.size % BLOCK
            return entry
        raise UnpackError("too many extended headers in front of one entry")

    def _special(self, kind: bytes, size: int, overrides: _Overrides) -> _Overrides:
        if size > _LARGEST_HEADER:
            raise UnpackError(f"an extended header of {size} bytes")
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        if kind == b"L":
            return _Overrides(data.partition(b"\0")[0], overrides.target, overrides.values)
        if kind == b"K":
            return _Overrides(overrides.name, data.partition(b"\0")[0], overrides.values)
        if kind == b"g":
            _pax(data)  # comments of whoever made the archive: checked, of no use here
            return overrides
        values = {**overrides.values, **_pax(data)}
        return _Overrides(
            values.get(b"path", overrides.name), values.get(b"linkpath", overrides.target), values
        )


def _entry(block: bytes, kind: bytes, size: int, overrides: _Overrides) -> Entry:
    values = overrides.values
    if kind == b"S" or _SPARSE in values:
        raise UnpackError("the archive has sparse files; make it without --sparse")
    meaning = _KINDS.get(kind)
    if meaning is None:
        raise UnpackError(f"an entry of unknown kind {kind!r}")
    name = overrides.name
    if name is None:
        name = block[:100].partition(b"\0")[0]
        prefix = block[345:500].partition(b"\0")[0]
        # GNU's own format, "ustar  ", has times where POSIX has the prefix.
        if prefix and block[257:263] == b"ustar\0":
            name = prefix + b"/" + name
    target = overrides.target
    if target is None:
        target = block[157:257].partition(b"\0")[0]
    if b"size" in values:
        size = _decimal(values[b"size"], "size")
    if meaning == "file" and kind != b"7" and name.endswith(b"/"):
        meaning = "directory"  # as archives older than ustar have it
    if meaning != "file":
        size = 0  # some programs write the length of a link's target here; no contents follow
    mtime = values.get(b"mtime")
    return Entry(
        name,
        meaning,
        _number(block[100:108], "mode") & 0o7777,
        _id(values, b"uid", block[108:116]),
        _id(values, b"gid", block[116:124]),
        size,
        _number(block[136:148], "mtime") * 10**9 if mtime is None else _nanoseconds(mtime),
        target,
    )


def _verify(block: bytes) -> None:
    claimed = _number(block[148:156], "checksum")
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if claimed != total:
        # Some old programs added the bytes up as signed numbers.
        high = sum(1 for index, byte in enumerate(block) if byte > 127 and not 148 <= index < 156)
        if claimed != total - 256 * high:
            raise UnpackError("not a tar archive, or a damaged one: a header's checksum is wrong")


def _number(raw: bytes, what: str) -> int:
    """Read an octal number, or GNU's binary one for what is too large or negative."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=False) & ~(0x80 << 8 * (len(raw) - 1))
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
    else:
        digits = raw.replace(b"\0", b" ").strip()
        if digits.strip(b"01234567"):
            raise UnpackError(f"an entry's {what} is not a number: {raw!r}")
        value = int(digits, 8) if digits else 0
    if what != "mtime" and value < 0:
        raise UnpackError(f"an entry's {what} is negative")
    return value


def _decimal(raw: bytes, what: str) -> int:
    if not raw.isdigit() or len(raw) > 20:
        raise UnpackError(f"an entry's {what} is not a number: {raw[:40]!r}")
    return int(raw)


def _id(values: dict[bytes, bytes], key: bytes, raw: bytes) -> int:
    value = _decimal(values[key], key.decode()) if key in values else _number(raw, key.decode())
    if value >= 2**32 - 1:
        raise UnpackError(f"an entry's {key.decode()} is {value}, which no file can have")
    return value


def _nanoseconds(raw: bytes) -> int:
    """Read pax's decimal seconds exactly; a float would lose nanoseconds."""
    whole, _, fraction = raw.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    digits = whole.lstrip(b"-")
    if not digits.isdigit() or (fraction and not fraction.isdigit()) or len(raw) > 40:
        raise UnpackError(f"an entry's mtime is not a number: {raw[:40]!r}")
    return sign * (int(digits) * 10**9 + int(fraction[:9].ljust(9, b"0") or b"0"))


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Read the records "LENGTH KEY=VALUE\\n" of a pax header; of those of no use here nothing is kept."""
    values: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise UnpackError("a damaged pax header")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 1 or not equals or data[end - 1 : end] != b"\n":
            raise UnpackError("a damaged pax header")
        if key in _USED:
            values[key] = value
        elif key.startswith(_SPARSE):
            values[_SPARSE] = b""
        at = end
    return values
