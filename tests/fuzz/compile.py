"""Compile a target in C: with clang for libFuzzer, or with any compiler to run it once for each file."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "src/isobox/_native"
FLAGS = (
    "-g -O1 -std=gnu11 -Wall -Wextra -Wno-unknown-pragmas -fno-omit-frame-pointer "
    "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
).split()

TARGETS = {
    "mountinfo": ("memory.c",),
    "replies": (),
    "requests": tuple(
        f"{name}.c" for name in "ops mounts places process program remount landlock memory".split()
    ),
}
"""The targets in C, and what is compiled with them: isobox-init's parts, without its system calls."""


def compile(target: str, output: Path, compiler: str, *, fuzzer: bool) -> None:
    """Write the program; raises `subprocess.CalledProcessError`."""
    flags = [*FLAGS, f"-I{HERE}", f"-I{NATIVE}", *(["-fsanitize=fuzzer"] if fuzzer else [])]
    parts = TARGETS[target]
    sources = [HERE / f"{target}.c", *(NATIVE / part for part in parts)]
    kernel = ["-include", str(HERE / "kernel.h")] if parts else []
    output.parent.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in [*sources, *([] if fuzzer else [HERE / "standalone.c"])]:
        objects.append(f"{output}.{source.stem}.o")
        own = kernel if source.name != "standalone.c" else []
        subprocess.run([compiler, *flags, *own, "-c", str(source), "-o", objects[-1]], check=True)
    subprocess.run([compiler, *flags, *objects, "-o", str(output)], check=True)
    for each in objects:
        Path(each).unlink()
