"""Why a program ended, and that nothing of it is left whichever it was.

Times are asserted generously: what it should take is measured in bench/.
"""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import isobox
from isobox import (
    DEVNULL,
    PIPE,
    Container,
    Killed,
    NonZeroExit,
    OutOfMemory,
    OutputLimitExceeded,
    ProcessError,
    Result,
    TimedOut,
    cgroups,
)
from leftovers import descendants, wait_until
from patience import patient
from programs import BOMB, DAEMON, HOG, alone, python

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

SOON = patient(1.0)
_FREEZER = cgroups.discover().controllers.get("freezer")
V1 = _FREEZER is not None and _FREEZER.version == 1
"""Seconds within which a limit has to have done its work."""


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container(pids=200) if isobox.host.features().cgroup_pids else Container() as container:
        yield container


def timed(container: Container, args: list[str], **options: Any) -> tuple[Result[Any], float]:
    began = time.monotonic()
    result = container.exec(args, **options)
    return result, time.monotonic() - began


IGNORES = """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
time.sleep(60)
"""

# A stopped process gets SIGKILL all the same.
STOPPED = "import os, signal; os.fork(); os.kill(os.getpid(), signal.SIGSTOP)"

# The first thread has exited, another goes on.
THREADS = """
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""

SESSIONS = "trap '' TERM INT HUP; setsid sleep 60 & setsid sleep 60 & sleep 60 & wait"
AND_DAEMON = "import os, time\nif os.fork(): time.sleep(60)\n" + DAEMON

STUBBORN_DAEMON = python(DAEMON + "time.sleep(60)")
STUBBORN = [
    pytest.param(["sleep", "60"], id="plain"),
    pytest.param(python(IGNORES), id="ignores signals"),
    pytest.param(STUBBORN_DAEMON, id="daemon"),
    pytest.param(python(AND_DAEMON + "time.sleep(60)"), id="and daemon"),
    pytest.param(["sh", "-c", SESSIONS], id="sessions"),
    pytest.param([python("")[0], "-I", "-c", THREADS], id="threads"),
    pytest.param(python(STOPPED), id="stopped"),
    pytest.param(python("import os\nfor _ in range(6): os.fork()\nos.read(os.pipe()[0], 1)"), id="many"),
]  # fmt: skip


class TestTimeout:
    @pytest.mark.parametrize("args", STUBBORN)
    @pytest.mark.parametrize("measure", [True, False])
    def test_ends_everything(self, box: Container, args: list[str], measure: bool) -> None:
        if args == STUBBORN_DAEMON:  # its first process ends at once: what it left ends with it
            result, took = timed(box, args, timeout=10, measure=measure)
            assert (result.reason, result.returncode) == ("exited", 0) and took < patient(5)
            assert alone(box)
            return
        result, took = timed(box, args, timeout=0.3, measure=measure)
        assert alone(box)
        assert (result.reason, result.returncode, result.ok) == ("timeout", -signal.SIGKILL, False)
        assert 0.29 < took < 0.3 + SOON

    @pytest.mark.requires("cgroup_pids")
    @pytest.mark.parametrize("measure", [True, False])
    def test_ends_a_fork_bomb(self, measure: bool) -> None:
        with Container(pids=60) as container:
            result, took = timed(container, python(BOMB), timeout=0.3, measure=measure)
            assert (result.reason, result.returncode) == ("timeout", -signal.SIGKILL)
            assert took < 0.3 + 2 * SOON
            assert alone(container)
            assert container.exec(["true"]).ok

    def test_keeps_what_was_written(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "echo out; echo err >&2; sleep 60"], timeout=0.3)
        assert (result.stdout, result.stderr, result.reason) == (b"out\n", b"err\n", "timeout")
        assert result.usage.wall_time is not None and 0.2 < result.usage.wall_time < 0.3 + SOON

    def test_only_this_exec_ends(self, box: Container) -> None:
        with box.popen(["cat"], stdin=PIPE) as other:
            assert box.exec(["sleep", "60"], timeout=0.1).reason == "timeout"
            assert other.poll() is None
            assert other.communicate(b"still here") == (b"still here", b"")

    def test_not_passed(self, box: Container) -> None:
        result = box.exec(["true"], timeout=60)
        assert (result.reason, result.returncode) == ("exited", 0)
        assert box.exec(["true"], timeout="1m").ok

    def test_very_short(self, box: Container) -> None:
        for _ in range(20):
            assert box.exec(["sleep", "60"], timeout=1e-6).reason == "timeout"
        assert alone(box)

    def test_a_writer_of_an_endless_stream(self, box: Container) -> None:
        result, took = timed(box, ["yes"], timeout=0.2, stdout=DEVNULL)
        assert (result.reason, took < 0.2 + SOON) == ("timeout", True)

    def test_check(self, box: Container) -> None:
        with pytest.raises(TimedOut, match="wall-clock") as caught:
            box.exec(["sleep", "60"], timeout=0.05, check=True)
        assert caught.value.result.reason == "timeout"
        assert pickle.loads(pickle.dumps(caught.value)).result == caught.value.result

    def test_many_at_once(self, box: Container) -> None:
        results: list[tuple[Result[Any], float]] = []
        threads = [
            threading.Thread(target=lambda: results.append(timed(box, ["sleep", "60"], timeout=0.3)))
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [result.reason for result, _took in results] == ["timeout"] * 10
        assert max(took for _result, took in results) < 0.3 + 2 * SOON
        assert alone(box)


@pytest.mark.requires("cgroups")
class TestCpuTime:
    BUSY = "while True: pass"

    def test_passed(self, box: Container) -> None:
        result, _took = timed(box, python(self.BUSY), cpu_time=0.2)
        assert (result.reason, result.returncode) == ("cpu-timeout", -signal.SIGKILL)
        assert result.usage.cpu_time is not None and 0.2 <= result.usage.cpu_time < 0.2 + SOON
        assert alone(box)

    def test_of_all_processes_together(self, box: Container) -> None:
        code = f"import os\nos.fork(); os.fork()\n{self.BUSY}"
        result, _took = timed(box, python(code), cpu_time=0.3)
        assert result.reason == "cpu-timeout"
        assert result.usage.cpu_time is not None and 0.3 <= result.usage.cpu_time < 0.3 + SOON
        assert alone(box)

    def test_a_sleeper_uses_none(self, box: Container) -> None:
        result = box.exec(["sleep", str(patient(0.4))], cpu_time=patient(0.1))
        assert (result.reason, result.returncode) == ("exited", 0)

    def test_the_wall_clock_first(self, box: Container) -> None:
        assert box.exec(["sleep", "60"], cpu_time=30, timeout=0.1).reason == "timeout"

    def test_check(self, box: Container) -> None:
        with pytest.raises(TimedOut, match="CPU time"):
            box.exec(python(self.BUSY), cpu_time=0.05, check=True)

    def test_without_anyone_waiting(self, box: Container) -> None:
        process = box.popen(python(self.BUSY), cpu_time=0.1)
        assert wait_until(lambda: alone(box), 10)
        assert process.result().reason == "cpu-timeout"
        process.close()

    def test_a_slow_share(self) -> None:
        with Container(cpu=0.2) as container:
            result, took = timed(container, python(self.BUSY), cpu_time=0.2)
        assert result.reason == "cpu-timeout" and took > 0.5


class TestOutputLimit:
    @pytest.mark.parametrize("size", [1, 10, 4096, 65536, 100_000])
    def test_exact(self, box: Container, size: int) -> None:
        result, took = timed(box, ["yes"], output_limit=size)
        assert (result.reason, result.truncated, result.ok) == ("output-limit", True, False)
        assert result.stdout == (b"y\n" * size)[:size] and result.stderr == b""
        assert took < SOON and alone(box)

    def test_both_streams_together(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "yes & yes >&2"], output_limit=100_000)
        assert len(result.stdout) + len(result.stderr) == 100_000
        assert result.reason == "output-limit" and alone(box)

    def test_exactly_reached_is_not_passed(self, box: Container) -> None:
        result = box.exec(["head", "-c", "5000", "/dev/zero"], output_limit=5000)
        assert (len(result.stdout), result.reason, result.truncated) == (5000, "exited", False)

    def test_passed_with_the_last_write(self, box: Container) -> None:
        # It has ended by the time that anyone counts; still more than was allowed.
        result = box.exec(["head", "-c", "5001", "/dev/zero"], output_limit=5000)
        assert (len(result.stdout), result.reason, result.truncated) == (5000, "output-limit", True)

    def test_nothing_allowed(self, box: Container) -> None:
        result = box.exec(["echo", "x"], output_limit=0)
        assert (result.stdout, result.reason, result.truncated) == (b"", "output-limit", True)
        assert box.exec(["true"], output_limit=0).ok

    def test_sixteen_megabytes_unless_asked(self, box: Container) -> None:
        result = box.exec(["cat", "/dev/zero"])
        assert (len(result.stdout), result.reason) == (16 << 20, "output-limit")

    def test_none(self, box: Container) -> None:
        result = box.exec(["head", "-c", str(20 << 20), "/dev/zero"], output_limit=None)
        assert (len(result.stdout), result.reason, result.truncated) == (20 << 20, "exited", False)

    def test_a_daemon_that_floods(self, box: Container) -> None:
        code = DAEMON + "\nwhile True: os.write(1, b'x' * 4096)"
        result = box.exec(
            python("import os, time\nif os.fork():\n time.sleep(60)\n" + code), output_limit=50_000
        )
        assert (result.reason, len(result.stdout)) == ("output-limit", 50_000)
        assert alone(box)

    def test_check(self, box: Container) -> None:
        with pytest.raises(OutputLimitExceeded):
            box.exec(["yes"], output_limit=10, check=True)


@pytest.mark.requires("cgroup_memory")
class TestMemory:
    def test_of_the_container(self) -> None:
        with Container(memory="48M") as container:
            result = container.exec(python(HOG), timeout=60)
            assert (result.reason, result.returncode, result.ok) == ("oom", -signal.SIGKILL, False)
            assert result.usage.oom_kills == 1
            assert result.usage.memory_peak is not None
            # A kernel lets what it can't refuse pass the limit: pages of its own, a batch of each CPU, on v2
            # those of a process that it kills.
            assert 40 << 20 < result.usage.memory_peak <= 53 << 20
            assert container.state == "running" and container.exec(["true"]).ok

    def test_of_one_exec(self, box: Container) -> None:
        result = box.exec(python(HOG), memory="32M", timeout=60)
        assert (result.reason, result.returncode) == ("oom", -signal.SIGKILL)
        assert box.exec(python("bytearray(b'x' * (40 << 20))"), timeout=60).ok

    def test_in_a_grandchild(self) -> None:
        # The program itself goes on, and would end well: what it had asked for was still killed.
        code = "import os\nfor _ in 1, 2:\n if os.fork(): os.wait(); os._exit(0)\n"
        with Container(memory="48M") as container:
            result = container.exec(python(code + HOG), timeout=60)
            # v2 ends the group as a whole; on v1 the kernel picks one and the others are killed after it.
            kills = result.usage.oom_kills
            assert result.reason == "oom" and kills is not None
            assert kills == 1 if V1 else 1 <= kills <= 3
            assert alone(container)

    def test_unmeasured(self) -> None:
        with Container(memory="48M") as container:
            for _ in range(2):
                assert container.exec(python(HOG), timeout=60, measure=False).reason == "oom"
                assert container.exec(["sh", "-c", "kill -9 $$"], measure=False).reason == "signaled"
            assert container.exec(python(HOG), timeout=60).reason == "oom"
            assert container.exec(["sh", "-c", "kill -9 $$"], measure=False).reason == "signaled"

    def test_in_a_grandchild_of_an_exec_with_its_own_limit(self, box: Container) -> None:
        code = "import os\nif os.fork(): os.wait(); os._exit(0)\n"
        result = box.exec(python(code + HOG), memory="32M", timeout=60)
        assert result.reason == "oom"

    def test_is_the_hog_s_own(self) -> None:
        # Another exec of the same container that waits meanwhile did not run out of memory.
        with Container(memory="48M") as container, container.popen(["cat"], stdin=PIPE) as other:
            assert container.exec(python(HOG), timeout=60).reason == "oom"
            assert other.communicate(b"fine") == (b"fine", b"")
            assert other.result().reason == "exited"
            assert other.result().usage.oom_kills == 0

    def test_shared_memory_and_files_count(self) -> None:
        with Container(memory="32M") as container:
            script = "head -c 100M /dev/zero > /dev/shm/file"
            result = container.exec(["sh", "-c", script], timeout=60)
            assert result.reason == "oom" or b"No space left" in result.stderr

    def test_check(self) -> None:
        with pytest.raises(OutOfMemory, match="memory"):
            isobox.run(python(HOG), memory="32M", check=True, timeout=60)

    def test_is_not_a_plain_sigkill(self) -> None:
        with Container(memory="64M") as container:
            result = container.exec(["sh", "-c", "kill -KILL $$"])
            assert (result.reason, result.usage.oom_kills) == ("signaled", 0)

    def test_without_anyone_waiting(self) -> None:
        with Container(memory="48M") as container:
            process = container.popen(python(HOG))
            assert wait_until(lambda: alone(container), 20)
            assert process.result().reason == "oom"
            process.close()


class TestKilled:
    def test_by_the_process(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            process.kill()
        assert process.result().reason == "killed"
        with pytest.raises(Killed):
            process.result().check()

    @pytest.mark.parametrize("end", ["kill", "remove", "stop"])
    def test_by_the_container(self, end: str) -> None:
        results: list[Result[Any]] = []
        with Container() as container:
            process = container.popen(["sleep", "60"])
            thread = threading.Thread(target=lambda: results.append(container.exec(["sleep", "61"])))
            thread.start()
            assert wait_until(lambda: list(descendants(container.pid or 0).values()).count("sleep S") == 2)
            getattr(container, end)(**({"timeout": 0} if end == "stop" else {}))
            thread.join(10)
        assert [(result.reason, result.returncode) for result in results] == [("killed", -signal.SIGKILL)]
        assert (process.wait(10), process.result().reason) == (-signal.SIGKILL, "killed")
        process.close()

    def test_by_a_program_inside(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "sleep 60 & kill -KILL $! ; wait $!"])
        assert (result.reason, result.returncode) == ("exited", 128 + 9)

    def test_a_timeout_that_comes_later_changes_nothing(self, box: Container) -> None:
        with box.popen(["sleep", "60"], timeout=30) as process:
            process.kill()
        assert process.result().reason == "killed"

    def test_ended_before_the_kill(self, box: Container) -> None:
        with box.popen(["sh", "-c", "exit 3"]) as process:
            assert process.wait(10) == 3
            process.kill()
        assert process.result().reason == "exited"


@pytest.mark.requires("cgroup_freezer")
class TestPaused:
    def test_a_timeout_while_it_is_paused(self) -> None:
        # With the container its init stands still, who reaps: the end is told when it goes on.
        results: list[Result[Any]] = []
        with Container() as container:
            thread = threading.Thread(
                target=lambda: results.append(container.exec(["sleep", "60"], timeout=patient(0.6)))
            )
            thread.start()
            assert wait_until(lambda: "sleep S" in descendants(container.pid or 0).values())
            container.pause()
            thread.join(patient(1.2))
            assert thread.is_alive()
            container.resume()
            thread.join(5)
            assert not thread.is_alive() and alone(container)
        assert [result.reason for result in results] == ["timeout"]

    @pytest.mark.parametrize("end", ["kill", "remove", "stop"])
    def test_ended_while_paused(self, end: str) -> None:
        with Container() as container:
            process = container.popen(["sleep", "60"])
            container.pause()
            began = time.monotonic()
            getattr(container, end)()
            assert time.monotonic() - began < patient(5)
            assert process.wait(5) in (-signal.SIGKILL, -signal.SIGTERM)
            process.close()


def test_every_error_is_a_process_error() -> None:
    for kind in (NonZeroExit, TimedOut, OutOfMemory, OutputLimitExceeded, Killed):
        assert issubclass(kind, ProcessError) and issubclass(kind, isobox.IsoboxError)
