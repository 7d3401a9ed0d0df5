"""Limits: written, in force, changed while it runs, shown inside, and refused where they can't be had."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isobox
from isobox import PIPE, Container, IoLimit, Mount, SpecError, StateError, UnsupportedError
from isobox.cgroups import discover, scope
from isobox.cgroups.convert import huge_pages
from leftovers import descendants, wait_until
from patience import patient
from programs import BOMB, HOG, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

CPUS = sorted(os.sched_getaffinity(0))
LIMITS = ({"cpu": 0.5}, {"cpu_weight": 50}, {"cpuset": [CPUS[0]]}, {"memory": "64M"}, {"pids": 50})

HUGE = {"hugetlb": {"2M": "4M"}}


def busy(seconds: float) -> str:
    """Python that is busy for a while."""
    return f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass\n"


def used(seconds: float) -> str:
    """Python that uses this much CPU time."""
    return f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"


def group_file(container: Container, name: str) -> str:
    """What a file of the container's cgroup says; its name on v1 or, behind "|", on v2."""
    for path in re.findall(r"^cgroup +(.*)$", container.explain(), re.MULTILINE):
        for each in name.split("|"):
            if os.path.exists(f"{path}/{each}"):
                with open(f"{path}/{each}") as file:
                    return file.read().strip()
    raise AssertionError(f"no {name} in the cgroups of {container}")


@pytest.mark.requires("cgroups")
class TestPlace:
    def test_everything_of_a_container_is_in_its_cgroups(self) -> None:
        with Container() as container, container.popen(["sleep", "60"]) as process:
            own = {container.pid, *descendants(container.pid or 0)}
            assert len(own) == 2
            for path in re.findall(r"^cgroup +(.*)$", container.explain(), re.MULTILINE):
                lists = [Path(below, "cgroup.procs").read_text() for below, _, _ in os.walk(path)]
                assert {int(pid) for pid in " ".join(lists).split()} == own, path
            process.kill()

    def test_programs_see_no_path_of_the_host(self) -> None:
        with Container() as container:
            group = re.findall(r"^cgroup +.*/(isobox/.*)$", container.explain(), re.MULTILINE)
            for measure in (True, False, True):
                seen = said(container, ["cat", "/proc/self/cgroup", "/proc/1/cgroup"], measure=measure)
                assert seen.count("\n") >= 2 and group
                assert not [path for path in group if path in seen], seen


@pytest.mark.skipif(
    isobox.host.features().cgroups or (scope.wanted(discover()) and scope.obstacle() is None),
    reason="limits can be had here",
)
class TestWithoutCgroups:
    """An ordinary user whom nobody delegated a cgroup: never a limit that silently does not hold."""

    @pytest.mark.parametrize("limit", [*LIMITS, {"io": [IoLimit("/", write_bps="1M")]}, HUGE], ids=str)
    def test_of_a_container(self, limit: dict[str, Any]) -> None:
        with pytest.raises(UnsupportedError) as caught:
            Container(**limit).start()
        assert next(iter(limit)).split("_")[0] in caught.value.feature
        assert caught.value.why and len(caught.value.remedy) > 10
        assert caught.value.remedy in str(caught.value)

    @pytest.mark.parametrize("limit", [{"memory": "64M"}, {"pids": 5}, {"cpu_time": 1}], ids=str)
    def test_of_an_exec(self, limit: dict[str, Any]) -> None:
        with Container() as container:
            for start in (container.exec, container.popen):
                with pytest.raises(UnsupportedError) as caught:
                    start(["true"], **limit)
                assert caught.value.remedy
            assert container.exec(["true"]).ok

    @pytest.mark.parametrize("limit", LIMITS, ids=str)
    def test_of_an_update(self, limit: dict[str, Any]) -> None:
        with Container() as container:
            before = container.spec
            with pytest.raises(UnsupportedError):
                container.update(**limit)
            assert container.spec == before
            assert container.exec(["true"]).ok

    def test_pause(self) -> None:
        with Container() as container:
            with pytest.raises(UnsupportedError) as caught:
                container.pause()
            assert caught.value.remedy and container.state == "running"
            with pytest.raises(StateError):
                container.resume()

    def test_what_is_not_measured_is_absent(self) -> None:
        with Container() as container:
            usage = container.exec(python("sum(range(3_000_000))")).usage
        assert usage.memory_peak is usage.pids_peak is usage.oom_kills is usage.io_read is None
        assert usage.cpu_time is not None and usage.cpu_time > 0.01
        assert usage.sources["cpu_time"] == "wait4(2) rusage" and usage.notes
        assert "memory_peak" not in usage.sources


