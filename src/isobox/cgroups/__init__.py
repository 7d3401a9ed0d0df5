"""Where a container's processes are counted, limited, paused and ended: cgroup v1, v2 and hybrid.

`discover` says what this host has, `Groups` makes the groups of one owner, `Group` is one of them.
"""

from __future__ import annotations

from .bundle import Bundle
from .devices import Device
from .dialect import OomWatch
from .discovery import CgroupHost, Controller, discover, own_group
from .group import Group
from .groups import Groups

__all__ = [
    "Bundle",
    "CgroupHost",
    "Controller",
    "Device",
    "Group",
    "Groups",
    "OomWatch",
    "discover",
    "own_group",
]
