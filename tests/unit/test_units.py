"""Sizes, durations and CPU sets: text and numbers mean the same, and nothing else passes."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import SpecError
from isobox.units import format_cpuset, parse_cpu, parse_cpuset, parse_duration, parse_int, parse_size

POWERS = {"": 0, "K": 10, "m": 20, "G": 30, "t": 40}
ANYTHING = st.one_of(
    st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.binary(), st.lists(st.integers())
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1k", 1024),
        ("1KB", 1024),
        ("1KiB", 1024),
        (" 256M ", 256 << 20),
        ("1.5 GiB", 3 << 29),
        ("0.1K", 102),
        ("1T", 1 << 40),
        ("8388607.999999T", (8388607999999 << 40) // 10**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, field="memory", least=0) == size


@given(st.integers(0, 2**22), st.sampled_from(sorted(POWERS)), st.sampled_from(["", "B", "iB", "b"]))
def test_sizes_in_text_are_powers_of_1024(number: int, unit: str, suffix: str) -> None:
    if suffix == "iB" and not unit:
        suffix = "B"
    assert parse_size(f"{number}{unit}{suffix}", field="x", least=0) == number << POWERS[unit]


@given(st.integers(0, 10**6), st.integers(0, 10**9), st.sampled_from("KMGT"))
def test_fractions_of_sizes_are_exact(whole: int, fraction: int, unit: str) -> None:
    text = f"{whole}.{fraction}"
    assert (
        parse_size(f"{text}{unit}", field="x", least=0)
        == Fraction(text) * (1 << POWERS.get(unit, POWERS.get(unit.lower(), 0))) // 1
    )


@given(ANYTHING)
def test_size_is_a_number_in_range_or_an_error(value: Any) -> None:
    try:
        size = parse_size(value, field="memory")
    except SpecError as error:
        assert error.field == "memory"
    else:
        assert type(size) is int
        assert 1 <= size < 2**63


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(30, 30.0), (1.5, 1.5), ("30s", 30.0), ("1.5", 1.5), ("250ms", 0.25), ("10us", 1e-5), ("2m", 120.0),
     (" 1.5 h ", 5400.0), (".5s", 0.5), (Fraction(1, 4), 0.25)],
)  # fmt: skip
def test_durations(value: Any, seconds: float) -> None:
    assert parse_duration(value, field="timeout") == pytest.approx(seconds)


@given(ANYTHING)
def test_duration_is_finite_and_positive_or_an_error(value: Any) -> None:
    try:
        seconds = parse_duration(value, field="timeout")
    except SpecError as error:
        assert error.field == "timeout"
    else:
        assert math.isfinite(seconds)
        assert seconds > 0


@given(st.floats(0.001, 8192))
def test_cpu_as_text_and_as_a_number(cores: float) -> None:
    assert parse_cpu(cores) == cores
    assert parse_cpu(f"{cores:.12f}") == pytest.approx(cores, abs=1e-9)


@given(st.frozensets(st.integers(0, 8191), min_size=1))
def test_cpusets_round_trip(cpus: frozenset[int]) -> None:
    text = format_cpuset(cpus)
    assert parse_cpuset(text) == cpus
    assert parse_cpuset(cpus) == cpus
    ranges = [part.split("-") for part in text.split(",")]
    for before, after in itertools.pairwise(ranges):
        assert int(before[-1]) + 1 < int(after[0]), "neighbours are one range"


@given(ANYTHING)
def test_cpuset_is_not_empty_or_an_error(value: Any) -> None:
    try:
        cpus = parse_cpuset(value)
    except SpecError as error:
        assert error.field == "cpuset"
    else:
        assert cpus
        assert all(0 <= cpu < 8192 for cpu in cpus)


def test_whole_numbers_take_whatever_is_an_index_but_no_bool() -> None:
    class Index:
        def __index__(self) -> int:
            return 7

    assert parse_int(Index(), field="pids", least=1, most=8) == 7
    assert parse_size(Index(), field="memory") == 7
    with pytest.raises(SpecError, match="expected a whole number from 1 to 8"):
        parse_int(True, field="pids", least=1, most=8)
