"""Programs that take all there is of what the kernel counts: descriptors, terminals, keys, mounts, IPC.

Each attack counts what it gets before it is refused. It gets more where a bound is raised or a wall is taken
down: so it is that which holds it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import pty
import resource
import subprocess
import sys

import pytest

import isobox
from bystanders import got, well
from isobox import Container, ExecError
from leftovers import wait_until
from patience import patient
from programs import python, said

pytestmark = [
    pytest.mark.requires("user_namespaces", "overlay"),
    pytest.mark.usefixtures("all_well", "the_next_is_well"),
]


OPEN = """
import os
made = 0
try:
    while made < 500:
        os.dup(0)
        made += 1
except OSError as error:
    assert error.errno == 24, error
print(made)
"""

PTYS = """
import os, sys
made = 0
try:
    while made < 300:
        os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
        made += 1
except OSError as error:
    assert error.errno == 28, error
print(made, flush=True)
sys.stdin.read()
"""

WATCHES = """
import ctypes, sys
libc = ctypes.CDLL(None)
made = 0
while made < int(sys.argv[1]) and libc.inotify_init1(0) >= 0:
    made += 1
print(made, flush=True)
sys.stdin.read()
"""

ADD_KEY = 248 if platform.machine() == "x86_64" else 217
"""Its number; -2 below is the keyring of the process, which ends with it."""

KEYS = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
made = 0
while made < 20 and libc.syscall(int(sys.argv[1]), b"user", b"isobox-%d" % made, b"x", 1, -2) > 0:
    made += 1
print(made)
"""

MOUNTS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = 0
while made < 1000 and libc.mount(b"none", b"/mnt", b"tmpfs", 0, b"size=4k") == 0:
    made += 1
print(made)
"""


def known(path: str) -> pytest.MarkDecorator:
    """For what a kernel may be built without."""
    return pytest.mark.skipif(not os.path.exists(path), reason=f"no {path}")


class TestDescriptors:
    def test_of_one_process(self) -> None:
        with Container(rlimits={"nofile": 64}) as container:
            assert got(container, OPEN) < 64
        with Container(rlimits={"nofile": 512}) as container:
            assert got(container, OPEN) == 500

    def test_terminals(self) -> None:
        """The machine has 4096 of them, for all."""
        with (
            Container(rlimits={"nofile": 512}) as container,
            container.popen(python(PTYS, "/dev/ptmx"), stdin=isobox.PIPE) as hostile,
        ):
            assert hostile.stdout is not None
            assert int(hostile.stdout.readline()) == 256
            for fd in pty.openpty():
                os.close(fd)
            with pytest.raises(ExecError, match="All terminals"):
                container.exec(["tty"], tty=True)
            assert well(container)
            with Container() as other:
                assert other.exec(["tty"], tty=True, timeout=patient(10)).ok
            hostile.kill()
        mount = 'mount -t devpts -o newinstance,ptmxmode=666 none /mnt && exec "$@"'
        with Container(rlimits={"nofile": 512}, cap_add=["SYS_ADMIN"]) as container:
            out = said(container, ["sh", "-c", mount, "sh", *python(PTYS, "/mnt/ptmx")])
            assert int(out) == 300

    @known("/proc/sys/user/max_inotify_instances")
    def test_inotify_instances(self) -> None:
        """They are counted for the user who started the container, too: for all of its containers, and it."""
        with open("/proc/sys/user/max_inotify_instances") as file:
            whole = int(file.read())
        if whole > 4096:
            pytest.skip(f"{whole} are too many to take")
        libc = ctypes.CDLL(None)
        with (
            Container() as container,
            container.popen(python(WATCHES, str(whole)), stdin=isobox.PIPE) as hostile,
        ):
            assert hostile.stdout is not None
            assert int(hostile.stdout.readline()) == whole // 2
            mine = libc.inotify_init1(0)
            assert mine >= 0
            os.close(mine)
            hostile.kill()
        # Who may write to /proc/sys, and has the capability for it, may raise the bound.
        with Container(cap_add=["SYS_ADMIN", "SYS_RESOURCE"]) as container:
            said(container, ["sh", "-c", f"echo {whole} > /proc/sys/user/max_inotify_instances"])
            assert got(container, WATCHES, whole // 2 + 10) == whole // 2 + 10


class TestKernelObjects:
    @known("/proc/sys/kernel/keys")
    def test_keys(self) -> None:
        with Container() as container:
            assert got(container, KEYS, ADD_KEY) == 0
        with Container(seccomp=None) as container:
            assert got(container, KEYS, ADD_KEY) == 20

    def test_mounts(self) -> None:
        with Container() as container:
            assert got(container, MOUNTS) == 0
        with Container(seccomp=None) as container:  # one wall down, the other stands
            assert got(container, MOUNTS) == 0
        with Container(cap_add=["SYS_ADMIN"]) as container:
            assert got(container, MOUNTS) == 1000
            assert well(container)

    @known("/proc/sysvipc/shm")
    def test_shared_memory_ends_with_its_container(self) -> None:
        """SysV objects live on without processes: in an IPC namespace of its own they end with it."""
        code = "import ctypes; print(ctypes.CDLL(None).shmget(0, 4096, 0o1600))"

        def segments() -> set[str]:
            with open("/proc/sysvipc/shm") as file:
                return {line.split()[1] for line in file.readlines()[1:]}

        before = segments()
        with Container() as container:
            assert got(container, code) >= 0
            assert segments() == before
        with Container(namespaces={"ipc": "host"}) as container:
            left = got(container, code)
        libc = ctypes.CDLL(None)
        assert segments() - before == {str(left)}
        assert libc.shmctl(left, 0, None) == 0  # IPC_RMID

    @known("/proc/sys/fs/mqueue")
    def test_message_queues_end_with_their_container(self) -> None:
        code = """
