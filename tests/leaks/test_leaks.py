"""The counts before and after: of descriptors, mounts, cgroups, processes, interfaces, files, threads.

Twice each: against a warm engine, which keeps a few cgroups ready, and against nothing at all, once
what containers share is closed. ISOBOX_LEAK_RUNS says how often things are done (2000; by an ordinary
user 200, but for containers in sequence).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import fields

import isobox
from isobox import Container
from isobox import host as hosts
from leftovers import Counts, count, descendants, nothing_left, resident, wait_until

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

RUNS = int(os.environ.get("ISOBOX_LEAK_RUNS", "2000" if os.geteuid() == 0 else "200"))
IN_SEQUENCE = int(os.environ.get("ISOBOX_LEAK_RUNS", "2000"))
GROWTH_BYTES = 4 << 20
"""How much this process may grow between the tenth part of the runs and the last: allocators keep some."""


@pytest.fixture(autouse=True)
def everything_is_given_back() -> Iterator[None]:
    with nothing_left():
        yield


def repeated(step: Callable[[], None], runs: int = RUNS) -> None:
    """Nothing accumulates. What is kept ready varies by a few; a leak would be there once a run."""
    warm = max(10, runs // 10)
    for _ in range(warm):
        step()
    gc.collect()
    before, memory = count(), resident()
    for _ in range(runs - warm):
        step()
    gc.collect()
    most = (runs - warm) // 2
    assert wait_until(lambda: not more(before, most), 15), f"{runs} runs left " + "; ".join(
        more(before, most)
    )
    grown = resident() - memory
    assert grown < GROWTH_BYTES, f"grew by {grown} bytes in {runs - warm} runs"


def more(before: Counts, most: int) -> list[str]:
    """The kinds of things of which there are more than `most` more."""
    now = count()
    kinds = [kind.name for kind in fields(Counts)]
    gains = {kind: (getattr(now, kind) - getattr(before, kind)).total() for kind in kinds}
    return [f"{gain} {kind}" for kind, gain in gains.items() if gain > most]


def test_containers_in_sequence() -> None:
    def one() -> None:
        with Container("host"):
            pass

    repeated(one, IN_SEQUENCE)


def test_containers_with_everything(tmp_path: Path) -> None:
    options = {"mounts": [f"{tmp_path}:/data:ro"], "name": "leaks", "disk": "8M", "hostname": "box"}
    if hosts.features().cgroup_memory:
        options |= {"memory": "64M", "cpu": 0.5, "pids": 50}

    def one() -> None:
        with Container("host", **options) as c:
            assert c.exec(["true"]).ok
            c.write_bytes("/tmp/file", b"x" * 10000)
            assert c.read_bytes("/tmp/file")[:1] == b"x"

    tmp_path.chmod(0o755)
    repeated(one, max(100, RUNS // 10))


def test_layers_on_disk() -> None:
    def one() -> None:
        with Container("host", upper="disk") as c:
            c.exec(["sh", "-c", "mkdir -p /tmp/a/b/c; echo x > /tmp/a/b/c/d"])

    repeated(one, 80)


def test_200_at_once() -> None:
    before = count()
    containers = [Container("host") for _ in range(200)]
    try:
        for c in containers:
            c.start()
        inits = {c.pid for c in containers}
        assert len(inits) == 200 and inits <= set(descendants(os.getpid()))
        assert all(c.exec(["true"]).ok for c in containers[::20])
        during = count()
        assert during.descriptors.total() - before.descriptors.total() <= 200 * 12
    finally:
        for c in containers:
            c.remove()
    assert not inits & set(descendants(os.getpid()))


def test_from_many_threads_at_once() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                with Container("host") as c:
                    assert c.exec(["true"]).ok
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_execs() -> None:
    with Container("host") as c:
        repeated(lambda: c.exec(["true"]).check())


def test_unmeasured_execs() -> None:
    with Container("host") as c:
        repeated(lambda: c.exec(["true"], measure=False).check())


def test_programs() -> None:
    def one() -> None:
        with c.popen(["cat"], stdin=isobox.PIPE) as p:
            assert p.communicate(b"hello")[0] == b"hello"

    with Container("host") as c:
        repeated(one, max(200, RUNS // 4))


def test_programs_with_limits_in_time() -> None:
    """Each has a thread that watches over it."""

    def one() -> None:
        with c.popen(["true"], timeout=30) as p:
            assert p.wait() == 0

    with Container("host") as c:
        repeated(one, max(200, RUNS // 4))


def test_terminals() -> None:
    def one() -> None:
        assert b"hello" in c.exec(["echo", "hello"], tty=True).stdout

    with Container("host") as c:
        repeated(one, 200)


def test_time_outs_with_grandchildren() -> None:
    program = "for i in 1 2 3; do (setsid sleep 100 &) ; done; sleep 100"

    def one() -> None:
        assert c.exec(["sh", "-c", program], timeout=0.02).reason == "timeout"

    with Container("host") as c:
        repeated(one, 80)


def test_output_limits() -> None:
    def one() -> None:
        result = c.exec(["sh", "-c", "exec cat /dev/zero"], output_limit="64K")
        assert result.reason == "output-limit" and len(result.stdout) == 65536

    with Container("host") as c:
        repeated(one, 100)


WRONG: dict[str, Callable[[Container], object]] = {
    "no such program": lambda c: c.exec(["/no/such/program"]),
    "no such program, searched": lambda c: c.exec(["no-such-program"]),
    "not executable": lambda c: c.exec(["/etc/passwd"]),
    "no such workdir": lambda c: c.exec(["true"], workdir="/no/such"),
    "no such user": lambda c: c.exec(["true"], user="nobody-of-this-name"),
    "an id that is not mapped": lambda c: c.exec(["true"], user=100_000_000),
    "too many arguments": lambda c: c.exec(["true", *["x" * 100_000] * 50]),
    "a plan that no message takes": lambda c: c.exec(["true", *["x" * 100_000] * 700]),
    "NUL": lambda c: c.exec(["true", "a\0b"]),
    "a string": lambda c: c.exec("true"),
    "input of the wrong type": lambda c: c.exec(["cat"], input="text"),
    "text input as bytes": lambda c: c.exec(["cat"], input=b"bytes", text=True),
    "input that can't be encoded": lambda c: c.exec(["cat"], input="é", encoding="ascii", text=True),
    "an unknown encoding": lambda c: c.exec(["true"], text=True, encoding="no-such-encoding"),
    "unknown error handling": lambda c: c.exec(["true"], text=True, errors="no-such-handler"),
    "an unknown option": lambda c: c.exec(["true"], color="red"),
    "stdin is no file": lambda c: c.exec(["true"], stdin="file"),
    "stdout is closed": lambda c: c.exec(["true"], stdout=9999),
    "stdin to STDOUT": lambda c: c.exec(["true"], stdin=isobox.STDOUT),
    "input and stdin": lambda c: c.exec(["true"], input=b"", stdin=0),
    "cpu_time without a cgroup": lambda c: c.exec(["true"], cpu_time=1, measure=False),
    "popen: no such program": lambda c: c.popen(["/no/such/program"]),
    "popen: no such workdir": lambda c: c.popen(["true"], workdir="/no/such"),
    "popen: an unknown encoding": lambda c: c.popen(["true"], text=True, encoding="no-such-encoding"),
    "popen: unknown error handling": lambda c: c.popen(["true"], text=True, errors="no-such-handler"),
    "popen: no program, on a terminal": lambda c: c.popen(["/no/such/program"], tty=True),
    "check": lambda c: c.exec(["false"], check=True),
    "no such file": lambda c: c.read_bytes("/no/such/file"),
    "a directory": lambda c: c.read_bytes("/etc"),
    "a device": lambda c: c.read_bytes("/dev/zero"),
    "a file where there is no directory": lambda c: c.write_bytes("/no/such/file", b"x"),
    "nothing to copy out": lambda c: c.copy_out("/no/such/file", "/tmp/isobox-test-nothing"),
    "nothing to copy in": lambda c: c.copy_in("/no/such/file", "/tmp/x"),
    "NUL in a path": lambda c: c.read_bytes("/a\0b"),
    "a long path": lambda c: c.read_bytes("/" + "x" * 20_000),
    "not paused": lambda c: c.resume(),
    "started already": lambda c: c.start(),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_of_a_running_container(what: str) -> None:
    """Each is an error of ours, or a TypeError, and the container is none the worse for it."""

    def one() -> None:
        with pytest.raises((isobox.IsoboxError, TypeError, OSError, ValueError)):
            WRONG[what](c)

    with Container("host") as c:
        if "no message" in what:
            one()  # takes its time, and the descriptors are counted to the last one anyway
        else:
            repeated(one, 60)
        assert c._programs is not None and not c._programs.running
        assert c.exec(["echo", "fine"]).stdout == b"fine\n"


SETUP_WRONG: dict[str, dict[str, object]] = {
    "no such image": {"image": "/no/such/image"},
    "an image without anything": {"image": "EMPTY"},
    "no such source": {"mounts": ["/no/such/source:/data"]},
    "a target that can't be made": {"mounts": ["/etc:/proc/1/x"]},
    "a directory on a file": {"mounts": ["/etc:/etc/passwd"]},
    "no such device": {"devices": ["/dev/no-such-device"]},
    "a hostname that is too long": {"hostname": "x" * 65},
    "no such seccomp profile": {"seccomp": "/no/such/profile.json"},
    "the host's processes": {"namespaces": {"pid": "host"}},
    "an rlimit above our own": {"rlimits": {"nofile": 1 << 40}},
    "disk on a disk": {"disk": "1M", "upper": "disk"},
    "a cpu that is not there": {"cpuset": "4000"},
    "less memory than nothing": {"memory": "4K"},
    "no room": {"disk": "4K"},
}


@pytest.mark.parametrize("what", SETUP_WRONG)
def test_setup_errors(what: str, tmp_path: Path) -> None:
    options = dict(SETUP_WRONG[what])
    if options.get("image") == "EMPTY":
        tmp_path.chmod(0o755)
        options["image"] = str(tmp_path / "image.tar")
        (tmp_path / "image.tar").write_bytes(b"no tar at all" * 100)

    def started() -> None:
        with Container(**options) as c:
            # What the kernel only says when it is used up counts as well.
            c.exec(["true"], check=True)
            c.write_bytes("/tmp/file", b"x" * 1_000_000)

    def one() -> None:
        with pytest.raises((isobox.IsoboxError, OSError)):
            started()

    repeated(one, 200)
    assert isobox.run(["echo", "fine"]).stdout == b"fine\n"


def test_a_program_that_nobody_waits_for() -> None:
    with Container("host") as c:

        def one() -> None:
            process = c.popen(["true"], stdout=isobox.DEVNULL, stderr=isobox.DEVNULL)
            while process.poll() is None:
                time.sleep(0.001)

        repeated(one, 100)


def test_a_running_program_that_is_dropped() -> None:
    """It is the container's until that ends; its Process says that it was never waited for."""
    with Container("host") as c:
        process = c.popen(["sleep", "1000"], stdout=isobox.DEVNULL, stderr=isobox.DEVNULL)
        number, pid = process._number, process.pid
        del process
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert c._programs is not None
            del c._programs.running[number]
            gc.collect()
        assert [w.category for w in caught] == [ResourceWarning]
        assert descendants(os.getpid())[pid] == "sleep S"
    assert pid not in descendants(os.getpid())


