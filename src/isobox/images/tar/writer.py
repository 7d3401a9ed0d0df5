"""Write tar archives: the same bytes for the same entries.

POSIX ustar (pax, "ustar Interchange Format"), and a pax extended header in front of those entries only
whose name, number or time has no room there, or that have extended attributes. No access times, no
names of users, no padding behind the end marker. Names are bytes, written as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

from attrs import field, frozen

from isobox.errors import ImageError, shown

__all__ = ["BLOCK", "END", "Kind", "Member", "header"]

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""What stands behind the last entry."""

Kind: TypeAlias = Literal["file", "directory", "symlink", "hardlink", "fifo", "char", "block"]
Write: TypeAlias = Callable[[bytes | memoryview], object]

_TYPES: Final[Mapping[Kind, bytes]] = {
    "file": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "directory": b"5",
    "fifo": b"6",
}
_LONGEST_RECORDS: Final = 1 << 20  # what tarstream.py reads
_PAX_NAME: Final = b"././@PaxHeader"


@frozen
class Member:
    """One entry; `name` and `target` are bytes, a directory's name without a slash at its end.

    `mode`: the twelve bits. `mtime` in nanoseconds since 1970, negative before. `size`: the bytes of a
    file. `device`: major and minor number. `xattrs`: name to value.
    """

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(factory=dict, hash=False)


def header(member: Member) -> bytes:
    """Return the header of an entry, with its pax header in front where it needs one; whole blocks.

    A file's contents follow it, filled up to a whole block. Raises `ImageError` where the attributes
    are more than a reader takes.

    >>> import io, tarfile
    >>> file = io.BytesIO(header(Member(b"etc", "directory", 0o755, mtime=1_500_000_001)) + END)
    >>> [(info.name, info.isdir(), info.mtime) for info in tarfile.open(fileobj=file)]
    [('etc', True, 1.500000001)]
    """
    records: dict[bytes, bytes] = {}
    name = member.name + b"/" if member.kind == "directory" else member.name
    prefix, base = _split(name)
    if base is None:
        records[b"path"] = name
        prefix, base = b"", name[:100]
    target = member.target
    if len(target) > 100:
        records[b"linkpath"] = target
        target = target[:100]
    if not all(_is_text(value) for value in records.values()):
        records[b"hdrcharset"] = b"BINARY"
    numbers = {b"uid": member.uid, b"gid": member.gid, b"size": member.size}
    for key, width in ((b"uid", 7), (b"gid", 7), (b"size", 11)):
        if numbers[key] >= 8**width:
            records[key] = b"%d" % numbers[key]
            numbers[key] = 0
    seconds, fraction = divmod(member.mtime, 10**9)
    if fraction or not 0 <= seconds < 8**11:
        records[b"mtime"] = _time(member.mtime)
        seconds = min(max(seconds, 0), 8**11 - 1)
    for attribute, value in member.xattrs.items():
        # GNU tar's way: a record's key ends at the first "=".
        key = attribute.replace(b"%", b"%25").replace(b"=", b"%3D")
        records[b"SCHILY.xattr." + key] = value
    block = _block(
        base,
        member.mode,
        numbers[b"uid"],
        numbers[b"gid"],
        numbers[b"size"],
        seconds,
        _TYPES[member.kind],
        target,
        prefix,
        member.device,
    )
    if not records:
        return block
    data = b"".join(_record(key, records[key]) for key in sorted(records))
    if len(data) > _LONGEST_RECORDS:
        raise ImageError(f"{shown(member.name)}: its extended attributes are too many for a tar archive")
    extended = _block(_PAX_NAME, 0o644, 0, 0, len(data), 0, b"x", b"", b"", (0, 0))
    return extended + data + bytes(-len(data) % BLOCK) + block


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """Prefix and name as ustar has room for them; None for the name where it has not."""
    if len(name) <= 100:
        return b"", name
    cut = name.find(b"/", len(name) - 101)
    if 0 < cut <= 155 and cut < len(name) - 1:
        return name[:cut], name[cut + 1 :]
    return b"", None


def _block(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    kind: bytes,
    target: bytes,
    prefix: bytes,
    device: tuple[int, int],
) -> bytes:
    parts = (
        name.ljust(100, b"\0"),
        b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime),
        b" " * 8,
        kind,
        target.ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),  # names of the owner and the group: numbers alone count
        b"%07o\0%07o\0" % device,
        prefix.ljust(155, b"\0"),
        bytes(12),
    )
    block = b"".join(parts)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """The record "LENGTH KEY=VALUE\\n", whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _time(nanoseconds: int) -> bytes:
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    sign = b"-" if nanoseconds < 0 else b""
    text = b"%s%d.%09d" % (sign, seconds, fraction)
    return text.rstrip(b"0").rstrip(b".")


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
