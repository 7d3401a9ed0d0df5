"""The ops that cover what a container is not to see of /proc and /sys, or not to write."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Final

from ..security.paths import Covers
from .ops import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, HOST_PATH, OPEN_TREE_CLONE, Op, make

READ_ONLY: Final = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC


def cover_ops(covers: Covers, below: int, empty: str | None = None, within: str = "/") -> Iterator[Op]:
    """Yield the ops for what lies `within` a directory.

    `below`: where the paths are, as in ATTACH. `empty`: the host path of a directory that stays empty, to
    cover directories with; without one each gets a tmpfs of its own. Files get /dev/null, by its host path:
    in what is mounted at /dev inside nothing can be put in its place.
    """
    for path in covers.read_only:
        if _lies(path, within):
            yield make("OPEN_TREE", OPEN_TREE_CLONE, below, strings=(path.encode(),))
            yield from _attach(path, below, READ_ONLY)
    for path, is_directory in covers.masked:
        if not _lies(path, within):
            continue
        if not is_directory:
            yield make("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(b"/dev/null",))
            yield from _attach(path, below)
        elif empty is not None:
            yield make("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(empty.encode(),))
            yield from _attach(path, below, READ_ONLY)
        else:
            yield make("FSOPEN", strings=(b"tmpfs",))
            yield make("FSCONFIG_STRING", strings=(b"mode", b"0555"))
            yield make("FSMOUNT", READ_ONLY, note="tmpfs")
            yield from _attach(path, below)


def _lies(path: str, within: str) -> bool:
    return posixpath.commonpath([path, within]) == within


def _attach(path: str, below: int, attributes: int = 0) -> Iterator[Op]:
    yield make("ATTACH", below, strings=(path.encode(),), note="" if attributes else "masked")
    if attributes:
        yield make("SETATTR", attributes, 0, note="read-only")
