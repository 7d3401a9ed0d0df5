"""Owners with real processes: locks, names, ranges and directories, and what a SIGKILL leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox import runtime
from isobox.errors import SpecError, StateError, UnsupportedError
from isobox.idmap import COUNT, IdRange
from isobox.ranges import gap
from isobox.runtime import Owner

root_only = pytest.mark.requires("root")  # ranges of ids are for root


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Not tmp_path: that is closed to others, and so to containers of root.
    with tempfile.TemporaryDirectory(prefix="isobox-test-") as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("ISOBOX_STATE_DIR", f"{folder}/state")
        monkeypatch.setenv("ISOBOX_DATA_DIR", f"{folder}/data")
        yield Path(folder)


@pytest.fixture
def owner(places: Path) -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


def nothing(owner_id: str) -> None:
    """No cgroups to remove."""


def files(places: Path) -> list[str]:
    """What is left but the empty frame."""
    found = []
    for folder, folders, names in os.walk(places):
        found += [f"{folder}/{name}" for name in folders + names]
    relative = {os.path.relpath(path, places) for path in found}
    frame = {
        "state", "state/lock", "state/owners", "state/names", "state/ranges",
        "data", "data/lock", "data/owners",
    }  # fmt: skip
    return sorted(relative - frame)


def child(code: str) -> subprocess.Popen[str]:
    program = "import os, sys\nfrom isobox.errors import *\nfrom isobox.runtime import *\n"
    program += "owner = Owner()\n" + code
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


WAIT = "print(owner.id, flush=True); sys.stdin.read()"


def test_close_leaves_nothing(places: Path) -> None:
    owner = Owner()
    owner.name("web")
    owner.directory("masks")
    (Path(owner.disk_dir()) / "file").write_text("x")
    if os.geteuid() == 0:
        owner.uid_range()
    assert len(files(places)) >= 5
    owner.close()
    owner.close()
    assert files(places) == []


def test_end_of_the_program_leaves_nothing(places: Path) -> None:
    with child("owner.name('a'); owner.discard(owner.disk_dir()); owner.disk_dir()") as process:
        pass
    assert process.returncode == 0 and files(places) == []


def test_names_are_unique_here_and_elsewhere(owner: Owner, places: Path) -> None:
    owner.name("web")
    with pytest.raises(SpecError, match="name='web': expected a name that is free: it is in use by this"):
        owner.name("web")
    second = Owner()
    with pytest.raises(SpecError, match="in use by process"):
        second.name("web")
    second.release_name("web")  # not its own: stays
    with child("""
try:
    owner.name("web")
except Exception as error:
    print(type(error).__name__, error)
owner.name("db")
print("ready", flush=True); sys.stdin.read()""") as process:
        assert said(process).startswith("SpecError name='web': expected a name that is free: it is in use by")
        assert said(process) == "ready"
        with pytest.raises(SpecError, match=str(process.pid)):
            owner.name("db")
        process.kill()
        process.wait()
        owner.name("db")  # its holder is dead: free at once
    owner.release_name("web")
    second.name("web")
    second.close()


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".", ".hidden", "a\0", "x" * 300])
def test_bad_names(owner: Owner, name: str) -> None:
    with pytest.raises(SpecError, match="name"):
        owner.name(name)


@root_only
def test_ranges_are_apart_in_two_processes(owner: Owner, places: Path) -> None:
    with child("print(*[owner.uid_range() for _ in range(20)], flush=True); sys.stdin.read()") as process:
        mine = [owner.uid_range() for _ in range(20)]
        theirs = [int(word) for word in said(process).split()]
        both = [IdRange(base, COUNT) for base in mine + theirs]
        assert len(both) == 40
        for index, entry in enumerate(both):
            assert not any(entry.overlaps(other) for other in both[:index])
        process.kill()


@root_only
def test_ranges_come_back(owner: Owner) -> None:
    first = owner.uid_range()
    owner.release_uid_range(first)
    taken = [owner.uid_range() for _ in range(8)]
    assert taken[-1] == first and len(os.listdir(f"{owner.state}/ranges")) == 1
    made = owner.id_map()
    assert made.root_uid not in taken
    owner.release_id_map(made)


@root_only
def test_ranges_run_out(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = (IdRange(1000, COUNT - 1), IdRange(2_000_000_000, 3 * COUNT + 5))
    monkeypatch.setattr("isobox.idmap.read_root_ranges", lambda: few)
    owner, other = Owner(), Owner()
    taken = [owner.uid_range() for _ in range(3)]
    assert taken == [2_000_000_000 + i * COUNT for i in range(3)]
    with pytest.raises(StateError, match="doctor --clean"):
        other.uid_range()
    owner.close()
    assert other.uid_range() == taken[0]
    other.close()


bounds = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(
    lambda pair: IdRange(pair[0] * 20000, pair[1] * 20000)
)


@given(st.lists(bounds, max_size=6), st.lists(bounds, max_size=8), st.integers(1, 8))
def test_a_place_for_ranges_is_free_and_found_if_there_is_one(
    ranges: list[IdRange], taken: list[IdRange], windows: int
) -> None:
    found = gap(tuple(ranges), taken, windows)
    if found is None:
        for whole in ranges:
            for start in range(whole.start, whole.end - COUNT + 1, 1000):
                assert any(IdRange(start, COUNT).overlaps(entry) for entry in taken)
        return
    assert 0 < found.size <= windows * COUNT and found.size % COUNT == 0
    assert any(whole.start <= found.start and found.end <= whole.end for whole in ranges)
    assert not any(found.overlaps(entry) for entry in taken)


def test_a_name_has_one_holder_whatever_happens(places: Path) -> None:
    code = """