@pytest.mark.requires("cgroup_cpu")
class TestCpu:
    def test_is_held(self) -> None:
        with Container(cpu=0.25) as container:
            result = container.exec(
                python("import time\nend = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass")
            )
        usage = result.usage
        assert usage.cpu_time is not None and usage.wall_time is not None
        assert usage.cpu_time / usage.wall_time < 0.45
        assert usage.throttled_time is not None and usage.throttled_time > 0.1
        assert usage.throttled_periods is not None and usage.throttled_periods >= 2
        assert any("throttled" in note for note in usage.notes)

    def test_all_programs_together(self) -> None:
        code = "import os\nos.fork(); os.fork()\n" + busy(0.5)
        with Container(cpu=0.3) as container:
            began = time.monotonic()
            processes = [container.popen(python(code)) for _ in range(2)]
            for process in processes:
                with process:
                    process.communicate()
            took = time.monotonic() - began
            used = container.stats().cpu_time
        assert used is not None and used / took < 0.5

    @pytest.mark.parametrize("cpu", [0.01, 0.5, 1, 1.5, 64])
    def test_as_written(self, cpu: float) -> None:
        with Container(cpu=cpu) as container:
            text = group_file(container, "cpu.max|cpu.cfs_quota_us")
            period = group_file(container, "cpu.max|cpu.cfs_period_us").split()[-1]
        assert int(text.split()[0]) / int(period) == pytest.approx(cpu)

    @pytest.mark.parametrize("weight", [1, 100, 10000])
    def test_weight(self, weight: int) -> None:
        with Container(cpu_weight=weight) as container:
            assert int(group_file(container, "cpu.weight|cpu.shares")) > 0
            container.update(cpu_weight=100)
            default = int(group_file(container, "cpu.weight|cpu.shares"))
            assert default in (100, 1024)
            container.update(cpu_weight=weight)
            now = int(group_file(container, "cpu.weight|cpu.shares"))
        assert (now > default) - (now < default) == (weight > 100) - (weight < 100)

    @pytest.mark.requires("cgroup_cpuset")
    def test_cpuset(self) -> None:
        for cpu in CPUS[:2]:
            with Container(cpuset=[cpu]) as container:
                assert said(container, python("import os; print(os.sched_getaffinity(0))")) == f"{{{cpu}}}\n"
                # It is more than an affinity: there is no way back.
                result = container.exec(
                    python(f"import os; os.sched_setaffinity(0, {set(CPUS)}); print(os.sched_getaffinity(0))")
                )
                assert result.stdout in (f"{{{cpu}}}\n".encode(), b"")

    @pytest.mark.requires("cgroup_cpuset")
    def test_a_cpuset_that_is_not_there(self) -> None:
        with pytest.raises(UnsupportedError) as caught:
            Container(cpuset="4000-4001").start()
        assert caught.value.feature == "cpuset" and caught.value.remedy


@pytest.mark.requires("cgroup_memory")
class TestMemory:
    def test_is_held(self) -> None:
        with Container(memory="64M") as container:
            assert group_file(container, "memory.max|memory.limit_in_bytes") == str(64 << 20)
            assert container.exec(python("bytearray(b'x' * (20 << 20))")).ok
            assert container.exec(python(HOG), timeout=60).reason == "oom"

    def test_swap_is_no_way_out(self) -> None:
        with Container(memory="64M") as container:
            found = None
            for name, expected in (("memory.memsw.limit_in_bytes", str(64 << 20)), ("memory.swap.max", "0")):
                try:
                    found = group_file(container, name) == expected
                except AssertionError:
                    continue
            assert found is not False  # None: the kernel has no accounting of swap, and there is none

    def test_the_writable_layer_counts(self) -> None:
        with Container(memory="64M") as container:
            result = container.exec(["sh", "-c", "head -c 60M /dev/zero > /tmp/file"], text=True)
            assert "No space left" in result.stderr  # half of the memory
            size = int(sh(container, "stat -c %s /tmp/file"))
            assert 16 << 20 < size <= 32 << 20
            usage = container.stats()
            assert usage.memory_peak is not None and usage.memory_peak >= size

    def test_of_an_exec_is_its_own(self) -> None:
        with Container(memory="256M") as container:
            assert container.exec(python(HOG), memory="24M", timeout=60).reason == "oom"
            result = container.exec(python("bytearray(b'x' * (60 << 20))"), memory="128M")
            assert result.ok
            assert result.usage.memory_peak is not None and 60 << 20 < result.usage.memory_peak < 128 << 20

    def test_of_an_exec_above_the_container_s(self) -> None:
        with Container(memory="32M") as container:
            assert container.exec(python(HOG), memory="4G", timeout=60).reason == "oom"

    @pytest.mark.parametrize("pids", [1024, 20])  # of few, none is for a thread under the filter
    def test_too_little_to_start(self, pids: int) -> None:
        with Container(pids=pids) as container:
            for _ in range(3):
                try:
                    result = container.exec(["true"], memory=4096)
                except isobox.IsoboxError as error:
                    assert "memory" in str(error)
                else:
                    assert result.reason == "oom"
                assert container.exec(["true"]).ok

    def test_one_process_left_beside_the_limited(self) -> None:
        with Container(pids=2) as container:
            assert container.exec(["true"], memory="64M").ok


