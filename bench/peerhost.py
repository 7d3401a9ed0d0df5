"""The process that runs other engines: in mount and PID namespaces of its own, so that nothing of them stays.

Started as ``python -m bench.peerhost WORK ROOTFS``. Their state is on a tmpfs over /run that only they
see; their groups are below our own and removed at the end; when this process ends, the kernel ends all
that they left running.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .engines import COMMANDS, Place, dockerd, timed_runs
from .groups import Groups
from .remote import serve
from .samples import Failed


def command(work: Path, rootfs: Path) -> Sequence[str]:
    """The command that starts this process, in new namespaces where we may make them."""
    python = [sys.executable, "-m", "bench.peerhost", str(work), str(rootfs)]
    if os.geteuid():
        return python
    return [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
        *python,
    ]


def _own_run(work: Path) -> Path:
    """Fresh tmpfs over /run and /dev/shm; no unified hierarchy, which crun refuses beside a v1 one."""
    if os.geteuid():
        run = work / "run"
        run.mkdir(exist_ok=True)
        return run
    for place in ("/run", "/dev/shm"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    for name in ("lock", "bench"):
        Path("/run", name).mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if Path("/sys/fs/cgroup/memory").is_dir() and Path("/sys/fs/cgroup/unified").is_dir():
        libc.umount2(b"/sys/fs/cgroup/unified", 2)
    return Path("/run/bench")


def main() -> None:
    """Serve requests: {"engine": name, "count": n} → nanoseconds."""
    work, rootfs = Path(sys.argv[1]), Path(sys.argv[2])
    with ExitStack() as stack:
        groups = Groups("isobox-bench")
        stack.callback(groups.remove)
        place = Place(rootfs, work, _own_run(work), groups.path)
        started: list[str] = []

        def handle(request: Mapping[str, Any]) -> object:
            engine, count = request["engine"], request["count"]
            if engine not in COMMANDS:
                raise Failed(f"no such engine: {engine}")
            if engine == "docker" and engine not in started:
                stack.enter_context(dockerd(place))
                started.append(engine)
            return timed_runs(engine, place, count)

        serve(handle)


if __name__ == "__main__":
    main()
