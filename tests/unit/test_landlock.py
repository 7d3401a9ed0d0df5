"""Landlock's rules: what is asked for, what the kernel is given for it, and what a kernel can't do."""

from __future__ import annotations

import errno
import pickle
import struct
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import SpecError, UnsupportedError
from isobox.landlock import Landlock
from isobox.plan.exec import User, exec_ops, filter_plan
from isobox.plan.ops import describe, encode, make
from isobox.plan.parts import Setup
from isobox.plan.setup import setup_plan
from isobox.security import landlock
from isobox.security.landlock import Ruleset, container_scope, port_filter, ruleset
from isobox.security.paths import Covers

NEWEST = 7


class TestSpec:
    def test_one_form(self) -> None:
        rules = Landlock(
            read=["/usr", "/usr/", PurePosixPath("/etc")],
            write=(),
            execute=iter(["/"]),
            connect_tcp=[443, 80, 443],
            bind_tcp=range(2),
            scope=["signal", "signal"],
        )
        assert rules.read == ("/usr", "/etc") and rules.write == () and rules.execute == ("/",)
        assert rules.ioctl_dev is None
        assert rules.connect_tcp == (443, 80) and rules.bind_tcp == (0, 1) and rules.scope == ("signal",)
        assert pickle.loads(pickle.dumps(rules)) == rules and hash(rules)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("read", "/usr"),
            ("read", ["usr"]),
            ("write", ["/tmp/../etc"]),
            ("write", ["/tmp\0"]),
            ("execute", [1]),
            ("execute", {"/usr": True}),
            ("ioctl_dev", b"/dev"),
            ("connect_tcp", 443),
            ("connect_tcp", "443"),
            ("connect_tcp", ["443"]),
            ("connect_tcp", [0]),
            ("bind_tcp", [65536]),
            ("bind_tcp", [-1]),
            ("bind_tcp", [True]),
            ("scope", "signal"),
            ("scope", ["ptrace"]),
            ("scope", [1]),
        ],
    )
    def test_what_makes_no_sense(self, name: str, value: Any) -> None:
        with pytest.raises(SpecError) as caught:
            Landlock(**{name: value})
        assert caught.value.field == f"landlock.{name}"


class TestRuleset:
    def test_nothing_asked(self) -> None:
        for value in (None, "default", Landlock(), Landlock(scope=[])):
            assert ruleset(value, 0) is None  # type: ignore[arg-type]

    def test_paths(self) -> None:
        assert ruleset(Landlock(write=["/tmp"]), 3) == Ruleset(0x7FF2, 0, 0, (("/tmp", 0x7FF2),), ())
        # One rule a path, and names are left alone where writing is.
        assert ruleset(Landlock(read=["/usr"], execute=["/usr"]), 3) == Ruleset(
            0x200D, 0, 0, (("/usr", 0xD), ("/", 0x2000)), ()
        )
        assert ruleset(Landlock(read=["/"]), 3) == Ruleset(0x200C, 0, 0, (("/", 0x200C),), ())
        assert ruleset(Landlock(write=[]), 3) == Ruleset(0x7FF2, 0, 0, (), ())

    def test_ports_and_scopes(self) -> None:
        found = ruleset(Landlock(connect_tcp=[443, 80], bind_tcp=[80], scope=["signal"]), NEWEST)
        assert found == Ruleset(0, 3, 2, (), ((443, 2), (80, 3)))
        assert ruleset(Landlock(bind_tcp=[]), 4) == Ruleset(0, 1, 0, (), ())

    @pytest.mark.parametrize(
        ("asked", "abi", "version"),
        [
            ({"read": ["/"]}, 3, "6.2"),
            ({"write": []}, 3, "6.2"),
            ({"execute": ["/"]}, 3, "6.2"),
            ({"connect_tcp": []}, 4, "6.7"),
            ({"bind_tcp": [1]}, 4, "6.7"),
            ({"ioctl_dev": []}, 5, "6.10"),
            ({"scope": ["signal"]}, 6, "6.12"),
            ({"scope": ["abstract-unix"], "read": ["/"]}, 6, "6.12"),
        ],
    )
    def test_what_a_kernel_cannot_do(self, asked: dict[str, Any], abi: int, version: str) -> None:
        rules = Landlock(**asked)
        assert ruleset(rules, abi) is not None and ruleset(rules, NEWEST + 1) is not None
        for older in range(abi):
            with pytest.raises(UnsupportedError) as caught:
                ruleset(rules, older)
            error = caught.value
            assert error.feature.startswith("landlock.")
            assert f"boot Linux {version} " in error.remedy
            assert (f"with ABI {older}" if older else "does not offer Landlock") in error.why

    def test_paths_in_proc(self) -> None:
        for wrong in (Landlock(read=["/proc"]), Landlock(write=["/", "/tmp"], execute=["/proc/self"])):
            with pytest.raises(UnsupportedError, match="cgroups"):
                landlock.refuse_proc(wrong)
        for right in (None, "default", Landlock(read=["/proc", "/"], write=["/processes"], scope=["signal"])):
            landlock.refuse_proc(right)  # type: ignore[arg-type]

    def test_the_containers_own_scope(self) -> None:
        for value in ("default", Landlock(write=[])):
            assert container_scope(value, "host", 6) == 1  # type: ignore[arg-type]
            assert container_scope(value, "host", 5) == 0  # type: ignore[arg-type]
            assert container_scope(value, "none", 6) == 0  # type: ignore[arg-type]
        for off in (None, Landlock(scope=[]), Landlock(scope=["signal"])):
            assert container_scope(off, "host", 6) == 0


