"""Terminals: nothing inside types into that of the caller, or has text of its own shown there raw."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from isobox import Container, NonZeroExit
from patience import patient
from programs import python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

TYPE = """
import fcntl, os, termios
done = set()
names = [0, 1, 2]
for name in ("/dev/tty", "/dev/console", "/dev/pts/0", "/dev/pts/1", "/proc/self/fd/0"):
    try:
        names.append(os.open(name, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        pass
for fd in names:
    try:
        for byte in b"evil\\n":
            fcntl.ioctl(fd, termios.TIOCSTI, bytes([byte]))
        done.add("typed")
    except OSError:
        pass
"""


class Terminal:
    """A terminal as a user has one, and a program that it is the controlling terminal of."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        attributes = termios.tcgetattr(self.theirs)
        attributes[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(self.theirs, termios.TCSANOW, attributes)

    def run(self, args: list[str]) -> str:
        """Run a program on it; what it wrote."""
        take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        take += "os.execvp(sys.argv[1], sys.argv[1:])"
        process = subprocess.Popen(
            [sys.executable, "-c", take, *args],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
        )
        shown = b""
        while process.poll() is None or select.select([self.ours], [], [], 0)[0]:
            if select.select([self.ours], [], [], 0.05)[0]:
                shown += os.read(self.ours, 4096)
        assert process.wait(patient(60)) == 0, shown
        return shown.decode()

    def typed(self) -> bytes:
        """What waits to be read there, as if the user had typed it."""
        ready, _, _ = select.select([self.theirs], [], [], 0)
        return os.read(self.theirs, 100) if ready else b""

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_nothing_is_typed_into_the_caller_s_terminal(terminal: Terminal) -> None:
    """CVE-2016-2568 and its like (https://nvd.nist.gov/vuln/detail/CVE-2016-2568): TIOCSTI puts text into
    the terminal that a program was given, and the caller's shell runs it. On the host it works where the
    kernel still has it; inside, programs are in a session of their own, to which no terminal belongs.
    """
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if setting.exists() and setting.read_text().strip() == "0" and os.geteuid():
        pytest.skip("dev.tty.legacy_tiocsti is off: nobody but root does it")
    terminal.run(python(TYPE))
    assert b"evil" in terminal.typed()
    code = (
        f"import isobox; args = {python(TYPE)!r}\n"
        "for more in ({'stdin': None, 'stdout': None, 'stderr': None}, {'tty': True}):\n"
        "    isobox.run(args, check=True, **more)\n"
        "    isobox.run(args, check=True, cap_add=['SYS_ADMIN'], **more)\n"
    )
    terminal.run([sys.executable, "-c", code])
    assert terminal.typed() == b""
    command = [sys.executable, "-m", "isobox.cli", "run", "--rm", "-i", "-t", "host"]
    shown = terminal.run([*command, *python(TYPE)])
    assert terminal.typed() == b"", shown


def test_the_caller_s_terminal_is_not_there(box: Container, terminal: Terminal) -> None:
    """Neither by /dev/tty, nor by its name, nor, with tty=True, through the one that it has of its own."""
    name = os.ttyname(terminal.theirs)
    assert not box.exec(["sh", "-c", ": > /dev/tty"]).ok
    assert sh(box, "ls /dev/pts").split() == ["ptmx"]
    assert not box.exec(["sh", "-c", f"echo evil > {name}"]).ok
    result = box.exec(["sh", "-c", "tty; ls /dev/pts"], tty=True, text=True)
    assert "/dev/pts" not in result.stdout or name not in result.stdout.split()[1:]
    assert not select.select([terminal.ours], [], [], 0)[0]


EVIL = "\x1b]0;evil\x07\x1b[2J\r\x9b31m"


def harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_errors_show_nothing_raw(box: Container, tmp_path: Path) -> None:
    """What a program wrote, or named a file, is quoted in messages: a terminal would obey it."""
    write = python("import os; os.write(2, b'\\x1b]0;evil\\x07\\x1b[2J\\r'); raise SystemExit(3)")
    raw = subprocess.run(write, capture_output=True, text=True, check=False)
    assert not harmless(raw.stderr)
    with pytest.raises(NonZeroExit) as caught:
        box.exec(write, check=True)
    assert "evil" in str(caught.value) and harmless(str(caught.value))
    made = "import os, sys; os.makedirs(sys.argv[1]); os.mkfifo(sys.argv[1] + '/f')"
    said(box, python(made, f"/tmp/evil/{EVIL}"))
    (tmp_path / EVIL).write_text("a file where a directory comes")
    errors = []
    for attempt in (
        lambda: box.read_bytes(f"/tmp/evil/{EVIL}"),
        lambda: box.read_bytes(f"/tmp/evil/{EVIL}/f"),
        lambda: box.copy_out("/tmp/evil/.", tmp_path),
        lambda: box.exec([f"/tmp/evil/{EVIL}"]),
        lambda: box.exec(["true"], workdir=f"/tmp/evil/{EVIL}/f"),
    ):
        with pytest.raises(OSError, match="evil") as failed:
            attempt()
        errors.append(failed.value)
    assert [str(error) for error in errors if not harmless(str(error))] == []


def test_the_command_line_shows_nothing_raw() -> None:
    """Its own messages, that is; a program's output goes where it was sent."""
    command = [sys.executable, "-m", "isobox.cli", "run", "--rm", "host", f"/tmp/{EVIL}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
    assert shown.returncode == 127 and "evil" in shown.stderr
    assert harmless(shown.stderr)
