"""What a group is held to: limits, and devices; set, and changed while it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from typing import Final

from ..errors import CgroupError, IsoboxError, UnsupportedError
from ..spec import IoLimit, Limits
from .bundle import DIALECTS
from .convert import huge_page_name, huge_pages
from .devices import ELSEWHERE, FEATURE, Device, set_rules
from .directory import JOIN, Directory, Tree
from .members import Members

DEFAULT_PIDS: Final = 1024
"""The limit that a container has without being asked; the only one that may be missing."""


class Limited(Members):
    """A `Group` with regard to its limits. What `degraded` and `device_control` say is told there."""

    __slots__ = ("_children", "_running", "degraded", "device_control")

    degraded: tuple[str, ...]
    device_control: str
    _children: Set[Limited]
    _running: bool

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
