"""Containers of `isobox run` in one process, looked at and committed by commands in others."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import isobox
from isobox import Container, Image, StateError
from isobox.cli import main, protocol
from isobox.cli.attended import FOLDER
from isobox.cli.running import get
from leftovers import wait_until
from made import archive, base
from patience import patient
from programs import ROOT, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

ISOBOX = [sys.executable, "-m", "isobox.cli"]
CHANGES = "echo x > /etc/new; busybox rm /etc/gone; echo y >> /data/old; echo ready; read line; exit 7"
FOUND = ["C /data/old", "D /etc/gone", "A /etc/new"]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No other containers; and a place that root's containers can reach."""
    with tempfile.TemporaryDirectory(prefix="isobox-test-") as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("ISOBOX_STATE_DIR", f"{folder}/state")
        yield Path(folder, "state")


@pytest.fixture
def image(tmp_path: Path, state: Path) -> Image:
    run = {"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"]}
    return Image.load(archive(tmp_path / "base.tar", base(), tags=("base:1",), run=run))


class Commands:
    """`isobox` in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *args: str, status: int = 0) -> tuple[list[str], str]:
        """The lines that a command prints, and what it says to standard error."""
        found = main(args)
        out, err = self._capture.readouterr()
        assert found == status, (out, err)
        return out.splitlines(), err


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


@contextmanager
def running(*args: str, script: str = CHANGES) -> Iterator[subprocess.Popen[str]]:
    """`isobox run` of a script that has said "ready"; ended with a line to its standard input."""
    pipe = subprocess.PIPE
    command = [*ISOBOX, "run", "-i", *args, "sh", "-c", script]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
            if process.poll() is None:  # one that is killed leaves cgroups, and nobody finds its state later
                end(process)
        finally:
            process.kill()


def end(process: subprocess.Popen[str]) -> tuple[str, int]:
    """What else it says, and its status."""
    out, _ = process.communicate("\n", timeout=patient(60))
    return out, process.returncode


def sockets(state: Path) -> list[Path]:
    return list(state.glob(f"owners/*/{FOLDER}/*"))


@pytest.mark.parametrize("userns", ["auto", pytest.param("host", marks=pytest.mark.requires("root"))])
def test_diff_and_commit(asked: Commands, userns: str, image: Image, state: Path) -> None:
    with running("--name", "web", "--userns", userns, "base:1") as process:
        assert asked("diff", "web") == (FOUND, "")
        options = ["-a", "me", "-m", "why", "-c", "ENV B=2", "-c", 'CMD ["ls", "/etc/new"]']
        (id_,), told = asked("commit", *options, "web", "new:1")
        assert told == ""
        assert asked("diff", "web")[0] == FOUND
        assert end(process) == ("", 7)
    assert sockets(state) == []
    made = Image.get("new:1")
    assert (made.id, made.layers[:-1]) == (id_, image.layers)
    assert (made.config.author, made.config.history[-1].comment) == ("me", "why")
    assert made.config.config.env == ("PATH=/bin", "A=1", "B=2")
    assert asked("diff", "base:1", "new:1")[0] == asked("diff", "new:1")[0] == FOUND
    assert isobox.run(image="new:1").stdout == b"/etc/new\n"
    with Container("new:1") as box:
        assert sh(box, "cat /data/old") == "xy\n"


def test_the_same_as_the_library_makes(
    asked: Commands, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the time that the command is given, not the one that the container was."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    with running("base:1"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        (only,) = sockets(Path(os.environ["ISOBOX_STATE_DIR"]))
        asked("commit", only.name[:4], "new:1")
        with Container("base:1") as box:
            sh(box, CHANGES.partition("echo ready")[0])
            assert box.commit("new:2").digest == Image.get("new:1").digest


def test_an_image_that_is_called_like_a_container(asked: Commands, image: Image, state: Path) -> None:
    """Its name goes before an image, the beginning of its id doesn't."""
    with running("--name", "base", "base:1"):
        (only,) = sockets(state)
        image.tag("base").tag(only.name[:3])
        assert asked("diff", "base")[0] == asked("diff", only.name[:4])[0] == FOUND
        assert (
            f"may be the container {only.name[:12]} (base) or an image"
            in asked("diff", only.name[:3], status=125)[1]
        )
        assert asked("diff", f"{only.name[:3]}:latest") == asked("diff", "base:1")


def test_the_host_image(asked: Commands, state: Path) -> None:
    with running("--name", "box", "host", script="echo x > /tmp/file; echo ready; read line") as process:
        assert asked("diff", "box")[0] == ["A /tmp/file"]
        assert "start the container from an image" in asked("commit", "box", "new:1", status=125)[1]
        assert end(process) == ("", 0)


def test_another_store(
    asked: Commands, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    """The image goes where the container's own is, and that is said."""
    with running("--name", "web", "base:1"):
        monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "other"))
        assert asked("commit", "web", "new:1")[1] == f"isobox: the image is in the store {data}/images\n"
    assert not (tmp_path / "other").exists()


