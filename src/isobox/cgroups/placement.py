"""Where in a v2 hierarchy groups can be made: a group that holds processes gives out no resources.

So on v2 the own group of a process is never a place for groups below it as it is. In order:

1. The root of the hierarchy, which alone may hold processes and give out resources.
2. A group that was delegated to this user: whoever delegates it asks for it to be divided. Its processes
   move to a leaf below it (`LEAF`), once, and the group gives out its resources. Nobody has asked for that
   in the topmost group of a container: there the environment variable `SWITCH` does.
3. The nearest group above that holds no processes and may be written: there isobox's groups lie
   beside the own group of this process, as those of a service manager do.

Where systemd divides the hierarchy, `isobox.cgroups.scope` asks it for a group of the second kind first.
"""

from __future__ import annotations

import os
from typing import Final

from attrs import frozen

LEAF: Final = "isobox-host"
"""The group below a delegated one to which its own processes move."""

SWITCH: Final = "ISOBOX_MOVE_PROCESSES"
"""The environment variable that asks for it, with ``1``."""

_DELEGATED: Final = ("user.delegate", "trusted.delegate")  # set by systemd


@frozen
class Place:
    """A group for others below it; `why` says what is in the way, if anything is.

    `borrowed` is one that was handed to nobody: the third of the module's list.
    """

    root: str
    controllers: tuple[str, ...]
    why: str = ""
    vacate: bool = False
    borrowed: bool = False
    remedy: str = ""


def place(own: str, top: str, read_only: bool, *, namespace_root: bool) -> Place:
    """Return where below ``top`` groups can be made by a process whose group is ``own``."""
    if os.path.basename(own) == LEAF:  # moved there before, by this process or one like it
        own = os.path.dirname(own)
        namespace_root = False
    names = controllers(own)
    if read_only:
        return Place(own, names, f"{top} is mounted read-only")
    if is_root(own):
        return Place(own, names) if _writable(own) else Place(own, names, _denied(own))
    if _writable(own):
        occupied = _occupied(own)
        if not occupied or _delegated(own) or (namespace_root and os.environ.get(SWITCH) == "1"):
            return Place(own, names, vacate=occupied)
        if namespace_root:
            why = f"{own} holds processes, and a group of v2 that gives out resources may hold none"
            return Place(own, names, why, remedy=f"set {SWITCH}=1, to have them moved to {own}/{LEAF}")
    above = own
    while above != top and len(above) > len(top):
        above = os.path.dirname(above)
        if _writable(above) and (is_root(above) or not _occupied(above)):
            return Place(above, controllers(above), borrowed=True)
    return Place(own, names, _denied(own))


def controllers(group: str) -> tuple[str, ...]:
    """Return the names of the controllers that ``group`` may hand on."""
    return tuple(_read(group, "cgroup.controllers").split())


def is_root(group: str) -> bool:
    """Return whether ``group`` is the root of the hierarchy: it alone has no type."""
    return not os.path.exists(os.path.join(group, "cgroup.type"))


def _denied(own: str) -> str:
    return f"{own} is not delegated: no permission to make groups in it, nor in one above it"


def _writable(group: str) -> bool:
    """Making groups, moving processes and handing out resources are three permissions."""
    return all(
        os.access(os.path.join(group, name), os.W_OK, effective_ids=True)
        for name in ("", "cgroup.procs", "cgroup.subtree_control")
    )


def _occupied(group: str) -> bool:
    return bool(_read(group, "cgroup.procs"))


def _delegated(group: str) -> bool:
    if 0 != os.geteuid() == os.stat(group).st_uid:
        return True
    for name in _DELEGATED:
        try:
            if os.getxattr(group, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _read(group: str, name: str) -> str:
    try:
        with open(os.path.join(group, name)) as file:
            return file.read()
    except OSError:
        return ""
