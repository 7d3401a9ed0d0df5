"""The command as a shell runs it: through pipes and through a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from patience import patient

ISOBOX = [sys.executable, "-m", "isobox.cli"]


def isobox(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL, **options}
    if "input" in options:
        del options["stdin"]
    return subprocess.run([*ISOBOX, *arguments], **options)


class Screen:
    """A terminal with isobox in it."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master = master
        self.process = process
        self.seen = ""

    def until(self, words: str | Callable[[str], bool], seconds: float = 20.0) -> str:
        found = words if callable(words) else lambda seen: words in seen
        deadline = time.monotonic() + seconds
        while not found(self.seen):
            left = deadline - time.monotonic()
            assert left > 0, f"not seen in time: {words!r} in {self.seen!r}"
            if select.select([self.master], [], [], min(left, 0.1))[0]:
                try:
                    data = os.read(self.master, 4096)
                except OSError:
                    data = b""
                assert data, f"the terminal was closed before {words!r}: {self.seen!r}"
                self.seen += data.decode(errors="replace")
        return self.seen

    def type(self, text: str) -> None:
        self.seen = ""
        os.write(self.master, text.encode())

    def wait(self, seconds: float = 20.0) -> int:
        # what is still written has to be read, or the program can't end
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"did not end: {self.seen!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
        return self.process.returncode

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.master)[3] & termios.ICANON


@contextlib.contextmanager
def screen(*arguments: str, rows: int = 24, columns: int = 80) -> Iterator[Screen]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLING, *ISOBOX, *arguments],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    before = termios.tcgetattr(slave)
    try:
        yield Screen(master, process)
        assert termios.tcgetattr(slave) == before, "the terminal was not restored"
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


# Makes the terminal the controlling one, so that Ctrl-C is a signal; becomes isobox; nohup ignores SIGHUP.
CONTROLLING = "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
CONTROLLING += "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
CONTROLLING += "os.execv(sys.argv[1], sys.argv[1:])"


