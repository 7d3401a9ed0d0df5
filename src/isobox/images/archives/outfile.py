"""A file that is written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import IO, Final

from isobox.errors import ImageError, IsoboxError

__all__ = ["replacing", "writing"]

_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)  # this file system, this kernel
_REMEDIES: Final = {
    errno.ENOSPC: "Free some space there, or choose another place",
    errno.EDQUOT: "Free some space of this user's, or choose another place",
    errno.EFBIG: "Raise this process's limit on the size of files (ulimit -f)",
    errno.EACCES: "Choose a place that this user can write to",
    errno.EPERM: "Choose a place that this user can write to",
    errno.EROFS: "Choose a place on a file system that can be written to",
    errno.ENOENT: "Make the directory first",
    errno.EISDIR: "Name a file in it",
}


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A new file to write, which takes the place of `path` when the block has ended well, synced to disk.

    Until then, and after every error, `path` is as it was; a process that is killed leaves nothing where the
    file system has O_TMPFILE (open(2)). Links are followed; what is no regular file, /dev/stdout or a pipe
    say, is written to as it is. ImageError says what the machine refuses.
    """
    with writing(path):
        place = os.path.realpath(path)
        try:
            before = os.stat(place)
        except FileNotFoundError:
            before = None
        if before is not None and not stat.S_ISREG(before.st_mode):
            with os.fdopen(os.open(place, os.O_WRONLY | os.O_CLOEXEC), "wb") as file:
                yield file
            return
        folder = os.open(os.path.dirname(place), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            beside = f".{os.path.basename(place)[:200]}.{os.urandom(8).hex()}"
            fd, named = _unnamed(folder, beside)
            try:
                with os.fdopen(fd, "wb") as file:
                    yield file
                    file.flush()
                    if before is not None:
                        os.fchmod(fd, stat.S_IMODE(before.st_mode) & 0o777)
                    os.fsync(fd)
                    if not named:
                        os.link(f"/proc/self/fd/{fd}", beside, dst_dir_fd=folder, follow_symlinks=True)
                    named = True
                os.rename(beside, os.path.basename(place), src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
            except BaseException:
                if named:
                    with contextlib.suppress(OSError):
                        os.unlink(beside, dir_fd=folder)
                raise
        finally:
            os.close(folder)


def _unnamed(folder: int, name: str) -> tuple[int, bool]:
    """Make a file without a name, which goes with its descriptor; else with `name`: whether it has that."""
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    else:
        if os.path.exists(f"/proc/self/fd/{fd}"):  # by which it gets its name
            return fd, False
        os.close(fd)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder), True


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn what the machine refuses into an ImageError that says what helps."""
    try:
        yield
    except (BrokenPipeError, IsoboxError):
        raise  # whoever read it is gone, which is no mistake; or it says what it is
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        raise ImageError(
            f"can't write {path}: {error.strerror}" + (f". {remedy}" if remedy else "")
        ) from error
