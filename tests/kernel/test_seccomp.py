"""Calls that the default profile refuses, really made: refused by it, and answered by the kernel without it.

Every call has arguments with which the kernel changes nothing whoever asks, so its own answer is another one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest
from attrs import frozen

from isobox import Container
from programs import python, said, sh

pytestmark = pytest.mark.requires("seccomp")

EPERM, ENOSYS = errno.EPERM, errno.ENOSYS
BAD = 2**64 - 1  # no descriptor, no address, and flags that no call has
NEWUSER, NEWNS, THREAD = 0x10000000, 0x20000, 0x10000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C

MAKE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
number, *arguments = (ctypes.c_ulong(int(word)) for word in sys.argv[1:])
print(ctypes.get_errno() if libc.syscall(number, *arguments) == -1 else 0)
"""


@frozen
class Call:
    name: str
    arguments: tuple[int, ...]
    refusal: int = EPERM
    opens: str = ""
    """The capability with which the default profile lets it through."""
    init: bool = False
    """The kernel gives its own EPERM but to root outside of every user namespace."""

    def __str__(self) -> str:
        return "-".join([self.name, *(hex(argument) for argument in self.arguments if argument != BAD)])


CALLS = [
    Call("io_uring_setup", (0, 0), ENOSYS),
    Call("io_uring_enter", (BAD, 0, 0, 0, 0, 0), ENOSYS),
    Call("io_uring_register", (BAD, BAD, 0, 0), ENOSYS),
    Call("userfaultfd", (BAD,)),
    Call("bpf", (BAD, BAD, 8), opens="BPF", init=True),
    Call("perf_event_open", (BAD, 0, 0, BAD, BAD), opens="PERFMON"),
    Call("keyctl", (BAD, 0, 0, 0, 0)),
    Call("add_key", (BAD, BAD, 0, 0, 0)),
    Call("request_key", (BAD, BAD, 0, 0)),
    Call("clone", (NEWUSER | THREAD, 0, 0, 0, 0), opens="SYS_ADMIN"),
    Call("clone", (NEWNS | THREAD, 0, 0, 0, 0), opens="SYS_ADMIN"),
    Call("clone3", (BAD, 0), ENOSYS, opens="SYS_ADMIN"),
    Call("unshare", (BAD,), opens="SYS_ADMIN"),
    Call("setns", (BAD, 0), opens="SYS_ADMIN"),
    Call("mount", (BAD, BAD, BAD, 0, 0), opens="SYS_ADMIN"),
    Call("umount2", (BAD, BAD), opens="SYS_ADMIN"),
    Call("pivot_root", (BAD, BAD)),
    Call("fsopen", (BAD, BAD), opens="SYS_ADMIN"),
    Call("fsmount", (BAD, BAD, 0), opens="SYS_ADMIN"),
    Call("move_mount", (BAD, BAD, BAD, BAD, BAD), opens="SYS_ADMIN"),
    Call("open_tree", (BAD, BAD, BAD), opens="SYS_ADMIN"),
    Call("mount_setattr", (BAD, BAD, BAD, 0, 0), opens="SYS_ADMIN"),
    Call("sethostname", (BAD, BAD), opens="SYS_ADMIN"),
    Call("setdomainname", (BAD, BAD), opens="SYS_ADMIN"),
    Call("quotactl", (BAD, BAD, 0, 0), opens="SYS_ADMIN"),
    Call("fanotify_init", (BAD, 0), opens="SYS_ADMIN", init=True),
    Call("personality", (0x40000,)),
    Call("socket", (38, 999, 0), errno.EAFNOSUPPORT),
    Call("socket", (40, 999, 0), errno.EAFNOSUPPORT),
    Call("socketpair", (38, 999, 0, 0), errno.EAFNOSUPPORT),
    Call("socket", (2**32 + 38, 999, 0), errno.EAFNOSUPPORT),
    Call("socket", (29, 999, 0), errno.EAFNOSUPPORT, opens="NET_ADMIN"),
    Call("ioctl", (BAD, TIOCSTI, 0)),
    Call("ioctl", (BAD, TIOCSTI + 2**32, 0)),
    Call("ioctl", (BAD, TIOCLINUX, 0)),
    Call("kcmp", (BAD, BAD, BAD, 0, 0), opens="SYS_PTRACE"),
    Call("pidfd_getfd", (BAD, BAD, BAD), opens="SYS_PTRACE"),
    Call("process_madvise", (BAD, BAD, BAD, BAD, BAD), ENOSYS, opens="SYS_PTRACE"),
    Call("get_mempolicy", (0, 0, 0, 0, BAD), ENOSYS, opens="SYS_NICE"),
    Call("mbind", (BAD, 0, BAD, 0, 0, BAD), ENOSYS, opens="SYS_NICE"),
    Call("move_pages", (BAD, 0, 0, 0, 0, BAD), ENOSYS),
    Call("syslog", (99, 0, 0), opens="SYSLOG", init=True),
    Call("open_by_handle_at", (BAD, BAD, 0), opens="DAC_READ_SEARCH", init=True),
    Call("reboot", (0, 0, 0, 0), opens="SYS_BOOT"),
    Call("acct", (BAD,), opens="SYS_PACCT", init=True),
    Call("settimeofday", (BAD, 0), opens="SYS_TIME"),
    Call("clock_settime", (0, BAD), opens="SYS_TIME"),
    Call("swapon", (BAD, BAD), init=True),
    Call("swapoff", (BAD,), init=True),
    Call("kexec_load", (0, 0, 0, BAD), init=True),
    Call("init_module", (BAD, 0, BAD), opens="SYS_MODULE", init=True),
    Call("delete_module", (BAD, 0), opens="SYS_MODULE", init=True),
]
if os.uname().machine == "x86_64":
    CALLS += [
        Call("iopl", (99,), opens="SYS_RAWIO"),
        Call("ioperm", (BAD, 1, 1), opens="SYS_RAWIO"),
        Call("modify_ldt", (0, 0, 0), ENOSYS),
        Call("ustat", (0, 0), ENOSYS),
    ]


