"""What a container changed in its root file system, read from the writable layers of its trees."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol

from attrs import frozen

from isobox.errors import IsoboxError, SetupError

from .layers import Begun, Directory, Layer, Tree, components

__all__ = ["Change", "changes"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 128
_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")


Kind = Literal["added", "modified", "deleted"]


@frozen
class Change:
    """One path that is not as the image has it; kind "added", "modified" or "deleted"."""

    kind: Kind
    path: str


class Inside(Protocol):
    """The part of `isobox.files.Inside` that is needed here."""

    def open(self, path: str, flags: int, mode: int = 0o666, *, base: int = 0) -> int:
        """Open as the container's root; `base` n + 1 is the upper directory of tree n."""


def changes(
    inside: Inside,
    trees: Sequence[Tree],
    skeleton: Iterable[Directory],
    mount_points: Iterable[str] = (),
    *,
    own: Iterable[str] = (),
    begun: Sequence[Begun] = (),
    look: Look | None = None,
    most: int = 1_000_000,
) -> list[Change]:
    """List what was added, modified and deleted, sorted by path.

    A directory is "modified" when its own mode or owner changed, or when it was replaced by a new
    one; not because something in it changed. What isobox itself made there (`skeleton`, the mount
    points of `trees`, `mount_points`, which also has links and files that it made, and the
    directories that lead to all these) is left out, what programs put into it is not. A file counts
    as modified as soon as it was opened for writing, since the kernel then copies it. `own` are files and
    directories that are never listed, whatever becomes of them and of what is in them. Below 128
    directories in each other, only the topmost is listed. With `begun` it is the changes since then. `look`
    is asked for what is closed to this user in the layers; without it, that is not there.

    The container may run on: what vanishes meanwhile is not listed. Raises `SetupError` when there
    are more than `most`, and when something could not be looked at.
    """
    made = {components(directory.path) for directory in skeleton}
    made.update(components(path) for path in mount_points)
    never = {components(path) for path in own}
    made |= never
    made.update(components(tree.target) for tree in trees)
    leading = {path[:length] for path in made for length in range(len(path) + 1)}
    found: list[Change] = []
    for number, tree in enumerate(trees):
        if tree.kind != "overlay":
            continue
        try:
            for change in _Walk(inside, number + 1, tree, made, leading, never, begun, look).run():
                found.append(change)
                if len(found) > most:
                    raise SetupError(errno.E2BIG, f"more than {most} changes", stage="changes")
        except IsoboxError:
            raise
        except OSError as error:
            place = error.filename if isinstance(error.filename, str) else "a directory"
            raise SetupError(error.errno or errno.EIO, f"can't look at {place}", stage="changes") from error
    return sorted(found, key=lambda change: components(change.path))


Look = Callable[[str], tuple[os.stat_result, bool, list[str]] | None]
"""Looks at a path of a layer that is closed to this user: `isobox.images.layers.mapped.Mapped.look`."""


@frozen
class _Lower:
    """A directory of one lower layer; `shift` is added to its owners to get those inside.

    `fd`: -1 where this user may not open it; then `look`, if there is one, is asked for what is at `path` and
    below. `over`: it lies over what the tree hides.
    """

    fd: int
    path: str
    shift: int
    over: bool = False
    look: Look | None = None

    def stat(self, name: str) -> os.stat_result | None:
        """What it has of that name; None for nothing."""
        try:
            if self.fd >= 0:
                return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except PermissionError:
            pass
        seen = self.look(f"{self.path}/{name}") if self.look is not None else None
        return None if seen is None else seen[0]

    def child(self, name: str) -> _Lower:
        """The directory of that name, to be closed."""
        fd = -1
        if self.fd >= 0:
            with contextlib.suppress(PermissionError):
                fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
        return _Lower(fd, f"{self.path}/{name}", self.shift, self.over, self.look)

    def is_opaque(self) -> bool:
        """Whether those below are hidden."""
        if self.fd >= 0:
            return _is_opaque(self.fd)
        seen = self.look(self.path) if self.look is not None else None
        return seen is not None and seen[1]

    def names(self) -> list[str]:
        """All that it has."""
        if self.fd >= 0:
            return os.listdir(self.fd)
        seen = self.look(self.path) if self.look is not None else None
        return [] if seen is None else seen[2]

    def close(self) -> None:
        """Once."""
        if self.fd >= 0:
            os.close(self.fd)


