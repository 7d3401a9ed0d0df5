"""One running program of a container: its streams, its limits, its end.

The end comes over the exec's own pipe (a struct isobox_reply), so waiting is a poll. Whoever waits
also enforces: the wall-clock and CPU time limits, the output limit, the memory limit's verdict. A
Process made by `popen` with a limit in time has a thread that does this whether anyone waits or not.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import os
import signal as signals
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from subprocess import TimeoutExpired
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

from attrs import evolve

from . import _native
from .cgroups import Group, OomWatch
from .errors import CgroupError, ExecError, IsoboxError, SpecError, StateError
from .hints import hint
from .interrupts import Undisturbed
from .plan.ops import Op
from .programs import Programs
from .result import Reason, Result
from .spec import ExecSpec
from .start import exec_error
from .streams import Streams, resize
from .usage import Usage
from .worker import take_no_signals

if TYPE_CHECKING:
    from types import TracebackType


_END_SECONDS: Final = 10.0
"""How long a killed program may take to be gone: longer only in the kernel's uninterruptible sleep."""

_START_SECONDS: Final = 60.0
"""How long a program may take to its execve: long only where its cgroup has next to no CPU."""

_OOM_WATCH_NS: Final = 3_000_000
"""How long a program runs before it is watched for kills by the memory limit, of which its end tells too."""

_KILL_AGAIN_NS: Final = 500_000
_KILL_AGAIN_MOST_NS: Final = 50_000_000

_GONE_SECONDS: Final = 10.0
"""How long a container whose init went away may take to be gone with all that runs in it."""

_WALL_PER_CPU_SECONDS: Final = 30.0
"""A CPU time limit implies a wall-clock limit this much above it: a sleeping program uses no CPU time."""