def test_errors_of_the_container_s_process(asked: Commands, image: Image) -> None:
    with running("--name", "web", "base:1") as process:
        assert "No Name" in asked("commit", "web", "No Name", status=125)[1]
        assert "RUN x" in asked("commit", "-c", "RUN x", "web", "new:1", status=125)[1]
        assert (
            "--workdir 'srv': expected" in asked("commit", "-c", "WORKDIR srv", "web", "new:1", status=125)[1]
        )
        told = asked("commit", "db", "new:1", status=125)[1]
        assert told.startswith("isobox: no container 'db' runs") and told.endswith(" (web)\n")
        assert end(process) == ("", 7)
    assert "no container 'web' runs" in asked("commit", "web", "new:1", status=125)[1]
    assert [found.references for found in Image.all()] == [("base:1",)]


def stopped(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    status = Path(f"/proc/{process.pid}/status")
    assert wait_until(lambda: "State:\tT" in status.read_text())


def asking(*args: str) -> subprocess.Popen[str]:
    """A command whose request waits for a process that was stopped."""
    pipe = subprocess.PIPE
    command = subprocess.Popen([*ISOBOX, *args], stdout=pipe, stderr=pipe, text=True)
    assert wait_until(lambda: waits(command.pid), 30)
    return command


def waits(pid: int) -> bool:
    """Whether it sleeps with a socket open."""
    try:
        files = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        return "socket:" in str(files) and "State:\tS" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_killed_while_it_is_asked(asked: Commands, image: Image, state: Path) -> None:
    with running("--name", "web", "base:1") as process:
        stopped(process)
        found = get("web")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(found.ask, {"ask": "diff"})
            process.kill()
            with pytest.raises(StateError, match=r"\(web\): its isobox run ended before it had answered"):
                answer.result(patient(60))
    assert len(sockets(state)) == 1
    assert "No container of yours" in asked("diff", "web", status=125)[1]
    subprocess.run([*ISOBOX, "doctor", "--clean"], stdout=subprocess.DEVNULL, timeout=patient(60))
    assert sockets(state) == []
    assert [found.references for found in Image.all()] == [("base:1",)]
    with running("--name", "web", "base:1"):
        assert asked("diff", "web")[0] == FOUND


def test_ctrl_c_while_it_asks(asked: Commands, image: Image) -> None:
    with running("--name", "web", "base:1") as process:
        stopped(process)
        command = asking("diff", "web")
        command.send_signal(signal.SIGINT)
        assert command.communicate(timeout=patient(60)) == ("", "\n") and command.returncode == 130
        os.kill(process.pid, signal.SIGCONT)
        assert asked("diff", "web")[0] == FOUND
        assert end(process) == ("", 7)


def test_commit_while_the_program_ends(asked: Commands, image: Image) -> None:
    """All of it, or an error."""
    script = (
        "busybox head -c 10000000 /dev/urandom > /data/big; busybox sha256sum /data/big; echo ready; read x"
    )
    script = f"{{ {script.replace('; echo', ' >/data/sum; echo', 1)}; }} 2>&1"
    with running("--name", "web", "base:1", script=script) as process:
        pipe = subprocess.PIPE
        command = subprocess.Popen([*ISOBOX, "commit", "web", "new:1"], stdout=pipe, stderr=pipe, text=True)
        assert wait_until(lambda: command.poll() is not None or waits(command.pid), 30)
        assert end(process) == ("", 0)
        out, told = command.communicate(timeout=patient(60))
    if command.returncode == 0:
        assert Image.get("new:1").id == out.strip()
        with Container("new:1") as box:
            said(box, ["busybox", "sha256sum", "-c", "/data/sum"])
    else:
        assert command.returncode == 125 and ("ended" in told or "runs" in told)
        assert [found.references for found in Image.all()] == [("base:1",)]


def test_a_terminal_stays_the_program_s(asked: Commands, image: Image) -> None:
    master, slave = pty.openpty()
    command = [*ISOBOX, "run", "-it", "--name", "web", "base:1", "sh", "-c", CHANGES]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        try:
            seen = b""
            while b"ready" not in seen:
                seen += os.read(master, 100)
            assert asked("diff", "web")[0] == FOUND
            asked("commit", "web", "new:1")
            assert (
                "expected" in asked("commit", "-c", "USER \x1b", "-c", "WORKDIR x", "web", "n", status=125)[1]
            )
            os.write(master, b"\n")
            assert process.wait(patient(60)) == 7
            while not seen.endswith(b"ready\r\n\r\n"):
                seen += os.read(master, 100)
            assert seen == b"ready\r\n\r\n"
        finally:
            process.kill()
            os.close(master)


INSIDE = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    try:
        connection.sendall(bytes.fromhex(sys.argv[2]))
    except BrokenPipeError:
        pass
    print(connection.recv(1000))
"""


def test_no_container_asks(state: Path) -> None:
    """Not even one that is given the folder, and whose root is this very user."""
    request = protocol.encoded({"ask": "diff"}, 100).hex()
    with running("--name", "web", "host", script="echo ready; read line"):
        (path,) = sockets(state)
        outside = subprocess.run(python(INSIDE, str(path), request), capture_output=True, timeout=patient(60))
        assert b'{"answer": {"changes": []}}' in outside.stdout
        inside = python(INSIDE, f"/mnt/{path.name}", request)
        mounts = [f"{path.parent}:/mnt"]
        answer = isobox.run(inside, mounts=mounts, userns="host" if ROOT else "auto", text=True)
        assert "another PID namespace" in answer.stdout, answer.stderr
