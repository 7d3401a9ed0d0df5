"""Specs: what they keep, and what they refuse, with the field's name and what would be right."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import SpecError
from isobox.landlock import Landlock
from isobox.spec import UNLIMITED, ContainerSpec, ExecSpec, IoLimit, Limits, Mount

NAN = float("nan")
INFINITY = float("inf")


def test_defaults_are_those_of_the_contract() -> None:
    spec = ContainerSpec.make()
    assert spec == ContainerSpec()
    assert spec.image == "host"
    assert spec.limits == Limits(cpu=None, memory=None, swap=0, pids=1024)
    assert spec.network == "none"
    assert spec.upper == "memory"
    assert spec.userns == "auto"
    assert spec.seccomp == "default"
    assert spec.landlock == "default"
    assert spec.namespaces["pid"] == "private"
    assert spec.namespaces["time"] == "host"


def test_everything_given_is_kept_in_one_form(tmp_path: Path) -> None:
    spec = ContainerSpec.make(
        tmp_path,
        name="job-1",
        hostname="job.example",
        labels={"owner": "me"},
        cpu=1,
        cpu_weight=100,
        cpuset="0-2,5",
        memory="256M",
        swap="1G",
        pids=64,
        io=[IoLimit("/dev/vda", read_bps="10M", write_iops=100)],
        hugetlb={"2M": "64M", 1 << 30: 0},
        disk="1G",
        rlimits={"nofile": 1024, "core": (0, "unlimited"), "stack": "8M"},
        network="host",
        mounts=[f"{tmp_path}:/data/:ro", Mount.tmpfs("/scratch", "1M")],
        env={"NAME": "värde", "EMPTY": ""},
        workdir=PurePosixPath("/work"),
        user=1000,
        read_only=True,
        upper="disk",
        userns="host",
        cap_add=["net_admin", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"],
        cap_drop=("ALL",),
        seccomp=tmp_path / "profile.json",
        landlock=Landlock(write=["/tmp/", "/tmp"]),
        devices=["/dev/fuse", "/dev/fuse"],
        namespaces={"ipc": "host"},
    )
    assert spec.image == str(tmp_path)
    assert spec.limits == Limits(
        cpu=1.0,
        cpu_weight=100,
        cpuset=frozenset({0, 1, 2, 5}),
        memory=256 << 20,
        swap=1 << 30,
        pids=64,
        io=(IoLimit("/dev/vda", read_bps=10 << 20, write_iops=100),),
        hugetlb={2 << 20: 64 << 20, 1 << 30: 0},
    )
    assert spec.with_limits(cpu=2).limits.hugetlb == spec.limits.hugetlb
    assert spec.with_limits(hugetlb=None).limits.hugetlb == {}
    assert spec.disk == 1 << 30
    assert spec.rlimits == {"nofile": (1024, 1024), "core": (0, UNLIMITED), "stack": (8 << 20, 8 << 20)}
    assert [mount.target for mount in spec.mounts] == ["/data", "/scratch"]
    assert spec.mounts[0].read_only
    assert spec.mounts[1].size == 1 << 20
    assert spec.user == "1000"
    assert spec.workdir == "/work"
    assert spec.cap_add == {"CAP_NET_ADMIN", "CAP_SYS_PTRACE"}
    assert spec.cap_drop == {"ALL"}
    assert spec.seccomp == str(tmp_path / "profile.json")
    assert spec.landlock == Landlock(write=["/tmp"])
    assert spec.devices == ("/dev/fuse",)
    assert spec.namespaces["ipc"] == "host"
    assert pickle.loads(pickle.dumps(spec)) == spec


WRONG: list[tuple[str, Any, str]] = [
    ("cpu", 0, "cpu"),
    ("cpu", -1, "cpu"),
    ("cpu", NAN, "cpu"),
    ("cpu", INFINITY, "cpu"),
    ("cpu", True, "cpu"),
    ("cpu", "half", "cpu"),
    ("cpu", "1e3", "cpu"),
    ("cpu", b"1", "cpu"),
    ("cpu", 1e300, "cpu"),
    ("cpu", 1 + 1j, "cpu"),
    ("cpu", [1], "cpu"),
    ("landlock", "none", "landlock"),
    ("landlock", {"read": ["/usr"]}, "landlock"),
    ("landlock", ["/usr"], "landlock"),
    ("cpu_weight", 0, "cpu_weight"),
    ("cpu_weight", 10001, "cpu_weight"),
    ("cpu_weight", 1.5, "cpu_weight"),
    ("cpu_weight", True, "cpu_weight"),
    ("cpuset", "", "cpuset"),
    ("cpuset", "3-1", "cpuset"),
    ("cpuset", "0-99999", "cpuset"),
    ("cpuset", "0;1", "cpuset"),
    ("cpuset", "-1", "cpuset"),
    ("cpuset", [], "cpuset"),
    ("cpuset", [-1], "cpuset"),
    ("cpuset", [1.0], "cpuset"),
    ("cpuset", 3, "cpuset"),
    ("cpuset", b"0", "cpuset"),
    ("memory", "12X", "memory"),
    ("memory", "", "memory"),
    ("memory", "-1M", "memory"),
    ("memory", 0, "memory"),
    ("memory", 17, "memory"),
    ("memory", 1.5, "memory"),
    ("memory", NAN, "memory"),
    ("memory", True, "memory"),
    ("memory", "9999999999T", "memory"),
    ("memory", 2**63, "memory"),
    ("memory", "1" * 5000, "memory"),
    ("memory", "\u0661M", "memory"),
    ("swap", "1M", "swap"),  # without memory
    ("swap", -1, "swap"),
    ("swap", None, "swap"),
    ("pids", 0, "pids"),
    ("pids", -1, "pids"),
    ("pids", 1.0, "pids"),
    ("pids", True, "pids"),
    ("pids", "64", "pids"),
    ("pids", 1024.0, "pids"),
    ("io", "/dev/vda", "io"),
    ("io", ["/dev/vda"], "io"),
    ("io", IoLimit("/dev/vda", read_bps=1), "io"),
    ("disk", 0, "disk"),
    ("disk", "lots", "disk"),
    ("name", "", "name"),
    ("name", "../up", "name"),
    ("name", "a" * 64, "name"),
    ("name", ".hidden", "name"),
    ("name", 3, "name"),
    ("name", "a\n", "name"),
    ("hostname", "a b", "hostname"),
    ("hostname", "a" * 65, "hostname"),
    ("hostname", "", "hostname"),
    ("hostname", "x\n", "hostname"),
    ("labels", ["a"], "labels"),
    ("labels", {"a": 1}, "labels['a']"),
    ("labels", {1: "a"}, "labels"),
    ("rlimits", {"nofiles": 1}, "rlimits"),
    ("rlimits", {"nofile": -2}, "rlimits['nofile']"),
    ("rlimits", {"nofile": (2, 1)}, "rlimits['nofile']"),
    ("rlimits", {"nofile": ("unlimited", 1)}, "rlimits['nofile']"),
    ("rlimits", {"nofile": (1, 2, 3)}, "rlimits['nofile']"),
    ("rlimits", {"nofile": "1K"}, "rlimits['nofile']"),
    ("rlimits", {"nofile": True}, "rlimits['nofile']"),
    ("rlimits", [("nofile", 1)], "rlimits"),
    ("network", "bridged", "network"),
    ("network", None, "network"),
    ("network", ["none"], "network"),
    ("mounts", "/a:/b", "mounts"),
    ("mounts", ["a"], "mounts"),
    ("mounts", ["/a:/b:rx"], "mounts"),
    ("mounts", ["/a:/b:ro:ro"], "mounts"),
    ("mounts", ["a/b:/c"], "mounts.source"),
    ("mounts", ["/a:b"], "mounts.target"),
    ("mounts", ["/a:/b/../../c"], "mounts.target"),
    ("mounts", ["/a:/"], "mounts.target"),
    ("mounts", ["/a:"], "mounts.target"),
    ("mounts", [":/b"], "mounts"),
    ("mounts", ["/a\0:/b"], "mounts.source"),
    ("mounts", ["/a:/b\0"], "mounts.target"),
    ("mounts", ["/a:/x", "/b:/x/"], "mounts"),
    ("mounts", [3], "mounts"),
    ("mounts", 3, "mounts"),
    ("env", {"A=B": "c"}, "env"),
    ("env", {"": "c"}, "env"),
    ("env", {"A": 3}, "env['A']"),
    ("env", {"A": "a\0b"}, "env['A']"),
    ("env", {"A\0": "a"}, "env"),
    ("env", {"A": "\ud800"}, "env['A']"),
    ("env", ["A=B"], "env"),
    ("env", "A=B", "env"),
    ("workdir", "work", "workdir"),
    ("workdir", "", "workdir"),
    ("workdir", "/a\0", "workdir"),
    ("workdir", b"/a", "workdir"),
    ("user", "", "user"),
    ("user", ":", "user"),
    ("user", "a:", "user"),
    ("user", "a:b:c", "user"),
    ("user", "a b", "user"),
    ("user", "-1", "user"),
    ("user", -1, "user"),
    ("user", 2**32 - 1, "user"),
    ("user", "4294967295", "user"),
    ("user", 1.0, "user"),
    ("user", True, "user"),
    ("read_only", 1, "read_only"),
    ("upper", "ram", "upper"),
    ("userns", "private", "userns"),
    ("cap_add", "NET_ADMIN", "cap_add"),
    ("cap_add", ["NET ADMIN"], "cap_add"),
    ("cap_add", [21], "cap_add"),
    ("cap_drop", ["CAP_"], "cap_drop"),
    ("cap_drop", {"ALL": True}, "cap_drop"),
    ("seccomp", "", "seccomp"),
    ("seccomp", "unconfined", "seccomp"),
    ("seccomp", False, "seccomp"),
    ("seccomp", "a\0", "seccomp"),
    ("devices", "/dev/fuse", "devices"),
    ("devices", ["/etc/passwd"], "devices"),
    ("devices", ["/dev/../etc/passwd"], "devices"),
    ("devices", ["fuse"], "devices"),
    ("devices", ["/dev"], "devices"),
    ("hugetlb", "2M=64M", "hugetlb"),
    ("hugetlb", {"3M": "64M"}, "hugetlb"),
    ("hugetlb", {"4096": "64M"}, "hugetlb"),
    ("hugetlb", {"huge": "64M"}, "hugetlb"),
    ("hugetlb", {"2M": "64M", 2 << 20: "1G"}, "hugetlb"),
    ("hugetlb", {"2M": -1}, "hugetlb['2M']"),
    ("hugetlb", {"2M": None}, "hugetlb['2M']"),
    ("namespaces", {"net": "host"}, "namespaces"),
    ("namespaces", {"ipc": "shared"}, "namespaces['ipc']"),
    ("namespaces", "host", "namespaces"),
    ("image", "", "image"),
    ("image", "a\0b", "image"),
    ("image", 3, "image"),
    ("image", None, "image"),
]


@pytest.mark.parametrize(("option", "value", "field"), WRONG, ids=lambda value: repr(value)[:30])
def test_wrong_values_name_the_field_and_what_would_be_right(option: str, value: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        ContainerSpec.make(**{option: value})
    assert caught.value.field == field
    assert caught.value.expected
    assert str(caught.value).startswith(f"{field}=")


EXEC_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"args": "echo hello"}, "args"),
    ({"args": ""}, "args"),
    ({"args": b"echo"}, "args"),
    ({"args": Path("/bin/echo")}, "args"),
    ({"args": []}, "args"),
    ({"args": ()}, "args"),
    ({"args": None}, "args"),
    ({"args": {"echo"}}, "args"),
    ({"args": iter(["echo"])}, "args"),
    ({"args": ["sleep", 1]}, "args[1]"),
    ({"args": ["sleep", None]}, "args[1]"),
    ({"args": ["", "a"]}, "args[0]"),
    ({"args": ["echo", "a\0b"]}, "args[1]"),
    ({"args": ["echo", b"a\0b"]}, "args[1]"),
    ({"args": ["echo", "\ud800"]}, "args[1]"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": NAN}, "timeout"),
    ({"timeout": INFINITY}, "timeout"),
    ({"timeout": True}, "timeout"),
    ({"timeout": "soon"}, "timeout"),
    ({"timeout": "3 weeks"}, "timeout"),
    ({"timeout": 1e12}, "timeout"),
    ({"cpu_time": 0}, "cpu_time"),
    ({"cpu_time": "x"}, "cpu_time"),
    ({"output_limit": -1}, "output_limit"),
    ({"output_limit": "16Q"}, "output_limit"),
    ({"memory": 1}, "memory"),
    ({"pids": 0}, "pids"),
    ({"tty": 1}, "tty"),
    ({"measure": None}, "measure"),
    ({"text": "yes"}, "text"),
    ({"text": 1}, "text"),
    ({"encoding": "klingon"}, "encoding"),
    ({"encoding": "hex"}, "encoding"),
    ({"encoding": "a\0"}, "encoding"),
    ({"encoding": 8}, "encoding"),
    ({"errors": "panic"}, "errors"),
    ({"errors": 3}, "errors"),
    ({"env": {"A=B": "c"}}, "env"),
    ({"workdir": "here"}, "workdir"),
    ({"user": "a:b:c"}, "user"),
]


@pytest.mark.parametrize(("options", "field"), EXEC_WRONG, ids=lambda value: repr(value)[:40])
def test_wrong_execs_name_the_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        ExecSpec.make(**{"args": ["true"], **options})
    assert caught.value.field == field


def test_a_bare_string_as_args_is_told_how_to_write_it() -> None:
    with pytest.raises(SpecError, match=r"\['echo', 'hello world'\]|\['echo', 'hello', 'world'\]"):
        ExecSpec.make("echo hello world")


def test_exec_keeps_what_is_given() -> None:
    spec = ExecSpec.make(
        ["cat", b"\xff", Path("/tmp/ä"), "\udcff"],
        timeout="250ms",
        cpu_time=2,
        output_limit=None,
        memory="64M",
        pids=3,
        encoding="utf-8",
        user="nobody",
        env={},
        measure=False,
    )
    assert spec.args == (b"cat", b"\xff", "/tmp/ä".encode(), b"\xff")
    assert (spec.timeout, spec.cpu_time, spec.output_limit) == (0.25, 2.0, None)
    assert (spec.memory, spec.pids, spec.user, spec.env) == (64 << 20, 3, "nobody", {})
    assert spec.text is True
    assert spec.measure is False
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_exec_defaults() -> None:
    spec = ExecSpec.make(("true",))
    assert spec == ExecSpec((b"true",))
    assert spec.output_limit == 16 << 20
    assert ExecSpec.make(["true"], text=None).text is False
    assert ExecSpec.make(["true"], errors="replace").text is True
    assert ExecSpec.make(["true"], output_limit=0).output_limit == 0


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1))
def test_args_round_trip(args: list[str]) -> None:
    args = ["true", *args]
    assert [arg.decode() for arg in ExecSpec.make(args).args] == args


@given(st.lists(st.text() | st.binary(), min_size=1))
def test_args_never_carry_a_nul(args: list[str | bytes]) -> None:
    try:
        spec = ExecSpec.make(args)
    except SpecError:
        return
    assert len(spec.args) == len(args)
    assert not any(b"\0" in arg for arg in spec.args)


def test_limits_change_one_at_a_time() -> None:
    limits = Limits.make(cpu=Fraction(1, 2), memory="1G", swap="1M")
    changed = limits.changed(memory="2G", cpuset=[1])
    assert changed == Limits(cpu=0.5, memory=2 << 30, swap=1 << 20, cpuset=frozenset({1}))
    assert limits.changed(cpu=None).cpu is None
    assert limits.changed() == limits
    with pytest.raises(SpecError, match="memory"):
        limits.changed(memory="x")
    with pytest.raises(SpecError, match="expected one of cpu, "):
        limits.changed(disk=1)
    assert ContainerSpec.make(name="a").with_limits(pids=3).limits.pids == 3


def test_io_limits() -> None:
    limit = IoLimit(Path("/dev/vda"), read_bps="1M")
    assert limit.device == "/dev/vda"
    assert limit == IoLimit("/dev/vda", read_bps=1 << 20)
    assert pickle.loads(pickle.dumps(limit)) == limit
    for wrong in ({}, {"read_bps": 0}, {"write_iops": 1.5}, {"read_iops": "1K"}, {"write_bps": "x"}):
        with pytest.raises(SpecError, match="^io"):
            IoLimit("/dev/vda", **wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"io\.device"):
        IoLimit("", read_bps=1)


def test_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Mount.bind("data", "//data//") == Mount("bind", str(tmp_path / "data"), "/data", False, None)
    assert Mount.parse("./a:/b:rw") == Mount("bind", str(tmp_path / "a"), "/b", False, None)
    assert Mount.parse("a.b-c:/b:ro") == Mount("volume", "a.b-c", "/b", True, None)
    assert Mount.parse("/b/") == Mount("volume", None, "/b", False, None)
    assert Mount.tmpfs(PurePosixPath("/t")) == Mount("tmpfs", None, "/t", False, None)
    for call in (
        lambda: Mount.tmpfs("t"),
        lambda: Mount.tmpfs("/t", 0),
        lambda: Mount.tmpfs("/t", "1X"),
        lambda: Mount.bind("", "/a"),
        lambda: Mount.bind("/a", "/a", read_only=1),  # type: ignore[arg-type]
        lambda: Mount.bind(3, "/a"),  # type: ignore[arg-type]
        lambda: Mount.parse(3),  # type: ignore[arg-type]
        lambda: Mount.volume("../a", "/a"),
        lambda: Mount.volume("", "/a"),
        lambda: Mount.volume(".lock", "/a"),
        lambda: Mount.volume("n" * 129, "/a"),
        lambda: Mount.volume(None, "/a", read_only=True),
        lambda: Mount.parse("a/b:/c"),
        lambda: Mount.parse(":/c"),
    ):
        with pytest.raises(SpecError, match="^mounts"):
            call()


def test_specs_are_frozen() -> None:
    for value in (ContainerSpec.make(), ExecSpec.make(["true"]), Limits(), Mount.tmpfs("/t")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            value.limits = None  # type: ignore[union-attr, misc, assignment]


def test_specs_do_not_share_what_can_change() -> None:
    given_env = {"A": "1"}
    spec = ContainerSpec.make(env=given_env)
    given_env["A"] = "2"
    assert spec.env == {"A": "1"}
    assert ContainerSpec.make().namespaces is not ContainerSpec.make().namespaces
