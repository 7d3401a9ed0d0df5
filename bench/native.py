"""Compiles the C parts of the comparison into bench/build and runs the floor."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from .samples import Failed

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
WARNINGS = ("-O2", "-Wall", "-Wextra", "-Werror")
WITHOUT_LIBC = (
    *WARNINGS,
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-Wl,--build-id=none",
    "-Wl,-z,noseparate-code",
)
HEADERS = ("raw.h", "box.h", "groups.h", "filter.h", "job.h")
PROGRAMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "true": (("true.c",), WITHOUT_LIBC),
    "init": (("init.c",), WITHOUT_LIBC),
    "floor": (("floor.c", "box.c", "inside.c", "groups.c"), WARNINGS),
    "work": (("work.c",), (*WARNINGS, "-static", "-pthread")),
}


def compile_all() -> None:
    """Compile what is missing or older than its sources. Raises Failed with the compiler's words."""
    compiler = os.environ.get("CC", "gcc")
    if shutil.which(compiler) is None:
        raise Failed(f"no C compiler: {compiler} is not on PATH (Debian: apt-get install gcc libc6-dev)")
    BUILD.mkdir(exist_ok=True)
    for name, (sources, flags) in PROGRAMS.items():
        target = BUILD / name
        inputs = [HERE / source for source in (*sources, *HEADERS)]
        if target.exists() and target.stat().st_mtime >= max(path.stat().st_mtime for path in inputs):
            continue
        unfinished = BUILD / f".{name}.{os.getpid()}"
        command = [compiler, *flags, "-o", str(unfinished), *(str(HERE / source) for source in sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
        unfinished.rename(target)


@frozen
class Floor:
    """The C program that does the same work; `lowers` as its --lower, topmost first."""

    program: str
    lowers: tuple[str, ...] = ()

    def samples(self, what: str, count: int, *options: str) -> Sequence[float]:
        """Run one of its sub-commands and return what it prints: nanoseconds, or bytes for ``idle``."""
        command = [str(BUILD / "floor"), what, "--count", str(count), "--program", self.program]
        for lower in self.lowers:
            command += ["--lower", lower]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"floor {what}: {done.stderr.strip() or done.returncode}")
        return [float(line) for line in done.stdout.split()]
