"""What lies side by side on one kernel: sockets, networks, IPC, and the files of other containers."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import isobox
from isobox import Container, Mount, runtime
from programs import ROOT, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

REAL_ROOT = ROOT and not isobox.host.features().in_user_namespace
WORD = f"isobox-hostile-{os.getpid()}"

# Sockets and networks

CONNECT = """
import socket, sys
family, address = sys.argv[1], sys.argv[2:]
with socket.socket({"unix": socket.AF_UNIX, "inet": socket.AF_INET}[family]) as s:
    s.settimeout(5)
    try:
        s.connect("\\0" + address[0] if family == "unix" else (address[0], int(address[1])))
        print(s.recv(100).decode())
    except OSError:
        print("refused")
"""


@contextmanager
def serving(listener: socket.socket) -> Iterator[None]:
    """Greets everybody who connects."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"of the host")

    thread = threading.Thread(target=serve)
    listener.listen()
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_abstract_sockets_of_the_host(box: Container) -> None:
    """CVE-2020-15257 (https://nvd.nist.gov/vuln/detail/CVE-2020-15257): a service of the host listens on a
    socket without a file, which belongs to the network namespace. In the host's network Landlock hides it.
    """
    attack = python(CONNECT, "unix", WORD)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{WORD}")
    with serving(listener):
        with Container(network="host", landlock=None) as container:
            assert said(container, attack).strip() == "of the host"
        if isobox.host.features().landlock_scopes:
            with Container(network="host") as container:
                assert said(container, attack).strip() == "refused"
        assert said(box, attack).strip() == "refused"
        assert WORD not in sh(box, "cat /proc/net/unix")


def test_the_host_s_loopback(box: Container) -> None:
    """Databases and the like that trust whoever is on 127.0.0.1."""
    listener = socket.create_server(("127.0.0.1", 0))
    attack = python(CONNECT, "inet", "127.0.0.1", str(listener.getsockname()[1]))
    with serving(listener):
        with Container(network="host") as container:
            assert said(container, attack).strip() == "of the host"
        assert said(box, attack).strip() == "refused"
        for address in ("0.0.0.0", "127.0.0.2"):
            other = python(CONNECT, "inet", address, str(listener.getsockname()[1]))
            assert said(box, other).strip() == "refused"


SNIFF = """
import socket, sys, time
found = False
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
    print("listening", flush=True)
    s.settimeout(0.1)
    deadline = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < deadline and not found:
        try:
            found = sys.argv[1].encode() in s.recv(65536)
        except TimeoutError:
            pass
print("heard" if found else "nothing")
"""