FORKS = """
import os
n = 0
try:
    while True:
        n += 1
        if not os.fork():
            os.read(os.pipe()[0], 1)
except BlockingIOError:
    print(n)
"""


@pytest.mark.requires("cgroup_pids")
class TestPids:
    def test_are_held(self) -> None:
        with Container(pids=20) as container:
            assert group_file(container, "pids.max") == "20"
            result = container.exec(python(FORKS), text=True)
            # init and the program are two of them
            assert result.ok and 17 <= int(result.stdout) <= 20
            assert result.usage.pids_peak is not None and 17 <= result.usage.pids_peak <= 20

    def test_threads_count(self) -> None:
        code = "from threading import Event, Timer\nfor _ in range(30): Timer(0.2, Event().set).start()"
        with Container(pids=10) as container:
            assert b"can't start new thread" in container.exec(python(code)).stderr

    def test_a_thousand_unless_asked(self) -> None:
        with Container() as container:
            assert group_file(container, "pids.max") == "1024"
        with Container(pids=None) as container:
            assert group_file(container, "pids.max") == "max"

    def test_of_an_exec(self) -> None:
        with Container(pids=100) as container:
            result = container.exec(["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait"], pids=4)
            assert b"fork" in result.stderr.lower() and result.returncode != 0
            assert result.usage.pids_peak is not None and result.usage.pids_peak <= 4
            script = "for i in 1 2 3 4 5 6 7 8; do sleep 0.1 & done; wait"
            assert container.exec(["sh", "-c", script]).stderr == b""

    def test_a_bomb_leaves_the_others_alone(self) -> None:
        with Container(pids=200) as container, container.popen(["cat"], stdin=PIPE) as other:
            assert container.exec(python(BOMB), pids=30, timeout=0.3).reason == "timeout"
            assert other.communicate(b"alive") == (b"alive", b"")
            assert container.exec(["true"]).ok

    def test_none_left_for_another_exec(self) -> None:
        with Container(pids=3) as container:
            running = [container.popen(["sleep", "60"]) for _ in range(2)]
            with pytest.raises(isobox.ExecError) as caught:
                container.exec(["true"])
            assert "pids" in str(caught.value)
            running[0].kill()
            running[0].wait(10)
            assert container.exec(["true"]).ok
            running[1].kill()
        for process in running:
            process.close()


def _device(path: str | Path) -> str:
    """The block device below a file system; empty where it has none."""
    number = os.stat(path).st_dev
    return f"{os.major(number)}:{os.minor(number)}" if os.major(number) else ""


def _disk() -> str | None:
    """A device that io limits can be for: the one below a file system, where one has it."""
    return next(filter(None, map(_device, ("/", "/var/tmp", Path(__file__).parent))), None)


