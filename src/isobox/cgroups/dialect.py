"""What a version of cgroups must say for isobox: one method for each thing that differs."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from attrs import frozen

from ..errors import CgroupError, UnsupportedError
from ..spec import IoLimit
from ..usage import Usage
from .convert import huge_page_name, parse_number
from .directory import Directory


class Reading:
    """A `Usage` in the making: each number with the file that it was read from."""

    __slots__ = ("notes", "sources", "values")

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, name: str, value: float | int | dict[str, float], source: str) -> None:
        """Note a number and where it is from."""
        self.values[name] = value
        self.sources[name] = source

    def usage(self) -> Usage:
        """Return what was read."""
        return Usage(**self.values, notes=tuple(self.notes), sources=self.sources)


@frozen
class OomWatch:
    """A descriptor to poll for `events` (poll(2)): it stirs when the memory limit has been hit.

    `lead`: seconds by which that comes before the kill is counted. Before each poll it is to be `reset`.
    """

    fd: int
    events: int
    lead: float

    def reset(self) -> None:
        """Take what it has told. Raises OSError once the group is gone."""
        with contextlib.suppress(BlockingIOError):
            if self.events == select.POLLPRI:
                os.pread(self.fd, 4096, 0)
            else:
                os.read(self.fd, 8)


class Dialect(ABC):
    """Limits are set, read back and compared; None lifts one. Errors: see `Directory.set`."""

    limit_files: tuple[str, ...]
    """The files of those limits that containers mostly have."""

    unlimited: str
    """What lifts a limit of huge pages."""

    hugetlb_files: tuple[str, str]
    """Their limits: of those in use, and of those reserved, which the kernel has from Linux 5.7 on."""

    thawing: tuple[str, str]
    """The file of the freezer, and what to write there to let everything go on."""

    @abstractmethod
    def set_cpu(self, group: Directory, cores: float | None) -> None:
        """Limit to so many cores."""

    @abstractmethod
    def set_cpu_weight(self, group: Directory, weight: int) -> None:
        """Set the weight, 1 to 10000 as on v2."""

    @abstractmethod
    def set_cpuset(self, group: Directory, cpus: frozenset[int] | None) -> None:
        """Bind to these CPUs."""

    @abstractmethod
    def set_memory(self, group: Directory, memory: int | None, swap: int, *, host_swap: bool) -> None:
        """Limit memory, and swap on top of it; both in bytes."""

    @abstractmethod
    def set_io(self, group: Directory, limits: tuple[IoLimit, ...], before: tuple[IoLimit, ...]) -> None:
        """Limit devices; lift what was limited ``before``."""

    def set_pids(self, group: Directory, most: int | None) -> None:
        """Limit the number of processes and threads."""
        value = "max" if most is None else str(most)
        group.set("pids.max", value, lambda kept: kept.strip() == value.encode(), "pids limit")

    def set_hugetlb(self, group: Directory, page: int, most: int | None) -> None:
        """Limit the bytes of huge pages of this size."""
        in_use, reserved = (f"hugetlb.{huge_page_name(page)}.{file}" for file in self.hugetlb_files)
        # Reserved ahead, by mmap, is refused with ENOMEM; what is not ends in SIGBUS.
        files = (in_use,) if group.read_if_there(reserved) is None else (in_use, reserved)
        text = self.unlimited if most is None else str(most - most % page)
        for file in files:
            group.set(file, text, lambda kept: self.holds_pages(kept, text), "hugetlb limit")

    @abstractmethod
    def holds_pages(self, kept: bytes, text: str) -> bool:
        """Return whether a limit of huge pages reads back as it was written."""

    @abstractmethod
    def cpu_time_file(self) -> str:
        """Return the name of the file for `parse_cpu_time`."""

    @abstractmethod
    def parse_cpu_time(self, text: bytes) -> float:
        """Return seconds."""

    @abstractmethod
    def read_cpu(self, group: Directory, reading: Reading) -> None:
        """Add cpu_time, cpu_user and cpu_system."""

    @abstractmethod
    def read_memory(self, group: Directory, reading: Reading) -> None:
        """Add memory_peak."""

    def read_pids(self, group: Directory, reading: Reading) -> None:
        """Add pids_peak."""
        peak = group.read_if_there("pids.peak")
        if peak is None:
            reading.notes.append("no pids_peak: the kernel counts it from Linux 6.1 on")
        else:
            reading.add("pids_peak", parse_number(peak), "pids.peak")

    @abstractmethod
    def read_io(self, group: Directory, reading: Reading) -> None:
        """Add io_read and io_write, where they are counted."""

    @abstractmethod
    def throttled(self, group: Directory) -> tuple[int, float] | None:
        """Return (periods, seconds) for which the group was held back so far."""

    @abstractmethod
    def read_pressure(self, group: Directory, reading: Reading) -> None:
        """Add pressure, which only v2 has."""

    @abstractmethod
    def oom_kills(self, group: Directory) -> int:
        """Return how many processes the kernel killed; of this group alone on v1. Gone: 0."""

    @abstractmethod
    def oom_watch(self, group: Directory) -> OomWatch:
        """Return what tells of kills; its descriptor is the caller's. Raises OSError."""

    @abstractmethod
    def freeze(self, group: Directory) -> None:
        """Begin to stop everything."""

    def thaw(self, group: Directory) -> None:
        """Let everything go on."""
        group.write(*self.thawing)

    @abstractmethod
    def is_frozen(self, group: Directory) -> bool:
        """Return whether everything in the group has stopped."""


def set_disk(group: Directory, file: str, number: str, value: str, holds: Callable[[bytes], bool]) -> None:
    """Set an io limit of the device ``major:minor``; see `Directory.set`."""
    try:
        group.set(file, f"{number} {value}", holds, "io limit")
    except CgroupError as error:
        if error.errno == errno.ENODEV:
            raise UnsupportedError(
                f"io limit of {number}", "the kernel limits whole disks only", "name the disk"
            ) from error
        raise
