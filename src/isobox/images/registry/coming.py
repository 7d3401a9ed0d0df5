"""Blobs that are still on their way, read from their beginning as they come: layers are unpacked meanwhile.

Who reads gets bytes that nobody has verified yet, and the end of them only when the blob is whole, verified
and in the store. What is made of them must count for nothing before that.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator

from typing_extensions import Buffer

from ..documents.digest import Digest
from ..layout.writer import Writer
from ..store import Store
from ..tar.compression import Readable

__all__ = ["BegunAnew", "Coming"]


class BegunAnew(Exception):
    """What was read so far was not the blob's beginning after all."""


class Coming:
    """One blob, between the thread that fetches it (`began`, `grew`, `ended`) and those that `open` it."""

    def __init__(self, store: Store, digest: Digest) -> None:
        self._store = store
        self._digest = digest
        self._changed = threading.Condition()
        self._fd = -1
        self._written = 0
        self._times = 0
        self._ended = False
        self._error: BaseException | None = None
        self.doubtful = False
        """Whether some of it is of an earlier pull, or had to be fetched again: who failed may try again."""

    def began(self, writer: Writer) -> None:
        """It is being written, from its beginning on or from where an earlier pull was."""
        fd = writer.duplicate()
        with self._changed:
            self._close()
            self._fd = fd
            self._times += 1
            self._written = writer.written
            self.doubtful = self.doubtful or writer.resumed > 0 or self._times > 1
            self._changed.notify_all()

    def grew(self, written: int) -> None:
        """There are so many bytes of it now."""
        with self._changed:
            self._written = written
            self._changed.notify_all()

    def ended(self, error: BaseException | None = None) -> None:
        """It is in the store, or will not come."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of its file; idempotent. Nobody reads it any more."""
        with self._changed:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def open(self, whole: Callable[[], object]) -> Iterator[Readable]:
        """Read it from its beginning; `whole` is called when all of it is there.

        Reading raises what fetching raised, and `BegunAnew`. One reader at a time.
        """
        with self._changed:
            while not self._ended and self._fd < 0:
                self._changed.wait()
            begun = not self._ended
        if begun:
            yield _Reader(self, whole)
            return
        if self._error is not None:
            raise self._error
        whole()
        with self._store.open(self._digest) as file:
            yield file

    def more(self, reader: _Reader, view: memoryview) -> int:
        """Wait for bytes behind those that the reader had, and give as many as there are, or fit."""
        with self._changed:
            reader.times = reader.times or self._times
            while True:
                if self._error is not None:
                    raise self._error
                if reader.given_up or reader.times != self._times:
                    raise BegunAnew
                if reader.place < self._written:
                    # Under the lock: another descriptor may take this one's number.
                    return os.preadv(self._fd, [view[: self._written - reader.place]], reader.place)
                if self._ended:
                    return 0
                self._changed.wait()

    def give_up(self, reader: _Reader) -> None:
        """End its waiting."""
        with self._changed:
            reader.given_up = True
            self._changed.notify_all()


class _Reader(io.RawIOBase):
    def __init__(self, coming: Coming, whole: Callable[[], object]) -> None:
        self._coming = coming
        self._whole = whole
        self.place = 0
        self.times = 0
        self.given_up = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        count = self._coming.more(self, memoryview(buffer).cast("B"))
        self.place += count
        if not count:
            self._whole()
        return count

    def give_up(self) -> None:
        """End a read that waits, in another thread."""
        self._coming.give_up(self)
