"""Unpack a tar archive as the root of a container, safely: nothing of it is trusted.

Every entry is placed by walking its name through what the archive itself has made so far: a
symbolic link on the way is followed inside the new root, as a program in the container would
see it, so that no name, link or sequence of entries reaches outside.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

from attrs import frozen

from isobox.errors import NotFound, SetupError, UnpackError

from .compression import decompressed
from .tarstream import Entry, TarStream

__all__ = ["MOST_BYTES", "MOST_ENTRIES", "Unpacked", "unpack"]

MOST_BYTES = 32 << 30
MOST_ENTRIES = 2_000_000
_MOST_LINKS = 40  # the kernel's own bound
_MOST_FOLLOWED = 20_000_000  # names in the targets of links on the way, of all entries together: some seconds
_MOST_NAMES = 1 << 30  # bytes of memory for the places of directories and links
_NAME = 48  # what a name costs beside its bytes
_DEEPEST = 256  # directories in each other; beyond, trees are hard to remove again

# The archive's fault; everything else (no space, I/O error) is the machine's.
_ARCHIVE = frozenset(
    {
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EOVERFLOW,
    }
)


@frozen
class Unpacked:
    """What `unpack` made: entries, bytes of regular files, and device nodes that it left out."""

    entries: int
    size: int
    devices: int


def unpack(
    path: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    keep_owners: bool,
    most_bytes: int = MOST_BYTES,
    most_entries: int = MOST_ENTRIES,
) -> Unpacked:
    """Unpack the archive at `path` (plain, gzip, zstd or xz) as the directory `into`.

    `into` must not exist, its parent must; it appears whole or not at all. `keep_owners` (root
    only): numeric owners and setuid bits as the archive has them, so the parent should be closed
    to other users of the host; otherwise everything belongs to the caller, setuid and setgid bits
    are dropped and directories stay writable to the caller. `most_bytes` bounds the decompressed
    stream, `most_entries` the number of entries.

    Device nodes are left out (a container has its own /dev), and so are extended attributes.
    Raises `NotFound`, `UnpackError` for a damaged or hostile archive, `UnsupportedError` for zstd
    where nothing can read it, `SetupError` when the machine fails (no space, say).
    """
    into = os.fspath(into)
    try:
        # O_NONBLOCK: a fifo put there must not hang us.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except FileNotFoundError:
        raise NotFound(f"no such archive: {os.fspath(path)}") from None
    except OSError as error:
        raise SetupError(error.errno or errno.EIO, f"open {os.fspath(path)}", stage="rootfs") from error
    with file:
        parent = os.path.dirname(os.path.abspath(into))
        try:
            work = tempfile.mkdtemp(prefix=".unpack-", dir=parent)
        except OSError as error:
            raise SetupError(
                error.errno or errno.EIO, f"make a directory in {parent}", stage="rootfs"
            ) from error
        try:
            made = _Unpacking(work, keep_owners, most_entries).run(TarStream(decompressed(file), most_bytes))
            if os.path.lexists(into):
                raise SetupError(errno.EEXIST, f"unpack into {into}", stage="rootfs")
            os.rename(work, into)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, SetupError):
                raise SetupError(
                    error.errno or errno.EIO, f"unpack {os.fspath(path)}", stage="rootfs"
                ) from error
            raise
    return made


class _Unpacking:
    """One archive on its way to disk.

    `_directories` and `_links` hold every directory and symbolic link made so far, by their real
    place. Nobody else writes here (the directory is the caller's alone until it is renamed), so
    a parent found in `_directories` has no link in it and may be handed to the kernel as it is.
    """

    def __init__(self, root: str, keep_owners: bool, most_entries: int) -> None:
        self._root = os.fsencode(root)
        self._keep_owners = keep_owners
        self._most_entries = most_entries
        self._directories: set[tuple[bytes, ...]] = {()}
        self._links: dict[tuple[bytes, ...], bytes] = {}
        self._times: dict[tuple[bytes, ...], int] = {}
        self._followed = 0
        self._names = 0
        self._root_mode = 0o755
        self._root_fd = -1

    def run(self, stream: TarStream) -> Unpacked:
        """Place every entry; raises UnpackError or OSError."""
        entries = size = devices = 0
        self._root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for entry in stream.entries():
                entries += 1
                if entries > self._most_entries:
                    raise UnpackError(f"the archive has more than {self._most_entries} entries")
                size += entry.size
                devices += entry.kind == "device"
                try:
                    self._place(entry, stream)
                except OSError as error:
                    if error.errno not in _ARCHIVE:
                        raise
                    raise UnpackError(f"{_shown(entry.name)}: {error.strerror}") from error
            for place, mtime in self._times.items():
                if place in self._directories:
                    self._set_time(place, mtime)
            os.fchmod(self._root_fd, self._root_mode)
        finally:
            os.close(self._root_fd)
        return Unpacked(entries, size, devices)

    def _place(self, entry: Entry, stream: TarStream) -> None:
        names = _names(entry.name)
        if not names:
            if entry.kind != "directory":
                raise UnpackError(f"the root itself is a {entry.kind} in this archive")
            self._finish((), entry)
            self._root_mode = self._mode(entry)
            return
        place = (*self._resolve(names[:-1], entry.name), names[-1])
        if len(place) > _DEEPEST:
            raise UnpackError(f"{_shown(entry.name)}: more than {_DEEPEST} directories deep")
        if entry.kind == "device":
            return
        if entry.kind == "directory":
            if place not in self._directories:
                self._remove(place)
                self._make_directory(place)
            self._finish(place, entry)
            return
        source: tuple[bytes, ...] | None = None
        if entry.kind == "hardlink":
            source = self._hardlink_source(entry)
            if source == place:
                return
        self._remove(place)
        path = b"/".join(place)
        if entry.kind == "file":
            self._write(path, entry, stream)
        elif entry.kind == "symlink":
            if not entry.target or b"\0" in entry.target:
                raise UnpackError(f"{_shown(entry.name)}: a symbolic link to nothing")
            os.symlink(entry.target, path, dir_fd=self._root_fd)
            self._keep(place, len(entry.target))
            self._links[place] = entry.target
            self._own(path, entry)
        elif entry.kind == "fifo":
            os.mkfifo(path, 0o600, dir_fd=self._root_fd)
            self._own(path, entry)
            os.chmod(path, self._mode(entry), dir_fd=self._root_fd)
        elif source is not None:
            os.link(
                b"/".join(source),
                path,
                src_dir_fd=self._root_fd,
                dst_dir_fd=self._root_fd,
                follow_symlinks=False,
            )
            if source in self._links:
                self._keep(place, 0)
                self._links[place] = self._links[source]

    def _resolve(self, names: tuple[bytes, ...], shown: bytes) -> tuple[bytes, ...]:
        """Find (and make) the directory that `names` lead to inside the root."""
        todo = list(reversed(names))
        place: tuple[bytes, ...] = ()
        followed = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                place = place[:-1]  # only from a link's target; above the root is the root
                continue
            here = (*place, name)
            target = self._links.get(here)
            if target is None:
                if here not in self._directories:
                    self._make_directory(here)
                place = here
                continue
            followed += 1
            if followed > _MOST_LINKS:
                raise UnpackError(f"{_shown(shown)}: too many symbolic links on the way")
            if target.startswith(b"/"):
                place = ()
            parts = [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
            self._followed += len(parts)
            if self._followed > _MOST_FOLLOWED:
                raise UnpackError(f"{_shown(shown)}: too many symbolic links on the way to all entries")
            todo.extend(parts)
        return place

    def _keep(self, place: tuple[bytes, ...], more: int) -> None:
        """Count what it takes to remember a place."""
        self._names += sum(map(len, place)) + _NAME * len(place) + more
        if self._names > _MOST_NAMES:
            raise UnpackError("the archive has too many directories and links to remember")

    def _make_directory(self, place: tuple[bytes, ...]) -> None:
        if len(place) > _DEEPEST:
            raise UnpackError(f"{_shown(b'/'.join(place))}: more than {_DEEPEST} directories deep")
        self._keep(place, 0)
        os.mkdir(b"/".join(place), 0o755, dir_fd=self._root_fd)
        self._directories.add(place)

    def _hardlink_source(self, entry: Entry) -> tuple[bytes, ...]:
        names = _names(entry.target)
        if not names:
            raise UnpackError(f"{_shown(entry.name)}: a hard link to the root")
        source = (*self._resolve(names[:-1], entry.target), names[-1])
        if source in self._directories:
            raise UnpackError(f"{_shown(entry.name)}: a hard link to a directory")
        return source

    def _remove(self, place: tuple[bytes, ...]) -> None:
        """Make room: a later entry replaces an earlier one of the same name."""
        if place in self._directories:
            # Fails with ENOTEMPTY when something is in it: no archive in good order does that.
            os.rmdir(b"/".join(place), dir_fd=self._root_fd)
            self._directories.discard(place)
            return
        try:
            os.unlink(b"/".join(place), dir_fd=self._root_fd)
        except FileNotFoundError:
            pass
        self._links.pop(place, None)

    def _write(self, path: bytes, entry: Entry, stream: TarStream) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600, dir_fd=self._root_fd)
        try:

            def write(data: bytes) -> None:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]

            stream.contents(write)
            if self._keep_owners:
                os.fchown(fd, entry.uid, entry.gid)  # before the mode: it clears setuid bits
            os.fchmod(fd, self._mode(entry))
            _set_times(fd, entry.mtime)
        finally:
            os.close(fd)

    def _finish(self, place: tuple[bytes, ...], entry: Entry) -> None:
        """Give a directory its owner and mode now, its time when nothing more is put into it."""
        fd = self._open_directory(place)
        try:
            if self._keep_owners:
                os.fchown(fd, entry.uid, entry.gid)
            if place:
                os.fchmod(fd, self._mode(entry))
        finally:
            os.close(fd)
        self._times[place] = entry.mtime

    def _set_time(self, place: tuple[bytes, ...], mtime: int) -> None:
        fd = self._open_directory(place)
        try:
            _set_times(fd, mtime)
        finally:
            os.close(fd)

    def _open_directory(self, place: tuple[bytes, ...]) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(b"/".join(place) or b".", flags, dir_fd=self._root_fd)

    def _own(self, path: bytes, entry: Entry) -> None:
        if self._keep_owners:
            os.chown(path, entry.uid, entry.gid, dir_fd=self._root_fd, follow_symlinks=False)

    def _mode(self, entry: Entry) -> int:
        if self._keep_owners:
            return entry.mode
        return entry.mode & 0o1777 | (0o700 if entry.kind == "directory" else 0)


def _names(path: bytes) -> tuple[bytes, ...]:
    """Split an archive's name into its parts; raises for what could lead outside."""
    if b"\0" in path or not path or len(path) > 4096:
        raise UnpackError(f"{_shown(path)}: not a possible file name")
    if path.startswith(b"/"):
        raise UnpackError(f"{_shown(path)}: an absolute name in the archive")
    names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    if b".." in names:
        raise UnpackError(f"{_shown(path)}: a name with '..' in the archive")
    return names


def _set_times(fd: int, mtime: int) -> None:
    try:
        os.utime(fd, ns=(mtime, mtime))
    except (OverflowError, OSError):
        pass  # a time that this file system can't keep; the file is right all the same


def _shown(name: bytes) -> str:
    text = os.fsdecode(name).encode("unicode_escape", "backslashreplace").decode("ascii")
    return repr(text if len(text) <= 120 else text[:117] + "...")