import ctypes
libc = ctypes.CDLL(None)
made = 0
while made < 300 and libc.mq_open(b"/isobox-%d" % made, 0o102, 0o600, None) >= 0:
    made += 1
print(made)
"""
        with Container(rlimits={"nofile": 512}) as container:
            first = got(container, code)
            assert 0 < first < 300
            assert int(said(container, ["sh", "-c", "ls /dev/mqueue | wc -l"])) == first

        def as_many() -> bool:
            with Container(rlimits={"nofile": 512}) as container:
                return got(container, code) == first

        assert wait_until(as_many)  # the kernel frees those of the first one a moment after its end


SIGNALS = """
import ctypes, os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMAX])
made = 0
while made < 2000 and ctypes.CDLL(None).sigqueue(os.getpid(), signal.SIGRTMAX, None) == 0:
    made += 1
print(made)
"""

QUEUES = """
import ctypes
made = 0
while made < 50 and ctypes.CDLL(None).mq_open(b"/isobox-%d" % made, 0o102, 0o600, None) >= 0:
    made += 1
print(made)
"""

# In a process of its own: what was prepared with another bound keeps that.
BOUNDED = """
import resource, sys
number, bound, code = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
own = resource.getrlimit(number)
resource.setrlimit(number, (bound, own[1]))
import isobox
with isobox.Container(rlimits={sys.argv[4]: own}) as container:
    resource.setrlimit(number, own)
    for uid in (0, 1):
        result = container.exec([sys.executable, "-I", "-S", "-c", code], text=True, user=uid)
        print(result.stdout.strip(), end=" ")
        sys.stderr.write(result.stderr)
"""


@pytest.mark.requires("id_ranges")
class TestOfTheUser:
    """Counted for the user who started it, for all users inside together: the starter's soft limit holds."""

    @pytest.mark.parametrize(
        ("name", "code", "low", "high"),
        [
            ("sigpending", SIGNALS, 500, 3000),
            pytest.param("msgqueue", QUEUES, 200_000, 400_000, marks=known("/proc/sys/fs/mqueue")),
        ],
    )
    def test_bound(self, name: str, code: str, low: int, high: int) -> None:
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        found = []
        for bound in (low, high):
            args = [sys.executable, "-c", BOUNDED, str(number), str(bound), code, name]
            result = subprocess.run(args, capture_output=True, text=True, timeout=patient(60))
            assert result.returncode == 0, result.stderr
            found.append(sum(map(int, result.stdout.split())))
        assert 0 < found[0] < found[1]
        assert name != "sigpending" or found[0] <= 2 * low
