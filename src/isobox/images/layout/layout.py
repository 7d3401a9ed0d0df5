"""The directory of an OCI image layout (image-spec, image-layout.md), and the one lock in it.

::

    oci-layout            the version of this format
    index.json            which images there are, and their names
    blobs/sha256/<hex>    the blobs
    .isobox/lock          held shared to publish a blob, alone to change anything else
    .isobox/new           the next index.json while it is written, by whoever holds the lock alone
    .isobox/spare         room for the one after it, so that images can be removed from a full disk
    .isobox/leases/<id>/  what a living process works on: see leases.py
    .isobox/halves/<blob> what was cut off, for the next one to go on with: see halves.py

Other tools read the first three and leave the last alone. No symbolic link below the directory is
ever followed: every step on the way is opened by itself.

The lock is flock(2), not a POSIX record lock: it keeps threads apart as well as processes, and
closing some other descriptor of the file doesn't drop it. Its trap is that a forked child has it
too; so it is unlocked and not just closed, and a child closes its copies first thing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Final

from isobox.errors import ImageError, printable

__all__ = ["Layout"]

OWN: Final = ".isobox"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_EMPTY: Final = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'

_SPARE: Final = 4096  # bytes by which the next index.json may be longer
_REMEDIES: Final = {
    errno.ENOSPC: "Free some space there (a prune removes what no image needs), then try again",
    errno.EDQUOT: "Free some space of this user's (a prune removes what no image needs), then try again",
    errno.EFBIG: "Raise this process's limit on the size of files (ulimit -f), then try again",
    errno.EACCES: "Run this as the user that the store belongs to, or choose another store",
    errno.EPERM: "Run this as the user that the store belongs to, or choose another store",
    errno.EROFS: "Choose a store on a file system that can be written to",
    errno.ENOTDIR: "Something that is no directory, perhaps a link, is in its way: remove that",
    errno.ELOOP: "A symbolic link is in its way: remove that",
    errno.EMFILE: "Raise this process's limit on open files (ulimit -n)",
    errno.EIO: "Look for errors of the disk in the kernel's log",
}

held: set[int] = set()
"""Descriptors of this process with locks, which a forked child must not keep."""


class Layout:
    """An image layout at `path`, which need not be there yet: the first change makes it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fsdecode(path))

    def where(self, *names: str) -> str:
        """The path of something below, for messages."""
        return printable("/".join((self.path, *names)))

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turn what the machine refuses into an ImageError that says what it was and what helps."""
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0)
            raise ImageError(
                f"store {self.where()}: {what}: {error.strerror}. Nothing that was there is lost"
                + (f". {remedy}" if remedy else "")
            ) from error

    @contextlib.contextmanager
    def directory(self, *names: str, make: bool = False) -> Iterator[int]:
        """Open a directory of the layout, step by step; `make` it where it is missing.

        Raises OSError. Only the path of the layout itself may have links in it.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                try:
                    below = os.open(name, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=fd)
                        os.fsync(fd)
                    below = os.open(name, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def read(self, name: str, most: int) -> bytes | None:
        """Read a whole file at the top of the layout; None where there is none."""
        with self.doing(f"read {name}"):
            try:
                with self.directory() as top:
                    fd = open_file(name, top)
            except FileNotFoundError:
                return None
            with open(fd, "rb") as file:
                data = file.read(most + 1)
        if len(data) > most:
            raise ImageError(f"store {self.where(name)}: more than {most} bytes, which no such file needs")
        return data

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file at the top as a whole, for good; the caller holds the lock alone."""
        with self.doing(f"write {name}"), self.directory() as top, self.directory(OWN) as own:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("new", dir_fd=own)
            try:
                fd = _from_spare(own)
                try:
                    write_all(fd, data)
                    os.ftruncate(fd, len(data))
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename("new", name, src_dir_fd=own, dst_dir_fd=top)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink("new", dir_fd=own)
                raise
            os.fsync(top)
            _make_spare(own, len(data))

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Keep other threads and processes from changing it; the layout is made if it isn't there.

        `shared`: only from what needs the lock alone.
        """
        with self.doing("lock it"):
            self._prepare()
            with self.directory(OWN) as own:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open("lock", flags, 0o644, dir_fd=own)
        held.add(fd)
        try:
            with self.doing("lock it"):
                fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if not shared:
                self._complete()
            yield
        finally:
            if fd in held:  # not a child that was forked in here
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_UN)
                held.discard(fd)
                os.close(fd)

    def _prepare(self) -> None:
        """Make the directory and our own in it, where that overwrites nothing of anybody's."""
        os.makedirs(self.path, exist_ok=True)
        with self.directory() as top:
            names = os.listdir(top)
        if OWN in names:
            return
        if names and "oci-layout" not in names:
            raise ImageError(
                f"store {self.where()}: the directory has other things in it and is no OCI image layout. "
                "Choose an empty or a new one"
            )
        with self.directory(OWN, make=True):
            pass

    def _complete(self) -> None:
        """Make what a layout must have; "oci-layout" last, so that it's only there with the rest."""
        with self.doing("make the layout"):
            with self.directory() as top:
                names = set(os.listdir(top))
            if "oci-layout" in names:
                return
            with self.directory("blobs", make=True):
                pass
        if "index.json" not in names:
            self.replace("index.json", _EMPTY)
        self.replace("oci-layout", _LAYOUT)


def open_file(name: str, directory: int) -> int:
    """Open a regular file to read; what else is there, a link say, is an OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a fifo must not hang us
    fd = os.open(name, flags, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    return fd


def create(name: str, directory: int) -> int:
    """Make a file that must not be there yet, to write and read."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o644, dir_fd=directory)


def _from_spare(own: int) -> int:
    """Make "new", to write: of the spare where there is one, whose blocks even a full disk has."""
    try:
        os.rename("spare", "new", src_dir_fd=own, dst_dir_fd=own)
    except FileNotFoundError:
        return create("new", own)
    return os.open("new", os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=own)


def _make_spare(own: int, size: int) -> None:
    try:
        fd = create("spare", own)
        try:
            os.posix_fallocate(fd, 0, size + _SPARE)
        finally:
            os.close(fd)
    except OSError:  # there is no room now; then it goes without
        with contextlib.suppress(OSError):
            os.unlink("spare", dir_fd=own)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of it: a disk that fills up takes a part first."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def _after_fork_in_child() -> None:
    for fd in held:
        with contextlib.suppress(OSError):
            os.close(fd)
    held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
