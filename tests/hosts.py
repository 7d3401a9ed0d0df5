"""The table of docs/reference/hosts.md: what works on which kind of host for which user.

Its cells are what tests/kernel/test_features.py found on hosts of these kinds, kept in docs/reference/hosts/
as one JSON file a column, and the output of `isobox doctor` there as text. On each of these hosts that test
compares. To write anew what is kept: ISOBOX_RECORD=FOLDER for the test on each host, the files of FOLDER to
docs/reference/hosts/, then `python tests/hosts.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from isobox import host
from isobox.cgroups import discover, scope

KEPT: Final = Path(__file__).parents[1] / "docs" / "reference" / "hosts"
PAGE: Final = KEPT.with_suffix(".md")

LAYOUTS: Final = {
    "v1": "cgroup v1 only",
    "hybrid": "v1 controllers and an empty v2 (hybrid)",
    "v2": "cgroup v2 only",
}
USERS: Final = {
    "root": "root",
    "delegated": "user with a delegated cgroup",
    "scope": "user whom systemd gives a scope",
    "user": "user with subuids",
    "one-id": "user with one id",
}

_HEAD: Final = """\
# Hosts

What works on which kind of host, for whom. Each cell is what the tests found there, by using the feature:
`yes`, or the number of a note below that says what would help. What a host can't do is refused with an
`UnsupportedError` whose `remedy` is that note; nothing is ever silently left out. On your own host,
`isobox doctor` says the same.

What a kernel is too old for is missing for everybody: see [kernels](kernels.md).
"""


def column() -> str:
    """The name of the column that this host and this user belong to, asked before the first container."""
    features = host.features()
    if os.geteuid() == 0:
        who = "root"
    elif features.cgroups:
        who = "delegated"
    elif scope.wanted(discover()) and scope.obstacle() is None:
        who = "scope"
    else:
        who = "user" if features.id_ranges else "one-id"
    return f"{features.cgroup_layout}-{who}"


def kept(name: str) -> dict[str, str] | None:
    """A column: for each feature "yes" or the remedy. None where nobody has recorded it."""
    path = KEPT / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def page() -> str:
    """The whole page."""
    notes: dict[str, int] = {}
    parts = [_HEAD]
    for layout, title in LAYOUTS.items():
        columns = {who: kept(f"{layout}-{who}") for who in USERS}
        present = {who: cells for who, cells in columns.items() if cells}
        if not present:
            continue
        features = list(dict.fromkeys(feature for cells in present.values() for feature in cells))
        parts.append(f"\n## {title[0].upper()}{title[1:]}\n")
        parts.append("| | " + " | ".join(USERS[who] for who in present) + " |")
        parts.append("| --- |" + " --- |" * len(present))
        for feature in features:
            words = []
            for cells in present.values():
                found = cells.get(feature, "")
                words.append(
                    found if found in ("yes", "") else f"[{notes.setdefault(found, len(notes) + 1)}]"
                )
            parts.append(f"| {feature} | " + " | ".join(words) + " |")
        links = [f"[{USERS[who]}](hosts/{layout}-{who}.txt)" for who in present]
        parts.append("\n`isobox doctor` there: " + ", ".join(links) + ".")
    parts.append("\n## What would help\n")
    parts += [f"{number}. {note}" for note, number in notes.items()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
