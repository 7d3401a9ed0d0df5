"""Finding and removing the groups of an owner that is no more."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from ..errors import CgroupError, CleanupError
from .bundle import DIALECTS
from .directory import Directory, Tree
from .discovery import CgroupHost, Controller
from .ending import end, remove_all

OURS: Final = "isobox"
"""The directory below a process's own group that holds one for each owner."""

_SECONDS: Final = 10.0


def own_path(controller: Controller, owner: str) -> str:
    """Return the directory of ``owner`` below this process's own group."""
    return f"{controller.root.rstrip('/')}/{OURS}/{owner}"


def find(host: CgroupHost, owner: str) -> Iterator[str]:
    """Yield the directories of ``owner`` in every hierarchy.

    They lie below the group that the owner was in, which may be another one than this process's:
    so the whole of each hierarchy is searched, from its mount point down.
    """
    tops = {_top(controller.root): None for controller in host.controllers.values() if controller.root}
    for top in tops:
        for directory, names, _ in os.walk(top):
            if os.path.basename(directory) == OURS:
                if owner in names:
                    yield os.path.join(directory, owner)
                names.clear()  # what lies below are containers


def _top(path: str) -> str:
    """Return the mount point that ``path`` is below."""
    device = os.stat(path).st_dev
    while os.stat(os.path.dirname(path)).st_dev == device:
        path = os.path.dirname(path)
    return path


def collect(paths: Iterable[str]) -> None:
    """Kill everything in these groups, then remove them and the `isobox` above where it is empty.

    Raises `CleanupError` with everything that resists.
    """
    failures: list[BaseException] = []
    present = [path for path in dict.fromkeys(paths) if os.path.isdir(path)]
    # One process is in a group of each hierarchy: frozen in one, it does not die in any, and as
    # long as it lives, it keeps every one busy.
    for step in (_thaw, _end, _remove):
        for path in present:
            try:
                _with_tree(path, step)
            except OSError as error:
                failures.append(error)
    if failures:
        raise CleanupError("groups are left behind", tuple(failures))


def _with_tree(path: str, step: Callable[[Directory], None]) -> None:
    version: Literal[1, 2] = 2 if os.path.exists(f"{path}/cgroup.controllers") else 1
    try:
        tree = Tree(version, (), path)
    except FileNotFoundError:
        return
    try:
        step(Directory(tree, "."))
    finally:
        tree.close()


def _thaw(group: Directory) -> None:
    dialect = DIALECTS[group.tree.version]
    for below in group.walk():
        if os.path.exists(f"{below.path}/{dialect.thawing[0]}"):
            dialect.thaw(below)


def _end(group: Directory) -> None:
    end(group)


def _remove(group: Directory) -> None:
    deadline = time.monotonic() + _SECONDS
    pause = 0.001
    while True:
        left = [below for below in group.groups() if not remove_all(below)]
        if not left and _rmdir(group.path):
            break
        if time.monotonic() > deadline:
            raise CgroupError(errno.EBUSY, f"{group.path} stays in use", stage="cgroup", op="rmdir")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    _rmdir(os.path.dirname(group.path))  # still there where another owner has something in it


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return True
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True
