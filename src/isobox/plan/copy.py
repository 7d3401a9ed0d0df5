"""The plan of a snapshot: an isobox-init beside the container copies what that has written.

It is root of the container's user namespace, since nobody else may read and give away all of its files; but
it is in none of the container's cgroups, so that the copy counts as the caller's memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from .ops import ATTR_NODEV, CLONE_NEWNS, CLONE_NEWUSER, HOST_PATH, MS_REC_PRIVATE, OPEN_TREE_CLONE, Op, make

RLIMIT_NOFILE: Final = 7  # include/uapi/asm-generic/resource.h


@frozen
class Copying:
    """What the plan is made from; `userns`, `uppers` and `target` are places in the table of descriptors.

    `uppers`: the upper directory of each tree, by its number. `target`: where they go, None for a new tmpfs
    of `size` bytes and `files` inodes. `most_open`: how many descriptors it may have. `held`: a directory of
    this machine, on which the tmpfs becomes the root of a mount namespace of the init's own. So copies of it
    can be made, by that init, while it runs: of mounts that are attached nowhere they can since Linux 6.15.
    """

    uppers: Mapping[int, int]
    userns: int | None
    groups_allowed: bool
    target: int | None
    size: int
    files: int
    most_open: int
    held: str | None = None


def copy_plan(copying: Copying) -> list[Op]:
    """Return the ops."""
    most = copying.most_open
    ops = [make("RLIMIT", RLIMIT_NOFILE, most, most, note="two descriptors for each directory on the way")]
    if copying.userns is not None:
        ops.append(make("SETNS", copying.userns, CLONE_NEWUSER, note="the container's user namespace"))
        ops.append(make("IDS", 0, 0, note="its root"))
        if copying.groups_allowed:
            ops.append(make("GROUPS", 0, strings=(b"",), note="none"))
    if copying.userns is not None or copying.held is not None:
        ops.append(make("UNSHARE", CLONE_NEWNS, note="where it may mount"))
    ops.append(make("DUMPABLE", 0))
    ops.append(make("UMASK", 0))
    ops += _target(copying)
    for number, place in copying.uppers.items():
        ops.append(make("COPY", place, strings=(b"%d" % number,), note="what the container has written"))
    ops.append(make("KEEP", note="the copy is whole"))
    return ops


def _target(copying: Copying) -> Sequence[Op]:
    if copying.target is not None:
        return [make("TAKE_TREE", copying.target, note="the snapshot on disk")]
    place = b"" if copying.held is None else copying.held.encode("utf-8", "surrogateescape")
    options = {"size": copying.size, "nr_inodes": copying.files, "mode": "0755"}
    return [
        make("FSOPEN", strings=(b"tmpfs",)),
        *(make("FSCONFIG_STRING", strings=(k.encode(), str(v).encode())) for k, v in options.items()),
        make("FSMOUNT", ATTR_NODEV, note="tmpfs"),
        *(_attached(place) if place else ()),
    ]


def _attached(place: bytes) -> Sequence[Op]:
    return [
        make("PROPAGATION", MS_REC_PRIVATE, note="private, recursively"),
        make("ATTACH", HOST_PATH, strings=(place,), note="tmpfs"),
        make("ROOT", strings=(place,)),
        make("PIVOT", note="it holds nothing but the copy"),
    ]


def held_plan() -> list[Op]:
    """Return the ops by which an init that holds a copy hands out a mount of it."""
    return [make("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(b"/",)), make("KEEP", note="the snapshot")]
