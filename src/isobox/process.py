"""One running program of a container, as its users see it: its streams, and Popen's manners.

How it is waited for is in waiting.py, how it ends in ending.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal as signals
import time
import warnings
from subprocess import TimeoutExpired
from typing import IO, TYPE_CHECKING, Any, Final

from . import _native
from .communicating import Reader, encode_input, newlines
from .errors import ExecError, SpecError, StateError
from .hints import hint
from .interrupts import Undisturbed
from .refusals import exec_error
from .result import Result
from .streams import Streams, resize
from .waiting import Waiting

if TYPE_CHECKING:
    from types import TracebackType

_START_SECONDS: Final = 60.0
"""How long a program may take to its execve: long only where its cgroup has next to no CPU."""


class Process(Waiting):
    """A program started by `Container.popen`, with the manners of `subprocess.Popen`.

    `stdin`, `stdout`, `stderr` are files where PIPE was asked for, else None; `returncode` is None
    until it has ended, then the exit status or the negative signal number. As a context manager it
    closes the streams and waits.

    >>> import isobox
    >>> with isobox.Container() as c, c.popen(["cat"], stdin=isobox.PIPE, stdout=isobox.PIPE) as p:
    ...     p.communicate(b"hello")
    (b'hello', b'')
    """

    stdin: IO[Any] | None = None
    stdout: IO[Any] | None = None
    stderr: IO[Any] | None = None
    _opened = False
    _terminal: int | None = None
    _pid: int | None = None
    _reader_state: Reader | None = None

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

    def _reader(self, input: bytes | str | None) -> Reader:
        if self._reader_state is None:
            data = encode_input(input, self._spec)
            try:
                self._reader_state = Reader(self, (self.stdin, self.stdout, self.stderr), data)
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
        return newlines(out), newlines(err)

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
