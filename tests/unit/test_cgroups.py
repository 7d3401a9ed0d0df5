"""Cgroups without a kernel: parsing what /proc says, finding the own group, converting limits."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.cgroups import convert
from isobox.cgroups.devices import Device, program
from isobox.cgroups.discovery import CgroupMount, Membership, locate, parse_memberships, parse_mounts
from isobox.errors import CgroupError, UnsupportedError
from isobox.worker import Worker

V1_CGROUP = b"""12:cpu,cpuacct:/user.slice
11:pids:/user.slice/user-1000.slice/session-1.scope
9:name=systemd:/user.slice/user-1000.slice/session-1.scope
1:memory:/a:b,c
"""
V1_MOUNTS = rb"""25 30 0:22 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
27 25 0:24 / /sys/fs/cgroup/systemd rw,nosuid shared:10 - cgroup cgroup rw,xattr,name=systemd
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
33 25 0:29 /docker/0123 /sys/fs/cgroup/pids\040of\134us ro,nosuid master:17 - cgroup cgroup rw,pids
35 25 0:31 /../.. /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""
HYBRID_MOUNTS = (
    V1_MOUNTS + b"26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
)
V2_MOUNTS = b"""22 1 0:20 / / rw,relatime - ext4 /dev/sda rw
24 22 0:22 / /sys/fs/cgroup rw,nosuid,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""


def test_memberships_v1() -> None:
    found = parse_memberships(V1_CGROUP)
    assert found[0] == Membership(12, ("cpu", "cpuacct"), "/user.slice")
    assert found[2].controllers == ("name=systemd",)
    assert found[3].path == "/a:b,c"
    assert not any(each.unified for each in found)


def test_memberships_v2_and_hybrid() -> None:
    assert parse_memberships(b"0::/init.scope\n") == (Membership(0, (), "/init.scope"),)
    assert parse_memberships(V1_CGROUP + b"0::/x\n")[-1].unified


@pytest.mark.parametrize("text", [b"", b"\n", b"nonsense\n", b"x:y:/z\n", b"1:pids\n"])
def test_memberships_of_nonsense(text: bytes) -> None:
    assert parse_memberships(text) == ()


def test_mounts_v1() -> None:
    found = parse_mounts(V1_MOUNTS)
    assert [mount.version for mount in found] == [1, 1, 1, 1]
    assert found[1].options >= {"cpu", "cpuacct"}
    assert found[1].device == os.makedev(0, 27)
    pids = found[2]
    assert pids.point == "/sys/fs/cgroup/pids of\\us"
    assert pids.root == "/docker/0123"
    assert pids.read_only
    assert not found[1].read_only


def test_mounts_v2_and_hybrid() -> None:
    assert [mount.version for mount in parse_mounts(HYBRID_MOUNTS)] == [1, 1, 1, 1, 2]
    (only,) = parse_mounts(V2_MOUNTS)
    assert only.version == 2
    assert only.point == "/sys/fs/cgroup"


def mount(root: str, point: str = "/sys/fs/cgroup/pids") -> CgroupMount:
    return CgroupMount(1, frozenset({"pids"}), root, point, False, 0)


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/", "/", "/sys/fs/cgroup/pids"),
        ("/a/b", "/", "/sys/fs/cgroup/pids/a/b"),
        ("/docker/0123", "/docker/0123", "/sys/fs/cgroup/pids"),
        ("/docker/0123/x", "/docker/0123", "/sys/fs/cgroup/pids/x"),
        ("/docker/01234", "/docker/0123", None),
        ("/elsewhere", "/docker/0123", None),
        ("/../sibling", "/", None),
    ],
)
def test_locate(path: str, root: str, expected: str | None) -> None:
    assert locate(path, mount(root)) == expected


names = st.text(
    st.characters(blacklist_characters="\n\0/", blacklist_categories=("Cs",)), min_size=1, max_size=20
)


@given(st.lists(names.filter(lambda name: name not in (".", "..")), max_size=4))
def test_any_path_is_found_again(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    (found,) = parse_memberships(b"4:pids:" + path.encode() + b"\n")
    assert found.path == path
    assert locate(path, mount("/")) == os.path.normpath("/sys/fs/cgroup/pids/" + path)


@given(names)
def test_escapes_of_mount_points(name: str) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\\" else bytes((byte,)) for byte in name.encode())
    (found,) = parse_mounts(b"1 2 0:3 / /m/" + escaped + b" rw - cgroup cgroup rw,pids\n")
    assert found.point == "/m/" + name


@given(st.binary(max_size=200))
def test_no_text_breaks_the_parsers(text: bytes) -> None:
    parse_memberships(text)
    convert.parse_flat(text)
    convert.parse_service(text)
    convert.parse_pressure(text)


@given(st.integers(1, 10000))
def test_weight_and_back(weight: int) -> None:
    shares = convert.weight_to_shares(weight)
    assert 2 <= shares <= 262144
    assert convert.shares_to_weight(shares) == weight


@given(st.integers(1, 9999))
def test_a_larger_weight_is_never_fewer_shares(weight: int) -> None:
    assert convert.weight_to_shares(weight) < convert.weight_to_shares(weight + 1)


@given(st.integers(2, 262144))
def test_shares_become_a_weight(shares: int) -> None:
    assert 1 <= convert.shares_to_weight(shares) <= 10000


@given(st.floats(0.001, 8192))
def test_quota(cores: float) -> None:
    quota, period = convert.cpu_quota(cores)
    assert quota >= 1000
    assert 1000 <= period <= 1_000_000
    assert abs(quota / period - cores) <= 0.5 / period + 1e-12
    if cores >= 0.01:
        assert period == 100_000


@given(st.integers(0, 2**62))
def test_whole_pages(size: int) -> None:
    kept = convert.whole_pages(size)
    assert kept <= size < kept + convert.PAGE
    assert kept % convert.PAGE == 0


@given(st.frozensets(st.integers(0, 8191)))
def test_ranges(numbers: frozenset[int]) -> None:
    assert convert.parse_ranges(convert.format_ranges(numbers).encode() + b"\n") == numbers


@given(st.integers(0, 2**50), st.integers(0, 2**40), st.integers(0, 2**40))
def test_split_cpu_time(total: int, user: int, system: int) -> None:
    parts = convert.split_cpu_time(total, user, system)
    assert sum(parts) == total
    assert min(parts) >= 0


@pytest.mark.parametrize(
    "text", [b"x", b"1-", b"-1", b"3-1", b"1,1", b"2,0", b"0-99999999999", b"9" * 5000, "²".encode(), b"1;2"]
)
def test_ranges_that_are_none(text: bytes) -> None:
    with pytest.raises(CgroupError, match="does not write"):
        convert.parse_ranges(text)


@pytest.mark.parametrize("text", [b"", b"max", b"1 2", b"0x1", b"1_0", b"--1", b"9" * 5000, "²".encode()])
def test_numbers_that_are_none(text: bytes) -> None:
    with pytest.raises(CgroupError, match="does not write"):
        convert.parse_number(text)


@given(st.integers(-(2**63), 2**64 - 1))
def test_numbers(number: int) -> None:
    assert convert.parse_number(b"%d\n" % number) == number


def test_numbers_without_end_are_left_out() -> None:
    digits = b"9" * 5000
    assert convert.parse_flat(b"a %b\nb 1\n" % digits) == {"b": 1}
    assert convert.parse_io_max(b"254:0 rbps=%b wbps=1\n" % digits) == {"254:0": {"wbps": 1}}
    assert convert.parse_service(b"254:0 Read %b\n" % digits) is None
    assert convert.parse_pressure(b"some avg10=0 total=%b\n" % digits) is None


def test_service_bytes() -> None:
    text = b"8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:16 Read 1\n8:16 Write 2\nTotal 33\n"
    assert convert.parse_service(text) == (11, 22)
    assert convert.parse_service(b"Total 0\n") is None


def test_io_max() -> None:
    text = b"8:0 rbps=max wbps=1048576 riops=max wiops=100\n8:16 rbps=1 wbps=max riops=max wiops=max\n"
    found = convert.parse_io_max(text)
    assert found["8:0"] == {"rbps": None, "wbps": 1048576, "riops": None, "wiops": 100}
    assert found["8:16"]["rbps"] == 1


def test_devices_that_are_none() -> None:
    assert convert.device_numbers("254:0") == "254:0"
    with pytest.raises(UnsupportedError, match="not on one block device"):
        convert.device_numbers("/proc")
    with pytest.raises(UnsupportedError, match="io limit of /nowhere"):
        convert.device_numbers("/nowhere")


def test_worker_tries_again_and_finishes_when_closed() -> None:
    calls: list[int] = []

    def job() -> float | None:
        calls.append(1)
        return 0.001 if len(calls) < 5 else None

    worker = Worker("test")
    worker.submit(job)
    others: list[int] = []
    worker.submit(lambda: others.append(0), 0.002)
    assert worker.close(5.0) == 0
    assert (len(calls), len(others)) == (5, 1)


def test_worker_keeps_what_went_wrong() -> None:
    worker = Worker("test")

    def job() -> None:
        raise OSError(1, "no")

    worker.submit(job)
    worker.close(5.0)
    assert [type(each) for each in worker.failures] == [PermissionError]


def test_worker_says_what_is_left() -> None:
    worker = Worker("test")
    worker.submit(lambda: 0.01)
    assert worker.close(0.05) == 1


def decide(code: bytes, kind: str, major: int, minor: int, access: int) -> int:
    """Run a program of `devices.program` as the kernel would."""
    instructions = list(struct.iter_unpack("=BBhi", code))
    context = {0: access << 16 | {"b": 1, "c": 2}[kind], 4: major, 8: minor}
    registers: dict[int, int] = {}
    place = 0
    while True:
        opcode, operands, offset, number = instructions[place]
        target, source = operands & 15, operands >> 4
        place += 1
        if opcode == 0x61:
            assert source == 1
            registers[target] = context[offset]
        elif opcode == 0x57:
            registers[target] &= number
        elif opcode == 0x55:
            assert offset > 0  # never back: it ends
            place += offset if registers[target] != number else 0
        elif opcode == 0xB7:
            registers[target] = number
        else:
            assert opcode == 0x95
            return registers[0]


kinds = st.sampled_from("bc")
majors = st.integers(0, 4)
minors = st.integers(0, 4)


@given(
    st.frozensets(st.builds(Device, kinds, majors, st.integers(-1, 4)), max_size=9),
    kinds, majors, minors, st.integers(1, 7),
)  # fmt: skip
def test_the_program_allows_just_these_devices(
    devices: frozenset[Device], kind: str, major: int, minor: int, access: int
) -> None:
    allowed = any((each.kind, each.major) == (kind, major) and each.minor in (-1, minor) for each in devices)
    assert decide(program(devices), kind, major, minor, access) == allowed


def test_devices_as_the_kernel_writes_them() -> None:
    assert str(Device("b", 7, 0)) == "b 7:0" and str(Device("c", 136, -1)) == "c 136:*"
