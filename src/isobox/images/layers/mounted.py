"""Layers that are files, mounted where only this process sees them: detached, so gone with the descriptor.

All who use a layer in a process share one mount. A container gets a copy of it, as of a directory:
open_tree(2) takes the path that leads through the descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from typing import Final
from weakref import WeakValueDictionary, finalize

from isobox import _native

from .erofs.format import Inode
from .erofs.writer import Directory, Writer

__all__ = ["Mount", "mount", "possible"]

_REFUSED: Final = frozenset(
    {
        errno.EACCES,
        errno.EINVAL,
        errno.ENODEV,  # no EROFS
        errno.ENOSYS,
        errno.ENOTBLK,  # only from devices: before Linux 6.12, and files on a tmpfs or an overlay
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EUCLEAN,  # damaged
    }
)


class Mount:
    """The file system in a file. It goes when nobody refers to this any more.

    `path`: its root directory, for this process; no link, unlike what is above the dot.
    """

    def __init__(self, path: str) -> None:
        fd = _native.mount_file("erofs", path)
        self.path = f"/proc/self/fd/{fd}/."
        # Not __del__: another thread may find the object in `_mounts` until that has run.
        finalize(self, os.close, fd).atexit = False


_lock = threading.Lock()
_mounts: WeakValueDictionary[tuple[int, int], Mount] = WeakValueDictionary()
_possible: dict[int, bool] = {}


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def mount(path: str) -> Mount | None:
    """Mount the file; None where this can't be done here, or what is there is no EROFS.

    Raises `FileNotFoundError`, and OSError for what the machine lacks at the moment.
    """
    status = os.stat(path, follow_symlinks=False)
    key = status.st_dev, status.st_ino  # no other file has them while it is mounted
    with _lock:
        found = _mounts.get(key)
        if found is None:
            found = _tried(path)
            if found is not None:
                _mounts[key] = found
    return found


def _tried(path: str) -> Mount | None:
    try:
        found = Mount(path)
        os.close(_native.clone_tree(found.path))  # EINVAL before Linux 6.15
    except OSError as error:
        if error.errno in _REFUSED:
            return None
        raise
    return found


def possible(directory: str) -> bool:
    """Whether this process can mount files that lie there; found out once for each file system."""
    device = os.stat(directory).st_dev
    known = _possible.get(device)
    if known is None:
        known = _possible[device] = _try(f"{directory}/trial")
    return known


def _try(path: str) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        Writer(fd).finish([Directory(Inode(stat.S_IFDIR | 0o755), {}, {})])
        return _tried(path) is not None
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path)
