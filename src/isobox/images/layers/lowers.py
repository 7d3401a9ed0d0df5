"""The directories of the layers below one, for what a layer doesn't say of its own.

A layer may have ``etc/motd`` without ``etc/``. In an overlay the directory made for it is on top, and would
have the wrong owner and mode.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence

from .unpacking import Place

__all__ = ["OPAQUE", "Lowers", "is_opaque"]

OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")
"""Of a directory that hides those below: in a container with a user namespace of its own, and in others."""


class Lowers:
    """The lower directories of a layer, topmost first; they don't change.

    `cut`: directories of the layer that hide what lies below them.
    """

    def __init__(self, paths: Sequence[str], cut: Collection[Place]) -> None:
        self._known: dict[Place, tuple[tuple[bytes, os.stat_result], ...]] = {}
        self._cut = cut
        tops: list[tuple[bytes, os.stat_result]] = []
        for path in () if () in cut else map(os.fsencode, paths):
            tops.append((path, os.stat(path)))
            if is_opaque(path):
                break
        self._known[()] = tuple(tops)

    def find(self, place: Place) -> os.stat_result | None:
        """The directory that is seen there through the layers below; None if there is none."""
        found = self._seen(place)
        return found[0][1] if found else None

    def merged(self, place: Place) -> tuple[tuple[bytes, os.stat_result], ...]:
        """The directories that make up the one seen there, by their paths on this host, topmost first."""
        return self._seen(place)

    def _seen(self, place: Place) -> tuple[tuple[bytes, os.stat_result], ...]:
        """The directories that are merged there, by their path on this host."""
        found = self._known.get(place)
        if found is None:
            found = () if place in self._cut else self._merged(place)
            self._known[place] = found
        return found

    def _merged(self, place: Place) -> tuple[tuple[bytes, os.stat_result], ...]:
        merged: list[tuple[bytes, os.stat_result]] = []
        for above, _ in self._seen(place[:-1]):
            path = above + b"/" + place[-1]
            try:
                status = os.stat(path, follow_symlinks=False)
            except (FileNotFoundError, PermissionError):
                continue  # an ordinary user's layers may be closed to that user too
            if not stat.S_ISDIR(status.st_mode):
                break  # a whiteout or a file hides the layers under it
            merged.append((path, status))
            if is_opaque(path):
                break
        return tuple(merged)


def is_opaque(path: bytes) -> bool:
    """Whether a directory hides those below, as an overlay sees it."""
    for name in OPAQUE:
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            pass
    return False
