"""Read a stream in a thread of its own: it is decompressed and hashed while its files are written."""

from __future__ import annotations

import contextlib
import queue
import threading
from types import TracebackType

from isobox.worker import take_no_signals

from .compression import Readable
from .digest import Hasher

__all__ = ["Ahead"]

_PIECE = 1 << 18
_DEEP = 8  # pieces that wait


class Ahead:
    """What `source` holds, piece by piece, read some pieces ahead; `hasher` is given all of it.

    Where no thread can be had, it reads when it is asked. Leaving the ``with`` block waits for a
    `source.read` that is under way.
    """

    def __init__(self, source: Readable, hasher: Hasher) -> None:
        self._source = source
        self._hasher = hasher
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(_DEEP)
        self._stopped = False
        self._ended = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Ahead:
        thread = threading.Thread(target=self._run, name="isobox-unpack", daemon=True)
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        while self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                while True:
                    self._pieces.get_nowait()  # the thread may wait for a place
            self._thread.join(0.01)

    def read(self, size: int = -1, /) -> bytes:
        """The next piece, however many bytes were asked for; none at the end."""
        if self._ended:
            return b""
        piece = self._pieces.get() if self._thread is not None else self._next()
        if isinstance(piece, BaseException):
            self._ended = True
            raise piece
        self._ended = not piece
        return piece

    def _next(self) -> bytes:
        piece = self._source.read(_PIECE)
        self._hasher.update(piece)
        return piece

    def _run(self) -> None:
        take_no_signals()
        try:
            while not self._stopped:
                piece = self._next()
                self._pieces.put(piece)
                if not piece:
                    return
        except BaseException as error:  # noqa: BLE001 - raised where it is read
            self._pieces.put(error)
