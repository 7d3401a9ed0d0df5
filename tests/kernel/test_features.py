"""What this host does for this user, feature by feature, is what docs/reference/hosts.md says of such hosts.

Each feature is used, and seen to work or refused with a remedy; `isobox doctor` has to say the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import hosts
import isobox
from isobox import Container, IoLimit, UnsupportedError
from isobox.cgroups.convert import huge_pages
from isobox.cgroups.discovery import in_kernel
from isobox.diagnosis.limits import block_device
from programs import BOMB, DAEMON, HOG, python, said

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

COLUMN: Final = hosts.column()
CPU: Final = min(os.sched_getaffinity(0))
HUGE: Final = 2 << 20
SPIN: Final = python("while True: pass")


def _run(args: list[str], reason: str = "exited", **options: Any) -> isobox.Result[Any]:
    result = isobox.run(args, **{"timeout": 60, **options})
    assert result.reason == reason, result
    return result


def container() -> None:
    """One on the host image."""
    assert _run(["id", "-u"], text=True).stdout == "0\n"


def users() -> None:
    """Other users than root inside."""
    assert _run(["id", "-u"], user="nobody", text=True).stdout.strip() not in ("0", "")


def root_folder() -> None:
    """An image that is a folder, its owners as they are there."""
    program = shutil.which("busybox")
    with tempfile.TemporaryDirectory() as folder:
        assert program is not None, "busybox-static is installed by `make test`"
        shutil.copy(program, f"{folder}/busybox")
        with Container(folder) as box:
            assert box.exec(["/busybox", "true"]).ok


def on_disk() -> None:
    with Container(upper="disk") as box:
        box.write_text("/root/file", "kept")
        assert [change.path for change in box.changes() if change.path.endswith("file")] == ["/root/file"]


def disk() -> None:
    with Container(disk="4M") as box:
        filler = box.exec(["sh", "-c", "head -c 8M /dev/zero >/tmp/file"], text=True)
        assert filler.returncode != 0 and "No space" in filler.stderr


def tty() -> None:
    assert said_tty("tty").startswith("/dev/pts/")


def said_tty(program: str) -> str:
    with Container() as box, box.popen([program], tty=True, text=True) as process:
        return str(process.communicate(timeout=60)[0])


def host_network() -> None:
    _run(["true"], network="host")


def host_users() -> None:
    assert _run(["cat", "/proc/self/uid_map"], userns="host", text=True).stdout.split()[2] == "4294967295"


def time_namespace() -> None:
    with Container(namespaces={"time": "private"}) as box:
        assert said(box, ["readlink", "/proc/self/ns/time"]).strip() != os.readlink("/proc/self/ns/time")


def timeout() -> None:
    _run(python(DAEMON + "time.sleep(60)"))
    _run(["sleep", "60"], "timeout", timeout=0.3)


def output_limit() -> None:
    _run(["yes"], "output-limit", output_limit="1M")


def cpu_time() -> None:
    _run(SPIN, "cpu-timeout", cpu_time=0.2)


def cpu() -> None:
    usage = _run(SPIN, "timeout", cpu=0.2, timeout=1.0).usage
    assert usage.throttled_time and usage.cpu_time and usage.cpu_time < 0.6


def cpu_weight() -> None:
    _run(["true"], cpu_weight=50)


def cpuset() -> None:
    with Container(cpuset=[CPU]) as box:
        assert said(box, python("import os; print(*os.sched_getaffinity(0))")).split() == [str(CPU)]


def memory() -> None:
    _run(python(HOG), "oom", memory="48M")


def swap() -> None:
    _run(python(HOG), "oom", memory="32M", swap="16M")


def exec_memory() -> None:
    with Container() as box:
        assert box.exec(python(HOG), memory="32M", timeout=60).reason == "oom"
        assert box.exec(["true"]).ok


def pids() -> None:
    with Container(pids=20) as box:
        box.exec(python(BOMB), timeout=0.5)
        assert box.exec(["true"]).ok


def exec_pids() -> None:
    with Container() as box:
        result = box.exec(["sh", "-c", "sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait"], pids=3, text=True)
        assert result.returncode != 0, result


def io() -> None:
    _run(["true"], io=[IoLimit(block_device(), write_bps=1 << 30)])


def hugetlb() -> None:
    _run(["true"], hugetlb={"2M": "2M"})


def pause() -> None:
    with Container() as box, box.popen(python("import time\nwhile True: print(1, flush=True)")) as process:
        box.pause()
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        while process.stdout.read(1 << 20):
            pass
        time.sleep(0.1)
        assert not process.stdout.read(1)
        box.resume()
        process.kill()


def _measured(name: str) -> Callable[[], None]:
    def check() -> None:
        usage = _run(["sh", "-c", "head -c 4M /dev/zero | tail -c 1"]).usage
        # Without a cgroup, CPU time is that of the processes that were waited for.
        if getattr(usage, name) is None or usage.sources[name].startswith("wait4"):
            item = isobox.doctor()[DOCTOR[f"measured: {name}"]]
            raise UnsupportedError(name, item.why, item.remedy)

    return check


FEATURES: Final[dict[str, Callable[[], None]]] = {
    "containers": container,
    "more users than root inside": users,
    "image: a folder": root_folder,
    '`upper="disk"`': on_disk,
    "`disk`": disk,
    "`tty`": tty,
    '`network="host"`': host_network,
    '`userns="host"`': host_users,
    "time namespace": time_namespace,
    "`timeout`": timeout,
    "`output_limit`": output_limit,
    "`cpu_time`": cpu_time,
    "`cpu`": cpu,
    "`cpu_weight`": cpu_weight,
    "`cpuset`": cpuset,
    "`memory`": memory,
    "`swap`": swap,
    "`memory` of an exec": exec_memory,
    "`pids`": pids,
    "`pids` of an exec": exec_pids,
    "`io`": io,
    "`hugetlb`": hugetlb,
    "`pause`": pause,
    "measured: cpu_time": _measured("cpu_time"),
    "measured: memory_peak": _measured("memory_peak"),
    "measured: pids_peak": _measured("pids_peak"),
    "measured: oom_kills": _measured("oom_kills"),
    "measured: io_read": _measured("io_read"),
    "measured: pressure": _measured("pressure"),
}

DOCTOR: Final = {
    "containers": "container",
    "more users than root inside": "id ranges",
    '`upper="disk"`': 'upper="disk"',
    "`tty`": "tty",
    "time namespace": "time namespace",
    "`cpu_time`": "cpu time",
    "`cpu`": "cpu limit",
    "`cpu_weight`": "cpu_weight",
    "`cpuset`": "cpuset",
    "`memory`": "memory limit",
    "`swap`": "swap limit",
    "`memory` of an exec": "memory limit",
    "`pids`": "pids limit",
    "`pids` of an exec": "pids limit",
    "`io`": "io limit",
    "`hugetlb`": "hugetlb limit",
    "`pause`": "pause",
    "measured: cpu_time": "cpu time",
    "measured: memory_peak": "memory peak",
    "measured: pids_peak": "pids peak",
    "measured: oom_kills": "memory limit",
    "measured: io_read": "block I/O",
    "measured: pressure": "pressure",
}
"""The doctor's name of a feature."""

