"""The fields of tar headers as values: numbers, times, and the records of pax extended headers.

Nothing here is trusted, and nothing is kept that has no use.
"""

from __future__ import annotations

from attrs import define, field

from isobox.errors import UnpackError

__all__ = ["Records", "decimal", "identifier", "nanoseconds", "number", "read_records"]

XATTR = b"SCHILY.xattr."
SPARSE = b"GNU.sparse."
_USED = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
_GLOBAL = frozenset({b"uid", b"gid", b"mtime"})
_MOST_XATTRS = 256  # of one file; the kernel's list of names has room for 64 KiB
_XATTR_NAME = 255  # XATTR_NAME_MAX in include/uapi/linux/limits.h
_XATTR_VALUE = 65536  # XATTR_SIZE_MAX
_MOST_DIGITS = 20
MOST_SEGMENTS = 1 << 16
"""Pieces of one sparse file: with a hole after each 4 KiB, 512 MiB."""


@define
class Records:
    """What pax said of the entry that follows.

    `values`: the records of POSIX that matter here. `xattrs`: names as the kernel has them. `sparse`:
    GNU's records but those that repeat, which are in `map`: offsets and sizes in turn.
    """

    values: dict[bytes, bytes] = field(factory=dict)
    xattrs: dict[bytes, bytes] = field(factory=dict)
    sparse: dict[bytes, bytes] = field(factory=dict)
    map: list[bytes] = field(factory=list)


def read_records(data: bytes, into: Records) -> None:
    r"""Read the records "LENGTH KEY=VALUE\n" of an extended header; later ones replace earlier ones.

    A record without a value takes back what was said before (POSIX pax, "pax Extended Header"); an
    extended attribute without one is there and empty. Raises `UnpackError`.

    >>> records = Records()
    >>> read_records(b"11 size=12\n30 SCHILY.xattr.user.a=hello\n\n", records)
    >>> records.values, records.xattrs
    ({b'size': b'12'}, {b'user.a': b'hello\n'})
    """
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
        at = end
        if key in _USED:
            if value:
                into.values[key] = value
            else:
                into.values.pop(key, None)
        elif key.startswith(XATTR):
            _xattr(key[len(XATTR) :], value, into)
        elif key.startswith(SPARSE):
            _sparse(key[len(SPARSE) :], value, into)


def read_global(data: bytes, values: dict[bytes, bytes]) -> None:
    """Read a global header: owners and times for all entries after it, beside comments.

    What names or sizes one file can't be meant for all: refused, and so is what no program writes there.
    """
    records = Records()
    read_records(data, records)
    wrong = sorted(records.values.keys() - _GLOBAL) + sorted(records.xattrs) + sorted(records.sparse)
    if wrong or records.map:
        raise UnpackError(f"a global pax header that is for one file only: {wrong[:3]}")
    values.update(records.values)


def _xattr(name: bytes, value: bytes, into: Records) -> None:
    # GNU tar writes them so, because a record's key ends at the first "=".
    name = name.replace(b"%3D", b"=").replace(b"%25", b"%")
    if not name or b"\0" in name or len(name) > _XATTR_NAME or len(value) > _XATTR_VALUE:
        raise UnpackError(f"an extended attribute that no file can have: {name[:40]!r}")
    into.xattrs[name] = value
    if len(into.xattrs) > _MOST_XATTRS:
        raise UnpackError(f"more than {_MOST_XATTRS} extended attributes of one file")


def _sparse(key: bytes, value: bytes, into: Records) -> None:
    if key in (b"offset", b"numbytes"):
        if (key == b"numbytes") != len(into.map) % 2:
            raise UnpackError("a sparse file's map is out of order")
        into.map.append(value)
        if len(into.map) > 2 * MOST_SEGMENTS:
            raise UnpackError(f"a sparse file in more than {MOST_SEGMENTS} pieces")
    else:
        into.sparse[key] = value


def number(raw: bytes, what: str) -> int:
    """Read an octal number, or GNU's binary one for what is too large or negative."""
    digits = raw[:-1]
    if raw[-1] in b"\0 " and digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    elif raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=False) & ~(0x80 << 8 * (len(raw) - 1))
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        if what != "mtime" and value < 0:
            raise UnpackError(f"an entry's {what} is negative")
        return value
    digits = raw.replace(b"\0", b" ").strip()
    if digits.strip(b"01234567"):
        raise UnpackError(f"an entry's {what} is not a number: {raw!r}")
    return int(digits, 8) if digits else 0


def decimal(raw: bytes, what: str) -> int:
    """Read pax's decimal number."""
    if not raw.isdigit() or len(raw) > _MOST_DIGITS:
        raise UnpackError(f"an entry's {what} is not a number: {raw[:40]!r}")
    return int(raw)


def identifier(said: bytes | None, raw: bytes, what: str) -> int:
    """Read a uid or gid: pax's if it said one, else the header's."""
    value = number(raw, what) if said is None else decimal(said, what)
    if value >= 2**32 - 1:
        raise UnpackError(f"an entry's {what} is {value}, which no file can have")
    return value


def nanoseconds(raw: bytes) -> int:
    """Read pax's decimal seconds exactly; a float would lose nanoseconds.

    >>> nanoseconds(b"-1.25"), nanoseconds(b"1700000000.0000000019")
    (-1250000000, 1700000000000000001)
    """
    whole, _, fraction = raw.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    digits = whole[1:] if sign < 0 else whole
    if not digits.isdigit() or (fraction and not fraction.isdigit()) or len(raw) > 40:
        raise UnpackError(f"an entry's mtime is not a number: {raw[:40]!r}")
    return sign * (int(digits) * 10**9 + int(fraction[:9].ljust(9, b"0") or b"0"))