class TestStatuses:
    @pytest.mark.parametrize(
        ("program", "status"),
        [
            (["true"], 0),
            (["sh", "-c", "exit 3"], 3),
            (["sh", "-c", "exit 255"], 255),
            (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
            (["nosuch-program"], 127),
            (["/no/such/path"], 127),
            (["/etc/passwd"], 126),
            (["/etc"], 126),
        ],
    )
    def test_the_program_s(self, program: list[str], status: int) -> None:
        done = isobox("run", "host", *program)
        assert done.returncode == status, done.stderr
        if status in (126, 127):
            assert done.stderr.startswith("isobox: ")
            assert done.stderr.count("\n") == 1
        else:
            assert done.stderr == ""

    def test_time_out(self) -> None:
        began = time.monotonic()
        done = isobox("run", "--timeout", "0.3", "host", "sleep", "30")
        assert done.returncode == 124
        assert "--timeout" in done.stderr
        assert time.monotonic() - began < patient(10)

    @pytest.mark.requires("cgroup_cpu")
    def test_cpu_time(self) -> None:
        done = isobox("run", "--cpu-time", "200ms", "host", "sh", "-c", "while :; do :; done")
        assert done.returncode == 124
        assert "--cpu-time" in done.stderr

    @pytest.mark.requires("cgroup_memory")
    def test_out_of_memory(self) -> None:
        hog = "x = bytearray(200 << 20); print(len(x))"
        done = isobox("run", "--memory", "64M", "host", sys.executable, "-c", hog)
        assert done.returncode == 137
        assert "--memory" in done.stderr
        assert done.stdout == ""

    def test_isobox_s_own_errors(self) -> None:
        for arguments in (
            ["run", "/no/such/image", "true"],
            ["run", "--memory", "12X", "host", "true"],
            ["run", "-v", "/no/such/source:/data", "host", "true"],
            ["run", "-u", "nobody-of-this-name", "host", "true"],
        ):
            done = isobox(*arguments)
            assert done.returncode == 125, (arguments, done)
            assert done.stderr.startswith("isobox: ")
            assert "Traceback" not in done.stderr


class TestStreams:
    def test_standard_output_and_error_are_inherited(self) -> None:
        done = isobox("run", "host", "sh", "-c", "echo out; echo err >&2")
        assert (done.stdout, done.stderr) == ("out\n", "err\n")

    def test_standard_input_only_with_i(self) -> None:
        assert isobox("run", "-i", "host", "cat", input="hello").stdout == "hello"
        assert isobox("run", "host", "cat", input="hello").stdout == ""

    def test_a_pipe_that_closes(self) -> None:
        done = subprocess.run(
            f"{shlex.join(ISOBOX)} run host sh -c 'while echo y; do :; done' | head -n 1",
            shell=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stdout == "y\n"
        assert "Traceback" not in done.stderr

    def test_json(self) -> None:
        done = isobox("run", "--json", "host", "sh", "-c", r"echo out; printf '\377' >&2; exit 4")
        assert done.returncode == 4
        assert done.stderr == ""
        document = json.loads(done.stdout)
        assert document["stdout"] == "out\n"
        assert (document["stderr"], document["stderr_encoding"]) == ("/w==", "base64")
        assert document["reason"] == "exited"
        assert document["returncode"] == 4
        assert document["usage"]["wall_time"] > 0

    def test_output_limit(self) -> None:
        done = isobox("run", "--json", "--output-limit", "1K", "host", "sh", "-c", "while echo y; do :; done")
        assert done.returncode == 137
        document = json.loads(done.stdout)
        assert document["reason"] == "output-limit"
        assert document["truncated"] is True
        assert len(document["stdout"]) <= 1024
        assert "--output-limit" in done.stderr

    def test_usage_goes_to_standard_error(self) -> None:
        done = isobox("run", "--usage", "host", "echo", "out")
        assert done.stdout == "out\n"
        assert "wall time" in done.stderr
        assert "cpu time" in done.stderr


class TestOptions:
    def test_environment_workdir_user_and_hostname(self, tmp_path: Path) -> None:
        file = tmp_path / "env"
        file.write_text("FROM_FILE=1\n")
        done = isobox(
            "run", "-e", "A=b c", "-e", "HERE", "--env-file", str(file), "-w", "/usr", "-h", "box", "host",
            "sh", "-c", 'echo "$A|$HERE|$FROM_FILE|$SECRET|$(pwd)|$(uname -n)|$(id -u)"',
            env={**os.environ, "HERE": "h", "SECRET": "s"},
        )  # fmt: skip
        assert done.stdout == "b c|h|1||/usr|box|0\n", done.stderr

    def test_volumes(self, tmp_path: Path) -> None:
        # others must be able to pass, or the container's root, who is nobody outside, can't either
        for parent in (tmp_path, *list(tmp_path.parents)[:2]):
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o055)
        (tmp_path / "file").write_text("content")
        done = isobox(
            "run", "-v", "./:/data:ro", "host", "sh", "-c", "cat /data/file; touch /data/new", cwd=tmp_path
        )
        assert done.stdout == "content", done.stderr
        assert done.returncode != 0
        assert not (tmp_path / "new").exists()

    def test_tmpfs_and_read_only(self) -> None:
        done = isobox(
            "run", "--read-only", "--tmpfs", "/scratch:size=1M", "host", "sh", "-c",
            "touch /usr/x 2>/dev/null || echo refused; touch /scratch/x && echo written",
        )  # fmt: skip
        assert done.stdout.split() == ["refused", "written"], done.stderr

    def test_ulimit(self) -> None:
        done = isobox("run", "--ulimit", "nofile=99:100", "host", "sh", "-c", "ulimit -Sn; ulimit -Hn")
        assert done.stdout.split() == ["99", "100"], done.stderr

    def test_capabilities(self) -> None:
        done = isobox("run", "--cap-drop", "ALL", "host", "grep", "CapEff", "/proc/self/status")
        assert done.stdout.split() == ["CapEff:", "0" * 16], done.stderr

    def test_network(self) -> None:
        done = isobox("run", "host", "cat", "/proc/net/dev")
        names = [line.split(":")[0].strip() for line in done.stdout.splitlines()[2:]]
        assert "eth0" not in names
        assert "lo" in names


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    def test_they_go_to_the_program(self, number: signal.Signals) -> None:
        short = number.name.removeprefix("SIG")
        program = f"trap 'echo got {short}; exit 7' {short}; echo ready; while :; do sleep 0.1; done"
        with subprocess.Popen(
            [*ISOBOX, "run", "host", "sh", "-c", program], stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            run.send_signal(number)
            assert run.stdout.readline() == f"got {short}\n"
            assert run.wait(20) == 7

    def test_a_third_interrupt_ends_a_program_that_ignores_them(self) -> None:
        program = "trap '' INT; echo ready; while :; do sleep 0.1; done"
        with subprocess.Popen(
            [*ISOBOX, "run", "host", "sh", "-c", program], stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            for _ in range(3):
                run.send_signal(signal.SIGINT)
                time.sleep(0.1)
            assert run.wait(20) == 130

    def test_ctrl_c_without_a_terminal_of_its_own(self) -> None:
        program = "trap 'echo got it; exit 5' INT; echo ready; while :; do sleep 0.1; done"
        with screen("run", "host", "sh", "-c", program) as shown:
            shown.until("ready")
            assert not shown.is_raw()
            shown.type("\x03")
            shown.until("got it")
            assert shown.wait() == 5


class TestTerminal:
    def test_a_shell(self) -> None:
        with screen("run", "-it", "-e", "PS1=$ ", "host", "sh") as shown:
            shown.until("$ ")
            assert shown.is_raw()
            shown.type("test -t 0 && test -t 1 && echo is-a-'terminal'\r")
            shown.until("is-a-terminal")
            shown.type("tty; ps -o pid= 2>/dev/null; exit 9\r")
            assert shown.wait() == 9
            assert not shown.is_raw()

    def test_ctrl_c_is_the_program_s(self) -> None:
        with screen("run", "-it", "-e", "PS1=$ ", "host", "sh") as shown:
            shown.until("$ ")
            shown.type("sleep 60\r")
            time.sleep(0.3)
            shown.type("\x03")
            shown.until("$ ")
            shown.type("exit 4\r")
            assert shown.wait() == 4

    def test_window_size(self) -> None:
        with screen("run", "-it", "-e", "PS1=$ ", "host", "sh", rows=33, columns=101) as shown:
            shown.until("$ ")
            shown.type("stty size\r")
            shown.until("33 101")
            fcntl.ioctl(shown.master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 120, 0, 0))
            time.sleep(0.2)
            shown.type("stty size\r")
            shown.until("44 120")
            shown.type("exit\r")
            assert shown.wait() == 0

    def test_end_of_input(self) -> None:
        with screen("run", "-it", "host", "cat") as shown:
            shown.until(lambda _: shown.is_raw())
            shown.type("line\r")
            shown.until(lambda seen: seen.count("line") == 2)
            shown.type("\x04")
            assert shown.wait() == 0

    def test_everything_arrives_before_the_end(self) -> None:
        with screen("run", "-t", "host", "sh", "-c", "seq 1 20000; echo the end") as shown:
            shown.wait()
            shown.until("the end")
            assert "\r\n20000\r\nthe end\r\n" in shown.seen

    def test_a_time_out_restores_the_terminal(self) -> None:
        with screen("run", "-it", "--timeout", "0.5", "host", "cat") as shown:
            assert shown.wait() == 124
            shown.until("--timeout")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal_restores_the_terminal(self, number: signal.Signals) -> None:
        with screen("run", "-it", "host", "sh", "-c", "trap '' TERM HUP INT; echo ready; cat") as shown:
            shown.until("ready")
            assert shown.is_raw()
            shown.process.send_signal(number)
            assert shown.wait() == 128 + number

    def test_an_error_restores_the_terminal(self) -> None:
        with screen("run", "-it", "host", "nosuch-program") as shown:
            assert shown.wait() == 127
            shown.until("nosuch-program")

    def test_typing_ahead_of_a_program_that_does_not_read(self) -> None:
        with screen(
            "run", "-it", "--timeout", "1", "host", "sh", "-c", "stty raw -echo; echo ready; sleep 30"
        ) as shown:
            shown.until("ready")
            os.set_blocking(shown.master, False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(200):
                    os.write(shown.master, b"x" * 1000)
            os.set_blocking(shown.master, True)
            assert shown.wait() == 124


class TestOtherCommands:
    def test_explain_prints_the_plan(self) -> None:
        done = isobox("explain", "--memory", "64M", "--hostname", "box", "host")
        assert done.returncode == 0, done.stderr
        assert "box" in done.stdout
        assert len(done.stdout.splitlines()) > 5

    def test_doctor_in_a_pipe_is_plain(self) -> None:
        done = isobox("doctor")
        assert done.returncode in (0, 1)
        assert "\x1b" not in done.stdout
        for line in done.stdout.splitlines():
            assert line.split()[0] in ("works", "degraded", "missing")

    def test_doctor_on_a_terminal_has_colours(self) -> None:
        with screen("doctor", columns=100) as shown:
            status = shown.wait()
        assert status in (0, 1)
        assert "\x1b[3" in shown.seen

    def test_doctor_cleans_what_a_killed_run_left(self) -> None:
        # Not tmp_path: that is closed to others, and so to the containers of root.
        with tempfile.TemporaryDirectory(prefix="isobox-test-") as folder:
            Path(folder).chmod(0o755)
            places = {"ISOBOX_STATE_DIR": f"{folder}/state", "ISOBOX_DATA_DIR": f"{folder}/data"}
            own = {**os.environ, **places}
            with subprocess.Popen(
                [*ISOBOX, "run", "host", "sh", "-c", "echo ready; sleep 60"],
                stdout=subprocess.PIPE,
                text=True,
                env=own,
            ) as run:
                assert run.stdout is not None
                assert run.stdout.readline() == "ready\n"
                run.kill()
                assert run.stdout.read() == ""  # at its end, so nothing holds it open any more
            first, second = (isobox("doctor", "--clean", env=own) for _ in range(2))
        assert "isobox: removed 1 dead owner" in first.stderr
        assert second.stderr == "isobox: nothing was left behind\n"

    def test_nothing_of_the_command_s_libraries_is_imported_by_the_library(self) -> None:
        code = "import isobox, sys; print('click' in sys.modules or 'rich' in sys.modules)"
        assert (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
        )

    def test_without_click_it_says_what_to_install(self, tmp_path: Path) -> None:
        (tmp_path / "click.py").write_text("raise ModuleNotFoundError('click')\n")
        done = isobox(
            "doctor", env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        )
        assert done.returncode == 125
        assert "pip install 'isobox[cli]'" in done.stderr
