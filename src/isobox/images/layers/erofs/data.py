"""The data of files on their way into blocks."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Final, TypeAlias

from isobox.images.tar.sparse import Segments

from .format import BLOCK

__all__ = ["Blocks", "Data", "SparseData"]

Blocks: TypeAlias = Callable[[bytearray | memoryview], int]
"""Appends whole blocks and returns the number of the first: see `Writer.blocks`."""

_HOLE: Final = 0xFFFFFFFF


class Data:
    """The data of a file of `size` bytes on their way, piece by piece; the next file's come after."""

    def __init__(self, blocks: Blocks, size: int) -> None:
        self.size = size
        self._blocks = blocks
        self._first = 0
        self._rest = bytearray()

    def put(self, data: memoryview) -> None:
        """Take the next piece."""
        if self._rest:
            more = BLOCK - len(self._rest)
            self._rest += data[:more]
            data = data[more:]
            if len(self._rest) < BLOCK:
                return
            self._append(self._rest)
            self._rest = bytearray()
        whole = len(data) - len(data) % BLOCK
        if whole:
            self._append(data[:whole])
        if whole < len(data):
            self._rest += data[whole:]

    def _append(self, data: bytearray | memoryview) -> None:
        number = self._blocks(data)
        self._first = self._first or number

    def end(self) -> tuple[int, bytes]:
        """The number of the first block, and what is in none."""
        return self._first, bytes(self._rest)


class SparseData:
    """The same for a file with holes: where `segments` have nothing in a block, there is none."""

    def __init__(self, blocks: Blocks, size: int, segments: Segments) -> None:
        self.size = size
        self._blocks = blocks
        self._numbers = array("I", [_HOLE]) * -(-size // BLOCK)
        self._segments = iter(segments)
        self._at = self._end = 0
        self._block = bytearray()
        self._index = -1

    def put(self, data: memoryview) -> None:
        """Take the next piece of what the segments hold."""
        while data:
            if self._at == self._end:
                # The stream holds as many bytes as the segments together: see sparse.py.
                self._at, length = next(self._segments)
                self._end = self._at + length
            count = self._place(data[: self._end - self._at])
            self._at += count
            data = data[count:]

    def _place(self, data: memoryview) -> int:
        index, within = divmod(self._at, BLOCK)
        if index != self._index:
            self._store()
            whole = len(data) // BLOCK
            if not within and whole:
                number = self._blocks(data[: whole * BLOCK])
                self._numbers[index : index + whole] = array("I", range(number, number + whole))
                return whole * BLOCK
            self._index = index
            self._block = bytearray(BLOCK)
        count = min(len(data), BLOCK - within)
        self._block[within : within + count] = data[:count]
        return count

    def _store(self) -> None:
        if self._index >= 0:
            self._numbers[self._index] = self._blocks(self._block)
            self._index = -1

    def end(self) -> bytes:
        """The numbers of all blocks, as the inode has them."""
        self._store()
        if sys.byteorder == "big":
            self._numbers.byteswap()
        return self._numbers.tobytes()
