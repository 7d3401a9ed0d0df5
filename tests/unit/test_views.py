from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import UnsupportedError
from isobox.rootfs.views import cpuinfo, meminfo, stat, views, visible_cpus
from isobox.spec import Limits

MEMINFO = b"""MemTotal:       24684084 kB
MemFree:        23029904 kB
MemAvailable:   23967472 kB
Dirty:              1234 kB
SwapTotal:       1000000 kB
SwapFree:         999999 kB
CommitLimit:    12342040 kB
VmallocTotal:   34359738367 kB
HugePages_Total:      12
Hugepagesize:       2048 kB
DirectMap4k:       77824 kB
"""


def amounts(text: bytes) -> dict[bytes, int]:
    return {line.split(b":")[0]: int(line.split()[1]) for line in text.splitlines()}


def test_meminfo() -> None:
    text = meminfo(MEMINFO, 256 << 20, 64 << 20)
    got = amounts(text)
    assert got[b"MemTotal"] == got[b"MemFree"] == got[b"MemAvailable"] == 256 << 10
    assert got[b"SwapTotal"] == got[b"SwapFree"] == 64 << 10
    assert got[b"Dirty"] == got[b"HugePages_Total"] == 0
    assert got[b"Hugepagesize"] == 2048
    assert b"DirectMap4k" not in got
    # The columns stand where the kernel puts them.
    assert text.splitlines()[0] == b"MemTotal:         262144 kB"
    assert len(text.splitlines()[0]) == len(MEMINFO.splitlines()[0])


def test_cpuinfo_keeps_blocks_of_the_cpus() -> None:
    host = b"processor\t: 0\nx\t: 1\n\nprocessor\t: 1\nx\t: 2\n\nprocessor\t: 2\nx\t: 3\n\nHardware\t: H\n\n"
    assert cpuinfo(host, frozenset({1})) == b"processor\t: 1\nx\t: 2\n\nHardware\t: H\n\n"
    assert cpuinfo(b"vendor_id: IBM/S390\n", frozenset({0})) is None


def test_stat_has_the_cpus_and_the_boot_time() -> None:
    host = b"cpu  1 2 3\ncpu0 1 2 3\ncpu1 1 2 3\nintr 9 9\nbtime 1700000000\nctxt 5\n"
    lines = (stat(host, {1}) or b"").splitlines()
    assert [line.split()[0] for line in lines if line.startswith(b"cpu")] == [b"cpu", b"cpu1"]
    assert b"btime 1700000000" in lines
    assert stat(b"nothing", {1}) is None


def test_nothing_is_shown_for_what_is_not_limited() -> None:
    assert views(Limits(), [0, 1]) == {}
    assert set(views(Limits(memory=1 << 20), [0])) == {"/proc/meminfo"}
    assert views(Limits(memory=1 << 60), [0]) == {}


def test_views_of_this_machine() -> None:
    cpu = min(os.sched_getaffinity(0))
    shown = views(Limits(cpu=0.5, memory=64 << 20), [cpu])
    assert amounts(shown["/proc/meminfo"])[b"MemTotal"] == 64 << 10
    online = shown.get("/sys/devices/system/cpu/online")
    if online is not None:  # a machine of one cpu has nothing to hide
        assert online == b"%d\n" % cpu
        assert shown["/proc/stat"].count(b"cpu") == 2
        assert shown["/proc/cpuinfo"].count(b"\nprocessor") == 0


@given(
    st.sets(st.integers(0, 63), min_size=1),
    st.none() | st.floats(0.01, 80),
    st.none() | st.frozensets(st.integers(0, 63), min_size=1),
)
def test_visible_cpus(allowed: set[int], cpu: float | None, cpuset: frozenset[int] | None) -> None:
    limits = Limits(cpu=cpu, cpuset=cpuset)
    usable = allowed & cpuset if cpuset else allowed
    if not usable:
        with pytest.raises(UnsupportedError):
            visible_cpus(limits, allowed)
        return
    got = visible_cpus(limits, allowed)
    wanted = len(usable) if cpu is None else min(-int(-cpu // 1), len(usable))
    assert (got or allowed) <= usable
    assert len(got or allowed) == wanted
    assert got is None or got != allowed


def test_containers_are_spread() -> None:
    seen = [visible_cpus(Limits(cpu=1.0), {0, 1, 2, 3}) for _ in range(4)]
    assert set().union(*(s or set() for s in seen)) == {0, 1, 2, 3}
    pairs = [visible_cpus(Limits(cpu=1.5), {0, 1, 2, 3}) for _ in range(2)]
    assert set().union(*(p or set() for p in pairs)) == {0, 1, 2, 3}