@pytest.mark.requires("cgroup_io")
@pytest.mark.skipif(_disk() is None, reason="no file system here is on a block device")
class TestIo:
    @pytest.fixture(autouse=True)
    def limits(self) -> None:
        try:
            Container(io=[IoLimit(str(_disk()), write_bps="1M")]).start().remove()
        except UnsupportedError as error:
            assert error.remedy
            pytest.skip(str(error))

    def test_as_written(self) -> None:
        device = _disk()
        assert device is not None
        container = Container(io=[IoLimit(device, write_bps="1M", read_iops=100)]).start()
        try:
            assert "1048576" in group_file(container, "io.max|blkio.throttle.write_bps_device")
            assert "100" in group_file(container, "io.max|blkio.throttle.read_iops_device")
            container.update(io=[])
            assert "1048576" not in group_file(container, "io.max|blkio.throttle.write_bps_device")
        finally:
            container.remove()

    @pytest.mark.requires("host_folders")
    @pytest.mark.parametrize("how", ["measured", "not measured", "limited later"])
    def test_is_held(self, how: str, tmp_path: Path) -> None:
        """By all programs together, in whatever groups they are."""
        place = next((each for each in ("/var/tmp", "/tmp") if _device(each)), None)
        if place is None:
            pytest.skip("no directory for temporary files is on a block device")
        device = _device(place)
        limit = [IoLimit(device, write_bps="1M")]
        write = (
            "until [ -e /data/go ]; do sleep 0.01; done; "
            "dd if=/dev/zero of=/data/$0 bs=128k count=8 oflag=direct"
        )
        with tempfile.TemporaryDirectory(dir=place) as name:
            os.chmod(name, 0o777)
            mounts = [Mount.bind(name, "/data")]
            with Container(io=() if how == "limited later" else limit, mounts=mounts, pids=50) as container:
                writers = [
                    container.popen(["sh", "-c", write, number], measure=how != "not measured")
                    for number in ("one", "two")
                ]
                if how == "limited later":
                    container.update(io=limit)
                    writers.append(container.popen(["sh", "-c", write, "three"]))
                Path(name, "go").touch()
                began = time.monotonic()
                for writer in writers:
                    with writer:
                        assert writer.wait(patient(60)) == 0
                # The kernel lets a burst through at first, of a tenth of a second or so.
                assert time.monotonic() - began > len(writers) * 0.8

    @pytest.mark.parametrize("device", ["/dev/nosuch", "/no/such/path", "/dev/null", "999:999", "/proc"])
    def test_no_such_device(self, device: str) -> None:
        with pytest.raises(isobox.IsoboxError) as caught:
            Container(io=[IoLimit(device, read_bps=1000)]).start()
        assert device in str(caught.value)


class TestDisk:
    @pytest.mark.parametrize("path", ["/tmp/file", "/var/tmp/file", "/root/file", "/run/file", "/home/file"])
    def test_past_it_there_is_no_space(self, path: str) -> None:
        with Container(disk="4M") as container:
            result = container.exec(["sh", "-c", f"head -c 20M /dev/zero > {path}"], text=True)
            assert not result.ok and "No space left on device" in result.stderr
            assert 2 << 20 < int(sh(container, f"stat -c %s {path}")) <= 4 << 20
            assert (
                sh(container, f"rm {path}; head -c 2M /dev/zero > /tmp/again; stat -c %s /tmp/again")
                == f"{2 << 20}\n"
            )

    def test_all_places_together(self) -> None:
        with Container(disk="4M") as container:
            script = "for f in /tmp/a /var/tmp/b /run/c; do head -c 3M /dev/zero > $f; done; true"
            assert b"No space left" in container.exec(["sh", "-c", script]).stderr

    def test_shared_memory_too(self) -> None:
        with Container(disk="4M") as container:
            assert not container.exec(["sh", "-c", "head -c 20M /dev/zero > /dev/shm/file"]).ok

    def test_on_disk_it_can_t_be_had_yet(self) -> None:
        with pytest.raises(UnsupportedError) as caught:
            Container(disk="4M", upper="disk").start()
        assert "memory" in caught.value.remedy

    def test_copying_in_meets_it(self) -> None:
        with Container(disk="1M") as container:
            with pytest.raises(OSError, match="space"):
                container.write_bytes("/tmp/file", bytes(4 << 20))
            assert container.exec(["true"]).ok

    def test_upper_on_disk(self) -> None:
        with Container(upper="disk") as container:
            assert sh(container, "head -c 40M /dev/zero > /tmp/file; stat -c %s /tmp/file") == f"{40 << 20}\n"
            assert sh(container, "echo again > /tmp/file; cat /tmp/file") == "again\n"
            assert [change.path for change in container.changes()] == ["/tmp/file"]


