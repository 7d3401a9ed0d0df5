"""Our own cgroup, and what other engines make below it, removed without a trace."""

from __future__ import annotations

import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def _own_groups() -> dict[str, str]:
    """Controller list as /proc/self/cgroup has it → our group in that hierarchy."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    return own


class Groups:
    """One group path for all hierarchies, below our own group of the memory controller (v1) or the root (v2).

    Engines take one path for all of them and make its parents where they are missing; `remove` takes away
    again what was not there before.
    """

    def __init__(self, name: str) -> None:
        parent = _own_groups().get("memory", "/").rstrip("/")
        self.path = f"{parent}/{name}"
        self._hierarchies = [path for path in ROOT.iterdir() if path.is_dir()] if ROOT.is_dir() else []
        self._hierarchies = [path for path in self._hierarchies if not path.is_symlink()]
        if not (ROOT / "memory").is_dir():
            self._hierarchies = [ROOT]
        self._missing = [path for path in self._candidates() if not path.exists()]

    def _candidates(self) -> list[Path]:
        """Every ancestor of the path in every hierarchy, the deepest first."""
        parts = self.path.strip("/").split("/")
        return [
            hierarchy.joinpath(*parts[:depth])
            for hierarchy in self._hierarchies
            for depth in range(len(parts), 0, -1)
        ]

    def remove(self) -> None:
        """Remove what was made; waits up to two seconds for processes that are on their way out."""
        deadline = time.monotonic() + 2
        while not self._remove_once() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _remove_once(self) -> bool:
        gone = True
        for path in self._missing:
            if not path.is_dir():
                continue
            inner = sorted((below for below in path.rglob("*") if below.is_dir()), reverse=True)
            for directory in (*inner, path):
                try:
                    directory.rmdir()
                except OSError:
                    gone = False
        return gone