def sniffed(container: Container, seconds: float) -> str:
    """Whether a packet on the host's loopback is heard inside."""
    with (
        container.popen(python(SNIFF, WORD, str(seconds)), text=True) as process,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        assert process.stdout.readline() == "listening\n"
        while process.poll() is None:
            sender.sendto(WORD.encode(), ("127.0.0.1", 9))
            time.sleep(0.02)
        return process.communicate()[0].strip()


def test_packets_of_the_host(box: Container) -> None:
    """Raw sockets are allowed, for ping; they hear the container's own network only.

    The wall is down with the host's network, and with the host's root: the capability counts in the network's
    own user namespace.
    """
    if REAL_ROOT:
        with Container(network="host", userns="host") as container:
            assert sniffed(container, 20) == "heard"
    assert sniffed(box, 0.5) == "nothing"
    with Container(network="host") as container:
        assert not container.exec(python(SNIFF, WORD, "0")).ok


# System V and POSIX IPC

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p
IPC_CREAT, IPC_RMID = 0o1000, 0

SHARED_MEMORY = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(int(sys.argv[1]), None, 0)
print("refused" if at in (None, ctypes.c_void_p(-1).value) else ctypes.string_at(at).decode())
"""

SEMAPHORES_AND_MESSAGES = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
semaphore, queue = map(int, sys.argv[1:])
text = ctypes.create_string_buffer(64)
found = libc.semctl(semaphore, 0, 12)  # GETVAL
size = libc.msgrcv(queue, text, 32, 0, 0o4000)
print(found if found >= 0 else "refused", text.raw[8:8 + size].decode() if size > 0 else "refused")
"""

MESSAGE_QUEUE = """
import ctypes, os, sys
libc = ctypes.CDLL("librt.so.1", use_errno=True)
queue = libc.mq_open(sys.argv[1].encode(), os.O_RDONLY)
print("opened" if queue >= 0 else "refused")
"""


def test_system_v_ipc_of_the_host(box: Container) -> None:
    """Shared memory, semaphores and messages that are open to everybody, found by their number."""
    memory = LIBC.shmget(0, 4096, IPC_CREAT | 0o666)
    semaphore = LIBC.semget(0, 1, IPC_CREAT | 0o666)
    queue = LIBC.msgget(0, IPC_CREAT | 0o666)
    try:
        assert min(memory, semaphore, queue) >= 0
        at = LIBC.shmat(memory, None, 0)
        ctypes.memmove(at, b"of the host\0", 12)
        LIBC.shmdt(ctypes.c_void_p(at))
        assert LIBC.semctl(semaphore, 0, 16, 7) == 0  # SETVAL
        message = ctypes.create_string_buffer((1).to_bytes(8, "little") + b"word")
        with Container(namespaces={"ipc": "host"}) as open_one:
            for container, outcome in (
                (box, ("refused", "refused refused")),
                (open_one, ("of the host", "7 word")),
            ):
                assert LIBC.msgsnd(queue, message, 4, 0o4000) == 0
                assert said(container, python(SHARED_MEMORY, str(memory))).strip() == outcome[0]
                attack = python(SEMAPHORES_AND_MESSAGES, str(semaphore), str(queue))
                assert said(container, attack).strip() == outcome[1]
        for name in ("shm", "sem", "msg"):
            assert len(sh(box, f"cat /proc/sysvipc/{name}").splitlines()) == 1
    finally:
        LIBC.shmctl(memory, IPC_RMID, None)
        LIBC.semctl(semaphore, 0, IPC_RMID)
        LIBC.msgctl(queue, IPC_RMID, None)


def test_posix_ipc_of_the_host(box: Container) -> None:
    """Message queues and shared memory that have names."""
    librt = ctypes.CDLL("librt.so.1", use_errno=True)
    name = f"/{WORD}".encode()
    queue = librt.mq_open(name, os.O_RDWR | os.O_CREAT, 0o666, None)
    if queue < 0:
        pytest.skip(f"no message queues here: {os.strerror(ctypes.get_errno())}")
    os.fchmod(queue, 0o666)
    file = Path(f"/dev/shm/{WORD}")
    try:
        file.write_text("of the host")
        with Container(namespaces={"ipc": "host"}, mounts=["/dev/shm:/dev/shm:ro"]) as container:
            assert said(container, python(MESSAGE_QUEUE, f"/{WORD}")).strip() == "opened"
            assert sh(container, f"cat /dev/shm/{WORD}") == "of the host"
        assert said(box, python(MESSAGE_QUEUE, f"/{WORD}")).strip() == "refused"
        assert sh(box, "ls -A /dev/shm /dev/mqueue") == "/dev/mqueue:\n\n/dev/shm:\n"
    finally:
        os.close(queue)
        librt.mq_unlink(name)
        file.unlink(missing_ok=True)


# Files of other containers

SEARCH = """
import os, sys
word, tops = sys.argv[1], sys.argv[2:]
for top in tops:
    for path, folders, names in os.walk(top):
        if top == "/":
            known = ("proc", "sys", "usr")
            folders[:] = [name for name in folders if path.count("/") < 3 and name not in known]
        if word in names:
            print("found")
            sys.exit()
for name in filter(str.isdigit, os.listdir("/proc")):
    for top in (f"/proc/{name}/root/", f"/proc/{name}/cwd/"):
        for place in ("", "tmp/", "dev/shm/", "root/"):
            if os.path.exists(f"{top}{place}{word}") and os.stat(top).st_dev != os.stat("/").st_dev:
                print("found")
                sys.exit()
print("nothing")
"""


def test_files_of_other_containers() -> None:
    """In its layer, on disk or in memory, its /tmp, its shared memory; by their paths and through /proc.

    The layers on disk lie in a folder of the host's: with that bound in, the wall is down for who has root's
    rights there.
    """
    places: dict[str, Any] = {"disk": {"upper": "disk"}, "memory": {}}
    for options in places.values():
        with Container(**options) as one, Container() as other:
            sh(one, f"mkdir -p /root /work; touch /{WORD} /tmp/{WORD} /dev/shm/{WORD} /root/{WORD}")
            attack = python(SEARCH, WORD, "/", runtime.state_dir(), runtime.data_dir())
            with one.popen(["sleep", "60"]) as process:
                assert said(other, attack).strip() == "nothing"
                process.kill()
    mounts = [Mount.bind(runtime.data_dir(), "/data", read_only=True)]
    twin: dict[str, Any] = {"userns": "host", "cap_add": ["DAC_READ_SEARCH"]} if ROOT else {}
    with Container(upper="disk") as one, Container(mounts=mounts, **twin) as other:
        sh(one, f"touch /{WORD}")
        assert said(other, python(SEARCH, WORD, "/data")).strip() == "found"


def test_two_containers_have_nothing_in_common() -> None:
    """What one leaves in the directories that all programs write to, another does not find."""
    with Container() as one, Container() as other:
        script = f"for d in /tmp /var/tmp /run /dev/shm /root; do echo {WORD} > $d/{WORD}; done"
        sh(one, script)
        code = f"for d in /tmp /var/tmp /run /dev/shm /root; do ls -A $d | grep {WORD}; done; true"
        assert sh(one, code).split() == [WORD] * 5
        assert sh(other, code) == ""
        # A name that one announces on its loopback or in its abstract sockets is not the other's.
        server = (
            f"import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0{WORD}'); s.listen(); "
            "print(1, flush=True); s.accept()"
        )
        with one.popen(python(server), text=True) as process:
            assert process.stdout.readline() == "1\n"
            assert said(other, python(CONNECT, "unix", WORD)).strip() == "refused"
            process.kill()