def number(name: str) -> int:
    found: int = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name(name.encode())
    assert found >= 0
    return found


def command(call: Call) -> list[str]:
    return python(MAKE, *map(str, (number(call.name), *call.arguments)))


def made(container: Container, call: Call) -> int:
    return int(said(container, command(call)))


def check_answer(container: Container, call: Call) -> None:
    """Without the filter the answer is another one, unless this kernel was built without the call."""
    if made(container, call) == call.refusal:
        own = subprocess.run(command(call), capture_output=True, text=True, check=True).stdout
        assert int(own) == call.refusal, call
        pytest.skip("this kernel answers so by itself")


@pytest.fixture(scope="module")
def default() -> Iterator[Container]:
    with Container() as container:
        yield container


@pytest.fixture(scope="module")
def open_() -> Iterator[Container]:
    with Container(seccomp=None, cap_add=["ALL"]) as container:
        yield container


@pytest.fixture(scope="module")
def open_to_root() -> Iterator[Container]:
    with Container(seccomp=None, cap_add=["ALL"], userns="host") as container:
        yield container


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_refused(default: Container, call: Call) -> None:
    assert made(default, call) == call.refusal


@pytest.mark.parametrize("call", [call for call in CALLS if not call.init], ids=str)
def test_without_the_filter_the_kernel_answers(open_: Container, call: Call) -> None:
    check_answer(open_, call)


@pytest.mark.requires("root")
@pytest.mark.parametrize("call", [call for call in CALLS if call.init], ids=str)
def test_without_all_walls_the_kernel_answers(open_to_root: Container, call: Call) -> None:
    check_answer(open_to_root, call)


OPENED = sorted({call.opens for call in CALLS if call.opens})


@pytest.mark.parametrize("capability", OPENED)
def test_a_capability_opens_its_calls_and_no_others(
    open_: Container, capability: str, request: pytest.FixtureRequest
) -> None:
    with Container(cap_add=[capability]) as container:
        for call in CALLS:
            if call.opens == capability and not call.init:
                assert made(container, call) == made(open_, call), call
    beside = next(call for call in CALLS if call.name == "keyctl")
    with Container(cap_add=["ALL"]) as container:
        assert made(container, beside) == beside.refusal


@pytest.mark.requires("root")
@pytest.mark.parametrize("capability", sorted({call.opens for call in CALLS if call.opens and call.init}))
def test_what_only_root_outside_may_do(open_to_root: Container, capability: str) -> None:
    with Container(cap_add=[capability], userns="host") as container:
        for call in CALLS:
            if call.opens == capability and call.init:
                assert made(container, call) == made(open_to_root, call), call


