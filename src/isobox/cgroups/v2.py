"""cgroup v2: one hierarchy for all controllers."""

from __future__ import annotations

import errno
import os
import select
from typing import Final

from ..errors import CgroupError, UnsupportedError
from ..spec import IoLimit
from .convert import (
    PERIOD,
    check_cpus,
    cpu_quota,
    device_numbers,
    format_ranges,
    parse_flat,
    parse_io_max,
    parse_number,
    parse_pressure,
    parse_ranges,
    whole_pages,
)
from .dialect import Dialect, OomWatch, Reading, set_disk
from .directory import Directory

_IO = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


def _make_room(group: Directory, limit: int, hint: str) -> None:
    """Free what a running group has above its new limit, or raise `CgroupError`: EBUSY, as v1 does.

    Written at once, memory.max would have the kernel kill until enough is freed; it does not wait for what
    dies to give its memory back, and so kills more than it must, a container's init too.
    """

    def fits() -> bool:
        return parse_number(group.read_if_there("memory.current") or b"0") <= limit

    if group.is_warm("memory.max") or fits():  # warm: new, with a container's init at most
        return
    if parse_flat(group.read("cgroup.events")).get("populated") == 0:
        return  # what the kernel itself needs for the group
    group.write("memory.high", str(limit))
    try:
        if not fits():
            busy = OSError(errno.EBUSY, "")
            raise group.refused(busy, "memory.max", str(limit), hint)
    finally:
        group.write("memory.high", "max")


