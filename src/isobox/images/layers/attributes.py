"""Owners and extended attributes of files, as a container sees them and an image has them."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from typing import Final, TypeAlias

from attrs import frozen

from isobox.errors import ImageError

__all__ = ["CAPABILITY", "OVERFLOW", "Owners", "attribute_names", "attributes"]

Lines: TypeAlias = Sequence[tuple[int, int, int]]

OVERFLOW: Final = 65534
"""What the kernel shows for an owner that a user namespace has no id for."""

CAPABILITY: Final = b"security.capability"
_MOST: Final = 256  # as pax.py takes them


@frozen
class Owners:
    """The ids of a container for those on disk: the lines of its maps, None where they are the same.

    `unknown` stands for what the maps don't have.

    >>> owners = Owners(((0, 1000, 1), (1, 100000, 65536)), ((0, 1000, 1),))
    >>> owners.uid(1000), owners.uid(100032), owners.gid(5)
    (0, 33, 65534)
    """

    uids: Lines | None = None
    gids: Lines | None = None
    unknown: int = OVERFLOW

    def uid(self, host: int) -> int:
        """The user in the container."""
        return _inside(self.uids, host, self.unknown)

    def gid(self, host: int) -> int:
        """The group in the container."""
        return _inside(self.gids, host, self.unknown)


def _inside(lines: Lines | None, host: int, unknown: int) -> int:
    if lines is None:
        return host
    for inside, outside, count in lines:
        if outside <= host < outside + count:
            return inside + host - outside
    return unknown


def attribute_names(fd: int) -> list[bytes]:
    """The names of all extended attributes that this user may see, sorted. Raises OSError."""
    try:
        return sorted(os.fsencode(name) for name in os.listxattr(fd))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def attributes(fd: int, names: Collection[bytes], owners: Owners) -> dict[bytes, bytes]:
    """The extended attributes that belong into an image, of these: capabilities, and the users' own.

    Raises OSError; `ImageError` where there are more than a layer may have.
    """
    values: dict[bytes, bytes] = {}
    for name in names:
        own = name.startswith(b"user.") and not name.startswith(b"user.overlay.")
        if not own and name != CAPABILITY:
            continue
        try:
            value: bytes | None = os.getxattr(fd, name)
        except OSError as error:
            if error.errno != errno.ENODATA:  # gone since they were listed
                raise
            continue
        if name == CAPABILITY and value is not None:
            value = _capability(value, owners)
        if value is not None:
            values[name] = value
    if len(values) > _MOST:
        raise ImageError(f"a file with more than {_MOST} extended attributes: no image can have it")
    return values


def _capability(value: bytes, owners: Owners) -> bytes | None:
    """Capabilities as the container's root gave them.

    Seen from outside, they are bound to the id of that root (capabilities(7), "File capability extended
    attribute versioning").
    """
    magic = int.from_bytes(value[:4], "little")
    if magic >> 24 != 3 or len(value) != 24:
        return value
    root = owners.uid(int.from_bytes(value[20:], "little"))
    if root == 0:
        return (magic & 0xFFFFFF | 2 << 24).to_bytes(4, "little") + value[4:20]
    return None if root == owners.unknown else value[:20] + root.to_bytes(4, "little")
