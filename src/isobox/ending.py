"""The end of a program: brought about where it has to be, made sure of, told with its reason and costs.

It comes over the exec's own pipe (a struct isobox_reply), as the end of what a pump reads.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal as signals
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, NoReturn

from attrs import evolve

from . import _native
from .cgroups import Group, OomWatch
from .errors import CgroupError, IsoboxError, StateError
from .interrupts import Undisturbed
from .plan.ops import Op
from .programs import Programs
from .refusals import exec_error
from .result import Reason
from .spec import ExecSpec
from .usage import Usage

_END_SECONDS: Final = 10.0
"""How long a killed program may take to be gone: longer only in the kernel's uninterruptible sleep."""

_KILL_AGAIN_NS: Final = 500_000
_KILL_AGAIN_MOST_NS: Final = 50_000_000

_GONE_SECONDS: Final = 10.0
"""How long a container whose init went away may take to be gone with all that runs in it."""

_WALL_PER_CPU_SECONDS: Final = 30.0
"""A CPU time limit implies a wall-clock limit this much above it: a sleeping program uses no CPU time."""


class Ending:
    """A `Process` with regard to its end."""

    def __init__(
        self,
        programs: Programs,
        spec: ExecSpec,
        *,
        number: int,
        status_fd: int,
        group: Group,
        ops: Sequence[Op],
        kept: ExitStack,
        data: bytes = b"",
    ) -> None:
        self.args: tuple[str, ...] = tuple(map(os.fsdecode, spec.args))
        self.returncode: int | None = None
        self._programs = programs
        self._spec = spec
        self._number = number
        self._status_fd = status_fd
        self._group = group
        self._ops = ops
        self._kept = kept
        self._data = data
        self._began = time.monotonic_ns()
        self._reason: Reason | None = None
        self._killed = False
        self._truncated = False
        self._reply: _native.Reply | None = None
        self._usage: Usage | None = None
        self._oom: OomWatch | None = None
        self._output: tuple[bytes, bytes] = (b"", b"")
        self._lock = threading.RLock()
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._guard: threading.Thread | None = None
        wall = spec.timeout
        if spec.cpu_time is not None:
            share = programs.limits.cpu
            implied = spec.cpu_time / min(1.0, share or 1.0) + _WALL_PER_CPU_SECONDS
            wall = implied if wall is None else min(wall, implied)
        self._wall_deadline = -1 if wall is None else self._began + int(wall * 1e9)
        # A group can't use CPU time faster than all its cpus together: no need to look earlier.
        self._cpu_check = -1 if spec.cpu_time is None else self._began + cpu_gap(spec.cpu_time)
        self._oom_from = -1

    def _enforce(self, reason: Reason, pump: _native.Pump) -> None:
        """End everything that this exec started."""
        if self._reason is None:
            self._reason = reason
        self._kill_all()
        if reason == "output-limit":
            pump.stop_reading()  # not before: the program would meet SIGPIPE first
        deadline = time.monotonic_ns() + int(_END_SECONDS * 1e9)
        pause = _KILL_AGAIN_NS
        while True:
            event = pump.run(time.monotonic_ns() + pause)
            if event in (_native.PUMP_ENDED, _native.PUMP_LOST):
                return
            if event == _native.PUMP_LIMIT:
                self._truncated = True
                pump.stop_reading()
            elif event == _native.PUMP_WATCH:
                pump.unwatch()
            elif event == _native.PUMP_DEADLINE:
                if self._programs.paused:
                    deadline = time.monotonic_ns() + int(_END_SECONDS * 1e9)
                elif time.monotonic_ns() > deadline:
                    raise StateError(f"{self.args[0]} was killed and does not end: it hangs in the kernel")
                self._kill_all()  # it may have joined its cgroup after the last time
                pause = min(pause * 2, _KILL_AGAIN_MOST_NS)

    def _kill_all(self) -> None:
        if not self._group.present:
            self._programs.control.signal(self._number, signals.SIGKILL)
            return
        try:
            self._group.kill()
        except CgroupError:
            if not self._programs.paused:  # else it ends when it goes on
                raise

    def _lose(self, pump: _native.Pump, error: OSError | StateError) -> NoReturn:
        """Give everything back of a program whose end will never be told."""
        with contextlib.suppress(IsoboxError):
            self._kill_all()
        self._failure = StateError(f"{self.args[0]}: its end can't be told: {error}")
        self._release(pump)
        self._ended.set()
        raise self._failure from None

    def _finish(self, pump: _native.Pump) -> None:
        """Make sure that nothing is left, then take the last readings. What fails there, `wait` raises."""
        try:
            self._conclude(pump)
        except BaseException as error:
            self._failure = copy.copy(error)  # its traceback holds this object, which would hold it
            self._release(pump)
            self._ended.set()
            raise

    def _conclude(self, pump: _native.Pump) -> None:
        reply = pump.reply()
        if reply is None:  # init closed its files; the kernel may not be done with ending the rest
            self._programs.over(_GONE_SECONDS)
        with Undisturbed():  # looking opens a file
            left = self._group.present and not self._programs.ending and not self._group.empty()
        if left:
            try:
                self._group.kill()
            except CgroupError:
                if not self._programs.over():
                    raise
        if reply is not None and pump.run() == _native.PUMP_LIMIT:  # what the last ones wrote
            self._truncated = True
            self._reason = self._reason or "output-limit"
        self._output = (pump.output(0), pump.output(1))
        if reply is not None and reply.kind == _native.FAILED:
            raise exec_error(self._ops, reply, self.args[0])
        self._reply = reply
        with Undisturbed():  # it opens a file for each reading
            usage = self._measure(reply)
        status = reply.status if reply is not None else signals.SIGKILL
        code = -(status & 0x7F) if status & 0x7F else status >> 8 & 0xFF
        ran_out = self._programs.ran_out_of_memory(usage.oom_kills, code == -signals.SIGKILL)
        if self._reason is None:
            if (self._programs.killed or self._killed) and code == -signals.SIGKILL:  # else it ended before
                self._reason = "killed"
            elif ran_out:
                self._reason = "oom"
            elif reply is None:
                self._reason = "killed"
            else:
                self._reason = "signaled" if code < 0 else "exited"
        if self._reason == "oom":
            # Ended as a whole on v2; on v1 what is left of it may still get to an end of its own.
            code = -signals.SIGKILL
        self._usage = usage
        self._release(pump)
        self.returncode = code
        self._ended.set()

    def _release(self, pump: _native.Pump) -> None:
        pump.close()
        self._group.close()
        self._oom = None  # the group's own
        self._programs.running.pop(self._number, None)

    def _measure(self, reply: _native.Reply | None) -> Usage:
        usage = self._group.read() if self._spec.measure and self._group.present else Usage()
        values: dict[str, Any] = {}
        sources = dict(usage.sources)
        observed = (time.monotonic_ns() - self._began) / 1e9
        wall = observed
        if reply is not None and 0 <= reply.end_ns - reply.start_ns <= (observed + 1.0) * 1e9:
            wall = (reply.end_ns - reply.start_ns) / 1e9
        values["wall_time"] = wall
        sources["wall_time"] = "clock_gettime(CLOCK_MONOTONIC)"
        if usage.cpu_time is None and reply is not None:
            user, system = max(0, reply.user_us) / 1e6, max(0, reply.system_us) / 1e6
            values.update(cpu_user=user, cpu_system=system, cpu_time=user + system)
            for name in ("cpu_user", "cpu_system", "cpu_time"):
                sources[name] = "wait4(2) rusage"
            values["notes"] = (*usage.notes, "CPU time is of the processes that were waited for only")
        return evolve(usage, sources=sources, **values)


def cpu_gap(left: float) -> int:
    """How long, in ns, a group takes at least to use `left` seconds of CPU time."""
    return max(1_000_000, int(left / (os.cpu_count() or 1) * 1e9))
