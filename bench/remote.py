"""A process that takes measurements when asked: one JSON object a line, each way.

Where it matters how large the measuring process is, or in which namespaces it lives, it is another one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .samples import Failed

Handler = Callable[[Mapping[str, Any]], object]


class Remote:
    """A measuring process. `ask` raises Failed with what went wrong over there."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request: object) -> Any:
        """Send a request, wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise Failed(f"the measuring process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End it: its standard input ends, it cleans up and exits."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(handle: Handler) -> None:
    """Answer requests on standard input until it ends; the other side of Remote."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        try:
            answer: dict[str, object] = {"result": handle(json.loads(line))}
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker is told
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:400]}
        print(json.dumps(answer), file=answers, flush=True)
