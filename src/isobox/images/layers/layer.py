"""Unpack a layer of an image as a lower directory of an overlay.

Whiteouts become what overlayfs takes for them (Documentation/filesystems/overlayfs.rst, "whiteouts and
opaque directories"): ``.wh.NAME`` a character device 0:0, ``.wh..wh..opq`` an attribute of its directory.
A layer is unpacked by itself: a link in a layer below is not followed, the directory of this layer takes
its place, as other engines with overlays have it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from typing import Final

from attrs import frozen

from isobox.discard import remove_tree
from isobox.errors import DigestMismatch, SetupError, UnpackError, UnsupportedError

from ..documents.digest import Digest
from ..tar.ahead import Ahead
from ..tar.compression import Readable, decompressed
from ..tar.stream import Entry, TarStream
from .lowers import OPAQUE, Lowers
from .unpacking import MOST_BYTES, MOST_ENTRIES, Place, Unpacking, shown, split

__all__ = ["REFUSED", "Layer", "LayerUnpacked", "collect", "read_layer", "unpack_layer", "work_directory"]

PREFIX: Final = ".layer-"
"""Of directories that are being filled or removed."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT: Final = b".wh."
_HIDES_ALL: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."  # its own files, which old layers have
REFUSED: Final = frozenset(
    {
        errno.E2BIG,
        errno.EACCES,
        errno.EINVAL,
        errno.ENOSPC,  # ext4's answer where a file's attributes don't fit into their block
        errno.ENOTSUP,
        errno.EPERM,
        errno.ERANGE,
    }
)
"""What says that a file can't have an extended attribute here."""


@frozen
class LayerUnpacked:
    """What `unpack_layer` made.

    `diff_id`: of the decompressed bytes. `entries`, and bytes of regular files (`size`). `whiteouts` and
    `opaque` directories. `hides_all`: the root itself is opaque, which overlayfs doesn't look at; the
    layers below are to be left out. Left out were `devices` (nodes) and `attributes` (extended ones).
    """

    diff_id: Digest
    entries: int
    size: int
    whiteouts: int
    opaque: int
    hides_all: bool
    devices: int
    attributes: int


def unpack_layer(
    stream: Readable,
    into: str | os.PathLike[str],
    *,
    keep_owners: bool,
    diff_id: Digest | None = None,
    lowers: Sequence[str | os.PathLike[str]] = (),
    most_bytes: int = MOST_BYTES,
    most_entries: int = MOST_ENTRIES,
) -> LayerUnpacked:
    """Unpack a layer (plain, gzip, zstd or xz), read from `stream` up to its end, as the directory `into`.

    `into` must not exist, its parent must; it appears whole or not at all. Its content is hashed on the
    way and refused with `DigestMismatch` if it isn't that of `diff_id` (None: SHA-256, not compared). Of
    a process that was killed meanwhile a directory stays that `collect` removes. Nothing waits for the
    disk: after a loss of power, files may be empty, unless the caller syncs the file system.

    `keep_owners` (root only): numeric owners, setuid bits and ``security.capability`` as the layer has
    them, so the parent should be closed to other users of the host; otherwise everything belongs to the
    caller, and setuid and setgid bits are dropped. ``user.*`` attributes are kept where the file system
    takes them; all others are left out, overlayfs' own always. `lowers`: the directories of the layers
    below, topmost first; a directory that the layer has files in, but no entry for, gets owner, mode and
    time from there, else root, 0755 and 1970.

    Files of other engines' layers that begin with "/" lie below the root. Device nodes are left out.
    A hard link to a file of a layer below is an `UnpackError`: no file can be in two layers. Raises
    `UnpackError` for all that is damaged or hostile, `UnsupportedError` where the file system can't have
    whiteouts or opaque directories (or nothing reads zstd), `SetupError` when the machine fails.

    >>> import io, tarfile, tempfile
    >>> packed = io.BytesIO()
    >>> with tarfile.open(fileobj=packed, mode="w:gz") as tar:
    ...     tar.addfile(tarfile.TarInfo("etc/.wh.motd"))
    >>> with tempfile.TemporaryDirectory() as place:
    ...     layer = unpack_layer(io.BytesIO(packed.getvalue()), f"{place}/layer", keep_owners=False)
    ...     stat.filemode(os.lstat(f"{place}/layer/etc/motd").st_mode)[0], layer.whiteouts
    ('c', 1)
    """
    into = os.path.abspath(os.fspath(into))
    parent = os.path.dirname(into)
    try:
        work, lock = work_directory(parent)
    except OSError as error:
        raise SetupError(error.errno or errno.EIO, f"make a directory in {parent}", stage="layer") from error
    try:
        layer = Layer(work, keep_owners, most_entries, [os.fspath(path) for path in lowers])
        found = read_layer(stream, layer, diff_id, most_bytes)
        if os.path.lexists(into):
            raise SetupError(errno.EEXIST, f"unpack into {into}", stage="layer")
        os.rename(work, into)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove_tree(work)
        if isinstance(error, OSError) and not isinstance(error, SetupError):
            raise SetupError(error.errno or errno.EIO, f"unpack into {into}", stage="layer") from error
        raise
    finally:
        os.close(lock)
    return found


