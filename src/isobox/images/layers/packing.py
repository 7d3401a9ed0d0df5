"""Write directories as a tar archive, the layer of an image: equal content gives equal bytes.

Names are sorted, owners are numbers as the container sees them, modes and times to the nanosecond are as
they are read. Of names that are links to one file, the first is the file. Kept of the extended attributes
are ``security.capability`` and ``user.*``, but for overlayfs' own; sockets are left out.

Somebody may change all this meanwhile. Everything is opened below open directories and never through a
link; what vanishes is left out, and a file whose size changes is cut or filled with zeros: the archive is
well-formed whatever happens.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, TypeAlias

from attrs import field, frozen

from isobox.errors import ImageError

from ..tar.writer import BLOCK, END, Kind, Member, header
from .attributes import Owners, attribute_names, attributes
from .unpacking import MOST_BYTES, MOST_ENTRIES, Place

__all__ = ["Found", "Packing", "Reopen", "Write"]

Reopen: TypeAlias = Callable[[bytes, int], int]
"""Opens a path below the root with these flags as the container's root, where this user may not."""
Write: TypeAlias = Callable[[bytes | memoryview], object]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NAME: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ESTALE})
_PIECE: Final = 1 << 18
_ZEROS: Final = bytes(_PIECE)
_DEEPEST: Final = 256  # as unpacking.py takes them, and so are the next
_LONGEST: Final = 4096


@frozen
class Found:
    """A name that is being packed: where it is, and in which open directory."""

    place: Place
    parent: int
    status: os.stat_result = field(repr=False)

    @property
    def path(self) -> bytes:
        """Its name in the archive."""
        return b"/".join(self.place)


