"""Device control: what a program makes of a device's numbers can't be opened, in a container of root."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import isobox
from isobox import Container, UnsupportedError, _native, cgroups
from isobox.cgroups import CgroupHost, Device, Groups
from isobox.cgroups.devices import Walls
from isobox.spec import Limits
from programs import python, said, sh

pytestmark = [
    pytest.mark.requires("root", "cgroups", "overlay"),
    pytest.mark.skipif(isobox.host.features().in_user_namespace, reason="the kernel's own wall stands here"),
]

KMSG = (1, 11)  # writing there needs no capability, and this test writes nothing
ADMIN = ("SYS_ADMIN",)  # so that file systems with devices can be mounted inside
USUAL = frozenset({Device("c", 1, 3), Device("c", 1, 5)})

MAKE = """
import os, sys
kind, major, minor, path = sys.argv[1:]
try:
    os.mknod(path, 0o666 | {"b": 0o060000, "c": 0o020000}[kind], os.makedev(int(major), int(minor)))
except OSError as error:
    print("make", error.errno)
else:
    print("made")
"""

OPEN = """
import os, sys
try:
    os.close(os.open(sys.argv[1], os.O_WRONLY))
except OSError as error:
    print("open", error.errno)
else:
    print("opened")
"""


def make(container: Container, kind: str, major: int, minor: int, path: str = "/mnt/node") -> str:
    return said(container, python(MAKE, kind, str(major), str(minor), path)).strip()


def open_(container: Container, path: str = "/mnt/node", **options: object) -> str:
    return said(container, python(OPEN, path), **options).strip()


@pytest.fixture
def admin() -> Iterator[Container]:
    with Container(userns="host", cap_add=ADMIN) as container:
        sh(container, "mount -t tmpfs none /mnt")
        yield container


@pytest.fixture
def node() -> Iterator[Path]:
    """A folder of the host's with a device that works there."""
    with tempfile.TemporaryDirectory(prefix="isobox-test-", dir="/dev/shm") as folder:
        os.mknod(f"{folder}/node", stat.S_IFCHR | 0o666, os.makedev(*KMSG))
        os.chmod(folder, 0o755)
        os.chmod(f"{folder}/node", 0o666)
        try:
            os.close(os.open(f"{folder}/node", os.O_WRONLY))
        except OSError as error:
            pytest.skip(f"no devices in {folder}: {error}")
        yield Path(folder)


def refused(found: str, what: str) -> bool:
    return found == f"{what} {errno.EPERM}"


class TestTheWall:
    def test_it_is_what_stops_the_attack(self) -> None:
        if not os.path.exists("/dev/kmsg"):
            pytest.skip("no /dev/kmsg")
        with Container(userns="host", cap_add=ADMIN, devices=["/dev/kmsg"]) as container:
            sh(container, "mount -t tmpfs none /mnt")
            assert make(container, "c", *KMSG) == "made"
            assert open_(container) == open_(container, "/dev/kmsg") == "opened"

    def test_a_node_of_the_host_s_too(self, node: Path) -> None:
        if not os.path.exists("/dev/kmsg"):
            pytest.skip("no /dev/kmsg")
        for userns in ("auto", "host"):
            options: dict[str, Any] = {"userns": userns, "cap_add": ADMIN, "devices": ["/dev/kmsg"]}
            with Container(mounts=[f"{node}:/data:ro"], **options) as container:
                sh(container, "mount -o remount,bind,dev /data")
                assert open_(container, "/data/node") == "opened"

    def test_others_are_not_made(self, admin: Container) -> None:
        assert refused(make(admin, "c", *KMSG), "make")
        assert refused(make(admin, "c", 1, 1), "make")  # /dev/mem
        assert refused(make(admin, "b", 240, 7), "make")  # nobody's: so it is not the driver that refuses
        assert refused(make(admin, "b", 1, 3), "make")  # the numbers of null, of the other kind

    @pytest.mark.parametrize("userns", ["host", "auto"])
    @pytest.mark.parametrize(
        "options", [{}, {"measure": False}, {"memory": "64M"}, {"pids": 9}, {"user": "1000"}], ids=str
    )
    def test_others_are_not_opened(
        self, node: Path, options: dict[str, object], userns: Literal["host", "auto"]
    ) -> None:
        with Container(userns=userns, cap_add=ADMIN, mounts=[f"{node}:/data:ro"]) as container:
            sh(container, "mount -o remount,bind,dev /data")
            assert refused(open_(container, "/data/node", **options), "open")
            assert refused(
                said(container, ["sh", "-c", '"$@"', "sh", *python(OPEN, "/data/node")]).strip(), "open"
            )

    def test_without_capabilities_too(self, node: Path) -> None:
        with Container(userns="host", mounts=[f"{node}:/data:ro"]) as container:
            # Two walls: no devices on what is mounted, and these are the numbers of none that is allowed.
            assert open_(container, "/data/node") == f"open {errno.EACCES}"
            assert refused(make(container, "c", *KMSG, "/tmp/node"), "make")

    def test_the_usual_ones_work(self, admin: Container) -> None:
        for number, minor in enumerate((3, 5, 7, 8, 9)):
            assert make(admin, "c", 1, minor, f"/mnt/{number}") == "made"
            sh(admin, f"test -c /mnt/{number} && : < /mnt/{number} && : < /dev/null")
        code = "import pty, os; a, b = pty.openpty(); print(os.ttyname(b)); os.close(os.open('/dev/full', 2))"
        assert said(admin, python(code)).startswith("/dev/pts/")
        result = admin.exec(["sh", "-c", "tty && echo x > /dev/tty"], tty=True)
        assert result.ok

    @pytest.mark.parametrize("path", ["/dev/fuse", "/dev/kmsg", "/dev/loop0"])
    def test_one_more(self, path: str) -> None:
        if not os.path.exists(path):
            pytest.skip(f"no {path}")
        code = "import os, sys; os.close(os.open(sys.argv[1], os.O_WRONLY))"
        with Container(userns="host", devices=[path]) as container:
            said(container, python(code, path))
            assert path in container.explain()

    def test_a_device_inside_is_no_device_outside(self) -> None:
        with Container(userns="host") as container, Container(userns="host", cap_add=ADMIN) as other:
            sh(other, "mount -t tmpfs none /mnt")
            assert refused(make(other, "c", *KMSG), "make")
            sh(container, "echo x > /dev/null")

    def test_it_can_t_be_taken_down_inside(self, admin: Container) -> None:
        # Even by one who may mount the hierarchy: its own group is the top there.
        script = """
        mkdir /tmp/group
        if mount -t cgroup -o devices none /tmp/group 2>/dev/null
        then echo a > /tmp/group/devices.allow
        else mount -t cgroup2 none /tmp/group && echo $$ > /tmp/group/cgroup.procs
        fi 2>/dev/null
        cat /tmp/group/devices.list; ls /tmp/group | grep isobox
        true
        """
        assert "isobox" not in sh(admin, script) and "a *:* rwm" not in sh(admin, script)
        assert refused(make(admin, "c", *KMSG), "make")

    def test_explain_says_so(self, admin: Container) -> None:
        text = admin.explain()
        assert "/dev/null" in text and "held to the devices by" in text
        with Container() as other:
            assert "held to" not in other.explain()


