"""exec: one program with its arguments, environment, streams and end."""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isobox
from isobox import DEVNULL, PIPE, STDOUT, Container, ExecError, NonZeroExit, ProcessError, SpecError
from patience import patient
from programs import alone, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container() as container:
        yield container


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As many as the kernel lets any program have, instead of 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestResult:
    def test_of_a_program_that_ends_well(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "echo out; echo err >&2"])
        assert result.args == ("sh", "-c", "echo out; echo err >&2")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
        assert (result.returncode, result.reason, result.truncated) == (0, "exited", False)
        assert result.ok and result.check() is result

    @pytest.mark.parametrize("status", [1, 3, 42, 127, 128, 255])
    def test_an_exit_status_is_data(self, box: Container, status: int) -> None:
        result = box.exec(["sh", "-c", f"exit {status}"])
        assert (result.returncode, result.reason, result.ok) == (status, "exited", False)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT, signal.SIGRTMAX])
    def test_a_signal_of_its_own(self, box: Container, number: int) -> None:
        result = box.exec(["sh", "-c", f"kill -{int(number)} $$"])
        assert (result.returncode, result.reason, result.ok) == (-number, "signaled", False)

    def test_a_crash(self, box: Container) -> None:
        result = box.exec(python("import ctypes; ctypes.string_at(0)"))
        assert (result.returncode, result.reason) == (-signal.SIGSEGV, "signaled")

    def test_check(self, box: Container) -> None:
        assert box.exec(["true"], check=True).ok
        with pytest.raises(NonZeroExit, match="exited with status 7") as caught:
            box.exec(["sh", "-c", "echo so; echo why >&2; exit 7"], check=True, text=True)
        assert (caught.value.result.returncode, caught.value.result.stdout) == (7, "so\n")
        assert "why" in str(caught.value)
        assert isinstance(caught.value, ProcessError)
        with pytest.raises(NonZeroExit, match="SIGTERM"):
            box.exec(["sh", "-c", "kill -TERM $$"], check=True)

    def test_what_it_wrote_reaches_no_terminal_raw(self, box: Container) -> None:
        with pytest.raises(NonZeroExit) as caught:
            box.exec(["sh", "-c", r"printf '\033[2J\r\007' >&2; exit 1"], check=True)
        assert not set("\x1b\r\x07") & set(str(caught.value))

    def test_pickle(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "echo hello; exit 3"], text=True)
        again = pickle.loads(pickle.dumps(result))
        assert again == result and again.usage.sources == result.usage.sources
        with pytest.raises(NonZeroExit) as caught:
            result.check()
        error = pickle.loads(pickle.dumps(caught.value))
        assert error.result == result and str(error) == str(caught.value)

    def test_frozen(self, box: Container) -> None:
        result = box.exec(["true"])
        with pytest.raises(AttributeError):
            result.returncode = 1  # type: ignore[misc]
        with pytest.raises(AttributeError):
            result.usage.wall_time = 1.0  # type: ignore[misc]


class TestText:
    def test_bytes_unless_asked(self, box: Container) -> None:
        assert box.exec(["printf", r"\377\000\r\n"]).stdout == b"\xff\x00\r\n"

    def test_text(self, box: Container) -> None:
        result = box.exec(["printf", r"\303\244\r\nb\rc\n"], text=True)
        assert (result.stdout, result.stderr) == ("ä\nb\nc\n", "")

    def test_what_is_no_text_is_replaced_and_never_an_error(self, box: Container) -> None:
        assert box.exec(["printf", r"a\377b"], text=True).stdout == "a\ufffdb"

    def test_encoding_and_errors(self, box: Container) -> None:
        assert box.exec(["printf", r"\344"], encoding="latin-1").stdout == "ä"
        assert box.exec(["printf", r"a\377"], errors="surrogateescape").stdout == "a\udcff"
        with pytest.raises(UnicodeDecodeError):
            box.exec(["printf", r"\377"], text=True, errors="strict")
        assert box.exec(["cat"], encoding="utf-16-le", input="hé").stdout == "hé"

    def test_a_character_cut_by_the_output_limit(self, box: Container) -> None:
        result = box.exec(["printf", "ääää"], text=True, output_limit=3)
        assert (result.stdout, result.truncated) == ("ä\ufffd", True)


