"""Cgroups on the machine's own kernel: real groups, real processes that join by themselves."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from isobox.cgroups import CgroupHost, Controller, Group, Groups, discover
from isobox.cgroups.convert import huge_page_name, huge_pages
from isobox.cgroups.limited import DEFAULT_PIDS
from isobox.errors import CgroupError, StateError, UnsupportedError
from isobox.spec import IoLimit, Limits
from patience import patient

HOST = discover()
NOTHING = Limits(pids=None)

pytestmark = pytest.mark.skipif(
    not all(HOST.usable(name) for name in ("cpu", "memory", "pids", "freezer")),
    reason="groups can't be made here (cgroup v1 needs root, v2 delegation)",
)

JOIN = """
import os, sys
for fd in filter(None, sys.argv[1].split(",")):
    os.write(int(fd), b"0")
"""


@pytest.fixture
def groups() -> Iterator[Groups]:
    owner = f"test-{os.getpid()}-{time.monotonic_ns()}"
    made = Groups(HOST, owner)
    yield made
    made.close()
    assert left_of(owner) == []


def left_of(owner: str) -> list[str]:
    return [path for path in Groups(HOST, owner).paths if os.path.exists(path)]


def start(code: str, *groups: Group, pipe: bool = False) -> subprocess.Popen[str]:
    """A Python that joins the groups by itself, one after the other, then runs ``code``."""
    with ExitStack() as stack:
        fds: list[int] = []
        for group in groups:
            fds.extend(group.join_fds)
            if group.into_fd is not None:  # subprocess can't clone into it: the same group by its other door
                directory = os.open(f"/proc/self/fd/{group.into_fd}", os.O_RDONLY)
                stack.callback(os.close, directory)
                fds.append(os.open("cgroup.procs", os.O_WRONLY, dir_fd=directory))
                stack.callback(os.close, fds[-1])
        return subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", JOIN + code, ",".join(map(str, fds))],
            pass_fds=fds,
            stdout=subprocess.PIPE if pipe else None,
            text=True,
        )


def wait_for(condition: object, seconds: float = 10.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + patient(seconds)
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def ended(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.wait(patient(10))
        if process.stdout is not None:
            process.stdout.close()


def value(group: Group, v1: str, v2: str) -> str:
    for path in group.paths:
        for name in (v1, v2):
            if name and os.path.exists(f"{path}/{name}"):
                return Path(path, name).read_text().strip()
    raise FileNotFoundError(v1)


def is_v1() -> bool:
    return HOST.controllers["memory"].version == 1


def test_discover_is_cached_and_says_where() -> None:
    assert discover() is discover()
    for controller in HOST.controllers.values():
        assert not controller.writable or os.path.isdir(controller.root)


def test_the_own_group_is_where_discover_says() -> None:
    pids = HOST.controllers["pids"]
    if pids.version == 1:
        assert str(os.getpid()) in Path(pids.root, "cgroup.procs").read_text().split()


def test_every_limit_is_there(groups: Groups) -> None:
    limits = Limits(cpu=0.5, cpu_weight=200, memory=(64 << 20) + 1, pids=77)
    group = groups.container(limits, id="c")
    assert value(group, "pids.max", "pids.max") == "77"
    assert value(group, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    if is_v1():
        assert value(group, "cpu.cfs_quota_us", "") == "50000"
        assert value(group, "cpu.shares", "") == "2048"
    else:
        assert value(group, "", "cpu.max") == "50000 100000"
        assert value(group, "", "cpu.weight") == "200"
    assert group.degraded == ()
    assert group.present
    group.close()
    group.close()


@pytest.mark.parametrize("memory", [4096, 5000, 1 << 20, (1 << 30) + 4095])
def test_memory_and_swap(groups: Groups, memory: int) -> None:
    group = groups.container(Limits(memory=memory, swap=1 << 20), id="c")
    page = os.sysconf("SC_PAGE_SIZE")
    if is_v1() and "memory.memsw.limit_in_bytes" in os.listdir(next(p for p in group.paths if "memory" in p)):
        assert value(group, "memory.memsw.limit_in_bytes", "") == str((memory + (1 << 20)) // page * page)


def test_swap_that_is_not_counted_is_refused(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    from isobox.cgroups.directory import Directory

    with_swap = Groups(CgroupHost(HOST.layout, HOST.controllers, swap=True), groups.owner + "-s")
    original = Directory.open
    monkeypatch.setattr(
        Directory, "open", lambda self, file, flags: original(self, file.replace("memsw", "nothing"), flags)
    )
    monkeypatch.setattr(Directory, "read_if_there", lambda self, file: None)
    try:
        with pytest.raises(UnsupportedError, match="swap") as caught:
            with_swap.container(Limits(memory=1 << 20), id="c")
        assert "swapoff" in caught.value.remedy
    finally:
        monkeypatch.undo()
        with_swap.close()


@pytest.mark.parametrize("cpu", [0.001, 0.005, 0.01, 0.33, 1.0, 2.5, 100.0])
def test_cpu_of_all_sizes(groups: Groups, cpu: float) -> None:
    group = groups.container(Limits(cpu=cpu), id="c")
    if is_v1():
        quota, period = (int(value(group, f"cpu.cfs_{each}_us", "")) for each in ("quota", "period"))
    else:
        quota, period = map(int, value(group, "", "cpu.max").split())
    assert quota / period == pytest.approx(cpu, rel=1e-3)


def test_update_in_every_direction(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    steps = [
        Limits(cpu=0.5, memory=64 << 20, pids=10),
        Limits(cpu=0.002, memory=32 << 20, pids=None),
        Limits(cpu=2.0, memory=128 << 20, swap=1 << 20, pids=5),
        Limits(cpu=None, cpu_weight=10, memory=1 << 30, pids=5),
        NOTHING,
    ]
    for limits in steps:
        group.update(limits)
        assert group.limits == limits
    assert value(group, "pids.max", "pids.max") == "max"
    assert int(value(group, "cpu.cfs_quota_us", "") if is_v1() else -1) == -1


def test_update_below_what_is_in_use(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    process = start(
        "x = bytearray(64 << 20); print(1, flush=True); import time; time.sleep(60)", group, pipe=True
    )
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    with pytest.raises(CgroupError, match=r"memory\.(limit_in_bytes|max)") as caught:
        group.update(Limits(memory=4 << 20))
    assert caught.value.errno == errno.EBUSY
    group.kill()
    ended(process)


HUGE = min(huge_pages(), default=0)


@pytest.mark.skipif(not HOST.usable("hugetlb") or not HUGE, reason="no hugetlb controller, or no huge pages")
class TestHugePages:
    def limit(self, group: Group, size: int = HUGE, kind: str = "") -> str:
        name = f"hugetlb.{huge_page_name(size)}.{kind}"
        return value(group, f"{name}limit_in_bytes", f"{name}max")

    @pytest.mark.parametrize("kind", ["", "rsvd."])
    def test_set_changed_and_lifted(self, groups: Groups, kind: str) -> None:
        group = groups.container(Limits(hugetlb={HUGE: 4 * HUGE}), id="c")
        assert self.limit(group, kind=kind) == str(4 * HUGE)
        group.update(Limits(hugetlb={HUGE: 3 * HUGE - 1}))
        assert self.limit(group, kind=kind) == str(2 * HUGE)
        group.update(Limits(hugetlb={HUGE: 0}))
        assert self.limit(group, kind=kind) == "0"
        group.update(Limits())
        lifted = self.limit(group, kind=kind)
        assert lifted == "max" or int(lifted) >= 2**62

    def test_others_are_not_limited(self, groups: Groups) -> None:
        before = groups.container(Limits(), id="a")
        asked = groups.container(Limits(hugetlb={HUGE: HUGE}), id="b")
        assert str(HUGE) in self.limits(asked)
        for each in (before, groups.container(Limits(), id="c")):
            assert all(text == "max" or int(text) >= 2**62 for text in self.limits(each))

    def limits(self, group: Group) -> list[str]:
        files = [file for path in group.paths for file in Path(path).glob("hugetlb.*")]
        return [file.read_text().strip() for file in files if file.name.endswith((".max", ".limit_in_bytes"))]

    def test_a_running_process_comes_along(self, groups: Groups) -> None:
        group = groups.container(NOTHING, id="c")
        process = start("print(1, flush=True); import time; time.sleep(60)", group, pipe=True)
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        group.update(Limits(hugetlb={HUGE: HUGE}))
        inside = [path for path in group.paths if list(Path(path).glob("hugetlb.*"))]
        lists = [file.read_text().split() for path in inside for file in Path(path).rglob("cgroup.procs")]
        assert any(str(process.pid) in pids for pids in lists)
        group.kill()
        ended(process)

    def test_a_size_that_is_not_there(self, groups: Groups) -> None:
        with pytest.raises(UnsupportedError, match=huge_page_name(HUGE)) as caught:
            groups.container(Limits(hugetlb={1 << 40: 1 << 40}), id="c")
        assert "1024GB" in caught.value.feature and caught.value.remedy


@pytest.mark.skipif(HOST.usable("hugetlb"), reason="there is one")
def test_no_hugetlb_controller(groups: Groups) -> None:
    with pytest.raises(UnsupportedError, match="hugetlb limit") as caught:
        groups.container(Limits(hugetlb={2 << 20: 2 << 20}), id="c")
    assert caught.value.why and caught.value.remedy


@pytest.mark.skipif(not HOST.usable("cpuset"), reason="no cpuset")
def test_cpuset(groups: Groups) -> None:
    cpu = min(os.sched_getaffinity(0))
    group = groups.container(Limits(cpuset=frozenset({cpu})), id="c")
    process = start("print(*os.sched_getaffinity(0))", group, pipe=True)
    assert process.communicate()[0].split() == [str(cpu)]
    group.close()
    with pytest.raises(UnsupportedError, match="may use none") as caught:
        groups.container(Limits(cpuset=frozenset({4000})), id="d")
    assert str(cpu) in caught.value.remedy


@pytest.mark.skipif(not HOST.usable("cpuset") or (os.cpu_count() or 1) < 2, reason="no cpuset, or one CPU")
def test_cpuset_of_a_running_container(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    code = """
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
os.fork()
print(os.getpid(), flush=True)
time.sleep(60)
"""
    process = start(code, group, pipe=True)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(2)]
    last = max(os.sched_getaffinity(0))
    group.update(Limits(pids=None, cpuset=frozenset({last})))
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            assert os.sched_getaffinity(int(thread)) == {last}
    assert set(pids) <= set(group.threads())
    group.kill()
    ended(process)


def disk_of_tmp() -> str | None:
    from isobox.cgroups.convert import device_numbers

    try:
        return device_numbers("/var/tmp") if HOST.usable("blkio") else None
    except UnsupportedError:
        return None


@pytest.mark.skipif(disk_of_tmp() is None, reason="no controller, or no disk below /var/tmp")
def test_io_limits_are_set_and_lifted(groups: Groups) -> None:
    if is_v1() and not os.path.exists(f"{HOST.controllers['blkio'].root}/blkio.throttle.read_bps_device"):
        pytest.skip("kernel without block throttling")
    group = groups.container(Limits(io=(IoLimit("/var/tmp", read_bps=1 << 20, write_iops=50),)), id="c")
    disk = disk_of_tmp()
    if is_v1():
        assert value(group, "blkio.throttle.read_bps_device", "") == f"{disk} {1 << 20}"
        assert value(group, "blkio.throttle.write_iops_device", "") == f"{disk} 50"
    group.update(Limits(io=(IoLimit("/var/tmp", read_bps=2 << 20),)))
    if is_v1():
        assert value(group, "blkio.throttle.read_bps_device", "") == f"{disk} {2 << 20}"
        assert value(group, "blkio.throttle.write_iops_device", "") == ""
    group.update(Limits())
    assert "rbps" not in value(group, "blkio.throttle.read_bps_device", "io.max")


def test_io_of_no_device(groups: Groups) -> None:
    if not HOST.usable("blkio"):
        pytest.skip("no controller")
    with pytest.raises(UnsupportedError, match="io limit"):
        groups.container(Limits(io=(IoLimit("/proc", read_bps=1000),)), id="c")


def test_an_exec_is_measured_on_its_own(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    first = group.child()
    ended(start("x = bytearray(32 << 20); sum(range(10 ** 6))", group, first))
    second = group.child()
    ended(start("", group, second))
    one, two = first.read(), second.read()
    assert one.memory_peak is not None and one.memory_peak > 32 << 20
    assert two.memory_peak is not None and two.memory_peak < 32 << 20
    assert one.cpu_time is not None and two.cpu_time is not None and one.cpu_time > two.cpu_time >= 0
    assert one.cpu_user is not None and one.cpu_system is not None
    assert one.cpu_user + one.cpu_system == pytest.approx(one.cpu_time, abs=1e-5)
    assert first.cpu_time() == pytest.approx(one.cpu_time)
    assert one.oom_kills == 0
    whole = group.read()
    assert whole.memory_peak is not None and whole.memory_peak >= one.memory_peak
    assert whole.cpu_time is not None and whole.cpu_time >= one.cpu_time + two.cpu_time - 1e-6
    for usage in (one, two, whole):
        assert set(usage.sources) <= {name for name in dir(usage) if getattr(usage, name) is not None}
    first.close()
    second.close()


def test_used_groups_are_never_used_again(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    seen = set()
    for _ in range(10):
        child = group.child()
        assert not seen & set(child.paths)
        seen |= set(child.paths)
        assert child.read().cpu_time == 0
        child.close()
        time.sleep(0.005)


def test_unmeasured_groups_serve_again(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    names = set()
    for number in range(6):
        child = group.child(measure=False, pids=5 if number % 2 else None)
        assert len(child.paths) == 1
        assert value(child, "pids.max", "pids.max") == ("5" if number % 2 else "max")
        process = start("import time; time.sleep(60)", group, child)
        wait_for(lambda child=child: not child.empty())
        child.kill()
        ended(process)
        wait_for(child.empty)
        child.close()
        names |= set(child.paths)
    if is_v1():
        assert len(names) < 6


def test_oom(groups: Groups) -> None:
    group = groups.container(Limits(memory=256 << 20), id="c")
    child = group.child(memory=24 << 20)
    told = child.oom_watch()
    assert told is not None
    told.reset()
    process = start("x = bytearray(200 << 20)", group, child)
    poll = select.poll()
    poll.register(told.fd, told.events)
    assert poll.poll(10_000)
    ended(process)
    assert process.returncode == -signal.SIGKILL
    wait_for(child.oom_kills)
    kills = child.oom_kills()
    assert kills == 1
    assert child.read().oom_kills == kills
    assert group.oom_kills() == kills
    child.close()
    wait_for(lambda: not any(os.path.exists(path) for path in child.paths))
    assert group.oom_kills() == kills
    assert group.read().oom_kills == kills


def test_pids_limit_holds(groups: Groups) -> None:
    group = groups.container(Limits(pids=50), id="c")
    child = group.child(pids=5)
    code = """
