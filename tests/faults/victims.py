"""A program that has others of its kind killed: what test_kill.py starts. Prints one line of JSON.

Each victim is a fork of this process that runs containers until SIGKILL meets it, at a random moment
or at a given system call. Its orphans become this process's children (PR_SET_CHILD_SUBREAPER), so that
"no process is left" is what wait(2) says when it has nobody to wait for.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import isobox
from isobox import host, runtime
from patience import patient
from seams import CALLS

PR_SET_CHILD_SUBREAPER = 36
WALL = 0x40000000
LIMITED = host.features().cgroup_memory and host.features().cgroup_pids
FREEZES = host.features().cgroup_freezer


def work(rounds: int) -> None:
    """Everything that leaves something: names, layers on disk, programs that run on, files, limits."""
    options: dict[str, Any] = {"memory": "64M", "pids": 50} if LIMITED else {}
    for number in range(rounds):
        with isobox.Container("host", name=f"victim-{number}", **options) as c:
            c.exec(["true"])
            c.popen(["sh", "-c", "setsid sleep 1000 & sleep 1000"])
            c.write_bytes("/tmp/file", b"x" * 5000)
            if FREEZES:
                c.pause()
                c.resume()
            with c.snapshot() as snapshot:
                c.restore(snapshot)
            with isobox.Container("host", upper="disk") as other:
                other.exec(["sh", "-c", "mkdir /tmp/a; echo > /tmp/a/b"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(fatal: int, after: bool) -> None:
    """Have the `fatal`-th system call of the library be this process's last, before or after it is made."""
    calls = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            met = calls == fatal  # others are made meanwhile: by threads, and by the call itself
            if met and not after:
                die()
            try:
                return function(*arguments, **named)
            finally:
                if met:
                    die()

        return called

    changes = {**CALLS, os: f"{CALLS[os]} rename rmdir unlink"}
    for module, names in changes.items():
        for name in set(names.split()) - {"stat", "listdir", "read", "pread"}:  # those change nothing
            setattr(module, name, wrap(getattr(module, name)))


def collect() -> None:
    """What the next program does: it starts a container, and ends as programs do."""
    isobox.run(["true"])
    runtime.current().flush()
    atexit._run_exitfuncs()


def fork(run: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        run()
        code = 0
    finally:
        os._exit(code)


def all_gone(pid: int, killed: float = 0.0) -> tuple[int, float]:
    """Wait for the victim and all that it has left. Returns its wait status, and the seconds that took.

    From its killing on, where that is known, else from its death on.
    """
    status, died = 0, 0.0
    signal.alarm(round(patient(20)))  # a hang ends this program, and the test sees that
    while True:
        try:
            ended, found = os.waitpid(-1, WALL)
        except ChildProcessError:
            signal.alarm(0)
            return status, time.monotonic() - (killed or died)
        if ended == pid:
            status, died = found, time.monotonic()


def owners() -> set[str]:
    found: set[str] = set()
    for variable in ("ISOBOX_STATE_DIR", "ISOBOX_DATA_DIR"):
        path = f"{os.environ[variable]}/owners"
        if os.path.isdir(path):
            found.update(os.listdir(path))
    return found


def at_random(count: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    times, dead = [], set()
    began = time.monotonic()
    status, _ = all_gone(fork(collect))
    assert status == 0, f"a program that nobody kills ended with {status}"
    # Half of the moments lie in its first quarter; on a slow machine a first start takes long.
    most = max(patient(0.15), 2 * (time.monotonic() - began))
    for _ in range(count):
        pid = fork(lambda: work(1000))
        time.sleep(chance.random() ** 2 * most)
        os.kill(pid, signal.SIGKILL)
        status, seconds = all_gone(pid, time.monotonic())
        assert status == signal.SIGKILL, f"a victim ended by itself: {status}"
        times.append(seconds)
        dead |= owners()
    return {"times": times, "owners": sorted(dead)}


def at_every_call(step: int) -> dict[str, Any]:
    times, dead, fatal = [], set(), 0
    while True:
        fatal += step
        for after in (False, True):

            def run(fatal: int = fatal, after: bool = after) -> None:
                arm(fatal, after)
                work(1)

            pid = fork(run)
            status, seconds = all_gone(pid)
            dead |= owners()
            if status == 0:
                return {"times": times, "owners": sorted(dead)}
            assert status == signal.SIGKILL, f"call {fatal}: the victim ended by itself: {status}"
            times.append(seconds)
            # Each dead owner costs its collector calls: left to pile up, they would outgrow `fatal`.
            status, _ = all_gone(fork(collect))
            assert status == 0, f"call {fatal}: the collector ended with {status}"


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gc.freeze()
    how, number, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    found = at_random(number, seed) if how == "random" else at_every_call(number)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