class TestRlimits:
    def test_inherited(self) -> None:
        code = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_STACK))"
        with Container() as container:
            expected = (
                f"{resource.getrlimit(resource.RLIMIT_NOFILE)} {resource.getrlimit(resource.RLIMIT_STACK)}\n"
            )
            assert said(container, python(code)) == expected

    def test_as_asked(self) -> None:
        code = (
            "import resource as r; print(*map(r.getrlimit, (r.RLIMIT_NOFILE, r.RLIMIT_CORE, r.RLIMIT_FSIZE)))"
        )
        limits = {"nofile": (50, 64), "core": 0, "fsize": "1M"}
        with Container(rlimits=limits) as container:
            assert said(container, python(code)) == "(50, 64) (0, 0) (1048576, 1048576)\n"
            assert not container.exec(["sh", "-c", "head -c 2M /dev/zero > /tmp/file"]).ok
            assert (
                container.exec(python("import os\nwhile True: os.dup(0)")).stderr.count(
                    b"Too many open files"
                )
                == 1
            )

    def test_unlimited(self) -> None:
        code = "import resource as r; print(r.getrlimit(r.RLIMIT_FSIZE))"
        with Container(rlimits={"fsize": "unlimited"}) as container:
            assert said(container, python(code)) == "(-1, -1)\n"

    def test_ours_stay(self) -> None:
        numbers = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
        before = [resource.getrlimit(number) for number in numbers]
        with Container(rlimits={"nofile": 50, "nproc": 20, "stack": "1M"}) as container:
            assert container.exec(["true"]).ok
        assert [resource.getrlimit(number) for number in numbers] == before

    def test_above_our_own_hard_limit(self) -> None:
        code = """
import resource, isobox
resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))
try:
    isobox.run(["true"], rlimits={"nofile": 501})
except isobox.UnsupportedError as error:
    print(error.feature, "|", error.remedy)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout == "rlimits['nofile'] | ulimit -H: nofile\n", done.stderr


VIEWS = """
import os, re
with open("/proc/meminfo") as f: meminfo = f.read()
with open("/proc/cpuinfo") as f: cpuinfo = f.read()
with open("/proc/stat") as f: stat = f.read()
with open("/sys/devices/system/cpu/online") as f: online = f.read().strip()
count = 0
for part in online.split(","):
    first, _, last = part.partition("-")
    count += int(last or first) - int(first) + 1
print(os.cpu_count(), len(os.sched_getaffinity(0)), count, len(re.findall(r"^processor", cpuinfo, re.M)),
      len(re.findall(r"^cpu\\d", stat, re.M)), re.search(r"MemTotal: +(\\d+) kB", meminfo)[1])
