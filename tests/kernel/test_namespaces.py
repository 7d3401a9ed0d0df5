"""The namespaces of a container: private ones, and the host's where that was asked for."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import isobox
from isobox import Container, UnsupportedError
from programs import python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

ALL = isobox.host.features().namespaces
SHARED = {"time"} & ALL
"""What a container has of the host's, unless it is asked otherwise."""
LINKS = f"for n in {' '.join(ALL)}; do readlink /proc/self/ns/$n; done"


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container() as container:
        yield container


def namespaces(container: Container) -> dict[str, str]:
    return dict(line.split(":", 1) for line in sh(container, LINKS).split())


def host_namespaces() -> dict[str, str]:
    return dict(os.readlink(f"/proc/self/ns/{name}").split(":", 1) for name in ALL)


def test_private_by_default(box: Container) -> None:
    inside, outside = namespaces(box), host_namespaces()
    assert inside.keys() == set(ALL)
    assert {name for name in ALL if inside[name] == outside[name]} == SHARED


def test_two_containers_share_none(box: Container) -> None:
    # Both at the same time: the number of a namespace that is gone is used again.
    with Container() as other, box.popen(["sleep", "60"]) as one, other.popen(["sleep", "60"]) as two:
        a, b = ({name: os.readlink(f"/proc/{p.pid}/ns/{name}") for name in ALL} for p in (one, two))
        one.kill()
        two.kill()
    assert {name for name in ALL if a[name] == b[name]} == SHARED


@pytest.mark.parametrize(
    "name", ["ipc", "uts", "cgroup", pytest.param("time", marks=pytest.mark.requires("time_namespaces"))]
)
def test_each_one_is_chosen_by_itself(name: str) -> None:
    other = "private" if name == "time" else "host"
    with Container(namespaces={name: other}) as container:
        inside, outside = namespaces(container), host_namespaces()
        shared = {each for each in ALL if inside[each] == outside[each]}
        assert shared == (SHARED ^ {name})
        # and a program runs there as in any other
        assert sh(container, "echo x > /tmp/x; cat /tmp/x") == "x\n"


def test_the_host_s_network() -> None:
    with Container(network="host") as container:
        inside, outside = namespaces(container), host_namespaces()
        assert inside["net"] == outside["net"]
        assert {name for name in ALL if inside[name] == outside[name]} == {"net", *SHARED}
        names = sorted(name for _number, name in socket.if_nameindex())
        assert sorted(sh(container, "ls /sys/class/net").split()) == names
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = str(listener.getsockname()[1])
            said(
                container,
                python("import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])))", port),
            )


@pytest.mark.requires("root")
def test_the_host_s_user_namespace() -> None:
    with Container(userns="host") as container:
        inside, outside = namespaces(container), host_namespaces()
        assert {name for name in ALL if inside[name] == outside[name]} == {"user", *SHARED}
        assert sh(container, "cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]
        # What a user namespace keeps away is kept away by other means.
        assert sh(
            container, "cat /proc/sys/kernel/hostname; echo x > /proc/sys/kernel/hostname || echo no"
        ) == (f"{container.id}\nno\n")
        result = container.exec(["sh", "-c", "echo b > /proc/sysrq-trigger"])
        assert not result.ok
        assert sh(container, "cat /proc/keys /proc/timer_list 2>/dev/null || true") == ""


@pytest.mark.requires("ordinary_user")
def test_an_ordinary_user_needs_a_user_namespace() -> None:
    with pytest.raises(UnsupportedError) as caught, Container(userns="host"):
        pass
    assert caught.value.feature and "auto" in caught.value.remedy


def test_the_host_s_pids_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="PID") as caught, Container(namespaces={"pid": "host"}):
        pass
    assert caught.value.remedy


@pytest.mark.skipif("time" in ALL, reason="the kernel has time namespaces")
def test_one_that_the_kernel_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="without time namespaces") as caught:
        Container(namespaces={"time": "private"}).start()
    assert caught.value.remedy


def test_pids_begin_anew(box: Container) -> None:
    # 1 is isobox-init, and the programs that run are all that there is to see.
    assert sh(box, "cat /proc/1/cmdline") == "isobox-init\0"
    pids = [int(name) for name in sh(box, "ls /proc").split() if name.isdigit()]
    assert len(pids) in (3, 4) and 1 in pids  # init, (the exec's own init), sh, ls
    assert box.pid is not None and not os.path.samefile(f"/proc/{box.pid}/ns/pid", "/proc/self/ns/pid")


def test_hostname() -> None:
    with Container(hostname="worker-7.example") as container:
        assert sh(container, "cat /proc/sys/kernel/hostname") == "worker-7.example\n"
        assert said(container, python("import socket; print(socket.gethostname())")) == "worker-7.example\n"
        assert socket.gethostname() != "worker-7.example"
        assert not container.exec(["hostname", "changed"]).ok  # only with CAP_SYS_ADMIN, as in Docker
    with Container(cap_add=["SYS_ADMIN"]) as container:
        assert sh(container, "hostname changed; hostname") == "changed\n"
        assert socket.gethostname() != "changed"


