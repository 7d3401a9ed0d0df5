"""Sandboxes that are Python libraries, measured in the environment that has them; a program of its own.

``python libraries.py sandlock|benchexec ROOTFS WORK``, then {"count": n} a line, as remote.py does it; it
can't import the rest of this folder, whose dependencies that environment lacks.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path


def sandlock(rootfs: Path, work: Path) -> Callable[[], object]:
    """Landlock and a seccomp supervisor: no namespace, no cgroup, no overlay."""
    from sandlock import Sandbox  # type: ignore[import-not-found, unused-ignore]

    def once() -> None:
        box = Sandbox(fs_readable=["/"], chroot=str(rootfs), max_memory="256M", max_processes=1024)
        result = box.run(["/true"])
        if not result.success:
            raise RuntimeError(f"sandlock: {result}")

    return once


def benchexec(rootfs: Path, work: Path) -> Callable[[], object]:
    """Namespaces, cgroups and a full measurement; the host's file system, read-only."""
    from benchexec.containerexecutor import (  # type: ignore[import-not-found, unused-ignore]
        DIR_READ_ONLY,
    )
    from benchexec.runexecutor import RunExecutor  # type: ignore[import-not-found, unused-ignore]

    logging.disable(logging.WARNING)
    executor = RunExecutor(use_namespaces=True, network_access=False, dir_modes={"/": DIR_READ_ONLY})
    output = str(work / "benchexec.out")

    def once() -> None:
        result = executor.execute_run([str(rootfs / "true")], output, memlimit=256 << 20, walltimelimit=30)
        if "exitcode" not in result or result["exitcode"].raw:
            raise RuntimeError(f"benchexec: {dict(result)}")

    return once


def main() -> None:
    """Serve."""
    answers, sys.stdout = sys.stdout, sys.stderr
    rootfs, work = Path(sys.argv[2]), Path(sys.argv[3])
    once: Callable[[], object] | None = None
    for line in sys.stdin:
        try:
            if once is None:
                once = {"sandlock": sandlock, "benchexec": benchexec}[sys.argv[1]](rootfs, work)
            samples = []
            for _ in range(json.loads(line)["count"]):
                begin = time.perf_counter_ns()
                once()
                samples.append(time.perf_counter_ns() - begin)
            answer: dict[str, object] = {"result": samples}
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker is told
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
