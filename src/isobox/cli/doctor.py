"""``isobox doctor``: what works on this machine for this user, and what to do about the rest."""

from __future__ import annotations

import sys
from typing import Any

import click

import isobox

_COLOURS = {"works": "green", "degraded": "yellow", "missing": "red"}


@click.command("doctor", short_help="Show what works here, and remedies.")
@click.option("--clean", is_flag=True, help="First remove what killed programs left behind.")
def command(clean: bool) -> int:
    """Show for each feature whether it works here, and if not, why and what would help.

    The exit status is 0 if everything that a container needs works, 1 otherwise.
    """
    if clean:
        from isobox.diagnosis import doctor_clean

        doctor_clean()
    findings = isobox.doctor()
    if sys.stdout.isatty():
        _coloured(findings)
    else:
        _plain(findings)
    return 0 if findings.ok else 1


def _plain(findings: Any) -> None:
    # one line a feature, tabs between: for grep, cut and people who file a bug
    for item in findings.items:
        click.echo("\t".join((item.status, item.name, item.why, item.remedy)).rstrip())


def _coloured(findings: Any) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        _plain(findings)
        return
    grid = Table(box=None, pad_edge=False)
    grid.add_column("feature", no_wrap=True)
    grid.add_column("status", no_wrap=True)
    grid.add_column("why, and what would help")
    for item in findings.items:
        why = Text(item.why)
        if item.remedy and item.status != "works":
            why.append(f"\n→ {item.remedy}", style="bold")
        grid.add_row(item.name, Text(item.status, style=_COLOURS.get(item.status, "")), why)
    Console().print(grid)