class TestInput:
    def test_empty_by_default(self, box: Container) -> None:
        assert sh(box, "wc -c; readlink /proc/self/fd/0") == "0\n/dev/null\n"

    def test_bytes_and_text(self, box: Container) -> None:
        assert box.exec(["cat"], input=b"\0\xff").stdout == b"\0\xff"
        assert box.exec(["cat"], input=bytearray(b"array")).stdout == b"array"
        assert box.exec(["cat"], input=memoryview(b"view")).stdout == b"view"
        assert box.exec(["cat"], input="ä\n", text=True).stdout == "ä\n"
        assert box.exec(["wc", "-c"], input=b"").stdout.strip() == b"0"

    @pytest.mark.parametrize(("data", "options"), [("text", {}), (b"bytes", {"text": True}), (3, {})])
    def test_of_the_wrong_kind(self, box: Container, data: Any, options: dict[str, Any]) -> None:
        with pytest.raises(SpecError) as caught:
            box.exec(["cat"], input=data, **options)
        assert caught.value.field == "input"

    def test_with_another_stdin(self, box: Container) -> None:
        with open(os.devnull) as file, pytest.raises(SpecError) as caught:
            box.exec(["cat"], input=b"x", stdin=file)
        assert caught.value.field == "input"

    def test_more_than_the_pipes_hold_both_ways(self, box: Container) -> None:
        # Would hang where input is written before output is read.
        data = os.urandom(1 << 20) * 3
        result = box.exec(["sh", "-c", "tee /dev/stderr"], input=data, timeout=60)
        assert result.stdout == data and result.stderr == data

    def test_a_program_that_does_not_read_it(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "exec <&-; echo done"], input=bytes(1 << 20), timeout=60)
        assert (result.stdout, result.returncode) == (b"done\n", 0)
        assert box.exec(["true"], input=bytes(1 << 20), timeout=60).ok

    def test_end_of_input_is_seen(self, box: Container) -> None:
        assert said(box, python("import sys; print(len(sys.stdin.read()))"), input="abc") == "3\n"


