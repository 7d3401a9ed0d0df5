"""What this process made of an image lately, kept so that the next container of it looks at nothing again.

As long as it is kept, so are the image's layers on disk, as those of a running container are. Nothing stays
for `IDLE_SECONDS` without anybody who uses it, and at most `MOST` images do.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Hashable
from typing import Final, Generic, Protocol, TypeAlias, TypeVar
from weakref import WeakSet

from attrs import define, field

__all__ = ["IDLE_SECONDS", "MOST", "Kept", "Stamp", "stamp"]

MOST: Final = 8
IDLE_SECONDS: Final = 5.0

Stamp: TypeAlias = tuple[int, int, int, int, int]


class Usable(Protocol):
    """An image for one user. What it holds is let go of when all that share it are closed."""

    @property
    def closed(self) -> bool:
        """Whether this user is done."""

    def close(self) -> None:
        """Be done; idempotent."""


Image = TypeVar("Image", bound=Usable)


def stamp(path: str) -> Stamp | None:
    """What tells this file from every other and from itself after a change; None where there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


@define(eq=False)
class _Entry(Generic[Image]):
    stamp: Stamp
    image: Image
    used: float
    users: WeakSet[Image] = field(factory=WeakSet)


class Kept(Generic[Image]):
    """The images by what they were asked for. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry[Image]] = {}

    def find(self, key: Hashable, now: Stamp | None) -> Image | None:
        """What is kept, and is not to be closed; None where the file has another stamp by now."""
        entry = self._entries.get(key)
        return entry.image if entry is not None and entry.stamp == now else None

    def peek(self, key: Hashable) -> Image | None:
        """The same whatever the stamp: it may still be right."""
        entry = self._entries.get(key)
        return None if entry is None else entry.image

    def put(self, key: Hashable, now: Stamp, image: Image) -> None:
        """Keep it, which is the caller's no more, in the place of what was there."""
        with self._lock:
            gone = [self._entries.pop(key, None)]
            if len(self._entries) >= MOST:
                oldest = min(self._entries, key=lambda other: self._entries[other].used)
                gone.append(self._entries.pop(oldest))
            self._entries[key] = _Entry(now, image, time.monotonic())
        for entry in gone:
            if entry is not None and entry.image is not image:
                entry.image.close()

    def used(self, key: Hashable, user: Image) -> None:
        """Keep it at least until this user is closed."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.used = time.monotonic()
            with self._lock:
                entry.users.add(user)

    def expire(self) -> float | None:
        """Let go of what nobody has used for a while.

        Returns the seconds after which to call it again; None when nothing is kept.
        """
        now = time.monotonic()
        gone: list[_Entry[Image]] = []
        with self._lock:
            for key, entry in list(self._entries.items()):
                if any(not user.closed for user in entry.users):
                    entry.used = now
                elif entry.used + IDLE_SECONDS <= now:
                    gone.append(self._entries.pop(key))
            left = bool(self._entries)
        for entry in gone:
            entry.image.close()
        return IDLE_SECONDS / 2 if left else None

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            gone, self._entries = self._entries, {}
        for entry in gone.values():
            entry.image.close()

    def forget(self) -> None:
        """In a forked child: the images are the parent's; only the descriptors are closed here."""
        self._lock = threading.Lock()
        self.clear()