got = 0
print("ready", flush=True); sys.stdin.readline()
while got < 100:
    try:
        owner.name("web")
    except SpecError:
        continue
    got += 1
    os.close(os.open(owner.state + "/held", os.O_CREAT | os.O_EXCL))
    os.unlink(owner.state + "/held")
    owner.release_name("web")
print(got)
"""
    with child(code) as first, child(code) as second, child(code) as third:
        processes = (first, second, third)
        assert [said(process) for process in processes] == ["ready"] * 3
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        assert [said(process) for process in processes] == ["100"] * 3


def test_threads_get_different_ranges_and_directories(owner: Owner) -> None:
    taken: list[object] = []

    def work() -> None:
        for _ in range(10):
            taken.append(owner.disk_dir())
            if os.geteuid() == 0:
                taken.append(owner.uid_range())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) >= 80


def test_collect_takes_the_dead_and_leaves_the_living(owner: Owner, places: Path) -> None:
    work = "owner.name(sys.argv[0] + str(os.getpid())); open(owner.disk_dir() + '/f', 'w'); owner.id_map();"
    with child(work + WAIT) as living, child(work + WAIT) as dying:
        alive, dead = said(living), said(dying)
        dying.kill()
        dying.wait()
        asked: list[str] = []
        found = owner.collect(asked.append)
        assert found.owners == (dead,) == tuple(asked)
        assert len(found.names) == 1 and found.errors == ()
        assert len(found.ranges) == (1 if os.geteuid() == 0 else 0)
        assert found.directories == (f"{owner.data}/owners/{dead}",)
        assert not [path for path in files(places) if dead in path]
        assert os.path.exists(f"{owner.state}/owners/{alive}/lock")
        assert os.path.exists(f"{owner.data}/owners/{alive}/1/f")
        assert not owner.collect(asked.append)
        with pytest.raises(SpecError):
            owner.name("-c" + str(living.pid))
        living.kill()


def test_collect_keeps_what_its_callback_could_not_remove(owner: Owner, places: Path) -> None:
    with child(WAIT) as process:
        dead = said(process)
        process.kill()

    def fail(owner_id: str) -> None:
        raise OSError(16, "busy")

    found = owner.collect(fail)
    assert found.owners == () and isinstance(found.errors[0], OSError)
    assert owner.collect(nothing).owners == (dead,)


def test_two_collectors_share_the_work(owner: Owner, places: Path) -> None:
    for _ in range(3):
        with child(WAIT) as process:
            said(process)
            process.kill()
    second = Owner()
    seen: list[str] = []
    slow = threading.Barrier(2)

    def remove(owner_id: str) -> None:
        seen.append(owner_id)
        time.sleep(0.01)

    def collect(which: Owner) -> None:
        slow.wait()
        which.collect(remove)

    threads = [threading.Thread(target=collect, args=(each,)) for each in (owner, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == len(set(seen)) == 3
    second.close()


def test_data_survives_its_state(owner: Owner, places: Path) -> None:
    # A reboot empties the state directory, but not the data directory.
    with child("open(owner.disk_dir() + '/f', 'w');" + WAIT) as process:
        dead = said(process)
        process.kill()
    os.unlink(places / f"state/owners/{dead}/lock")
    os.rmdir(places / f"state/owners/{dead}")
    assert owner.collect(nothing).directories == (f"{owner.data}/owners/{dead}",)


def test_collect_once(owner: Owner, places: Path) -> None:
    asked: list[str] = []
    for _ in range(2):
        with child(WAIT) as process:
            said(process)
            process.kill()
        owner.collect_once(asked.append)
    assert len(asked) == 1


def test_discard(owner: Owner, places: Path) -> None:
    path = owner.disk_dir()
    (Path(path) / "a/b").mkdir(parents=True)
    assert os.stat(path).st_mode & 0o777 == 0o700
    owner.discard(path)
    assert not os.path.exists(path)
    assert owner.flush(10)
    assert os.listdir(f"{owner.data}/owners/{owner.id}") == ["lock"]
    owner.discard(path)  # twice is fine


def test_a_forked_child_has_an_owner_of_its_own(places: Path) -> None:
    code = """
