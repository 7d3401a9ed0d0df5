"""Signals that wait, so that no handler runs between a system call and the line that keeps its result.

Python runs handlers between two bytecodes of the main thread, and they may raise, as that of Ctrl-C does:
something would be left behind that nobody knows of.
"""

from __future__ import annotations

import signal
import threading
from typing import Final

_HELD: Final = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2}
)
"""Those whose handlers raise, where any do. All signals would take longer: each is converted one by one."""


class Undisturbed:
    """A block in which the signals of `_HELD` wait; other threads run no handlers, and there it does nothing.

    It keeps them from this thread only: in a program with threads that take signals, the kernel hands a
    signal to one of those, and its handler still runs in the block.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before: set[int | signal.Signals] | None = None
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # runs the handlers of those that came before
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise
        self._before = before

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def take_none() -> None:
    """In a thread of the library's own: leave all signals to the program's threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
