"""The same program ends for the same reason and costs the same, whatever the host and whoever the user.

One table of programs that misbehave. Where a host can't do what a row asks for, the start is refused by an
`UnsupportedError` for a fact that this host lacks; a number of Usage may be absent for such a fact only.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from subprocess import TimeoutExpired
from typing import Any, Final

import pytest
from attrs import Factory, frozen

import requirements
from isobox import Container, Result, UnsupportedError
from patience import patient
from programs import BOMB, DAEMON, HOG, alone, python

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

MIB: Final = 1 << 20
A_WHILE: Final = min(5.0, patient(1.0))
"""Seconds enough for a bomb to grow."""

MEASURED_BY: Final = {
    "cpu_time": "cgroup_cpuacct",
    "throttled_time": "cgroup_cpu",
    "memory_peak": "cgroup_memory",
    "oom_kills": "cgroup_memory",
    "pids_peak": "cgroup_pids",
}
"""For a number of Usage: the fact without which it may be absent."""


def execute(container: Container, args: list[str], options: dict[str, Any]) -> Result[Any]:
    """Run it to its end."""
    return container.exec(args, **options)


def terminate_then_kill(container: Container, args: list[str], options: dict[str, Any]) -> Result[Any]:
    """Ask it to end, as a caller would; then make it."""
    with container.popen(args, **options) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.terminate()
        with pytest.raises(TimeoutExpired):
            process.wait(0.3)
        process.kill()
        return process.result()


@frozen
class Case:
    """A program, what it may use, and how it has to end.

    `needs` are the facts that what it asks for rests on. `bounds` are of Usage: the least and the most. A
    limit of wall time counts from the call on, and `wall_time` from the program's start. The kernel's peak
    of processes may count one that the limit of a group above refused (pids_try_charge).
    """

    args: list[str]
    reason: str
    returncode: int
    needs: tuple[str, ...] = ()
    container: dict[str, Any] = Factory(dict)
    exec: dict[str, Any] = Factory(dict)
    bounds: dict[str, tuple[float, float]] = Factory(dict)
    run: Callable[[Container, list[str], dict[str, Any]], Result[Any]] = execute


SPIN = "while True: pass"

# Its memory is more than the limit, which swap space must not soften.
SWAP_HOG = "kept = bytearray(200 << 20)\nfor at in range(0, len(kept), 4096): kept[at] = 1\nprint(len(kept))"

FILL = """
import os
fd = os.open("/tmp/fill", os.O_CREAT | os.O_WRONLY)
written = 0
try:
    while True:
        written += os.write(fd, b"x" * 65536)
except OSError as error:
    os._exit(error.errno if written <= 16 << 20 else 99)
"""

IGNORER = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""

# In the end it says by its status whether it came further than the limit.
THREADS = """
import os, threading, time
count = 1
try:
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        count += 1
except RuntimeError:
    pass
