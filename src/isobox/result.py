"""What became of a program: why it ended, what it wrote, what it cost."""

from __future__ import annotations

import signal
from typing import Generic, Literal, TypeAlias, TypeVar

from attrs import frozen

from .errors import Killed, NonZeroExit, OutOfMemory, OutputLimitExceeded, ProcessError, TimedOut, printable
from .usage import Usage

Reason: TypeAlias = Literal["exited", "signaled", "oom", "timeout", "cpu-timeout", "output-limit", "killed"]
"""Why a program ended. "killed" is by the caller; "signaled" by any other signal."""

Output = TypeVar("Output", bytes, str)

_ERRORS: dict[str, type[ProcessError]] = {
    "oom": OutOfMemory,
    "timeout": TimedOut,
    "cpu-timeout": TimedOut,
    "output-limit": OutputLimitExceeded,
    "killed": Killed,
}


@frozen(slots=False)
class Result(Generic[Output]):
    """The end of one program. A non-zero exit is data; `check` makes an exception of it.

    - `args`: what was run.
    - `returncode`: the exit status, or the negative number of the signal that ended it.
    - `stdout`, `stderr`: what was captured, bytes or text; empty where nothing was.
    - `reason`: see `Reason`.
    - `truncated`: True if it wrote more than ``output_limit``; the output holds what fitted.
    - `usage`: what it cost.

    >>> import isobox
    >>> result = isobox.run(["sh", "-c", "echo out; exit 3"], text=True)
    >>> result.stdout, result.returncode, result.reason, result.ok
    ('out\\n', 3, 'exited', False)
    """

    args: tuple[str, ...]
    returncode: int
    stdout: Output
    stderr: Output
    reason: Reason
    truncated: bool
    usage: Usage

    @property
    def ok(self) -> bool:
        """True if the program exited by itself with status 0."""
        return self.returncode == 0 and self.reason == "exited"

    def check(self) -> Result[Output]:
        """Return self if `ok`; else raise the `ProcessError` that fits `reason`, with self in it."""
        if self.ok:
            return self
        raise _ERRORS.get(self.reason, NonZeroExit)(self._sentence(), self)

    def _sentence(self) -> str:
        program = printable(str(self.args[0])) if self.args else "the program"
        if self.reason == "exited":
            text = f"{program} exited with status {self.returncode}"
        elif self.reason == "signaled":
            text = f"{program} was ended by {_signal_name(-self.returncode)}"
        elif self.reason == "oom":
            text = f"{program} used more memory than its limit"
        elif self.reason == "output-limit":
            text = f"{program} wrote more than its output limit"
        elif self.reason == "killed":
            text = f"{program} was killed by the caller"
        else:
            text = (
                f"{program} passed its {'CPU time' if self.reason == 'cpu-timeout' else 'wall-clock'} limit"
            )
        tail = self.stderr[-400:]
        shown = tail.decode("utf-8", "replace") if isinstance(tail, bytes) else tail
        # What a program inside wrote may hold terminal escapes: nothing of it reaches a terminal raw.
        shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in shown).strip()
        return f"{text}; the end of its stderr:\n{shown}" if shown else text


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
