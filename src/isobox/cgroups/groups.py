"""All groups of one owner: made ahead, handed out, taken away in the background, collected."""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Final

from ..errors import CgroupError, CleanupError, StateError, UnsupportedError
from ..spec import Limits
from ..worker import Job, Worker
from . import scope
from .bundle import Bundle
from .collection import collect, find, own_path
from .convert import parse_service
from .devices import Device, Walls
from .dialect import Reading
from .directory import Tree
from .discovery import CgroupHost, discover, in_kernel, own_group
from .ending import end, remove_all
from .group import Group
from .limited import DEFAULT_PIDS
from .trees import SELDOM, make_trees

_WANTED: Final = ("memory", "cpu", "cpuacct", "pids", "freezer", "blkio")
_READY: Final = 4
"""Containers' groups that are kept ready, once containers are made one after another."""
_OPEN_AHEAD: Final = 32
_BUSY_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 5.0

_MORE_FOR_USERS: Final = (
    "as root: write the lines [Service] and Delegate=cpu cpuset io memory pids to "
    "/etc/systemd/system/user@.service.d/delegate.conf; then log in anew"
)


class Groups:
    """The groups of one owner, below ``<own group>/isobox/<owner>`` in each hierarchy.

    Nothing is made before the first container. `settle`, which it calls, may have systemd move this
    process to a scope of its own; then `host` is another one than before. `close` kills what still runs
    and removes everything; it is called at the interpreter's end too. A forked child owns nothing of it:
    there every call but `close` is a `StateError`.
    """

    def __init__(self, host: CgroupHost, owner: str) -> None:
        if not owner or "/" in owner or owner.startswith("."):
            raise ValueError(f"owner={owner!r}: expected a plain name")
        self.host = host
        self.owner = owner
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._trees: dict[str, Tree] = {}
        self._why: dict[str, str] = {}
        self._found = host if host is discover() else None
        self._settled = False
        self._refusal: scope.Refusal | None = None
        self._prepared = False
        self._closed = False
        self._count = itertools.count(1)
        self._containers: set[Group] = set()
        self._ready: deque[Bundle] = deque()
        self._wanted = 0
        self.execs = False
        """Whether containers have measured execs here: then each is made with a group for its first."""
        self._io_counted = False
        self.walls = Walls()
        self._worker = Worker(f"isobox-cgroups-{owner}")
        _all.add(self)

    @property
    def paths(self) -> tuple[str, ...]:
        """This owner's directories: what `collect` is to be told after its death."""
        return tuple(
            dict.fromkeys(
                own_path(each, self.owner) for each in self.host.controllers.values() if each.writable
            )
        )

    @property
    def unified(self) -> bool:
        """Whether containers' groups are on v2, or a part of them."""
        used = (self.host.controllers.get(name) for name in _WANTED)
        return any(each is not None and each.writable and each.version == 2 for each in used)

    def birthplace(self) -> Bundle | None:
        """Return a container's directories, for its init to be born in: on v2, else None.

        The caller's, until it goes to `container`. Raises `CgroupError`.
        """
        self._check()
        if not self._prepared:
            self._prepare()
        if not any(name in self._trees and self._trees[name].version == 2 for name in _WANTED):
            return None
        return self._take()

    def no_births(self, bundle: Bundle) -> None:
        """Have processes of v2 write themselves into their groups from now on: nobody can be born there.

        Before Linux 5.7, and under filters that keep clone3 from this process. `bundle` is opened anew.
        """
        for tree in self._trees.values():
            tree.births = False
        bundle.open()

    def container(
        self,
        limits: Limits,
        *,
        id: str,
        bundle: Bundle | None = None,
        devices: frozenset[Device] | None = None,
    ) -> Group:
        """Return a group for a container, with its limits set, read back and compared.

        `bundle`: what `birthplace` gave. With ``devices`` the kernel lets its processes make and open
        no others. Raises `UnsupportedError` where a limit that was asked for can't be enforced here and
        `CgroupError` where the kernel refuses; then nothing of it is left.
        """
        self._check()
        if not self._prepared:
            self._prepare()
        if bundle is None:
            bundle = self._take()
        bundle.taken = True
        group = Group(self, bundle, None, id=id)
        self._containers.add(group)
        try:
            group.apply(limits)
            if devices is not None:
                group.hold_to(devices)
            bundle.cool()
        except BaseException:
            group.close()
            raise
        return group

    def _take(self) -> Bundle:
        try:
            bundle = self._ready.popleft()
        except IndexError:
            bundle = self._make()
        self._wanted = min(self._wanted + 1, _READY + 1)
        if not self._ready:
            self._refill()  # else when one is given back: waking a thread up takes its time
        if bundle.unopened:
            bundle.open()
        return bundle

    def _make(self) -> Bundle:
        trees = {self._trees[name]: None for name in _WANTED if name in self._trees}
        bundle = Bundle(str(next(self._count)), trees, holds_groups=True)
        try:
            bundle.set_pids(DEFAULT_PIDS)
            bundle.open()
        except BaseException:
            bundle.discard()
            raise
        return bundle

    def _refill(self) -> None:
        """Keep some ready, but none for a program that makes one container only."""
        if self._trees and len(self._ready) < self._wanted - 1:
            self._worker.submit(self._fill)

    def _fill(self) -> None:
        while not self._closed and len(self._ready) < self._wanted - 1:
            try:
                bundle = self._make()
            except (CgroupError, UnsupportedError):
                return  # the next container's own attempt will say it
            bundle.warm()
            if self.execs:
                try:
                    bundle.ahead.append(bundle.below(0))
                    bundle.ahead[0].open()
                except CgroupError:
                    bundle.discard()
                    return
            self._ready.append(bundle)

    def prepare_child(self, group: Group) -> None:
        """Have a group made for the next measured exec of a container."""
        # Descriptors for joining are worth holding for a few containers, not for hundreds.
        opened = len(self._containers) <= _OPEN_AHEAD
        self._worker.submit(lambda: _quietly(group, opened))

    def retire(self, group: Group) -> None:
        """Take back a closed group."""
        self._containers.discard(group)
        if not group.present:
            return
        self._worker.submit(_removal(group), 0.002)
        if not group.is_exec:
            self._refill()
        elif group.measured and group.container.runs_short():
            self.prepare_child(group.container)

    # What there is

    def tree(self, controller: str, feature: str) -> Tree:
        """Return this owner's directory with ``controller``. Raises `UnsupportedError`, `CgroupError`."""
        if controller in SELDOM and controller not in self._trees and self.host.usable(controller):
            with self._lock:
                self._check()
                if controller not in self._trees:
                    trees, why = make_trees(self.host, self.owner, seldom=controller)
                    self._trees |= trees
                    self._why |= why
        try:
            return self._trees[controller]
        except KeyError:
            raise self.missing(controller, feature) from None

    def missing(self, controller: str, feature: str) -> UnsupportedError:
        """Return the error that says why ``feature`` can't be had, and what to do."""
        found = self.host.controllers.get(controller)
        if found is None:
            why = f"there is no {controller} controller here"
        else:
            why = found.why or self._why.get(controller, "") or "no such group was made"
        if self._refusal is not None:
            why += f"; systemd gave no scope: {self._refusal.why}"
        return UnsupportedError(feature, why, self.remedy(controller))

    def remedy(self, controller: str) -> str:
        """Return what would make ``controller`` available."""
        found = self.host.controllers.get(controller)
        if self.host.layout == "v2" and found is None and not in_kernel(controller):
            return f"use a kernel that is built with the {controller} controller"
        if found is not None and found.remedy:
            return found.remedy
        if self._refusal is not None:
            return self._refusal.remedy
        user = os.geteuid() != 0
        if found is None:
            if user and "/user@" in own_group():
                return _MORE_FOR_USERS
            if self.host.layout == "v2":
                asking = "systemd-run --user --scope" if user else "systemd-run --scope"
                return f"start the program where it is delegated: {asking} -p Delegate=yes PROGRAM"
            return f"boot with cgroup_enable={controller}, on a kernel that is built with it, and mount it"
        if not user and found.version == 2 and self.host.layout == "hybrid" and found.root:
            return f"echo +{controller} > {found.root}/cgroup.subtree_control"
        if not user:
            return "mount it writable, or run outside the container that hides it"
        if found.version == 2:
            return "run it as: systemd-run --user --scope -p Delegate=yes PROGRAM"
        return "run it as root: cgroup v1 is not delegated to ordinary users"

    def explain_io(self, reading: Reading) -> None:
        """Tell nothing read from nothing counted: v1 counts a device from its first limit on."""
        if not self._io_counted:
            root = self.host.controllers["blkio"].root
            with (
                contextlib.suppress(OSError),
                open(f"{root}/blkio.throttle.io_service_bytes_recursive", "rb") as file,
            ):
                self._io_counted = parse_service(file.read()) is not None
        if self._io_counted:
            for name in ("io_read", "io_write"):
                reading.add(name, 0, "blkio.throttle.io_service_bytes_recursive")
        else:
            reading.notes.append(
                "no io_read and io_write: cgroup v1 counts a device only once an io limit was set on it"
            )

    def is_ours(self) -> bool:
        """Return whether this process made the groups, rather than one that it was forked from."""
        return self._pid == os.getpid()

    def _check(self) -> None:
        if not self.is_ours():
            raise StateError("these groups belong to the process that forked this one")
        if self._closed:
            raise StateError("the groups are closed")

    # The owner's directories

    def settle(self) -> None:
        """Have this process where groups of its own can be made, before anything is started for them.

        Under systemd it may move this process, which takes some milliseconds, and 15 seconds at most where
        nobody answers; later calls do nothing. What is refused is said where a limit needs it.
        """
        if self._settled:
            return
        with self._lock:
            if not self._settled:
                self._check()
                if self.host is self._found:  # not one that a caller made up
                    self._refusal = scope.settle()
                    self.host = discover()
                self._settled = True

    def _prepare(self) -> None:
        self.settle()
        with self._lock:
            if not self._prepared:
                self._check()
                self._trees, self._why = make_trees(self.host, self.owner)
                self._prepared = True

    def collect(self, owner: str, paths: Iterable[str] = ()) -> None:
        """Kill and remove everything of a dead owner.

        ``paths`` are the owner's `paths`, where they are known; its directories are looked for
        as well. Raises `CleanupError` with everything that resists.
        """
        self._check()
        if owner == self.owner:
            raise ValueError("these are the groups of this process: close them")
        collect([*paths, *find(self.host, owner)])

    # The end

    def close(self) -> None:
        """Kill and remove everything; nothing of this owner is left when it returns. Idempotent.

        Raises `CleanupError` with everything that resists.
        """
        if not self.is_ours():
            self._abandon()
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        failures: list[BaseException] = []
        for group in list(self._containers):
            try:
                if group.present:
                    group.kill()
            except (CgroupError, UnsupportedError) as error:
                failures.append(error)
            group.close()
        self._worker.close(_CLOSE_SECONDS)
        while self._ready:
            self._ready.popleft().discard()
        self.walls.close()
        trees = list(dict.fromkeys(self._trees.values()))
        self._trees = {}
        for tree in trees:
            tree.close()
        try:
            collect([tree.path for tree in trees])
        except CleanupError as error:  # else what the worker could not remove is gone now
            failures.extend(self._worker.failures)
            failures.extend(error.errors)
        if failures:
            raise CleanupError("groups are left behind", tuple(failures))

    def _abandon(self) -> None:
        """In a forked child: close the copies of the descriptors, and touch nothing else."""
        if self._closed:
            return
        self._closed = True
        for group in list(self._containers):
            group.after_fork()
        for bundle in self._ready:
            for each in (bundle, *bundle.ahead):
                each.close()
        self._ready.clear()
        self.walls.after_fork()
        for tree in dict.fromkeys(self._trees.values()):
            tree.close()
        self._trees = {}
        self._containers = set()


