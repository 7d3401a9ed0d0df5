"""How a run ended, as a shell sees it."""

from __future__ import annotations

import errno
from typing import Any

from isobox import ExecError, Result

TIMED_OUT = 124
NOT_EXECUTABLE = 126
NOT_FOUND = 127
KILLED = 137
SIGNAL = 128


def of_result(result: Result[Any]) -> int:
    """The program's own status; 124 after a time limit, 137 if killed, 128+N on signal N."""
    reason = result.reason
    if reason in ("timeout", "cpu-timeout"):
        return TIMED_OUT
    if reason in ("oom", "killed", "output-limit"):
        return KILLED
    return SIGNAL - result.returncode if result.returncode < 0 else result.returncode


def of_error(error: ExecError) -> int:
    """127 where there is no such program, else 126: the convention of POSIX shells."""
    missing = error.op == "execve" and error.errno in (errno.ENOENT, errno.ENOTDIR)
    return NOT_FOUND if missing else NOT_EXECUTABLE


def explanation(result: Result[Any], limits: dict[str, Any]) -> str | None:
    """One line on why isobox or the kernel ended the program; None if it ended by itself."""
    reason = result.reason
    if reason == "timeout":
        return f"timed out: ended after {limits['timeout']} seconds of wall time (--timeout)"
    if reason == "cpu-timeout":
        return f"timed out: ended after {limits['cpu_time']} seconds of CPU time (--cpu-time)"
    if reason == "oom":
        limit = limits.get("memory")
        return (
            f"out of memory: killed at the limit of {limit} (--memory)" if limit else "out of memory: killed"
        )
    if reason == "output-limit":
        return f"too much output: ended beyond {limits.get('output_limit') or '16M'} (--output-limit)"
    return None