class Process:
    """A program started by `Container.popen`, with the manners of `subprocess.Popen`.

    `stdin`, `stdout`, `stderr` are files where PIPE was asked for, else None; `returncode` is None
    until it has ended, then the exit status or the negative signal number. As a context manager it
    closes the streams and waits.

    >>> import isobox
    >>> with isobox.Container() as c, c.popen(["cat"], stdin=isobox.PIPE, stdout=isobox.PIPE) as p:
    ...     p.communicate(b"hello")
    (b'hello', b'')
    """

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
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
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
        self._opened = False
        self._truncated = False
        self._reply: _native.Reply | None = None
        self._usage: Usage | None = None
        self._oom: OomWatch | None = None
        self._output: tuple[bytes, bytes] = (b"", b"")
        self._lock = threading.RLock()
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._guard: threading.Thread | None = None
        self._terminal: int | None = None
        self._pid: int | None = None
        wall = spec.timeout
        if spec.cpu_time is not None:
            share = programs.limits.cpu
            implied = spec.cpu_time / min(1.0, share or 1.0) + _WALL_PER_CPU_SECONDS
            wall = implied if wall is None else min(wall, implied)
        self._wall_deadline = -1 if wall is None else self._began + int(wall * 1e9)
        # A group can't use CPU time faster than all its cpus together: no need to look earlier.
        self._cpu_check = -1 if spec.cpu_time is None else self._began + self._cpu_gap(spec.cpu_time)
        self._oom_from = -1

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"returncode {self.returncode}"
        return f"<isobox.Process {list(self.args)} {state}>"

    # Starting, for Container

    def _open_streams(self, streams: Streams) -> None:
        """Make files of our ends of the pipes."""
        spec = self._spec
        if spec.tty:
            self._terminal = streams.outside[1]
        files: list[IO[Any] | None] = []
        for number, fd in enumerate(streams.outside):
            if fd < 0:
                files.append(None)
                continue
            writes = number == 0
            raw = os.fdopen(fd, "wb" if writes else "rb", 0 if writes and not spec.text else -1)
            files.append(
                io.TextIOWrapper(
                    raw,
                    encoding=spec.encoding or "utf-8",
                    errors=spec.errors or "replace",
                    write_through=writes,
                )
                if spec.text
                else raw
            )
        self.stdin, self.stdout, self.stderr = files
        self._kept.pop_all()  # the files own the descriptors from here on
        self._opened = True

    def _await_start(self) -> None:
        """Wait until the program runs; raises what kept it from running."""
        deadline = self._began + int(_START_SECONDS * 1e9)
        if self._wall_deadline >= 0:
            deadline = min(deadline, self._wall_deadline)
        try:
            reply = _native.Pump(self._status_fd).run_until_start(deadline)
        except TimeoutError:
            raise StateError(f"{self.args[0]} was not started in time: init is deaf") from None
        if reply is not None and reply.kind == _native.FAILED:
            raise exec_error(self._ops, reply, self.args[0])
        if reply is None:
            raise self._programs.gone()

    def _give_up(self) -> None:
        """Kill what may have been started, wait for its end, give everything back."""
        try:
            if self._status_fd >= 0 and not self._ended.is_set():
                self._enforce("killed", _native.Pump(self._status_fd))
        finally:
            with Undisturbed():
                self._programs.running.pop(self._number, None)
                self._group.close()
                self._ended.set()
                if self._opened:
                    self.close()
                else:
                    self._status_fd = -1
                    self._kept.close()

    def _begin(self, streams: Streams) -> None:
        """Wait until it runs and hand it over, for `Container.popen`."""
        self._await_start()
        with Undisturbed():
            self._guard_limits()
            self._open_streams(streams)

    def _guard_limits(self) -> None:
        """Enforce limits in time and memory even when nobody waits."""
        if self._wall_deadline < 0 and self._cpu_check < 0 and not self._watches_memory():
            return
        self._guard = threading.Thread(target=self._wait_in_guard, name="isobox-limits", daemon=True)
        self._guard.start()

    def _watches_memory(self) -> bool:
        return self._spec.memory is not None or self._programs.limits.memory is not None

    def _wait_in_guard(self) -> None:
        take_no_signals()
        try:
            self._supervise(_native.Pump(self._status_fd), -1)
        except BaseException as error:  # noqa: BLE001 - for the thread that waits: this one has nobody to tell
            self._failure = error
            self._ended.set()

    # Waiting

    def _run(self, streams: Streams) -> None:
        """Feed, capture and wait in one go, for `Container.exec`."""
        with Undisturbed():
            stdin, stdout, stderr = streams.outside
            if stdin >= 0 and not self._data:  # a terminal's too: its other end is read, nothing is typed
                os.close(stdin)
                stdin = -1
            pump = _native.Pump(
                self._status_fd, stdin=stdin, stdout=stdout, stderr=stderr, data=self._data,
                limit=self._spec.output_limit,
            )  # fmt: skip
            self._kept.pop_all()  # the pump owns them from here on
            self._kept.callback(pump.close)
            self._kept.callback(os.close, self._status_fd)
        try:
            self._supervise(pump, -1)
        except BaseException:
            if self._reply is None and not self._ended.is_set():
                try:
                    self._enforce("killed", pump)
                finally:
                    self._release(pump)
            raise
        finally:
            with Undisturbed():
                self._status_fd = -1
                self._kept.close()

    def _cpu_gap(self, left: float) -> int:
        return max(1_000_000, int(left / (os.cpu_count() or 1) * 1e9))

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

    def _lose(self, pump: _native.Pump, error: OSError | StateError) -> NoReturn:
        """Give everything back of a program whose end will never be told."""
        with contextlib.suppress(IsoboxError):
            self._kill_all()
        self._failure = StateError(f"{self.args[0]}: its end can't be told: {error}")
        self._release(pump)
        self._ended.set()
        raise self._failure from None

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

    def _cpu_passed(self, now: int) -> bool:
        limit = self._spec.cpu_time
        assert limit is not None
        used = self._group.cpu_time()
        if used is None:
            self._cpu_check = -1
            return False
        if used >= limit:
            return True
        self._cpu_check = now + self._cpu_gap(limit - used)
        return False

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

    # Popen's manners

    @property
    def pid(self) -> int | None:
        """The program's pid as this process sees it; None once it has ended."""
        if self.returncode is not None:
            return None
        self._programs.check_ours()
        if self._pid is None:
            self._pid = self._programs.control.locate(self._number)
        return self._pid

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

    def _outcome(self) -> int | None:
        """Return `returncode`, or raise what went wrong at the end."""
        if self._failure is not None:
            raise self._failure
        return self.returncode

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

    def communicate(self, input: bytes | str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Feed `input` to stdin, read stdout and stderr to their end, wait. Returns (stdout, stderr).

        What is read is bounded by ``output_limit``. Raises `subprocess.TimeoutExpired`; call again to
        go on: nothing is lost.
        """
        self._programs.check_ours()  # it would take output from its parent
        deadline = -1 if timeout is None else time.monotonic_ns() + int(max(0.0, timeout) * 1e9)
        reader = self._reader(input)
        if not reader.run(deadline):
            raise TimeoutExpired(list(self.args), timeout or 0.0)
        left = None if deadline < 0 else max(0.0, (deadline - time.monotonic_ns()) / 1e9)
        self.wait(left)
        self._output = reader.output()
        self._reader_state = None
        return self._decoded()

    _reader_state: _Reader | None = None

    def _reader(self, input: bytes | str | None) -> _Reader:
        if self._reader_state is None:
            data = encode_input(input, self._spec)
            try:
                self._reader_state = _Reader(self, data)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                where = hint("host", error.errno)
                raise ExecError(error.errno, "read its output", stage="exec", hint=where) from error
        elif input is not None:
            raise SpecError("input", "...", "none when communicate goes on after a time-out")
        return self._reader_state

    def _decoded(self) -> tuple[Any, Any]:
        if not self._spec.text:
            return self._output
        encoding, errors = self._spec.encoding or "utf-8", self._spec.errors or "replace"
        out, err = (data.decode(encoding, errors) for data in self._output)
        return _newlines(out), _newlines(err)

    def send_signal(self, signal: int) -> None:
        """Send a signal to the program (not to what it started); nothing happens if it has ended."""
        self._programs.check_ours()
        number = int(signal)
        if number not in signals.valid_signals():  # those of real time have no names
            raise ValueError(f"{signal} is not a valid signal")
        if self.returncode is not None:
            return
        # Before it is sent: another thread may be waiting, and sees the end at once.
        kills, before = number == signals.SIGKILL, self._killed
        self._killed = before or kills
        if not self._programs.control.signal(self._number, number):
            self._killed = before

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """Kill the program; what it started ends with it, at the latest when `wait` returns.

        In a paused container it ends when that goes on.
        """
        self._programs.check_ours()
        if self._programs.paused and self.returncode is None:
            self._reason = self._reason or "killed"
            self._kill_all()
        else:
            self.send_signal(signals.SIGKILL)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the program's terminal its size (``tty=True``)."""
        if self._terminal is None:
            raise StateError("resize: this program has no terminal; start it with tty=True")
        resize(self._terminal, rows, columns)

    def result(self) -> Result[Any]:
        """Wait and return the whole Result; its stdout and stderr are those of `communicate`."""
        self.wait()
        assert self.returncode is not None and self._reason is not None and self._usage is not None
        out, err = self._decoded()
        return Result(self.args, self.returncode, out, err, self._reason, self._truncated, self._usage)

    def close(self) -> None:
        """Close the streams and, once it has ended, the descriptor of `fileno`."""
        self._close_streams()
        if self._ended.is_set() and self._status_fd >= 0:
            os.close(self._status_fd)
            self._status_fd = -1

    def _close_streams(self) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    (file if self._programs.is_ours() else _raw(file)).close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the streams, wait for the end; where an exception passes through, kill it first."""
        if not self._programs.is_ours():
            self._close_streams()  # a forked child's copies: the program is its parent's
            return
        if kind is not None:
            self.kill()
        self._close_streams()
        if kind is None or not self._programs.paused:  # else the container's own end is what to wait for
            self.wait()
        self.close()

    def __del__(self) -> None:
        status = getattr(self, "_status_fd", -1)
        if status < 0:
            return
        if not self._ended.is_set() and self._programs.is_ours():
            warnings.warn(f"{self!r} was never waited for", ResourceWarning, source=self, stacklevel=2)
        os.close(status)
        self._status_fd = -1


def _raw(file: IO[Any]) -> IO[Any]:
    """What is below the buffers of a file: they have locks, which a thread of the parent's may have held."""
    below = getattr(file, "buffer", file)
    found: IO[Any] = getattr(below, "raw", below)
    return found


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def encode_input(data: object, spec: ExecSpec) -> bytes:
    """Return what goes to a program's stdin: b"" for None. Raises `SpecError`."""
    if data is None:
        return b""
    if spec.text:
        if not isinstance(data, str):
            raise SpecError("input", data, "str where text=True")
        encoding = spec.encoding or "utf-8"
        try:
            return data.encode(encoding)
        except UnicodeEncodeError:
            raise SpecError("input", data, f"text that can be encoded as {encoding}") from None
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise SpecError("input", data, "bytes, or str with text=True")
    return bytes(data)


class _Reader:
    """What communicate does: the streams through a pump, with the exec's end on the side."""

    def __init__(self, process: Process, data: bytes) -> None:
        self._process = process
        fds = [-1, -1, -1]
        feeds = process.stdin is not None and not process.stdin.closed
        with ExitStack() as copies:
            for number, file in enumerate((process.stdin, process.stdout, process.stderr)):
                if file is not None and not file.closed and (number > 0 or data):
                    if number == 0:
                        file.flush()
                    fds[number] = os.dup(file.fileno())
                    copies.callback(os.close, fds[number])
            self._end = end = os.dup(process.fileno())
            copies.pop_all()  # the pump's, from here on
        if feeds:
            assert process.stdin is not None
            process.stdin.close()
        self._pump = _native.Pump(
            -1, stdin=fds[0], stdout=fds[1], stderr=fds[2], watch=end, data=data,
            limit=process._spec.output_limit,
        )  # fmt: skip
        self._done = False

    def run(self, deadline: int) -> bool:
        """Read until the program has ended; False at the deadline."""
        process = self._process
        while not self._done:
            # The guard or this thread enforces limits; this thread only moves bytes meanwhile.
            step = deadline
            if process._guard is None:
                step = min(
                    [t for t in (deadline, process._wall_deadline, process._cpu_check) if t >= 0], default=-1
                )
            event = self._pump.run(step)
            if event == _native.PUMP_LIMIT:
                process._truncated = True
                process._reason = process._reason or "output-limit"
                process._kill_all()
                self._pump.stop_reading()
            elif event == _native.PUMP_WATCH:
                self._done = True
            elif event == _native.PUMP_DEADLINE:
                if process._guard is None and process.poll() is not None:
                    self._done = True
                elif 0 <= deadline <= time.monotonic_ns():
                    return False
        process.wait()
        self._pump.drain()
        return True

    def output(self) -> tuple[bytes, bytes]:
        """Return what was read and let go of the buffers."""
        out = self._pump.output(0), self._pump.output(1)
        self._pump.close()
        os.close(self._end)
        for file in (self._process.stdout, self._process.stderr):
            if file is not None:
                file.close()
        return out
