"""The comparison from start to end: ``make bench``, or ``python -m bench --help``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import asdict

from .cases import CASES as OF_CONTAINERS
from .cases import Bench, Case
from .committing import committing
from .forms import forms
from .goals import Goal, goals
from .install import find
from .native import compile_all
from .peers import ORDER, Peers
from .picture import draw
from .pulling import pulling
from .rootfs import make_rootfs
from .samples import Failed, progress
from .table import report
from .unpacking import unpacking

CASES = {
    **OF_CONTAINERS,
    "unpacking": unpacking,
    "forms": forms,
    "pulling": pulling,
    "committing": committing,
}

OURS = ("isobox", "exec", "popen", "dynamic program: exec")
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "bench.svg"


def machine() -> str:
    """What was measured on, in a line."""
    version = ".".join(platform.release().split("-")[0].split(".")[:2])
    return f"{os.cpu_count()} cores, Linux {version}, Python {platform.python_version()}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a third of the time")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample and goal to FILE")
    parser.add_argument(
        "--picture", metavar="FILE", type=Path, help="where to draw (default: the docs' picture)"
    )
    parser.add_argument("--case", action="append", choices=[*CASES], help="only this case (repeatable)")
    parser.add_argument(
        "--without", action="append", default=[], choices=[*ORDER], help="leave out an engine"
    )
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> tuple[dict[str, Case], dict[str, str]]:
    compile_all()
    work = Path(tempfile.mkdtemp(prefix="isobox-bench-"))
    work.chmod(0o755)
    try:
        rootfs = make_rootfs(work / "rootfs", find("busybox"))
        peers = Peers(work, rootfs)
        peers.absent.update(dict.fromkeys(options.without, "left out"))
        bench = Bench(work, rootfs, peers, options.quick)
        cases = {}
        try:
            for name in options.case or CASES:
                begin = time.monotonic()
                progress(f"{name} ...")
                cases[name] = CASES[name](bench)
                progress(f"{name}: {time.monotonic() - begin:.0f} s")
        finally:
            bench.close()
        return cases, peers.absent
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_json(
    path: Path, cases: Mapping[str, Case], found: Sequence[Goal], absent: Mapping[str, str]
) -> None:
    content = {
        "machine": machine(),
        "cases": {name: asdict(case) for name, case in cases.items()},
        "goals": [{**asdict(goal), "met": goal.met} for goal in found],
        "absent": dict(absent),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _broken(cases: Mapping[str, Case]) -> bool:
    """Whether a measurement of isobox itself failed; other engines and the floor may be absent."""
    failed = [name for case in cases.values() for name, series in case.series.items() if series.error]
    return any(name.startswith(OURS) for name in failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, draw. Status 1 if something of isobox could not run; a missed goal is data."""
    options = parse(arguments)
    begin = time.monotonic()
    try:
        cases, absent = _measure(options)
    except Failed as error:
        progress(f"bench: {error}")
        return 1
    found = goals(cases)
    print(report(cases, found, absent))
    if options.json:
        _write_json(options.json, cases, found, absent)
    # A part of the comparison, or a quick one, does not replace the docs' picture.
    picture = options.picture or (None if options.case or options.quick else PICTURE)
    if picture and draw(cases, picture, machine()):
        progress(f"drawn: {picture}")
    progress(f"done in {time.monotonic() - begin:.0f} s")
    return 1 if _broken(cases) else 0
