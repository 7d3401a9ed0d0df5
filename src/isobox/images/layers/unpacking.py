"""Put the entries of an archive on disk, safely: nothing of it is trusted.

Every entry is placed by walking its name through what the archive itself has made so far: a
symbolic link on the way is followed inside the new root, as a program in the container would
see it, so that no name, link or sequence of entries reaches outside.
"""

from __future__ import annotations

import errno
import os

from attrs import frozen

from isobox import _native
from isobox.errors import UnpackError

from ..tar.sparse import Segments
from ..tar.stream import Entry, TarStream

__all__ = ["MOST_BYTES", "MOST_ENTRIES", "NO_FILES", "Place", "Unpacked", "Unpacking", "shown"]

Place = tuple[bytes, ...]
"""Where something lies below the root: its names, without links on the way."""

MOST_BYTES = 32 << 30
MOST_ENTRIES = 2_000_000
_MOST_LINKS = 40  # the kernel's own bound
_MOST_FOLLOWED = 20_000_000  # names in the targets of links on the way, of all entries together: some seconds
_MOST_NAMES = 1 << 30  # bytes of memory for the places of directories and links
_NAME = 48  # what a name costs beside its bytes
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DOTS = (b"", b".", b"..")
_DEEPEST = 256  # directories in each other; beyond, trees are hard to remove again

NO_FILES = _native.Files(0, 0, 0)

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