KERNEL: Final[dict[str, Callable[[], bool]]] = {
    "image: a folder": lambda: isobox.host.features().host_folders,
    "time namespace": lambda: isobox.host.features().time_namespaces,
    "`cpuset`": lambda: in_kernel("cpuset"),
    "measured: pressure": lambda: isobox.host.features().pressure,
    "`io`": lambda: bool(block_device()),
    "`hugetlb`": lambda: in_kernel("hugetlb") and HUGE in huge_pages(),
}
"""What a kernel may be built without, or a machine not have: no matter of its layout and its user."""


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """Filled by the tests of this module, one a feature."""
    return {}


@pytest.fixture(scope="module")
def report() -> isobox.Report:
    return isobox.doctor()


@pytest.mark.parametrize("feature", FEATURES)
def test_feature(feature: str, found: dict[str, str], report: isobox.Report) -> None:
    if feature in KERNEL and not KERNEL[feature]():
        pytest.skip("this kernel or machine lacks it for everybody")
    try:
        FEATURES[feature]()
        found[feature] = "yes"
    except UnsupportedError as error:
        assert error.why and len(error.remedy) > 10, error
        found[feature] = error.remedy
    name = DOCTOR.get(feature)
    if name:
        # A feature may be there and yet be less than it could: "degraded".
        assert (report[name].status == "missing") <= (found[feature] != "yes"), report[name]
        assert (report[name].status == "works") <= (found[feature] == "yes"), report[name]
    expected = hosts.kept(COLUMN)
    if not os.environ.get("ISOBOX_RECORD") and expected is not None:
        assert found[feature] == expected[feature], COLUMN


def test_record(found: dict[str, str], report: isobox.Report) -> None:
    """The last one: writes down what the others found, where ISOBOX_RECORD names a folder."""
    folder = os.environ.get("ISOBOX_RECORD")
    if not folder:
        pytest.skip("only with ISOBOX_RECORD")
    Path(folder, f"{COLUMN}.json").write_text(json.dumps(found, indent=1) + "\n")
    Path(folder, f"{COLUMN}.txt").write_text(blank(doctor_text()))


def doctor_text() -> str:
    """What the command prints."""
    done = subprocess.run([sys.executable, "-m", "isobox.cli", "doctor"], stdout=subprocess.PIPE, text=True)
    return done.stdout


def blank(text: str) -> str:
    """Leave out what is this machine's alone: paths below others', builds of kernels."""
    text = re.sub(
        r"(/sys/fs/cgroup(?:/(?:cpu|cpuset|memory|pids|freezer|blkio|devices))?)/[^\s:,]+", r"\1/...", text
    )
    text = re.sub(r"/\S+/home\b", "~", text)
    text = re.sub(r"(Linux \d+\.\d+)\S*", r"\1", text)
    return re.sub(r"isobox-\d+", "isobox-UID", text)
