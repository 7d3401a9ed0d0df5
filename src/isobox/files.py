"""Files of a container, read and written from outside: bytes, single files and whole trees.

Everything inside is carried out by the container's init as its root, so paths mean what they mean
to a program in the container and nothing can be reached that such a program could not. What comes
back is still hostile: a name may be a fifo or a link a moment later, sizes may lie, trees may grow
while they are read. So every descriptor is checked before it is used, none is opened in a way that
could wait for a program inside, and on the host's side nothing is written through a link.

Symbolic links are copied as links. Fifos, sockets and devices are left out. Hard links become files
of their own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

__all__ = ["Inside", "copy_in", "copy_out", "read_bytes", "write_bytes"]

Path = str | os.PathLike[str]
T = TypeVar("T")

_CALM = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_PIECE = 1 << 16  # larger ones are mapped and faulted in anew by the allocator each time
_SPAN = 1 << 30  # of one sendfile; the kernel takes less than 2 GiB
_HOLES = 1 << 30  # bytes that a file may pretend to have, before reading it takes a limit
_DEEPEST = 256


class Inside(Protocol):
    """The container's own view of its files: what its init does, as its root, when it is asked.

    `base`: 0 is the container's "/"; n + 1 is the upper directory of overlay tree n. All raise
    OSError with the path as `filename`.
    """

    def open(self, path: str, flags: int, mode: int = 0o666, *, base: int = 0) -> int:
        """Open and pass the descriptor; the caller closes it."""

    def mkdir(self, path: str, mode: int = 0o777, *, base: int = 0) -> None:
        """Make a directory."""

    def symlink(self, target: str, path: str, *, base: int = 0) -> None:
        """Make a symbolic link at `path`."""

    def unlink(self, path: str, *, base: int = 0) -> None:
        """Remove a name that is not a directory's."""

    def rmdir(self, path: str, *, base: int = 0) -> None:
        """Remove an empty directory."""


def _error(code: int, path: str, message: str = "") -> OSError:
    return OSError(code, message or os.strerror(code), path)


def _open_file(inside: Inside, path: str, flags: int) -> tuple[int, os.stat_result]:
    """Open what has to be a regular file; a fifo, a device or a directory is an error."""
    try:
        fd = inside.open(path, flags | _CALM, 0o600 if flags & os.O_CREAT else 0)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a fifo that nobody reads
            raise _error(errno.EINVAL, path, "not a regular file") from None
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        if stat.S_ISDIR(status.st_mode):
            raise _error(errno.EISDIR, path)
        raise _error(errno.EINVAL, path, "not a regular file")
    return fd, status


def read_bytes(inside: Inside, path: str, limit: int | None = None) -> bytes:
    """Read a regular file whole, as long as it is when it is opened.

    `limit`: bytes; a longer file is an OSError (EFBIG). Without a limit, a file with more than
    1 GiB of holes is refused too: it costs a program inside nothing and would fill our memory.
    """
    fd, status = _open_file(inside, path, os.O_RDONLY)
    try:
        size = status.st_size
        if limit is None and size - status.st_blocks * 512 > _HOLES:
            raise _error(errno.EFBIG, path, f"{size} bytes, most of them holes; give a limit")
        if limit is not None and size > limit:
            raise _error(errno.EFBIG, path, f"{size} bytes, more than the limit of {limit}")
        if size:
            return b"".join(_pieces(fd, size))
        # Files of /proc and /sys say 0 and have something to read; they end by themselves.
        most = _HOLES if limit is None else limit
        data = b"".join(_pieces(fd, most + 1))
        if len(data) > most:
            raise _error(errno.EFBIG, path, f"more than the limit of {most} bytes")
        return data
    finally:
        os.close(fd)


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    while size > 0:
        data = os.read(fd, min(size, _PIECE))
        if not data:
            return
        size -= len(data)
        yield data


