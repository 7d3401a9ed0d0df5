"""Samples and what is told of them: medians, taken in interleaved rounds."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

SETTLE = 0.03
"""Seconds."""

Take = Callable[[int], Sequence[float]]
"""Takes n samples and returns them, in nanoseconds unless the case says otherwise."""


@frozen
class Subject:
    """Something that is measured: its name, how to take samples, how many in each round.

    `name` also orders and names it in tables and in the picture; `note` says what it leaves out.
    """

    name: str
    take: Take
    per_round: int = 10
    note: str = ""


@define
class Series:
    """The samples of one subject; `error` says why there are none."""

    subject: str
    note: str = ""
    samples: list[float] = field(factory=list)
    error: str | None = None

    @property
    def median(self) -> float | None:
        """The median of the samples, in their own unit; None without samples."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def low(self) -> float | None:
        """The first decile: what it costs when the machine does nothing else."""
        ordered = sorted(self.samples)
        return ordered[len(ordered) // 10] if ordered else None

    @property
    def high(self) -> float | None:
        """The ninth decile."""
        ordered = sorted(self.samples)
        return ordered[(len(ordered) * 9) // 10] if ordered else None


def progress(text: str) -> None:
    """Say on standard error what is going on."""
    print(text, file=sys.stderr, flush=True)


def interleave(case: str, subjects: Sequence[Subject], rounds: int) -> dict[str, Series]:
    """Take samples of all subjects in turn, A B C A B C, so that noise of the machine meets all alike.

    A subject that fails is left out from then on; its series keeps the reason. A short pause before each
    turn lets what the one before left in the background (the kernel's and isobox's own) come to an end.
    """
    series = {subject.name: Series(subject.name, subject.note) for subject in subjects}
    for number in range(rounds):
        progress(f"  {case}: round {number + 1} of {rounds}")
        for subject in subjects:
            mine = series[subject.name]
            if mine.error is not None:
                continue
            time.sleep(SETTLE)
            try:
                mine.samples.extend(subject.take(subject.per_round))
            except Failed as error:
                mine.error = str(error)
                progress(f"  {case}: {subject.name}: {error}")
    return series


class Failed(Exception):
    """A subject could not be measured; the text says why, in a line."""
