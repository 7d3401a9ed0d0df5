"""popen: a program that runs beside the caller, with the manners of subprocess.Popen."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isobox import DEVNULL, PIPE, STDOUT, Container, ExecError, Process, SpecError, StateError
from leftovers import descendants, wait_until
from patience import patient
from programs import DAEMON, alone, python

pytestmark = pytest.mark.requires("user_namespaces", "overlay")


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container() as container:
        yield container


def running(container: Container, name: str) -> bool:
    """Whether it runs; what is dead is reaped by init a moment later."""
    assert container.pid is not None
    names = descendants(container.pid).values()
    return any(each.startswith(f"{name} ") and not each.endswith((" Z", " X")) for each in names)


class TestEnds:
    def test_running_then_not(self, box: Container) -> None:
        with box.popen(["cat"], stdin=PIPE) as process:
            assert process.returncode is None and process.poll() is None
            assert "running" in repr(process)
            assert process.args == ("cat",)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 0
        assert (process.returncode, process.poll(), process.wait()) == (0, 0, 0)
        assert "returncode 0" in repr(process)

    def test_poll_sees_the_end(self, box: Container) -> None:
        with box.popen(["sh", "-c", "exit 5"]) as process:
            assert wait_until(lambda: process.poll() is not None)
            assert process.returncode == 5

    def test_wait_with_a_timeout(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            began = time.monotonic()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0)
            assert time.monotonic() - began < patient(2)
            assert process.poll() is None
            process.kill()
            assert process.wait(10) == -signal.SIGKILL
            assert process.result().reason == "killed"

    def test_terminate(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            process.terminate()
            assert process.wait(10) == -signal.SIGTERM
        assert process.result().reason == "signaled"
        process.terminate()  # nothing happens
        process.kill()

    def test_a_handler_of_its_own(self, box: Container) -> None:
        script = "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.02; done"
        with box.popen(["sh", "-c", script], stdout=PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGUSR1)
            assert process.stdout.read() == b"caught\n"
            assert process.wait(10) == 9

    def test_stop_and_continue(self, box: Container) -> None:
        code = "import time\nwhile True: print(1, flush=True); time.sleep(0.01)"
        with box.popen(python(code)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            os.set_blocking(process.stdout.fileno(), False)
            while process.stdout.read(4096):
                pass
            time.sleep(0.2)
            assert not process.stdout.read(4096)  # it says nothing while it is stopped
            process.send_signal(signal.SIGCONT)
            assert select.select([process.stdout], [], [], 10)[0]
            process.kill()

    def test_pid_is_the_program_s(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            # The kernel lets a vfork's parent go on a moment before it names the program (begin_new_exec).
            name = Path(f"/proc/{process.pid}/comm")
            assert wait_until(lambda: name.read_text() == "sleep\n")
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(10) == -signal.SIGTERM
        assert process.pid is None

    def test_a_signal_that_is_none(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            with pytest.raises(ValueError):
                process.send_signal(4711)
            process.kill()

    def test_leaving_the_block_waits(self, box: Container) -> None:
        with box.popen(["sh", "-c", "sleep 0.2; exit 3"]) as process:
            pass
        assert process.returncode == 3

    def test_an_exception_in_the_block_kills(self, box: Container) -> None:
        began = time.monotonic()
        with pytest.raises(KeyError), box.popen(["sleep", "60"]) as process:
            raise KeyError
        assert process.returncode == -signal.SIGKILL
        assert time.monotonic() - began < patient(5)

    def test_fileno_is_readable_at_the_end(self, box: Container) -> None:
        with box.popen(["cat"], stdin=PIPE) as process:
            assert select.select([process], [], [], 0.05)[0] == []
            assert process.stdin is not None
            process.stdin.close()
            assert select.select([process], [], [], 10)[0] == [process]
            assert process.wait(10) == 0

    def test_kill_takes_what_it_started(self, box: Container) -> None:
        with box.popen(["sh", "-c", "sleep 62 & setsid sleep 62 & echo; wait"]) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert wait_until(lambda: running(box, "sleep"))
            process.kill()
            assert process.wait(10) == -signal.SIGKILL
            assert not running(box, "sleep")

    def test_nothing_is_left_after_wait(self, box: Container) -> None:
        with box.popen(python(DAEMON + "time.sleep(60)"), stdout=DEVNULL, stderr=DEVNULL) as process:
            assert process.wait(10) == 0
        assert alone(box)

    def test_never_waited_for(self) -> None:
        with Container() as container:
            process = container.popen(["sleep", "60"])
            ended = container.popen(["true"])
            assert select.select([ended], [], [], 10)[0]
        assert process.wait(0) == -signal.SIGKILL
        assert process.result().reason == "killed"
        assert ended.wait(0) == 0
        assert ended.result().reason == "exited"  # before anyone killed anything
        process.close()
        ended.close()

    def test_result(self, box: Container) -> None:
        with box.popen(["sh", "-c", "echo out; exit 4"], text=True) as process:
            assert process.communicate() == ("out\n", "")
        result = process.result()
        assert (result.stdout, result.stderr, result.returncode, result.reason) == ("out\n", "", 4, "exited")
        assert result.usage.wall_time is not None and result.usage.wall_time > 0
        assert process.result() == result


class TestStreams:
    def test_line_by_line(self, box: Container) -> None:
        with box.popen(["cat"], stdin=PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            for word in (b"one\n", b"two\n", b"\xff\n"):
                process.stdin.write(word)
                assert process.stdout.readline() == word
            process.stdin.close()
            assert process.stdout.read() == b""

    def test_text(self, box: Container) -> None:
        with box.popen(["cat"], stdin=PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("ä\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ä\n"
            assert process.communicate("rest") == ("rest", "")

    def test_only_what_was_asked_for(self, box: Container) -> None:
        with box.popen(["true"], stdout=DEVNULL, stderr=STDOUT) as process:
            assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        with box.popen(["sh", "-c", "echo a >&2"], stderr=STDOUT) as process:
            assert process.stderr is None
            assert process.communicate() == (b"a\n", b"")

    def test_the_end_of_the_output_is_seen_while_it_runs(self, box: Container) -> None:
        with box.popen(["sh", "-c", "echo last; exec >&- 2>&-; sleep 60"]) as process:
            assert process.stdout is not None
            began = time.monotonic()
            assert process.stdout.read() == b"last\n"
            assert time.monotonic() - began < patient(5)
            assert process.poll() is None
            process.kill()

    def test_a_closed_stdin_is_seen_while_it_runs(self, box: Container) -> None:
        with box.popen(["sh", "-c", "exec <&-; echo; sleep 60"], stdin=PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdout.readline()

            def broken() -> bool:
                assert process.stdin is not None
                try:
                    process.stdin.write(b"x")
                except BrokenPipeError:
                    return True
                return False

            # isobox-init lets go of its own descriptors a moment after the program has begun.
            assert wait_until(broken)
            process.kill()

    def test_a_flood_is_streamed_without_bound(self, box: Container) -> None:
        # output_limit is about what is kept in memory: a reader of its own sets its own pace.
        with box.popen(["head", "-c", str(40 << 20), "/dev/zero"], output_limit=1000) as process:
            assert process.stdout is not None
            total = 0
            while data := process.stdout.read(1 << 20):
                total += len(data)
            assert process.wait(10) == 0
        assert (total, process.result().reason) == (40 << 20, "exited")

    def test_many_at_once_through_one_selector(self, box: Container) -> None:
        processes = [box.popen(["sh", "-c", f"sleep 0.0{number}; echo {number}"]) for number in range(9)]
        pending, seen = list(processes), []
        while pending:
            for process in select.select(pending, [], [], 10)[0]:
                pending.remove(process)
                seen.append(process.communicate()[0])
        assert sorted(seen) == [b"%d\n" % number for number in range(9)]


class TestCommunicate:
    def test_both_ways(self, box: Container) -> None:
        data = os.urandom(3 << 20)
        with box.popen(["sh", "-c", "tee /dev/stderr"], stdin=PIPE) as process:
            assert process.communicate(data) == (data, data)
        assert process.returncode == 0

    def test_without_input_stdin_ends(self, box: Container) -> None:
        with box.popen(["cat"], stdin=PIPE) as process:
            assert process.communicate(timeout=10) == (b"", b"")

    def test_a_timeout_loses_nothing(self, box: Container) -> None:
        with box.popen(["sh", "-c", "echo first; sleep 0.4; cat"], stdin=PIPE) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(b"then this", timeout=0.1)
            assert process.communicate() == (b"first\nthen this", b"")
        assert process.returncode == 0

    def test_a_daemon_that_keeps_the_pipes(self, box: Container) -> None:
        began = time.monotonic()
        with box.popen(["sh", "-c", "setsid sleep 60 & echo done"]) as process:
            assert process.communicate(timeout=20) == (b"done\n", b"")
        assert time.monotonic() - began < patient(5)

    def test_output_limit(self, box: Container) -> None:
        with box.popen(["yes"], output_limit="64K") as process:
            out, err = process.communicate(timeout=20)
        assert len(out) == 65536 and err == b""
        result = process.result()
        assert (result.reason, result.truncated, result.returncode) == ("output-limit", True, -signal.SIGKILL)

    def test_timeout_of_the_program(self, box: Container) -> None:
        with box.popen(["sh", "-c", "echo a; sleep 60"], timeout=0.2) as process:
            assert process.communicate() == (b"a\n", b"")
        assert process.result().reason == "timeout"

    def test_the_wrong_kind_of_input(self, box: Container) -> None:
        with box.popen(["cat"], stdin=PIPE) as process:
            with pytest.raises(SpecError) as caught:
                process.communicate("text")  # type: ignore[arg-type]
            assert caught.value.field == "input"
            assert process.communicate(b"bytes") == (b"bytes", b"")


class TestLimitsWithoutAnyoneWaiting:
    def test_timeout(self, box: Container) -> None:
        process = box.popen(["sleep", "63"], timeout=0.2)
        assert wait_until(lambda: not running(box, "sleep"), 5)
        assert process.wait(10) == -signal.SIGKILL
        assert process.result().reason == "timeout"
        process.close()

    def test_select_sees_it(self, box: Container) -> None:
        with box.popen(["sleep", "60"], timeout=0.2) as process:
            began = time.monotonic()
            assert select.select([process], [], [], 10)[0]
            assert time.monotonic() - began < patient(5)


class TestTerminal:
    def test_a_session(self, box: Container) -> None:
        with box.popen(["sh"], tty=True, stdin=PIPE, env={"PS1": "$ "}) as process:
            self.until(process, b"$ ")
            self.type(process, b"echo $((6*7))\n")
            assert b"42" in self.until(process, b"42\r\n$ ")
            self.type(process, b"sleep 60\n")
            self.until(process, b"sleep 60\r\n")
            assert wait_until(lambda: running(box, "sleep"))
            self.type(process, b"\x03")  # Ctrl-C reaches the program in front, not the shell
            self.until(process, b"$ ")
            self.type(process, b"exit 7\n")
            assert process.wait(10) == 7

    def test_size(self, box: Container) -> None:
        script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done"
        with box.popen(["sh", "-c", script], tty=True, stdin=PIPE) as process:
            self.until(process, b"ready")
            process.resize(33, 99)
            self.until(process, b"33 99")
            process.resize(1, 65535)
            self.until(process, b"1 65535")
            process.kill()

    @pytest.mark.parametrize(("rows", "columns"), [(0, 80), (24, 0), (-1, 80), (24, 65536), ("24", 80)])
    def test_sizes_that_are_none(self, box: Container, rows: Any, columns: Any) -> None:
        with box.popen(["sleep", "60"], tty=True) as process:
            with pytest.raises(SpecError) as caught:
                process.resize(rows, columns)
            assert caught.value.field in ("rows", "columns")
            process.kill()

    def test_resize_without_a_terminal(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            with pytest.raises(StateError):
                process.resize(24, 80)
            process.kill()

    def test_hanging_up(self, box: Container) -> None:
        # Closing our end is what a terminal window does: the program gets SIGHUP.
        process = box.popen(["sleep", "60"], tty=True, stdin=PIPE)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        assert process.wait(10) == -signal.SIGHUP
        process.close()

    def type(self, process: Process, keys: bytes) -> None:
        assert process.stdin is not None
        process.stdin.write(keys)

    def until(self, process: Process, words: bytes) -> bytes:
        assert process.stdout is not None
        seen, deadline = b"", time.monotonic() + 10
        while words not in seen:
            assert select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0], seen
            seen += os.read(process.stdout.fileno(), 4096)
        return seen


class TestThreads:
    def test_several_wait_for_one(self, box: Container) -> None:
        process = box.popen(["sh", "-c", "sleep 0.3; exit 6"])
        seen: list[int] = []
        threads = [threading.Thread(target=lambda: seen.append(process.wait())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert seen == [6] * 8
        process.close()

    def test_killed_from_another(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            threading.Timer(0.1, process.kill).start()
            began = time.monotonic()
            assert process.wait() == -signal.SIGKILL
            assert time.monotonic() - began < patient(5)

    def test_poll_while_another_waits(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            thread = threading.Thread(target=process.wait)
            thread.start()
            for _ in range(20):
                assert process.poll() is None
            process.kill()
            thread.join(10)
            assert not thread.is_alive() and process.poll() == -signal.SIGKILL


def test_two_processes_of_two_programs_of_the_host(box: Container) -> None:
    # A program of subprocess's reads what one of ours writes.
    with box.popen(["echo", "hello"]) as ours:
        other = subprocess.run(
            [sys.executable, "-c", "print(input())"], stdin=ours.stdout, capture_output=True
        )
    assert other.stdout == b"hello\n"


def test_no_descriptors_for_its_output() -> None:
    """It says so, and goes on when there are some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Container() as container, container.popen(["echo", "x"]) as process:
        assert process.wait(10) == 0
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(ExecError, match="read its output.*Too many open files"):
                process.communicate()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert process.communicate() == (b"x\n", b"")