import time
n = 0
try:
    for n in range(100):
        if os.fork() == 0:
            time.sleep(60)
except BlockingIOError:
    print(n, flush=True)
time.sleep(60)
"""
    process = start(code, group, child, pipe=True)
    assert process.stdout is not None and process.stdout.readline() == "4\n"
    assert child.read().pids_peak in (5, None)
    child.kill()
    ended(process)


def test_kill_ends_a_fork_bomb(groups: Groups) -> None:
    group = groups.container(Limits(pids=200, cpu=1.0), id="c")
    child = group.child()
    code = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0 and os.fork() == 0:
            os.setsid()
    except OSError:
        pass
"""
    process = start(code, group, child)
    wait_for(lambda: len(child.threads()) > 150)
    child.kill()
    assert child.empty()
    assert child.threads() == ()
    ended(process)
    assert value(group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "100000", "the limit holds again"


def test_kill_of_nobody_and_of_the_frozen(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    group.kill()
    group = groups.container(NOTHING, id="d")
    process = start("import time; time.sleep(60)", group)
    wait_for(lambda: not group.empty())
    group.freeze()
    group.kill()
    ended(process)
    assert group.empty()


def test_freeze_and_thaw(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    process = start("while True: pass", group)
    wait_for(lambda: (group.cpu_time() or 0) > 0.05)
    group.freeze()
    stopped = group.cpu_time()
    time.sleep(0.1)
    assert group.cpu_time() == stopped
    group.thaw()
    wait_for(lambda: (group.cpu_time() or 0) > (stopped or 0) + 0.02)
    group.kill()
    ended(process)


def test_kill_of_an_exec_in_a_paused_container(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    child = group.child()
    process = start("import time; time.sleep(60)", group, child)
    wait_for(lambda: not child.empty())
    group.freeze()
    if is_v1():
        with pytest.raises(CgroupError, match="do not end"):
            child.kill()
    else:
        child.kill()
    group.thaw()
    ended(process)
    assert process.returncode == -signal.SIGKILL


def test_closing_what_is_paused(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    process = start("import time; time.sleep(60)", group)
    wait_for(lambda: not group.empty())
    group.freeze()
    group.close()
    ended(process)
    wait_for(lambda: not any(os.path.exists(path) for path in group.paths))


def test_closing_an_exec_of_what_is_paused(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    child = group.child()
    process = start("import time; time.sleep(60)", group, child)
    wait_for(lambda: not child.empty())
    group.freeze()
    child.close()
    time.sleep(0.3)
    group.thaw()
    ended(process)
    wait_for(lambda: not any(os.path.exists(path) for path in child.paths))


def test_swapping_is_said(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    from isobox.cgroups import meter

    monkeypatch.setattr(groups, "host", CgroupHost(HOST.layout, HOST.controllers, swap=True))
    group = groups.container(NOTHING, id="c")
    child = group.child()
    assert child.read().notes == groups.container(NOTHING, id="d").read().notes
    pages = meter.swapped_pages()
    monkeypatch.setattr(meter, "swapped_pages", lambda: pages + 7)
    assert any("swapped" in note for note in child.read().notes)


def test_throttling_is_said(groups: Groups) -> None:
    group = groups.container(Limits(cpu=0.1), id="c")
    child = group.child()
    process = start("while True: pass", group, child)
    wait_for(lambda: (child.read().throttled_periods or 0) > 1)
    usage = child.read()
    assert usage.throttled_time is not None and usage.throttled_time > 0
    assert any("throttled" in note for note in usage.notes)
    child.kill()
    ended(process)
    assert group.child().read().throttled_periods == 0


def test_limits_that_can_not_be_had(groups: Groups) -> None:
    bare = Groups(CgroupHost("none", {}, swap=False), groups.owner + "-n")
    group = bare.container(Limits(), id="c")
    assert (group.join_fds, group.into_fd, group.present) == ((), None, False)
    assert group.degraded == ("pids",)
    assert group.cpu_time() is None
    assert group.oom_watch() is None
    assert group.read().memory_peak is None
    child = group.child()
    assert child.join_fds == ()
    with pytest.raises(UnsupportedError):
        group.child(memory=1 << 20)
    with pytest.raises(UnsupportedError):
        group.child(pids=DEFAULT_PIDS)
    with pytest.raises(UnsupportedError):
        group.kill()
    for limits in (Limits(cpu=1.0), Limits(memory=1 << 20), Limits(pids=7), Limits(cpu_weight=5),
                   Limits(cpuset=frozenset({0})), Limits(io=(IoLimit("8:0", read_bps=1),))):  # fmt: skip
        with pytest.raises(UnsupportedError) as caught:
            bare.container(limits, id="c")
        assert caught.value.remedy
    bare.close()


def test_one_that_is_not_writable(groups: Groups) -> None:
    controllers = dict(HOST.controllers)
    controllers["memory"] = Controller("memory", 1, "", False, "mounted read-only")
    partial = Groups(CgroupHost(HOST.layout, controllers, swap=False), groups.owner + "-p")
    with pytest.raises(UnsupportedError, match="mounted read-only"):
        partial.container(Limits(memory=1 << 20), id="c")
    group = partial.container(Limits(pids=9), id="c")
    assert value(group, "pids.max", "pids.max") == "9"
    partial.close()


def test_the_kernel_refuses(groups: Groups) -> None:
    before = descriptors()
    with pytest.raises(CgroupError, match=r"pids\.max"):
        groups.container(Limits(pids=10**9), id="c")
    wait_for(lambda: descriptors() <= before + 40)
    groups.container(Limits(pids=10), id="c")


def test_close_ends_and_removes_everything() -> None:
    groups = Groups(HOST, f"test-{os.getpid()}-close")
    processes = []
    for _ in range(3):
        group = groups.container(NOTHING, id="c")
        child = group.child()
        processes.append(start("import time; time.sleep(60)", group, child))
        wait_for(lambda child=child: not child.empty())
    groups.close()
    groups.close()
    for process in processes:
        assert process.wait(10) == -signal.SIGKILL
    assert left_of(groups.owner) == []
    with pytest.raises(StateError):
        groups.container(NOTHING, id="c")


@pytest.mark.parametrize("method", ["make", "open", "set"])
@pytest.mark.parametrize("time_of_failure", [1, 2, 5])
def test_failures_on_the_way_leave_nothing(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, method: str, time_of_failure: int
) -> None:
    from isobox.cgroups.directory import Directory

    before = descriptors()
    groups.container(Limits(memory=1 << 20), id="c")
    calls = 0
    original = getattr(Directory, method)

    def failing(self: Directory, *args: object) -> object:
        nonlocal calls
        if threading.current_thread() is threading.main_thread():
            calls += 1
            if calls == time_of_failure:
                raise CgroupError(errno.EIO, "made to fail", stage="cgroup")
        return original(self, *args)

    monkeypatch.setattr(Directory, method, failing)
    attempts = 0
    while calls < time_of_failure:
        attempts += 1
        try:
            groups.container(Limits(memory=1 << 20, cpu=1.0, cpu_weight=3, pids=9), id="d").close()
        except CgroupError as error:
            assert error.errno == errno.EIO
        assert attempts < 20
    monkeypatch.undo()
    groups.close()
    assert left_of(groups.owner) == []
    assert descriptors() == before


@pytest.mark.skipif(not is_v1(), reason="v2 takes any limit")
def test_more_cpu_than_the_group_above_has(groups: Groups) -> None:
    outer = groups.container(Limits(cpu=0.5), id="c")
    controllers = {
        name: Controller(name, 1, path, True)
        for path in outer.paths
        for name in ("cpu", "pids", "memory")
        if f"/{name}/" in path
    }
    inner = Groups(CgroupHost("v1", controllers, swap=False), groups.owner + "-i")
    inner.container(Limits(cpu=0.4), id="d")
    with pytest.raises(UnsupportedError, match="allows less than 0.6 cores"):
        inner.container(Limits(cpu=0.6), id="e")
    inner.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_leaks() -> None:
    before = descriptors()
    threads = threading.active_count()
    groups = Groups(HOST, f"test-{os.getpid()}-leak")
    for number in range(40):
        group = groups.container(Limits(memory=64 << 20), id=str(number))
        group.oom_watch()
        for measure in (True, False):
            child = group.child(measure=measure)
            child.cpu_time()
            child.oom_watch()
            child.close()
        group.joined()
        if number % 2:
            group.close()
    groups.close()
    assert left_of(groups.owner) == []
    assert descriptors() == before
    assert threading.active_count() == threads


def test_many_threads(groups: Groups) -> None:
    group = groups.container(NOTHING, id="c")
    errors: list[BaseException] = []
    names: list[str] = []

    def work() -> None:
        try:
            for _ in range(15):
                child = group.child()
                names.extend(child.paths)
                assert child.empty()
                child.close()
                groups.container(Limits(pids=20), id="x").close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(names) == len(set(names))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys\nsys.path[:] = {sys.path!r}\n" + code
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=patient(60), check=False
    )


def test_the_end_of_the_interpreter_removes_everything() -> None:
    owner = f"test-{os.getpid()}-exit"
    done = run_python(f"""
from isobox.cgroups import Groups, discover
from isobox.spec import Limits
groups = Groups(discover(), {owner!r})
kept = [groups.container(Limits(), id="c") for _ in range(6)]
kept[0].child()
kept[1].close()
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert left_of(owner) == []


def test_a_forked_child_touches_nothing() -> None:
    owner = f"test-{os.getpid()}-fork"
    done = run_python(f"""
import os, time
from isobox.cgroups import Groups, discover
from isobox.spec import Limits
from isobox.errors import StateError
groups = Groups(discover(), {owner!r})
kept = [groups.container(Limits(), id="c") for _ in range(3)]
child = kept[0].child()
time.sleep(0.05)
before = len(os.listdir("/proc/self/fd"))
if (pid := os.fork()) == 0:
    assert len(os.listdir("/proc/self/fd")) < before - 3
    for call in (lambda: groups.container(Limits(), id="d"), kept[0].kill, kept[0].child):
        try:
            call()
        except StateError:
            continue
        raise AssertionError(call)
    kept[1].close()
    groups.close()
    mine = Groups(discover(), {owner!r} + "-child")
    mine.container(Limits(), id="e").child()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert all(os.path.isdir(path) for group in (*kept, child) for path in group.paths)
kept[2].update(Limits(pids=3))
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert left_of(owner) == left_of(owner + "-child") == []


def test_what_a_killed_owner_leaves_is_collected(groups: Groups) -> None:
    owner = f"test-{os.getpid()}-dead"
    program = f"""
import sys
sys.path[:] = {sys.path!r}
import os, subprocess, time
from isobox.cgroups import Groups, discover
from isobox.spec import Limits
groups = Groups(discover(), {owner!r})
group = groups.container(Limits(), id="c")
child = group.child()
fds = (*group.join_fds, *child.join_fds)
join = "".join(f"echo 0 > /proc/self/fd/{{fd}};" for fd in fds)
process = subprocess.Popen(["sh", "-c", join + "exec sleep 600"], pass_fds=fds, stdout=-3, stderr=-3)
while child.empty():
    time.sleep(0.01)
group.freeze()
print(process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    if not is_v1():
        pytest.skip("joins by tasks")
    owned = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(owned.stdout)
    assert len(left_of(owner)) >= 4
    groups.collect(owner)
    assert left_of(owner) == []
    status = Path(f"/proc/{pid}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()
    groups.collect(owner)
    groups.collect("nobody-at-all")
    with pytest.raises(ValueError, match="close"):
        groups.collect(groups.owner)


@pytest.mark.parametrize("owner", ["", "a/b", ".", "..", ".hidden"])
def test_owners_are_plain_names(owner: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        Groups(HOST, owner)


def test_groups_are_fresh_from_the_pool(groups: Groups) -> None:
    def use(number: int) -> Sequence[str]:
        group = groups.container(Limits(memory=32 << 20, cpu=0.5, pids=9), id=str(number))
        assert (group.read().memory_peak or 0) < 1 << 20  # v2 charges the groups below to it
        assert group.read().cpu_time == 0
        paths = group.paths
        group.close()
        time.sleep(0.01)
        return paths

    paths = [path for number in range(12) for path in use(number)]
    assert len(set(paths)) == len(paths)
    plain = groups.container(NOTHING, id="last")
    assert value(plain, "pids.max", "pids.max") == "max"
    assert int(value(plain, "memory.limit_in_bytes", "") if is_v1() else 2**62) >= 2**62
