"""Directories with locks that tell the living owners from the dead.

`<path>/owners/<id>/lock` is held by its owner for life, and dropped by the kernel when the process
ends, however it ends. `<path>/lock` is held while anything below `<path>` changes, so nobody sees an
owner that has not locked yet.

The locks are POSIX record locks: a forked child doesn't inherit them. Their trap is that closing
*any* descriptor of the file drops them, so a process never opens the lock of an owner of its own
(`mine`), and `Owners.exclusive` lets one thread in at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from typing import Final

from isobox.discard import remove_tree
from isobox.errors import UnsupportedError

mine: set[str] = set()
"""The ids of this process's own owners: their locks are not in this process's way."""

_threads = threading.Lock()


STATE: Final = ("state folder", "ISOBOX_STATE_DIR")
DATA: Final = ("data folder", "ISOBOX_DATA_DIR")
"""What people call the two places, and the environment variables that choose others."""


def data_dir() -> str:
    """Where images and the trees of containers go for this user and environment; makes nothing."""
    if chosen := os.environ.get("ISOBOX_DATA_DIR"):
        return os.path.realpath(chosen)
    if os.geteuid() == 0:
        return "/var/lib/isobox"
    chosen = os.environ.get("XDG_DATA_HOME", "")
    home = os.path.expanduser("~")
    return os.path.join(chosen if os.path.isabs(chosen) else os.path.join(home, ".local/share"), "isobox")


def check_directory(path: str, place: tuple[str, str]) -> None:
    """Make the directory `path` if needed, and make sure that only this user can write there.

    UnsupportedError otherwise; `place` is STATE or DATA.
    """
    feature, variable = place
    remedy = f"set {variable} to a directory that only you can write to"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o711 if os.geteuid() == 0 else 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise UnsupportedError(feature, f"can't make {path}: {error.strerror}", remedy) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UnsupportedError(
            feature,
            f"{path} is not a directory that belongs to this user alone "
            f"(mode {stat.filemode(found.st_mode)}, uid {found.st_uid})",
            f"remove it, or {remedy}",
        )


class Owners:
    """The owners below one directory, and the files that say what they have."""

    def __init__(self, path: str) -> None:
        self.path = path

    def owner(self, owner_id: str) -> str:
        """The path of an owner's directory."""
        return f"{self.path}/owners/{owner_id}"

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else, in whatever process, makes or collects meanwhile."""
        with _threads:
            fd = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)

    def register(self, owner_id: str, folders: tuple[str, ...] = ()) -> int:
        """Make the owner's directory; the descriptor that holds its lock."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{self.path}/owners", 0o711)
        for folder in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{self.path}/{folder}", 0o700)
        with self.exclusive():
            os.mkdir(self.owner(owner_id), 0o711)
            fd = self._lock_file(owner_id)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(fd)
                raise
            return fd

    def _lock_file(self, owner_id: str) -> int:
        return os.open(f"{self.owner(owner_id)}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def ids(self) -> list[str]:
        """All owners, the dead among them."""
        try:
            return os.listdir(f"{self.path}/owners")
        except FileNotFoundError:
            return []

    def claim(self, owner_id: str) -> int | None:
        """Take a dead owner's lock: its descriptor, or None while the owner lives (or is gone)."""
        if owner_id in mine:
            return None
        try:
            fd = self._lock_file(owner_id)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(fd)
            return None
        return fd

    def alive(self, owner_id: str) -> bool:
        """True while the owner's process lives."""
        if owner_id in mine:
            return True
        if not owner_id or not os.path.isdir(self.owner(owner_id)):
            return False
        fd = self.claim(owner_id)
        if fd is None:
            return True
        os.close(fd)
        return False

    def forget(self, owner_id: str) -> None:
        """Remove the owner's directory; the lock, which it is found by, goes last."""
        path = self.owner(owner_id)
        for entry in os.listdir(path):
            if entry != "lock":
                remove_tree(f"{path}/{entry}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}/lock")
        os.rmdir(path)

    def holders(self, folder: str) -> dict[str, str]:
        """Entry -> owner id, of the files in `folder`."""
        return {name: self.holder(folder, name) for name in os.listdir(f"{self.path}/{folder}")}

    def holder(self, folder: str, name: str) -> str:
        """The owner id in a file; empty if the file is missing or was not finished."""
        try:
            with open(f"{self.path}/{folder}/{name}", "rb") as file:
                return file.read(100).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def release(self, folder: str, owner_ids: set[str]) -> list[str]:
        """Remove the files in `folder` that belong to these owners."""
        released = [name for name, holder in self.holders(folder).items() if holder in owner_ids]
        for name in released:
            os.unlink(f"{self.path}/{folder}/{name}")
        return released


def _after_fork_in_child() -> None:
    global _threads
    mine.clear()
    _threads = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