def read_layer(stream: Readable, layer: Layer, diff_id: Digest | None, most_bytes: int) -> LayerUnpacked:
    """Read a layer up to its end and place what it has; see `unpack_layer`. Raises OSError too.

    A stream that may wait has a `give_up`, which ends that from another thread.
    """
    algorithm = "sha256" if diff_id is None else diff_id.algorithm
    hasher = (diff_id or Digest.of(b"")).hasher()
    give_up = getattr(stream, "give_up", lambda: None)
    with Ahead(decompressed(stream), hasher, give_up) as source:
        made = layer.run(TarStream(source, most_bytes))
    found = Digest(algorithm, hasher.hexdigest())
    if diff_id is not None and found != diff_id:
        raise DigestMismatch("the layer's content (diff_id)", diff_id, found)
    return LayerUnpacked(
        diff_id=found,
        entries=made.entries,
        size=made.size,
        whiteouts=layer.whiteouts,
        opaque=layer.opaque,
        hides_all=layer.hides_all,
        devices=made.devices,
        attributes=layer.left_out,
    )


def work_directory(parent: str) -> tuple[str, int]:
    """Make a directory for `collect` to find, and the descriptor whose lock says that its maker lives."""
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        fd = -1
        try:
            fd = _opened(path)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return path, fd
        except (BlockingIOError, FileNotFoundError):
            pass  # another process collected it before it was locked
        except BaseException:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                os.rmdir(path)
            raise
        if fd >= 0:
            os.close(fd)


def _opened(path: str) -> int:
    try:
        return os.open(path, _DIRECTORY)
    except PermissionError:  # the mode that the layer's root is to have
        os.chmod(path, 0o700)
        return os.open(path, _DIRECTORY)


def collect(parent: str | os.PathLike[str], remove: Callable[[str], object] = remove_tree) -> int:
    """Remove what processes that were killed left unfinished in `parent`; return how many layers.

    Those of living processes stay. What `remove` can't is tried again next time.
    """
    count = 0
    for name in os.listdir(parent):
        if not name.startswith(PREFIX):
            continue
        path = os.path.join(parent, name)
        try:
            fd = _opened(path)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
            count += 1
        except OSError:
            pass  # BlockingIOError: its maker lives
        finally:
            os.close(fd)
    return count


