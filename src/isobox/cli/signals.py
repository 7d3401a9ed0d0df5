"""Signals to ``isobox run`` go to the program that it runs."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

GRACE = 10.0
"""Seconds that a program has after SIGTERM before the container is removed; as `docker stop`."""

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3

_leaving = False
"""Ended was raised: what is being put back and removed now must not be interrupted again."""


class Ended(BaseException):
    """A signal that ends the run now. Not an Exception, so that nothing on the way swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ending(numbers: tuple[signal.Signals, ...] = (*_ENDING, signal.SIGINT)) -> Iterator[None]:
    """Leave the block with `Ended` on these signals, so that everything is put back and removed."""
    global _leaving
    _leaving = False

    def end(number: int, _frame: FrameType | None) -> None:
        _leave(number)

    with _handling(dict.fromkeys(numbers, end)):
        yield


@contextlib.contextmanager
def forwarding(send: Callable[[int], Any]) -> Iterator[None]:
    """Forward to the program. A third Ctrl-C, or `GRACE` seconds after SIGTERM, end the run."""
    interrupts = 0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        if number == signal.SIGINT:
            interrupts += 1
            if interrupts >= _PATIENCE:
                _leave(number)
        with contextlib.suppress(OSError):  # it has just ended
            send(number)
        if number in _ENDING:
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    def out_of_patience(_number: int, _frame: FrameType | None) -> None:
        _leave(signal.SIGTERM)

    with _handling({**dict.fromkeys(_FORWARDED, forward), signal.SIGALRM: out_of_patience}):
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _leave(number: int) -> None:
    global _leaving
    if not _leaving:
        _leaving = True
        raise Ended(number)


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {}
    try:
        for number, handler in handlers.items():
            # ignored from the start (nohup, a shell's background job): it was meant
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
