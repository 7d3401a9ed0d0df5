"""Programs that don't stop: they write without end, read nothing, ignore signals, hold what they were lent.

Each attack is first seen to work on a plain pipe, on subprocess or with the limit taken away.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bystanders import well
from isobox import PIPE, Container, ExecError
from leftovers import descendants, resident, wait_until
from patience import patient
from programs import DAEMON, alone, python

pytestmark = [pytest.mark.requires("user_namespaces", "overlay"), pytest.mark.usefixtures("all_well")]

MOST = 1 << 20
"""Bytes of output that a flood may have."""

FLOOD = 48 << 20
ENDLESS = 1 << 50

WRITES = """
import sys
piece = b"x" * (1 << 16)
for _ in range(int(sys.argv[1]) >> 16):
    for name in sys.argv[2]:
        file = sys.stdout if name == "o" else sys.stderr
        file.buffer.write(piece)
"""


@pytest.fixture
def box(neighbour: Container) -> Iterator[Container]:
    with Container() as container:
        yield container
        if container.state == "running":
            assert wait_until(lambda: alone(container))
            assert well(container)
    assert well(neighbour)


class TestOutput:
    @pytest.mark.parametrize("tty", [False, True], ids=["pipes", "tty"])
    @pytest.mark.parametrize("streams", ["o", "e", "oe"])
    def test_endless(self, box: Container, streams: str, tty: bool) -> None:
        before = resident()
        code = python(WRITES, str(ENDLESS), streams)
        result = box.exec(code, output_limit=MOST, tty=tty, timeout=patient(30))
        assert (result.reason, result.truncated) == ("output-limit", True)
        assert len(result.stdout) + len(result.stderr) == MOST
        assert resident() - before < 8 * MOST

    @pytest.mark.parametrize("tty", [False, True], ids=["pipes", "tty"])
    def test_it_would_fill_the_caller(self, box: Container, tty: bool) -> None:
        size = 4 * MOST if tty else FLOOD  # a terminal is slow
        result = box.exec(python(WRITES, str(size), "o"), output_limit=None, tty=tty)
        assert result.ok and len(result.stdout) == size

    def test_nobody_reads_it(self, box: Container) -> None:
        """The program waits; nothing is kept on this side."""
        before = resident()
        with box.popen(python(WRITES, str(ENDLESS), "oe"), stdout=PIPE, stderr=PIPE) as process:
            time.sleep(0.3)
            assert process.poll() is None
            assert resident() - before < 8 * MOST
            process.kill()

    def test_a_daemon_holds_the_pipe(self, box: Container) -> None:
        args = python(DAEMON + "print(os.getpid(), flush=True); time.sleep(1000)")
        with subprocess.Popen(args, stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            daemon = int(victim.stdout.readline())
            try:
                assert victim.wait(patient(10)) == 0
                with pytest.raises(subprocess.TimeoutExpired):
                    victim.communicate(timeout=0.5)
            finally:
                os.kill(daemon, signal.SIGKILL)
        began = time.monotonic()
        assert box.exec(args, timeout=patient(30)).reason == "exited"
        assert time.monotonic() - began < patient(10)


class TestInput:
    def test_that_nobody_reads(self, box: Container) -> None:
        with subprocess.Popen(["sleep", "1000"], stdin=subprocess.PIPE) as victim:
            assert victim.stdin is not None
            os.set_blocking(victim.stdin.fileno(), False)
            assert os.write(victim.stdin.fileno(), bytes(FLOOD)) < FLOOD  # a plain write would wait for ever
            victim.kill()
        result = box.exec(["sleep", "1000"], input=bytes(FLOOD), timeout=0.3)
        assert result.reason == "timeout"

    def test_that_ends_before_it_is_read(self, box: Container) -> None:
        for args in (["true"], ["sh", "-c", "exec <&-; sleep 0.1"], ["head", "-c", "1"]):
            result = box.exec(args, input=bytes(FLOOD), timeout=patient(30))
            assert result.ok, (args, result)


IGNORES = """
import signal, sys, time
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
while True: time.sleep(1000)
"""

STOPS = """
import os, signal
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def stopped(container: Container) -> bool:
    return any(name.endswith(" T") for name in descendants(container.pid or 0).values())


