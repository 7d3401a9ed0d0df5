"""What works here, tried for real, and the removal of what killed programs left behind.

The experiments are in `isobox.diagnosis`, which is imported when the doctor is called.
"""

from __future__ import annotations

import sys

from isobox.collecting import Collected
from isobox.errors import IsoboxError
from isobox.findings import Item, Report
from isobox.runtime import Owner

__all__ = ["Collected", "Item", "Report", "doctor", "doctor_clean"]


def doctor() -> Report:
    """Try everything; takes some tens of milliseconds and leaves nothing.

    Where limits need a scope of systemd's, a process of its own asks for one: this one stays where it is.

    >>> doctor()["user namespace"].status
    'works'
    """
    from isobox.cgroups import discover, scope

    if scope.wanted(discover()) and scope.obstacle() is None and sys.executable:
        return Report(tuple(_apart()))
    from isobox.diagnosis import items

    return Report(tuple(items()))


def _apart() -> list[Item]:
    """Try everything in another process: systemd would move this one for good, and it only asked."""
    import json
    import subprocess

    command = [sys.executable, "-I", "-c", _APART, json.dumps(sys.path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise IsoboxError(f"the doctor's own process ended with status {done.returncode}: {last}")
    return [Item(**found) for found in json.loads(done.stdout)]


_APART = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from attrs import asdict
from isobox.diagnosis import items
print(json.dumps([asdict(item) for item in items()]))
"""


def doctor_clean() -> Collected:
    """Remove what dead owners left behind, now, and say what it was.

    The first start of every process does the same in passing; this one waits for it and tells.
    `Collected.errors` has what could not be removed. UnsupportedError where the state folder can't be used.

    >>> doctor_clean().errors
    ()
    """
    from isobox import cgroups

    owner = Owner()
    try:
        return owner.collect(cgroups.Groups(cgroups.discover(), owner.id).collect)
    finally:
        owner.close()
