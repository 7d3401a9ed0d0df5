"""Signals that wait, so that no handler runs between a system call and the line that keeps its result.

Python runs handlers between two bytecodes of the main thread, and they may raise, as that of Ctrl-C does:
something would be left behind that nobody knows of.
"""

from __future__ import annotations

import signal
import threading
from typing import Final

from . import _native

_HELD: Final = sum(
    1 << (number - 1)
    for number in (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2
    )
)  # fmt: skip
"""Those whose handlers raise, where any do."""


class Undisturbed:
    """A block in which the signals of `_HELD` wait; other threads run no handlers, and there it does nothing.

    It keeps them from this thread only: in a program with threads that take signals, the kernel hands a
    signal to one of those, and its handler still runs in the block.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before: int | None = None
        if threading.get_ident() != threading.main_thread().ident:
            return
        before = _native.block_signals(0)
        try:
            _native.block_signals(_HELD)
            _breathe()
        except BaseException:
            _native.set_signals(before)
            raise
        self._before = before

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            _native.set_signals(self._before)


def _breathe() -> None:
    """Where Python runs the handlers of the signals that came before: as a function begins."""
