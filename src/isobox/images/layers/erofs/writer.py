"""Write files in the order in which they come, and directories at the end."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from .data import Data, SparseData
from .format import (
    BLOCK,
    CHUNKS,
    INLINE,
    INODE_SIZE,
    MOST_OF_ROOT,
    NAME_SIZE,
    NLINK_AT,
    PLAIN,
    ROOT,
    SLOT,
    SUPER_AT,
    Inode,
    Node,
    attributes,
    block_of_names,
    inode_bytes,
    node,
    super_block,
)

__all__ = ["Directory", "Writer"]

_AREA: Final = 1 << 16  # bytes of inodes together
_BUFFER: Final = 1 << 18
_SHORT: Final = 2048  # a record up to here has the end of its data inside; a longer one would waste as much
_MOST_BLOCKS: Final = 0xFFFFFFFF  # their numbers have 32 bits


@frozen
class Directory:
    """A directory, the files in it, and the directories in it by their places among all: see `finish`."""

    inode: Inode
    files: Mapping[bytes, Node]
    below: Mapping[bytes, int]


class Writer:
    """Writes to the empty file `fd`, in any order but for `finish`, which comes last. Raises OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = BLOCK  # where the next block or area goes
        self._buffer = bytearray()
        self._buffer_at = BLOCK
        self._area = bytearray()
        self._area_at = 0
        self._used = 0
        self._inodes = 0
        self._chunked = False

    # Blocks of data

    def blocks(self, data: bytes | bytearray | memoryview) -> int:
        """Append whole blocks (the last one is filled up with zeros); the number of the first."""
        if len(self._buffer) >= _BUFFER:
            self._flush()
        number = self._end // BLOCK
        self._buffer += data
        size = len(data)
        if size % BLOCK:
            self._buffer += bytes(-size % BLOCK)
            size += -size % BLOCK
        self._end += size
        if self._end // BLOCK > _MOST_BLOCKS:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return number

    def _flush(self) -> None:
        data = memoryview(self._buffer)
        while data:
            written = os.pwrite(self._fd, data, self._buffer_at)
            self._buffer_at += written
            data = data[written:]
        self._buffer = bytearray()

    # Inodes

    def file(self, inode: Inode, data: Data) -> Node:
        """Add a regular file whose data have been written."""
        first, tail = data.end()
        return self._add(inode, 1, first, data.size, tail)

    def sparse_file(self, inode: Inode, data: SparseData) -> Node:
        """Add a sparse file whose data have been written."""
        self._chunked = True
        packed = attributes(inode.attributes)
        numbers = data.end()
        at = self._reserve(INODE_SIZE + len(packed) + len(numbers), 0)
        self._put(at, self._head(inode, 1, CHUNKS, 0, data.size, packed) + numbers)
        return node(at, inode.mode)

    def link(self, inode: Inode, target: bytes) -> Node:
        """Add a symbolic link."""
        return self._add(inode, 1, 0, len(target), target)

    def special(self, inode: Inode) -> Node:
        """Add a FIFO, or the device 0:0."""
        return self._add(inode, 1, 0, 0, b"")

    def _add(self, inode: Inode, links: int, first: int, size: int, tail: bytes) -> Node:
        """`first`: the number of the data's first block. `tail`: what of the data is not in a block yet."""
        packed = attributes(inode.attributes)
        head = INODE_SIZE + len(packed)
        if tail and head + len(tail) > _SHORT:
            number = self.blocks(tail)
            first = first if size > len(tail) else number
            tail = b""
        at = self._reserve(head, len(tail))
        layout = INLINE if tail else PLAIN
        self._put(at, self._head(inode, links, layout, first, size, packed) + tail)
        return node(at, inode.mode)

    def set_links(self, node: Node, links: int) -> None:
        """Say how many names a file has in the end."""
        self._put((node >> 3) * SLOT + NLINK_AT, struct.pack("<I", links))

    def _head(self, inode: Inode, links: int, layout: int, first: int, size: int, packed: bytes) -> bytes:
        self._inodes += 1
        return inode_bytes(
            inode,
            number=self._inodes,
            links=links,
            layout=layout,
            first=first,
            size=size,
            attributes=packed,
        )

    def _reserve(self, head: int, tail: int) -> int:
        """Find room for an inode with `tail` bytes of data behind, which have to be in one block."""
        at = self._used + -self._used % SLOT
        if tail and at // BLOCK != (at + head + tail - 1) // BLOCK:
            at += -at % BLOCK
        if at + head + tail > len(self._area):
            self._close_area()
            size = max(_AREA, head + tail)
            self._area_at = self._end
            self._area = bytearray(size + -size % BLOCK)
            self._flush()
            self._end = self._buffer_at = self._area_at + len(self._area)
            at = 0
        self._used = at + head + tail
        return self._area_at + at

    def _put(self, at: int, data: bytes) -> None:
        if self._area_at <= at < self._area_at + len(self._area):
            start = at - self._area_at
            self._area[start : start + len(data)] = data
        else:
            self._write(at, data)

    def _close_area(self) -> None:
        self._write(self._area_at, bytes(self._area[: self._used]))
        self._area = bytearray()
        self._used = 0

    def _write(self, at: int, data: bytes) -> None:
        while data:
            written = os.pwrite(self._fd, data, at)
            at += written
            data = data[written:]

    # Directories

    def finish(self, directories: Sequence[Directory]) -> None:
        """Write all directories, the root first, and the superblock.

        ENOSPC where the root has more attributes than `MOST_OF_ROOT`.
        """
        plans = [self._plan(known, is_root=not number) for number, known in enumerate(directories)]
        parents = [0] * len(plans)
        for number, known in enumerate(directories):
            for child in known.below.values():
                parents[child] = number
        for plan, known, parent in zip(plans, directories, parents, strict=True):
            nodes: dict[bytes, Node] = {**known.files, b".": plan.node, b"..": plans[parent].node}
            nodes.update((name, plans[child].node) for name, child in known.below.items())
            data = [block_of_names(names, nodes) for names in plan.blocks]
            tail = data.pop() if plan.inline else b""
            first = 0
            for block in data:
                start = self.blocks(block)
                first = first or start
            layout = INLINE if plan.inline else PLAIN
            head = self._head(known.inode, 2 + len(known.below), layout, first, plan.size, plan.packed)
            self._put(plan.at, head + tail)
        self._close_area()
        self._flush()
        os.ftruncate(self._fd, self._end)
        found = super_block(inodes=self._inodes, blocks=self._end // BLOCK, chunked=self._chunked)
        self._write(SUPER_AT, found)

    def _plan(self, directory: Directory, *, is_root: bool) -> _Plan:
        blocks: list[list[bytes]] = [[]]
        used = 0
        for name in sorted([b".", b"..", *directory.files, *directory.below]):
            size = NAME_SIZE + len(name)
            if used + size > BLOCK:
                blocks.append([])
                used = 0
            blocks[-1].append(name)
            used += size
        packed = attributes(directory.inode.attributes)
        head = INODE_SIZE + len(packed)
        inline = not is_root and head + used <= _SHORT
        at = ROOT if is_root else self._reserve(head, used if inline else 0)
        if is_root and len(packed) > MOST_OF_ROOT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _Plan(at, blocks, (len(blocks) - 1) * BLOCK + used, packed, inline)


@frozen
class _Plan:
    """Where a directory goes and what it looks like: `blocks` of names, the last one behind the inode."""

    at: int
    blocks: list[list[bytes]]
    size: int
    packed: bytes
    inline: bool

    @property
    def node(self) -> Node:
        return node(self.at, stat.S_IFDIR)
