"""Deletes directory trees that a hostile program has filled.

A container may leave directories nested 100,000 deep, millions of files in one directory, modes
of 000, and files that belong to ids of its user namespace. `remove_tree` holds two descriptors at
a time whatever the depth, follows no link and keeps in memory only the names of directories that
it has yet to visit.

This file imports nothing but the standard library: `remove_tree_mapped` runs it as a program.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH = 4096  # entries held in memory at a time
_CLONE_NEWUSER = 0x10000000


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Delete `path` and all below it; nothing to do if it isn't there.

    Subdirectories that aren't empty are first moved up into `path` itself under names that can't
    be guessed, so depth costs nothing, and a deletion that is cut short can simply be repeated.
    What can't be deleted stays; the first OSError is raised after the rest is gone.
    """
    path = os.fspath(path)
    try:
        top = _openable(path, None)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(path)
        return
    errors: list[OSError] = []
    try:
        _empty(top, errors)
    finally:
        os.close(top)
    if errors:
        raise errors[0]
    os.rmdir(path)


def _open(name: str, parent: int | None) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        # A directory of ours without the mode bits: give them, by descriptor so that no link
        # is followed (chmod knows no "don't follow" before Linux 6.6).
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)
        return os.open(name, _DIRECTORY, dir_fd=parent)


def _empty(top: int, errors: list[OSError]) -> None:
    prefix = os.urandom(8).hex()
    count = 0
    pending: list[str] = []

    def lift(name: str, parent: int) -> None:
        nonlocal count
        count += 1
        lifted = f"{prefix}-{count}"
        try:
            os.rename(name, lifted, src_dir_fd=parent, dst_dir_fd=top)
        except PermissionError:
            # Moving a directory rewrites its "..": that takes write permission on itself.
            os.close(_openable(name, parent))
            os.rename(name, lifted, src_dir_fd=parent, dst_dir_fd=top)
        pending.append(lifted)

    _clear(top, lambda name, parent: pending.append(name), errors)
    while pending:
        name = pending.pop()
        try:
            fd = _openable(name, top)
        except OSError as error:
            errors.append(error)
            continue
        try:
            _clear(fd, lift, errors)
        finally:
            os.close(fd)
        try:
            os.rmdir(name, dir_fd=top)
        except OSError as error:
            errors.append(error)


def _openable(name: str, parent: int | None) -> int:
    """Open a directory that we may also write to, where it is ours."""
    fd = _open(name, parent)
    try:
        if os.geteuid() and os.fstat(fd).st_mode & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
    except PermissionError:
        pass  # not ours: the deletion says what fails
    except BaseException:
        os.close(fd)
        raise
    return fd


def _clear(fd: int, nested: Callable[[str, int], None], errors: list[OSError]) -> None:
    """Delete what is in the directory `fd`; hand over the names of directories with content."""
    handed: set[str] = set()
    failed = len(errors)
    progress = True
    while progress:  # a directory that changes under readdir may hide entries: look again
        progress = False
        with os.scandir(fd) as entries:
            while batch := list(islice(entries, _BATCH)):
                for entry in batch:
                    if entry.name in handed:
                        continue
                    try:
                        if not entry.is_dir(follow_symlinks=False):
                            os.unlink(entry.name, dir_fd=fd)
                        elif not _rmdir(entry.name, fd):
                            nested(entry.name, fd)
                            handed.add(entry.name)
                        progress = True
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        handed.add(entry.name)
                        if len(errors) < failed + 8:
                            errors.append(error)


def _rmdir(name: str, parent: int) -> bool:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def remove_tree_mapped(path: str | os.PathLike[str], write_maps: Callable[[int], None]) -> None:
    """`remove_tree` as root of a new user namespace: for files that belong to a user's subids.

    `write_maps` is given the process id of the namespace and writes its id maps. Costs the start
    of a Python interpreter; OSError with the child's words if it fails.
    """
    command = [sys.executable or "python3", "-I", "-S", __file__, os.fspath(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    ) as child:
        assert child.stdout is not None
        try:
            if child.stdout.readline():
                write_maps(child.pid)
                message = child.communicate(b"go\n")[1]
            else:
                message = child.communicate()[1]
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        text = message.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(errno.EPERM, text or "deleting in a user namespace failed", os.fspath(path))


def new_user_namespace() -> None:
    """Put this process, which must have one thread only, into a new user namespace; OSError."""
    # ctypes: os.unshare exists since Python 3.12 only, and this small program runs without our
    # own extension.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"unshare: {os.strerror(code)}")


def _main(path: str) -> None:
    new_user_namespace()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        raise SystemExit(1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    remove_tree(path)


class Trash:
    """Deletes trees in a daemon thread, which ends when there is nothing more to do.

    `remove` is called with each path. What fails stays where it is and is kept in `errors`.
    """

    def __init__(self, remove: Callable[[str], None] = remove_tree) -> None:
        self.errors: list[OSError] = []
        self._remove = remove
        self._paths: deque[str] = deque()
        self._changed = threading.Condition()
        self._busy = False

    def put(self, path: str) -> None:
        """Delete `path` soon."""
        with self._changed:
            self._paths.append(path)
            if not self._busy:
                threading.Thread(target=self._work, name="isobox-trash", daemon=True).start()
                self._busy = (
                    True  # not before: where no thread can be had, nobody would ever say that it is done
                )

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to delete; False if `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout)

    def _work(self) -> None:
        # isobox.worker.take_no_signals: this file is a program too, which can import nothing of isobox.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._changed:
                if not self._paths:
                    self._busy = False
                    self._changed.notify_all()
                    return
                path = self._paths.popleft()
            try:
                self._remove(path)
            except OSError as error:
                self.errors.append(error)


if __name__ == "__main__":
    _main(sys.argv[1])
