"""cgroup v1: a hierarchy for each controller."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from typing import Final

from ..errors import CgroupError, UnsupportedError
from ..spec import IoLimit
from .convert import (
    PERIOD,
    check_cpus,
    cpu_quota,
    device_numbers,
    format_ranges,
    parse_devices,
    parse_flat,
    parse_number,
    parse_ranges,
    parse_service,
    split_cpu_time,
    weight_to_shares,
    whole_pages,
)
from .dialect import Dialect, OomWatch, Reading, set_disk
from .directory import Directory

_IO = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}
_SERVICE = "blkio.throttle.io_service_bytes_recursive"


def _holds_size(size: int) -> Callable[[bytes], bool]:
    # No limit (-1) reads back as the largest whole number of pages.
    return lambda kept: parse_number(kept) == size or (size < 0 and parse_number(kept) >= 2**62)


def _holds_device(number: str, value: int) -> Callable[[bytes], bool]:
    return lambda kept: parse_devices(kept).get(number, 0) == value


def _holds_ranges(wanted: frozenset[int]) -> Callable[[bytes], bool]:
    return lambda kept: parse_ranges(kept) == wanted


def _number(expected: int) -> bytes:
    return b"%d\n" % expected


class _V1(Dialect):
    limit_files = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "cpu.cfs_quota_us", "pids.max")

    def set_cpu(self, group: Directory, cores: float | None) -> None:
        quota, period = (-1, PERIOD) if cores is None else cpu_quota(cores)
        files = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period}
        fresh = group.is_warm("cpu.cfs_quota_us")
        now = _number(PERIOD) if fresh else group.read_if_there("cpu.cfs_period_us")
        if now == _number(period):
            del files["cpu.cfs_period_us"]
        elif now is not None and parse_number(now) > period:  # first the one that keeps the limit tight
            files = dict(reversed(files.items()))
        for file, value in files.items():
            text = _number(value)
            try:
                group.set(file, str(value), text.__eq__, "cpu limit")
            except CgroupError as error:
                if error.errno == errno.EINVAL and cores is not None:  # v1 allows no more than above
                    why = f"a group that this process is in allows less than {cores} cores"
                    raise UnsupportedError("cpu limit", why, "ask for no more than it allows") from error
                raise

    def set_cpu_weight(self, group: Directory, weight: int) -> None:
        shares = weight_to_shares(weight)
        group.set("cpu.shares", str(shares), _number(shares).__eq__, "cpu_weight")

    def set_cpuset(self, group: Directory, cpus: frozenset[int] | None) -> None:
        above = Directory(group.tree, os.path.dirname(group.name) or ".")
        inherit_cpuset(above)
        usable = parse_ranges(above.read("cpuset.cpus"))
        check_cpus(cpus, usable)
        nodes = parse_ranges(above.read("cpuset.mems"))
        for file, wanted in (("cpuset.mems", nodes), ("cpuset.cpus", usable if cpus is None else cpus)):
            group.set(file, format_ranges(wanted), _holds_ranges(wanted), "cpuset")

    def set_memory(self, group: Directory, memory: int | None, swap: int, *, host_swap: bool) -> None:
        limit = -1 if memory is None else whole_pages(memory)
        both = -1 if memory is None else whole_pages(memory + swap)
        files = {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": both}
        if group.is_warm("memory.memsw.limit_in_bytes"):
            now: bytes | None = b"%d" % 2**63
        else:
            now = group.read_if_there("memory.memsw.limit_in_bytes")
        if now is None:
            if memory is not None and host_swap:
                raise UnsupportedError(
                    "memory limit",
                    "the host has swap and its kernel does not count it, so a program could escape into it",
                    "boot with swapaccount=1, or switch swap off: swapoff -a",
                )
            del files["memory.memsw.limit_in_bytes"]
        elif (
            limit < 0 or parse_number(now) < limit
        ):  # the kernel keeps memory below memory + swap at all times
            files = dict(reversed(files.items()))
        hint = "More may be in use than can be freed, or a group above has a smaller limit"
        for file, value in files.items():
            group.set(
                file,
                str(value),
                _holds_size(value),
                "memory limit",
                hint,
            )

    def set_io(self, group: Directory, limits: tuple[IoLimit, ...], before: tuple[IoLimit, ...]) -> None:
        wanted: dict[tuple[str, str], int] = {}
        for limit in before:
            number = device_numbers(limit.device)
            wanted.update(
                {(file, number): 0 for name, file in _IO.items() if getattr(limit, name) is not None}
            )
        for limit in limits:
            number = device_numbers(limit.device)
            for name, file in _IO.items():
                if getattr(limit, name) is not None:
                    wanted[file, number] = getattr(limit, name)
        for (file, number), value in wanted.items():
            set_disk(group, file, number, str(value), _holds_device(number, value))

    def cpu_time_file(self) -> str:
        return "cpuacct.usage"

    def parse_cpu_time(self, text: bytes) -> float:
        return parse_number(text) / 1e9

    def read_cpu(self, group: Directory, reading: Reading) -> None:
        texts = [
            group.read_if_there(file) for file in ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys")
        ]
        if texts[0] is None:
            return
        total = parse_number(texts[0])
        reading.add("cpu_time", total / 1e9, "cpuacct.usage")
        if texts[1] is not None and texts[2] is not None:
            user, system = split_cpu_time(total, parse_number(texts[1]), parse_number(texts[2]))
            reading.add("cpu_user", user / 1e9, "cpuacct.usage in the ratio of cpuacct.usage_user")
            reading.add("cpu_system", system / 1e9, "cpuacct.usage in the ratio of cpuacct.usage_sys")

    def read_memory(self, group: Directory, reading: Reading) -> None:
        text = group.read_if_there("memory.max_usage_in_bytes")
        if text is not None:
            reading.add("memory_peak", parse_number(text), "memory.max_usage_in_bytes")

    def read_io(self, group: Directory, reading: Reading) -> None:
        text = group.read_if_there(_SERVICE)
        found = None if text is None else parse_service(text)
        if found is not None:
            reading.add("io_read", found[0], _SERVICE)
            reading.add("io_write", found[1], _SERVICE)

    def throttled(self, group: Directory) -> tuple[int, float] | None:
        text = group.read_if_there("cpu.stat")
        if text is None:
            return None
        values = parse_flat(text)
        if not {"nr_throttled", "throttled_time"} <= values.keys():
            return None
        return values["nr_throttled"], values["throttled_time"] / 1e9

    def read_pressure(self, group: Directory, reading: Reading) -> None:
        return

    def oom_kills(self, group: Directory) -> int:
        text = group.read_if_there("memory.oom_control")
        return 0 if text is None else parse_flat(text).get("oom_kill", 0)

    def oom_watch(self, group: Directory) -> OomWatch:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = group.open("memory.oom_control", os.O_RDONLY)
            try:
                register = group.open("cgroup.event_control", os.O_WRONLY)
                try:
                    os.write(register, b"%d %d" % (event, control))
                finally:
                    os.close(register)
            finally:
                os.close(control)
        except OSError:
            os.close(event)
            raise
        return OomWatch(event, select.POLLIN, 0.025)

    unlimited = "-1"
    hugetlb_files = ("limit_in_bytes", "rsvd.limit_in_bytes")

    def holds_pages(self, kept: bytes, text: str) -> bool:
        return _holds_size(int(text))(kept)

    thawing = ("freezer.state", "THAWED")

    def freeze(self, group: Directory) -> None:
        group.write("freezer.state", "FROZEN")

    def is_frozen(self, group: Directory) -> bool:
        return group.read_if_there("freezer.state") == b"FROZEN\n"


V1: Final[Dialect] = _V1()


def inherit_cpuset(group: Directory) -> None:
    """Give a new v1 cpuset group the CPUs and memory nodes of the one above, and that one first.

    A new one has neither, and takes no process until it has both.
    """
    path = group.path
    missing = []
    while not _content(f"{path}/cpuset.cpus") or not _content(f"{path}/cpuset.mems"):
        missing.append(path)
        path = os.path.dirname(path)
        if not os.path.exists(f"{path}/cpuset.cpus"):
            raise CgroupError(0, f"no CPUs in any cpuset above {group.path}", stage="cgroup", op="cpuset")
    for below in reversed(missing):
        for file in ("cpuset.mems", "cpuset.cpus"):
            value = _content(f"{os.path.dirname(below)}/{file}")
            try:
                with open(f"{below}/{file}", "wb", buffering=0) as handle:
                    handle.write(value)
            except OSError as error:
                message = f"can't write {value.decode()!r} to {below}/{file}"
                raise CgroupError(error.errno or 0, message, stage="cgroup", op=file) from error


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall().strip()
