"""What works here, tried for real, and the removal of what killed programs left behind.

The experiments are in `isobox.diagnosis`, which is imported when the doctor is called.
"""

from __future__ import annotations

from isobox.findings import Item, Report
from isobox.runtime import Collected, Owner

__all__ = ["Collected", "Item", "Report", "doctor", "doctor_clean"]


def doctor() -> Report:
    """Try everything; takes some tens of milliseconds and leaves nothing.

    >>> doctor()["user namespace"].status
    'works'
    """
    from isobox.diagnosis import items

    return Report(tuple(items()))


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
