"""What goes to a program's stdin, and reading what it writes, as `Process.communicate` does."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any

from . import _native
from .errors import SpecError
from .spec import ExecSpec
from .waiting import Waiting


def newlines(text: str) -> str:
    """Return text with each end of a line as one newline."""
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


class Reader:
    """What communicate does: the streams through a pump, with the exec's end on the side."""

    def __init__(self, process: Waiting, files: Sequence[IO[Any] | None], data: bytes) -> None:
        self._process = process
        self._files = files
        fds = [-1, -1, -1]
        stdin = files[0]
        with ExitStack() as copies:
            for number, file in enumerate(files):
                if file is not None and not file.closed and (number > 0 or data):
                    if number == 0:
                        file.flush()
                    fds[number] = os.dup(file.fileno())
                    copies.callback(os.close, fds[number])
            self._end = end = os.dup(process.fileno())
            copies.pop_all()  # the pump's, from here on
        if stdin is not None and not stdin.closed:
            stdin.close()
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
        for file in self._files[1:]:
            if file is not None:
                file.close()
        return out