import isobox.runtime as runtime
owner.close()
first = runtime.current()
first.name("mine")
first.disk_dir()
pid = os.fork()
if pid == 0:
    try:
        first.name("other")
    except StateError as error:
        print("refused", flush=True)
    first.release_name("mine"); first.close(); first.discard("/nowhere")
    second = runtime.current()
    assert second is not first and second.id != first.id
    try:
        second.name("mine")
    except SpecError as error:
        print("in use", flush=True)
    assert second.collect(print).owners == ()
    sys.exit()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
with open("/proc/self/fd/%d" % first._state_fd): pass
print(os.listdir(first.state + "/owners") == [first.id], os.listdir(first.state + "/names"), flush=True)
"""
    with child(code) as process:
        assert process.stdout is not None
        assert process.stdout.read().split("\n") == ["refused", "in use", "True ['mine']", ""]
    assert process.returncode == 0 and files(places) == []


def test_the_parents_death_is_seen_though_its_forked_child_lives(owner: Owner, places: Path) -> None:
    code = """
r, w = os.pipe()
if os.fork() == 0:
    sys.stdin.read(); os._exit(0)
"""
    with child(code + WAIT) as process:
        dead = said(process)
        os.kill(process.pid, signal.SIGKILL)
        # The pid is a zombie with a living child that has the lock's descriptor's copy closed.
        deadline = time.monotonic() + 5
        while owner.collect(nothing).owners != (dead,):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_forked_child_collects_its_dead_parent(places: Path) -> None:
    code = """
import time
owner.name("parents")
if os.fork() == 0:
    sys.stdin.read()
    child = Owner()
    found = child.collect(lambda owner_id: None)
    child.close()
    print(found, flush=True)
    os._exit(0)
"""
    with child(code + WAIT) as process:
        dead = said(process)
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.stdin is not None
        process.stdin.close()
        assert f"owners=('{dead}',), names=('parents',)" in said(process)


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_at_any_moment_leaves_nothing_after_a_collection(places: Path, seed: int) -> None:
    chance = random.Random(seed)
    code = """
print("go", flush=True)
while True:
    owner.name("web"); owner.release_name("web")
    path = owner.disk_dir(); os.makedirs(path + "/a/b")
    base = owner.id_map()
    if len(owner.directory("masks")) and owner._count % 3: owner.discard(path)
    owner.collect(lambda owner_id: None)
    if owner._count % 5 == 0:
        owner.close(); owner = Owner()
"""
    for _ in range(4):
        processes = [child(code) for _ in range(3)]
        for process in processes:
            said(process)
        time.sleep(chance.random() * 0.1)
        for process in processes:
            process.kill()
            process.communicate()
    owner = Owner()
    found = owner.collect(nothing)
    assert found.errors == ()
    owner.close()
    assert files(places) == []


def test_state_directory_of_someone_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    monkeypatch.setenv("ISOBOX_STATE_DIR", str(tmp_path / "state"))
    with pytest.raises(UnsupportedError, match="set ISOBOX_STATE_DIR"):
        Owner()
    monkeypatch.setenv("ISOBOX_STATE_DIR", "/proc/nowhere/state")
    with pytest.raises(UnsupportedError, match="can't make /proc/nowhere/state"):
        Owner()


@root_only
def test_a_state_directory_that_containers_cannot_reach(owner: Owner, places: Path) -> None:
    places.chmod(0o700)
    with pytest.raises(UnsupportedError, match=f"chmod o\\+x {places}, or set ISOBOX_STATE_DIR"):
        owner.directory("stage")


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ISOBOX_STATE_DIR", "ISOBOX_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if os.geteuid() == 0:
        assert (runtime.state_dir(), runtime.data_dir()) == ("/run/isobox", "/var/lib/isobox")
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 12345)
    assert runtime.state_dir() == f"/tmp/isobox-{os.getuid() + 12345}"  # not our XDG_RUNTIME_DIR
    monkeypatch.setattr("os.geteuid", lambda: os.stat(tmp_path).st_uid or 77)
    if os.getuid():
        assert runtime.state_dir() == str(tmp_path / "isobox")
    monkeypatch.setenv("HOME", "/home/joe")
    assert runtime.data_dir() == "/home/joe/.local/share/isobox"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert runtime.data_dir() == "/data/isobox"


def test_hot_path_opens_no_file(places: Path) -> None:
    code = """
owner.release_id_map(owner.id_map())
owner.collect_once(print)
events = []
sys.addaudithook(lambda event, args: events.append(event))
for _ in range(100):
    owner.collect_once(print)
    owner.release_id_map(owner.id_map())
print(events, flush=True)
"""
    with child(code) as process:
        assert said(process) == "[]"