class TestPlan:
    def test_setup(self) -> None:
        rules = Ruleset(0x200D, 3, 2, (("/usr", 0xD), ("/", 0x2000)), ((443, 2), (80, 3)))
        ops = setup_plan(Setup(None, (), 0, (), (), 1, rules))
        assert [describe(op).split(None, 1) for op in ops] == [
            ["landlock-ruleset", "scopes 0x1"],
            ["landlock-restrict", "the container as a whole"],
            ["landlock-ruleset", "for each program: fs 0x200d, net 0x3, scopes 0x2"],
            ["landlock-path", "/usr (read, execute)"],
            ["landlock-path", "/ (refer)"],
            ["landlock-port", "TCP 443: connect"],
            ["landlock-port", "TCP 80: bind, connect"],
        ]
        assert setup_plan(Setup(None, (), 0, (), ())) == []

    def test_exec(self) -> None:
        """After all that mounts, before the filters, which may forbid it."""
        ops = exec_ops(
            joins=1, user=User(1, 1), groups_allowed=True, rlimits={7: (1, 1)}, filters=(b"1" * 8, b"2" * 8),
            workdir="/tmp", tty=True, landlock=True, own_proc=Covers((), ()),
        )  # fmt: skip
        assert [op.name for op in ops[-3:]] == ["LANDLOCK_RESTRICT", "SECCOMP", "SECCOMP"]
        assert ops[-3].args == (0,)  # the ruleset is for the next one too
        assert filter_plan((b"1" * 8,)) == encode([make("SECCOMP", strings=(b"1" * 8,))])


def decide(program: bytes, arch: int, number: int, *args: int) -> int:
    """What a filter says of a call: its instructions one by one (Documentation/networking/filter.rst)."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    steps = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, k)
        elif code == 0x06:
            return int(k) & 0xFFFF if k >> 16 == 5 else 0
        else:
            at += yes if {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code] else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
class TestPortFilter:
    MPTCP, FAST = 262, 0x20000000

    def test_what_goes_around_landlock(self, machine: str) -> None:
        arch, socket, sendto, sendmsg, sendmmsg = landlock._MACHINES[machine]
        program = port_filter(machine)
        for call, expected in {
            (socket, 2, 1, self.MPTCP): errno.EPROTONOSUPPORT,
            (socket, 10, 1 | 0o2000000, self.MPTCP): errno.EPROTONOSUPPORT,
            (socket, 2, 1, 256): errno.EPROTONOSUPPORT,
            (socket, 43, 1, 0): errno.EPROTONOSUPPORT,
            (socket, 2 | 1 << 32, 1, self.MPTCP | 1 << 32): errno.EPROTONOSUPPORT,  # the kernel takes an int
            (sendto, 3, 0, 1, self.FAST): errno.EOPNOTSUPP,
            (sendto, 3, 0, 1, self.FAST | 0x4000): errno.EOPNOTSUPP,
            (sendmsg, 3, 0, self.FAST): errno.EOPNOTSUPP,
            (sendmmsg, 3, 0, 1, self.FAST): errno.EOPNOTSUPP,
            (425, 1, 0): errno.ENOSYS,
            (socket, 2, 1, 6): 0,
            (socket, 1, 1, 0): 0,
            (sendto, 3, 0, self.FAST, 0x4000): 0,
            (sendmsg, 3, 0, 0, self.FAST): 0,
            (sendmmsg, 3, 0, self.FAST, 0): 0,
            (0, 3, 0, self.FAST, self.FAST): 0,
        }.items():
            assert decide(program, arch, *call) == expected, call

    def test_calls_of_other_kinds(self, machine: str) -> None:
        arch, socket, *_ = landlock._MACHINES[machine]
        assert decide(port_filter(machine), arch ^ 1, socket, 2, 1, 0) == errno.ENOSYS
        assert decide(port_filter(machine), arch, 0x40000000 | socket, 2, 1, 0) == errno.ENOSYS

    @given(number=st.integers(0, 600), args=st.lists(st.integers(0, 255), min_size=6, max_size=6))
    def test_nothing_else(self, machine: str, number: int, args: list[int]) -> None:
        arch, socket, *_ = landlock._MACHINES[machine]
        if number not in (425, socket):
            assert decide(port_filter(machine), arch, number, *args) == 0