"""


def seen(container: Container) -> tuple[set[str], int]:
    """The numbers of cpus that a program finds by five ways, and the bytes of memory."""
    *cpus, memory = said(container, python(VIEWS)).split()
    return set(cpus), int(memory) * 1024


class TestWhatIsSeenInside:
    def test_without_limits_the_host_s(self) -> None:
        with Container() as container:
            cpus, memory = seen(container)
        assert cpus == {str(os.cpu_count())} or len(CPUS) != os.cpu_count()
        assert memory == isobox.host.features().memory

    @pytest.mark.requires("cgroups")
    def test_the_limits(self) -> None:
        with Container(cpu=1, memory="256M") as container:
            assert seen(container) == ({"1"}, 256 << 20)
            assert "256" in sh(container, "free -m 2>/dev/null || echo 256")
        with Container(cpu=0.1) as container:
            assert seen(container)[0] == {"1"}

    @pytest.mark.requires("cgroups")
    def test_more_than_there_is(self) -> None:
        with Container(cpu=500, memory="100T") as container:
            assert seen(container)[0] == {str(len(CPUS))} or len(CPUS) != os.cpu_count()
            assert seen(container)[1] == isobox.host.features().memory

    @pytest.mark.requires("cgroups", "cgroup_cpuset")
    @pytest.mark.skipif(len(CPUS) < 2, reason="one cpu only")
    def test_a_cpuset(self) -> None:
        with Container(cpuset=[CPUS[1]]) as container:
            assert seen(container)[0] == {"1"}
            assert sh(container, "cat /sys/devices/system/cpu/online") == f"{CPUS[1]}\n"

    @pytest.mark.requires("cgroups")
    @pytest.mark.parametrize("options", [{}, {"read_only": True}, {"userns": "host"}], ids=str)
    def test_limits_that_come_later(self, options: dict[str, Any]) -> None:
        if options.get("userns") == "host" and os.geteuid() != 0:
            pytest.skip("for root only")
        with Container(**options) as container:
            before = seen(container)
            container.update(memory="128M", cpu=1)
            assert seen(container) == ({"1"}, 128 << 20)
            container.update(memory="64M")
            assert seen(container) == ({"1"}, 64 << 20)
            container.update(memory=None, cpu=None)
            assert seen(container) == before
            assert sh(container, "ls -A /dev/shm") == ""

    @pytest.mark.requires("cgroups", "cgroup_freezer")
    def test_limits_that_come_while_it_is_paused(self) -> None:
        with Container() as container:
            container.pause()
            container.update(memory="128M")
            container.resume()
            assert seen(container)[1] == 128 << 20

    @pytest.mark.requires("cgroups")
    def test_after_an_update(self) -> None:
        with Container(cpu=1, memory="256M") as container:
            container.update(memory="128M")
            assert seen(container) == ({"1"}, 128 << 20)
            container.update(memory="512M")
            assert seen(container)[1] == 512 << 20
            if len(CPUS) > 1:
                container.update(cpu=2)
                assert seen(container)[0] == {"2"} or len(CPUS) > 2


@pytest.mark.requires("cgroups")
class TestUpdate:
    @pytest.fixture
    def container(self) -> Iterator[Container]:
        with Container(cpu=0.5, memory="64M", pids=100) as container:
            yield container

    def test_each(self, container: Container) -> None:
        container.update(memory="128M")
        assert group_file(container, "memory.max|memory.limit_in_bytes") == str(128 << 20)
        container.update(pids=30)
        assert group_file(container, "pids.max") == "30"
        container.update(cpu=0.25)
        quota, period = (
            group_file(container, f"cpu.max|cpu.cfs_{name}_us").split() for name in ("quota", "period")
        )
        assert int(quota[0]) / int(period[-1]) == pytest.approx(0.25)
        assert (container.spec.limits.memory, container.spec.limits.pids) == (128 << 20, 30)
        assert container.spec.limits.cpu == 0.25

    def test_lifted(self, container: Container) -> None:
        container.update(memory=None, cpu=None, pids=None)
        assert group_file(container, "pids.max") == "max"
        assert container.exec(python("bytearray(b'x' * (100 << 20))")).ok
        assert container.spec.limits.memory is None

    def test_while_a_program_runs(self, container: Container) -> None:
        code = "input()\nkept = bytearray(b'x' * (100 << 20))\nprint(len(kept))"
        with container.popen(python(code), stdin=PIPE) as process:
            container.update(memory="256M")
            assert process.communicate(b"\n") == (b"%d\n" % (100 << 20), b"")

    def test_below_what_is_used(self, container: Container) -> None:
        container.update(memory="256M")
        code = "kept = bytearray(b'x' * (100 << 20))\nprint(flush=True)\ninput()\nkept += kept"
        with container.popen(python(code), stdin=PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(isobox.CgroupError, match="memory") as caught:
                container.update(memory="16M")
            assert caught.value.errno == errno.EBUSY
            assert container.spec.limits.memory == 256 << 20
            assert group_file(container, "memory.max|memory.limit_in_bytes") == str(256 << 20)
            assert process.poll() is None
            process.kill()

    @pytest.mark.requires("cgroup_cpuset")
    def test_the_cpuset_of_programs_that_run(self, container: Container) -> None:
        if len(CPUS) < 2:
            pytest.skip("one cpu only")
        container.update(cpu=None)
        with container.popen(["sleep", "60"]) as process:
            assert process.pid is not None
            for cpu in (CPUS[1], CPUS[0]):
                container.update(cpuset=[cpu])
                assert os.sched_getaffinity(process.pid) == {cpu}
                assert said(container, python("import os; print(os.sched_getaffinity(0))")) == f"{{{cpu}}}\n"
            container.update(cpuset=None)
            assert os.sched_getaffinity(process.pid) == set(CPUS)
            process.kill()

    @pytest.mark.parametrize(
        "limits",
        [{"memory": "12X"}, {"cpu": 0}, {"pids": 0}, {"disk": "1M"}, {"nosuch": 1}, {"cpu": -1}],
        ids=str,
    )
    def test_wrong(self, container: Container, limits: dict[str, Any]) -> None:
        before = container.spec
        with pytest.raises((SpecError, TypeError)):
            container.update(**limits)
        assert container.spec == before
        assert container.exec(["true"]).ok


@pytest.mark.requires("cgroup_freezer")
class TestPause:
    def test_everything_stands_still(self) -> None:
        script = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done"
        with Container() as container, container.popen(["sh", "-c", script], stdout=None) as process:
            assert wait_until(lambda: container.exec(["test", "-s", "/tmp/count"]).ok)
            pid = process.pid

            def used() -> tuple[float, list[str]]:
                with open(f"/proc/{pid}/stat") as file:
                    ticks = file.read().split()[13:15]
                seconds = container.stats().cpu_time
                assert seconds is not None
                return seconds, ticks

            container.pause()
            assert container.state == "paused"
            seconds, ticks = used()
            time.sleep(0.5)
            after, ticks_after = used()
            # A thread's last steps into its sleep come after it counts as frozen (cgroup_enter_frozen), and
            # take long where the CPU is shared. By itself the program uses far more.
            assert ticks_after == ticks and after - seconds < 0.01
            container.resume()
            assert container.state == "running"
            count = container.read_text("/tmp/count")
            assert wait_until(lambda: container.read_text("/tmp/count") not in (count, ""))
            process.kill()

    def test_what_can_be_done_meanwhile(self) -> None:
        with Container(pids=100, memory="64M") as container, container.popen(["sleep", "60"]) as process:
            container.pause()
            began = time.monotonic()
            for verb in (
                lambda: container.exec(["true"]),
                container.pause,
                container.changes,
                lambda: container.read_bytes("/etc/passwd"),
                process.terminate,
                lambda: process.pid,
            ):
                with pytest.raises(StateError, match="paused"):
                    verb()
            assert container.stats().wall_time is not None and container.pid is not None
            assert process.poll() is None
            container.update(pids=50, memory="128M")
            assert time.monotonic() - began < patient(5)
            container.resume()
            assert seen(container)[1] == 128 << 20
            with pytest.raises(StateError):
                container.resume()
            process.terminate()
            assert process.wait(10) == -signal.SIGTERM

    def test_killed_meanwhile_it_ends_when_it_goes_on(self) -> None:
        with Container() as container, container.popen(["sleep", "60"]) as process:
            container.pause()
            process.kill()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
            container.resume()
            assert process.wait(10) == -signal.SIGKILL
            assert process.result().reason == "killed"

    def test_an_exception_passes_through(self) -> None:
        container = Container()
        with pytest.raises(KeyError):  # noqa: PT012 - which is to get out of both blocks
            with container, container.popen(["sleep", "60"]) as process:
                container.pause()
                raise KeyError
        assert process.wait(10) == -signal.SIGKILL
        process.close()

    def test_again_and_again(self) -> None:
        with Container() as container:
            for _ in range(10):
                container.pause()
                container.resume()
            assert container.exec(["true"]).ok


@pytest.mark.requires("cgroups")
class TestUsage:
    def test_bounds(self) -> None:
        code = "kept = bytearray(b'x' * (30 << 20))\n" + used(0.2) + "time.sleep(0.1)"
        with Container() as container:
            usage = container.exec(python(code)).usage
        assert usage.cpu_time is not None and usage.wall_time is not None
        # One process, that sleeps for a tenth of a second; the rest depends on the machine.
        assert 0.2 <= usage.cpu_time < usage.wall_time - 0.05
        assert 0.3 <= usage.wall_time < 10
        assert usage.cpu_user is not None and usage.cpu_system is not None
        assert usage.cpu_user + usage.cpu_system == pytest.approx(usage.cpu_time, abs=0.02)
        assert usage.memory_peak is not None and 30 << 20 <= usage.memory_peak < 80 << 20
        assert (usage.pids_peak, usage.oom_kills) == (1, 0)
        for name in (
            "wall_time",
            "cpu_time",
            "cpu_user",
            "cpu_system",
            "memory_peak",
            "pids_peak",
            "oom_kills",
        ):
            assert usage.sources[name], name

    def test_every_number_says_where_it_is_from(self) -> None:
        with Container(cpu=0.5, memory="64M") as container:
            for usage in (container.exec(["true"]).usage, container.stats()):
                for name in (
                    "wall_time",
                    "cpu_time",
                    "memory_peak",
                    "pids_peak",
                    "io_read",
                    "throttled_time",
                ):
                    assert (getattr(usage, name) is None) == (name not in usage.sources), name

    def test_all_processes_of_it_and_no_others(self) -> None:
        code = "import os\nos.fork()\n" + used(0.15)
        with Container() as container, container.popen(python("while True: pass")) as other:
            usage = container.exec(python(code)).usage
            other.kill()
        assert usage.cpu_time is not None and usage.pids_peak == 2
        assert usage.cpu_time < patient(2)

    def test_daemons_count(self) -> None:
        code = """
