"""The directories of one group, in every hierarchy that it is in."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable
from typing import Final

from ..errors import CgroupError
from .dialect import Dialect
from .directory import JOIN, Directory, Tree
from .ending import remove_all
from .v1 import V1, inherit_cpuset
from .v2 import V2

LEAF: Final = "init"
"""On v2 the group below a container's that holds its init: one with groups below holds nobody."""

MEASURED: Final = ("memory", "cpuacct", "pids", "blkio")
"""What an exec's group counts."""

DIALECTS: Final[dict[int, Dialect]] = {1: V1, 2: V2}

_FILES: Final[dict[tuple[str, ...], tuple[str, ...]]] = {}
"""The limits' files of hierarchies with these controllers."""

_HINTS: Final = {
    errno.ENOSPC: "The kernel's limit of groups is reached (cgroup.max.descendants, or 65,535 memory groups)",
    errno.EAGAIN: "The limit cgroup.max.descendants of a group above is reached",
    errno.ENOMEM: "The kernel has no memory for another group",
}


class Bundle:
    """Directories made and ready to be joined, and the descriptors for that.

    `taken` once a `Group` has it, which removes it: until then `drop` does.
    """

    __slots__ = (
        "_starter", "ahead", "at", "directories", "holds_groups", "into_fd", "join_fds", "name", "pids",
        "taken",
    )  # fmt: skip

    def __init__(self, name: str, trees: Iterable[Tree], *, holds_groups: bool) -> None:
        self.name = name
        self.holds_groups = holds_groups
        self.directories: list[Directory] = []
        self.at: dict[str, Directory] = {}
        self.join_fds: tuple[int, ...] = ()
        self.into_fd: int | None = None
        self.ahead: deque[Bundle] = deque()
        """Groups of execs below, made ahead."""
        self.pids: int | None = None
        """The limit that pids.max has already."""
        self.taken = False
        self._starter: int | None = None
        try:
            for tree in trees:
                self._add(tree)
        except OSError as error:
            self.discard()
            if isinstance(error, CgroupError):
                raise
            where = f"{tree.path}/{name}"
            hint = _HINTS.get(error.errno or 0, "")
            raise CgroupError(
                error.errno or 0, f"can't make {where}", stage="cgroup", op="mkdir", hint=hint
            ) from error

    def below(self, number: int, controllers: Iterable[str] = MEASURED) -> Bundle:
        """Make a group of an exec, in those hierarchies."""
        trees = {group.tree: None for name in controllers if (group := self.at.get(name)) is not None}
        return Bundle(f"{self.name}/{number}", trees, holds_groups=False)

    def _add(self, tree: Tree) -> None:
        group = Directory(tree, self.name)
        group.make()
        self.directories.append(group)
        for name in tree.controllers:
            self.at[name] = group
        if tree.version == 1:
            if "cpuset" in tree.controllers:
                inherit_cpuset(group)
        elif self.holds_groups:
            hand_on(group)
            group.below(LEAF).make()
        elif "memory" in tree.controllers:
            # One that is out of memory ends as a whole: half a program's processes are of no use.
            group.write("memory.oom.group", "1")

    def inside(self, tree: Tree) -> Directory | None:
        """Return the directory in this hierarchy, if there is one."""
        return next((group for group in self.directories if group.tree.path == tree.path), None)

    def add(self, tree: Tree) -> Directory:
        """Make the group in one more hierarchy, where execs have none of their own."""
        group = Directory(tree, self.name)
        group.make()
        self.directories.append(group)
        self.at.update(dict.fromkeys(tree.controllers, group))
        return group

    def take_back(self, group: Directory) -> None:
        """Undo `add`."""
        remove_all(group)
        self.directories.remove(group)
        for name in group.tree.controllers:
            del self.at[name]

    def set_pids(self, most: int) -> None:
        """Set pids.max ahead, where there is such a controller."""
        group = self.at.get("pids")
        if group is not None:
            DIALECTS[group.tree.version].set_pids(group, most)
            self.pids = most

    def warm(self) -> None:
        """Open what setting the usual limits is going to need."""
        for group in self.directories:
            mine = _FILES.get(group.tree.controllers)
            if mine is None:
                files = DIALECTS[group.tree.version].limit_files
                mine = tuple(file for file in files if file.partition(".")[0] in group.tree.controllers)
                _FILES[group.tree.controllers] = mine
            group.warm(mine)

    def cool(self) -> None:
        """Close what `warm` opened and nobody needed."""
        for group in self.directories:
            group.cool()

    def open(self) -> None:
        """Open what is needed to join: v1 a tasks file each, v2 the directory to be born in.

        Of a file it counts who opened it, for a birth who clones: see `let_start`. Where nobody can be
        born in a group (see `Groups.no_births`), v2 has a file too.
        """
        joins = []
        self.close_joining()
        try:
            for group in self.directories:
                place = LEAF if group.tree.version == 2 and self.holds_groups else "."
                if group.tree.births:
                    self.into_fd = group.open(place, os.O_PATH | os.O_DIRECTORY)
                else:
                    joins.append(group.open(f"{place}/{JOIN[group.tree.version]}", os.O_WRONLY))
        except BaseException as error:
            for fd in joins:
                os.close(fd)
            self.close()
            if not isinstance(error, OSError):
                raise
            message = f"can't open {group.path}"
            raise CgroupError(error.errno or 0, message, stage="cgroup", op="open") from error
        self.join_fds = tuple(joins)

    @property
    def unified(self) -> bool:
        """Whether a part of it is on v2, where processes are born in their groups: to move one takes long."""
        return any(group.tree.version == 2 for group in self.directories)

    def let_start(self, uid: int | None) -> None:
        """On v2, let this user start processes in the group, as the kernel asks of the one who clones.

        A container's root, by the user's id on the host; None, for this process's own user, who may. It
        needs that for the group that it is born in and for the one above; it sees neither's files.
        """
        if uid is None or uid == self._starter:
            return
        for group in self.directories:
            if group.tree.version == 2:
                group.give("cgroup.procs", uid)
        self._starter = uid

    @property
    def unopened(self) -> bool:
        """Whether `open` has to be called."""
        if self.into_fd is not None:
            return not any(group.tree.births for group in self.directories)
        return not self.join_fds

    def close(self) -> None:
        """Close what `open` and `warm` opened."""
        self.cool()
        self.close_joining()

    def close_joining(self) -> None:
        """Close what `open` opened."""
        fds = [*self.join_fds, self.into_fd]
        self.join_fds, self.into_fd = (), None
        for fd in fds:
            if fd is not None:
                os.close(fd)

    def drop(self) -> None:
        """Discard it, where nobody has taken it."""
        if not self.taken:
            self.discard()

    def discard(self) -> None:
        """Close it and remove its directories, in which nobody has been."""
        self.close()
        while self.ahead:
            self.ahead.popleft().discard()
        for group in self.directories:
            remove_all(group)
        self.directories = []


def hand_on(group: Directory) -> None:
    """On v2, give the groups below this one its controllers."""
    names = " ".join(
        f"+{name}" for name in group.read("cgroup.controllers").decode().split() if name in HANDED_ON
    )
    if names:
        group.write("cgroup.subtree_control", names)


HANDED_ON: Final = ("cpu", "cpuset", "io", "memory", "pids")
