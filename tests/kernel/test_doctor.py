"""The doctor on this host, and on hosts that namespaces make worse: what is broken is found and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from isobox import runtime, shared
from isobox.doctor import doctor, doctor_clean
from isobox.findings import Item, Report
from patience import patient

PROGRAM = """
import json, os
from isobox.doctor import doctor
print(json.dumps({item.name: [item.status, item.why, item.remedy, item.needed] for item in doctor().items}))
"""


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Not tmp_path: that is closed to others, and so to containers of root.
    with tempfile.TemporaryDirectory(prefix="isobox-test-") as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("ISOBOX_STATE_DIR", f"{folder}/state")
        monkeypatch.setenv("ISOBOX_DATA_DIR", f"{folder}/data")
        # What this process has at the usual places, other tests go on with.
        monkeypatch.setattr(shared, "_current", None)
        monkeypatch.setattr(runtime, "_current", None)
        yield Path(folder)
        if shared._current is not None:
            shared._current.close()
        if runtime._current is not None:
            runtime._current.close()


def elsewhere(*wrapper: str, shell: str = "") -> dict[str, Item]:
    """What the doctor says below another program, after commands of a shell there."""
    command = [*wrapper, "sh", "-ec", f'{shell}\nexec "$0" -c "$1"', sys.executable, PROGRAM]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=patient(60))
    return {name: Item(name, *rest) for name, rest in json.loads(done.stdout).items()}


def test_here() -> None:
    report = doctor()
    names = [item.name for item in report.items]
    assert len(names) == len(set(names)) > 25
    for item in report.items:
        assert item.status in ("works", "degraded", "missing")
        if item.status != "works":
            assert item.why, f"{item.name} is {item.status} and nobody knows why"
            assert item.remedy, f"nothing helps against: {item.name}: {item.why}"
        else:
            assert not item.remedy
    assert report.ok, str(report)
    assert report["container"].status == "works"
    for line in str(report).splitlines():
        assert len(line) <= 120


@pytest.mark.requires("root", "cgroups")
def test_all_limits_work_for_root() -> None:
    report = doctor()
    for name in ("cpu limit", "cpu_weight", "memory limit", "pids limit", "pause", "cpu time", "memory peak",
                 "device control"):  # fmt: skip
        assert report[name].status == "works", str(report[name])
    assert report["id ranges"].status == "works"


@pytest.mark.requires("ordinary_user", "newuidmap", "id_ranges")
def test_an_ordinary_user_with_ranges() -> None:
    assert "by newuidmap" in doctor()["id ranges"].why


def test_nothing_is_left(places: Path) -> None:
    code = """
import os
import isobox.diagnosis
from isobox.doctor import doctor
isobox.diagnosis._container = isobox.diagnosis._zstd  # containers keep some things ready
def counts():
    return len(os.listdir("/proc/self/fd")), len(open("/proc/self/mountinfo").readlines())
doctor(); first = counts()
for _ in range(5): doctor()
assert counts() == first, (counts(), first)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=patient(60))
    assert os.listdir(places / "state/owners") == os.listdir(places / "data/owners") == []


@pytest.mark.requires("user_namespaces")
def test_user_namespaces_switched_off() -> None:
    # The setting belongs to the user namespace that it is written in: here, a new one.
    found = elsewhere(
        "unshare", "--user", "--map-root-user", shell="echo 0 >/proc/sys/user/max_user_namespaces"
    )
    item = found["user namespace"]
    assert item.status == "missing" and item.needed
    assert "max_user_namespaces is 0" in item.why and "sysctl -w user.max_user_namespaces" in item.remedy
    assert found["container"].status == "missing"
    assert not Report(tuple(found.values())).ok


@pytest.mark.requires("user_namespaces")
def test_root_of_a_namespace_with_one_id() -> None:
    found = elsewhere("unshare", "--user", "--map-root-user")
    assert found["user namespace"].status == "works"
    assert found["id ranges"].status == "degraded" and "one id" in found["id ranges"].why


@pytest.mark.requires("user_namespaces")
def test_a_masked_proc_as_in_docker() -> None:
    found = elsewhere(
        "unshare", "--user", "--map-root-user", "--mount", shell="mount -t tmpfs none /proc/sys/fs"
    )
    item = found["/proc and /sys"]
    assert item.status == "missing" and "systempaths=unconfined" in item.remedy
    assert found["overlay"].status == "works"


@pytest.mark.requires("user_namespaces")
def test_no_new_privileges() -> None:
    found = elsewhere("setpriv", "--no-new-privs")
    assert found["user namespace"].status == "works"
    if os.geteuid() != 0:
        assert found["id ranges"].status == "degraded"


def test_a_state_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBOX_STATE_DIR", "/proc/nowhere/state")
    found = elsewhere("env")
    item = found["state folder"]
    assert item.status == "missing" and "/proc/nowhere" in item.why and "ISOBOX_STATE_DIR" in item.remedy
    assert found["user namespace"].status == found["overlay"].status == "works"
    assert found["container"].status == "missing"


def test_a_data_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBOX_DATA_DIR", "/proc/nowhere/data")
    found = elsewhere("env")
    item = found['upper="disk"']
    assert item.status == "missing" and "ISOBOX_DATA_DIR" in item.remedy
    assert found["container"].status == "works"


def test_clean_removes_what_a_killed_program_left(places: Path) -> None:
    code = """
import os, signal, sys
import isobox
c = isobox.Container("host", name="left", upper="disk").start()
print(c.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=patient(60)
    )
    assert done.returncode == -9 and done.stdout.strip().isdigit()
    found = doctor_clean()
    assert len(found.owners) == len(found.directories) == 1
    assert found.names == ("left",) and found.errors == ()
    assert not doctor_clean()
    for folder in ("state/owners", "state/names", "state/ranges", "data/owners"):
        assert os.listdir(places / folder) == []
    groups = subprocess.run(
        ["find", "/sys/fs/cgroup", "-name", found.owners[0]], stdout=subprocess.PIPE, check=False
    )
    assert groups.stdout == b""


def test_text() -> None:
    report = Report(
        (Item("a", "works", "fine"), Item("long name", "missing", "x " * 80, "do it", needed=True))
    )
    lines = str(report).splitlines()
    assert lines[0] == "works     a          fine"
    assert lines[1].startswith("missing   long name  x x x")
    assert lines[2].startswith(" " * 21 + "x") and lines[-1].endswith("Remedy: do it")
    assert not report.ok
    with pytest.raises(KeyError):
        report["b"]
