"""The structures of the format, as bytes."""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import field, frozen

__all__ = [
    "BLOCK",
    "CHUNKS",
    "INLINE",
    "INODE_SIZE",
    "MOST_ATTRIBUTES",
    "MOST_OF_ROOT",
    "NAME_SIZE",
    "NLINK_AT",
    "PLAIN",
    "ROOT",
    "SLOT",
    "SUPER_AT",
    "Inode",
    "Node",
    "attribute_size",
    "attributes",
    "block_of_names",
    "inode_bytes",
    "node",
    "super_block",
]

BLOCK: Final = 4096
SUPER_AT: Final = 1024
SLOT: Final = 32
INODE_SIZE: Final = 64
NLINK_AT: Final = 44
NAME_SIZE: Final = 12
"""What a name takes in a directory beside its bytes."""

PLAIN: Final = 0
INLINE: Final = 2
CHUNKS: Final = 4
"""How the data of an inode lie: EROFS_INODE_*."""

ROOT: Final = SUPER_AT + 128
"""Where the root's inode lies: the superblock has 16 bits for its nid."""

MOST_ATTRIBUTES: Final = 1 << 16
"""Bytes that the attributes of one file may take; i_xattr_icount would count up to four times as many."""

MOST_OF_ROOT: Final = BLOCK - ROOT - INODE_SIZE
"""The same of the root directory."""

_MAGIC: Final = 0xE0F5E1E2
_CHUNKED: Final = 0x4  # EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
_SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sI44x")
_INODE: Final = struct.Struct("<HHHHQIIIIQII16x")
_NAME: Final = struct.Struct("<QHBx")
_ATTRIBUTES: Final = struct.Struct("<IB7x")
_ATTRIBUTE: Final = struct.Struct("<BBH")
_PREFIXES: Final = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_KINDS: Final = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFIFO: 5, stat.S_IFLNK: 7}
_EXTENDED: Final = 1
_SECONDS: Final = 1 << 63

Node = int
"""An inode as directories name it: its nid, and its kind in the lowest 3 bits."""


@frozen
class Inode:
    """What a file of any kind has. `mode` with its kind, `mtime` in nanoseconds."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    attributes: Mapping[bytes, bytes] = field(factory=dict)


def attribute_size(name: bytes, value: bytes) -> int:
    """The bytes that an extended attribute takes of `MOST_ATTRIBUTES`."""
    return _ATTRIBUTE.size + -(-(len(name) + len(value)) // 4) * 4


def attributes(values: Mapping[bytes, bytes]) -> bytes:
    """The extended attributes of an inode, as they lie behind it."""
    if not values:
        return b""
    parts = [_ATTRIBUTES.pack(0, 0)]
    for name in sorted(values):
        value = values[name]
        prefix, number = next(known for known in _PREFIXES if name.startswith(known[0]))
        rest = name[len(prefix) :]
        parts.append(_ATTRIBUTE.pack(len(rest), number, len(value)) + rest + value)
        parts.append(bytes(-(len(rest) + len(value)) % 4))
    return b"".join(parts)


def inode_bytes(
    inode: Inode, *, number: int, links: int, layout: int, first: int, size: int, attributes: bytes
) -> bytes:
    """An inode with its attributes. `first`: the number of the first block of its data of `size` bytes."""
    seconds, nanoseconds = divmod(inode.mtime, 10**9)
    if not -_SECONDS <= seconds < _SECONDS:
        seconds = nanoseconds = 0  # a time that can't be kept; the file is right all the same
    count = 1 + (len(attributes) - _ATTRIBUTES.size) // 4 if attributes else 0
    head = _INODE.pack(
        _EXTENDED | layout << 1,
        count,
        inode.mode,
        0,
        size,
        first,
        number & 0xFFFFFFFF,
        inode.uid,
        inode.gid,
        seconds & (2 * _SECONDS - 1),
        nanoseconds,
        links,
    )
    return head + attributes


def node(at: int, mode: int) -> Node:
    """Name the inode that lies there."""
    return at // SLOT << 3 | _KINDS[stat.S_IFMT(mode)]


def block_of_names(names: Sequence[bytes], nodes: Mapping[bytes, Node]) -> bytes:
    """A block of a directory: all entries, then all names; sorted, for the kernel's binary search."""
    at = NAME_SIZE * len(names)
    entries = []
    for name in names:
        found = nodes[name]
        entries.append(_NAME.pack(found >> 3, at, found & 7))
        at += len(name)
    return b"".join(entries) + b"".join(names)


def super_block(*, inodes: int, blocks: int, chunked: bool) -> bytes:
    """What lies at `SUPER_AT`. `chunked`: there is a file with `CHUNKS`."""
    features = _CHUNKED if chunked else 0
    return _SUPER.pack(
        _MAGIC, 0, 0, 12, 0, ROOT // SLOT, inodes, 0, 0, blocks, 0, 0, bytes(16), bytes(16), features
    )
