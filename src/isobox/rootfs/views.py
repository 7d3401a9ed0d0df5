"""What a program in a container reads about its machine: the limits, in place of the host's size.

The contents of /proc/meminfo, /proc/cpuinfo, /proc/stat and /sys/devices/system/cpu/online for what
is limited, and the cpus to pin the container to, so that ``os.cpu_count()``,
``os.sched_getaffinity(0)`` and the C library agree. CPUs keep the numbers that they have on the
host, since an affinity can't be renumbered.

The files are a picture of the limits, not of the use: free memory is the whole limit and the
counters of CPU time stand at zero.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from isobox.errors import UnsupportedError
from isobox.spec import Limits, format_cpuset, parse_cpuset

__all__ = ["VIEWED", "host_view", "visible_cpus", "views"]

MEMINFO = "/proc/meminfo"
CPUINFO = "/proc/cpuinfo"
STAT = "/proc/stat"
ONLINE = "/sys/devices/system/cpu/online"
VIEWED = (MEMINFO, CPUINFO, STAT, ONLINE)

_next_turn = itertools.count().__next__


def visible_cpus(limits: Limits, allowed: set[int]) -> set[int] | None:
    """Choose the cpus to pin a container to, of those that this process may use; None: all of them.

    A limit of 1.5 cores gives two cpus. Each call starts behind the cpus of the call before, and
    each process elsewhere, so that containers spread over the machine. Raises `UnsupportedError`
    when `limits.cpuset` names none that is allowed.

    >>> visible_cpus(Limits(cpuset=frozenset({1})), {0, 1})
    {1}
    >>> len(visible_cpus(Limits(cpu=0.5), {0, 1}))
    1
    """
    if limits.cpu is None and limits.cpuset is None:
        return None
    usable = sorted(allowed if limits.cpuset is None else allowed & limits.cpuset)
    if not usable:
        raise UnsupportedError(
            "cpuset",
            f"of the cpus {format_cpuset(limits.cpuset or ())} this process may use none",
            f"choose from {format_cpuset(allowed)}",
        )
    wanted = len(usable) if limits.cpu is None else max(1, math.ceil(limits.cpu))
    if wanted >= len(usable):
        return None if len(usable) == len(allowed) else set(usable)
    start = (os.getpid() + _next_turn()) * wanted % len(usable)
    return {usable[(start + turn) % len(usable)] for turn in range(wanted)}


def views(limits: Limits, ncpu_online: Sequence[int]) -> dict[str, bytes]:
    """Give path → contents for what `limits` limits; an empty dict where nothing is.

    `ncpu_online`: the cpus that the container is pinned to (`visible_cpus`), or, where that is None,
    those that this process may use.

    >>> sorted(views(Limits(memory=2**28), [0]))
    ['/proc/meminfo']
    """
    cpus: tuple[int, ...] | None = None
    if limits.cpu is not None or limits.cpuset is not None:
        shown = sorted(c for c in ncpu_online if limits.cpuset is None or c in limits.cpuset)
        if limits.cpu is not None:
            shown = shown[: max(1, math.ceil(limits.cpu))]
        cpus = tuple(shown)
    return dict(_views(cpus, limits.memory, limits.swap))


@lru_cache(maxsize=256)
def _views(cpus: tuple[int, ...] | None, memory: int | None, swap: int) -> tuple[tuple[str, bytes], ...]:
    found: list[tuple[str, bytes]] = []
    if memory is not None:
        host = _host(MEMINFO)
        total = re.search(rb"^MemTotal:\s+(\d+) kB", host, re.MULTILINE)
        # A limit above what the machine has gives no more than it has.
        if total is None or memory < int(total[1]) * 1024:
            found.append((MEMINFO, meminfo(host, memory, swap)))
    if cpus is not None and not _is_whole_machine(cpus):
        for path, render in ((CPUINFO, cpuinfo), (STAT, stat)):
            text = render(_host(path), frozenset(cpus))
            if text is not None:
                found.append((path, text))
        if os.path.exists(ONLINE):
            found.append((ONLINE, format_cpuset(cpus).encode() + b"\n"))
    return tuple(found)


def _is_whole_machine(cpus: tuple[int, ...]) -> bool:
    online = _host(ONLINE).decode().strip()
    return bool(online) and parse_cpuset(online) == set(cpus)


@lru_cache(maxsize=8)
def _host(path: str) -> bytes:
    """Read a file of the host's once; b"" where this machine has none."""
    return host_view(path)


def host_view(path: str) -> bytes:
    """What the host's own file says now, for a limit that was lifted; b"" where it has none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


# Sizes of the machine's kind, not amounts of its memory.
_KEPT = frozenset({b"VmallocTotal", b"Hugepagesize"})


def meminfo(host: bytes, memory: int, swap: int) -> bytes:
    r"""Render /proc/meminfo for limits in bytes: the host's lines, its amounts replaced or zero.

    >>> meminfo(b"MemTotal:  99 kB\nMemFree:   7 kB\nDirty:  3 kB\n", 4096, 0).split()
    [b'MemTotal:', b'4', b'kB', b'MemFree:', b'4', b'kB', b'Dirty:', b'0', b'kB']
    """
    amounts = {
        b"MemTotal": memory,
        b"MemFree": memory,
        b"MemAvailable": memory,
        b"SwapTotal": swap,
        b"SwapFree": swap,
        b"CommitLimit": memory // 2 + swap,
    }
    lines: list[bytes] = []
    for line in host.splitlines():
        name, colon, rest = line.partition(b":")
        if not colon or name.startswith(b"DirectMap"):
            continue
        if name in _KEPT:
            lines.append(line)
            continue
        amount = b"%d" % (amounts.get(name, 0) // 1024)
        unit = b" kB" if rest.endswith(b"kB") else b""
        lines.append(name + b":" + amount.rjust(max(16 - len(name), 1) + 7) + unit)
    return b"\n".join(lines) + b"\n"


def cpuinfo(host: bytes, cpus: frozenset[int]) -> bytes | None:
    """Keep the blocks of `cpus` and what belongs to no cpu; None where the text is of another kind."""
    kept: list[bytes] = []
    found = 0
    for block in host.split(b"\n\n"):
        number = re.match(rb"processor\s*:\s*(\d+)", block.lstrip())
        if number is None:
            if block.strip():
                kept.append(block)
        elif int(number[1]) in cpus:
            kept.append(block)
            found += 1
    if not found:
        return None
    return b"\n\n".join(block.strip(b"\n") for block in kept) + b"\n\n"


def stat(host: bytes, cpus: Iterable[int]) -> bytes | None:
    """Render /proc/stat with the lines of `cpus` and every counter at zero but the time of boot."""
    boot = re.search(rb"^btime \d+$", host, re.MULTILINE)
    if boot is None:
        return None
    zeros = b" 0" * 10
    lines = [b"cpu " + zeros]
    lines += [b"cpu%d" % cpu + zeros for cpu in sorted(cpus)]
    lines += [b"intr 0", b"ctxt 0", boot[0], b"processes 1", b"procs_running 1", b"procs_blocked 0"]
    lines.append(b"softirq" + b" 0" * 11)
    return b"\n".join(lines) + b"\n"
