"""Locks of the kernel's (flock(2)), each in a file of its own, that are one process's alone.

Such a lock belongs to the open file, which the child of a fork has too: that would keep it for as long as it
lives. So the child closes its copy first thing, and the lock is dropped and not just closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from types import TracebackType
from typing import Self

from . import forks

__all__ = ["Lock"]


class Lock:
    """An open file to lock, which isn't locked yet; `make`: the file is made where it is missing.

    It is let go of when it is closed or forgotten. Raises OSError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Lock(f"{folder}/lock", make=True) as one, Lock(f"{folder}/lock") as other:
    ...         one.try_alone(), other.try_alone()
    (True, False)
    """

    def __init__(self, path: str, *, make: bool = False) -> None:
        self._fd = -1
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        with forks.whole:  # no fork may know the descriptor and not this object
            self._pid = os.getpid()
            _all.add(self)
            self._fd = os.open(path, flags, 0o600)

    def fileno(self) -> int:
        """The descriptor, -1 once it is closed."""
        return self._fd

    def take(self, *, shared: bool = False) -> None:
        """Wait for the lock, and have it: alone, or with others who take it `shared`."""
        fcntl.flock(self._fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def try_alone(self) -> bool:
        """Have it alone if that is possible at once."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Have it with others if that is possible at once."""
        return self._try(fcntl.LOCK_SH)

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of it; idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._pid == os.getpid():  # else that would take it from who forked
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_all):
        lock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