class _V2(Dialect):
    limit_files = ("memory.max", "memory.swap.max", "cpu.max", "pids.max")

    def set_cpu(self, group: Directory, cores: float | None) -> None:
        if cores is None:
            value = f"max {PERIOD}"
        else:
            quota, period = cpu_quota(cores)
            value = f"{quota} {period}"
        group.set("cpu.max", value, lambda kept: kept.decode().strip() == value, "cpu limit")

    def set_cpu_weight(self, group: Directory, weight: int) -> None:
        group.set("cpu.weight", str(weight), lambda kept: int(kept) == weight, "cpu_weight")

    def set_cpuset(self, group: Directory, cpus: frozenset[int] | None) -> None:
        above = Directory(group.tree, os.path.dirname(group.name) or ".")
        # The kernel takes any list here; what it grants is in the effective file.
        usable = parse_ranges(above.read("cpuset.cpus.effective"))
        check_cpus(cpus, usable)
        # Lifted it names all: the kernel takes no empty list for a group in which processes are.
        wanted = usable if cpus is None else cpus
        text = format_ranges(wanted)
        group.set("cpuset.cpus", text, lambda kept: parse_ranges(kept) == wanted, "cpuset")
        granted = parse_ranges(group.read("cpuset.cpus.effective"))
        if granted != wanted:
            message = f"of the CPUs {format_ranges(wanted)} these are granted: {format_ranges(granted)}"
            raise CgroupError(errno.EINVAL, message, stage="cgroup", op="cpuset.cpus")

    def set_memory(self, group: Directory, memory: int | None, swap: int, *, host_swap: bool) -> None:
        files = {"memory.max": None if memory is None else whole_pages(memory)}
        if group.read_if_there("memory.swap.max") is not None:
            files["memory.swap.max"] = None if memory is None else whole_pages(swap)
        elif memory is not None and host_swap:
            raise UnsupportedError(
                "memory limit",
                "the host has swap and its kernel does not count it, so a program could escape into it",
                "boot with swapaccount=1, or switch swap off: swapoff -a",
            )
        hint = "More is in use than can be freed"
        if memory is not None:
            _make_room(group, whole_pages(memory), hint)
        for file, value in files.items():
            text = "max" if value is None else str(value)
            group.set(file, text, f"{text}\n".encode().__eq__, "memory limit", hint)

    def set_io(self, group: Directory, limits: tuple[IoLimit, ...], before: tuple[IoLimit, ...]) -> None:
        wanted: dict[str, dict[str, int | None]] = {}
        for limit in before:
            wanted[device_numbers(limit.device)] = dict.fromkeys(_IO.values())
        for limit in limits:
            values = wanted.setdefault(device_numbers(limit.device), dict.fromkeys(_IO.values()))
            values.update(
                {key: getattr(limit, name) for name, key in _IO.items() if getattr(limit, name) is not None}
            )
        for number, values in wanted.items():
            text = " ".join(f"{key}={'max' if value is None else value}" for key, value in values.items())

            def holds(kept: bytes, number: str = number, values: dict[str, int | None] = values) -> bool:
                # A device without any limit is not listed.
                return parse_io_max(kept).get(number, dict.fromkeys(_IO.values())) == values

            set_disk(group, "io.max", number, text, holds)

    def cpu_time_file(self) -> str:
        return "cpu.stat"

    def parse_cpu_time(self, text: bytes) -> float:
        used = parse_flat(text).get("usage_usec")
        if used is None:
            raise CgroupError(errno.EBADMSG, "no usage_usec in cpu.stat", stage="cgroup")
        return used / 1e6

    def read_cpu(self, group: Directory, reading: Reading) -> None:
        text = group.read_if_there("cpu.stat")
        values = {} if text is None else parse_flat(text)
        for name, key in (
            ("cpu_time", "usage_usec"),
            ("cpu_user", "user_usec"),
            ("cpu_system", "system_usec"),
        ):
            if key in values:
                reading.add(name, values[key] / 1e6, "cpu.stat")

    def read_memory(self, group: Directory, reading: Reading) -> None:
        text = group.read_if_there("memory.peak")
        if text is None:
            reading.notes.append("no memory_peak: the kernel keeps it from Linux 5.19 on")
        else:
            reading.add("memory_peak", parse_number(text), "memory.peak")

    def read_io(self, group: Directory, reading: Reading) -> None:
        text = group.read_if_there("io.stat")
        if text is None:
            return
        devices = parse_io_max(text).values()
        reading.add("io_read", sum(device.get("rbytes") or 0 for device in devices), "io.stat")
        reading.add("io_write", sum(device.get("wbytes") or 0 for device in devices), "io.stat")

    def throttled(self, group: Directory) -> tuple[int, float] | None:
        text = group.read_if_there("cpu.stat")
        values = {} if text is None else parse_flat(text)
        if not {"nr_throttled", "throttled_usec"} <= values.keys():
            return None
        return values["nr_throttled"], values["throttled_usec"] / 1e6

    def read_pressure(self, group: Directory, reading: Reading) -> None:
        found = {}
        for resource in ("cpu", "io", "memory"):
            text = group.read_if_there(f"{resource}.pressure")
            seconds = None if text is None else parse_pressure(text)
            if seconds is not None:
                found[resource] = seconds
        if found:
            reading.add("pressure", found, "*.pressure")

    def oom_kills(self, group: Directory) -> int:
        text = group.read_if_there("memory.events")
        events = {} if text is None else parse_flat(text)
        killed = events.get("oom_kill", 0)
        # Where it ends a group as a whole, the kernel may count the first one twice (mm/oom_kill.c).
        return max(min(killed, 1), killed - events.get("oom_group_kill", 0))

    def oom_watch(self, group: Directory) -> OomWatch:
        return OomWatch(group.open("memory.events", os.O_RDONLY), select.POLLPRI, 0.0)

    unlimited = "max"
    hugetlb_files = ("max", "rsvd.max")

    def holds_pages(self, kept: bytes, text: str) -> bool:
        return kept.decode().strip() == text

    thawing = ("cgroup.freeze", "0")

    def freeze(self, group: Directory) -> None:
        group.write("cgroup.freeze", "1")

    def is_frozen(self, group: Directory) -> bool:
        text = group.read_if_there("cgroup.events")
        return text is not None and parse_flat(text).get("frozen") == 1


V2: Final[Dialect] = _V2()
