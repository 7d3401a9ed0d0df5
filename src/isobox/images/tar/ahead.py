"""Read a stream in threads: one decompresses it and one hashes it while its files are written."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from types import TracebackType

from isobox.worker import take_no_signals

from ..documents.digest import Hasher
from .compression import Readable

__all__ = ["Ahead"]

_PIECE = 1 << 19
_DEEP = 8  # pieces that wait


class Ahead:
    """What `source` holds, piece by piece, read some pieces ahead; `hasher` is given all of it.

    Where no thread can be had, it reads or hashes when it is asked. Leaving the ``with`` block waits for a
    `source.read` that is under way, and for all that was read to be hashed.
    """

    def __init__(self, source: Readable, hasher: Hasher) -> None:
        self._source = source
        self._hasher = hasher
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(_DEEP)
        self._unhashed: queue.Queue[bytes] = queue.Queue(_DEEP)  # ends with an empty piece
        self._stopped = False
        self._ended = False
        self._failed: BaseException | None = None
        self._reading: threading.Thread | None = None
        self._hashing: threading.Thread | None = None

    def __enter__(self) -> Ahead:
        self._hashing = _started(self._hash_all)
        self._reading = _started(self._read_all)
        if self._reading is None:
            self._end_hashing()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        while self._reading is not None and self._reading.is_alive():
            with contextlib.suppress(queue.Empty):
                while True:
                    self._pieces.get_nowait()  # the thread may wait for a place
            self._reading.join(0.01)
        self._end_hashing()
        if error is None and self._failed is not None:
            raise self._failed

    def _end_hashing(self) -> None:
        """Wait for the thread that hashes; nothing more comes for it."""
        hashing, self._hashing = self._hashing, None
        if hashing is not None:
            self._unhashed.put(b"")
            hashing.join()

    def read(self, size: int = -1, /) -> bytes:
        """The next piece, however many bytes were asked for; none at the end."""
        if self._ended:
            return b""
        piece = self._pieces.get() if self._reading is not None else self._next()
        if isinstance(piece, BaseException):
            self._ended = True
            raise piece
        self._ended = not piece
        return piece

    def _next(self) -> bytes:
        piece = self._source.read(_PIECE)
        if self._hashing is None:
            self._hasher.update(piece)
        elif piece:
            self._unhashed.put(piece)
        return piece

    def _read_all(self) -> None:
        take_no_signals()
        try:
            while not self._stopped:
                piece = self._next()
                self._pieces.put(piece)
                if not piece:
                    return
        except BaseException as error:  # noqa: BLE001 - raised where it is read
            self._pieces.put(error)

    def _hash_all(self) -> None:
        take_no_signals()
        while piece := self._unhashed.get():
            try:
                self._hasher.update(piece)
            except BaseException as error:  # noqa: BLE001 - raised at the end; who reads must not wait for us
                self._failed = error


def _started(run: Callable[[], None]) -> threading.Thread | None:
    """A thread that runs; None where none can be had."""
    thread = threading.Thread(target=run, name="isobox-unpack", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
