"""A judge for programming contests: compile and run strangers' programs, and say what they are worth.

    python examples/judge/judge.py                       the problem "sums" and its submissions
    python examples/judge/judge.py --problem DIR FILES   others
    python examples/judge/judge.py --cpu-time 2          on a machine that is half as fast

A problem is a folder with `tests/NAME.in` and `tests/NAME.out`. Verdicts:
AC accepted, WA wrong answer, TLE time limit, MLE memory limit, OLE output limit, RE runtime error,
CE compile error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from attrs import frozen

import show
from isobox import Container, Mount, Reason, Result, UnsupportedError

HERE = Path(__file__).parent
COLOURS = {"AC": "green", "WA": "red", "CE": "yellow"}
BY_REASON: dict[Reason, str] = {
    "timeout": "TLE",
    "cpu-timeout": "TLE",
    "oom": "MLE",
    "output-limit": "OLE",
    "signaled": "RE",
    "killed": "RE",
}


@frozen
class Limits:
    """What one run may use. A run that sleeps uses no CPU time, hence a limit on the wall time too."""

    cpu_time: float
    memory: str = "64M"

    @property
    def wall_time(self) -> float:
        """Three times the CPU time, and a second to get going."""
        return 3 * self.cpu_time + 1


@frozen
class Verdict:
    """What a submission is worth; time and memory are the worst of all of its runs."""

    name: str
    word: str
    passed: int
    tests: int
    cpu_time: float | None = None
    memory: int | None = None
    detail: str = ""


def compile_c(container: Container) -> Result:
    """Compile /box/main.c, within bounds of its own: a compiler can be attacked, too."""
    args = ["gcc", "-O2", "-std=c17", "-o", "/box/program", "/box/main.c", "-lm"]
    return container.exec(args, text=True, timeout=20, memory="512M", pids=32)


def judge_run(container: Container, args: list[str], test: Path, limits: Limits) -> tuple[str, Result]:
    """Run the program on one test, as nobody, and compare what it writes word by word."""
    result = container.exec(
        args,
        input=test.read_text(),
        text=True,
        errors="replace",
        user="nobody",
        workdir="/tmp",
        cpu_time=limits.cpu_time,
        timeout=limits.wall_time,
        memory=limits.memory,
        pids=16,
        output_limit="1M",
    )
    if result.reason in BY_REASON:
        return BY_REASON[result.reason], result
    if result.returncode != 0:
        return "RE", result
    expected = test.with_suffix(".out").read_text()
    return ("AC" if result.stdout.split() == expected.split() else "WA"), result


def judge(submission: Path, tests: list[Path], limits: Limits) -> Verdict:
    """Judge one submission in a container of its own: nothing that it does outlives this.

    The host image shows what anybody on this machine may read, which may include the answers: an empty
    file system goes over them.
    """
    hidden = Mount.tmpfs(tests[0].resolve().parent)
    with Container("host", pids=64, disk="64M", mounts=[hidden]) as container:
        container.exec(["mkdir", "-m", "755", "/box"], check=True)
        source = f"/box/main{submission.suffix}"
        container.copy_in(submission, source)
        args = ["python3", source]
        if submission.suffix == ".c":
            compiled = compile_c(container)
            if not compiled.ok:
                lines = compiled.stderr.strip().splitlines() or [str(compiled.reason)]
                errors = [line for line in lines if "error:" in line] or lines
                return Verdict(submission.name, "CE", 0, len(tests), detail=errors[0].removeprefix("/box/"))
            args = ["/box/program"]
        times: list[float] = []
        peaks: list[int] = []
        for number, test in enumerate(tests):
            word, result = judge_run(container, args, test, limits)
            times += [] if result.usage.cpu_time is None else [result.usage.cpu_time]
            peaks += [] if result.usage.memory_peak is None else [result.usage.memory_peak]
            if word != "AC":
                detail = f"test {test.stem}: {result.reason}, status {result.returncode}"
                return Verdict(
                    submission.name,
                    word,
                    number,
                    len(tests),
                    max(times, default=None),
                    max(peaks, default=None),
                    detail,
                )
        return Verdict(
            submission.name, "AC", len(tests), len(tests), max(times, default=None), max(peaks, default=None)
        )


def main() -> int:
    """Judge and print a table."""
    parser = argparse.ArgumentParser(description="Judge submissions in containers.")
    parser.add_argument("--problem", type=Path, default=HERE / "sums")
    parser.add_argument("--cpu-time", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("submissions", type=Path, nargs="*")
    options = parser.parse_args()
    tests = sorted(options.problem.glob("tests/*.in"))
    submissions = options.submissions or sorted(options.problem.glob("submissions/*"))
    if not tests:
        parser.error(f"{options.problem} has no tests/*.in")
    try:
        limits = Limits(cpu_time=options.cpu_time)
        verdicts = [judge(submission, tests, limits) for submission in submissions]
    except UnsupportedError as error:
        print(f"A judge without limits would be none: {error}", file=sys.stderr)
        return 2
    show.table(
        ["submission", "tests", "CPU", "memory", "verdict", "why"],
        [
            [v.name, f"{v.passed}/{v.tests}", show.seconds(v.cpu_time), show.size(v.memory), v.word, v.detail]
            for v in verdicts
        ],
        colours=[COLOURS.get(v.word, "red") for v in verdicts],
        colour_at=4,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