import os, time
here, there = os.pipe()
if os.fork():
    os.read(here, 1)
elif not os.fork():
    while time.process_time() < 0.15: pass
    os.write(there, b"x")
    while True: pass
"""
        with Container() as container:
            usage = container.exec(python(code)).usage
        assert usage.cpu_time is not None and usage.cpu_time > 0.1

    def test_a_fresh_count_for_each(self) -> None:
        with Container() as container:
            first = container.exec(python("bytearray(b'x' * (50 << 20))")).usage
            second = container.exec(["true"]).usage
        assert first.memory_peak is not None and second.memory_peak is not None
        assert second.memory_peak < 10 << 20 < first.memory_peak
        assert second.cpu_time is not None and first.cpu_time is not None
        assert second.cpu_time < first.cpu_time

    @pytest.mark.requires("cgroup_cpuset", "pressure")
    @pytest.mark.skipif(
        isobox.host.features().cgroup_layout != "v2", reason="v1 measures it for the whole machine only"
    )
    def test_waiting_for_a_cpu_is_pressure(self) -> None:
        with Container(cpuset=[CPUS[0]]) as container:
            alone = container.exec(["sleep", "0.3"]).usage
            both = container.exec(python("import os\nos.fork()\n" + used(0.3))).usage
        assert alone.pressure is not None and both.pressure is not None
        assert set(both.pressure) == {"cpu", "io", "memory"}
        assert both.pressure["cpu"] > alone.pressure["cpu"] + 0.1
        assert "pressure" in both.sources

    def test_unmeasured(self) -> None:
        with Container() as container:
            usage = container.exec(["true"], measure=False).usage
        assert usage.memory_peak is None and usage.wall_time is not None
        assert usage.sources["cpu_time"] == "wait4(2) rusage"

    def test_cpu_time_without_measure_is_refused(self) -> None:
        with Container() as container, pytest.raises(SpecError) as caught:
            container.exec(["true"], cpu_time=1, measure=False)
        assert caught.value.field == "measure"

    def test_of_the_container_grows(self) -> None:
        with Container() as container:
            before = container.stats()
            container.exec(python("import time\nwhile time.process_time() < 0.1: pass"))
            after = container.stats()
        assert before.cpu_time is not None and after.cpu_time is not None
        assert after.cpu_time >= before.cpu_time + 0.1
        assert (
            before.wall_time is not None
            and after.wall_time is not None
            and after.wall_time > before.wall_time
        )
        assert after.pids_peak is not None and after.pids_peak >= 2


MAP_HUGE = """
import mmap, sys
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | 21 << 26  # MAP_HUGETLB, of 2 MiB
held = []
try:
    for _ in range(int(sys.argv[1])):
        held.append(mmap.mmap(-1, 2 << 20, flags=flags))
        held[-1][0] = 1
except OSError as error:
    print(len(held), error.errno)
else:
    print(len(held))
"""


@pytest.mark.skipif(
    not isobox.host.features().cgroup.usable("hugetlb") or 2 << 20 not in huge_pages(),
    reason="no hugetlb controller, or no pages of 2 MiB",
)
class TestHugePages:
    def test_of_which_few_may_be_had(self) -> None:
        with open("/proc/sys/vm/nr_hugepages") as file:
            if int(file.read()) < 5:
                pytest.skip("vm.nr_hugepages is less than 5")
        with Container(**HUGE) as container:
            assert said(container, python(MAP_HUGE, "2")).split() == ["2"]
            assert said(container, python(MAP_HUGE, "3")).split() == ["2", str(errno.ENOMEM)]
            container.update(hugetlb={"2M": "8M"})
            assert said(container, python(MAP_HUGE, "5")).split() == ["4", str(errno.ENOMEM)]
            container.update(hugetlb=None)
            assert said(container, python(MAP_HUGE, "5")).split() == ["5"]
        with Container() as container:
            container.update(**HUGE)
            assert said(container, python(MAP_HUGE, "3")).split() == ["2", str(errno.ENOMEM)]
