"""A scope of systemd's, where systemd is PID 1 and the program's own group is not its to divide.

A process is moved for good, so each test asks in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import leftovers
from isobox.cgroups import discover, own_group, scope

pytestmark = [
    pytest.mark.requires("systemd"),
    pytest.mark.skipif(not scope.wanted(discover()), reason="the own group of the tests serves already"),
]

START = """
import json, os, subprocess, sys, threading, time
import isobox
from isobox.cgroups import discover, own_group, scope
from isobox.shared import shared
def tell(**found):
    print(json.dumps(found), flush=True)
"""


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    program = f"import sys\nsys.path[:] = {sys.path!r}\n{START}{code}"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=dict(os.environ, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def places() -> Iterator[dict[str, str]]:
    """A state and a data folder that no other program uses."""
    with tempfile.TemporaryDirectory(prefix="isobox-test-") as folder:
        os.chmod(folder, 0o755)  # a container's root has to reach it
        yield {"ISOBOX_STATE_DIR": f"{folder}/state", "ISOBOX_DATA_DIR": f"{folder}/data"}


def told(code: str, **environment: str) -> dict[str, Any]:
    """What a program says that is run to its end."""
    out, err = python(code, **environment).communicate(timeout=150)
    assert err == ""
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def systemctl(*arguments: str) -> str:
    user = [] if os.geteuid() == 0 else ["--user"]
    command = ["systemctl", *user, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def unit(group: str) -> str:
    """The scope that a group is in."""
    (name,) = [part for part in group.split("/") if part.startswith("isobox-") and part.endswith(".scope")]
    return name


def directory(group: str) -> Path:
    """Where a scope's group is, or was."""
    return Path("/sys/fs/cgroup" + group[: group.index(unit(group))] + unit(group))


def gone(group: str) -> bool:
    """Whether systemd ended the scope and removed its group."""
    name = unit(group)
    return leftovers.wait_until(
        lambda: not directory(group).exists() and name not in systemctl("list-units", "--all", "isobox-*"), 30
    )


def test_limits_hold_in_a_scope() -> None:
    found = told("""
before = own_group()
result = isobox.run(["cat", "/sys/fs/cgroup/memory.max"], memory="64M", cpu=0.5, pids=32)
with isobox.Container("host", memory="64M", cpu=0.5, pids=32) as c:
    hog = c.exec(["python3", "-c", "x = bytearray(10**9)"])
    [group] = [line.split()[1] for line in c.explain().splitlines() if line.startswith("cgroup ")]
name = next(part for part in own_group().split("/") if part.startswith("isobox-") and part.endswith(".scope"))
show = ["systemctl", *([] if os.geteuid() == 0 else ["--user"]), "show", name]
settings = subprocess.run(show, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
tell(before=before, after=own_group(), group=group, hog=hog.reason, settings=settings, result=result.reason)
""")
    assert "isobox" not in found["before"]
    assert scope.UNIT.search(found["after"]) and found["after"].endswith("/isobox-host")
    assert found["group"].startswith(f"{directory(found['after'])}/isobox/")
    assert found["hog"] == "oom" and found["result"] == "exited"
    assert {"Delegate=yes", "ActiveState=active", "TasksMax=infinity"} <= set(found["settings"])
    around = scope.enclosing_slice(own_group()) if os.geteuid() == 0 else "app.slice"
    assert f"Slice={around}" in found["settings"]
    assert gone(found["after"])


def test_children_of_any_kind_are_in_the_scope_and_ask_for_none() -> None:
    found = told("""
isobox.run(["true"], memory="64M")
pid = os.fork()
if pid == 0:
    isobox.run(["true"], memory="64M")
    os._exit(0 if own_group() == open(f"/proc/{os.getppid()}/cgroup").read().strip()[3:] else 1)
status = os.waitpid(pid, 0)[1]
code = "import sys; sys.path[:] = %r; import isobox; isobox.run(['true'], memory='64M')" % sys.path
code += "; from isobox.cgroups import own_group; print(own_group())"
program = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
tell(own=own_group(), status=status, program=program.stdout.strip())
""")
    assert found["status"] == 0 and found["program"] == found["own"]
    assert gone(found["own"])


def test_threads_get_one_scope() -> None:
    found = told("""
groups, errors = [], []
real, asked = scope._ask, []
scope._ask = lambda: asked.append(1) or real()
def work():
    try:
        isobox.run(["true"], memory="64M")
        groups.append(own_group())
    except BaseException as error:
        errors.append(repr(error))
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
tell(groups=groups, errors=errors, asked=len(asked))
""")
    assert found["errors"] == [] and found["asked"] == 1
    assert len(found["groups"]) == 4 and len(set(found["groups"])) == 1


