"""Paths under /proc and /sys that a container does not see, or sees but can't write.

The lists are those that the OCI engines share. They hold for every container: a user namespace
already refuses most writes, but many of these files are readable by everyone and tell about the
host, and in a container with ``userns="host"`` they are the only wall.
A path that the running kernel doesn't have is skipped.
"""

from __future__ import annotations

MASKED: tuple[str, ...] = (
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
)
"""Covered: a file by /dev/null, a directory by an empty read-only tmpfs."""

READ_ONLY: tuple[str, ...] = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
"""Bound onto themselves read-only. /sys as a whole is mounted read-only already."""

MASKED_PER_CPU: str = "/sys/devices/system/cpu/cpu{number}/thermal_throttle"
"""One for each CPU: its counters let two containers talk and tell what the neighbours do."""
