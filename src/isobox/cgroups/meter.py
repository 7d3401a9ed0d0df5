"""What a group has cost: read from the kernel's own counters, never sampled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from ..errors import CgroupError
from ..usage import Usage
from .bundle import DIALECTS, Bundle
from .convert import parse_flat
from .dialect import OomWatch, Reading
from .directory import Directory


class Meter:
    """The counters of one group; `parent` is that of the container of an exec.

    Two things are not counted where they are wanted: v1 has no number of kills for a whole tree, so
    a container adds up its own and its execs'; and an exec is held back with its container, so it
    has what the container's count has grown by.
    """

    __slots__ = ("_at", "_below", "_fds", "_gone", "_lock", "_swapped", "_throttled", "_time_fd", "parent")

    def __init__(self, bundle: Bundle, parent: Meter | None) -> None:
        self.parent = parent
        self._at = bundle.at
        self._lock = threading.Lock()
        self._below: set[Meter] = set()
        self._gone = 0
        self._throttled: tuple[int, float] | None = None
        self._swapped: int | None = None
        self._fds: list[int] = []
        self._time_fd = -1
        if parent is not None:
            with parent._lock:
                parent._below.add(self)

    def begin(self, *, limited: bool, swap: bool) -> None:
        """Remember what was before: how long a limited container was held back, what the host swapped."""
        if limited:
            self._throttled = self._held_back()
        if swap:
            self._swapped = swapped_pages()

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed for want of memory; of execs too."""
        group = self._at.get("memory")
        if group is None:
            return 0
        dialect = DIALECTS[group.tree.version]
        if group.tree.version == 2:
            return dialect.oom_kills(group)
        with self._lock:
            below = [meter._at.get("memory") for meter in self._below]
            return self._gone + sum(dialect.oom_kills(each) for each in (group, *below) if each is not None)

    def retire(self) -> None:
        """Hand the last count of an exec over to its container, before its directory is removed."""
        parent, group = self.parent, self._at.get("memory")
        if parent is None:
            return
        with parent._lock:
            if self in parent._below:
                parent._below.discard(self)
                if group is not None and group.tree.version == 1:
                    parent._gone += DIALECTS[1].oom_kills(group)

    def oom_watch(self) -> OomWatch | None:
        """Return what tells of kills: see `Group.oom_watch`."""
        group = self._at.get("memory")
        if group is None:
            return None
        try:
            watch = DIALECTS[group.tree.version].oom_watch(group)
        except OSError as error:
            raise _unreadable(error, group, "oom") from error
        self._fds.append(watch.fd)
        return watch

    def cpu_time(self) -> float | None:
        """Return the seconds of CPU time so far; the file stays open."""
        group = self._at.get("cpuacct")
        if group is None:
            return None
        dialect = DIALECTS[group.tree.version]
        try:
            if self._time_fd < 0:
                self._time_fd = group.open(dialect.cpu_time_file(), os.O_RDONLY)
                self._fds.append(self._time_fd)
            return dialect.parse_cpu_time(os.pread(self._time_fd, 4096, 0))
        except OSError as error:
            raise _unreadable(error, group, "cpu_time") from error

    def read(self, explain_io: Callable[[Reading], None]) -> Usage:
        """Return all of it; `explain_io` has the last word where no device is listed."""
        reading = Reading()
        at = self._at.get("cpuacct")
        if at is not None:
            dialect = DIALECTS[at.tree.version]
            dialect.read_cpu(at, reading)
            dialect.read_pressure(at, reading)
        at = self._at.get("memory")
        if at is not None:
            DIALECTS[at.tree.version].read_memory(at, reading)
            reading.add("oom_kills", self.oom_kills(), _OOM_FILES[at.tree.version])
        at = self._at.get("pids")
        if at is not None:
            DIALECTS[at.tree.version].read_pids(at, reading)
        at = self._at.get("blkio")
        if at is not None:
            DIALECTS[at.tree.version].read_io(at, reading)
            if "io_read" not in reading.values:
                explain_io(reading)
        elif self.parent is not None and "blkio" in self.parent._at:
            reading.notes.append("not counted: I/O, whose limit holds for all programs together on cgroup v1")
        self._read_throttled(reading)
        if self._swapped is not None and (pages := swapped_pages() - self._swapped) > 0:
            reading.notes.append(f"the host swapped {pages} pages meanwhile: times may be too long")
        return reading.usage()

    def _held_back(self) -> tuple[int, float] | None:
        at = (self.parent or self)._at.get("cpu")
        return None if at is None else DIALECTS[at.tree.version].throttled(at)

    def _read_throttled(self, reading: Reading) -> None:
        found = self._held_back()
        if found is None:
            return
        periods, seconds = found
        if self.parent is not None:
            if self._throttled is not None:
                periods, seconds = periods - self._throttled[0], seconds - self._throttled[1]
            elif periods:
                return  # limited meanwhile: what was before this exec is not known
        reading.add("throttled_periods", periods, "cpu.stat")
        reading.add("throttled_time", seconds, "cpu.stat")
        if periods:
            whose = "" if self.parent is None else ", counted for the whole container"
            reading.notes.append(f"the CPU was throttled for {seconds:.3f} s in {periods} periods{whose}")

    def close(self) -> None:
        """Close the descriptors; idempotent."""
        fds, self._fds, self._time_fd = self._fds, [], -1
        for fd in fds:
            os.close(fd)

    def after_fork(self) -> None:
        """Make locks anew, which another thread may have held in the process that forked."""
        self._lock = threading.Lock()


_OOM_FILES: Final = {1: "memory.oom_control", 2: "memory.events"}


def swapped_pages() -> int:
    """Return how many pages the host has swapped in and out since it booted."""
    try:
        with open("/proc/vmstat", "rb", buffering=0) as file:
            values = parse_flat(file.readall())
    except OSError:
        return 0
    return values.get("pswpin", 0) + values.get("pswpout", 0)


def _unreadable(error: OSError, group: Directory, op: str) -> CgroupError:
    return CgroupError(error.errno or 0, f"can't read {group.path}", stage="cgroup", op=op)