def write_bytes(inside: Inside, path: str, data: bytes | bytearray | memoryview, mode: int = 0o644) -> None:
    """Write a regular file whole. `mode` is a new file's; one that exists keeps its own.

    The directory must exist. A link is followed, inside.
    """
    try:
        fd = inside.open(path, _NEW | _CALM, 0o600)
        created = True
    except FileExistsError:
        # Opened without O_TRUNC: that is for what proves to be a regular file.
        fd, _status = _open_file(inside, path, os.O_WRONLY | os.O_CREAT)
        created = False
    try:
        if created:
            os.fchmod(fd, mode)
        else:
            os.ftruncate(fd, 0)
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def copy_in(inside: Inside, source: Path, target: str) -> None:
    """Copy a file or a tree of the host into the container, as ``cp -r`` does; root inside owns it.

    Where `target` is a directory, the copy lands in it under its own name; "directory/." as the
    source means what is in the directory. Modes and times are kept. Files that exist are replaced,
    directories are merged. Raises OSError; what was copied before that stays.
    """
    name = os.fspath(source)
    status = os.lstat(name)
    contents_only = name.endswith("/.") or name == "."
    place = target
    existing = _kind_inside(inside, target)
    if existing is not None and stat.S_ISDIR(existing):
        if not contents_only:
            place = _below(target, _last_name(name))
    elif target.endswith("/") and not stat.S_ISDIR(status.st_mode):
        raise _error(errno.ENOENT if existing is None else errno.ENOTDIR, target)
    elif existing is not None and stat.S_ISDIR(status.st_mode):
        raise _error(errno.ENOTDIR, target)
    parent_fd = os.open(
        os.path.dirname(name.rstrip("/")) or ("/" if name.startswith("/") else "."), os.O_PATH
    )
    try:
        if stat.S_ISDIR(status.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _tree_in(inside, fd, place, 0)
            finally:
                os.close(fd)
        else:
            _entry_in(inside, parent_fd, _last_name(name), place, 0)
    finally:
        os.close(parent_fd)


def _last_name(path: str) -> str:
    name = os.path.basename(os.path.normpath(path))
    return name if name not in ("", "..") else os.path.basename(os.path.realpath(path)) or "root"


def _below(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}" if directory.strip("/") else f"/{name}"


def _kind_inside(inside: Inside, path: str) -> int | None:
    """Follow `path` and give its mode; None where there is nothing."""
    try:
        fd = inside.open(path, os.O_PATH | os.O_CLOEXEC, 0)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _entry_in(inside: Inside, parent_fd: int, name: str, place: str, depth: int) -> None:
    status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        link = os.readlink(name, dir_fd=parent_fd)
        _replacing(inside, place, lambda: inside.symlink(link, place))
    elif stat.S_ISDIR(status.st_mode):
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        try:
            _tree_in(inside, fd, place, depth + 1)
        finally:
            os.close(fd)
    elif stat.S_ISREG(status.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | _CALM, dir_fd=parent_fd)
        try:
            _file_in(inside, fd, place)
        finally:
            os.close(fd)


def _tree_in(inside: Inside, fd: int, place: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise _error(errno.ELOOP, place, f"more than {_DEEPEST} directories deep")
    try:
        inside.mkdir(place, 0o700)
        created = True
    except FileExistsError:
        kind = _kind_inside(inside, place)
        if kind is None or not stat.S_ISDIR(kind):
            raise _error(errno.ENOTDIR, place) from None
        created = False
    for name in sorted(os.listdir(fd)):
        _entry_in(inside, fd, name, _below(place, name), depth)
    if created:
        status = os.fstat(fd)
        made = inside.open(place, _DIRECTORY, 0)
        try:
            os.fchmod(made, stat.S_IMODE(status.st_mode))
            _keep_times(made, status)
        finally:
            os.close(made)


def _file_in(inside: Inside, fd: int, place: str) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return
    made = _replacing(inside, place, lambda: inside.open(place, _NEW | _CALM, 0o600))
    try:
        _copy_data(fd, made, status)
        os.fchmod(made, stat.S_IMODE(status.st_mode))
        _keep_times(made, status)
    finally:
        os.close(made)


def _replacing(inside: Inside, place: str, make: Callable[[], T]) -> T:
    """Make something new at `place`, in place of what is there."""
    try:
        return make()
    except FileExistsError:
        inside.unlink(place)
        return make()


def copy_out(inside: Inside, source: str, target: Path, *, limit: int | None = None) -> None:
    """Copy a file or a tree of the container to the host, as ``cp -r`` does; the caller owns it.

    Where `target` is a directory, the copy lands in it under its own name; "directory/." as the
    source means what is in the directory. Modes are kept but for setuid and setgid, times are kept.
    Files and links that exist are replaced, never followed; directories are merged. `limit`: bytes
    of file contents in all, past which OSError (EFBIG) is raised; a program inside that adds to a
    tree while it is copied could otherwise go on for ever. Raises OSError; what was copied before
    that stays.
    """
    place = os.fspath(target)
    contents_only = source.rstrip("/").endswith("/.") or not source.strip("/.")
    name = "" if contents_only else os.path.basename(os.path.normpath(source))
    if name == "..":
        raise _error(errno.EINVAL, source, "a source that ends in '..' has no name")
    # A slash at the end means the directory that a link leads to.
    links = 0 if source.endswith("/") else os.O_NOFOLLOW
    probe = inside.open(source, os.O_PATH | os.O_CLOEXEC | links, 0)
    try:
        kind = os.fstat(probe).st_mode
        copier = _Out(inside, limit)
        if os.path.isdir(place) and not contents_only:
            parent_fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            parent, own_name = os.path.split(os.path.abspath(place))
            if place.endswith("/") and not stat.S_ISDIR(kind):
                raise _error(errno.ENOTDIR, place)
            parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            name = own_name
        try:
            if contents_only and os.path.isdir(place):
                made = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    copier.contents(source, made, 0)
                finally:
                    os.close(made)
            else:
                copier.entry(source, kind, probe, parent_fd, name, 0)
        finally:
            os.close(parent_fd)
    finally:
        os.close(probe)


class _Out:
    """One copy to the host; on this side, every name is made below an open directory."""

    def __init__(self, inside: Inside, limit: int | None) -> None:
        self._inside = inside
        self._left = limit

    def entry(self, path: str, kind: int, probe: int, parent_fd: int, name: str, depth: int) -> None:
        """Copy one name; `probe` is an O_PATH descriptor of it, and `kind` its mode."""
        if stat.S_ISLNK(kind):
            self._link(os.readlink("", dir_fd=probe), parent_fd, name)
        elif stat.S_ISDIR(kind):
            self._directory(path, parent_fd, name, depth)
        elif stat.S_ISREG(kind):
            self._file(path, parent_fd, name)

    def contents(self, path: str, fd: int, depth: int) -> os.stat_result:
        """Copy what is in the directory `path` into the one that `fd` is open on."""
        if depth > _DEEPEST:
            raise _error(errno.ELOOP, path, f"more than {_DEEPEST} directories deep")
        source = self._inside.open(path, os.O_RDONLY | os.O_DIRECTORY | _CALM, 0)
        try:
            status = os.fstat(source)
            names = sorted(os.listdir(source))
        finally:
            os.close(source)
        for name in names:
            if not name or name in (".", "..") or "/" in name or "\0" in name:
                raise _error(errno.EBADMSG, path, f"an impossible file name: {name[:80]!r}")
            below = _below(path, name)
            try:
                probe = self._inside.open(below, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0)
            except FileNotFoundError:
                continue  # gone since the directory was read
            try:
                self.entry(below, os.fstat(probe).st_mode, probe, fd, name, depth)
            finally:
                os.close(probe)
        return status

    def _link(self, link: str, parent_fd: int, name: str) -> None:
        _replacing_at(parent_fd, name, lambda: os.symlink(link, name, dir_fd=parent_fd))

    def _directory(self, path: str, parent_fd: int, name: str, depth: int) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
            created = True
        except FileExistsError:
            created = False
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)  # a link in its place is an error
        try:
            status = self.contents(path, fd, depth + 1)
            if created:
                os.fchmod(fd, stat.S_IMODE(status.st_mode) & 0o1777)
                _keep_times(fd, status)
        finally:
            os.close(fd)

    def _file(self, path: str, parent_fd: int, name: str) -> None:
        fd, status = _open_file(self._inside, path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if self._left is not None:
                self._left -= status.st_size
                if self._left < 0:
                    raise _error(errno.EFBIG, path, "more bytes than the limit")
            made = _replacing_at(parent_fd, name, lambda: os.open(name, _NEW, 0o600, dir_fd=parent_fd))
            try:
                _copy_data(fd, made, status)
                os.fchmod(made, stat.S_IMODE(status.st_mode) & 0o777)
                _keep_times(made, status)
            finally:
                os.close(made)
        finally:
            os.close(fd)


def _replacing_at(parent_fd: int, name: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except FileExistsError:
        os.unlink(name, dir_fd=parent_fd)
        return make()


def _copy_data(source: int, target: int, status: os.stat_result) -> None:
    """Copy as many bytes as the file had when it was opened; holes stay holes."""
    size = status.st_size
    if status.st_blocks * 512 >= size:
        _copy_span(source, target, 0, size)
        return
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole follows
                break
            start = at
        try:
            end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        except OSError:
            end = size
        if start >= size or end <= start:
            break
        if not _copy_span(source, target, start, end):
            return
        at = end
    os.ftruncate(target, size)


def _copy_span(source: int, target: int, start: int, end: int) -> bool:
    """Copy bytes [start, end); False when the file turned out to be shorter."""
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        try:
            sent = os.sendfile(target, source, start, min(end - start, _SPAN))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            data = os.pread(source, min(end - start, _PIECE), start)
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
            sent = len(data)
        if not sent:
            return False
        start += sent
    return True


def _keep_times(fd: int, status: os.stat_result) -> None:
    try:
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    except (OverflowError, OSError):
        pass  # a time that the other file system can't keep
