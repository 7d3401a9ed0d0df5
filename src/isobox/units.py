"""Values as people write them, turned into numbers: sizes, durations, sets of CPUs, fractions.

Every function takes ``field``, the name of the option that is parsed, so that the `SpecError`
it raises says which one was wrong and what would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final, SupportsFloat, SupportsIndex

from .errors import SpecError

_SIZE: Final = re.compile(r"([0-9]+)(\.[0-9]+)?\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_POWER: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_LARGEST_SIZE: Final = 2**63 - 1

_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(us|ms|s|m|h)?", re.ASCII)
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST: Final = 1e9  # about 31 years: anything above is a mistake, and would overflow timers

_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+", re.ASCII)
_CPU_RANGE: Final = re.compile(r"\s*([0-9]{1,5})\s*(?:-\s*([0-9]{1,5})\s*)?", re.ASCII)
MOST_CPUS: Final = 8192  # the kernel's own ceiling for CONFIG_NR_CPUS


def parse_int(value: object, *, field: str, least: int, most: int, expected: str = "") -> int:
    """Return ``value`` as an int between ``least`` and ``most``; a bool or a float is an error.

    >>> parse_int(64, field="pids", least=1, most=4194304)
    64
    """
    number = _whole(value)
    if number is not None and least <= number <= most:
        return number
    raise SpecError(field, value, expected or f"a whole number from {least} to {most}")


def parse_size(value: object, *, field: str, least: int = 1) -> int:
    """Return a size in bytes, from an int or from text such as ``"256M"`` or ``"1.5GiB"``.

    K, M, G and T are powers of 1024, in either case, with or without ``B`` or ``iB`` behind.
    Raises `SpecError` for anything else, and for less than ``least`` bytes.

    >>> parse_size("256M", field="memory")
    268435456
    """
    size: int | None = None
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is not None:
            whole, fraction, unit = match.groups()
            power = _POWER[(unit or "").upper()]
            if fraction is None:
                size = int(whole[:40]) << power
            elif power:
                # In whole numbers all through: a float would lose the low bytes of a large size.
                digits = fraction[1:41]
                size = (int(whole[:40] + digits) << power) // 10 ** len(digits)
    else:
        size = _whole(value)
    if size is not None and least <= size <= _LARGEST_SIZE:
        return size
    at_least = f", at least {least} bytes" if least > 1 else ""
    raise SpecError(field, value, f'bytes as an int, or text such as "256M" or "1.5G"{at_least}')


def parse_duration(value: object, *, field: str) -> float:
    """Return seconds, from a number or from text such as ``"30s"``, ``"250ms"`` or ``"1.5h"``.

    Raises `SpecError` for anything else, for zero and below, for NaN and for infinity.

    >>> parse_duration("250ms", field="timeout")
    0.25
    """
    seconds = -1.0
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is not None:
            seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    else:
        seconds = _real(value)
    if 0.0 < seconds <= _LONGEST:
        return seconds
    raise SpecError(
        field, value, 'seconds greater than 0, such as 30, 1.5, "30s" or "250ms"; None for no limit'
    )


def parse_cpu(value: object, *, field: str = "cpu") -> float:
    """Return a number of cores: 0.5 is half of one. The kernel's smallest share is 0.001.

    >>> parse_cpu("1.5")
    1.5
    """
    cores = -1.0
    if isinstance(value, str):
        if _NUMBER.fullmatch(value.strip()):
            cores = float(value)
    else:
        cores = _real(value)
    if 0.001 <= cores <= MOST_CPUS:
        return cores
    raise SpecError(field, value, "a number of cores from 0.001 upwards, such as 0.5; None for no limit")


def parse_cpuset(value: object, *, field: str = "cpuset") -> frozenset[int]:
    """Return a set of CPU numbers, from the kernel's notation or from an iterable of ints.

    >>> sorted(parse_cpuset("0-2,5"))
    [0, 1, 2, 5]
    """
    expected = 'CPU numbers as text such as "0-2,5", or as an iterable of ints such as [0, 1]'
    cpus: set[int] = set()
    if isinstance(value, str):
        for part in value.split(","):
            match = _CPU_RANGE.fullmatch(part)
            if match is None:
                raise SpecError(field, value, expected)
            first = int(match[1])
            last = first if match[2] is None else int(match[2])
            if not first <= last < MOST_CPUS:
                raise SpecError(field, value, f"{expected}, each below {MOST_CPUS}, ranges upwards")
            cpus.update(range(first, last + 1))
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        for cpu in value:
            cpus.add(parse_int(cpu, field=field, least=0, most=MOST_CPUS - 1, expected=expected))
    if not cpus:
        raise SpecError(field, value, expected)
    return frozenset(cpus)


def format_cpuset(cpus: Iterable[int]) -> str:
    """Return the kernel's notation for a set of CPU numbers: the inverse of `parse_cpuset`.

    >>> format_cpuset({0, 1, 2, 5})
    '0-2,5'
    """
    parts: list[str] = []
    ordered = sorted(set(cpus))
    start = 0
    for index, cpu in enumerate(ordered):
        if index + 1 < len(ordered) and ordered[index + 1] == cpu + 1:
            continue
        first = ordered[start]
        parts.append(str(cpu) if first == cpu else f"{first}-{cpu}")
        start = index + 1
    return ",".join(parts)


def _whole(value: object) -> int | None:
    """Return ``value`` as an int where it is a whole number by its type; True and 1.0 are not."""
    if type(value) is int:  # the ordinary case first: isinstance with a protocol takes a microsecond
        return value
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        return value.__index__()
    return None


def _real(value: object) -> float:
    """Return ``value`` as a float where it is a finite number, else -1."""
    if type(value) is float:
        return value if math.isfinite(value) else -1.0
    if isinstance(value, (bool, str, bytes)) or not isinstance(value, SupportsFloat):
        return -1.0
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return -1.0
    return number if math.isfinite(number) else -1.0