class _Walk:
    """The upper directory of one tree against its lower layers.

    Both sides are walked together, name by name below open directories and never through a link,
    so a path of the container is never looked up as a path of the host.
    """

    def __init__(
        self,
        inside: Inside,
        base: int,
        tree: Tree,
        made: set[tuple[str, ...]],
        leading: set[tuple[str, ...]],
        never: set[tuple[str, ...]],
        begun: Sequence[Begun],
        look: Look | None,
    ) -> None:
        self._look = look
        self._never = never
        self._holding = {path[:-1] for path in never}  # like the directories below, when they were made
        self._begun = begun
        self._inside = inside
        self._base = base
        self._layers = tree.layers
        self._target = components(tree.target)
        self._hidden = {components(hidden) for hidden in tree.hidden}
        self._made = made
        self._leading = leading

    def run(self) -> Iterator[Change]:
        """Yield every change of the tree."""
        upper = self._inside.open(".", _DIRECTORY, 0, base=self._base)
        lowers: list[_Lower] = []
        try:
            owner = os.fstat(upper).st_uid  # the container's root, as this process sees it
            for begun in self._begun:
                fd = _open_begun(begun, self._base - 1)
                place = f"/proc/{os.getpid()}/fd/{fd}"
                lowers.append(_Lower(fd, place, owner - begun.root, over=True, look=self._look))
            for layer in self._layers:
                shift = owner if layer.idmap else 0
                lowers.append(_Lower(_open_layer(layer), layer.path, shift, look=self._look))
            yield from self._directory((), upper, lowers, fresh=False)
        finally:
            os.close(upper)
            for lower in lowers:
                lower.close()

    def _directory(
        self, place: tuple[str, ...], upper: int, lowers: Sequence[_Lower], *, fresh: bool
    ) -> Iterator[Change]:
        """`fresh`: nothing of the lower directories is to be seen in this one."""
        names = sorted(os.listdir(upper))
        for name in names:
            yield from self._entry((*place, name), name, upper, lowers, fresh=fresh)
        if fresh:
            gone = {name for lower in lowers for name in lower.names()} - set(names)
            for name in gone:
                if (*place, name) in self._hidden or (*self._target, *place, name) in self._never:
                    continue
                if _stats(name, lowers):  # else one layer has deleted it from another
                    yield self._change((*place, name), "deleted")

    def _entry(
        self, place: tuple[str, ...], name: str, upper: int, lowers: Sequence[_Lower], *, fresh: bool
    ) -> Iterator[Change]:
        if (*self._target, *place) in self._never:
            return
        try:
            status = self._stat(place, name, upper)
        except OSError as error:
            _gone(error)
            return
        hidden = place in self._hidden
        below = _stats(name, [lower for lower in lowers if lower.over] if hidden else lowers)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            if below:
                yield self._change(place, "deleted")
            return
        if not stat.S_ISDIR(status.st_mode):
            if below:
                yield self._change(place, "modified")
            elif (*self._target, *place) not in self._made:
                yield self._change(place, "added")
            return
        if len(place) > _DEEPEST:
            if not below:
                yield self._change(place, "added")
            return
        try:
            fd = self._open_directory(place, name, upper)
        except OSError as error:
            _gone(error)
            return
        opened: list[_Lower] = []
        try:
            merged = bool(below) and stat.S_ISDIR(below[0][1].st_mode)
            replaced = fresh or not merged or _is_opaque(fd)
            whole = (*self._target, *place)
            if whole not in self._leading:
                if not below:
                    yield self._change(place, "added")
                elif replaced or _differ(status, below[0]):
                    yield self._change(place, "modified")
            elif whole in self._holding and below and (replaced or _modes_differ(status, below[0][1])):
                yield self._change(place, "modified")
            for lower, lower_status in below:
                if not stat.S_ISDIR(lower_status.st_mode):
                    break  # hides the layers under it
                opened.append(lower.child(name))
                if opened[-1].is_opaque():
                    break
            yield from self._directory(place, fd, opened, fresh=replaced)
        finally:
            os.close(fd)
            for lower in opened:
                lower.close()

    def _stat(self, place: tuple[str, ...], name: str, upper: int) -> os.stat_result:
        try:
            return os.stat(name, dir_fd=upper, follow_symlinks=False)
        except PermissionError:  # in a directory of another user in the container: only its root may
            fd = self._inside.open(
                "/".join(place), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, base=self._base
            )
            try:
                return os.fstat(fd)
            finally:
                os.close(fd)

    def _open_directory(self, place: tuple[str, ...], name: str, upper: int) -> int:
        try:
            return os.open(name, _DIRECTORY, dir_fd=upper)
        except PermissionError:
            return self._inside.open("/".join(place), _DIRECTORY, 0, base=self._base)

    def _change(self, place: tuple[str, ...], kind: Kind) -> Change:
        return Change(kind, "/" + "/".join((*self._target, *place)))


def _gone(error: OSError) -> None:
    """Return if this says that it vanished, or was replaced, after it was listed; else raise it."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        raise error


def _open_layer(layer: Layer) -> int:
    try:
        return os.open(layer.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return -1


def _open_begun(begun: Begun, number: int) -> int:
    path = f"{begun.path}/{number}" if begun.fd is None else str(number)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=begun.fd)


def _stats(name: str, lowers: Sequence[_Lower]) -> list[tuple[_Lower, os.stat_result]]:
    """The entries of this name in the lower layers, topmost first, down to a whiteout."""
    found: list[tuple[_Lower, os.stat_result]] = []
    for lower in lowers:
        status = lower.stat(name)
        if status is None:
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            break
        found.append((lower, status))
    return found


def _differ(upper: os.stat_result, below: tuple[_Lower, os.stat_result]) -> bool:
    lower, status = below
    return (
        _modes_differ(upper, status)
        or upper.st_uid != status.st_uid + lower.shift
        or upper.st_gid != status.st_gid + lower.shift
    )


def _modes_differ(one: os.stat_result, other: os.stat_result) -> bool:
    return stat.S_IMODE(one.st_mode) != stat.S_IMODE(other.st_mode)


def _is_opaque(fd: int) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(fd, name) == b"y":
                return True
        except OSError:
            pass
    return False
