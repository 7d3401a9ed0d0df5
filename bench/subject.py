"""The process that uses isobox (and subprocess, beside it) and measures what that costs.

Started as ``python -m bench.subject ROOTFS [--resident BYTES] [--walls WHICH]``; a large one shows whether a
start gets dearer with the memory that the program holds. All times are taken here, around the public API.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import isobox
from isobox import shells

from .layered import load_image
from .remote import serve
from .samples import progress

CPU: Final = 1.0
MEMORY: Final = "256M"
MIB: Final = 1 << 20
ALL_WALLS: Final = "all walls"
UNCOVERED: Final = "without covered paths"


WALLS: Final[Mapping[str, Mapping[str, Any]]] = {
    ALL_WALLS: {},
    UNCOVERED: {},  # no option takes them away, see `main`
    "without seccomp filter": {"seccomp": None},
    "without user namespace": {"userns": "host"},
    "without own network": {"network": "host"},
    "without limits": {"cpu": None, "memory": None, "pids": None},
    "all walls and Landlock": {"landlock": isobox.Landlock(read=["/"], write=["/"])},
}
"""Which walls a container has → its options. A process has one kind, so that what it keeps ready fits."""


def _times(count: int, once: Callable[[], object], gap_ms: float = 0) -> list[int]:
    samples = []
    for _ in range(count):
        if gap_ms:
            time.sleep(gap_ms / 1000)
        begin = time.perf_counter_ns()
        once()
        samples.append(time.perf_counter_ns() - begin)
    return samples


def _fields(path: str) -> dict[str, int]:
    """A file of ``Name:  123 kB`` lines, in bytes."""
    found = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * 1024
    return found


def _kernel_memory() -> int:
    """What the kernel itself holds, and files in memory; not programs, not the page cache."""
    fields = _fields("/proc/meminfo")
    return sum(fields[name] for name in ("Slab", "KernelStack", "PageTables", "Percpu", "Shmem"))


def _settled_memory() -> int:
    """The same once it has come to rest, and what this process holds."""
    before = _kernel_memory()
    for _ in range(15):
        time.sleep(0.2)
        after = _kernel_memory()
        if abs(after - before) < 65536:
            break
        before = after
    return after + _fields("/proc/self/status")["RssAnon"]


class Measurements:
    """What can be asked for; each method takes a request's fields and returns samples."""

    def __init__(self, rootfs: str, walls: str = ALL_WALLS) -> None:
        self._rootfs = rootfs
        self._walls = WALLS[walls]
        self._limits: dict[str, Any] | None = None
        self._live: dict[str, isobox.Container] = {}
        self._images: set[str] = set()
        self._data: tempfile.TemporaryDirectory[str] | None = None

    def options(self) -> dict[str, Any]:
        """Those of every container: the common limits, where this user may set them, and the walls."""
        if self._limits is None:
            self._limits = {"cpu": CPU, "memory": MEMORY}
            try:
                isobox.run(["/true"], image=self._rootfs, **self._limits)
            except isobox.UnsupportedError as error:
                progress(f"  isobox without limits: {error}")
                self._limits = {}
        return {**self._limits, **self._walls}

    def container(self, **more: Any) -> isobox.Container:
        """A container on the common root folder."""
        return isobox.Container(self._rootfs, **self.options(), **more)

    def live(self, image: str) -> isobox.Container:
        """The one of an image that execs are measured in."""
        if image not in self._live:
            self._live[image] = isobox.Container(image, **self.options()).start()
        return self._live[image]

    def close(self) -> None:
        """Remove them."""
        for box in self._live.values():
            box.remove()
        for name in self._images:
            isobox.Image.get(name).remove()
        if self._data is not None:
            self._data.cleanup()

    def oneshot(
        self, count: int, image: str | None = None, program: str = "/true", gap_ms: float = 0
    ) -> list[int]:
        """isobox.run: made, one program, gone; nanoseconds."""
        where, options = image or self._rootfs, self.options()

        def once() -> None:
            isobox.run([program], image=where, timeout=30, **options).check()

        return _times(count, once, gap_ms)

    def oneshot_of_layers(self, count: int, layers: int, gap_ms: float = 0) -> list[int]:
        """The same of an image with so many layers."""
        name = f"bench:{layers}"
        if name not in self._images:
            if not self._images:
                self._data = tempfile.TemporaryDirectory(prefix="isobox-bench-")
                os.environ["ISOBOX_DATA_DIR"] = self._data.name
            load_image(self._rootfs, name, layers)
            self._images.add(name)
        return self.oneshot(count, name, gap_ms=gap_ms)

    def subprocess(self, count: int, program: str) -> list[int]:
        """subprocess.run with captured output; nanoseconds."""
        return _times(count, lambda: subprocess.run([program], capture_output=True, check=True))

    def exec(self, count: int, measure: bool, image: str | None = None, program: str = "/true") -> list[int]:
        """Container.exec with captured output in a container that lives; nanoseconds."""
        live = self.live(image or self._rootfs)
        return _times(count, lambda: live.exec([program], measure=measure).check())

    def threads(self, threads: int, seconds: float) -> list[float]:
        """One-shot runs a second that so many threads reach together."""
        deadline = time.perf_counter() + seconds
        counts = [0] * threads

        def loop(mine: int) -> None:
            while time.perf_counter() < deadline:
                self.oneshot(1)
                counts[mine] += 1

        workers = [threading.Thread(target=loop, args=(number,)) for number in range(threads)]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return [sum(counts) / (time.perf_counter() - begin)]

    def teardown(self, count: int, processes: int) -> list[int]:
        """Container.remove with so many processes inside; nanoseconds."""
        samples = []
        for _ in range(count):
            box = self.container()
            box.start()
            if processes:
                program = box.popen(["/true", "fork", str(processes)], stdout=subprocess.PIPE, measure=False)
                assert program.stdout is not None
                program.stdout.read(5)
            samples += _times(1, box.remove)
        return samples

    def snapshot(self, count: int, what: str, gap_ms: float = 0, files: int = 20) -> list[int]:
        """Container.snapshot, Container.restore, or a container from one made and removed; nanoseconds.

        The container has changed so many files of a few KB.
        """
        samples = []
        with self.container() as box:
            for number in range(files):
                box.write_bytes(f"/changed-{number}", bytes(3000))
            with box.snapshot() as taken:
                for _ in range(count):
                    if what == "snapshot":
                        begin = time.perf_counter_ns()
                        one = box.snapshot()
                        samples.append(time.perf_counter_ns() - begin)
                        one.close()
                    elif what == "restore":
                        samples += _times(1, lambda: box.restore(taken), gap_ms)
                    else:
                        samples += _times(1, lambda: self._begun(taken), gap_ms)
        return samples

    def _begun(self, taken: isobox.Snapshot) -> None:
        with isobox.Container(taken, **self.options()):
            pass

    def idle(self, containers: int, network: str) -> list[float]:
        """Bytes of the machine's memory that each of so many waiting containers takes."""
        with self.container(network=network):
            pass
        before = _settled_memory()
        boxes = [self.container(network=network) for _ in range(containers)]
        try:
            for box in boxes:
                box.start()
            inits = sum(_fields(f"/proc/{box.pid}/smaps_rollup")["Private_Dirty"] for box in boxes)
            return [(_settled_memory() + inits - before) / containers]
        finally:
            for box in boxes:
                box.remove()

    def stdout(self, how: str, mebibytes: int, program: str) -> list[float]:
        """Bytes a second from a program's standard output into Python."""
        arguments = ["write", str(mebibytes)]
        begin = time.perf_counter()
        if how == "subprocess.run":
            size = len(subprocess.run([program, *arguments], capture_output=True, check=True).stdout)
        elif how == "subprocess.Popen":
            with subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, bufsize=0) as process:
                size = _drain(process.stdout)
        elif how == "exec":
            size = len(self.live(self._rootfs).exec(["/true", *arguments], output_limit=None).check().stdout)
        else:
            inside = self.live(self._rootfs).popen(["/true", *arguments], output_limit=None)
            size = _drain(inside.stdout)
            inside.wait()
        assert size == mebibytes * MIB, size
        return [size / (time.perf_counter() - begin)]

    def work(self, what: Sequence[str], program: str, directory: str, inside: bool) -> list[float]:
        """Nanoseconds that a piece of work takes, by its own word: on the host, or in a container."""
        if not inside:
            place = [directory] if "files" in what else []
            return [float(subprocess.run([program, *what, *place], capture_output=True, check=True).stdout)]
        place = ["/data"] if "files" in what else []
        mount = isobox.Mount.bind(directory, "/data")
        memory = "1G" if self.options() else None
        with isobox.Container(self._rootfs, memory=memory, mounts=[mount]) as box:
            return [float(box.exec(["/work", *what, *place]).check().stdout)]


def _drain(stream: Any) -> int:
    buffer, size = bytearray(MIB), 0
    while got := stream.readinto(buffer):
        size += got
    return size


def main() -> None:
    """Serve requests: {"do": method, its arguments}."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rootfs")
    parser.add_argument("--resident", type=int, default=0)
    parser.add_argument("--walls", choices=[*WALLS], default=ALL_WALLS)
    options = parser.parse_args()
    if options.walls == UNCOVERED:
        from isobox.security.paths import Covers

        shells.covers = lambda **_: Covers((), ())  # type: ignore[assignment]
    ballast = bytearray(options.resident)
    for page in range(0, len(ballast), 4096):
        ballast[page] = 1
    measurements = Measurements(options.rootfs, options.walls)

    def handle(request: Mapping[str, Any]) -> object:
        arguments = dict(request)
        return getattr(measurements, arguments.pop("do"))(**arguments)

    try:
        serve(handle)
    finally:
        measurements.close()


if __name__ == "__main__":
    main()
