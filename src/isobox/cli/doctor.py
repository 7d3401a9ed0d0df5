"""``isobox doctor``: what works on this machine for this user, and what to do about the rest."""

from __future__ import annotations

import sys

import click

import isobox
from isobox.cli.report import aligned

_COLOURS = {"works": "green", "degraded": "yellow", "missing": "red"}


@click.command("doctor", short_help="Show what works here, and remedies.")
@click.option("--clean", is_flag=True, help="First remove what killed programs left behind.")
def command(clean: bool) -> int:
    """Show for each feature whether it works here, and if not, why and what would help.

    The exit status is 0 if everything that a container needs works, 1 otherwise.
    """
    if clean:
        _clean()
    findings = isobox.doctor()
    if sys.stdout.isatty():
        _coloured(findings)
    else:
        _plain(findings)
    return 0 if findings.ok else 1


def _clean() -> None:
    from isobox.doctor import doctor_clean

    found = doctor_clean()
    removed = (
        (len(found.owners), "dead owner", "dead owners"),
        (len(found.directories), "directory", "directories"),
        (len(found.names), "name", "names"),
        (len(found.ranges), "range of ids", "ranges of ids"),
    )
    words = [f"{count} {one if count == 1 else many}" for count, one, many in removed if count]
    # to standard error: the table stays what a script can read
    print(
        f"isobox: removed {', '.join(words)}" if words else "isobox: nothing was left behind", file=sys.stderr
    )
    for error in found.errors:
        print(f"isobox: could not remove yet: {error}", file=sys.stderr)


def _plain(findings: isobox.Report) -> None:
    # one line a feature, however long: for grep, less and people who report a bug
    rows = [
        (item.status, item.name, item.why + (f" Remedy: {item.remedy}" if item.remedy else ""))
        for item in findings.items
    ]
    for line in aligned(rows):
        click.echo(line)


def _coloured(findings: isobox.Report) -> None:
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
            why.append(("\n" if item.why else "") + f"→ {item.remedy}", style="bold")
        grid.add_row(item.name, Text(item.status, style=_COLOURS.get(item.status, "")), why)
    Console().print(grid)
