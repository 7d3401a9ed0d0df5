"""Write what a container changed as a layer: the upper directory of its overlay.

What overlayfs has for whiteouts and opaque directories (Documentation/filesystems/overlayfs.rst) becomes
the layer's own (image-spec, layer.md, "Whiteouts").
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from typing import Any, Final

from attrs import frozen

from ..tar.writer import Member
from .attributes import OVERFLOW, Owners
from .lowers import OPAQUE
from .packing import Found, Packing, Write
from .unpacking import Place

__all__ = ["Below", "UpperPacking"]

_HIDES_ALL: Final = b".wh..wh..opq"
_WHITEOUT: Final = b".wh."


@frozen
class Seen:
    """What the layers below have at a place; `status` is None where this user may not look."""

    status: os.stat_result | None
    owners: Owners


class Below:
    """The lower directories under an upper one, topmost first, and the owners in each; they don't change."""

    def __init__(self, layers: Sequence[tuple[str, Owners]]) -> None:
        self._layers = [(os.fsencode(path), owners) for path, owners in layers]

    def find(self, place: Place) -> Seen | None:
        """What is to be seen there through the layers below; None if nothing is."""
        for path, owners in self._layers:
            try:
                found, last = _look(path, place)
            except PermissionError:
                return Seen(None, owners)
            if found is not None:
                return Seen(found, owners)
            if last:
                return None
        return None

    def as_it_was(self, place: Place, member: Member, *, owners: bool) -> bool | None:
        """Whether a directory has the mode and owners of the one below; None where none is.

        Without `owners`, any will do where those below have no id here.
        """
        seen = self.find(place)
        if seen is None:
            return None
        if seen.status is None or not stat.S_ISDIR(seen.status.st_mode):
            return False
        if stat.S_IMODE(seen.status.st_mode) != member.mode:
            return False
        found = seen.owners.uid(seen.status.st_uid), seen.owners.gid(seen.status.st_gid)
        return found == (member.uid, member.gid) or (not owners and OVERFLOW in found)


def _look(layer: bytes, place: Place) -> tuple[os.stat_result | None, bool]:
    """What one layer has at a place, and whether nothing is to be seen there of those under it."""
    path = layer
    last = False
    for number, name in enumerate(place):
        path += b"/" + name
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None, last
        if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            return None, True
        if number == len(place) - 1:
            return status, True
        if not stat.S_ISDIR(status.st_mode):
            return None, True
        last = last or any(name in OPAQUE for name in os.listxattr(path, follow_symlinks=False))
    return None, last


class UpperPacking(Packing):
    """An upper directory on its way into a layer.

    `opaque` is the attribute of directories that hide what is below them. `made`: what isobox put there,
    which is left out unless the layers below have it, or programs put something into it; and what is
    on the way to it, unless that was changed. `own`: files that are left out, whatever became of them.
    `root`: mode, user and group that the root directory had.
    """

    def __init__(
        self,
        write: Write,
        owners: Owners,
        below: Below,
        *,
        opaque: bytes,
        made: Collection[Place],
        own: Collection[Place] = (),
        root: tuple[int, int, int],
        **options: Any,
    ) -> None:
        super().__init__(write, owners, **options)
        self._below = below
        self._opaque = opaque
        self._made = frozenset(made)
        self._own = frozenset(own)
        self._holding = {place[:-1] for place in own}  # whose owner isobox may not have kept
        self._leading = {place[:length] for place in (*made, *own) for length in range(len(place) + 1)}
        self._root = root

    def begin(self, place: Place, member: Member, attributes: Collection[bytes]) -> None:
        """Write it unless isobox alone was there, and say if it hides what is below."""
        if not place:
            if (member.mode, member.uid, member.gid) != self._root:
                self.put(member)
            return
        # Programs can't have set it in there, and whether it is "y" others may not see.
        opaque = self._opaque in attributes and self._below.find(place) is not None
        if place in self._leading and not opaque:
            owners = place not in self._holding
            if self._below.as_it_was(place, member, owners=owners) in (None, True):
                self.later(member)
                return
        self.put(member)
        if opaque:
            self.put(_marker(b"/".join((*place, _HIDES_ALL))))

    def special(self, found: Found) -> bool:
        """Whiteouts, and files that isobox made."""
        status = found.status
        if found.place in self._own:
            return True
        if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            self.put(_marker(b"/".join((*found.place[:-1], _WHITEOUT + found.place[-1]))))
            return True
        if stat.S_ISDIR(status.st_mode) or found.place not in self._made:
            return False
        return self._below.find(found.place) is None

    def is_marker(self, member: Member) -> bool:
        """Whether it is one of those that are written here."""
        return isinstance(member, _Marker)


@frozen
class _Marker(Member):
    """Says of a layer what is deleted."""


def _marker(name: bytes) -> Member:
    return _Marker(name, "file")
