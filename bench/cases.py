"""The cases of the comparison: who is measured in each, and how often."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from .native import BUILD, Floor
from .peers import Peers
from .remote import Remote
from .samples import Failed, Series, Subject, interleave, progress
from .subject import ALL_WALLS, UNCOVERED, WALLS

TRUE = str(BUILD / "true")
GIB = 1 << 30
MIB = 1 << 20
RESIDENT = {"10 MB": 10 * MIB, "1 GB": GIB, "4 GB": 4 * GIB}
WORK = {
    "CPU": ["cpu"],
    "files on a bind mount": ["files"],
    "loopback": ["loopback"],
    "system calls": ["calls"],
}


@frozen
class Case:
    """A case that was measured; `unit` is "ns", "bytes", "bytes/s" or "1/s"."""

    title: str
    series: dict[str, Series]
    unit: str = "ns"

    def paired(self, one: str, other: str) -> float | None:
        """The median of the ratios of samples taken one after the other; steadier than a ratio of medians."""
        if one not in self.series or other not in self.series:
            return None
        pairs = zip(self.series[one].samples, self.series[other].samples, strict=False)
        ratios = [upper / lower for upper, lower in pairs]
        return statistics.median(ratios) if ratios else None

    def median(self, name: str) -> float | None:
        """The median of one subject; None if it could not be measured."""
        return self.series[name].median if name in self.series else None


@define
class Bench:
    """Everything that the cases need: the floor, a process that uses isobox, the other engines."""

    work: Path
    rootfs: Path
    peers: Peers
    quick: bool
    dynamic: str = field(factory=lambda: dynamic_program())
    remotes: dict[str, Remote] = field(factory=dict)
    _seen: list[str] = field(factory=list)

    @property
    def floor(self) -> Floor:
        """The floor on the root folder that all engines get."""
        return Floor(TRUE, (str(self.rootfs),))

    def host_program(self) -> str:
        """What is run in the host image: the static `true`, unless it lies where that image shows nothing."""
        if not self._seen:
            try:
                self.isobox().ask(do="oneshot", count=1, image="host", program=TRUE)
                self._seen.append(TRUE)
            except Failed:
                self._seen.append(self.dynamic)
        return self._seen[0]

    def isobox(self, resident: int = 0, walls: str = ALL_WALLS) -> Remote:
        """The process that uses isobox with such walls and holds so many bytes; one of each kind."""
        options = ["--resident", str(resident), "--walls", walls]
        key = " ".join(options)
        if key not in self.remotes:
            self.remotes[key] = Remote([sys.executable, "-m", "bench.subject", str(self.rootfs), *options])
        return self.remotes[key]

    def asked(
        self, resident: int = 0, *, walls: str = ALL_WALLS, **request: object
    ) -> Callable[[int], Sequence[float]]:
        """Takes samples by asking that process."""

        def take(count: int) -> Sequence[float]:
            samples: Sequence[float] = self.isobox(resident, walls).ask(count=count, **request)
            return samples

        return take

    def once(self, resident: int = 0, **request: object) -> Callable[[int], Sequence[float]]:
        """The same where a request gives one sample and has no count."""

        def take(count: int) -> Sequence[float]:
            samples: list[float] = []
            for _ in range(count):
                samples += self.isobox(resident).ask(**request)
            return samples

        return take

    def floored(self, what: str, *options: str, host: str = "") -> Callable[[int], Sequence[float]]:
        """Takes samples with the floor; with `host`, that program is run in the host image."""
        floor = Floor(host) if host else self.floor
        return lambda count: floor.samples(what, count, *options)

    def rounds(self, quick: int, full: int) -> int:
        """How many rounds, as the option --quick says."""
        return quick if self.quick else full

    def close(self) -> None:
        """End every process that was started."""
        for remote in self.remotes.values():
            remote.close()
        self.peers.close()


def oneshot(bench: Bench) -> Case:
    """A container made, one program run in it, everything gone."""
    program = bench.host_program()
    subjects = [
        Subject("floor", bench.floored("oneshot"), note="C, the same work"),
        Subject("floor, groups pooled", bench.floored("oneshot", "--pooled-cgroups")),
        Subject("isobox.run", bench.asked(do="oneshot")),
        Subject("floor, host image", bench.floored("oneshot", host=program)),
        Subject("isobox.run, host image", bench.asked(do="oneshot", image="host", program=program)),
        Subject("subprocess.run", bench.asked(do="subprocess", program=TRUE), note="no isolation"),
        *bench.peers.subjects(),
    ]
    return Case("one-shot", interleave("one-shot", subjects, bench.rounds(4, 15)))


def spaced(bench: Bench) -> Case:
    """The same with a pause of 100 ms before each."""
    subjects = [
        Subject("floor", bench.floored("oneshot", "--gap", "100", "--warm-up", "1"), 5),
        Subject("isobox.run", bench.asked(do="oneshot", gap_ms=100), 5),
    ]
    return Case("one-shot, 100 ms apart", interleave("100 ms apart", subjects, bench.rounds(4, 10)))


def executed(bench: Bench) -> Case:
    """A program in a container that lives, its output captured; last one that needs loader and libc."""
    dynamic: dict[str, Any] = {"do": "exec", "image": "host", "program": bench.dynamic}
    subjects = [
        Subject("floor: server inside", bench.floored("exec"), 20),
        Subject("floor: server inside, filter for each", bench.floored("exec", "--filter"), 20),
        Subject("floor: server inside, own groups", bench.floored("exec", "--measure"), 20),
        Subject("floor: fork and setns", bench.floored("exec-fork"), 20),
        Subject("floor: spawn, not isolated", bench.floored("spawn"), 20),
        Subject("subprocess.run", bench.asked(do="subprocess", program=TRUE), 20, "no isolation"),
        Subject("exec, measure=False", bench.asked(do="exec", measure=False), 20),
        Subject("exec, measure=True", bench.asked(do="exec", measure=True), 20),
        Subject("dynamic program: floor", bench.floored("exec", host=bench.dynamic), 20),
        Subject("dynamic program: subprocess.run", bench.asked(do="subprocess", program=bench.dynamic), 20),
        Subject("dynamic program: exec, measure=False", bench.asked(measure=False, **dynamic), 20),
        Subject("dynamic program: exec, measure=True", bench.asked(measure=True, **dynamic), 20),
    ]
    return Case("exec", interleave("exec", subjects, bench.rounds(5, 15)))


def walled(bench: Bench) -> Case:
    """What each wall costs: a start and an exec without it, beside those with all of them."""
    kinds = [walls for walls in WALLS if not (WALLS[walls].get("userns") == "host" and os.geteuid())]
    subjects = [
        Subject(f"isobox.run, {walls}", bench.asked(walls=walls, do="oneshot")) for walls in kinds
    ] + [
        Subject(f"exec, measure=False, {walls}", bench.asked(walls=walls, do="exec", measure=False), 20)
        for walls in kinds
        if walls != UNCOVERED  # that is done at the start, once
    ]
    return Case("the price of each wall", interleave("walls", subjects, bench.rounds(4, 15)))


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def resident(bench: Bench) -> Case:
    """Starts from a program that holds 10 MB, 1 GB and 4 GB."""
    subjects = []
    for name, size in RESIDENT.items():
        if size * 2 > _memory_available():
            progress(f"  parent with {name}: not enough memory here, left out")
            continue
        subjects.append(Subject(f"isobox.run, {name}", bench.asked(size, do="oneshot")))
        subjects.append(Subject(f"exec, {name}", bench.asked(size, do="exec", measure=True)))
    case = Case("parent's size", interleave("parent's size", subjects, bench.rounds(3, 12)))
    for size in RESIDENT.values():
        if size in bench.remotes:
            bench.remotes.pop(size).close()
    return case


def threaded(bench: Bench) -> Case:
    """One-shot runs a second from one thread and from two."""

    def floor(count: int) -> Sequence[float]:
        rates = []
        for _ in range(count):
            with ThreadPoolExecutor(2) as pool:
                rates.append(sum(pool.map(lambda _: single(1)[0], range(2))))
        return rates

    def single(count: int) -> Sequence[float]:
        samples = bench.floor.samples("oneshot", 150 * count, "--warm-up", "0")
        return [1e9 * len(samples) / sum(samples)]

    seconds = 0.5 if bench.quick else 1.0
    subjects = [
        Subject("floor, one process", single, 1),
        Subject("floor, two processes", floor, 1),
        Subject("isobox.run, one thread", bench.once(do="threads", threads=1, seconds=seconds), 1),
        Subject("isobox.run, two threads", bench.once(do="threads", threads=2, seconds=seconds), 1),
    ]
    return Case("threads", interleave("threads", subjects, bench.rounds(3, 8)), "1/s")


def images(bench: Bench) -> Case:
    """A container of the root folder, and of images with the same files in one layer and under 99 more.

    Back to back each start makes all by itself; apart it finds a root file system made.
    """
    subjects = []
    for when, gap in (("", 0), (", 30 ms apart", 30)):
        rounds = 4 if gap else 10
        subjects.append(Subject(f"folder{when}", bench.asked(do="oneshot", gap_ms=gap), rounds))
        for layers in (1, 100):
            take = bench.asked(do="oneshot_of_layers", layers=layers, gap_ms=gap)
            name = f"image of {layers} layer{'s' * (layers > 1)}{when}"
            subjects.append(Subject(name, take, rounds))
    return Case("start from an image", interleave("start from an image", subjects, bench.rounds(4, 12)))


def teardown(bench: Bench) -> Case:
    """Stop and clean up, with nothing and with a hundred processes inside."""
    subjects = []
    for processes in (0, 100):
        options = ("--processes", str(processes), "--warm-up", "1")
        subjects.append(Subject(f"floor, {processes} processes", bench.floored("teardown", *options), 5))
        take = bench.asked(do="teardown", processes=processes)
        subjects.append(Subject(f"isobox, {processes} processes", take, 5))
    return Case("stop and clean up", interleave("stop and clean up", subjects, bench.rounds(4, 12)))


def snapshot(bench: Bench) -> Case:
    """A snapshot of a container with 20 changed files, and what begins there. No engine has the like.

    The nearest, `podman commit` and a start of the image, takes as long as a start of podman and more.
    """
    names = {"snapshot": "snapshot", "restore": "restore", "start": "start and stop from a snapshot"}
    subjects = [Subject(title, bench.asked(do="snapshot", what=what), 5) for what, title in names.items()]
    spaced = bench.asked(do="snapshot", what="restore", gap_ms=20)
    subjects.append(Subject("restore, 20 ms apart", spaced, 12))
    return Case("snapshots", interleave("snapshots", subjects, bench.rounds(4, 12)))


def idle(bench: Bench) -> Case:
    """Memory of containers that wait."""
    containers = 100
    options = ("--containers", str(containers))
    without = ("--without", "net,lo,sys")
    subjects = [
        Subject("floor", bench.floored("idle", *options), 1),
        Subject("floor, host network", bench.floored("idle", *options, *without), 1),
        Subject("isobox", bench.once(do="idle", containers=containers, network="none"), 1),
        Subject("isobox, host network", bench.once(do="idle", containers=containers, network="host"), 1),
    ]
    return Case("memory of an idle container", interleave("idle", subjects, bench.rounds(1, 5)), "bytes")


def stdout(bench: Bench) -> Case:
    """How fast a program's output reaches Python."""
    size = 128 if bench.quick else 512

    def take(how: str) -> Callable[[int], Sequence[float]]:
        return bench.once(do="stdout", how=how, mebibytes=size, program=TRUE)

    def floor(count: int) -> Sequence[float]:
        return [GIB / (sample / 1e9) for sample in bench.floor.samples("pipe", count)]

    subjects = [
        Subject("floor: a pipe of 1 MiB", floor, 1),
        Subject("subprocess.run, captured", take("subprocess.run"), 1),
        Subject("subprocess.Popen, readinto", take("subprocess.Popen"), 1),
        Subject("exec, captured", take("exec"), 1),
        Subject("popen, readinto", take("popen"), 1),
    ]
    return Case("standard output", interleave("standard output", subjects, bench.rounds(2, 5)), "bytes/s")