def test_hostname_from_name_or_id(box: Container) -> None:
    assert sh(box, "hostname") == f"{box.id}\n"
    with Container(name="isobox-test-named") as container:
        assert sh(container, "hostname") == "isobox-test-named\n"


def test_loopback_is_up_and_all_there_is(box: Container) -> None:
    assert sh(box, "ls /sys/class/net") == "lo\n"
    code = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 4000))
def answer():
    connection, _ = listener.accept()
    connection.sendall(b"hello")
threading.Thread(target=answer, daemon=True).start()
print(socket.create_connection(("127.0.0.1", 4000)).recv(5).decode())
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    print(error.strerror)
"""
    assert said(box, python(code)) == "hello\nNetwork is unreachable\n"


def test_ipc_is_not_shared(box: Container) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(4711, 4096, 0o1000 | {flags}) >= 0)
"""
    assert said(box, [*python("")[:1], "-I", "-c", code.format(flags="0o600")]) == "True\n"
    # 0o2000 is IPC_EXCL: it exists already where the namespace is the same
    assert said(box, [*python("")[:1], "-I", "-c", code.format(flags="0o2600")]) == "False\n"
    with Container() as other:
        assert said(other, [*python("")[:1], "-I", "-c", code.format(flags="0o2600")]) == "True\n"


def test_the_cgroup_namespace_hides_the_path(box: Container) -> None:
    with open("/proc/self/cgroup") as file:
        outside = {line.split(":", 2)[2].strip() for line in file} - {"/"}
    inside = {line.split(":", 2)[2] for line in sh(box, "cat /proc/1/cgroup /proc/self/cgroup").splitlines()}
    assert not any("isobox" in path for path in inside)
    assert not outside & inside


def test_host_s_user_outside_is_nobody_inside(box: Container) -> None:
    # What belongs to the host's root belongs to nobody in here.
    assert sh(box, "stat -c %u:%g /usr/bin/env") == "65534:65534\n"


@pytest.mark.requires("root")
def test_root_inside_is_nobody_outside(box: Container) -> None:
    with Container() as other:
        bases = []
        for container in (box, other):
            inside, outside, count = map(int, sh(container, "cat /proc/self/uid_map").split())
            assert (inside, count) == (0, 65536)
            assert outside >= 65536
            bases.append(outside)
            with container.popen(["sleep", "60"]) as process:
                assert process.pid is not None
                assert os.stat(f"/proc/{process.pid}").st_uid == outside
                process.kill()
            assert sh(container, "cat /proc/self/gid_map").split() == [str(inside), str(outside), str(count)]
    assert abs(bases[0] - bases[1]) >= 65536


@pytest.mark.requires("root")
def test_ranges_of_many_containers_do_not_meet() -> None:
    containers = [Container().start() for _ in range(12)]
    try:
        bases = sorted(int(sh(container, "cat /proc/self/uid_map").split()[1]) for container in containers)
    finally:
        for container in containers:
            container.remove()
    assert all(b - a >= 65536 for a, b in itertools.pairwise(bases))


@pytest.mark.requires("ordinary_user")
def test_an_ordinary_user_s_map(box: Container) -> None:
    lines = sh(box, "cat /proc/self/uid_map").splitlines()
    assert lines[0].split() == ["0", str(os.getuid()), "1"]
    with box.popen(["sleep", "60"]) as process:
        assert os.stat(f"/proc/{process.pid}").st_uid == os.getuid()
        process.kill()


@pytest.mark.requires("ordinary_user", "id_ranges")
def test_an_ordinary_user_s_subuids(box: Container) -> None:
    (line,) = sh(box, "cat /proc/self/uid_map").splitlines()[1:]
    inside, outside, count = map(int, line.split())
    assert inside == 1 and outside > 65535 and count > 1000
    assert sh(box, "id -u", user="12:34") == "12\n"


@pytest.mark.parametrize("more", [{}, {"cap_add": ["ALL"], "seccomp": None}])
def test_the_machine_s_settings_are_out_of_reach(more: dict[str, Any]) -> None:
    with Container(**more) as container:
        for path in (
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/vm/overcommit_memory",
            "/proc/sysrq-trigger",
            "/sys/kernel/uevent_helper",
        ):
            assert not container.exec(["sh", "-c", f"echo 1 > {path}"]).ok, path
        assert not container.exec(["mount", "-o", "remount,rw", "/sys"]).ok
        assert not container.exec(["mknod", "/tmp/disk", "b", "254", "0"]).ok
        assert not container.exec(["date", "-s", "2001-01-01"]).ok


@pytest.mark.requires("time_namespaces")
def test_time_namespace_has_the_host_s_clock_to_begin_with() -> None:
    with Container(namespaces={"time": "private"}) as container:
        uptime = float(sh(container, "cat /proc/uptime").split()[0])
        with open("/proc/uptime") as file:
            assert abs(uptime - float(file.read().split()[0])) < 60


def test_root_is_named_so(box: Container) -> None:
    assert sh(box, "id -un; id -u; id -G") == "root\n0\n0\n"