os._exit(0 if 10 <= count <= 32 else 99)
"""

GRANDCHILD = "import os\nfor _ in 1, 2:\n if os.fork(): os.wait(); os._exit(0)\n"

CASES: Final[dict[str, Case]] = {
    "CPU hog, by its own time": Case(
        python(SPIN), "cpu-timeout", -signal.SIGKILL, ("cgroup_cpuacct",),
        exec={"cpu_time": 0.3}, bounds={"cpu_time": (0.3, 1.0)},
    ),
    "CPU hog with a share": Case(
        python(SPIN), "timeout", -signal.SIGKILL, ("cgroup_cpu",), {"cpu": 0.25},
        {"timeout": 1.0},
        {"cpu_time": (0.05, 0.6), "throttled_time": (0.001, 10.0), "wall_time": (0.7, patient(5.0))},
    ),
    "sleeper": Case(
        python("import time; time.sleep(60)"), "timeout", -signal.SIGKILL,
        exec={"timeout": A_WHILE},
        bounds={"wall_time": (0.3, patient(5.0)), "cpu_time": (0.0, patient(0.5)), "pids_peak": (1, 1)},
    ),
    "memory hog": Case(
        python(HOG), "oom", -signal.SIGKILL, ("cgroup_memory",), {"memory": "48M"},
        # What a kernel can't refuse passes the limit: pages of its own, a batch of each CPU, on v2 those
        # of a process that it kills.
        bounds={"memory_peak": (40 * MIB, 53 * MIB), "oom_kills": (1, 2)},
    ),
    "memory hog in an exec with a limit": Case(
        python(HOG), "oom", -signal.SIGKILL, ("cgroup_memory",), exec={"memory": "48M"},
        bounds={"memory_peak": (40 * MIB, 53 * MIB), "oom_kills": (1, 2)},
    ),
    "swap hog": Case(
        python(SWAP_HOG), "oom", -signal.SIGKILL, ("cgroup_memory",), {"memory": "48M", "swap": 0},
        bounds={"memory_peak": (40 * MIB, 53 * MIB)},
    ),
    "OOM in a grandchild": Case(
        python(GRANDCHILD + HOG), "oom", -signal.SIGKILL, ("cgroup_memory",), {"memory": "48M"},
        bounds={"memory_peak": (30 * MIB, 53 * MIB), "oom_kills": (1, 3)},
    ),
    "fork bomb": Case(
        python(BOMB), "timeout", -signal.SIGKILL, ("cgroup_pids",), {"pids": 40}, {"timeout": A_WHILE},
        {"pids_peak": (20, 41), "wall_time": (0.7, patient(10.0))},
    ),
    "fork bomb in an exec with a limit": Case(
        python(BOMB), "timeout", -signal.SIGKILL, ("cgroup_pids",), {}, {"timeout": A_WHILE, "pids": 20},
        {"pids_peak": (10, 20), "wall_time": (0.7, patient(10.0))},
    ),
    "thread bomb": Case(
        [python("")[0], "-I", "-c", THREADS], "exited", 0, ("cgroup_pids",), {"pids": 33},
        bounds={"pids_peak": (10, 34)},
    ),
    "disk filler": Case(
        python(FILL), "exited", errno.ENOSPC, container={"disk": "16M"}, bounds={"oom_kills": (0, 0)},
    ),
    "output flood": Case(
        ["yes"], "output-limit", -signal.SIGKILL, exec={"output_limit": "1M", "timeout": 60},
    ),
    "daemoniser": Case(
        python(DAEMON + "time.sleep(60)"), "exited", 0, bounds={"wall_time": (0.0, patient(20.0))},
    ),
    "SIGTERM ignorer": Case(
        python(IGNORER), "killed", -signal.SIGKILL, run=terminate_then_kill,
        bounds={"cpu_time": (0.0, patient(2.0))},
    ),
    "killed by itself": Case(["sh", "-c", "kill -SEGV $$"], "signaled", -signal.SIGSEGV),
    "status of its own": Case(["sh", "-c", "exit 42"], "exited", 42),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_same_everywhere(name: str) -> None:
    case = CASES[name]
    lacking = [fact for fact in case.needs if requirements.lacking(fact)]
    if lacking:
        with pytest.raises(UnsupportedError) as caught, Container(**case.container) as container:
            container.exec(case.args, **case.exec)
        assert caught.value.why and len(caught.value.remedy) > 10
        return
    with Container(**case.container) as container:
        result = case.run(container, case.args, {"timeout": 60, **case.exec} if case.run is execute else {})
        assert (result.reason, result.returncode) == (case.reason, case.returncode), result
        for field, (least, most) in case.bounds.items():
            value = getattr(result.usage, field)
            if value is None:
                assert requirements.lacking(MEASURED_BY[field]), f"{field}: {result.usage}"
            else:
                assert least <= value <= most, f"{field}: {result.usage}"
        assert alone(container), "something of it still runs"
