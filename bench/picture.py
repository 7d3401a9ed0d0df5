"""One picture of the comparison: horizontal bars on a logarithmic scale, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from attrs import frozen

from .cases import Case

WIDTH, LEFT, RIGHT, TOP = 860, 250, 110, 64
BAR, STEP, HEAD = 16, 24, 34
OURS, FLOOR, OTHERS = "#2f6fde", "#8a8f98", "#c9a26b"
SHOWN: Sequence[tuple[str, str, Sequence[tuple[str, str]]]] = (
    (
        "oneshot",
        "one program in a new container, everything gone afterwards",
        (
            ("subprocess.run", "subprocess.run (no isolation)"),
            ("floor", "the kernel's price (C, same work)"),
            ("isobox.run", "isobox.run"),
            ("sandlock", "sandlock (no namespaces)"),
            ("bwrap --unshare-all", "bwrap (no limits)"),
            ("runc run", "runc run"),
            ("systemd-nspawn", "systemd-nspawn"),
            ("podman run", "podman run"),
            ("benchexec", "BenchExec"),
            ("docker run", "docker run"),
        ),
    ),
    (
        "exec",
        "one more program in a container that lives, output captured",
        (
            ("floor: server inside", "the kernel's price (C, same work)"),
            ("exec, measure=False", "isobox exec"),
            ("exec, measure=True", "isobox exec, cgroup of its own"),
            ("subprocess.run", "subprocess.run (no isolation)"),
        ),
    ),
)


@frozen
class Bar:
    """A bar: label, milliseconds, colour."""

    label: str
    milliseconds: float
    colour: str


def _colour(label: str) -> str:
    if label.startswith("isobox"):
        return OURS
    return FLOOR if "kernel" in label or "subprocess" in label else OTHERS


def _groups(cases: Mapping[str, Case]) -> list[tuple[str, list[Bar]]]:
    groups = []
    for key, title, members in SHOWN:
        if key not in cases:
            continue
        medians = [(label, cases[key].median(name)) for name, label in members]
        bars = [Bar(label, value / 1e6, _colour(label)) for label, value in medians if value]
        if bars:
            groups.append((title, sorted(bars, key=lambda bar: bar.milliseconds)))
    return groups


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
    )


def _label(milliseconds: float) -> str:
    return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def draw(cases: Mapping[str, Case], where: Path, machine: str) -> bool:
    """Write the picture; False if there is nothing to show."""
    groups = _groups(cases)
    if not groups:
        return False
    values = [bar.milliseconds for _, bars in groups for bar in bars]
    low, high = math.floor(math.log10(min(values))), math.log10(max(values))
    height = TOP + sum(HEAD + STEP * len(bars) + 14 for _, bars in groups) + 30
    room = WIDTH - LEFT - RIGHT

    def x_of(milliseconds: float) -> float:
        return LEFT + room * (math.log10(milliseconds) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="system-ui, sans-serif" fill="#24292f" role="img">',
        f"<title>{escape('What a container costs: ' + machine)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 26, "What a container costs", size=18, more=' font-weight="600"'),
        _text(16, 46, f"median, logarithmic scale; {machine}", size=12, more=' fill="#57606a"'),
    ]
    bottom = height - 28
    for power in range(low, math.floor(high) + 1):
        x = x_of(10**power)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e1e4e8"/>')
        name = f"{10.0**power:g} ms"
        parts.append(_text(x, bottom + 18, name, anchor="middle", size=12, more=' fill="#57606a"'))
    y = float(TOP)
    for title, bars in groups:
        parts.append(_text(16, y + 20, title, more=' font-weight="600"'))
        y += HEAD
        for bar in bars:
            middle = y + BAR / 2 + 4.5
            length = max(x_of(bar.milliseconds) - LEFT, 1.0)
            parts.append(_text(LEFT - 8, middle, bar.label, anchor="end"))
            parts.append(
                f'<rect x="{LEFT}" y="{y:.1f}" width="{length:.1f}" height="{BAR}" '
                f'rx="2" fill="{bar.colour}"/>'
            )
            parts.append(_text(LEFT + length + 6, middle, _label(bar.milliseconds), size=12))
            y += STEP
        y += 14
    parts.append("</svg>\n")
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text("\n".join(parts))
    return True
