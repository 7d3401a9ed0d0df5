"""Programs that take all there is of something: processes, memory, inodes, descriptors, kernel objects.

Each attack counts what it gets before it is refused. It gets more where its own limit is raised, or a wall
is taken down: so it is that which holds it.
"""

from __future__ import annotations

import ctypes
import os
import pty
from collections.abc import Iterator
from typing import Any

import pytest

import isobox
from bystanders import unharmed, well
from isobox import Container, Mount
from leftovers import wait_until
from patience import patient
from programs import HOG, python, said

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

LIMITED = isobox.host.features().cgroup_pids


@pytest.fixture(autouse=True, scope="module")
def all_well() -> Iterator[None]:
    with unharmed():
        yield


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Container]:
    with Container() as container:
        yield container


@pytest.fixture(autouse=True)
def the_next_is_well(neighbour: Container) -> Iterator[None]:
    yield
    assert well(neighbour)


def got(container: Container, code: str, *arguments: object, **options: Any) -> int:
    """How much an attack gets: the last number that it prints."""
    out = said(container, python(code, *map(str, arguments)), **options)
    return int(out.split()[-1])


def few(number: int) -> dict[str, Any]:
    """So many processes and threads at most."""
    return {"pids": number} if LIMITED else {"rlimits": {"nproc": number}}


# Its children are killed with the exec, when it has ended.
FORKS = """
import os, time
made = 0
while made < 60:
    try:
        pid = os.fork()
    except OSError:
        break
    if not pid:
        time.sleep(1000)
    made += 1
print(made)
"""

THREADS = """
import threading
made, end = 0, threading.Event()
while made < 60:
    try:
        threading.Thread(target=end.wait, daemon=True).start()
    except RuntimeError:
        break
    made += 1
print(made, flush=True)
import os
os._exit(0)
"""

ZOMBIES = """
import os
for _ in range(300):
    if not os.fork():
        if not os.fork(): os._exit(0)
        os._exit(0)
    os.wait()
print(300)
"""


class TestProcesses:
    @pytest.mark.parametrize("attack", [FORKS, THREADS], ids=["fork", "thread"])
    def test_bomb(self, attack: str) -> None:
        with Container(**few(30)) as container:
            assert got(container, attack) < 30
            assert well(container)  # the bomb went with its exec
        with Container(**few(90)) as container:
            assert got(container, attack) == 60

    def test_bomb_that_eats_its_own_container(self, neighbour: Container) -> None:
        code = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
        with Container(**few(30)) as container, container.popen(python(code)) as bomb:
            assert well(neighbour)
            assert container.state == "running"
            bomb.kill()
            bomb.wait(patient(10))
            assert well(container)

    def test_orphans_are_reaped(self) -> None:
        """More of them than there may be processes: those that nobody waits for go all the same."""
        with Container(**few(30)) as container:
            assert got(container, ZOMBIES) == 300
            assert well(container)


USE = """
import os, sys, socket, mmap, ctypes
most = int(sys.argv[1]) << 20
piece = b"x" * (1 << 16)
kept = []
def fill(write):
    done = 0
    while done < most:
        done += write()
def anonymous():
    kept.append(bytearray(piece)); return len(piece)
def tmpfs():
    if not kept: kept.append(os.open("/scratch/f", os.O_CREAT | os.O_WRONLY))
    return os.write(kept[0], piece)
def memfd():
    if not kept: kept.append(os.memfd_create("x"))
    return os.write(kept[0], piece)
def sysv():
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    size = 1 << 20
    where = libc.shmat(libc.shmget(0, size, 0o1600), None, 0)
    ctypes.memset(where, 1, size)
    return size
def pipes():
    r, w = os.pipe(); kept.append((r, w))
    os.set_blocking(w, False)
    done = 0
    try:
        while True: done += os.write(w, piece)
    except BlockingIOError:
        return done
def sockets():
    pair = socket.socketpair(); kept.append(pair)
    pair[0].setblocking(False)
    done = 0
    try:
        while True: done += pair[0].send(piece)
    except BlockingIOError:
        return done
def page_tables():
    area = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.append(area)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, 1 << 30, 1 << 21): area[at]  # a table a read; all of it is the one page of zeros
    return 512 * 4096
fill(globals()[sys.argv[2]])
print("had it", flush=True)
os._exit(0)
"""


