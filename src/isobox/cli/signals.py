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

_Handler = Callable[[int, FrameType | None], None]

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


class Forwarding:
    """Signals that arrive inside its ``with`` block go to the program, once there is one.

    A third Ctrl-C, or `GRACE` seconds after SIGTERM or SIGHUP, end the run.
    """

    def __init__(self) -> None:
        self._send: Callable[[int], Any] | None = None
        self._early: list[int] = []
        self._interrupts = 0
        self._stack = contextlib.ExitStack()

    def to(self, send: Callable[[int], Any]) -> None:
        """Give the program's `send`; what arrived while it was being started goes there first."""
        self._send = send
        while self._early:
            self._pass_on(self._early.pop(0))

    def __enter__(self) -> Forwarding:
        handlers: dict[signal.Signals, _Handler] = {**dict.fromkeys(_FORWARDED, self._arrived)}
        handlers[signal.SIGALRM] = lambda _number, _frame: _leave(signal.SIGTERM)
        self._stack.enter_context(_handling(handlers))
        self._stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts >= _PATIENCE:
                _leave(number)
        if number in _ENDING:
            signal.setitimer(signal.ITIMER_REAL, GRACE)
        if self._send is None:
            self._early.append(number)
        else:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        assert self._send is not None
        with contextlib.suppress(OSError):  # it has just ended
            self._send(number)


def _leave(number: int) -> None:
    global _leaving
    if not _leaving:
        _leaving = True
        raise Ended(number)


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, _Handler]) -> Iterator[None]:
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
