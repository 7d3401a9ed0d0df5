"""Attacks on isobox-init from inside: its program, its memory, its descriptors, its socket, its life."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isobox import Container, ExecError, StateError, _native
from isobox.shared import shared
from patience import patient
from programs import ROOT, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

TRACER: dict[str, Any] = {"cap_add": ["SYS_PTRACE"]} | ({"userns": "host"} if ROOT else {})
"""The wall in front of PID 1 taken down: root's containers need more for that than ordinary users'."""


@pytest.fixture(scope="module")
def tracer(everything_is_given_back: None) -> Iterator[Container]:
    with Container(**TRACER) as container:
        yield container


def apart(container: Container) -> bool:
    """Whether each program has a PID namespace of its own."""
    return len({sh(container, "echo $$") for _ in range(2)}) == 1  # the first beside its own PID 1, each time


# CVE-2019-5736: the runtime's own program, reached through /proc

OVERWRITE = """
import os, sys
def overwrite(path):
    try:
        held = os.open(path, os.O_RDONLY)
    except OSError as error:
        return "closed"
    try:
        os.fchmod(held, 0o700)
    except OSError:
        pass
    try:
        there = os.open(f"/proc/self/fd/{held}", os.O_WRONLY)
        os.write(there, b"#!/bin/evil")
    except OSError as error:
        return "held"
    return "overwritten"
