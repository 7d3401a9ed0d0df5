"""The processes in a group: found, held still, ended."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from ..errors import CgroupError, StateError, UnsupportedError
from ..spec import Limits
from .bundle import DIALECTS, Bundle
from .dialect import Dialect
from .directory import Directory
from .ending import END_SECONDS, end, is_empty, nobody

if TYPE_CHECKING:
    from .groups import Groups

CHEAP: Final = ("pids", "freezer", "cpu", "memory", "cpuacct", "blkio")
"""The hierarchies to find processes by, those first in which that costs least."""

_FREEZE_SECONDS: Final = 10.0


class Members:
    """A `Group` with regard to the processes that are in it."""

    __slots__ = ("_bundle", "_closed", "_frozen", "_groups", "_lifted", "_lock", "_parent", "id", "limits")

    id: str
    limits: Limits
    _groups: Groups
    _bundle: Bundle
    _parent: Members | None
    _lock: threading.Lock
    _lifted: int
    _frozen: bool
    _closed: bool

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
        container = self._parent or self
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
        for name in CHEAP:
            if name in at:
                return at[name]
        raise UnsupportedError("a group of processes", "no cgroup is available", self._groups.remedy("pids"))

    def lacking(self, controller: str, feature: str) -> UnsupportedError:
        """Return the error that says why ``feature`` can't be had without ``controller``."""
        return self._groups.missing(controller, feature)

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