class Layer(Unpacking):
    """An archive whose names may be whiteouts. They speak of layers below only, so their order is nothing."""

    absolute_names = True
    exact_modes = True  # whoever is root in a container may pass all the same

    def __init__(self, root: str, keep_owners: bool, most_entries: int, lowers: Sequence[str]) -> None:
        super().__init__(root, keep_owners, most_entries)
        self._lowers = lowers
        self._whiteouts: set[Place] = set()
        self._opaque: set[Place] = set()
        self.whiteouts = 0
        self.opaque = 0
        self.left_out = 0

    @property
    def hides_all(self) -> bool:
        """Whether nothing of the layers below is to be seen."""
        return () in self._opaque

    def take(self, entry: Entry, stream: TarStream) -> None:
        """Do what one entry says; what a whiteout says is done in the end."""
        if _WHITEOUT not in entry.name or not self._marker(entry):
            super().take(entry, stream)

    def _marker(self, entry: Entry) -> bool:
        """Keep in mind what a whiteout says; False if the entry is none."""
        names = split(entry.name, absolute=True)
        marks = [number for number, name in enumerate(names) if name.startswith(_WHITEOUT)]
        if not marks:
            return False
        name = names[marks[0]]
        if name.startswith(_AUFS) and name != _HIDES_ALL:
            return True
        hidden = name[len(_WHITEOUT) :]
        if marks[0] != len(names) - 1 or hidden in (b"", b".", b".."):
            raise UnpackError(f"{shown(entry.name)}: names that begin with .wh. are for whiteouts alone")
        if entry.kind not in ("file", "hardlink"):  # AUFS had them as links to one file
            raise UnpackError(f"{shown(entry.name)}: a whiteout that is a {entry.kind}")
        parent = self._resolve(names[:-1], entry.name)
        if name == _HIDES_ALL:
            self._opaque.add(parent)
        else:
            self._keep((*parent, hidden), 0)
            self._whiteouts.add((*parent, hidden))
        return True

    def place(self, place: Place, entry: Entry, stream: TarStream) -> None:
        """Make what an entry is."""
        if entry.xattrs and entry.kind not in ("file", "directory"):
            self.left_out += len(entry.xattrs)  # the kernel has none of user.* on these
        super().place(place, entry, stream)

    def dress(self, fd: int, entry: Entry) -> None:
        """Give an open file or directory its extended attributes."""
        for name, value in entry.xattrs.items():
            if self._allowed(name, entry.kind):
                try:
                    os.setxattr(fd, name, value)
                    continue
                except OSError as error:
                    if error.errno not in REFUSED:
                        raise
            self.left_out += 1

    def _allowed(self, name: bytes, kind: str) -> bool:
        if name == b"security.capability":
            return self._keep_owners and kind == "file"
        return name.startswith(b"user.") and not name.startswith(b"user.overlay.")

    def settle(self) -> None:
        """Make whiteouts and opaque directories, and what directories without an entry inherit."""
        for place in self._whiteouts:
            if place in self._directories:
                self._opaque.add(place)  # deleted and made anew
            elif place[:-1] in self._directories and not self._is_there(place):
                self._make_whiteout(place)
        for place in self._opaque & self._directories:
            self._make_opaque(place)
        unsaid = self._directories - self._times.keys()
        if unsaid:
            lowers = Lowers(self._lowers, self._opaque)
            for place in unsaid:
                self._inherit(place, lowers.find(place))

    def _is_there(self, place: Place) -> bool:
        try:
            os.stat(b"/".join(place), dir_fd=self._root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _make_whiteout(self, place: Place) -> None:
        try:
            os.mknod(b"/".join(place), stat.S_IFCHR, 0, dir_fd=self._root_fd)
        except PermissionError as error:
            raise UnsupportedError(
                "whiteouts in layers",
                f"this user may not make them here: {error.strerror}. On an overlay, such as a container's "
                "own disk, nobody may; before Linux 5.8 only root",
                "keep images on a disk of the machine (in a container: on a volume): set ISOBOX_DATA_DIR",
            ) from None
        self.whiteouts += 1

    def _make_opaque(self, place: Place) -> None:
        fd = self._open_directory(place)
        try:
            # Root's layers are for containers of both kinds, an ordinary user's for one.
            for name in OPAQUE if self._keep_owners else OPAQUE[:1]:
                try:
                    os.setxattr(fd, name, b"y")
                except OSError as error:
                    if error.errno == errno.EPERM and name == OPAQUE[1]:
                        continue  # root of a user namespace, where no overlay looks at it
                    if error.errno != errno.ENOTSUP:
                        raise
                    raise UnsupportedError(
                        "opaque directories in layers",
                        f"the file system of the images has no attribute {name}",
                        "keep images on ext4, xfs or btrfs, or on a tmpfs of Linux 6.6 or newer",
                    ) from None
        finally:
            os.close(fd)
        self.opaque += 1

    def _inherit(self, place: Place, below: os.stat_result | None) -> None:
        """Let a directory without an entry of its own be as the one that it covers."""
        mode = 0o755 if below is None else stat.S_IMODE(below.st_mode)
        fd = self._open_directory(place)
        try:
            if self._keep_owners and below is not None:
                os.fchown(fd, below.st_uid, below.st_gid)
            self._set_mode(fd, place, mode)
        finally:
            os.close(fd)
        self._times[place] = 0 if below is None else below.st_mtime_ns

    def _make_directory(self, place: Place) -> None:
        if place[-1].startswith(_WHITEOUT):
            raise UnpackError(
                f"{shown(b'/'.join(place))}: names that begin with .wh. are for whiteouts alone"
            )
        super()._make_directory(place)

    def _link(self, source: Place, place: Place, entry: Entry) -> None:
        try:
            super()._link(source, place, entry)
        except FileNotFoundError:
            raise UnpackError(
                f"{shown(entry.name)}: a hard link to {shown(entry.target)}, which this layer doesn't have"
            ) from None
