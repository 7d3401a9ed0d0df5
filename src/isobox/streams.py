"""The three streams of a program: what the caller asked for becomes descriptors for both sides.

Takes what subprocess takes: PIPE, DEVNULL, STDOUT, a file, a descriptor, None to inherit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
from contextlib import ExitStack
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Final

from attrs import define

from .errors import SpecError
from .options import Stream

TIOCSPTLCK: Final = 0x40045431
TIOCGPTPEER: Final = 0x5441
# The pipe's inode belongs to this process's user; a program inside that opens /dev/stdout by its name
# needs permission on it. Nobody else can reach it: it has no name outside of /proc/PID/fd.
_ANYONE: Final = 0o666

_null: dict[int, int] = {}


@define
class Streams:
    """`inside`: descriptors for the program's 0, 1, 2; `outside`: our ends of pipes, or -1."""

    inside: tuple[int, int, int]
    outside: tuple[int, int, int]


def _devnull() -> int:
    pid = os.getpid()
    fd = _null.get(pid)
    if fd is None:
        fd = _null[pid] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return fd


def _descriptor(stream: object, field: str) -> int:
    if isinstance(stream, bool) or not (isinstance(stream, int) or hasattr(stream, "fileno")):
        raise SpecError(field, stream, "PIPE, DEVNULL, STDOUT (stderr only), a file, a descriptor, or None")
    try:
        fd = stream if isinstance(stream, int) else stream.fileno()
    except (OSError, ValueError):  # closed, or one in memory
        raise SpecError(field, stream, "an open file that has a descriptor") from None
    if not isinstance(fd, int) or fd < 0:
        raise SpecError(field, stream, "an open file")
    try:
        os.fstat(fd)
    except (OSError, OverflowError):
        raise SpecError(field, stream, "an open descriptor") from None
    return fd


def connect(stdin: Stream, stdout: Stream, stderr: Stream, lent: ExitStack, kept: ExitStack) -> Streams:
    """Make the pipes. What the program gets goes on `lent` (close once sent), our ends on `kept`."""
    inside = [0, 1, 2]
    outside = [-1, -1, -1]
    for number, (stream, field) in enumerate(((stdin, "stdin"), (stdout, "stdout"), (stderr, "stderr"))):
        if stream is None:
            inside[number] = _descriptor(number, field)
        elif stream == DEVNULL and isinstance(stream, int):
            inside[number] = _devnull()
        elif stream == STDOUT and isinstance(stream, int):
            if field != "stderr":
                raise SpecError(field, stream, "STDOUT for stderr only")
            inside[2] = inside[1]
        elif stream == PIPE and isinstance(stream, int):
            reader, writer = os.pipe()
            mine, theirs = (writer, reader) if number == 0 else (reader, writer)
            kept.callback(os.close, mine)
            lent.callback(os.close, theirs)
            os.fchmod(theirs, _ANYONE)
            inside[number], outside[number] = theirs, mine
        else:
            inside[number] = _descriptor(stream, field)
    return Streams((inside[0], inside[1], inside[2]), (outside[0], outside[1], outside[2]))


def widen(streams: Streams) -> None:
    """Let the program run ahead of its reader: larger pipes, so fewer and larger reads; where allowed.

    The kernel bounds what an ordinary user's pipes hold together (pipe-user-pages-soft, 64 MiB).
    """
    size = 1 << 20 if os.geteuid() == 0 else 1 << 18
    for fd in streams.outside[1:]:
        if fd >= 0:
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)


def terminal(master: int, lent: ExitStack, kept: ExitStack) -> Streams:
    """The streams of a program on a terminal, from the open master of the container's own devpts."""
    kept.callback(os.close, master)
    os.set_blocking(master, True)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    # Opens the other side without a path, so nothing inside can put another file in its place.
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    lent.callback(os.close, slave)
    writer = os.dup(master)
    kept.callback(os.close, writer)
    return Streams((slave, slave, slave), (writer, master, -1))


def resize(fd: int, rows: int, columns: int) -> None:
    """Tell a terminal its size; the program gets SIGWINCH."""
    for name, value in (("rows", rows), ("columns", columns)):
        if not isinstance(value, int) or not 0 < value < 65536:
            raise SpecError(name, value, "a number from 1 to 65535")
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
