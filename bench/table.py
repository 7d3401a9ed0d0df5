"""Results as aligned text; in colour on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from .cases import Case
from .goals import Goal

GREEN, RED, DIM, BOLD = "32", "31", "2", "1"
WORDS = 100
REFERENCES = {
    "oneshot": ("floor", "isobox.run"),
    "spaced": ("floor", "isobox.run"),
    "exec": ("floor: server inside", "subprocess.run"),
    "walls": ("isobox.run, all walls", "exec, measure=False, all walls"),
    "resident": ("isobox.run, 10 MB", "exec, 10 MB"),
    "threads": ("floor, one process", "isobox.run, one thread"),
    "images": ("folder", "image of 1 layer"),
    "teardown": ("floor, 0 processes", "floor, 100 processes"),
    "snapshot": (),
    "idle": ("floor", "floor, host network"),
    "stdout": ("floor: a pipe of 1 MiB", "subprocess.run, captured"),
    "work": (),
    "unpacking": ("tarfile", "isobox"),
    "forms": (),
    "pulling": ("podman pull", "isobox pull"),
    "committing": ("umoci repack", "isobox commit"),
}
"""Case → the subjects that the others are put in relation to."""

Paint = Callable[[str, str], str]


def painter() -> Paint:
    """Colours if standard output is a terminal that wants them, else none."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        return lambda text, colour: f"\x1b[{colour}m{text}\x1b[0m"
    return lambda text, colour: text


def quantity(value: float | None, unit: str) -> str:
    """A number for people: ``1.92 ms``, ``345 KiB``, ``2.4 GB/s``."""
    if value is None:
        return "-"
    if unit == "ns":
        return f"{value / 1e6:.3f} ms" if value < 9.95e6 else f"{value / 1e6:.1f} ms"
    if unit == "bytes":
        return f"{value / 1024:.0f} KiB"
    if unit == "bytes/s":
        return f"{value / 1e9:.2f} GB/s"
    return f"{value:.0f} /s"


def ratio(value: float | None) -> str:
    """``2.31x``; small ones as ``1/45``."""
    if value is None:
        return "-"
    return f"1/{1 / value:.1f}" if 0 < value < 0.2 else f"{value:.2f}x"


def aligned(rows: Sequence[Sequence[str]], left: Iterable[int] = (0,)) -> list[str]:
    """Rows as lines with columns of equal width; columns in `left` are aligned left, others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    keep_left = set(left)
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if column in keep_left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def case_lines(key: str, case: Case, paint: Paint) -> list[str]:
    """One case: a line for each subject, with its ratio to the case's references."""
    references = [name for name in REFERENCES.get(key, ()) if case.median(name) is not None]
    head = ["", "median", "10 %", "90 %", *(f"/ {name}" for name in references), ""]
    rows = [head]
    for name, series in case.series.items():
        relations = []
        for reference in references:
            mine, base = series.median, case.median(reference)
            relations.append(ratio(mine / base) if mine is not None and base else "-")
        numbers = [quantity(value, case.unit) for value in (series.median, series.low, series.high)]
        rows.append([name, *numbers, *relations, (series.error or series.note)[:WORDS]])
    lines = aligned(rows, left=(0, len(head) - 1))
    return [paint(case.title, BOLD), *(f"  {line}" for line in [paint(lines[0], DIM), *lines[1:]]), ""]


def goal_lines(goals: Sequence[Goal], paint: Paint) -> list[str]:
    """The goals: what was to be, what is, met or missed by how much."""
    rows = [["", "measured", "goal", "", "the floor", ""]]
    for goal in goals:
        show = ratio if goal.unit == "x" else lambda value, unit=goal.unit: quantity(value, unit)
        verdict = {True: "met", False: f"missed by {goal.missed_by:.0%}", None: "not measured"}[goal.met]
        sign = ">=" if goal.at_least else "<="
        rows.append(
            [
                goal.case,
                show(goal.value),
                f"{sign} {show(goal.bound)}",
                goal.against,
                show(goal.floor),
                verdict,
            ]
        )
    lines = aligned(rows, left=(0, 3, 5))
    colours = [DIM] + [{True: GREEN, False: RED, None: DIM}[goal.met] for goal in goals]
    met, measured = sum(goal.met is True for goal in goals), sum(goal.met is not None for goal in goals)
    painted = [f"  {paint(line, colour)}" for line, colour in zip(lines, colours, strict=True)]
    return [paint("goals", BOLD), *painted, f"  {met} of {measured} met", ""]


def report(cases: Mapping[str, Case], goals: Sequence[Goal], absent: Mapping[str, str]) -> str:
    """Everything, as text."""
    paint = painter()
    lines: list[str] = [""]
    for key, case in cases.items():
        lines += case_lines(key, case, paint)
    for name, reason in absent.items():
        lines.append(f"  not compared with {name}: {reason}")
    return "\n".join([*lines, "", *goal_lines(goals, paint)])