"""


def program(fd: int) -> bytes:
    return hashlib.sha256(os.pread(fd, 1 << 24, 0)).digest()


def test_the_program_of_init_is_sealed() -> None:
    """CVE-2019-5736 (https://nvd.nist.gov/vuln/detail/CVE-2019-5736): a program inside gets hold of the
    runtime's own file by /proc/PID/exe and overwrites it. The attack on an ordinary file in memory works;
    isobox-init's can't be written, not even by the one who made it.
    """
    plain = os.memfd_create("plain")
    sealed = _native.init_memfd(0o700)
    try:
        os.write(plain, os.pread(sealed, 1 << 24, 0))
        assert program(plain) == program(sealed) == program(shared().init_fd)
        for fd, outcome in ((plain, "overwritten"), (sealed, "held"), (shared().init_fd, "held")):
            code = f"{OVERWRITE}\nprint(overwrite('/proc/self/fd/{fd}'))"
            done = subprocess.run(python(code), pass_fds=[fd], capture_output=True, text=True, check=True)
            assert done.stdout.strip() == outcome, fd
        assert program(plain) != program(sealed) == program(shared().init_fd)
        with pytest.raises(PermissionError):
            os.ftruncate(sealed, 0)
    finally:
        os.close(plain)
        os.close(sealed)
    with Container() as container:
        fd = os.open(f"/proc/{container.pid}/exe", os.O_RDONLY)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & 0xF == 0xF
        os.close(fd)


def test_the_program_of_init_is_out_of_reach(box: Container, tracer: Container) -> None:
    """The same from inside, by /proc/1/exe. Who may trace PID 1 reaches the file, and meets the seals."""
    code = python(f"{OVERWRITE}\nprint(overwrite('/proc/1/exe'))")
    assert said(tracer, code).strip() == "held"
    assert said(box, code).strip() == "closed"


def test_an_exec_of_proc_self_exe_gives_nothing_away(box: Container) -> None:
    """As it was published: what is exec'd is a link to /proc/self/exe, and another program waits for that."""
    hunt = f"""{OVERWRITE}
print("hunting", flush=True)
found = set()
while not os.path.exists("/tmp/over"):
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            link = os.readlink(f"/proc/{{name}}/exe")
        except OSError:
            continue
        if "isobox-init" in link:
            found.add(overwrite(f"/proc/{{name}}/exe"))
print(*found)
"""
    before = program(shared().init_fd)
    sh(box, "ln -s /proc/self/exe /tmp/entry")
    with box.popen(python(hunt), text=True) as hunter:
        assert hunter.stdout.readline() == "hunting\n"
        for _ in range(50):
            try:
                box.exec(["/tmp/entry"])
            except ExecError as error:
                assert error.errno == errno.EACCES  # root's is closed to everybody in a user namespace
        sh(box, "touch /tmp/over")
        assert "overwritten" not in hunter.communicate()[0]
    assert program(shared().init_fd) == before


# What PID 1 has: memory, descriptors, directories, its socket

LOOK = """
import os, sys
def look(what, how):
    try:
        found = how()
    except OSError:
        return
    if found:
        print(what)
for what in ("fd", "map_files"):
    look(what, lambda: [os.readlink(f"/proc/1/{what}/{name}") for name in os.listdir(f"/proc/1/{what}")])
for what in ("cwd", "root"):
    look(what, lambda: os.listdir(f"/proc/1/{what}/"))
for what in ("maps", "environ", "auxv"):
    look(what, lambda: open(f"/proc/1/{what}", "rb").read() or what == "environ")
for what in ("mnt", "pid", "user"):
    look(what, lambda: os.readlink(f"/proc/1/ns/{what}"))
look("mem", lambda: os.open("/proc/1/mem", os.O_RDWR))
"""


def test_what_init_has_is_not_seen(box: Container, tracer: Container) -> None:
    """CVE-2016-9962 (https://nvd.nist.gov/vuln/detail/CVE-2016-9962): what the runtime has open is reached
    through /proc/1/fd. isobox-init is not dumpable: only one who may trace sees that.
    """
    everything = set("fd cwd root maps environ auxv mnt pid user mem".split())
    if apart(tracer):
        everything.discard("fd")  # PID 1 is then a process that has none open
    assert set(said(tracer, python(LOOK)).split()) >= everything
    for user in (None, "1") if ROOT else (None,):
        assert said(box, python(LOOK), user=user) == ""


TRACE = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(number, *map(ctypes.c_long, args))
    return result if result >= 0 else -ctypes.get_errno()
machine = os.uname().machine
PTRACE, READV, WRITEV = (101, 310, 311) if machine == "x86_64" else (117, 270, 271)
PIDFD_OPEN, PIDFD_GETFD = 434, 438
SEIZE, INTERRUPT = 0x4206, 0x4207
"""

# The descriptor 3 of isobox.h: there its owner asks, and reads what it takes for init's answers.
TAKE_THE_SOCKET = f"""{TRACE}
import socket
pidfd = call(PIDFD_OPEN, 1, 0)
fd = call(PIDFD_GETFD, pidfd, 3, 0)
if fd < 0:
    print("refused")
else:
    taken = socket.socket(fileno=fd)
    print("taken", taken.family.name, taken.type.name)
"""

SEIZE = f"""{TRACE}
failed = call(PTRACE, SEIZE, 1, 0, 0)
print("traced" if failed == 0 else "refused")
"""

READ_MEMORY = f"""{TRACE}
text = ctypes.create_string_buffer(16)
class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
here = Span(ctypes.addressof(text), 16)
try:
    start = int(open("/proc/1/maps").read().split("-")[0], 16)
except OSError:
    start = 0x400000
there = Span(start, 16)
done = call(READV, 1, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)
print("read" if done == 16 else "refused")
"""


@pytest.mark.parametrize(
    ("attack", "works"),
    [(TAKE_THE_SOCKET, "taken AF_UNIX SOCK_SEQPACKET"), (SEIZE, "traced"), (READ_MEMORY, "read")],
    ids=["socket", "ptrace", "memory"],
)
def test_init_is_not_traced(box: Container, tracer: Container, attack: str, works: str) -> None:
    """Who traces PID 1 speaks for it: answers its owner on the control socket, and sees what is asked.

    Where there are no cgroups each program has PIDs of its own, and no number at all for isobox-init.
    """
    if attack is TAKE_THE_SOCKET and apart(tracer):
        works = "refused"
    assert said(tracer, python(attack)).strip() == works
    assert said(box, python(attack)).strip() == "refused"
    assert sh(box, "echo still here") == "still here\n"


def test_the_control_socket_has_no_name(box: Container) -> None:
    """Both ends are made as a pair, before there is a container: no name, no path, nothing to connect to.

    There is no wall to take down here; the nearest is that a socket with a name is found.
    """
    named = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0isobox-hostile')"
    listing = "print(''.join(line.split(maxsplit=7)[7] for line in open('/proc/net/unix') if '@' in line))"
    assert said(box, python(f"{named}; {listing}")).strip() == "@isobox-hostile"
    assert said(box, python(listing)).strip() == ""


# Descriptors and working directories

ESCAPE = """
import os, sys
found = set()
names = ["."] + [f"/proc/self/fd/{number}" for number in range(64)]
begin = os.open(".", os.O_PATH)
for name in names:
    try:
        os.fchdir(begin)
        os.chdir(name)
    except OSError:
        continue
    for depth in range(12):
        try:
            with open("../" * depth + sys.argv[1].lstrip("/")) as file:
                found.add(file.read())
        except OSError:
            pass
print(*found)
"""

OPEN = """
import os
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")))
"""


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("of the host")
    return path


def test_no_descriptor_comes_along(box: Container, secret: Path) -> None:
    """CVE-2016-9962, CVE-2024-21626 (https://nvd.nist.gov/vuln/detail/CVE-2024-21626): a descriptor of a
    directory of the host is a way out. Given as stdin on purpose it is one; those that the caller has open,
    close-on-exec or not, are not there.
    """
    fd = os.open(secret.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(fd, True)
    try:
        twin: dict[str, Any] = {"userns": "host"} if ROOT else {}
        with Container(**twin) as container:
            keep = ["sh", "-c", 'exec 3<&0 </dev/null; exec "$@"', "sh"]
            assert said(container, keep + python(ESCAPE, str(secret)), stdin=fd).strip() == "of the host"
            assert said(container, python(ESCAPE, str(secret))).strip() == ""
        leaked = subprocess.run(python(OPEN), close_fds=False, capture_output=True, text=True, check=True)
        assert str(fd) in leaked.stdout
        for options in ({}, {"measure": False}, {"stdin": None}):
            assert said(box, python(OPEN), **options) == "[0, 1, 2]\n"
            assert said(box, python(ESCAPE, str(secret)), **options).strip() == ""
        assert box.exec(python(OPEN), tty=True).stdout.strip() == b"[0, 1, 2]"
    finally:
        os.close(fd)


@pytest.mark.parametrize("place", ["/proc/self/fd", "/proc/thread-self/fd", "/proc/1/fd", "/tmp/link"])
def test_a_working_directory_leads_nowhere_else(box: Container, secret: Path, place: str) -> None:
    """CVE-2024-21626: the working directory is a link to a descriptor that the runtime has open while it
    starts a program; one of the host's is among them here. What such a directory gives is in the test above.
    isobox follows no such link, even where a program made it under an innocent name.
    """
    fd = os.open(secret.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(48):
            workdir = f"{place}/{number}"
            if place == "/tmp/link":
                workdir = place
                sh(box, f"ln -sfn /proc/self/fd/{number} {place}")
            with pytest.raises(ExecError) as caught:
                box.exec(["cat", "secret"], workdir=workdir, stdin=fd)
            assert caught.value.errno in (errno.ELOOP, errno.ENOENT, errno.EACCES, errno.ENOTDIR)
    finally:
        os.close(fd)
    assert sh(box, "pwd", workdir="/tmp") == "/tmp\n"


def test_a_program_s_name_leads_nowhere_else(box: Container) -> None:
    """The same with the file of the program: nothing is open there any more when its name is looked up.

    A directory would say "permission denied", as one that was given as stdin does.
    """
    for number in range(3, 48):
        with pytest.raises(ExecError) as caught:
            box.exec([f"/proc/self/fd/{number}"])
        assert caught.value.errno == errno.ENOENT, number
        with pytest.raises(ExecError) as caught:
            box.exec([f"/proc/1/fd/{number}"])
        assert caught.value.errno in (errno.ENOENT, errno.EACCES)
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(ExecError) as caught:
            box.exec(["/proc/self/fd/0"], stdin=fd)
        assert caught.value.errno == errno.EACCES
    finally:
        os.close(fd)


# Its life, and that of others

KILL = """
import os, sys
def kill(target):
    outcomes = set()
    for number in range(1, 65):
        if number in (32, 33):  # the C library's own
            continue
        try:
            os.kill(target, number)
            outcomes.add("sent")
        except PermissionError:
            outcomes.add("refused")
        except ProcessLookupError:
            outcomes.add("nobody")
    return " ".join(sorted(outcomes))
"""

CHILD = """
import time
child = os.fork()
if not child:
    time.sleep(60)
"""


def test_init_is_not_killed(box: Container) -> None:
    """Every signal there is to PID 1: the kernel hands it none. A program beside it dies of the same."""
    code = f"{KILL}{CHILD}print(kill(child), os.WIFSIGNALED(os.waitpid(child, 0)[1]))"
    assert said(box, python(code)).strip() == "sent True"
    assert said(box, python(f"{KILL}print(kill(1))")).strip() == "sent"
    assert sh(box, "echo still here") == "still here\n"
    assert box.state == "running"


LIMIT = """
import resource, sys
limit = int(sys.argv[1])
resource.prlimit(1, resource.RLIMIT_NOFILE, (limit, limit))
"""


def test_init_without_descriptors_ends() -> None:
    """Root inside may lower what PID 1 may open. It can't watch its owner then, whom it must not outlive."""
    with Container() as container:
        if apart(container):
            return  # PID 1 is another one there, which watches nothing
        container.exec(python(LIMIT, "0"))
        assert container.wait(patient(10))
        with pytest.raises(StateError):
            container.exec(["true"])


@pytest.mark.parametrize("limit", range(4, 13))
def test_init_with_few_descriptors(limit: int) -> None:
    """What can't be done is said, of that very program or file; later ones are told of nothing else."""
    with Container() as container:
        container.write_text("/tmp/first", "first")
        container.write_text("/tmp/second", "second")
        container.exec(python(LIMIT, str(limit)))
        for _ in range(2):
            for name in ("first", "second"):
                with contextlib.suppress(StateError):
                    try:
                        result = container.exec(["echo", name], text=True)
                        assert result.reason == "killed" or result.stdout == f"{name}\n"
                    except ExecError as error:
                        assert error.errno == errno.EMFILE and "ulimit" in error.hint
                    try:
                        assert container.read_text(f"/tmp/{name}") == name
                    except OSError as error:
                        assert error.errno == errno.EMFILE


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host with the same user as this one."""
    with subprocess.Popen(["sleep", "120"], start_new_session=True) as process:
        yield process
        process.kill()


def test_no_signal_leaves(box: Container, victim: subprocess.Popen[bytes]) -> None:
    """By a number of the host's, and to all at once. Outside of a container the same code kills it."""
    attack = python(f"{KILL}print(kill({victim.pid}))")
    with Container() as container:
        assert said(container, attack).strip() == "nobody"
        code = f"{KILL}{CHILD}os.kill(-1, 9); print(os.WTERMSIG(os.waitpid(child, 0)[1]))"
        assert said(container, python(code)).strip() == "9"
        assert sh(container, "echo still here") == "still here\n"
    time.sleep(0.05)
    assert victim.poll() is None
    done = subprocess.run(attack, capture_output=True, text=True, check=True)
    assert "sent" in done.stdout and victim.wait(10) < 0
