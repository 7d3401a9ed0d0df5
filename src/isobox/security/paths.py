"""Paths under /proc and /sys that a container does not see, or sees but can't write.

The lists are those that the OCI engines share (Docker's ``DefaultLinuxSpec``, containerd's and
Podman's equals). In a user namespace of its own the kernel refuses most of it anyway, by the files'
owner: there only what all may read, and the sysctls of the container's own namespaces, are left to cover.

>>> from isobox.security.capabilities import ALL
>>> covers(own_userns=True, capabilities=ALL)
Covers(masked=(), read_only=())
"""

from __future__ import annotations

import glob
import os
import stat
from functools import lru_cache
from typing import Final

from attrs import frozen

from .capabilities import BITS

MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    # One for each CPU: its counters let two containers talk and tell what the neighbours do.
    "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle",
)
"""Patterns of what is covered: a file by /dev/null, a directory by an empty read-only one."""

READ_ONLY: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
"""Bound onto themselves read-only. /sys as a whole is mounted read-only already."""

_OWNED_SYSCTLS: Final = "/proc/sys"


@frozen
class Covers:
    """What this host has of them. `masked`: path, and whether it is a directory."""

    masked: tuple[tuple[str, bool], ...]
    read_only: tuple[str, ...]


@lru_cache(maxsize=16)
def covers(*, own_userns: bool, capabilities: int) -> Covers:
    """Return what to cover in a container.

    `own_userns`: it has a user namespace of its own. With ``CAP_SYS_ADMIN`` there a program could take the
    covers off; and the kernel gives a user namespace below it no /proc of its own while something of /proc
    is covered (``mnt_already_visible`` in fs/namespace.c), so containers in it could not start: it gets
    none. Looks at the host once per process.
    """
    if own_userns and capabilities >> BITS["CAP_SYS_ADMIN"] & 1:
        return Covers((), ())
    found = [path for pattern in MASKED for path in sorted(glob.glob(pattern))]
    masked = [(path, os.stat(path).st_mode) for path in found]
    return Covers(
        tuple((path, stat.S_ISDIR(mode)) for path, mode in masked if mode & stat.S_IROTH or not own_userns),
        tuple(path for path in READ_ONLY if os.path.exists(path)) if not own_userns else (_OWNED_SYSCTLS,),
    )
