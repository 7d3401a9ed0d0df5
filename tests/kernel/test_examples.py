"""The examples run as a user runs them, and say what they should."""

from __future__ import annotations

import csv
import os
import pty
import re
import resource
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*args: str, cwd: Path, status: int = 0) -> str:
    """What an example prints; its standard error has to be empty where it ends well."""
    command = [sys.executable, str(EXAMPLES / args[0]), *args[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=cwd)
    assert done.returncode == status, done.stdout + done.stderr
    if status == 0:
        assert done.stderr == ""
    return done.stdout


def rows(output: str) -> dict[str, list[str]]:
    """The rows of the table, by their first cell."""
    lines = output.splitlines()
    rule = next(i for i, line in enumerate(lines) if re.fullmatch(r"-+(  -+)+", line))
    found = {}
    for line in lines[rule + 1 :]:
        if not line.strip():
            break
        cells = re.split(r" {2,}", line.strip())
        found[cells[0]] = cells[1:]
    return found


def cpu_seconds(code: str) -> float:
    """What a Python program costs on this machine, outside of any container."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    subprocess.run([sys.executable, "-c", code], check=True)
    return used() - before


@pytest.mark.requires("cgroup_cpu", "cgroup_memory", "cgroup_pids")
def test_quickstart(tmp_path: Path) -> None:
    output = run("quickstart.py", cwd=tmp_path)
    table = rows(output)
    assert {name: cells[-1] for name, cells in table.items()} == {
        "says hello": "exited",
        "computes for half a second": "exited",
        "never ends": "timeout",
        "eats all memory": "oom",
        "is a fork bomb": "timeout",
        "floods its output": "output-limit",
        "deletes /etc": "exited",
    }
    wall, cpu = (float(cell.removesuffix(" s")) for cell in table["computes for half a second"][:2])
    # Half a second of its own, and at most some starts of an interpreter.
    assert 0.5 <= cpu < 0.7 + 2 * cpu_seconds("")
    assert wall >= 1.5 * cpu, "half a core takes twice as long"
    # On v2 the kernel lets what it kills exceed the limit by a little.
    assert 100 < float(table["eats all memory"][2].removesuffix(" MiB")) < 130
    # A slow machine ends it before it is many; on v2 the one that was refused counts too.
    assert 2 <= int(table["is a fork bomb"][3]) <= 65
    assert "\x1b" not in output


def test_quickstart_without_limits(tmp_path: Path) -> None:
    """Without cgroups it says so and runs what it can; with them this is the same as above."""
    table = rows(run("quickstart.py", cwd=tmp_path))
    assert table["says hello"][-1] == "exited"
    assert table["never ends"][-1] == "timeout"


def test_quickstart_is_coloured_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, str(EXAMPLES / "quickstart.py")]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(command, stdout=theirs, cwd=tmp_path, env=environment) as process:
        os.close(theirs)
        output = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
            try:
                output += os.read(ours, 65536)
            except OSError:  # EIO: the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"\x1b\[32mexited *\x1b\[0m", output)
    assert re.search(rb"\x1b\[31mtimeout *\x1b\[0m", output)


@pytest.mark.requires("cgroup_memory", "cgroup_pids", "cgroup_cpu")
def test_judge(tmp_path: Path) -> None:
    if not Path("/usr/bin/gcc").exists():
        pytest.skip("the submissions in C need gcc")
    # Four times what it takes to fill the memory that a submission may have: else time would end it first.
    enough = max(1.0, 4 * cpu_seconds("bytearray(b'x' * (64 << 20))"))
    table = rows(run("judge/judge.py", "--cpu-time", str(enough), cwd=tmp_path))
    verdicts = {
        name: next(cell for cell in cells if re.fullmatch("[A-Z]{2,3}", cell))
        for name, cells in table.items()
    }
    assert verdicts == {
        "accepted.c": "AC",
        "accepted.py": "AC",
        "bomb.py": "TLE",
        "broken.c": "CE",
        "crash.c": "RE",
        "flood.c": "OLE",
        "overflow.c": "WA",
        "peeks.py": "RE",
        "raises.py": "RE",
        "sleeper.py": "TLE",
        "slow.py": "TLE",
        "table.c": "MLE",
    }


@pytest.mark.requires("ordinary_user")
def test_a_judge_without_limits_says_so(tmp_path: Path) -> None:
    from isobox import host

    if host.features().cgroup_pids:
        pytest.skip("this user can set limits")
    assert run("judge/judge.py", cwd=tmp_path, status=2) == ""


def test_sweep(tmp_path: Path) -> None:
    output = run("sweep.py", "--megabytes", "0.5", "--csv", "costs.csv", cwd=tmp_path)
    assert "wall_time: clock_gettime" in output
    with (tmp_path / "costs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(run["codec"], run["level"]) for run in runs][:2] == [("zlib", "1"), ("zlib", "6")]
    for measured in runs:
        assert float(measured["ratio"]) > 2
        assert 0 < float(measured["cpu_time"]) < float(measured["wall_time"]) * 1.5


@pytest.mark.slow
def test_cpythons_own_tests(tmp_path: Path) -> None:
    table = rows(run("cpython_tests.py", cwd=tmp_path))
    assert len(table) == 5
    for module, cells in table.items():
        assert cells[-1] in ("same", "this Python ships without it"), module
