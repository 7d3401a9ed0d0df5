"""Compress with gzip on all processors: the same bytes always, however many there are.

One member (RFC 1952) of blocks that are compressed each by itself, with the end of the one before as its
dictionary, and end at a whole byte (Z_SYNC_FLUSH in zlib's manual). Every reader takes them for one stream,
as what pigz writes. Always by zlib: what is installed beside it must not change what equal content becomes.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from isobox.worker import take_no_signals

__all__ = ["Gzipping"]

_LEVEL: Final = 4  # twice as fast as 6, which others take, and 3 % larger: a container stands still meanwhile
_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"  # no name, no time
_BLOCK: Final = 1 << 18
_WINDOW: Final = 1 << 15  # how far back deflate looks
_RAW: Final = -15  # zlib's number for deflate without a header, with that window
_MOST_THREADS: Final = 8  # reading, hashing and writing, which one does, is no faster than so many
_MASK: Final = 0xFFFFFFFF


class Gzipping:
    """Takes data in pieces and hands them compressed to `write`, in the thread that brings them.

    Leaving the ``with`` block waits for the threads. Not for several threads at once.

    >>> import gzip
    >>> found = []
    >>> with Gzipping(found.append) as packed:
    ...     packed.write(b"hello")
    ...     packed.finish()
    >>> gzip.decompress(b"".join(found))
    b'hello'
    """

    def __init__(self, write: Callable[[bytes], object], threads: int | None = None) -> None:
        threads = threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._write = write
        self._pool = ThreadPoolExecutor(threads, "isobox-gzip", take_no_signals)
        self._deep = 2 * threads
        self._packed: deque[Future[bytes]] = deque()
        self._block = bytearray()
        self._dictionary = b""
        self._crc = 0
        self._size = 0

    def __enter__(self) -> Self:
        self._write(_HEADER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, data: bytes | memoryview) -> None:
        """Take the next piece."""
        view = memoryview(data)
        while view:
            # Only when more comes it is known not to be the last one.
            if len(self._block) == _BLOCK:
                self._next(zlib.Z_SYNC_FLUSH)
            count = _BLOCK - len(self._block)
            self._block += view[:count]
            view = view[count:]

    def finish(self) -> None:
        """Write the rest: nothing comes any more."""
        self._next(zlib.Z_FINISH)
        while self._packed:
            self._write(self._packed.popleft().result())
        self._write(self._crc.to_bytes(4, "little") + (self._size & _MASK).to_bytes(4, "little"))

    def _next(self, flush: int) -> None:
        """Have the block compressed, and begin another."""
        block, self._block = self._block, bytearray()
        dictionary, self._dictionary = self._dictionary, bytes(block[-_WINDOW:])
        self._crc = zlib.crc32(block, self._crc)
        self._size += len(block)
        if len(self._packed) >= self._deep:
            self._write(self._packed.popleft().result())
        try:
            self._packed.append(self._pool.submit(_compress, block, dictionary, flush))
        except RuntimeError:  # no thread can be had
            packed: Future[bytes] = Future()
            packed.set_result(_compress(block, dictionary, flush))
            self._packed.append(packed)


def _compress(block: bytearray, dictionary: bytes, flush: int) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW, zdict=dictionary)
    return compressor.compress(block) + compressor.flush(flush)
