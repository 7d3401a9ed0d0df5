"""The front of a filter: what a system call's number alone decides, found by halving.

libseccomp compares with each number that a profile names, and the kernel translates a filter each time it
is installed: for an allow-list that is most of what the filter costs. The calls beside each other in the
table mostly share an action, so here a range is one comparison, and libseccomp's filter follows only for
the calls whose arguments matter.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

X32_BIT = 0x40000000
"""Set in the number of a call by x86-64's x32 table, which shares the architecture's token."""

_LOAD, _JUMP, _EQUAL, _NOT_LESS, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_FAR = 250  # a conditional jump reaches 255 instructions; less what is put in between


def front(architecture: int, ranges: Sequence[tuple[int, int | bytes]], elsewhere: bytes) -> bytes:
    """Return the whole filter, 8 bytes an instruction.

    `ranges`: the first number of each and what becomes of its calls, in order and from 0 on: an action as the
    kernel has it, or a filter that decides further. `elsewhere`: the filter for calls of other tables, which
    are those of an architecture that is not `architecture`, and those with `X32_BIT`.
    """
    code = _Backwards()
    places: dict[int | bytes, int] = {elsewhere: code.append(elsewhere)}
    for _, verdict in ranges:
        if isinstance(verdict, bytes) and verdict not in places:
            places[verdict] = code.append(verdict)

    def place(verdict: int | bytes) -> int:
        if isinstance(verdict, bytes):
            return code.near(places[verdict])
        known = places.get(verdict)
        if known is None or code.distance(known) > _FAR:
            known = places[verdict] = code.put(_RETURN, verdict)
        return known

    def tree(low: int, high: int) -> int:
        if high - low == 1:
            return place(ranges[low][1])
        middle = (low + high) // 2
        right = tree(middle, high)
        left = tree(low, middle)
        right = code.near(right)
        return code.put(_NOT_LESS, ranges[middle][0], right, code.near(left))

    start = tree(0, len(ranges))
    others = code.near(places[elsewhere])
    start = code.next_is(start)
    start = code.put(_NOT_LESS, X32_BIT, others, start)
    start = code.put(_LOAD, _NUMBER)
    code.put(_EQUAL, architecture, start, others)
    code.put(_LOAD, _ARCHITECTURE)
    return code.program()


class _Backwards:
    """A program from its last instruction to its first. BPF jumps forward only, so every target is there.

    A place is counted from the end: that of an instruction is the number of instructions from it on.
    """

    def __init__(self) -> None:
        self._code: list[bytes] = []

    def put(self, operation: int, value: object, true: int | None = None, false: int | None = None) -> int:
        jumps = [0 if target is None else self.distance(target) for target in (true, false)]
        self._code.append(struct.pack("=HBBI", operation, *jumps, value))
        return len(self._code)

    def append(self, program: bytes) -> int:
        self._code.extend(program[at : at + 8] for at in range(len(program) - 8, -1, -8))
        return len(self._code)

    def distance(self, place: int) -> int:
        return len(self._code) - place

    def near(self, place: int) -> int:
        """Return a place that a conditional jump reaches and that leads to `place`."""
        return self.put(_JUMP, self.distance(place)) if self.distance(place) > _FAR else place

    def next_is(self, place: int) -> int:
        """Return the place of the newest instruction, which is `place` or leads to it."""
        return self.put(_JUMP, self.distance(place)) if self.distance(place) else place

    def program(self) -> bytes:
        return b"".join(reversed(self._code))
