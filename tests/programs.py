"""Programs for inside a container, and how tests run them."""

from __future__ import annotations

import os
import sys
from typing import Any

from isobox import Container
from leftovers import descendants
from patience import patient

ROOT = os.geteuid() == 0


def python(code: str, *arguments: str) -> list[str]:
    """The arguments that run a piece of Python with the interpreter of the tests, started quickly."""
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def sh(container: Container, script: str, **options: Any) -> str:
    """What a shell script writes to stdout; it has to end well."""
    return said(container, ["sh", "-c", script], **options)


def said(container: Container, args: list[str], **options: Any) -> str:
    """What a program writes to stdout; it has to end well."""
    result = container.exec(args, text=True, **{"timeout": patient(60), **options})
    assert result.ok, (result.reason, result.returncode, result.stdout, result.stderr)
    assert isinstance(result.stdout, str)
    return result.stdout


def alone(container: Container) -> bool:
    """Nothing runs in it but its init; what is dead is reaped a moment later."""
    assert container.pid is not None
    return not [name for name in descendants(container.pid).values() if not name.endswith((" Z", " X"))]


# Two forks with a new session between them: nothing ties the last one to the first.
DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
import signal
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
"""

# Forks without end; in a container with a pids limit only.
BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""

# Uses memory for good: every page is written.
HOG = """
import sys
kept = []
while True:
    kept.append(bytearray(b"x" * (4 << 20)))
"""
