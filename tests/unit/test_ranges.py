"""The front of a filter, run instruction by instruction."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

import bpf
from isobox.security.ranges import X32_BIT, front


def program(*answers: int) -> bytes:
    """A filter of its own: so many instructions, of which only the last counts."""
    *padding, answer = answers
    return b"".join(struct.pack("=HBBI", 0x20, 0, 0, 0) for _ in padding) + struct.pack(
        "=HBBI", 6, 0, 0, answer
    )


ELSEWHERE = program(*[0] * 300, 0xE15E)
LONG = program(*[0] * 260, 0x10)
SHORT = program(0x5)
VERDICTS = st.integers(1, 6) | st.sampled_from([ELSEWHERE, LONG, SHORT])


def answer(verdict: int | bytes) -> int:
    return verdict if isinstance(verdict, int) else struct.unpack("=HBBI", verdict[-8:])[3]


@given(st.lists(st.tuples(st.integers(1, 3), VERDICTS), min_size=1, max_size=900), st.booleans())
def test_each_number_gets_what_its_range_says(steps: list[tuple[int, int | bytes]], spread: bool) -> None:
    ranges: list[tuple[int, int | bytes]] = []
    expected: list[int] = []
    for length, verdict in steps:
        ranges.append((len(expected), verdict))
        expected += [answer(verdict)] * (length * 7 if spread else 1)
    whole = front(bpf.NATIVE, ranges, ELSEWHERE)
    assert [bpf.run(whole, number)[0] for number in range(len(expected))] == expected
    for number in (len(expected), X32_BIT - 1):
        assert bpf.run(whole, number)[0] == expected[-1]
    for number in (0, 5, X32_BIT - 1):
        assert bpf.run(whole, number + X32_BIT)[0] == bpf.run(whole, number, architecture=7)[0] == 0xE15E


def test_a_range_is_one_comparison() -> None:
    ranges = [(number, number % 3) for number in range(100)]
    assert len(front(bpf.NATIVE, ranges, program(9))) // 8 == 4 + 99 + 3 + 1


def test_a_long_table() -> None:
    """More than a jump reaches, with answers that are never the same."""
    ranges: list[tuple[int, int | bytes]] = [(number, number + 1000) for number in range(700)]
    whole = front(bpf.NATIVE, ranges, ELSEWHERE)
    assert [bpf.run(whole, number)[0] for number in range(700)] == list(range(1000, 1700))
