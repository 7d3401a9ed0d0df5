"""The caller's terminal connected to a program's: raw mode, window size, and back again.

Whatever happens, the terminal is left as it was found.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Any

_CHUNK = 65536
_STDIN, _STDOUT = 0, 1


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Raw mode for as long as the block lasts: keys, Ctrl-C too, go to the program."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        # not TCSADRAIN: it would wait for ever on a terminal that was stopped with Ctrl-S
        termios.tcsetattr(fd, termios.TCSANOW, before)


def window(fd: int) -> tuple[int, int] | None:
    """Rows and columns, or None where the terminal has no size."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


class Relay:
    """Copies between the caller's terminal and the master side of the program's.

    `forward_input` is ``-i``. Neither side can block the other: what the program doesn't read yet
    is kept, and typing is then no longer read.
    """

    def __init__(self, master: int, *, forward_input: bool) -> None:
        self._master = master
        self._input = forward_input
        self._pending = b""
        self._open = True
        os.set_blocking(master, False)

    def run(self, ended: int, resize: Callable[[int, int], Any]) -> None:
        """Copy until the descriptor `ended` is readable, then what is left of the output."""
        with _signals() as arrived:
            _pass_on_size(resize)
            while True:
                ready = self._wait(ended, arrived)
                if arrived in ready:
                    os.read(arrived, _CHUNK)
                    _pass_on_size(resize)
                if _STDIN in ready and not self._read_typed():
                    self._input = False
                if self._master in ready:
                    self._write_typed()
                    self._copy_output()
                if ended in ready:
                    break
        while self._open and self._copy_output():
            pass

    def _wait(self, ended: int, arrived: int) -> set[int]:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(arrived, select.POLLIN)
        if self._open:
            poll.register(self._master, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._input and self._open and len(self._pending) < _CHUNK:
            poll.register(_STDIN, select.POLLIN)
        return {fd for fd, _ in poll.poll()}

    def _read_typed(self) -> bool:
        try:
            data = os.read(_STDIN, _CHUNK)
        except OSError as error:
            return error.errno == errno.EAGAIN  # else EIO: the terminal was hung up
        self._pending += data
        return bool(data)

    def _write_typed(self) -> None:
        if self._pending:
            with contextlib.suppress(OSError):
                self._pending = self._pending[os.write(self._master, self._pending) :]

    def _copy_output(self) -> bool:
        """Copy what is there; False when there is nothing now."""
        try:
            data = os.read(self._master, _CHUNK)
        except OSError as error:
            # EIO: no program has the other side open any more
            self._open = error.errno == errno.EAGAIN
            return False
        if not data:
            self._open = False
        while data:
            try:
                data = data[os.write(_STDOUT, data) :]
            except BlockingIOError:
                select.select((), (_STDOUT,), ())
        return self._open


def _pass_on_size(resize: Callable[[int, int], Any]) -> None:
    size = window(_STDIN) or window(_STDOUT)
    if size is not None:
        with contextlib.suppress(OSError):
            resize(*size)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable when a signal has arrived: the window's size may have changed.

    Not by their handlers, which Python runs between two bytecodes: one that arrives on the way into poll(2)
    would wait for the next key.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
    wakeup_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGWINCH, before)
        os.close(read_end)
        os.close(write_end)
