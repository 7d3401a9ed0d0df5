"""An owner's directories: made below the own group of this process, in each hierarchy."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Set
from typing import Final

from ..errors import CgroupError
from .bundle import HANDED_ON
from .collection import OURS, own_path
from .directory import Tree
from .discovery import CgroupHost, Controller
from .placement import LEAF

_ATTEMPTS: Final = 20
_PASSING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What says nothing about this host: the next attempt may succeed."""


SELDOM: Final = frozenset({"devices", "hugetlb"})
"""What few containers need: an owner has trees for these once one does, so that others don't pay for it."""


def make_trees(host: CgroupHost, owner: str, *, seldom: str = "") -> tuple[dict[str, Tree], dict[str, str]]:
    """Return the trees by controller, and why there is none for the others that look writable.

    Those of the controllers that all containers need, or the one of ``seldom`` alone.
    Raises `CgroupError` where it was the wrong moment; then nothing is left.
    """
    by_root: dict[tuple[int, str], list[Controller]] = {}
    for controller in host.controllers.values():
        if controller.writable and (controller.name == seldom if seldom else controller.name not in SELDOM):
            by_root.setdefault((controller.version, controller.root), []).append(controller)
    trees: dict[str, Tree] = {}
    why: dict[str, str] = {}
    for controllers in by_root.values():
        path = own_path(controllers[0], owner)
        try:
            tree = _make_tree(controllers, path)
        except OSError as error:
            _remove(path)
            if error.errno in _PASSING:
                for made in dict.fromkeys(trees.values()):
                    made.close()
                    _remove(made.path)
                raise CgroupError(error.errno, f"can't make {path}", stage="cgroup", op="mkdir") from error
            why.update({each.name: f"can't make {path}: {error.strerror or error}" for each in controllers})
            continue
        trees.update({each.name: tree for each in controllers})
    return trees, why


def _make_tree(controllers: list[Controller], path: str) -> Tree:
    first = controllers[0]
    if first.vacate:
        _vacate(first.root)
    # Another process may be removing an `isobox` that it found empty: then make it again.
    for attempt in range(_ATTEMPTS):
        try:
            _make_group(f"{first.root}/{OURS}", first)
            _make_group(path, first)
            tree = Tree(first.version, tuple(each.name for each in controllers), path)
            break
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1:
                raise
    if first.version == 2:
        try:
            _hand_down(path, first.root, {*HANDED_ON, *(each.name for each in controllers)})
        except OSError:
            tree.close()
            raise
    return tree


def _remove(path: str) -> None:
    """Remove an owner's directory in which nothing was made yet, if it is there."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
        os.rmdir(os.path.dirname(path))  # still there where another owner has something in it


def _make_group(path: str, controller: Controller) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    if controller.version == 1 and controller.name == "memory":
        # Before Linux 5.11 a limit did not cover the groups below unless it was said.
        with contextlib.suppress(OSError), open(f"{path}/memory.use_hierarchy", "r+b", buffering=0) as file:
            if file.read() == b"0\n":
                file.write(b"1")


def _vacate(root: str) -> None:
    """On v2, move the processes of a delegated group to a leaf below it: once, at the start."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{root}/{LEAF}", 0o755)
    for _ in range(50):
        with open(f"{root}/cgroup.procs") as file:
            pids = file.read().split()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError), open(f"{root}/{LEAF}/cgroup.procs", "w") as file:
                file.write(pid)


def _hand_down(path: str, root: str, wanted: Set[str]) -> None:
    """On v2, hand the controllers on from ``root`` to the groups below ``path``."""
    for group in (root, os.path.dirname(path), path):
        with open(f"{group}/cgroup.controllers") as file:
            names = [name for name in file.read().split() if name in wanted]
        with open(f"{group}/cgroup.subtree_control") as file:
            missing = set(names) - set(file.read().split())
        if missing:
            with open(f"{group}/cgroup.subtree_control", "w") as file:
                file.write(" ".join(f"+{name}" for name in sorted(missing)))
