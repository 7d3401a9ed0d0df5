"""Fuzz each target for a while: what ``make fuzz`` runs. ``run.py SECONDS [TARGET...]``.

libFuzzer guides all of them: clang's for those in C, with AddressSanitizer and UndefinedBehaviorSanitizer;
Atheris' for those in Python. What it finds of interest is kept in .cache/fuzz/TARGET from one time to the
next; an input that breaks something is kept there too, named at the end, and makes the exit status 1.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from compile import TARGETS as IN_C
from compile import compile
from targets import TARGETS as IN_PYTHON

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache/fuzz"
LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=16384", "-print_final_stats=1"]
SANITIZERS = {"ASAN_OPTIONS": "quarantine_size_mb=16", "UBSAN_OPTIONS": "print_stacktrace=1"}


def command(target: str) -> list[str]:
    """What runs a target; options, folders or files follow."""
    if target in IN_PYTHON:
        return [sys.executable, str(HERE / "python.py"), target]
    program = CACHE / "bin" / target
    compile(target, program, "clang", fuzzer=True)
    return [str(program)]


def fuzz(target: str, seconds: int) -> str | None:
    """Print a line; return what to say about a finding."""
    corpus = CACHE / target
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = HERE / "seeds" / target
    seeds.mkdir(parents=True, exist_ok=True)
    run = command(target)
    options = [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={corpus}-"]
    log = CACHE / f"{target}.log"
    began = time.monotonic()
    with open(log, "wb") as file:
        done = subprocess.run(
            [*run, *options, str(corpus), str(seeds)],
            env={**os.environ, **SANITIZERS}, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    text = log.read_text(errors="replace")
    runs = re.findall(r"number_of_executed_units: (\d+)", text) or re.findall(r"^#(\d+)", text, re.MULTILINE)
    edges = re.findall(r" cov: (\d+)", text)
    took = time.monotonic() - began
    print(
        f"{target:16} {int(runs[-1]) if runs else 0:12,} runs in {took:5.0f} s, "
        f"{edges[-1] if edges else '?':>5} edges, {'a FINDING' if done.returncode else 'no finding'}",
        flush=True,
    )
    if not done.returncode:
        return None
    kept = re.findall(r"Test unit written to (\S+)", text)
    if not kept:
        return f"{target} ended with status {done.returncode}: see {log}"
    return f"{target}: {kept[-1]}\n  again: {shlex.join([*run, kept[-1]])}\n  said: {log}"


def main() -> int:
    seconds, wanted = int(sys.argv[1]), sys.argv[2:]
    known = sorted({*IN_C, *IN_PYTHON})
    for name in wanted:
        if name not in known:
            sys.exit(f"no such target: {name}; choose from {' '.join(known)}")
    findings = [found for target in wanted or known if (found := fuzz(target, seconds))]
    for found in findings:
        print(found)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
