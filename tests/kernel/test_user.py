"""Users of a container: by name and number, as its own files know them; and what they may do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isobox
from isobox import STDOUT, Container, ExecError, SpecError, UnsupportedError
from programs import python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

RANGES = pytest.mark.requires("id_ranges")
IDS = "id -u; id -g; id -G"


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container() as container:
        yield container


def test_root_unless_asked(box: Container) -> None:
    assert sh(box, IDS) == "0\n0\n0\n"
    for user in ("root", "0", 0, "0:0", "root:root"):
        assert sh(box, IDS, user=user) == "0\n0\n0\n"


@RANGES
def test_by_name(box: Container) -> None:
    passwd = dict(line.split(":", 1) for line in sh(box, "cat /etc/passwd").splitlines())
    uid, gid = passwd["nobody"].split(":")[1:3]
    assert sh(box, "id -u; id -g; id -un", user="nobody") == f"{uid}\n{gid}\nnobody\n"


@RANGES
@pytest.mark.parametrize(
    ("user", "expected"),
    [(1234, "1234 0 0"), ("1234", "1234 0 0"), ("12:34", "12 34 34"), ("0:34", "0 34 34")],
)
def test_by_number(box: Container, user: str | int, expected: str) -> None:
    assert sh(box, IDS, user=user).split() == expected.split()


@RANGES
def test_of_the_container_and_of_an_exec() -> None:
    with Container(user="1000:1000") as container:
        assert sh(container, IDS).split() == ["1000", "1000", "1000"]
        assert sh(container, "id -u", user="root") == "0\n"
        assert sh(container, "id -u", user=33) == "33\n"


@RANGES
def test_groups_of_the_image(tmp_path: Path) -> None:
    with Container() as container:
        container.write_text("/tmp/passwd", "app:x:500:600:App:/srv/app:/bin/sh\n")
        container.write_text("/tmp/group", "app:x:600:\nweb:x:700:app,other\nnot:x:800:other\n")
        passwd, group = container.read_text("/tmp/passwd"), container.read_text("/tmp/group")
    (tmp_path / "passwd").write_text(passwd)
    (tmp_path / "group").write_text(group)
    mounts = [f"{tmp_path}/passwd:/etc/passwd:ro", f"{tmp_path}/group:/etc/group:ro"]
    with Container(mounts=mounts) as container:
        assert sh(container, IDS + "; echo $HOME", user="app") == "500\n600\n600 700\n/srv/app\n"
        assert sh(container, IDS, user="app:web") == "500\n700\n700\n"
        assert sh(container, IDS, user="500") == "500\n600\n600 700\n"
        assert sh(container, IDS, user="app:900") == "500\n900\n900\n"


def test_unknown(box: Container) -> None:
    for user in ("nosuch-user", "nosuch:0", "root:nosuch-group"):
        with pytest.raises(SpecError) as caught:
            box.exec(["true"], user=user)
        assert caught.value.field == "user" and user in str(caught.value)
    with Container(user="nosuch-user") as container:
        with pytest.raises(SpecError) as caught:
            container.exec(["true"])
        assert caught.value.field == "user"
        assert container.exec(["true"], user="root").ok


@pytest.mark.parametrize(
    "user", ["", ":", "a:", ":b", "-x", "a b", "a:b:c", "a/b", -1, 2**32, "4294967295", 1.5, True]
)
def test_what_is_no_user(box: Container, user: object) -> None:
    for call in (lambda: box.exec(["true"], user=user), lambda: Container(user=user)):
        with pytest.raises(SpecError) as caught:
            call()  # type: ignore[no-untyped-call]
        assert caught.value.field == "user"


def test_an_id_that_the_container_has_not(box: Container) -> None:
    with pytest.raises(UnsupportedError) as caught:
        box.exec(["true"], user="4000000:0")
    assert "4000000" in str(caught.value) and "subuid" in caught.value.remedy
    assert box.exec(["true"]).ok


@RANGES
def test_a_user_has_no_capabilities(box: Container) -> None:
    status = sh(box, "grep ^Cap /proc/self/status", user="1000")
    sets = dict(line.split(":\t") for line in status.splitlines())
    assert set(sets) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    assert [int(sets[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
    assert not box.exec(["sh", "-c", "chown 0 /tmp"], user="1000").ok


@RANGES
def test_files_belong_to_their_users(box: Container) -> None:
    sh(box, "echo secret > /tmp/roots; chmod 600 /tmp/roots")
    assert not box.exec(["cat", "/tmp/roots"], user="1000").ok
    sh(box, "echo mine > /tmp/theirs", user="1000:1000")
    assert sh(box, "stat -c %u:%g /tmp/theirs; cat /tmp/theirs") == "1000:1000\nmine\n"
    assert not box.exec(["rm", "/tmp/theirs"], user="1001").ok  # sticky


@RANGES
def test_a_directory_that_is_closed_to_the_user(box: Container) -> None:
    sh(box, "mkdir -m 700 /tmp/closed")
    with pytest.raises(ExecError, match="workdir /tmp/closed") as caught:
        box.exec(["true"], user="1000", workdir="/tmp/closed")
    assert caught.value.hint


@RANGES
def test_a_program_that_is_closed_to_the_user(box: Container) -> None:
    sh(box, "cp /bin/true /tmp/closed-program; chmod 700 /tmp/closed-program")
    with pytest.raises(ExecError):
        box.exec(["/tmp/closed-program"], user="1000")


def test_dropped_and_added_capabilities() -> None:
    def effective(container: Container) -> int:
        return int(sh(container, "grep ^CapEff /proc/self/status").split()[1], 16)

    with Container() as container:
        usual = effective(container)
    with Container(cap_drop=["ALL"]) as container:
        assert effective(container) == 0
        assert sh(container, "grep ^CapBnd /proc/self/status").split()[1] == "0" * 16
        assert not container.exec(["chown", "1", "/tmp"]).ok
    with Container(cap_drop=["CHOWN"]) as container:
        assert usual & ~effective(container) == 1 << 0
    with Container(cap_add=["cap_net_admin"]) as container:
        assert effective(container) & ~usual == 1 << 12
    with Container(cap_add=["ALL"]) as container:
        assert effective(container) & usual == usual and effective(container) >> 21 & 1


def test_unknown_capabilities() -> None:
    with pytest.raises(isobox.IsoboxError) as caught:
        Container(cap_add=["NOSUCH"]).start()
    assert "NOSUCH" in str(caught.value)


FILTERS = "grep -E '^(Seccomp|Seccomp_filters|NoNewPrivs):' /proc/self/status"


@pytest.mark.requires("seccomp")
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"user": "65534"}, marks=pytest.mark.requires("id_ranges")),
        {"tty": True},
        {"measure": False},
    ],
    ids=str,
)
def test_one_filter_for_each_program(options: dict[str, Any]) -> None:
    """The first program installs it; the others may be born with it. This process may have filters too."""
    own = re.search(r"^Seccomp_filters:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    count = str(int(own[1]) + 1) if own else "1"
    with Container() as container:
        for _ in range(4):
            said = container.exec(["sh", "-c", FILTERS], text=True, **options).stdout
            assert said.split() == ["NoNewPrivs:", "1", "Seccomp:", "2", "Seccomp_filters:", count]
            assert container.exec(["unshare", "--net", "true"], **options).returncode != 0


@pytest.mark.requires("seccomp", "cgroup_pids")
def test_the_filter_takes_no_process_from_a_few() -> None:
    """Of so few each counts: one is isobox-init's, the others are the programs'."""
    with Container(pids=3) as container:
        for _ in range(4):
            assert container.exec(["sh", "-c", "true & wait"]).ok
        assert container.exec(["sh", "-c", "true & true & wait"], stderr=STDOUT, text=True).stdout != ""


@pytest.mark.requires("seccomp")
def test_seccomp() -> None:
    # keyctl and a new user namespace are what the default profile refuses and nothing else does.
    code = "import ctypes as c; print(c.CDLL(None, use_errno=True).unshare(0x10000000), c.get_errno())"
    plain = [python("")[0], "-I", "-c", code]
    with Container() as container:
        assert sh(container, "grep ^Seccomp: /proc/self/status").split()[1] == "2"
        assert said(container, plain) == "-1 1\n"
    with Container(seccomp=None) as container:
        assert sh(container, "grep ^Seccomp: /proc/self/status").split()[1] in ("0", "2")
        assert said(container, plain) == "0 0\n"
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}],
    }
    with Container(seccomp=profile) as container:
        assert said(container, plain) == "-1 77\n"


def test_home(box: Container) -> None:
    assert sh(box, "cd; pwd; touch ~/file") == "/root\n"
