"""Read a stream in a thread of its own, which decompresses it while its files are written; hash it too.

Two threads that never wait for each other while there is work: whoever has nothing to read or to write
hashes what nobody has hashed yet. So two cores are busy to the end, whichever of the three takes longest.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from isobox.worker import take_no_signals

from ..documents.digest import Hasher
from .compression import Readable

__all__ = ["Ahead"]

_T = TypeVar("_T")

# Large: who sleeps and is woken has to wait for Python's lock too, some milliseconds at worst.
_PIECE = 1 << 20
_DEEP = 16  # pieces that wait to be written, and to be hashed


class Ahead:
    """What `source` holds, piece by piece, read some pieces ahead; `hasher` is given all of it.

    Where no thread can be had, it reads when it is asked. Leaving the ``with`` block waits for a
    `source.read` that is under way, and for all that was read to be hashed. `give_up`: what ends a read that
    may wait for long; called where the block is left by an exception.
    """

    def __init__(
        self, source: Readable, hasher: Hasher, give_up: Callable[[], object] = lambda: None
    ) -> None:
        self._source = source
        self._hasher = hasher
        self._give_up = give_up
        self._pieces: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # for so many more pieces
        for _ in range(_DEEP):
            self._room.put(None)
        self._unhashed: deque[bytes] = deque()
        self._hashing = threading.Lock()
        self._stopped = False
        self._ended = False
        self._reading: threading.Thread | None = None

    def __enter__(self) -> Ahead:
        self._reading = _started(self._read_all)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        if error is not None:
            self._give_up()
        if self._reading is not None:
            self._room.put(None)  # it may wait for that
            self._reading.join()
        if error is None:
            while self._hash():
                pass

    def read(self, size: int = -1, /) -> bytes:
        """The next piece, however many bytes were asked for; none at the end."""
        if self._ended:
            return b""
        if self._reading is None:
            piece: bytes | BaseException = self._next()
        else:
            piece = self._or_hash(self._pieces)
            self._room.put(None)
        if isinstance(piece, BaseException):
            self._ended = True
            raise piece
        self._ended = not piece
        return piece

    def _next(self) -> bytes:
        while len(self._unhashed) >= _DEEP:
            with self._hashing:  # the other thread is at it, or this one does it
                pass
            self._hash()
        piece = self._source.read(_PIECE)
        if piece:
            self._unhashed.append(piece)
        return piece

    def _hash(self) -> bool:
        """Hash the next piece; False where there is none, or the other thread is at it."""
        if not self._unhashed or not self._hashing.acquire(blocking=False):
            return False
        try:
            if self._unhashed:
                self._hasher.update(self._unhashed[0])
                self._unhashed.popleft()
        finally:
            self._hashing.release()
        return True

    def _or_hash(self, line: queue.SimpleQueue[_T]) -> _T:
        """What comes next in `line`; until it comes, do what there is to hash."""
        while True:
            try:
                return line.get_nowait()
            except queue.Empty:
                if not self._hash():
                    return line.get()

    def _read_all(self) -> None:
        take_no_signals()
        try:
            while not self._stopped:
                piece = self._next()
                self._or_hash(self._room)
                self._pieces.put(piece)
                if not piece:
                    break
            while self._hash():
                pass
        except BaseException as error:  # noqa: BLE001 - raised where it is read
            self._pieces.put(error)


def _started(run: Callable[[], None]) -> threading.Thread | None:
    """A thread that runs; None where none can be had."""
    thread = threading.Thread(target=run, name="isobox-unpack", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
