"""Ending everything in a group, however it forks, and removing groups."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from ..errors import CgroupError
from .convert import parse_flat
from .directory import Directory

END_SECONDS: Final = 10.0
"""What the kernel may take to end a whole group, on a machine that is busy with other things too."""

_BATCH: Final = 128  # process descriptors held at one time
_SIGNAL_AGAIN: Final = 0.05
_MISSED: Final = 0.002
"""Seconds after which cgroup.kill has left something alive that takes a signal of its own."""


def is_empty(group: Directory) -> bool:
    """Return whether no living process is in the group or below; zombies don't count."""
    if group.tree.version == 2:
        text = group.read_if_there("cgroup.events")
        return text is None or parse_flat(text).get("populated") == 0
    if nobody(group):
        return True
    return not any(below.processes() for below in group.walk())


def nobody(group: Directory) -> bool:
    """Return whether the pids controller says that nobody is there, zombies included: one read."""
    try:
        return group.glance("pids.current") == b"0\n"
    except OSError:
        return False


def end(
    group: Directory,
    *,
    thaw: Callable[[], None] | None = None,
    unthrottle: Callable[[], None] | None = None,
    timeout: float = END_SECONDS,
) -> None:
    """Kill everything in the group and below, and return once it is all dead.

    Forks are stopped first: the group's pids.max stays 0. `thaw` is for a frozen group, in which
    signals (v1) wait; `unthrottle` is called where the dying takes time: a process that has used
    up its share of CPU dies only in the next period. Raises `CgroupError` where something still
    lives after ``timeout`` seconds.
    """
    if nobody(group):
        return
    deadline = time.monotonic() + timeout
    stop_forks(group)
    at_once = _kill_file(group)
    signaled: set[int] = set()
    again = time.monotonic() + (_MISSED if at_once else _SIGNAL_AGAIN)
    pause = 0.0002
    while True:
        if at_once:
            if is_empty(group):
                return
            # The kernel has signaled the first threads: one that has ended by itself takes it no further
            # (PIDTYPE_PID in __cgroup_kill), while others of its process run on.
            if time.monotonic() > again:
                _signal_all(group, signaled)
        elif not _signal_all(group, signaled):
            return
        if thaw is not None:
            thaw()
            thaw = None
        if unthrottle is not None and pause > 0.0004:
            unthrottle()
            unthrottle = None
        now = time.monotonic()
        if now > deadline:
            left = [pid for below in group.walk() for pid in below.processes()]
            message = f"processes {left[:8]} of {group.path} do not end"
            raise CgroupError(errno.EBUSY, message, stage="cgroup", op="kill")
        if now > again:  # a process id may have been used again within the group
            signaled.clear()
            again = now + _SIGNAL_AGAIN
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)


def stop_forks(group: Directory) -> None:
    """Set pids.max to 0: in the group and below, every fork fails from here on."""
    try:
        fd = group.open("pids.max", os.O_WRONLY)
    except OSError:
        return  # no pids controller here: the rounds below have to be faster than the forks
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def _kill_file(group: Directory) -> bool:
    if group.tree.version == 1:
        return False
    try:
        fd = group.open("cgroup.kill", os.O_WRONLY)
    except OSError:
        return False  # before Linux 5.14
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)
    return True


def _signal_all(group: Directory, signaled: set[int]) -> bool:
    """Send SIGKILL to each process not in ``signaled``; return whether any process was there."""
    alive = False
    for below in group.walk():
        pids = below.processes()
        alive = alive or bool(pids)
        fresh = [pid for pid in pids if pid not in signaled and pid != 0]
        for start in range(0, len(fresh), _BATCH):
            _signal(below, fresh[start : start + _BATCH])
        signaled.update(fresh)
    return alive


def _signal(group: Directory, pids: list[int]) -> None:
    """Kill these processes of the group, and never another one that got the number of a dead one.

    A descriptor holds on to one process; the number that is still listed after it was opened
    belongs to that process, or that process is dead and the signal goes nowhere.
    """
    own = os.getpid()
    held: dict[int, int] = {}
    try:
        for pid in pids:
            if pid == own:
                raise CgroupError(0, f"this process is itself in {group.path}", stage="cgroup", op="kill")
            try:
                held[pid] = os.pidfd_open(pid)
            except OSError as error:
                if error.errno == errno.EMFILE and held:
                    break
                if error.errno not in (errno.ESRCH, errno.EINVAL):  # dead, or only its threads live
                    raise
        listed = set(group.processes())
        for pid, fd in held.items():
            if pid in listed:
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except ProcessLookupError:
                    continue
    finally:
        for fd in held.values():
            os.close(fd)


def remove_all(group: Directory) -> bool:
    """Remove the group and everything below; False where something is in use. Raises OSError."""
    if group.remove():
        return True
    gone = True
    for below in group.walk():
        gone = below.remove() and gone
    return gone
