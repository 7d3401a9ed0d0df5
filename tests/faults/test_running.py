"""Failures while a container runs: each system call of an operation in turn, ends from outside, forks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import isobox
from isobox import Container
from leftovers import count, descendants, nothing_left, wait_until
from seams import Faults, every_call

pytestmark = pytest.mark.requires("user_namespaces", "overlay")


@pytest.fixture(autouse=True)
def everything_is_given_back() -> Iterator[None]:
    with nothing_left():
        yield


def run_a_program(c: Container) -> None:
    assert c.exec(["cat"], input=b"hello", timeout=20).stdout == b"hello"


def run_unmeasured(c: Container) -> None:
    assert c.exec(["true"], measure=False).ok


def run_on_a_terminal(c: Container) -> None:
    assert c.exec(["echo", "hello"], tty=True).stdout == b"hello\r\n"


def start_a_program(c: Container) -> None:
    with c.popen(["cat"], stdin=isobox.PIPE, timeout=20) as p:
        assert p.communicate(b"hello")[0] == b"hello"


def run_as_somebody(c: Container) -> None:
    c._programs._users.clear()  # type: ignore[union-attr]
    c._programs._templates.clear()  # type: ignore[union-attr]
    assert c.exec(["id", "-u"], user="root").stdout == b"0\n"


def stop_at_the_time_limit(c: Container) -> None:
    assert c.exec(["sleep", "100"], timeout=0.01).reason == "timeout"


def move_files(c: Container) -> None:
    c.write_bytes("/tmp/file", b"x" * 10_000)
    assert c.read_bytes("/tmp/file") == b"x" * 10_000


def look(c: Container) -> None:
    c.changes()
    c.stats()
    c.explain()


@pytest.mark.parametrize(
    "step", [run_a_program, run_unmeasured, run_on_a_terminal, start_a_program, run_as_somebody,
             stop_at_the_time_limit, move_files, look]
)  # fmt: skip
def test_every_call(step: Callable[[Container], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation fails or not; the container works on, and nothing is left of what failed."""
    faults = Faults(monkeypatch, errno.EMFILE)
    with Container("host") as c:

        def after() -> None:
            assert c._programs is not None and not c._programs.running, "a program is kept"
            assert c.exec(["echo", "fine"]).stdout == b"fine\n"

        for _ in range(8):
            after()
        before = count()
        # Files and terminals raise what open(2) does, which is what their callers expect.
        calls = every_call(faults, lambda: step(c), after, (isobox.IsoboxError, OSError))
        assert calls >= 3
        gained = [line for line in before.changes(count()) if "cgroup" not in line and "worker" not in line]
        assert wait_until(lambda: not _descriptors_gained(before), 5), gained


def _descriptors_gained(before: object) -> bool:
    gained = count().descriptors - before.descriptors  # type: ignore[attr-defined]
    # Cgroups are made ahead for what has run short.
    return any("cgroup" not in name for name in gained)


