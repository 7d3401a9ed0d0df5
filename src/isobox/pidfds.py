"""A process by its descriptor: pidfd_open(2).

Threads may signal it and wait for it while another one ends it. The number of a closed descriptor is the next
file's, which may be another process: so the last one that uses it closes it. Without a lock, which a fork
could leave held, or a signal's handler could wait for in vain.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal as signals
from collections.abc import Iterator
from typing import Final

WALL: Final = 0x40000000
"""__WALL of wait(2): a child that tells its end by no signal, too. Not in `os`."""


class Pidfd:
    """Owns the descriptor of a child until `end`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._users: set[object] = set()
        self._unwanted: list[int] = []  # the descriptor, once it is to be closed

    @contextlib.contextmanager
    def _using(self) -> Iterator[int]:
        """The descriptor, open until the block ends; -1 after `end`."""
        user = object()
        try:
            self._users.add(user)  # before the look at it: see _close
            yield self._fd
        finally:
            self._users.discard(user)
            self._close_unwanted()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1  # before the look at who uses it
        if fd >= 0:
            self._unwanted.append(fd)
        self._close_unwanted()

    def _close_unwanted(self) -> None:
        if not self._users:
            with contextlib.suppress(IndexError):  # another thread was faster
                os.close(self._unwanted.pop())

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens once it has ended."""
        with self._using() as fd, contextlib.suppress(ProcessLookupError):
            if fd >= 0:
                signals.pidfd_send_signal(fd, number)

    def ended(self, timeout: float | None = 0.0) -> bool:
        """Whether it ends within `timeout` seconds (None: for ever)."""
        with self._using() as fd:
            if fd < 0:
                return True
            watched = select.poll()  # select() takes no descriptor above 1023
            watched.register(fd, select.POLLIN)
            return bool(watched.poll(None if timeout is None else timeout * 1000))

    def end(self) -> None:
        """Kill it, wait until the kernel is done with it, close the descriptor. Idempotent."""
        if self._fd < 0:
            return
        try:
            self.signal(signals.SIGKILL)
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | WALL)
        except ChildProcessError:
            pass  # reaped already
        finally:
            self._close()
