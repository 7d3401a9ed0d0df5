"""SIGKILL of the process that owns containers: nothing runs on, and the next one finds nothing left.

ISOBOX_KILLS says how many are killed at random moments (200).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leftovers import cgroup_directories, wait_until
from patience import patient

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

KILLS = int(os.environ.get("ISOBOX_KILLS", "200"))
VICTIMS = Path(__file__).with_name("victims.py")
MOST_SECONDS = 1.0
"""What one kill may take on a loaded machine; the goal, 0.1 s, holds for nine in ten."""


@pytest.fixture
def places() -> Iterator[dict[str, str]]:
    """A state and a data directory of the test's own, which a container's root can reach."""
    folder = tempfile.mkdtemp(prefix="isobox-kill-", dir="/tmp")
    os.chmod(folder, 0o711)
    yield {"ISOBOX_STATE_DIR": f"{folder}/state", "ISOBOX_DATA_DIR": f"{folder}/data"}
    shutil.rmtree(folder)


def run(places: dict[str, str], *arguments: object) -> Any:
    paths = os.pathsep.join([str(VICTIMS.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", VICTIMS, *map(str, arguments)],
        env={**os.environ, **places, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=patient(170),
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def mounts() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return sorted(line for line in file if "isobox" in line)


def clean(places: dict[str, str]) -> None:
    """`isobox doctor --clean`, as its user types it."""
    done = subprocess.run(
        [sys.executable, "-m", "isobox.cli", "doctor", "--clean"],
        env={**os.environ, **places}, capture_output=True, text=True, timeout=patient(60),
    )  # fmt: skip
    assert "could not remove" not in done.stderr, done.stderr


def nothing_left(places: dict[str, str], owner_ids: list[str]) -> list[str]:
    found = cgroup_directories(owner_ids)
    for top in places.values():
        for folder in ("owners", "names", "ranges"):
            if os.path.isdir(f"{top}/{folder}"):
                found += [f"{top}/{folder}/{name}" for name in os.listdir(f"{top}/{folder}")]
    return found


def verify(found: Any, places: dict[str, str], least: int) -> None:
    times = found["times"]
    assert len(times) >= least
    middle, worst = statistics.median(times) * 1000, max(times) * 1000
    print(f"{len(times)} kills: everything gone after {middle:.1f} ms (median), {worst:.1f} ms (worst)")
    assert max(times) < patient(MOST_SECONDS)
    assert statistics.quantiles(times, n=10)[-1] < patient(0.1)
    assert found["owners"]
    clean(places)
    assert nothing_left(places, found["owners"]) == []


def test_at_random_moments(places: dict[str, str]) -> None:
    before = mounts()
    verify(run(places, "random", KILLS, int(time.time())), places, KILLS)
    assert mounts() == before


def test_at_every_system_call(places: dict[str, str]) -> None:
    """Before it is made and after it, if it changes anything: every stage of a start, an exec, a removal.

    With 600 kills really every one of them, with fewer every n-th.
    """
    before = mounts()
    verify(run(places, "every", max(1, 600 // KILLS), 0), places, KILLS // 4)
    assert mounts() == before


def test_the_next_start_collects(places: dict[str, str]) -> None:
    """Without anyone's asking: the next program that starts a container finds the dead one's things."""
    found = run(places, "random", 5, 1)
    one = "import isobox; isobox.run(['true']); from isobox import runtime; runtime.current().flush()"
    subprocess.run([sys.executable, "-c", one], env={**os.environ, **places}, check=True, timeout=patient(60))
    assert nothing_left(places, found["owners"]) == []


PAUSES = """
import isobox, time
c = isobox.Container().start()
p = c.popen(["sleep", "1000"], stdout=isobox.DEVNULL, stderr=isobox.DEVNULL)
pids = c.pid, p.pid
c.pause()
print(*pids, flush=True)
time.sleep(1000)
"""


STOPS = """
import os
while True:
    try:
        os.kill(-1, 19)  # SIGSTOP
    except OSError:  # nobody else is there
        pass
"""

KEPT = """
import contextlib, os, sys, threading, time
from isobox import DEVNULL, Container

def is_kept(child):
    try:
        with open(f"/proc/{child}/stat") as file:
            name, _, rest = file.read().partition("(")[2].rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "isobox-in" in name and rest.split()[0] == "T"

def children():
    for thread in os.listdir(f"/proc/{c.pid}/task"):
        with contextlib.suppress(FileNotFoundError):  # one that only waits beside another
            with open(f"/proc/{c.pid}/task/{thread}/children") as file:
                yield from file.read().split()

c = Container(**({"pids": int(sys.argv[2])} if sys.argv[2] else {})).start()
p = c.popen([sys.executable, "-I", "-S", "-c", sys.argv[1]], stdout=DEVNULL, stderr=DEVNULL)
limit = {"memory": sys.argv[3] or None}
kept, until = False, time.monotonic() + 3
while not kept and time.monotonic() < until:
    threading.Thread(target=c.exec, args=(["true"],), kwargs=limit, daemon=True).start()
    time.sleep(0.05)
    kept = any(map(is_kept, children()))
print(c.pid, "kept" if kept else "not kept", flush=True)
time.sleep(1000)
"""


def lives(pid: str) -> bool:
    """Whoever inherits orphans may take its time to reap them."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.requires("cgroup_freezer")
def test_while_it_is_paused(places: dict[str, str]) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", PAUSES], env={**os.environ, **places}, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pids = owner.stdout.readline().split()
    ids = os.listdir(f"{places['ISOBOX_STATE_DIR']}/owners")
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert len(pids) == 2
    gone = wait_until(lambda: not any(map(lives, pids)), MOST_SECONDS)
    clean(places)
    assert nothing_left(places, ids) == []
    assert not any(map(lives, pids))
    assert gone


@pytest.mark.parametrize(
    ("pids", "memory"),
    [
        ("", ""),
        pytest.param("20", "", marks=pytest.mark.requires("cgroup_pids")),
        pytest.param("20", "256M", marks=pytest.mark.requires("cgroup_pids", "cgroup_memory")),
    ],
)
def test_while_a_program_is_kept_from_its_beginning(places: dict[str, str], pids: str, memory: str) -> None:
    """Root inside may stop what is about to be a program; init waits for that, and sees its owner's end.

    In each of its ways to wait: few pids, so no thread under the filter; a limit of memory, so in vfork.
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", KEPT, STOPS, pids, memory],
        env={**os.environ, **places}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    pid, _, kept = owner.stdout.readline().strip().partition(" ")
    assert pid
    ids = os.listdir(f"{places['ISOBOX_STATE_DIR']}/owners")
    owner.kill()
    owner.wait()
    owner.stdout.close()
    gone = wait_until(lambda: not lives(pid), MOST_SECONDS)
    clean(places)
    assert nothing_left(places, ids) == []
    assert gone
    print(kept)
