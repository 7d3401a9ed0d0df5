"""The maps of sparse files: which pieces of a file an archive holds; the rest are holes.

GNU tar's four formats ("Storing Sparse Files" in its manual): its own with a table in the header,
and pax 0.0, 0.1 and 1.0. A map is tuples of (offset, size), ascending, that don't overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from isobox.errors import UnpackError

from .pax import MOST_SEGMENTS, Records, decimal, number

__all__ = ["Map", "from_header", "from_records"]

BLOCK = 512
_HERE = 4  # pieces in the header itself
_MORE = 21  # in each extended one
_SEGMENT = 24
_MOST_LINE = 21  # digits of a number and its newline
Segments = tuple[tuple[int, int], ...]


@frozen
class Map:
    """`size`: of the whole file; `stored`: bytes of the archive that hold `segments`."""

    size: int
    stored: int
    segments: Segments


def from_header(block: bytes, stored: int, read: Callable[[int], bytes]) -> Map:
    """Read the map of an entry of type "S"; `read` gives the extended headers that follow."""
    if block[257:265] != b"ustar  \0":
        raise UnpackError("a sparse file in a format that only old programs write")
    numbers: list[int] = []
    ended = _table(block[386:482], numbers)
    extended = block[482]
    while extended:
        if ended:
            raise UnpackError("a sparse file's map goes on after its end")
        if len(numbers) > 2 * MOST_SEGMENTS:
            raise UnpackError(f"a sparse file in more than {MOST_SEGMENTS} pieces")
        more = read(BLOCK)
        ended = _table(more[: _MORE * _SEGMENT], numbers)
        extended = more[_MORE * _SEGMENT]
    return _checked(number(block[483:495], "size"), stored, numbers)


def _table(raw: bytes, numbers: list[int]) -> bool:
    """Read the pieces of a table; True where an empty place ends it."""
    for at in range(0, len(raw), _SEGMENT):
        if not raw[at + 12]:
            return True
        numbers.append(number(raw[at : at + 12], "offset"))
        numbers.append(number(raw[at + 12 : at + _SEGMENT], "size"))
    return False


def from_records(records: Records, stored: int, read: Callable[[int], bytes]) -> Map:
    """Read the map that pax headers tell of; in 1.0 it comes before the contents, from `read`."""
    said = records.sparse
    version = said.get(b"major", b"0"), said.get(b"minor", b"1")
    if version == (b"1", b"0"):
        numbers, taken = _lines(stored, read)
        return _checked(_size(said, b"realsize"), stored - taken, numbers)
    if b"major" in said and version not in ((b"0", b"0"), (b"0", b"1")):
        raise UnpackError("a sparse file in a format that is not known")
    if b"map" in said:
        most = 2 * MOST_SEGMENTS
        texts = said[b"map"].split(b",", most + 1) if said[b"map"] else []
        if len(texts) > most:
            raise UnpackError(f"a sparse file in more than {MOST_SEGMENTS} pieces")
    else:
        texts = records.map
    numbers = [decimal(text, "sparse map") for text in texts]
    if b"numblocks" in said and decimal(said[b"numblocks"], "sparse map") != len(numbers) // 2:
        raise UnpackError("a sparse file's map has another length than it says")
    return _checked(_size(said, b"size"), stored, numbers)


def _size(said: dict[bytes, bytes], key: bytes) -> int:
    if key not in said:
        raise UnpackError(f"a sparse file without GNU.sparse.{key.decode()}")
    return decimal(said[key], "size")


def _lines(stored: int, read: Callable[[int], bytes]) -> tuple[list[int], int]:
    """Read the numbers of a map in front of the contents, and how many bytes it takes."""
    taken = 0
    rest = b""
    numbers: list[int] = []
    wanted = -1
    while wanted < 0 or len(numbers) < wanted:
        if taken + BLOCK > stored + -stored % BLOCK or len(rest) > _MOST_LINE:
            raise UnpackError("a damaged map of a sparse file")
        rest += read(BLOCK)
        taken += BLOCK
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if wanted < 0:
                wanted = 2 * decimal(line, "sparse map")
                if wanted > 2 * MOST_SEGMENTS:
                    raise UnpackError(f"a sparse file in more than {MOST_SEGMENTS} pieces")
            elif len(numbers) < wanted:
                numbers.append(decimal(line, "sparse map"))
        if len(numbers) == wanted:
            break
    return numbers, taken


def _checked(size: int, stored: int, numbers: Sequence[int]) -> Map:
    if len(numbers) % 2:
        raise UnpackError("a damaged map of a sparse file")
    segments: list[tuple[int, int]] = []
    at = total = 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if offset < at:
            raise UnpackError("a sparse file's pieces overlap, or are out of order")
        at = offset + length
        total += length
        if length:
            segments.append((offset, length))
    if at > size:
        raise UnpackError("a sparse file's pieces go beyond its end")
    if total != stored:
        raise UnpackError("a sparse file's map and its contents differ in size")
    return Map(size, stored, tuple(segments))