class Unpacking:
    """One archive on its way to disk.

    `_directories` and `_links` hold every directory and symbolic link made so far, by their real
    place. Nobody else writes here (the directory is the caller's alone until it is renamed), so
    a parent found in `_directories` has no link in it and may be handed to the kernel as it is.
    """

    absolute_names = False
    """Whether a name may begin with "/": then that is the new root."""

    exact_modes = False
    """Whether directories may be closed to an ordinary user who unpacks; else they stay writable."""

    def __init__(self, root: str, keep_owners: bool, most_entries: int) -> None:
        self._root = os.fsencode(root)
        self._keep_owners = keep_owners
        self._most_entries = most_entries
        self._directories: set[Place] = {()}
        self._links: dict[Place, bytes] = {}
        self._times: dict[Place, int] = {}
        self._closed: dict[Place, int] = {}  # modes that would be in the way of what comes after
        self._followed = 0
        self._names = 0
        self._root_mode = 0o755
        self._root_fd = -1
        # Where the next entry most likely lies, by its name: in the one before, or beside it.
        self._last: tuple[bytes, Place] | None = None

    def run(self, stream: TarStream) -> Unpacked:
        """Place every entry; raises UnpackError or OSError."""
        self._root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            made = self._place_all(stream)
            for place, mtime in self._times.items():
                if place in self._directories:
                    _set_path_time(b"/".join(place) or b".", mtime, self._root_fd)
            for place in sorted(self._closed, key=len, reverse=True):
                if place in self._directories and place:
                    os.chmod(b"/".join(place), self._closed[place], dir_fd=self._root_fd)
            os.fchmod(self._root_fd, self._closed.get((), self._root_mode))
        finally:
            os.close(self._root_fd)
        return made

    def _place_all(self, stream: TarStream) -> Unpacked:
        entries = size = devices = 0
        for entry in stream.entries():
            entries += 1
            if entries > self._most_entries:
                raise UnpackError(f"the archive has more than {self._most_entries} entries")
            size += entry.size
            devices += entry.kind == "device"
            try:
                self.take(entry, stream)
            except OSError as error:
                if error.errno not in _ARCHIVE:
                    raise
                why = error.strerror
                if error.errno == errno.EINVAL and self._keep_owners and (entry.uid or entry.gid):
                    # Of chown(2), in a user namespace.
                    why = f"{why}: its owner is {entry.uid}:{entry.gid}; does /etc/subuid give enough ids?"
                raise UnpackError(f"{shown(entry.name)}: {why}") from error
            if entry.kind in ("file", "directory"):
                more = self._more_files(stream, self._most_entries - entries)
                entries += more.files
                size += more.size
        self.settle()
        return Unpacked(entries, size, devices)

    def _more_files(self, stream: TarStream, most: int) -> _native.Files:
        """Make the plain files that follow in the same directory, as `take` would do it: most do."""
        ready = stream.ready()
        if ready is None or self._last is None or most <= 0:
            return NO_FILES
        above, parent = self._last
        if not 0 < len(parent) < _DEEPEST:
            return NO_FILES
        archive, at = ready
        modes = 0o7777 if self._keep_owners else 0o1777
        made = _native.make_files(
            self._root_fd,
            b"/".join(parent),
            above,
            archive,
            at,
            most=most,
            keep_owners=self._keep_owners,
            modes=modes,
        )
        if made.files:
            stream.passed(at + made.used)
        return made

    def take(self, entry: Entry, stream: TarStream) -> None:
        """Do what one entry says."""
        parent, name = self._locate(entry.name)
        if name is None:
            if entry.kind != "directory":
                raise UnpackError(f"the root itself is a {entry.kind} in this archive")
            self._finish((), entry)
            return
        self.place((*parent, name), entry, stream)

    def dress(self, fd: int, entry: Entry) -> None:
        """Give an open file or directory what else the entry has: nothing here.

        It has its owner by then, whose change takes privileges away, and may still be written to.
        """

    def settle(self) -> None:
        """Do what can only be done when all entries are in place: nothing here."""

    def place(self, place: Place, entry: Entry, stream: TarStream) -> None:
        """Make what an entry is, in the place of what is there."""
        if len(place) > _DEEPEST:
            raise UnpackError(f"{shown(entry.name)}: more than {_DEEPEST} directories deep")
        if entry.kind == "device":
            return
        if entry.kind == "file":
            self._write(place, entry, stream)
            return
        if entry.kind == "directory":
            if place not in self._directories:
                self._remove(place)
                self._make_directory(place)
            self._finish(place, entry)
            self._last = entry.name.rstrip(b"/"), place
            return
        source: Place | None = None
        if entry.kind == "hardlink":
            source = self._hardlink_source(entry)
            if source == place:
                return
        self._remove(place)
        if entry.kind == "symlink":
            if not entry.target or b"\0" in entry.target:
                raise UnpackError(f"{shown(entry.name)}: a symbolic link to nothing")
            self._make_symlink(place, entry)
            self._keep(place, len(entry.target))
            self._links[place] = entry.target
            self._last = None
        elif entry.kind == "fifo":
            self._make_fifo(place, entry)
        elif source is not None:
            self._link(source, place, entry)

    def _make_symlink(self, place: Place, entry: Entry) -> None:
        path = b"/".join(place)
        os.symlink(entry.target, path, dir_fd=self._root_fd)
        self._own(path, entry)
        _set_path_time(path, entry.mtime, self._root_fd)

    def _make_fifo(self, place: Place, entry: Entry) -> None:
        path = b"/".join(place)
        os.mkfifo(path, 0o600, dir_fd=self._root_fd)
        self._own(path, entry)
        os.chmod(path, self._mode(entry), dir_fd=self._root_fd)
        _set_path_time(path, entry.mtime, self._root_fd)

    def _link(self, source: Place, place: Place, entry: Entry) -> None:
        self._make_hardlink(source, place)
        if source in self._links:
            self._keep(place, 0)
            self._links[place] = self._links[source]
            self._last = None

    def _make_hardlink(self, source: Place, place: Place) -> None:
        os.link(
            b"/".join(source),
            b"/".join(place),
            src_dir_fd=self._root_fd,
            dst_dir_fd=self._root_fd,
            follow_symlinks=False,
        )

    def _locate(self, name: bytes) -> tuple[Place, bytes | None]:
        """Find (and make) the directory that a name lies in, and its last part; None is the root itself."""
        above, slash, last = name.rpartition(b"/")
        known = self._last
        if slash and known is not None and known[0] == above and last not in _DOTS and b"\0" not in last:
            return known[1], last
        names = split(name, absolute=self.absolute_names)
        if not names:
            return (), None
        parent = self._resolve(names[:-1], name)
        if last == names[-1] and len(above) < 4096:
            self._last = above, parent
        return parent, names[-1]

    def _resolve(self, names: Place, whole: bytes) -> Place:
        """Find (and make) the directory that `names` lead to inside the root."""
        todo = list(reversed(names))
        place: Place = ()
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
                raise UnpackError(f"{shown(whole)}: too many symbolic links on the way")
            if target.startswith(b"/"):
                place = ()
            parts = [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
            self._followed += len(parts)
            if self._followed > _MOST_FOLLOWED:
                raise UnpackError(f"{shown(whole)}: too many symbolic links on the way to all entries")
            todo.extend(parts)
        return place

    def _keep(self, place: Place, more: int) -> None:
        """Count what it takes to remember a place."""
        self._names += sum(map(len, place)) + _NAME * len(place) + more
        if self._names > _MOST_NAMES:
            raise UnpackError("the archive has too many directories and links to remember")

    def _make_directory(self, place: Place) -> None:
        if len(place) > _DEEPEST:
            raise UnpackError(f"{shown(b'/'.join(place))}: more than {_DEEPEST} directories deep")
        self._keep(place, 0)
        self._mkdir(place)
        self._directories.add(place)

    def _mkdir(self, place: Place) -> None:
        os.mkdir(b"/".join(place), 0o755, dir_fd=self._root_fd)

    def _hardlink_source(self, entry: Entry) -> Place:
        names = split(entry.target, absolute=self.absolute_names)
        if not names:
            raise UnpackError(f"{shown(entry.name)}: a hard link to the root")
        source = (*self._resolve(names[:-1], entry.target), names[-1])
        if source in self._directories:
            raise UnpackError(f"{shown(entry.name)}: a hard link to a directory")
        return source

    def _remove(self, place: Place) -> None:
        """Make room: a later entry replaces an earlier one of the same name."""
        if place in self._directories:
            # Fails with ENOTEMPTY when something is in it: no archive in good order does that.
            self._rmdir(place)
            self._directories.discard(place)
            self._times.pop(place, None)
            self._last = None
            return
        self._unlink(place)
        if self._links.pop(place, None) is not None:
            self._last = None

    def _rmdir(self, place: Place) -> None:
        os.rmdir(b"/".join(place), dir_fd=self._root_fd)

    def _unlink(self, place: Place) -> None:
        """Remove a file, if one is there."""
        try:
            os.unlink(b"/".join(place), dir_fd=self._root_fd)
        except FileNotFoundError:
            pass

    def _write(self, place: Place, entry: Entry, stream: TarStream) -> None:
        path = b"/".join(place)
        try:
            fd = os.open(path, _NEW, 0o600, dir_fd=self._root_fd)
        except FileExistsError:
            self._remove(place)
            fd = os.open(path, _NEW, 0o600, dir_fd=self._root_fd)
        try:
            if entry.segments is not None:
                _Pieces(fd, entry.size, entry.segments).fill(stream)
            elif entry.size:

                def write(data: memoryview) -> None:
                    while (written := os.write(fd, data)) < len(data):
                        data = data[written:]

                stream.contents(write)
            if self._keep_owners:
                os.fchown(fd, entry.uid, entry.gid)  # before the mode: it clears setuid bits
            self.dress(fd, entry)
            os.fchmod(fd, self._mode(entry))
            _set_times(fd, entry.mtime)
        finally:
            os.close(fd)

    def _finish(self, place: Place, entry: Entry) -> None:
        """Give a directory its owner and mode now, its time when nothing more is put into it."""
        fd = self._open_directory(place)
        try:
            if self._keep_owners:
                os.fchown(fd, entry.uid, entry.gid)
            self.dress(fd, entry)
            self._set_mode(fd, place, entry.mode if self._keep_owners else entry.mode & 0o1777)
        finally:
            os.close(fd)
        self._times[place] = entry.mtime

    def _set_mode(self, fd: int, place: Place, mode: int) -> None:
        """Give a directory its mode: what closes it to an ordinary user in the end, or never."""
        self._closed.pop(place, None)
        if not self._keep_owners:
            if self.exact_modes and mode & 0o700 != 0o700:
                self._closed[place] = mode
            mode |= 0o700
        if place:
            os.fchmod(fd, mode)
        else:
            self._root_mode = mode  # nobody else is let in before all is done

    def _open_directory(self, place: Place) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(b"/".join(place) or b".", flags, dir_fd=self._root_fd)

    def _own(self, path: bytes, entry: Entry) -> None:
        if self._keep_owners:
            os.chown(path, entry.uid, entry.gid, dir_fd=self._root_fd, follow_symlinks=False)

    def _mode(self, entry: Entry) -> int:
        if self._keep_owners:
            return entry.mode
        return entry.mode & 0o1777


class _Pieces:
    """The contents of a sparse file: each piece in its place, holes between them."""

    def __init__(self, fd: int, size: int, segments: Segments) -> None:
        self._fd = fd
        self._size = size
        self._segments = iter(segments)
        self._at = self._end = 0

    def fill(self, stream: TarStream) -> None:
        os.ftruncate(self._fd, self._size)
        stream.contents(self._put)

    def _put(self, data: memoryview) -> None:
        while data:
            if self._at == self._end:
                # The stream holds as many bytes as the pieces together: see sparse.py.
                self._at, length = next(self._segments)
                self._end = self._at + length
            written = os.pwrite(self._fd, data[: self._end - self._at], self._at)
            self._at += written
            data = data[written:]


def split(path: bytes, *, absolute: bool = False) -> Place:
    """Split an archive's name into its parts; raises for what could lead outside."""
    if b"\0" in path or not path or len(path) > 4096:
        raise UnpackError(f"{shown(path)}: not a possible file name")
    if path.startswith(b"/") and not absolute:
        raise UnpackError(f"{shown(path)}: an absolute name in the archive")
    names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    if b".." in names:
        raise UnpackError(f"{shown(path)}: a name with '..' in the archive")
    return names


def _set_times(fd: int, mtime: int) -> None:
    try:
        os.utime(fd, ns=(mtime, mtime))
    except (OverflowError, OSError):
        pass  # a time that this file system can't keep; the file is right all the same


def _set_path_time(path: bytes, mtime: int, root_fd: int) -> None:
    try:
        os.utime(path, ns=(mtime, mtime), dir_fd=root_fd, follow_symlinks=False)
    except (OverflowError, OSError):
        pass


def shown(name: bytes) -> str:
    """A name for a message: short, quoted, without what a terminal would obey."""
    text = os.fsdecode(name).encode("unicode_escape", "backslashreplace").decode("ascii")
    return repr(text if len(text) <= 120 else text[:117] + "...")