def test_programs_that_still_run_end_with_the_container() -> None:
    with Container("host") as c:
        processes = [c.popen(["sleep", "1000"]) for _ in range(20)]
        pids = {p.pid for p in processes}
        assert len(pids) == 20 and pids <= set(descendants(os.getpid()))
    assert not pids & set(descendants(os.getpid()))
    for p in processes:
        assert p.wait(5) == -9 and p.result().reason == "killed"
        p.close()


def test_a_container_that_is_dropped() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        c = Container("host").start()
        pid = c.pid
        del c
        gc.collect()
    assert [w.category for w in caught] == [ResourceWarning]
    assert pid not in descendants(os.getpid())


@pytest.mark.requires("cgroup_freezer")
def test_pauses() -> None:
    def one() -> None:
        c.pause()
        c.resume()

    with Container("host") as c:
        repeated(one, max(50, RUNS // 10))
        c.pause()  # and is removed so


@pytest.mark.requires("cgroup_memory", "cgroup_cpu", "cgroup_pids")
def test_updates() -> None:
    sizes = iter(range(100, 1 << 30))

    def one() -> None:
        number = next(sizes)
        c.update(memory=f"{number}M", pids=number, cpu=0.5 + number / 1000)
        with pytest.raises(isobox.SpecError):
            c.update(memory="no size")

    with Container("host", memory="99M", cpu=0.5) as c:
        repeated(one, max(50, RUNS // 10))


def test_an_interpreter_that_just_ends() -> None:
    """Containers and programs that run when the program ends are gone with it, without a word."""
    program = (
        "import isobox; c = isobox.Container().start(); p = c.popen(['sleep', '100']);"
        "d = isobox.Container().start(); d.exec(['true']); print(c.pid, p.pid, d.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    pids = done.stdout.split()
    assert len(pids) == 3 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)
