"""Halves: blobs that somebody had begun to fetch when it was cut off or killed, for the next to go on with.

`.isobox/halves/sha256-<hex>` is a file that grows. Whoever holds its lock writes to it, and the kernel drops
that lock when the process ends, however it ends. Who finds it locked writes a file of its own instead: so two
who fetch one blob never wait for each other, and each gets all of it.

Nothing here is trusted. What there is of a half is hashed with the rest, and it becomes a blob as every other
one does: synced, under its digest, by a rename. Nobody else looks here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from typing import Final

from ..documents.digest import Digest
from .layout import OWN, Layout, held

__all__ = ["AGE", "PLACE", "collect_halves", "is_there", "let_go", "name_of_half", "remove", "take"]

PLACE: Final = (OWN, "halves")
AGE: Final = 24 * 3600.0
"""Seconds without a write after which nobody is expected to go on with one."""

_OPENED: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a fifo must not hang us
_TRIES: Final = 10


def name_of_half(digest: Digest) -> str:
    """What the half of a blob is called."""
    return f"{digest.algorithm}-{digest.hex}"


def take(layout: Layout, digest: Digest) -> int | None:
    """Open the half of a blob with its lock, made where there is none; None where it can't be had.

    The descriptor is at the beginning. It is in `held`: a forked child doesn't have it.
    """
    name = name_of_half(digest)
    with contextlib.suppress(OSError), layout.directory(*PLACE, make=True) as halves:
        for _ in range(_TRIES):
            fd = os.open(name, os.O_RDWR | os.O_CREAT | _OPENED, 0o644, dir_fd=halves)
            held.add(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    break
                # Meanwhile the one who had it may have made a blob of it, or a prune removed it.
                if is_there(fd, name, halves):
                    taken, fd = fd, -1
                    return taken
            finally:
                if fd >= 0:
                    let_go(fd)
    return None


def let_go(fd: int) -> None:
    """Close one of `take`, which unlocks it; nothing in a child that was forked meanwhile."""
    if fd in held:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that has just been forked has it open, too
        held.discard(fd)
        os.close(fd)


def remove(layout: Layout, fd: int, name: str) -> None:
    """Remove one of `take`, unless it is there no more; nothing in a child that was forked meanwhile."""
    if fd in held:
        with contextlib.suppress(OSError), layout.directory(*PLACE) as halves:
            if is_there(fd, name, halves):
                os.unlink(name, dir_fd=halves)


def is_there(fd: int, name: str, directory: int) -> bool:
    """Whether that file still has the name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return False


def collect_halves(layout: Layout, age: float = AGE) -> int:
    """Remove those that nobody writes to, and none has for `age` seconds; return the bytes that were freed.

    The caller holds the store's lock alone. Raises OSError.
    """
    freed = 0
    try:
        with layout.directory(*PLACE) as halves:
            for name in os.listdir(halves):
                with contextlib.suppress(FileNotFoundError, PermissionError):  # a blob by now; another user's
                    freed += _collected(name, halves, age)
    except FileNotFoundError:
        pass
    return freed


def _collected(name: str, halves: int, age: float) -> int:
    status = os.stat(name, dir_fd=halves, follow_symlinks=False)
    if abs(time.time() - status.st_mtime) < age:  # abs: the clock may have been wrong
        return 0
    if not stat.S_ISREG(status.st_mode):
        with contextlib.suppress(IsADirectoryError):  # none of ours
            os.unlink(name, dir_fd=halves)
        return 0
    fd = os.open(name, os.O_RDONLY | _OPENED, dir_fd=halves)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_there(fd, name, halves):
            return 0
        os.unlink(name, dir_fd=halves)
    except BlockingIOError:
        return 0
    finally:
        os.close(fd)
    return status.st_size