@pytest.mark.requires("cgroup_memory")
class TestMemory:
    @pytest.mark.parametrize(
        "kind", ["anonymous", "tmpfs", "memfd", "sysv", "pipes", "sockets", "page_tables"]
    )
    def test_of_the_kernel_too(self, kind: str) -> None:
        """What a program fills is its container's, whatever it is called."""
        code = python(USE, "40", kind)
        options: dict[str, Any] = {"mounts": [Mount.tmpfs("/scratch", "64M")], "pids": 64}
        rlimits = {"nofile": 4096}
        with Container(memory="32M", rlimits=rlimits, **options) as container:
            result = container.exec(code, timeout=patient(30))
            assert result.reason == "oom" or b"Cannot allocate memory" in result.stderr, result
            assert container.state == "running"
        with Container(memory="256M", rlimits=rlimits, **options) as container:
            result = container.exec(code, timeout=patient(30))
            assert result.stdout == b"had it\n", result

    def test_the_victim_is_never_init(self) -> None:
        """Again and again: the container goes on, and its other program with it."""
        with Container(memory="32M", pids=64) as container, container.popen(["sleep", "1000"]) as other:
            for _ in range(5):
                assert container.exec(python(HOG), timeout=patient(30)).reason == "oom"
            assert other.poll() is None and well(container)
            other.kill()


FILES = """
import os, sys
made = 0
os.makedirs(sys.argv[1], exist_ok=True)
try:
    for made in range(3000):
        os.close(os.open(f"{sys.argv[1]}/{made}", os.O_CREAT | os.O_WRONLY))
except OSError as error:
    assert error.errno == 28, error
print(made)
"""

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

KEYS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = 0
while made < 20 and libc.syscall(248, b"user", b"isobox-%d" % made, b"x", 1, -2) > 0:  # the process's keyring
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


class TestFiles:
    @pytest.mark.parametrize("place", ["/tmp/files", "/root/files", "/dev/shm/files", "/run/files"])
    def test_empty_ones_without_end(self, place: str) -> None:
        """They take no space, and a kilobyte of the kernel's memory each."""
        with Container(disk="4M") as container:
            assert got(container, FILES, place) < 1024
        with Container(disk="16M") as container:
            assert got(container, FILES, place) == 2999

    def test_in_a_tmpfs_of_its_own(self) -> None:
        mounts = [Mount.tmpfs("/scratch", "4M"), Mount.tmpfs("/large", "16M")]
        with Container(mounts=mounts) as container:
            assert got(container, FILES, "/scratch/d") < 1024
            assert got(container, FILES, "/large/d") == 2999

    def test_in_dev(self) -> None:
        """Nobody writes there: what lies there counts nowhere."""
        with Container() as container:
            result = container.exec(python(FILES, "/dev/files"), text=True)
            assert "Read-only file system" in str(result.stderr)
            assert got(container, FILES, "/dev/shm/files") == 2999

    def test_a_full_layer(self) -> None:
        code = "import sys\nwith open('/tmp/f', 'wb', 0) as f:\n for n in range(48): f.write(bytes(1 << 18))"
        with Container(disk="4M") as container:
            result = container.exec(python(code), text=True)
            assert "No space left" in str(result.stderr)
            assert well(container)
        with Container(disk="16M") as container:
            assert container.exec(python(code)).ok


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
            with Container() as other:
                assert other.exec(["tty"], tty=True, timeout=patient(10)).ok
            hostile.kill()
        mount = 'mount -t devpts -o newinstance,ptmxmode=666 none /mnt && exec "$@"'
        with Container(rlimits={"nofile": 512}, cap_add=["SYS_ADMIN"]) as container:
            out = said(container, ["sh", "-c", mount, "sh", *python(PTYS, "/mnt/ptmx")])
            assert int(out) == 300

    @pytest.mark.skipif(not os.path.exists("/proc/sys/user/max_inotify_instances"), reason="no inotify")
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
        with Container(cap_add=["SYS_RESOURCE"]) as container:  # who has it may raise the bound
            said(container, ["sh", "-c", f"echo {whole} > /proc/sys/user/max_inotify_instances"])
            assert got(container, WATCHES, whole // 2 + 10) == whole // 2 + 10


class TestKernelObjects:
    def test_keys(self) -> None:
        with Container() as container:
            assert got(container, KEYS) == 0
        with Container(seccomp=None) as container:
            assert got(container, KEYS) == 20

    def test_mounts(self) -> None:
        with Container() as container:
            assert got(container, MOUNTS) == 0
        with Container(seccomp=None) as container:  # one wall down, the other stands
            assert got(container, MOUNTS) == 0
        with Container(cap_add=["SYS_ADMIN"]) as container:
            assert got(container, MOUNTS) == 1000
            assert well(container)

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
