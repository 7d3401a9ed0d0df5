"""What a program or a container cost, as the kernel measured it."""

from __future__ import annotations

from attrs import Factory, frozen


@frozen(slots=False)  # made for every exec: a class with a __dict__ is built in half the time
class Usage:
    """Costs, in seconds (float) and bytes (int). None where the kernel cannot tell: never a guess.

    `sources` names, for each number that is there, the file or call that it was read from;
    `notes` says in words what makes a number doubtful.

    >>> usage = Usage(cpu_user=0.25, cpu_system=0.05, sources={"cpu_user": "cpuacct.stat"})
    >>> usage.memory_peak is None
    True
    """

    wall_time: float | None = None
    """Seconds from the start of the program to its end, by the monotonic clock."""
    cpu_time: float | None = None
    """Seconds of CPU time, user and system, of everything in the group."""
    cpu_user: float | None = None
    """Seconds of CPU time spent in user mode."""
    cpu_system: float | None = None
    """Seconds of CPU time spent in the kernel."""
    memory_peak: int | None = None
    """Bytes: the kernel's own high-water mark for all processes together, shared pages once."""
    pids_peak: int | None = None
    """The most processes and threads that were there at one time."""
    io_read: int | None = None
    """Bytes read from block devices."""
    io_write: int | None = None
    """Bytes written to block devices."""
    throttled_time: float | None = None
    """Seconds that the program was held back because its share of CPU was used up."""
    throttled_periods: int | None = None
    """Number of scheduling periods in which the program was held back."""
    oom_kills: int | None = None
    """Number of processes that the kernel killed because the memory limit was reached."""
    pressure: dict[str, float] | None = None
    """Seconds in which some process waited, by resource: ``{"cpu": 0.1, "io": 0.0, "memory": 0.0}``."""
    notes: tuple[str, ...] = ()
    """What makes a number doubtful: the host swapped, the CPU was throttled, a reading is absent."""
    sources: dict[str, str] = Factory(dict)
    """For each number: the file or call that it comes from."""
