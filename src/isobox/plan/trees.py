"""The root file system in a plan: its trees are mounted over one another, each on what it may write to."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from ..rootfs.layers import Directory, Link, Rootfs, Tree
from .ops import AT_RECURSIVE, ATTR_NODEV, ATTR_RDONLY, BELOW_ROOT, HOST_PATH, OPEN_TREE_CLONE
from .parts import Shape
from .stage import Stage, bounds


def add_scratch(stage: Stage, setup: Shape) -> None:
    """A tmpfs of the container's own for everything that it may write, and for mount points on the way."""
    options = bounds(setup.scratch_size) | {"mode": "0755"}
    stage.mount("tmpfs", options, ATTR_NODEV, setup.stage, HOST_PATH)
    stage.mkdir(f"{setup.stage}/root")
    if setup.disk_scratch is not None:
        stage.mkdir(f"{setup.stage}/disk")
        if setup.disk_fd is not None:
            stage.add("TAKE_TREE", setup.disk_fd, note=setup.disk_scratch)
        else:
            stage.add("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(setup.disk_scratch,))
        stage.add("ATTACH", HOST_PATH, strings=(f"{setup.stage}/disk",), note="the layer on disk")


def _owner_of(path: str, trees: Sequence[Tree]) -> int:
    """The index of the tree that a path lies in: the one with the longest target."""
    best = 0
    for number, tree in enumerate(trees):
        target = tree.target.rstrip("/")
        if (path == target or path.startswith(f"{target}/")) and len(tree.target) > len(trees[best].target):
            best = number
    return best


def _premade(directory: Directory, trees: Sequence[Tree]) -> tuple[int, str] | None:
    """Where to make a directory before its tree is mounted: hidden ones only, they meet nothing below."""
    number = _owner_of(directory.path, trees)
    tree = trees[number]
    relative = directory.path[len(tree.target.rstrip("/")) :].lstrip("/")
    if tree.kind != "overlay" or not relative:
        return None
    if (
        any(relative == hidden or relative.startswith(f"{hidden}/") for hidden in tree.hidden)
        or not tree.layers
    ):
        return number, relative
    return None


def add_trees(stage: Stage, setup: Shape) -> None:
    """Mount all trees of the root file system, with the directories and links between them."""
    trees = setup.rootfs.trees
    uppers = f"{setup.stage}/disk" if setup.disk_scratch is not None else setup.stage
    later: list[Directory] = []
    begun = _begun(stage, setup)
    for number, tree in enumerate(trees):
        if tree.kind == "overlay":
            stage.mkdir(f"{uppers}/upper/{number}", tree.mode)
            stage.mkdir(f"{uppers}/work/{number}")
    for directory in setup.rootfs.skeleton:
        place = None if begun else _premade(directory, trees)
        if place is None:
            later.append(directory)
        else:
            stage.mkdir(f"{uppers}/upper/{place[0]}/{place[1]}", directory.mode)
    if setup.rootfs.etc is not None and setup.files:
        # In the upper directory itself: no mount, and nothing of the image in the way.
        stage.mkdir(f"{uppers}/upper/0/etc", setup.rootfs.etc.mode)
        for path, content in setup.files:
            stage.add("FILE", 0o644, HOST_PATH, strings=(f"{uppers}/upper/0{path}", content))
    if begun:
        _like(stage, setup.rootfs, f"{uppers}/upper", begun[0])
    made_later = {id(directory) for directory in later}
    numbers = {id(tree): number for number, tree in enumerate(trees)}
    for step in setup.rootfs.steps():
        if isinstance(step, Tree):
            _tree(stage, setup, numbers[id(step)], step, uppers, begun)
        elif isinstance(step, Link):
            stage.add("SYMLINK", 0, BELOW_ROOT, strings=(step.path, step.target))
        elif id(step) in made_later:
            stage.add("MKDIR", step.mode, BELOW_ROOT, 1, strings=(step.path,))


def _like(stage: Stage, rootfs: Rootfs, upper: str, last: str) -> None:
    """What is new and lies over a directory that was there has its owner, mode, times and attributes."""
    same = ["0/etc"] if rootfs.etc is not None else []
    same += [str(number) for number, tree in enumerate(rootfs.trees) if tree.kind == "overlay"]
    for path in same:
        stage.add("LIKE", strings=(f"{upper}/{path}", f"{last}/{path}"), note="owner, mode, times")


def _etc_like(stage: Stage, rootfs: Rootfs, upper: str, layers: Sequence[str]) -> None:
    """The container's own /etc has the owner of its image's."""
    if rootfs.etc is not None and rootfs.etc.like is not None:
        like = f"{layers[rootfs.etc.like]}/etc"
        stage.add("LIKE", strings=(f"{upper}/0/etc", like), note="owner, mode, times")


def _begun(stage: Stage, setup: Shape) -> list[str]:
    """Attach what earlier containers wrote; returns where, topmost first."""
    places = []
    fds = setup.begun_fds or [None] * len(setup.rootfs.begun)
    for number, (begun, fd) in enumerate(zip(setup.rootfs.begun, fds, strict=True)):
        places.append(f"{stage.root}/begun/{number}")
        stage.mkdir(places[-1])
        if fd is None:
            stage.add("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(begun.path,))
        elif begun.idmap or begun.copy is not None:
            stage.add("TAKE_TREE", fd, note=begun.path)
        else:
            stage.add("CLONE_TREE", fd, note=begun.path)
        stage.add("ATTACH", HOST_PATH, strings=(places[-1],), note=begun.path)
        stage.add("SETATTR", ATTR_RDONLY | ATTR_NODEV, 0, note="read-only, nodev")
    return places


def _tree(
    stage: Stage, setup: Shape, number: int, tree: Tree, uppers: str, begun: Sequence[str] = ()
) -> None:
    fds = setup.layer_fds.get(number)
    root = number == 0
    target = f"{setup.stage}/root" if root else tree.target
    if tree.kind == "bind":
        if fds is not None:
            stage.add("TAKE_TREE", fds[0], note=tree.layers[0].path)
        else:
            stage.add("OPEN_TREE", OPEN_TREE_CLONE | AT_RECURSIVE, HOST_PATH, strings=(tree.layers[0].path,))
        if tree.is_file:
            stage.add("FILE", 0o644, BELOW_ROOT, 1, strings=(target, b""), note="mount point")
    else:
        lowers = [f"{place}/{number}" for place in begun] + _lowers(stage, number, tree, fds)
        if root and not begun and setup.files:
            _etc_like(stage, setup.rootfs, f"{uppers}/upper", lowers[-len(tree.layers) :])
        if setup.lowerdir_plus:
            _overlay(stage, setup, number, lowers, uppers)
        else:
            _joined_overlay(stage, setup, number, lowers, uppers)
    stage.add("ATTACH", HOST_PATH if root else BELOW_ROOT, strings=(target,), note=f"{tree.kind} {number}")
    if tree.kind == "bind":
        stage.add("SETATTR", ATTR_RDONLY | ATTR_NODEV, AT_RECURSIVE, note="read-only, nodev")
    if tree.kind == "overlay":
        stage.add("BASE", strings=(f"{uppers}/upper/{number}",), note=f"upper {number}")
    else:
        stage.add("BASE", strings=(setup.stage,), note=f"no upper {number}")
    if root:
        stage.add("ROOT", strings=(target,))


def _overlay(stage: Stage, setup: Shape, number: int, lowers: Sequence[str], uppers: str) -> None:
    stage.add("FSOPEN", strings=("overlay",))
    for lower in lowers:
        stage.add("FSCONFIG_STRING", strings=("lowerdir+", lower))
    stage.add("FSCONFIG_STRING", strings=("upperdir", f"{uppers}/upper/{number}"))
    stage.add("FSCONFIG_STRING", strings=("workdir", f"{uppers}/work/{number}"))
    if setup.own_userns:
        stage.add("FSCONFIG_FLAG", strings=("userxattr",))
    if setup.disk_scratch is not None:
        stage.add("FSCONFIG_FLAG", strings=("volatile",), note="no fsync: the layer is thrown away")
    stage.add("FSMOUNT", ATTR_NODEV, note="overlay")


def _joined_overlay(stage: Stage, setup: Shape, number: int, lowers: Sequence[str], uppers: str) -> None:
    """Give the layers in one option, as it has to be before Linux 6.8.

    A value of fsconfig(2) may have 255 bytes, all options of mount(2) together a page. And ":", "," and a
    backslash mean something there, not the same in each kernel. So links with short names lead to the layers.
    """
    place = f"{stage.root}/short/{number}"
    stage.mkdir(f"{place}/new")
    for name, lower in enumerate(lowers):
        stage.add("SYMLINK", 0, HOST_PATH, strings=(f"{place}/{name}", lower))
    stage.add("CHDIR", strings=(place,), note="the short names of the layers")
    options = [f"lowerdir={':'.join(map(str, range(len(lowers))))}"]
    for key, kind in (("upperdir", "upper"), ("workdir", "work")):
        options.append(f"{key}={posixpath.relpath(f'{uppers}/{kind}/{number}', place)}")
    if setup.own_userns:
        options.append("userxattr")
    if setup.disk_scratch is not None:
        options.append("volatile")
    stage.add("MOUNT", ATTR_NODEV, strings=("overlay", "new", ",".join(options)), note="overlay")


def _lowers(stage: Stage, number: int, tree: Tree, fds: Sequence[int] | None) -> list[str]:
    """The lower directories of an overlay, topmost first; makes the whiteouts of what is hidden."""
    lowers: list[str] = []
    base = stage.root
    if tree.hidden or not tree.layers:
        mask = f"{base}/mask/{number}"
        stage.mkdir(mask)
        for hidden in tree.hidden:
            parent = posixpath.dirname(hidden)
            if parent:
                stage.mkdir(f"{mask}/{parent}")
            stage.add("MKNOD", 0o020000, HOST_PATH, 0, strings=(f"{mask}/{hidden}",), note="whiteout")
        lowers.append(mask)
    if fds is None:
        return lowers + [layer.path for layer in tree.layers]
    if tree.within is not None and len(fds) < len(tree.layers):
        whole = f"{base}/lower/{number}"
        stage.mkdir(whole)
        stage.add("TAKE_TREE", fds[0], note=tree.within)
        stage.add("ATTACH", HOST_PATH, strings=(whole,), note=f"the layers in {tree.within}")
        return lowers + [whole + layer.path.removeprefix(tree.within) for layer in tree.layers]
    for place, layer in zip(fds, tree.layers, strict=True):
        # overlayfs takes a layer only from this mount namespace: attach the parent's copy to it first.
        lower = f"{base}/lower/{number}.{len(lowers)}"
        stage.mkdir(lower)
        stage.add("TAKE_TREE", place, note=layer.path)
        stage.add("ATTACH", HOST_PATH, strings=(lower,), note=f"layer {layer.path}")
        lowers.append(lower)
    return lowers