@pytest.mark.parametrize("bus", [True, False])
def test_each_way_to_the_manager(bus: bool) -> None:
    found = told(f"""
real = scope.doors
scope.doors = lambda *given: [door for door in real(*given) if door.bus is {bus}]
isobox.run(["true"], memory="64M")
tell(own=own_group(), refusal=str(shared().groups._refusal))
""")
    assert found["refusal"] == "None" and scope.UNIT.search(found["own"])


def test_a_bus_of_another_kind_is_passed_by() -> None:
    name = "DBUS_SYSTEM_BUS_ADDRESS" if os.geteuid() == 0 else "DBUS_SESSION_BUS_ADDRESS"
    found = told("isobox.run(['true'], memory='64M'); tell(own=own_group())", **{name: "unix:path=/nowhere"})
    assert scope.UNIT.search(found["own"])


REFUSED = """
before = own_group()
try:
    isobox.run(["true"], memory="64M")
except isobox.UnsupportedError as error:
    tell(same=before == own_group(), why=error.why, remedy=error.remedy)
else:
    tell(same=before == own_group(), why="", remedy="")
"""


@pytest.mark.requires("ordinary_user")
def test_what_an_ordinary_user_is_told() -> None:
    switched_off = told(REFUSED, ISOBOX_SYSTEMD_SCOPE="0")
    assert switched_off["same"] and "unset ISOBOX_SYSTEMD_SCOPE" in switched_off["remedy"]
    no_library = told("sys.modules['jeepney'] = None" + REFUSED)
    assert no_library["same"] and no_library["remedy"] == "pip install 'isobox[systemd]'"
    assert "not delegated" in no_library["why"] and "jeepney" in no_library["why"]
    nobody = told("scope._runtime = lambda _: ''" + REFUSED)
    assert nobody["same"] and "loginctl enable-linger" in nobody["remedy"]


@pytest.mark.requires("root")
def test_root_stays_where_it_is_without_a_scope() -> None:
    for found in (
        told(REFUSED, ISOBOX_SYSTEMD_SCOPE="0"),
        told("sys.modules['jeepney'] = None" + REFUSED),
    ):
        assert found == {"same": True, "why": "", "remedy": ""}


def test_what_a_killed_program_leaves_is_collected_by_another(places: dict[str, str]) -> None:
    program = python(
        """
c = isobox.Container("host", memory="64M").start()
c.pause()
stray, kept = (subprocess.Popen(["sleep", "600"], stdin=-3, stdout=-3, stderr=-3) for _ in range(2))
[top] = shared().groups.paths
group = next(path for path, below, _ in os.walk(top) if path.endswith("/init"))
with open(f"{group}/cgroup.procs", "w") as file:
    file.write(str(stray.pid))
tell(own=own_group(), top=top, stray=stray.pid, kept=kept.pid)
time.sleep(600)
""",
        **places,
    )
    assert program.stdout is not None
    found = json.loads(program.stdout.readline())
    try:
        program.send_signal(signal.SIGKILL)
        program.communicate(timeout=30)
        assert os.path.isdir(found["top"])
        cleaned = told(
            """
from isobox.doctor import doctor_clean
found = doctor_clean()
tell(owners=found.owners, errors=[repr(error) for error in found.errors])
""",
            **places,
        )
        assert os.path.basename(found["top"]) in cleaned["owners"] and cleaned["errors"] == []
        assert not os.path.exists(found["top"])
        # It may be unreaped: what matters is that it runs no more.
        assert leftovers.wait_until(lambda: not running(found["stray"])) and running(found["kept"])
    finally:
        for pid in (found["stray"], found["kept"]):
            if running(pid):
                os.kill(pid, signal.SIGKILL)
    assert gone(found["own"])


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_the_scope_ends_with_a_killed_program() -> None:
    program = python("""
c = isobox.Container("host", memory="64M").start()
c.popen(["sleep", "600"])
tell(own=own_group())
time.sleep(600)
""")
    assert program.stdout is not None
    own = json.loads(program.stdout.readline())["own"]
    assert directory(own).exists()
    program.send_signal(signal.SIGKILL)
    program.communicate(timeout=30)
    assert gone(own)


def test_the_doctor_asks_in_a_process_of_its_own() -> None:
    found = told("""
before = own_group()
report = isobox.doctor()
tell(same=before == own_group(), items={item.name: [item.status, item.why] for item in report.items})
""")
    assert found["same"]
    items = found["items"]
    assert items["cgroups"][0] == "works" and "in a scope" in items["cgroups"][1]
    for name in ("memory limit", "pids limit", "cpu limit", "pause", "container"):
        assert items[name][0] == "works", items[name]
