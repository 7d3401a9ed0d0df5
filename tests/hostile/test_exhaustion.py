"""Programs that take all there is of something: processes, memory, files.

Each attack counts what it gets before it is refused. It gets more where its own limit is raised, or a wall
is taken down: so it is that which holds it.
"""

from __future__ import annotations

from typing import Any

import pytest

import isobox
from bystanders import got, well
from isobox import Container, Mount
from patience import patient
from programs import HOG, python

pytestmark = [
    pytest.mark.requires("user_namespaces", "overlay"),
    pytest.mark.usefixtures("all_well", "the_next_is_well"),
]

LIMITED = isobox.host.features().cgroup_pids


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
    try:
        area.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError:
        pass  # a kernel without huge pages
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