@pytest.mark.requires("cgroup_freezer", "cgroup_memory")
def test_every_call_of_pause_and_update(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(monkeypatch, errno.EIO)

    def step(c: Container) -> None:
        c.update(memory="70M", pids=70)
        c.update(memory="60M", pids=60)
        c.pause()
        c.resume()

    with Container("host", memory="64M") as c:

        def after() -> None:
            if c.state == "paused":
                c.resume()
            assert c.exec(["echo", "fine"]).stdout == b"fine\n"

        assert every_call(faults, lambda: step(c), after) > 5


# Ends from outside


def test_its_init_is_killed() -> None:
    with Container("host") as c:
        assert c.pid is not None
        process = c.popen(["sleep", "100"])
        results: list[isobox.Result[bytes]] = []
        waiter = threading.Thread(target=lambda: results.append(c.exec(["sleep", "100"])))
        waiter.start()
        assert wait_until(lambda: sum("sleep" in n for n in descendants(os.getpid()).values()) == 2)
        os.kill(c.pid, signal.SIGKILL)
        waiter.join(5)
        assert [(r.reason, r.returncode) for r in results] == [("killed", -9)]
        assert process.wait(5) == -9 and process.result().reason == "killed"
        process.close()
        assert c.state == "stopped" and c.pid is None and c.wait(0)
        for call in (
            lambda: c.exec(["true"]),
            lambda: c.popen(["true"]),
            lambda: c.read_bytes("/etc/passwd"),
            lambda: c.update(pids=5),
            c.pause,
            c.resume,
            c.changes,
            c.stats,
        ):
            with pytest.raises(isobox.StateError):
                call()


def in_many_threads(step: Callable[[], bool], disturb: Callable[[], None]) -> None:
    """Do `step` until it says True or the container has stopped, in four threads; `disturb` them then."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not step():
                pass
        except isobox.StateError:
            return
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    disturb()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failures


def test_its_init_is_killed_while_many_start_programs() -> None:
    for _ in range(10):
        with Container("host") as c:

            def run(c: Container = c) -> bool:
                result = c.exec(["true"])
                if result.reason == "exited":
                    return False
                assert result.reason == "killed"
                return True

            def kill(c: Container = c) -> None:
                assert c.pid is not None
                os.kill(c.pid, signal.SIGKILL)

            in_many_threads(run, kill)


def test_it_is_removed_while_many_start_programs() -> None:
    for _ in range(10):
        c = Container("host").start()

        def run(c: Container = c) -> bool:
            c.exec(["sleep", "0.001"])
            return False

        in_many_threads(run, c.remove)


@pytest.mark.requires("cgroup_memory")
def test_its_init_runs_out_of_memory() -> None:
    """The container's own files use up its memory, until the kernel has nobody left but PID 1."""
    with Container("host", memory="16M", disk="64M") as c:
        for _ in range(5):
            try:
                c.exec(["sh", "-c", "while :; do cat /dev/zero > /tmp/file$$; done"], timeout=20)
                c.write_bytes("/tmp/more", b"x" * 1_000_000)
            except isobox.IsoboxError:
                pass
        if c.state == "stopped":
            with pytest.raises(isobox.StateError):
                c.exec(["true"])


def test_its_programs_see_it_stopped_from_another_thread() -> None:
    with Container("host") as c:
        stopper = threading.Timer(0.05, c.kill)
        stopper.start()
        result = c.exec(["sleep", "100"])
        stopper.join()
        assert (result.reason, result.returncode) == ("killed", -9)
        assert c.state == "stopped"


# Forks

FORKS = """
import os, sys, threading, isobox
shared = isobox.Container().start()
stop = threading.Event()
def work():
    while not stop.is_set():
        shared.exec(["true"])
        with isobox.Container() as c:
            c.exec(["true"])
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
bad = 0
for n in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            try:
                shared.exec(["true"])
            except isobox.StateError:
                shared.remove()
                with isobox.Container() as c:
                    code = 0 if c.exec(["echo", "x"]).stdout == b"x\\n" else 2
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    bad += os.waitpid(pid, 0)[1] != 0
stop.set()
for t in threads: t.join()
assert shared.exec(["true"]).ok
shared.remove()
sys.exit(bad)
"""


def test_forks_of_a_program_whose_threads_start_containers() -> None:
    """The child has nothing of its parent's and can start its own; the parent's works on."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, "20"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


FORKS_AND_DIES = """
import os, sys, time, isobox
c = isobox.Container().start()
p = c.popen(["sleep", "1000"], stdout=isobox.DEVNULL, stderr=isobox.DEVNULL)
if os.fork() == 0:
    sys.stdout.close(); os.close(1); os.close(2)
    sys.stdin.buffer.raw.read()  # holds copies of all descriptors until told to end
    os._exit(0)
print(c.pid, p.pid, flush=True)
time.sleep(1000)
"""


def test_a_child_that_outlives_the_owner_keeps_nothing_alive() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKS_AND_DIES],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdin is not None and owner.stdout is not None
    pids = owner.stdout.readline().split()
    assert len(pids) == 2
    owner.kill()
    owner.wait()
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 2)
    owner.stdin.close()
    owner.stdout.close()


def test_a_signal_handler_that_raises(tmp_path: Path) -> None:
    """Ctrl-C while a program runs: it ends at once, and with it all that it started."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def run(c: Container, delay: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, delay)
        c.exec(["sh", "-c", "sleep 100 & sleep 100"])

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Container("host") as c:
            for delay in (0.0005, 0.001, 0.002, 0.003, 0.005, 0.02, 0.05):
                with pytest.raises(KeyboardInterrupt):
                    run(c, delay)
                assert c._programs is not None and not c._programs.running
                # Nothing of it is left inside either.
                assert wait_until(lambda: not any("sleep" in n for n in descendants(os.getpid()).values()), 5)
                assert c.exec(["echo", "fine"]).stdout == b"fine\n"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
