"""Limits as the kernel's files spell them, v1 and v2: pure functions, but for `device_numbers`."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from typing import Final

from ..errors import CgroupError, UnsupportedError
from ..units import MOST_CPUS

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
PERIOD: Final = 100_000
LONG_PERIOD: Final = 1_000_000
LEAST_QUOTA: Final = 1000
"""Microseconds: the smallest quota that the kernel takes; the longest period is a second."""


def cpu_quota(cores: float) -> tuple[int, int]:
    """Return (quota, period) in microseconds for so many cores.

    The period is 100 ms, and a second where the quota would be less than the kernel takes.

    >>> cpu_quota(0.5), cpu_quota(0.005)
    ((50000, 100000), (5000, 1000000))
    """
    period = PERIOD if cores * PERIOD >= LEAST_QUOTA else LONG_PERIOD
    return max(LEAST_QUOTA, round(cores * period)), period


def weight_to_shares(weight: int) -> int:
    """Return the v1 cpu.shares of a v2 cpu.weight: what the scheduler makes of either is equal.

    The kernel's own rule: the default weight 100 is the default of 1024 shares.

    >>> [weight_to_shares(weight) for weight in (1, 100, 10000)]
    [10, 1024, 102400]
    """
    return max(2, (weight * 1024 + 50) // 100)


def shares_to_weight(shares: int) -> int:
    """Return the v2 cpu.weight of v1 cpu.shares; out of its bounds, the nearest.

    >>> [shares_to_weight(shares) for shares in (2, 1024, 262144)]
    [1, 100, 10000]
    """
    return min(10000, max(1, (shares * 100 + 512) // 1024))


def whole_pages(size: int) -> int:
    """Return ``size`` as the kernel keeps a limit of memory: rounded down to whole pages."""
    return size // PAGE * PAGE


def split_cpu_time(total: int, user: int, system: int) -> tuple[int, int]:
    """Split the exact ``total`` in the ratio of the other two, which v1 only samples at clock ticks.

    So does the kernel itself for getrusage and for v2's cpu.stat: the parts add up everywhere.

    >>> split_cpu_time(3_000_000, 4_000_000, 8_000_000)
    (1000000, 2000000)
    """
    if system == 0:
        return total, 0
    if user == 0:
        return 0, total
    part = total * system // (user + system)
    return total - part, part


_DIGITS: Final = 20
"""Of the largest number that the kernel writes, one of 64 bits."""


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= _DIGITS


def _strange(text: bytes) -> CgroupError:
    return CgroupError(errno.EBADMSG, f"the kernel does not write {text[:40]!r}", stage="cgroup")


def parse_number(text: bytes) -> int:
    """Parse a file that holds one whole number. Raises `CgroupError`.

    >>> parse_number(b"4096\\n")
    4096
    """
    digits = text.strip()
    if not _is_number(digits.removeprefix(b"-")):
        raise _strange(text)
    return int(digits)


def parse_flat(text: bytes) -> dict[str, int]:
    """Parse a file of ``key value`` lines (cpu.stat, memory.events); others are left out.

    >>> parse_flat(b"nr_periods 3\\nthrottled_time 12\\n")["nr_periods"]
    3
    """
    values = {}
    for line in text.split(b"\n"):
        key, _, value = line.partition(b" ")
        if _is_number(value):
            values[key.decode(errors="replace")] = int(value)
    return values


def parse_devices(text: bytes) -> dict[str, int]:
    """Parse a v1 throttle file: ``254:0 1048576`` a line.

    >>> parse_devices(b"254:0 1048576\\n")
    {'254:0': 1048576}
    """
    return {key: value for key, value in parse_flat(text).items() if ":" in key}


def huge_page_name(size: int) -> str:
    """Return what the kernel calls huge pages of so many bytes, in the names of its files.

    >>> huge_page_name(2 << 20), huge_page_name(64 << 10)
    ('2MB', '64KB')
    """
    for unit, power in (("GB", 30), ("MB", 20)):
        if size >> power:
            return f"{size >> power}{unit}"
    return f"{size >> 10}KB"


def huge_pages() -> frozenset[int]:
    """Return the sizes of huge pages that this kernel has, in bytes: /sys/kernel/mm/hugepages."""
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        return frozenset()
    found = (re.fullmatch(r"hugepages-([0-9]+)kB", name) for name in names)
    return frozenset(int(match[1]) << 10 for match in found if match)


def parse_service(text: bytes) -> tuple[int, int] | None:
    """Return the (read, written) bytes of a v1 io_service_bytes file; None where it lists no device.

    >>> parse_service(b"254:0 Read 4096\\n254:0 Write 0\\n254:0 Sync 4096\\nTotal 4096\\n")
    (4096, 0)
    """
    sums = {b"Read": 0, b"Write": 0}
    found = False
    for line in text.split(b"\n"):
        parts = line.split()
        if len(parts) == 3 and parts[1] in sums and _is_number(parts[2]):
            sums[parts[1]] += int(parts[2])
            found = True
    return (sums[b"Read"], sums[b"Write"]) if found else None


def parse_io_max(text: bytes) -> dict[str, dict[str, int | None]]:
    """Parse v2's io.max or io.stat: a device, then ``key=value`` each; ``max`` is None.

    >>> parse_io_max(b"254:0 rbps=max wbps=1024 riops=max wiops=max\\n")["254:0"]["wbps"]
    1024
    """
    devices: dict[str, dict[str, int | None]] = {}
    for line in text.split(b"\n"):
        device, _, rest = line.partition(b" ")
        if not rest:
            continue
        values: dict[str, int | None] = {}
        for pair in rest.split():
            key, _, value = pair.partition(b"=")
            if value == b"max" or _is_number(value):
                values[key.decode(errors="replace")] = None if value == b"max" else int(value)
        devices[device.decode(errors="replace")] = values
    return devices


def parse_pressure(text: bytes) -> float | None:
    """Return the seconds in which some process waited, from a v2 pressure file.

    >>> parse_pressure(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\\n")
    1.5
    """
    for line in text.split(b"\n"):
        if line.startswith(b"some "):
            _, separator, total = line.rpartition(b"total=")
            if separator and _is_number(total):
                return int(total) / 1e6
    return None


def parse_ranges(text: bytes) -> frozenset[int]:
    """Parse a list of CPUs or memory nodes as the kernel writes it; empty is the empty set.

    Raises `CgroupError` for anything else, and for numbers that no CPU has.

    >>> sorted(parse_ranges(b"0-2,5\\n"))
    [0, 1, 2, 5]
    """
    numbers: list[int] = []
    for part in text.strip().split(b","):
        if not part:
            continue
        first, dash, last = part.partition(b"-")
        last = last if dash else first
        if not (_is_number(first) and _is_number(last)):
            raise _strange(text)
        start, end = int(first), int(last)
        if not (numbers[-1] if numbers else -1) < start <= end < MOST_CPUS:
            raise _strange(text)
        numbers.extend(range(start, end + 1))
    return frozenset(numbers)


def format_ranges(numbers: Iterable[int]) -> str:
    """Return numbers as the kernel takes them."""
    return ",".join(map(str, sorted(numbers)))


def check_cpus(cpus: frozenset[int] | None, usable: frozenset[int]) -> None:
    """Raise `UnsupportedError` unless all of ``cpus`` are ``usable``."""
    if cpus is not None and not cpus <= usable:
        why = (
            f"of the CPUs {format_ranges(cpus)} this process may use {format_ranges(cpus & usable) or 'none'}"
        )
        raise UnsupportedError("cpuset", why, f"ask for some of the CPUs {format_ranges(usable)}")


def device_numbers(device: str) -> str:
    """Return ``major:minor`` of the disk of ``device``: a node, numbers, or a path on a file system.

    The kernel limits whole disks, so a partition becomes its disk. Raises `UnsupportedError`.
    """
    feature = f"io limit of {device}"
    major, _, minor = device.partition(":")
    if major.isdecimal() and minor.isdecimal():
        number = os.makedev(int(major), int(minor))
    else:
        try:
            status = os.stat(device)
        except OSError as error:
            raise UnsupportedError(
                feature, str(error.strerror), "name a device or a path that is there"
            ) from error
        number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    if os.major(number) == 0:
        why = "its file system (tmpfs, overlay, network, btrfs ...) is not on one block device"
        raise UnsupportedError(feature, why, "name the block device itself, such as /dev/sda")
    entry = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if os.path.exists(f"{entry}/partition"):
        with open(f"{entry}/../dev") as file:
            return file.read().strip()
    return f"{os.major(number)}:{os.minor(number)}"