class TestStreams:
    def test_none_inherits(self, tmp_path: Path) -> None:
        # In a program of its own, whose streams are files that can be read.
        code = (
            "import isobox; isobox.run(['sh', '-c', 'cat; echo e >&2'], stdin=None, stdout=None, stderr=None)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], input=b"from outside\n", capture_output=True, timeout=60, check=True
        )
        assert (done.stdout, done.stderr) == (b"from outside\n", b"e\n")

    def test_devnull(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "echo a; echo b >&2"], stdout=DEVNULL, stderr=DEVNULL)
        assert (result.stdout, result.stderr, result.returncode) == (b"", b"", 0)

    def test_stderr_to_stdout(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "echo a; echo b >&2; echo c"], stderr=STDOUT)
        assert (result.stdout, result.stderr) == (b"a\nb\nc\n", b"")

    def test_files(self, box: Container, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(b"from a file")
        with open(tmp_path / "in", "rb") as stdin, open(tmp_path / "out", "wb") as stdout:
            result = box.exec(["sh", "-c", "cat; echo err >&2"], stdin=stdin, stdout=stdout, stderr=stdout)
            assert not stdin.closed and not stdout.closed
        assert (result.stdout, result.stderr) == (b"", b"")
        assert (tmp_path / "out").read_bytes() == b"from a fileerr\n"

    def test_descriptors_stay_the_caller_s(self, box: Container) -> None:
        reader, writer = os.pipe()
        try:
            assert box.exec(["echo", "hello"], stdout=writer).stdout == b""
            assert os.read(reader, 100) == b"hello\n"
            os.write(writer, b"still open")
            os.close(writer)
            writer = -1
            assert box.exec(["cat"], stdin=reader).stdout == b"still open"
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)

    def test_stdin_of_one_program_is_stdout_of_another(self, box: Container) -> None:
        with box.popen(["echo", "through"]) as first:
            assert box.exec(["tr", "a-z", "A-Z"], stdin=first.stdout).stdout == b"THROUGH\n"

    def test_low_descriptors_cross_over(self, box: Container) -> None:
        # The ones that are given have the numbers that the others are to get.
        code = """
import os, isobox
with isobox.Container() as c:
    reader, writer = os.pipe()
    os.close(0); os.close(1)
    assert (os.dup(writer), os.dup(reader)) == (0, 1)
    os.close(reader); os.close(writer)
    c.exec(["sh", "-c", "echo crossed; cat >&2"], stdin=1, stdout=0, stderr=2, timeout=1)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        assert done.stderr == b"crossed\n", done.stderr

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("stdin", STDOUT), ("stdout", STDOUT), ("stdin", "file"), ("stdout", 1.5), ("stderr", True),
            ("stdin", 99999), ("stdout", -7), ("stderr", io.BytesIO()), ("stdin", object()),
        ],
    )  # fmt: skip
    def test_what_is_no_stream(self, box: Container, name: str, value: Any) -> None:
        with pytest.raises(SpecError) as caught:
            box.exec(["true"], **{name: value})
        assert caught.value.field == name

    def test_a_closed_file(self, box: Container) -> None:
        with open(os.devnull) as file:
            pass
        with pytest.raises((SpecError, ValueError)):
            box.exec(["true"], stdin=file)

    def test_reopened_by_name(self, box: Container) -> None:
        script = "echo a > /dev/stdout; echo b > /dev/stderr; echo c > /proc/self/fd/1; cat /dev/stdin"
        result = box.exec(["sh", "-c", script], input=b"d\n", text=False)
        assert (result.stdout, result.stderr) == (b"a\nc\nd\n", b"b\n")

    @pytest.mark.requires("id_ranges")
    def test_reopened_by_name_by_another_user(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "echo a > /dev/stdout; cat /dev/stdin"], input=b"d\n", user="12:34")
        assert (result.stdout, result.stderr) == (b"a\nd\n", b"")

    def test_a_daemon_that_keeps_the_pipes_does_not_hold_us_up(self, box: Container) -> None:
        began = time.monotonic()
        result = box.exec(["sh", "-c", "echo first; setsid sleep 60 &"], timeout=50)
        assert (result.stdout, result.reason) == (b"first\n", "exited")
        assert time.monotonic() - began < patient(5)
        assert alone(box)

    def test_a_megabyte_a_stream(self, box: Container) -> None:
        code = "import os; [os.write(n, bytes([65 + n]) * 65536) for _ in range(64) for n in (1, 2)]"
        result = box.exec(python(code), timeout=60)
        assert result.stdout == b"B" * (4 << 20) and result.stderr == b"C" * (4 << 20)


class TestArguments:
    def test_str_bytes_and_paths(self, box: Container) -> None:
        result = box.exec([Path("/bin/echo"), b"b\xff", "ä", Path("/x/y"), "\udc80"])
        assert result.stdout == b"b\xff \xc3\xa4 /x/y \x80\n"
        assert result.args == ("/bin/echo", "b\udcff", "ä", "/x/y", "\udc80")

    def test_a_tuple_and_other_sequences(self, box: Container) -> None:
        assert box.exec(("echo", "tuple")).stdout == b"tuple\n"

    def test_exactly_as_given(self, box: Container) -> None:
        given = ["", " ", "a b", "*", "$HOME", "'", '"', "\\", "new\nline", "-n", "", "tab\t", ";", "\x01"]
        code = "import sys; sys.stdout.write('\\0'.join(sys.argv[1:]))"
        assert said(box, [*python(code), *given]).split("\0") == given

    def test_no_shell(self, box: Container) -> None:
        assert box.exec(["echo", "$(id)", "`id`", "|", "cat"]).stdout == b"$(id) `id` | cat\n"

    def test_a_hundred_thousand(self, box: Container) -> None:
        code = "import sys; print(len(sys.argv), sys.argv[1], sys.argv[-1])"
        given = [str(number) for number in range(100_000)]
        assert said(box, [*python(code), *given]) == "100001 0 99999\n"

    def test_one_of_a_hundred_kilobytes(self, box: Container) -> None:
        assert len(box.exec(["echo", "x" * 100_000]).stdout) == 100_001

    @pytest.mark.parametrize("args", [["true", "x" * 200_000], ["true", *["x" * 100_000] * 200]])
    def test_more_than_the_kernel_takes(self, box: Container, args: list[str]) -> None:
        with pytest.raises(ExecError) as caught:
            box.exec(args)
        assert caught.value.errno == errno.E2BIG and caught.value.hint
        assert len(str(caught.value)) < 1000
        assert box.exec(["true"]).ok

    def test_more_than_we_take(self, box: Container) -> None:
        with pytest.raises(ExecError) as caught:
            box.exec(["true", *["x" * 1_000_000] * 70])
        assert caught.value.errno == errno.E2BIG
        assert box.exec(["true"]).ok


class TestPrograms:
    def test_searched_in_the_path(self, box: Container) -> None:
        assert box.exec(["sh", "-c", "exit 0"]).ok
        assert box.exec(["/bin/sh", "-c", "exit 0"]).ok
        sh(box, "mkdir -p /tmp/bin; cd /tmp/bin; printf '#!/bin/sh\\necho mine $0\\n' > mine; chmod 755 mine")
        assert said(box, ["mine"], env={"PATH": "/nosuch:/tmp/bin"}) == "mine /tmp/bin/mine\n"
        assert said(box, ["./mine"], workdir="/tmp/bin") == "mine ./mine\n"
        with pytest.raises(ExecError):
            box.exec(["mine"])

    def test_an_unreadable_one_does_not_hide_the_next(self, box: Container) -> None:
        sh(
            box,
            "cd /tmp; mkdir -p p1/tool p2; printf '#!/bin/sh\\necho second\\n' > p2/tool; chmod 755 p2/tool",
        )
        assert said(box, ["tool"], env={"PATH": "/tmp/p1:/tmp/p2"}) == "second\n"

    @pytest.mark.parametrize(
        ("program", "number"),
        [
            ("nosuch", errno.ENOENT),
            ("/no/such/path", errno.ENOENT),
            ("./nosuch", errno.ENOENT),
            ("/etc/passwd", errno.EACCES),
            ("/etc", errno.EACCES),
            ("/etc/passwd/x", errno.ENOTDIR),
            ("/tmp/empty", errno.ENOEXEC),
            ("/tmp/text", errno.ENOEXEC),
            ("/tmp/interpreter", errno.ENOENT),
            ("/tmp/loop", errno.ELOOP),
            ("x" * 5000, errno.ENOENT),
            ("/" + "x" * 300, errno.ENAMETOOLONG),
        ],
    )
    def test_that_cannot_run(self, box: Container, program: str, number: int) -> None:
        sh(
            box,
            "cd /tmp; : > empty; echo not a program > text; printf '#!/no/such/sh\\n' > interpreter;"
            "chmod 755 empty text interpreter; ln -sf loop loop",
        )
        for start in (box.exec, box.popen):
            with pytest.raises(ExecError) as caught:
                start([program])
            assert caught.value.errno == number
            assert program[:150] in str(caught.value)
            assert os.strerror(number) in str(caught.value)
            if number in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
                assert caught.value.hint

    def test_still_open_for_writing(self, box: Container) -> None:
        with box.popen(["sh", "-c", "cp /bin/true /tmp/busy; exec 9>>/tmp/busy; echo; sleep 60"]) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"\n"
            with pytest.raises(ExecError) as caught:
                box.exec(["/tmp/busy"])
            assert caught.value.errno == errno.ETXTBSY
            writer.kill()

    def test_a_setuid_program_gains_nothing(self, box: Container) -> None:
        assert said(box, ["sh", "-c", "grep NoNewPrivs /proc/self/status"]).split() == ["NoNewPrivs:", "1"]


class TestSurroundings:
    def test_nothing_of_the_caller_s_environment(
        self, box: Container, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ISOBOX_SECRET", "secret")
        with Container() as container:
            assert "secret" not in sh(container, "env; cat /proc/[0-9]*/environ 2>/dev/null || true")
            assert box.exec(["env"]).stdout == b"PATH=%s\nHOME=/root\nLANG=C.UTF-8\n" % (
                b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            )

    def test_environment_in_layers(self) -> None:
        with Container(env={"A": "container", "B": "container", "HOME": "/home"}) as container:
            script = 'echo "$A $B $C $HOME"'
            assert sh(container, script) == "container container  /home\n"
            assert sh(container, script, env={"B": "exec", "C": "exec"}) == "container exec exec /home\n"
            assert sh(container, script) == "container container  /home\n"

    def test_odd_values(self, box: Container) -> None:
        env = {"EMPTY": "", "LINES": "a\nb", "EQUALS": "a=b", "ä": "ö", "RAW": "\udcff", "with space": "x"}
        out = box.exec(["env", "-0"], env=env).stdout.split(b"\0")
        for name, value in env.items():
            assert os.fsencode(f"{name}={value}") in out

    def test_a_large_environment(self, box: Container) -> None:
        env = {f"NAME_{number}": "x" * 1000 for number in range(1000)}
        assert len(box.exec(["env"], env=env).stdout) > 1_000_000

    def test_directory(self, box: Container) -> None:
        assert sh(box, "pwd") == "/\n"
        assert sh(box, "pwd", workdir="/usr/bin") == "/usr/bin\n"
        assert sh(box, "pwd", workdir=Path("/tmp")) == "/tmp\n"
        with Container(workdir="/etc") as container:
            assert sh(container, "pwd") == "/etc\n"
            assert sh(container, "pwd", workdir="/") == "/\n"

    @pytest.mark.parametrize(("path", "number"), [("/no/such", errno.ENOENT), ("/etc/passwd", errno.ENOTDIR)])
    def test_a_directory_that_is_not_there(self, box: Container, path: str, number: int) -> None:
        with pytest.raises(ExecError, match=f"workdir {path}") as caught:
            box.exec(["true"], workdir=path)
        assert caught.value.errno == number and caught.value.hint

    def test_a_directory_removed_meanwhile(self, box: Container) -> None:
        sh(box, "mkdir /tmp/gone")
        assert sh(box, "pwd", workdir="/tmp/gone") == "/tmp/gone\n"
        sh(box, "rmdir /tmp/gone")
        with pytest.raises(ExecError):
            box.exec(["true"], workdir="/tmp/gone")

    def test_signals_are_at_their_defaults(self, box: Container) -> None:
        # Python ignores SIGPIPE, and this thread blocks a signal: the program inherits neither.
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        try:
            status = sh(box, "grep -E '^Sig(Blk|Ign)' /proc/self/status")
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        assert set(status.split()[1::2]) == {"0" * 16}
        assert box.exec(["sh", "-c", "yes | head -1"]).stdout == b"y\n"

    def test_umask_session_and_priority(self, box: Container) -> None:
        code = "import os; print(oct(os.umask(0)), os.getsid(0) == os.getpid() == os.getpgid(0), os.nice(0))"
        before = os.umask(0o077)
        try:
            with Container() as container:
                assert said(container, python(code)) == f"0o22 True {os.nice(0)}\n"
        finally:
            os.umask(before)

    def test_only_three_descriptors(self, box: Container) -> None:
        code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        assert said(box, python(code)) == "['0', '1', '2', '3']\n"  # 3 is the listing

    def test_inheritable_descriptors_of_ours_do_not_leak(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("secret")
        fds = [os.open(secret, os.O_RDWR) for _ in range(20)]
        try:
            for fd in fds:
                os.set_inheritable(fd, True)
            with Container() as container, container.popen(["sleep", "60"]) as program:
                assert (
                    said(container, python("import os; print(os.listdir('/proc/self/fd'))")).count(",") == 3
                )
                for pid in (container.pid, program.pid):
                    targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
                    assert targets and not [target for target in targets if "secret" in target]
                program.kill()
        finally:
            for fd in fds:
                os.close(fd)

    @pytest.mark.requires("cgroups")
    def test_programs_see_each_other(self, box: Container) -> None:
        with box.popen(["sleep", "61"]) as other:
            assert "sleep\x0061" in sh(box, "cat /proc/[0-9]*/cmdline")
            sh(box, "for d in /proc/[0-9]*; do grep -qx sleep $d/comm && kill -TERM ${d#/proc/}; done; true")
            assert other.wait(10) == -signal.SIGTERM

    def test_pids_are_those_of_proc(self, box: Container) -> None:
        code = "import os; print(os.readlink('/proc/self'), os.getpid())"
        there, own = said(box, python(code)).split()
        assert there == own


class TestTerminal:
    def test_is_one(self, box: Container) -> None:
        result = box.exec(
            ["sh", "-c", "tty; test -t 0 && test -t 1 && test -t 2 && echo yes; echo $TERM"], tty=True
        )
        lines = result.stdout.split()
        assert lines[0].startswith(b"/dev/pts/")
        assert lines[1:] == [b"yes", b"xterm"]
        assert result.stderr == b""

    def test_controls_the_program(self, box: Container) -> None:
        code = "import os; print(os.tcgetpgrp(0) == os.getpgrp(), open('/dev/tty').isatty())"
        assert box.exec(python(code), tty=True, text=True).stdout == "True True\n"

    def test_input(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "read line; echo got $line"], tty=True, input=b"typed\n")
        assert result.stdout == b"typed\r\ngot typed\r\n"
        # Ctrl-D ends the input
        assert box.exec(["cat"], tty=True, input=b"a\n\x04").stdout == b"a\r\na\r\n"

    @pytest.mark.requires("id_ranges")
    def test_belongs_to_the_user(self, box: Container) -> None:
        result = box.exec(
            ["sh", "-c", "echo x > $(tty) && stat -c %u $(tty)"], tty=True, user="12", text=True
        )
        assert result.stdout == "x\n12\n"

    def test_large_output(self, box: Container) -> None:
        result = box.exec(["sh", "-c", "yes | head -c 300000"], tty=True)
        assert result.stdout.replace(b"\r", b"") == b"y\n" * 150_000


class TestAtOnce:
    def test_twenty_threads_in_one_container(self, box: Container) -> None:
        wrong: list[object] = []

        def work(number: int) -> None:
            try:
                for turn in range(5):
                    text = f"{number}.{turn}"
                    result = box.exec(
                        ["sh", "-c", "cat; exit $0", str(number)], input=text.encode(), timeout=60
                    )
                    if (result.stdout, result.returncode) != (text.encode(), number):
                        wrong.append(result)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []

    def test_they_run_at_the_same_time(self, box: Container) -> None:
        # Each waits for all the others to be there.
        count = 12
        script = (
            f"mkdir /tmp/here-$0; while [ $(ls -d /tmp/here-* | wc -l) -lt {count} ]; do sleep 0.05; done"
        )
        results: list[isobox.Result[Any]] = []

        def work(number: int) -> None:
            results.append(box.exec(["sh", "-c", script, str(number)], timeout=30))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        sh(box, "rmdir /tmp/here-*")
        assert [result.reason for result in results] == ["exited"] * count

    def test_a_long_one_holds_up_no_other(self, box: Container) -> None:
        with box.popen(["sleep", "60"]) as process:
            began = time.monotonic()
            assert box.exec(["true"]).ok
            assert time.monotonic() - began < patient(5)
            process.kill()

    def test_two_hundred_running(self, box: Container, many_descriptors: None) -> None:
        processes = [box.popen(["cat"], stdin=PIPE, measure=False) for _ in range(200)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"x")
        assert [process.communicate()[0] for process in processes] == [b"x"] * 200
        assert [process.returncode for process in processes] == [0] * 200


def test_run() -> None:
    result = isobox.run(["sh", "-c", "echo $A; pwd; id -u"], env={"A": "b"}, workdir="/tmp", text=True)
    assert (result.stdout, result.reason) == ("b\n/tmp\n0\n", "exited")
    assert isobox.run(["cat"], input=b"in").stdout == b"in"
    assert isobox.run(["sleep", "60"], timeout=0.1).reason == "timeout"
    with pytest.raises(NonZeroExit):
        isobox.run(["false"], check=True)


def test_the_interpreter_and_its_packages_are_there(box: Container) -> None:
    paths = "sys.executable, sys.prefix, attrs.__file__, isobox.__file__"
    code = f"import sys, attrs, isobox; print({paths}, sep='\\n')"
    import attrs

    there = said(box, [sys.executable, "-c", code]).splitlines()
    assert there == [sys.executable, sys.prefix, attrs.__file__, isobox.__file__]