@pytest.mark.parametrize("code", [IGNORES, STOPS], ids=["ignores", "stops itself"])
class TestStubborn:
    def test_container(self, box: Container, code: str) -> None:
        with box.popen(python(code)) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            assert code != STOPS or wait_until(lambda: stopped(box))
            process.terminate()
            time.sleep(0.2)
            assert process.poll() is None  # a signal that can be ignored, or wait, is no end
            began = time.monotonic()
            box.stop(timeout=0.3)
            assert time.monotonic() - began < patient(5)
            assert box.state == "stopped" and process.wait(patient(5)) == -signal.SIGKILL

    def test_program(self, box: Container, code: str) -> None:
        assert box.exec(python(code), timeout=0.3).reason == "timeout"


class TestDescriptors:
    CLOSES = "import os\nos.closerange(0, 20000)\n"

    def test_a_program_that_closes_everything(self, box: Container) -> None:
        """A reader takes the end of the pipes for the end of the program: it runs on."""
        with subprocess.Popen(
            python(self.CLOSES + "import time; time.sleep(1000)"), stdout=subprocess.PIPE
        ) as victim:
            assert victim.stdout is not None
            assert victim.stdout.read() == b"" and victim.poll() is None
            victim.kill()
        result = box.exec(python(self.CLOSES + "import time; time.sleep(0.3); os._exit(7)"))
        assert (result.reason, result.returncode) == ("exited", 7)
        assert result.usage.wall_time is not None and result.usage.wall_time > 0.3
        late = box.exec(python(self.CLOSES + "import time; time.sleep(1000)"), timeout=0.3)
        assert late.reason == "timeout"

    def test_only_the_streams_are_there_to_be_closed(self, box: Container) -> None:
        secret = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(secret, True)
        # The descriptor that lists them is closed again before they are looked at.
        code = "import os; print(*filter(lambda fd: os.path.exists(f'/dev/fd/{fd}'), os.listdir('/dev/fd')))"
        try:
            with subprocess.Popen(python(code), stdout=subprocess.PIPE, close_fds=False) as victim:
                assert str(secret).encode() in victim.communicate()[0].split()
            assert box.exec(python(code)).stdout == b"0 1 2\n"
        finally:
            os.close(secret)


class TestArguments:
    def test_more_than_the_kernel_takes(self, box: Container) -> None:
        with pytest.raises(OSError) as plain:
            subprocess.run(["true", "x" * (1 << 18)])
        assert plain.value.errno == errno.E2BIG
        for args in (["true", "x" * (1 << 18)], ["true", *["x" * 1000] * 10_000]):
            with pytest.raises(ExecError) as caught:
                box.exec(args)
            assert caught.value.errno == errno.E2BIG

    def test_as_many_as_it_takes(self, box: Container) -> None:
        count = 20_000
        env = {f"V{number}": "x" * 20 for number in range(2000)}
        result = box.exec(["sh", "-c", "echo $# $V1999", "sh", *["y" * 20] * count], env=env)
        assert result.stdout == b"%d %s\n" % (count, b"x" * 20)


class TestEnds:
    def test_of_many_at_once(self, box: Container) -> None:
        """Every one is told of its own end, none twice, none for another."""
        script = "read line; exit {}"
        with ExitStack() as stack:
            processes = [
                stack.enter_context(box.popen(["sh", "-c", script.format(number)], stdin=PIPE))
                for number in range(60)
            ]
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            assert [process.wait(patient(30)) for process in processes] == list(range(60))

    def test_of_orphans_without_end(self, box: Container) -> None:
        """Those of a program become init's; their ends come while others wait for theirs."""
        code = """
import os
for _ in range(500):
    if not os.fork():
        if os.fork(): os._exit(0)
        os._exit(0)
    os.wait()
"""
        with box.popen(python(code)) as flood:
            for number in range(20):
                assert box.exec(["sh", "-c", f"exit {number}"], timeout=patient(30)).returncode == number
            assert flood.wait(patient(60)) == 0