def work(bench: Bench) -> Case:
    """Work on the host and the same work in a container."""
    # In memory where that can be had: the disk's own moods are not what is compared.
    memory = Path("/dev/shm")
    above = memory if os.access(memory, os.W_OK | os.X_OK) else bench.work
    directory = Path(tempfile.mkdtemp(prefix="isobox-bench-", dir=above))
    directory.chmod(0o777)
    subjects = []
    for name, what in WORK.items():
        for inside in (False, True):
            fields: dict[str, Any] = {
                "what": what,
                "program": str(BUILD / "work"),
                "directory": str(directory),
            }
            take = bench.once(do="work", inside=inside, **fields)
            subjects.append(Subject(f"{name}, {'inside' if inside else 'outside'}", take, 1))
    case = Case("work inside", interleave("work inside", subjects, bench.rounds(5, 15)))
    shutil.rmtree(directory, ignore_errors=True)
    return case


CASES: dict[str, Callable[[Bench], Case]] = {
    "oneshot": oneshot,
    "spaced": spaced,
    "exec": executed,
    "walls": walled,
    "resident": resident,
    "threads": threaded,
    "images": images,
    "teardown": teardown,
    "snapshot": snapshot,
    "idle": idle,
    "stdout": stdout,
    "work": work,
}


def dynamic_program() -> str:
    """A small program of the host that needs the loader and libc."""
    for path in ("/usr/bin/true", "/bin/true"):
        if os.access(path, os.X_OK):
            return path
    raise Failed("no `true` on this machine")
