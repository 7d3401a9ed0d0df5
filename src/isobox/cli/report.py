"""A Result for people (the table of costs) and for programs (JSON)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from isobox import Result, Usage

_ROWS = (
    ("wall time", "wall_time", "s"),
    ("cpu time", "cpu_time", "s"),
    ("  user", "cpu_user", "s"),
    ("  system", "cpu_system", "s"),
    ("peak memory", "memory_peak", "B"),
    ("peak processes", "pids_peak", ""),
    ("read from disk", "io_read", "B"),
    ("written to disk", "io_write", "B"),
    ("throttled", "throttled_time", "s"),
    ("  periods", "throttled_periods", ""),
    ("out-of-memory kills", "oom_kills", ""),
)


def as_json(result: Result[Any], container: dict[str, str]) -> str:
    """The whole Result. Output that isn't UTF-8 comes as base64, and says so beside it."""
    document: dict[str, Any] = {
        "args": [_text(argument) for argument in result.args],
        "ok": result.ok,
        "returncode": result.returncode,
        "reason": result.reason,
        "truncated": result.truncated,
    }
    for name in ("stdout", "stderr"):
        document[name], document[f"{name}_encoding"] = _stream(getattr(result, name))
    usage = {name: getattr(result.usage, name) for _, name, _ in _ROWS}
    usage["pressure"] = result.usage.pressure
    usage["notes"] = list(result.usage.notes)
    usage["sources"] = dict(result.usage.sources)
    document["usage"] = usage
    document["container"] = container
    return json.dumps(document, indent=2)


def table(usage: Usage) -> str:
    """The costs, one a line: what, how much, and where the kernel says so."""
    rows = [
        (label, _amount(getattr(usage, name), unit), usage.sources.get(name, ""))
        for label, name, unit in _ROWS
        if getattr(usage, name) is not None or name in ("cpu_time", "memory_peak")
    ]
    for resource, seconds in (usage.pressure or {}).items():
        rows.append((f"waited for {resource}", _amount(seconds, "s"), usage.sources.get("pressure", "")))
    lines = aligned(rows, right=frozenset({1}))
    lines += [f"note: {note}" for note in usage.notes]
    return "\n".join(lines)


def aligned(rows: Iterable[tuple[str, ...]], right: frozenset[int] = frozenset()) -> list[str]:
    """Columns padded to their widest cell, two spaces between them."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _amount(value: float | int | None, unit: str) -> str:
    if value is None:
        return "unknown"
    if unit == "s":
        return f"{value:.3f} s"
    if unit == "B":
        return size(int(value))
    return str(value)


def size(count: int) -> str:
    """Bytes for people: ``12.3 MiB``."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024 or unit == "TiB":
            break
    return f"{amount:.1f} {unit}"


def _stream(data: object) -> tuple[str | None, str | None]:
    if data is None:
        return None, None
    if isinstance(data, str):
        return data, "utf-8"
    assert isinstance(data, bytes)
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64"


def _text(argument: object) -> str:
    text = argument.decode(errors="surrogateescape") if isinstance(argument, bytes) else str(argument)
    # JSON has no lone surrogates: most readers would refuse the whole document
    return text.encode(errors="surrogateescape").decode(errors="replace")