def test_tracing_ones_own(default: Container) -> None:
    """As any debugger does; a process of someone else's is not there to be traced."""
    assert made(default, Call("ptrace", (16, 99999, 0, 0))) == errno.ESRCH
    code = (
        "import ctypes, os, signal\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    signal.pause()\n"
        "assert libc.ptrace(16, pid, 0, 0) == 0, ctypes.get_errno()\n"  # PTRACE_ATTACH
        "os.waitpid(pid, 0)\n"
        "print('traced')\n"
        "os.kill(pid, signal.SIGKILL)\n"
    )
    assert said(default, python(code)) == "traced\n"


def test_other_call_tables_end_the_program(default: Container, open_: Container) -> None:
    """The same call by x32's number, which no rule looks at. Without the filter the kernel answers."""
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is x86-64's")
    of_x32 = python(MAKE, str(0x40000000 + number("getpid")))
    assert default.exec(of_x32).returncode == -signal.SIGSYS
    assert open_.exec(of_x32).ok


# What a libc and the usual runtimes do, with one word for each thing that went well.
RUNTIME = """
import asyncio, concurrent.futures, mmap, multiprocessing, os, select, signal, socket, subprocess
import tempfile, threading, time
thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
print(subprocess.run(["echo", "subprocess"], capture_output=True, text=True).stdout.strip())
async def child():
    process = await asyncio.create_subprocess_exec("true")
    return await process.wait()
assert asyncio.run(child()) == 0; print("asyncio")
fork = multiprocessing.get_context("fork")
queue = fork.Queue(); process = fork.Process(target=queue.put, args=("multiprocessing",)); process.start()
print(queue.get()); process.join()
with concurrent.futures.ProcessPoolExecutor(2, fork) as pool: print(pool.submit(str, "pool").result())
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    socket.socket(family, socket.SOCK_DGRAM).close()
socket.socketpair(); socket.if_nameindex(); print("socket")
mmap.mmap(-1, 4096); os.memfd_create("file"); os.pidfd_open(os.getpid()); select.epoll().close()
with tempfile.TemporaryFile() as file: os.posix_fallocate(file.fileno(), 0, 4096)
signal.setitimer(signal.ITIMER_REAL, 1000); time.clock_gettime(time.CLOCK_BOOTTIME); print("kernel")
"""


def test_what_programs_do(default: Container) -> None:
    words = said(default, [python("")[0], "-I", "-c", RUNTIME])
    assert words.split() == ["thread", "subprocess", "asyncio", "multiprocessing", "pool", "socket", "kernel"]


COMMIT = "git -c user.name=n -c user.email=e commit -q --allow-empty -m m"
SCRIPTS = {
    "bash": "bash -c 'diff <(echo 1) <(echo 1) && coproc cat && echo ok'",
    "busybox": "busybox sh -c 'busybox ps >/dev/null; echo ok | busybox cat'",
    "dpkg-query": "dpkg-query -S /bin/sh >/dev/null; dpkg -l >/dev/null && echo ok",
    "gcc": "echo 'int main(void){return 0;}' >a.c && gcc -pthread -O1 a.c -o a && ./a && echo ok",
    "gdb": "gdb -batch -ex run true 2>&1 | grep -q 'exited normally' && echo ok",
    "git": f"git init -q r && cd r && {COMMIT} && git gc -q && git log --format=%s | grep -q m && echo ok",
    "java": "java -version 2>&1 | grep -q Runtime && echo ok",
    "node": """node -e 'require("fs").promises.readFile("/etc/passwd").then(() => console.log("ok"))'""",
    "openssl": "openssl rand -hex 4 >/dev/null && openssl dgst -sha256 /etc/passwd >/dev/null && echo ok",
    "perl": "perl -e '$p = fork; exit 3 if !$p; wait; print $? >> 8 == 3 ? qq(ok\\n) : qq(no\\n)'",
    "strace": "strace -f -o /dev/null sh -c 'true & wait' && echo ok",
    "tar": "tar c /etc/alternatives 2>/dev/null | tar t >/dev/null && echo ok",
}


@pytest.mark.parametrize("program", SCRIPTS)
def test_programs_of_the_host(default: Container, program: str) -> None:
    if shutil.which(program, path="/usr/bin:/bin") is None:
        pytest.skip(f"no {program} here")
    said_last = sh(default, f"export HOME=/tmp; cd $(mktemp -d); {SCRIPTS[program]}").splitlines()[-1]
    assert said_last == "ok"
