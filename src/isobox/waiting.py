"""Waiting for a program's end, which is a poll.

Whoever waits also enforces: the wall-clock and CPU time limits, the output limit, the memory limit's
verdict. A Process made by `popen` with a limit in time has a thread that does this whether anyone waits
or not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from subprocess import TimeoutExpired
from typing import Final

from . import _native
from .ending import Ending, cpu_gap
from .errors import StateError
from .interrupts import Undisturbed
from .worker import take_no_signals

_OOM_WATCH_NS: Final = 3_000_000
"""How long a program runs before it is watched for kills by the memory limit, of which its end tells too."""


class Waiting(Ending):
    """A `Process` with regard to who waits for it, and to its limits."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when the program has ended."""
        return self._status_fd

    def poll(self) -> int | None:
        """Return `returncode` if it has ended, else None. Never blocks."""
        if self._ended.is_set():
            return self._outcome()
        self._programs.check_ours()
        if self._guard is None and self._lock.acquire(blocking=False):
            try:
                self._supervise(_native.Pump(self._status_fd), 0)
            finally:
                self._lock.release()
        return self._outcome()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return `returncode`; after it, nothing that it started is left.

        Raises `subprocess.TimeoutExpired` after `timeout` seconds; the program goes on.
        """
        if not self._ended.is_set() and not self._await_end(timeout):
            raise TimeoutExpired(list(self.args), timeout or 0.0)
        code = self._outcome()
        assert code is not None
        return code

    def _await_end(self, timeout: float | None) -> bool:
        self._programs.check_ours()
        if self._guard is not None:
            return self._ended.wait(timeout)
        deadline = -1 if timeout is None else time.monotonic_ns() + int(max(0.0, timeout) * 1e9)
        if not self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            return False
        try:
            return self._supervise(_native.Pump(self._status_fd), deadline)
        finally:
            self._lock.release()

    def _outcome(self) -> int | None:
        """Return `returncode`, or raise what went wrong at the end."""
        if self._failure is not None:
            raise self._failure
        return self.returncode

    # Limits

    def _guard_limits(self) -> None:
        """Enforce limits in time and memory even when nobody waits."""
        if self._wall_deadline < 0 and self._cpu_check < 0 and not self._watches_memory():
            return
        self._guard = threading.Thread(target=self._wait_in_guard, name="isobox-limits", daemon=True)
        self._guard.start()

    def _wait_in_guard(self) -> None:
        take_no_signals()
        try:
            self._supervise(_native.Pump(self._status_fd), -1)
        except BaseException as error:  # noqa: BLE001 - for the thread that waits: this one has nobody to tell
            self._failure = error
            self._ended.set()

    def _watches_memory(self) -> bool:
        return self._spec.memory is not None or self._programs.limits.memory is not None

    def _supervise(self, pump: _native.Pump, until: int) -> bool:
        """Wait and enforce until the end (True) or `until`, CLOCK_MONOTONIC ns, -1 for ever (False)."""
        with self._lock:
            if self._ended.is_set():
                return True
            if self._oom is not None:
                pump.watch(self._oom.fd, self._oom.events)
            elif self._watches_memory():
                self._oom_from = self._began + _OOM_WATCH_NS
            while True:
                times = [t for t in (until, self._wall_deadline, self._cpu_check, self._oom_from) if t >= 0]
                try:
                    event = pump.run(min(times) if times else -1)
                except (OSError, StateError) as error:  # garbage instead of a record
                    self._lose(pump, error)
                if event == _native.PUMP_ENDED:
                    break
                if event == _native.PUMP_LOST:
                    break
                if event == _native.PUMP_LIMIT:
                    self._truncated = True
                    self._enforce("output-limit", pump)
                    break
                if event == _native.PUMP_WATCH:
                    if self._oom_happened(pump):
                        self._enforce("oom", pump)
                        break
                elif event == _native.PUMP_DEADLINE:
                    now = time.monotonic_ns()
                    if 0 <= self._wall_deadline <= now:
                        self._enforce("timeout", pump)
                        break
                    if 0 <= self._cpu_check <= now and self._cpu_passed(now):
                        self._enforce("cpu-timeout", pump)
                        break
                    if 0 <= self._oom_from <= now and self._oom_begun(pump):
                        self._enforce("oom", pump)
                        break
                    if 0 <= until <= now:
                        return False
            self._finish(pump)
            return True

    def _cpu_passed(self, now: int) -> bool:
        limit = self._spec.cpu_time
        assert limit is not None
        used = self._group.cpu_time()
        if used is None:
            self._cpu_check = -1
            return False
        if used >= limit:
            return True
        self._cpu_check = now + cpu_gap(limit - used)
        return False

    def _oom_begun(self, pump: _native.Pump) -> bool:
        """Watch for kills from now on; whether there was one already."""
        self._oom_from = -1
        with Undisturbed():
            self._oom = self._group.oom_watch()
        if self._oom is not None:
            with contextlib.suppress(OSError):  # gone with its container
                self._oom.reset()
            pump.watch(self._oom.fd, self._oom.events)
        return self._group.oom_kills() > 0

    def _oom_happened(self, pump: _native.Pump) -> bool:
        """Whether one of this exec's processes was killed; the notice may be about another exec's."""
        assert self._oom is not None
        try:
            self._oom.reset()
        except OSError:
            pump.unwatch()
        until = time.monotonic() + self._oom.lead
        while not self._group.oom_kills():
            if time.monotonic() >= until:
                return False
            time.sleep(0.0005)
        return True
