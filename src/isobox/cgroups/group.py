"""A group: one container's, or one exec's below it."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ..errors import CgroupError, IsoboxError, StateError, UnsupportedError
from ..spec import IoLimit, Limits
from ..usage import Usage
from .bundle import DIALECTS, MEASURED, Bundle
from .convert import huge_page_name, huge_pages
from .devices import ELSEWHERE, FEATURE, Device, set_rules
from .dialect import Dialect, OomWatch
from .directory import JOIN, Directory, Tree
from .ending import END_SECONDS, end, is_empty, nobody
from .meter import Meter

if TYPE_CHECKING:
    from .groups import Groups

DEFAULT_PIDS: Final = 1024
"""The limit that a container has without being asked; the only one that may be missing."""

_CHEAP: Final = ("pids", "freezer", "cpu", "memory", "cpuacct", "blkio")
_MOST_AHEAD: Final = 4
_FREEZE_SECONDS: Final = 10.0


class Group:
    """The cgroups of one container, or of one exec in it (`child`).

    Made by `Groups.container`. A process joins by being born in `into_fd` (v2, clone3's
    CLONE_INTO_CGROUP) where there is one, and by writing ``0`` to each of `join_fds`, from the thread
    that joins. The descriptors stay the group's own, until `joined` or `close`. A group
    where nothing is available (`present` is False) has none of them.

    `degraded` names what was not asked for but usual, and is missing: ``("pids",)``, or nothing.
    """

    __slots__ = (
        "_ahead", "_bundle", "_children", "_closed", "_count", "_frozen", "_groups",
        "_idle", "_lifted", "_lock", "_meter", "_parent", "_running", "_spare", "_starter",
        "degraded", "device_control", "id", "limits", "measured",
    )  # fmt: skip

    def __init__(
        self, groups: Groups, bundle: Bundle, parent: Group | None, *, id: str, measured: bool = True
    ) -> None:
        self.id = id
        self.limits = Limits(pids=bundle.pids)
        self.degraded: tuple[str, ...] = ()
        self.device_control = ""
        """What holds it to its devices, for people; empty where nothing has to."""
        self._groups = groups
        self._bundle = bundle
        self._parent = parent
        self.measured = measured
        self._lock = threading.Lock()
        self._count = itertools.count(1)
        self._children: set[Group] = set()
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

    def lacking(self, controller: str, feature: str) -> UnsupportedError:
        """Return the error that says why ``feature`` can't be had without ``controller``."""
        return self._groups.missing(controller, feature)

    # Limits

    def apply(self, limits: Limits) -> None:
        """Set the limits that differ from those that are set; called by `Groups.container` and `update`."""
        before = self.limits
        if limits.memory != before.memory or limits.swap != before.swap:
            group, dialect = self._need("memory", "memory limit")
            dialect.set_memory(group, limits.memory, limits.swap, host_swap=self._groups.host.swap)
        if limits.pids != before.pids:
            if limits.pids == DEFAULT_PIDS and self._parent is None and self._at("pids") is None:
                self.degraded = ("pids",)
            else:
                group, dialect = self._need("pids", "pids limit")
                dialect.set_pids(group, limits.pids)
                self._bundle.pids = limits.pids
        if limits.cpu != before.cpu:
            group, dialect = self._need("cpu", "cpu limit")
            dialect.set_cpu(group, limits.cpu)
        if limits.cpu_weight != before.cpu_weight:
            group, dialect = self._need("cpu", "cpu_weight")
            dialect.set_cpu_weight(group, 100 if limits.cpu_weight is None else limits.cpu_weight)
        if limits.cpuset != before.cpuset:
            self._set_cpuset(limits.cpuset)
        if limits.io != before.io:
            group, dialect = self._need("blkio", "io limit")
            dialect.set_io(group, limits.io, before.io)
            if self._flat_io:
                self._set_io_below(limits.io, before.io)
        if limits.hugetlb != before.hugetlb:
            self._set_hugetlb(limits.hugetlb, before.hugetlb)
        self.limits = limits

    def update(self, limits: Limits) -> None:
        """Change the limits of a running container. Raises `UnsupportedError` and `CgroupError`.

        Where one is refused, those before it (memory, pids, cpu, cpu_weight, cpuset, io, hugetlb) hold
        already.
        """
        with self._lock:
            self._check()
            self._running = True
            io = self.limits.io
            self.apply(limits)
            if limits.io and limits.io != io and self._flat_io:
                self._move_into(self._bundle.at["blkio"])

    @property
    def _flat_io(self) -> bool:
        """Whether an io limit holds for one directory, and not for those below it.

        That is so on v1: cgroup-v1/blkio-controller.rst, "Hierarchical Cgroups".
        """
        own = self._at("blkio")
        return own is not None and own.tree.version == 1

    def _set_io_below(self, limits: tuple[IoLimit, ...], before: tuple[IoLimit, ...]) -> None:
        """Set it for each program that runs already: until they are moved, and if one starts now."""
        for child in list(self._children):
            own = child._at("blkio")
            if own is not None:
                try:
                    DIALECTS[1].set_io(own, limits, before)
                except IsoboxError:
                    if not child._closed:
                        raise

    def _set_cpuset(self, cpus: frozenset[int] | None) -> None:
        tree = self._groups.tree("cpuset", "cpuset")
        self._set_inside(tree, lambda group: DIALECTS[tree.version].set_cpuset(group, cpus))

    def _set_hugetlb(self, limits: dict[int, int], before: dict[int, int]) -> None:
        tree = self._groups.tree("hugetlb", "hugetlb limit")
        there = huge_pages()
        for page in limits:
            if page not in there:
                names = " and ".join(map(huge_page_name, sorted(there))) or "none"
                what = f"hugetlb limit of {huge_page_name(page)} pages"
                raise UnsupportedError(what, f"this kernel's huge pages are: {names}", "limit one of these")

        def set_limits(group: Directory) -> None:
            for page in {**before, **limits}:
                DIALECTS[tree.version].set_hugetlb(group, page, limits.get(page))

        self._set_inside(tree, set_limits)

    def _set_inside(self, tree: Tree, set_limit: Callable[[Directory], None]) -> Directory:
        """Set a limit in a hierarchy that few containers are in; join it, with all that runs already."""
        group = self._bundle.inside(tree)
        if group is not None:
            set_limit(group)
            return group
        group = self._bundle.add(tree)
        try:
            set_limit(group)
            if self._running:
                self._move_into(group)
            else:
                self._bundle.join_fds += (group.open(JOIN[tree.version], os.O_WRONLY),)
        except BaseException:
            self._bundle.take_back(group)
            raise
        return group

    def hold_to(self, devices: frozenset[Device]) -> None:
        """Have the kernel refuse all other devices to a container that nobody has joined yet.

        Raises `UnsupportedError` and `CgroupError`.
        """
        try:
            tree = self._groups.tree("devices", FEATURE)
        except UnsupportedError as error:
            raise UnsupportedError(FEATURE, error.why, f"{error.remedy}; or {ELSEWHERE}") from None
        walls = self._groups.walls
        try:
            own = self._bundle.inside(tree)
            if tree.version == 2:
                own = self._set_inside(tree, lambda group: walls.attach(group, devices))
                self.device_control = f"a BPF program on {own.path}"
            elif own is not None:  # mounted together with others
                set_rules(own, devices)
                self.device_control = own.path
            else:
                shared = walls.group(tree, devices)
                self._bundle.join_fds += (shared.open("tasks", os.O_WRONLY),)
                self.device_control = shared.path
        except OSError as error:
            if isinstance(error, CgroupError):
                raise
            what = f"can't make a group in {tree.path}"
            raise CgroupError(error.errno or 0, what, stage="cgroup", op="devices") from error

    def _move_into(self, group: Directory) -> None:
        """Have the threads that run already join ``group``.

        On v1 one by one: for a whole process the kernel would stop all forks of the host. What they fork
        meanwhile is found by looking again.
        """
        moved: set[int] = set()
        while True:
            threads = set(self.threads()) - moved
            if not threads:
                return
            file = JOIN[group.tree.version]
            fd = group.open(file, os.O_WRONLY)
            try:
                for tid in threads:
                    try:
                        os.write(fd, b"%d" % tid)
                    except ProcessLookupError:
                        continue
            except OSError as error:
                raise group.refused(error, file, "a thread", "") from error
            finally:
                os.close(fd)
            moved |= threads

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
        return next(((name,) for name in _CHEAP if self._at(name) is not None and not self._stays(name)), ())

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

    # Processes

    @property
    def can_freeze(self) -> bool:
        """Whether `freeze` can be had."""
        return "freezer" in self._bundle.at

    def freeze(self, *, briefly: bool = False) -> None:
        """Stop everything, and return once it has. Raises `UnsupportedError`, `CgroupError`.

        `briefly`: whoever wants to end something in it meanwhile may wait for `thaw`.
        """
        group, dialect = self._need("freezer", "pause")
        self._frozen = not briefly
        try:
            dialect.freeze(group)
            deadline = time.monotonic() + _FREEZE_SECONDS
            pause = 0.0002
            while not dialect.is_frozen(group):
                if time.monotonic() > deadline:
                    message = f"{group.path} does not stop: a process waits for a device"
                    raise CgroupError(errno.EBUSY, message, stage="cgroup", op="freeze")
                time.sleep(pause)
                pause = min(pause * 2, 0.005)
        except BaseException:
            self.thaw()
            raise

    def thaw(self) -> None:
        """Let everything go on."""
        group, dialect = self._need("freezer", "resume")
        dialect.thaw(group)
        self._frozen = False

    def thawing(self) -> tuple[int, bytes]:
        """Return an owned descriptor, and what to write there to let everything go on."""
        group, dialect = self._need("freezer", "pause")
        file, text = dialect.thawing
        return group.open(file, os.O_WRONLY), text.encode()

    def kill(self, timeout: float = END_SECONDS) -> None:
        """Kill everything in the group and below, however it forks; return when all of it is dead.

        Afterwards nothing can fork in the group any more. Raises `CgroupError` after ``timeout``
        seconds, and at once for an exec of a paused container on v1, whose processes have got the
        signal but end when it goes on; `UnsupportedError` where there is no group.
        """
        if not self._groups.is_ours():
            raise StateError("this group belongs to the process that forked this one")
        top = self._top()
        if nobody(top):
            return
        self._bundle.pids = 0
        container = self.container
        lifted = False

        def unthrottle() -> None:
            nonlocal lifted
            lifted = container._throttle(False)

        try:
            end(
                top,
                thaw=self.thaw if self._frozen else None,
                unthrottle=unthrottle if container.limits.cpu else None,
                timeout=0.0
                if top.tree.version == 1 and container._frozen and container is not self
                else timeout,
            )
        finally:
            if lifted:
                container._throttle(True)

    def _throttle(self, on: bool) -> bool:
        """Lift the CPU limit for a moment, and set it again; kills may run at the same time."""
        cpu = self._at("cpu")
        if cpu is None:
            return False
        dialect = DIALECTS[cpu.tree.version]
        with self._lock:
            self._lifted += -1 if on else 1
            if self._lifted == (0 if on else 1):
                dialect.set_cpu(cpu, self.limits.cpu if on else None)
        return True

    def empty(self) -> bool:
        """Return whether no living process is in the group or below."""
        return is_empty(self._top())

    def threads(self) -> tuple[int, ...]:
        """Return the ids here of all threads in the group and below."""
        found: list[int] = []
        for below in self._top().walk():
            text = below.read_if_there("tasks" if below.tree.version == 1 else "cgroup.threads")
            found.extend(map(int, text.split()) if text else ())
        return tuple(found)

    def _top(self) -> Directory:
        """The directory by which processes are found."""
        at = self._bundle.at
        for name in _CHEAP:
            if name in at:
                return at[name]
        raise UnsupportedError("a group of processes", "no cgroup is available", self._groups.remedy("pids"))

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

    def _at(self, controller: str) -> Directory | None:
        return self._bundle.at.get(controller)

    def _need(self, controller: str, feature: str) -> tuple[Directory, Dialect]:
        self._check()
        group = self._bundle.at.get(controller)
        if group is None:
            raise self.lacking(controller, feature)
        return group, DIALECTS[group.tree.version]

    def _check(self) -> None:
        if self._closed:
            raise StateError(f"the group of {self.id} is closed")