_all: weakref.WeakSet[Groups] = weakref.WeakSet()


def _at_fork() -> None:
    for groups in list(_all):
        groups._abandon()


def _at_exit() -> None:
    for groups in list(_all):
        groups.close()


os.register_at_fork(after_in_child=_at_fork)
atexit.register(_at_exit)


def _quietly(group: Group, opened: bool) -> None:
    with contextlib.suppress(CgroupError, UnsupportedError, StateError):
        group.prepare_child(opened=opened)


def _removal(group: Group) -> Job:
    """Return the job that removes a closed group: tried again while its processes still end."""
    left = group.surrender()
    started = time.monotonic()
    pause = 0.001

    def job() -> float | None:
        nonlocal left, pause
        group.forget()
        left = [each for each in left if not remove_all(each)]
        if not left:
            return None
        pause = min(pause * 1.7, 0.1)
        waited = time.monotonic() - started
        if waited > _BUSY_SECONDS:
            if group.is_exec and not group.container.closed:
                return None  # a paused container's: removed with it
            message = f"{left[0].path} stays in use"
            raise CgroupError(errno.EBUSY, message, stage="cgroup", op="rmdir")
        if waited > 0.1:  # its processes should be dead: see to it
            for each in left:
                with contextlib.suppress(CgroupError):
                    end(each, timeout=0.05)
        return pause

    return job
