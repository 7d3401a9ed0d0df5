"""A group: one container's, or one exec's below it.

What it is held to is in limited.py, how the processes in it are found and ended in members.py.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ..errors import CgroupError, StateError
from ..spec import Limits
from ..usage import Usage
from .bundle import DIALECTS, MEASURED, Bundle
from .dialect import OomWatch
from .directory import Directory
from .ending import nobody
from .limited import Limited
from .members import CHEAP
from .meter import Meter

if TYPE_CHECKING:
    from .groups import Groups

_MOST_AHEAD: Final = 4


class Group(Limited):
    """The cgroups of one container, or of one exec in it (`child`).

    Made by `Groups.container`. A process joins by being born in `into_fd` (v2, clone3's
    CLONE_INTO_CGROUP) where there is one, and by writing ``0`` to each of `join_fds`, from the thread
    that joins. The descriptors stay the group's own, until `joined` or `close`. A group
    where nothing is available (`present` is False) has none of them.

    `degraded` names what was not asked for but usual, and is missing: ``("pids",)``, or nothing.
    `device_control` says, for people, what holds it to its devices; it is empty where nothing has to.
    """

    __slots__ = ("_ahead", "_count", "_idle", "_meter", "_spare", "_starter", "measured")

    _parent: Group | None
    _children: set[Group]

    def __init__(
        self, groups: Groups, bundle: Bundle, parent: Group | None, *, id: str, measured: bool = True
    ) -> None:
        self.id = id
        self.limits = Limits(pids=bundle.pids)
        self.degraded: tuple[str, ...] = ()
        self.device_control = ""
        self._groups = groups
        self._bundle = bundle
        self._parent = parent
        self.measured = measured
        self._lock = threading.Lock()
        self._count = itertools.count(1)
        self._children = set()
        self._spare = bundle.ahead
        self._idle: deque[Bundle] = deque()
        self._meter: Meter = Meter(bundle, None if parent is None else parent._meter)
        self._lifted = 0
        self._starter: int | None = None
        self._ahead = 0
        self._frozen = False
        self._running = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<Group {self.id} {self.paths}>"

    @property
    def is_exec(self) -> bool:
        """Whether it is an exec's group, below a container's."""
        return self._parent is not None

    @property
    def container(self) -> Group:
        """The group of the container: of an exec, the one above it."""
        return self._parent or self

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    @property
    def present(self) -> bool:
        """Whether there is a group at all, in any hierarchy."""
        return bool(self._bundle.directories)

    @property
    def paths(self) -> tuple[str, ...]:
        """The directories, one for each hierarchy."""
        return tuple(group.path for group in self._bundle.directories)

    @property
    def join_fds(self) -> tuple[int, ...]:
        """Descriptors to which the joining thread writes ``0``: v1 ``tasks``, one a hierarchy."""
        return self._bundle.join_fds

    @property
    def into_fd(self) -> int | None:
        """v2: the directory for CLONE_INTO_CGROUP."""
        return self._bundle.into_fd

    @property
    def unified(self) -> bool:
        """Whether it is on v2, or a part of it: there a process is born in its group and stays."""
        return self._bundle.unified

    def let_start(self, uid: int) -> None:
        """Let a container's root start programs in the groups below; `uid` as the host has it."""
        if uid != os.geteuid():
            self._starter = uid
            self._bundle.let_start(uid)

    def joined(self) -> None:
        """Close the descriptors for joining: nobody else is going to join by them, or by a reused group's."""
        if self.measured or self._parent is None:
            self._bundle.close()

    # Execs

    def child(self, memory: int | None = None, pids: int | None = None, measure: bool = True) -> Group:
        """Return a group for one exec, below this one.

        With ``measure`` it is fresh in each hierarchy that counts something, and used once. Without,
        it is one directory that may have served before: for `kill` and `empty` only. `memory` is in
        bytes. Raises as `Groups.container` does.
        """
        self._check()
        if self._parent is not None:
            raise StateError("a group of an exec has no groups below it")
        group: Group | None = None
        try:
            bundle = self._next_bundle(measure, memory is not None)
        except CgroupError:
            self._check()  # with its container, by another thread: that is what to say
            raise
        try:
            group = Group(self._groups, bundle, self, id=f"{self.id}/{bundle.name}", measured=measure)
            with self._lock:
                self._children.add(group)
            if self.limits.io and self._flat_io and "blkio" in bundle.at:  # limited in this moment
                DIALECTS[1].set_io(bundle.at["blkio"], self.limits.io, ())
            if bundle.unopened:
                bundle.open()
            bundle.let_start(self._starter)
            if memory is not None or pids != bundle.pids:
                group.apply(Limits(memory=memory, pids=pids))
            if measure and (self.limits.cpu is not None or self._groups.host.swap):
                group._meter.begin(limited=self.limits.cpu is not None, swap=self._groups.host.swap)
            if group._closed:  # with its container, by another thread, before there was anything to close
                bundle.close()
                group._meter.close()
                raise StateError("the container has stopped")
        except BaseException:
            if group is None:
                bundle.discard()
            else:
                group.close()
            raise
        return group

    def _next_bundle(self, measure: bool, memory: bool) -> Bundle:
        if not measure and not memory:
            try:
                return self._idle.popleft()
            except IndexError:
                bundle = self._bundle.below(next(self._count), self._cheap())
                if "pids" in bundle.at:
                    bundle.at["pids"].keep("pids.current")
                return bundle
        if not measure:
            return self._bundle.below(next(self._count), ("memory", *self._cheap()))
        counted = self._counted()
        spare = self._from_spare("blkio" in counted)
        if spare is None:
            self._ahead = min(self._ahead + 1, _MOST_AHEAD)
            self._groups.execs = True
        bundle = spare or self._bundle.below(next(self._count), counted)
        if self._children and self.runs_short():
            self._groups.prepare_child(self)  # else when the exec ends, off its way to its start
        return bundle

    def _counted(self) -> tuple[str, ...]:
        """What the next exec's group counts: not I/O where its limit holds in the container's group alone."""
        return tuple(name for name in MEASURED if not self._stays(name))

    def _stays(self, controller: str) -> bool:
        """Whether programs stay in the container's own directory for the sake of a limit there."""
        return bool(self.limits.io) and self._flat_io and self._at(controller) is self._at("blkio")

    def _from_spare(self, io: bool) -> Bundle | None:
        """Return a group that was made ahead, and counts the I/O as it is to; None if there is none."""
        while True:
            try:
                bundle = self._spare.popleft()
            except IndexError:
                return None
            if ("blkio" in bundle.at) == (io and "blkio" in self._bundle.at):
                return bundle
            bundle.discard()

    def _cheap(self) -> tuple[str, ...]:
        return next(((name,) for name in CHEAP if self._at(name) is not None and not self._stays(name)), ())

    def runs_short(self) -> bool:
        """Return whether fewer groups are ready for execs than have been missed."""
        return len(self._spare) < self._ahead and not self._closed

    def prepare_child(self, *, opened: bool) -> None:
        """Make groups for the next measured execs, in the background: more where they ran short."""
        while self.runs_short():
            bundle = self._bundle.below(next(self._count), self._counted())
            try:
                if opened:
                    bundle.open()
                bundle.let_start(self._starter)
            except CgroupError:
                bundle.discard()
                raise
            with self._lock:
                closed = self._closed
                if not closed:
                    self._spare.append(bundle)
            if closed:
                bundle.discard()
                return

    # Measurements

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed for want of memory; of execs too."""
        return self._meter.oom_kills()

    def oom_watch(self) -> OomWatch | None:
        """Return what tells when the memory limit is hit; None without a memory group.

        v1: an eventfd, also for a limit of the container above. v2: memory.events. The group owns the
        descriptor: it is closed by `close`.
        """
        return self._meter.oom_watch()

    def cpu_time(self) -> float | None:
        """Return the seconds of CPU time so far; cheap, for polling. None where nothing counts them."""
        return self._meter.cpu_time()

    def read(self) -> Usage:
        """Return what the group has cost so far: all of `Usage` but the wall time."""
        return self._meter.read(self._groups.explain_io)

    # The end

    def close(self) -> None:
        """Give the group back: its descriptors now, its directories in the background. Idempotent."""
        with self._lock:
            if self._closed:
                self._meter.close()  # what was opened since, for a program that just started
                return
            self._closed = True
            children = list(self._children)
        for child in children:
            child.close()
        freezer = self._at("freezer")
        if self._frozen and freezer is not None and self._groups.is_ours():
            with suppress(CgroupError):  # gone already, or the removal says it
                DIALECTS[freezer.tree.version].thaw(freezer)  # or nothing in it could ever die
        self._meter.close()
        for bundle in (*self._spare, *self._idle):
            bundle.close()
        ours = self._groups.is_ours()
        if ours and self.recycle():
            return
        self._bundle.close()
        if ours:
            self._groups.retire(self)

    def recycle(self) -> bool:
        """Give the directory of an unmeasured exec back to its container; False if it can't serve again."""
        bundle, parent = self._bundle, self._parent
        if parent is None or self.measured or len(bundle.directories) != 1 or "pids" not in bundle.at:
            return False
        group = bundle.at["pids"]
        if group.tree.version == 2 or not nobody(group):
            return False
        if bundle.pids is not None:
            DIALECTS[1].set_pids(group, None)
            bundle.pids = None
        self._meter.retire()
        with parent._lock:
            parent._children.discard(self)
            if parent._closed or len(parent._idle) >= 4:
                return False
            parent._idle.append(bundle)
        return True

    def surrender(self) -> list[Directory]:
        """Return the directories of a closed group, those made ahead first: to be removed."""
        bundles = [*self._spare, *self._idle, self._bundle]
        self._spare.clear()
        self._idle.clear()
        return [group for bundle in bundles for group in bundle.directories]

    def forget(self) -> None:
        """Take the exec off its container, before its directories are removed."""
        self._meter.retire()
        if self._parent is not None:
            with self._parent._lock:
                self._parent._children.discard(self)

    def after_fork(self) -> None:
        """In a forked child: close the copies of the descriptors, whatever locks were held."""
        self._lock = threading.Lock()
        self._meter.after_fork()
        for child in self._children:
            child.after_fork()
        self.close()