@pytest.mark.requires("user_namespaces")
def test_in_a_user_namespace_the_kernel_is_the_wall(node: Path) -> None:
    all_but_mounting: dict[str, Any] = {"cap_add": ["ALL"], "cap_drop": ["SYS_ADMIN"], "seccomp": None}
    with Container(mounts=[f"{node}:/data:ro"], **all_but_mounting) as container:
        assert "held to" not in container.explain()
        assert refused(make(container, "c", *KMSG, "/tmp/node"), "make")
        assert open_(container, "/data/node") == f"open {errno.EACCES}"
        assert not container.exec(["mount", "-o", "remount,bind,dev", "/data"]).ok


_count = itertools.count()


@pytest.fixture
def groups() -> Iterator[Groups]:
    made = Groups(cgroups.discover(), f"test-{os.getpid()}-{next(_count)}-devices")
    paths = made.paths
    yield made
    made.close()
    assert not [path for path in paths if os.path.exists(path)]


class TestGroups:
    def test_nothing_is_made_for_those_that_need_none(self, groups: Groups) -> None:
        group = groups.container(Limits(pids=None), id="c")
        assert not group.device_control
        if cgroups.discover().controllers["devices"].version == 1:
            assert not any("/devices/" in path and os.path.exists(path) for path in groups.paths)

    def test_what_it_takes_is_shared(self, groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        monkeypatch.setattr(
            Walls, "attach", lambda *args, real=Walls.attach: made.append(args) or real(*args)
        )
        loaded = []
        real = _native.load_device_program
        monkeypatch.setattr(_native, "load_device_program", lambda code: loaded.append(code) or real(code))
        found = [groups.container(Limits(), id=str(n), devices=USUAL).device_control for n in range(3)]
        if made:
            assert len(made) == 3 and len(loaded) == 1 and len(set(found)) == 3
        else:
            assert len(set(found)) == 1
        other = groups.container(Limits(), id="x", devices=USUAL | {Device("c", 10, 229)})
        assert other.device_control not in found

    def test_many_sets_do_not_pile_up(self, groups: Groups) -> None:
        for minor in range(40):
            groups.container(Limits(), id=str(minor), devices=USUAL | {Device("c", 10, minor)}).close()
        assert len(groups.walls._groups) + len(groups.walls._programs) <= 16

    def test_without_a_place_for_it(self, groups: Groups) -> None:
        bare = Groups(CgroupHost("none", {}, swap=False), f"{groups.owner}-n")
        with pytest.raises(UnsupportedError, match="device control") as caught:
            bare.container(Limits(pids=1024), id="c", devices=USUAL)
        assert 'userns="auto"' in caught.value.remedy
        bare.close()

    @pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])
    def test_refused_by_the_kernel(
        self, groups: Groups, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if cgroups.discover().controllers["devices"].version == 1:
            pytest.skip("no BPF here: cgroup v1")

        def refuse(code: bytes) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(_native, "load_device_program", refuse)
        with pytest.raises(UnsupportedError, match="device control") as caught:
            groups.container(Limits(), id="c", devices=USUAL)
        assert 'userns="auto"' in caught.value.remedy and os.strerror(number) in caught.value.why


def test_no_start_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise UnsupportedError("device control", "no", "none")

    monkeypatch.setattr(cgroups.Group, "hold_to", refuse)
    with pytest.raises(UnsupportedError), Container(userns="host"):
        pass