class Packing:
    """One tree on its way into an archive: all that is in it, as it is.

    `write` takes the bytes. `reopen`: see `Reopen`. `mounts`: the mount points, whose content is left
    out; None: what lies on another file system is left out, and its mount point is an empty directory.
    `emptied`: directories that are as they are, but without content.
    `newest`: a time in nanoseconds that stands for all later ones. `layer`: for an image, so that names
    that would say something else there are refused. Past `most_bytes` and `most_entries` it is an error.
    """

    def __init__(
        self,
        write: Write,
        owners: Owners,
        *,
        reopen: Reopen | None = None,
        mounts: Collection[Place] | None = None,
        emptied: Collection[Place] = (),
        newest: int | None = None,
        layer: bool = True,
        most_bytes: int = MOST_BYTES,
        most_entries: int = MOST_ENTRIES,
    ) -> None:
        self.owners = owners
        self._write = write
        self._reopen = reopen
        self._mounts = mounts
        self._emptied = emptied
        self._newest = newest
        self._layer = layer
        self._left = most_bytes
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._entries = 0
        self._links: dict[tuple[int, int], bytes] = {}
        self._device = 0
        # Directories that are written with the first that is written in them, or not at all.
        self._pending: list[Member] = []
        self._buffer = memoryview(bytearray(_PIECE))

    def run(self, root: int) -> None:
        """Pack the directory that `root` is open on. Raises `ImageError`, and what `write` raises."""
        status = os.fstat(root)
        self._device = status.st_dev
        self._tree((), root, status)
        self._write(END)

    # What subclasses say

    def begin(self, place: Place, member: Member, attributes: Collection[bytes]) -> None:
        """Begin a directory; `attributes` are the names of all that it has."""
        self.put(member)

    def special(self, found: Found) -> bool:
        """Whether this was something that is no content, and has been taken care of."""
        # A whiteout in the lowest layer: containers don't see it either.
        return self._layer and stat.S_ISCHR(found.status.st_mode) and found.status.st_rdev == 0

    # Walking

    def _tree(self, place: Place, fd: int, status: os.stat_result) -> None:
        if len(place) > _DEEPEST:
            raise ImageError(f"{_shown(place)}: more than {_DEEPEST} directories deep: no image can have it")
        with self._reading(place):
            known = attribute_names(fd)
            values = attributes(fd, known, self.owners)
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
        pending = len(self._pending)
        self.begin(place, self._member(place or (b".",), "directory", status, xattrs=values), known)
        for name in names:
            self._entry((*place, name), fd)
        del self._pending[pending:]

    def _entry(self, place: Place, parent: int) -> None:
        with contextlib.suppress(_Gone):
            with self._reading(place):
                status = self._stat(place, parent)
            found = Found(place, parent, status)
            if self._mounts is not None and place in self._mounts:
                self._mount_point(found)
            elif self.special(found):
                pass
            elif stat.S_ISDIR(status.st_mode):
                self._directory(found)
            elif stat.S_ISREG(status.st_mode):
                self._file(found)
            elif not stat.S_ISSOCK(status.st_mode):
                self._other(found)

    def _mount_point(self, found: Found) -> None:
        kind: Kind = "directory" if stat.S_ISDIR(found.status.st_mode) else "file"
        mode = 0o755 if kind == "directory" else 0o644
        self.put(Member(found.path, kind, mode))

    def _directory(self, found: Found) -> None:
        elsewhere = self._mounts is None and found.status.st_dev != self._device
        if elsewhere or found.place in self._emptied:
            self.put(self._member(found.place, "directory", found.status))
            return
        with self._opened(found, _DIRECTORY) as fd:
            self._tree(found.place, fd, os.fstat(fd))

    def _file(self, found: Found) -> None:
        with self._opened(found, _FILE) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _Gone
            if self._linked(found, status):
                return
            with self._reading(found.place):
                values = attributes(fd, attribute_names(fd), self.owners)
            size = status.st_size
            self.put(self._member(found.place, "file", status, size=size, xattrs=values))
            self._count(found.place, size + -size % BLOCK)
            self._contents(found.place, fd, size)

    def _contents(self, place: Place, fd: int, size: int) -> None:
        left = size
        while left:
            with self._reading(place, began=True):
                count = os.readv(fd, [self._buffer[:left]])
            if not count:
                break
            self._write(self._buffer[:count])
            left -= count
        left += -size % BLOCK
        while left:
            count = min(left, _PIECE)
            self._write(_ZEROS[:count])
            left -= count

    def _other(self, found: Found) -> None:
        status = found.status
        if self._linked(found, status):
            return
        if stat.S_ISLNK(status.st_mode):
            with self._reading(found.place):
                target = os.fsencode(self._readlink(found))
            self.put(self._member(found.place, "symlink", status, target=target))
        elif stat.S_ISFIFO(status.st_mode):
            self.put(self._member(found.place, "fifo", status))
        else:
            device = os.major(status.st_rdev), os.minor(status.st_rdev)
            kind: Kind = "char" if stat.S_ISCHR(status.st_mode) else "block"
            self.put(self._member(found.place, kind, status, device=device))

    def _linked(self, found: Found, status: os.stat_result) -> bool:
        """Put a link if the file is there already under another name."""
        if status.st_nlink < 2:
            return False
        first = self._links.setdefault((status.st_dev, status.st_ino), found.path)
        if first == found.path:
            return False
        self.put(self._member(found.place, "hardlink", status, target=first))
        return True

    # Reading

    def _stat(self, place: Place, parent: int) -> os.stat_result:
        try:
            return os.stat(place[-1], dir_fd=parent, follow_symlinks=False)
        except PermissionError:  # in a directory of another user of the container
            if self._reopen is None:
                raise
            fd = self._reopen(b"/".join(place), _NAME)
            try:
                return os.fstat(fd)
            finally:
                os.close(fd)

    def _readlink(self, found: Found) -> str | bytes:
        try:
            return os.readlink(found.place[-1], dir_fd=found.parent)
        except PermissionError:
            if self._reopen is None:
                raise
            fd = self._reopen(found.path, _NAME)
            try:
                return os.readlink("", dir_fd=fd)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def _opened(self, found: Found, flags: int) -> Iterator[int]:
        with self._reading(found.place):
            try:
                fd = os.open(found.place[-1], flags, dir_fd=found.parent)
            except PermissionError:
                if self._reopen is None:
                    raise
                fd = self._reopen(found.path, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _reading(self, place: Place, *, began: bool = False) -> Iterator[None]:
        """What the system says of reading becomes an ImageError, or _Gone where it isn't there any more.

        `began`: its header is written.
        """
        try:
            yield
        except OSError as error:
            if error.errno in _GONE and place and not began:
                raise _Gone from None
            raise ImageError(f"can't read {_shown(place)}: {error.strerror}") from error

    # Writing

    def _member(
        self,
        place: Place,
        kind: Kind,
        status: os.stat_result,
        *,
        size: int = 0,
        target: bytes = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[bytes, bytes] | None = None,
    ) -> Member:
        mtime = status.st_mtime_ns
        return Member(
            b"/".join(place),
            kind,
            stat.S_IMODE(status.st_mode),
            self.owners.uid(status.st_uid),
            self.owners.gid(status.st_gid),
            mtime if self._newest is None else min(mtime, self._newest),
            size,
            target,
            device,
            xattrs or {},
        )

    def put(self, member: Member) -> None:
        """Write an entry, and the directories that waited for one in them."""
        pending, self._pending = self._pending, []
        for above in pending:
            self._put(above)
        self._put(member)

    def later(self, member: Member) -> None:
        """Write a directory as soon as something in it is written."""
        self._pending.append(member)

    def _put(self, member: Member) -> None:
        name = member.name
        marks = name.rpartition(b"/")[2].startswith(b".wh.")
        if marks and self._layer and not self.is_marker(member):
            raise ImageError(
                f"{_shown((name,))}: a name that begins with .wh. would say in a layer that something is "
                "deleted: rename or remove it"
            )
        if len(name) > _LONGEST:
            raise ImageError(f"{_shown((name,))}: a path of {len(name)} bytes: no image can have it")
        self._entries += 1
        if self._entries > self._most_entries:
            raise ImageError(f"more than {self._most_entries} files: no image can have them")
        data = header(member)
        self._count((name,), len(data))
        self._write(data)

    def is_marker(self, member: Member) -> bool:
        """Whether this says of a layer what is deleted."""
        return False

    def _count(self, place: Place, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ImageError(
                f"{_shown(place)}: with it there are more than {self._most_bytes} bytes: no image can have "
                "them. Leave out what is large, or keep it in a volume"
            )


class _Gone(Exception):
    """It vanished, or became something else, after it was listed."""


def _shown(place: Place) -> str:
    text = os.fsdecode(b"/".join(place))
    return f"/{text[:200]}"
