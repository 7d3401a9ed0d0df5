"""The plan of a container: from fresh namespaces to a PID 1 that is ready, as a list of ops.

Pure: takes what was asked and what was prepared (descriptors as numbers of a table), returns data.
All mounting happens inside the container's own user and mount namespace, for root and for ordinary
users alike, on a scratch directory (`stage`) that goes away with the host's tree at the pivot.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import define, field, frozen

from ..rootfs.layers import Directory, Link, Rootfs, Tree, components
from ..security.capabilities import BITS
from ..security.landlock import CONNECT_TCP, Ruleset, allowed
from ..security.paths import Covers
from ..spec import Mount
from .covers import cover_ops
from .ops import (
    AT_RECURSIVE,
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    BELOW_ROOT,
    HOST_PATH,
    IF_POSSIBLE,
    MS_REC_PRIVATE,
    NO_LINKS,
    OPEN_TREE_CLONE,
    Op,
    make,
)

CAP_SYS_PTRACE: Final = 1 << BITS["CAP_SYS_PTRACE"]

DEVICES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
"""The usual device nodes of a container: name → (major, minor); see runtime-spec, "Default Devices"."""

TERMINALS: Final = ((5, 2), (136, -1))
"""/dev/pts/ptmx, and the terminals that it makes: Documentation/admin-guide/devices.txt."""

DEVICE_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

SHM_SIZE: Final = 64 << 20

MOST_TERMINALS: Final = 256
"""Of one container. The kernel's bound (kernel.pty.max, 4096) is for all of the machine together."""

_FEWEST_INODES: Final = 1024
_DEEPEST: Final = 64  # directories in each other that are made for a working directory


@frozen
class Placed:
    """A user's mount, resolved: `tree` is the descriptor of a detached copy, or None to clone by path."""

    mount: Mount
    is_file: bool
    tree: int | None


@frozen
class Shape:
    """What the first part of a plan is made from: it names no container, so one may be made in advance.

    `layer_fds`, `dev_fd` and `disk_fd` are places in the table of descriptors that travels with it
    (tree index → one detached copy a layer, or one of what all lie within); what is not in it is reached by
    its path, and so are the sources of `mounts`. `begun_fds`: one for each of `rootfs.begun`, None where it
    has a path.
    """

    stage: str
    rootfs: Rootfs
    layer_fds: Mapping[int, Sequence[int]]
    dev_fd: int | None
    devices: Sequence[str]
    scratch_size: int
    disk_scratch: str | None
    disk_fd: int | None
    groups_allowed: bool
    tty_group: bool
    own_userns: bool
    own_netns: bool
    own_ipcns: bool
    lowerdir_plus: bool
    views: Sequence[tuple[str, bytes]]
    cpus: frozenset[int] | None
    bounding: int
    mounts: Sequence[Placed]
    covers: Covers
    sysctls: Sequence[tuple[str, bytes]]
    files: Sequence[tuple[str, bytes]] = ()
    volumes: Sequence[str] = ()
    begun_fds: Sequence[int | None] = ()


@frozen
class Setup:
    """What the second part is made from: the container's own. The sources of `mounts` are descriptors.

    `scoped`: LANDLOCK_SCOPE_* for init and all that it starts; `landlock`: what its programs take on.
    `files`: contents of those that the first part made; `workdir`: a directory to make where it is missing.
    """

    hostname: str | None
    join_fds: Sequence[int]
    late_namespaces: int
    mounts: Sequence[Placed]
    read_only: Sequence[str]
    scoped: int = 0
    landlock: Ruleset | None = None
    files: Sequence[tuple[str, bytes]] = ()
    workdir: str | None = None


@define
class _Stage:
    """The list of ops as it grows, with what is known of the directories made so far."""

    root: str
    ops: list[Op] = field(factory=list)
    made: set[str] = field(factory=set)

    def add(self, name: str, *args: int, strings: tuple[str | bytes, ...] = (), note: str = "") -> None:
        encoded = tuple(
            text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text for text in strings
        )
        self.ops.append(make(name, *args, strings=encoded, note=note))

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory of the stage and its parents, each once."""
        if path in self.made:
            return
        parent = posixpath.dirname(path)
        if len(parent) > len(self.root):
            self.mkdir(parent)
        self.made.add(path)
        self.add("MKDIR", mode, HOST_PATH, 1, strings=(path,))

    def mount(
        self, kind: str, options: Mapping[str, str | None], attributes: int, target: str, below: int
    ) -> None:
        """Make a file system and attach it."""
        self.add("FSOPEN", strings=(kind,))
        for key, value in options.items():
            if value is None:
                self.add("FSCONFIG_FLAG", strings=(key,))
            else:
                self.add("FSCONFIG_STRING", strings=(key, value))
        self.add("FSMOUNT", attributes, note=kind)
        self.add("ATTACH", below, strings=(target,), note=kind)


def prepare_plan(shape: Shape) -> list[Op]:
    """Return the ops that turn fresh namespaces into a root file system with /proc, /sys and /dev."""
    stage = _Stage(shape.stage)
    if shape.own_userns:
        stage.add("IDS", 0, 0, note="root of the user namespace")
        if shape.groups_allowed:
            stage.add("GROUPS", 0, strings=(b"",), note="none")
    stage.add("KEYRING", note="an empty session keyring")
    stage.add("UMASK", 0)
    stage.add("PROPAGATION", MS_REC_PRIVATE, note="private, recursively")
    if shape.own_netns:
        stage.add("LOOPBACK", note="lo up")
    _scratch(stage, shape)
    _trees(stage, shape)
    _volumes(stage, shape.volumes)
    _kernel_file_systems(stage, shape)
    for path, value in shape.sysctls:
        stage.add("FILE", 0o644, BELOW_ROOT, strings=(path, value), note=f"at most {value.decode()}")
    _covers(stage, shape.covers)
    _devices(stage, shape)
    _views(stage, shape.views)
    _mounts(stage, shape.mounts)
    if shape.dev_fd is None:
        stage.add("OPEN_TREE", 0, BELOW_ROOT, strings=("/dev",))
        stage.add("SETATTR", ATTR_RDONLY, 0, note="read-only; its devices work all the same")
    # The kernel waits for all CPUs when it takes the old root away: not something for a start to wait for.
    stage.add("PIVOT", note="the host's tree is gone")
    if shape.cpus is not None:
        stage.add("AFFINITY", strings=(_cpu_mask(shape.cpus),), note=f"cpus {sorted(shape.cpus)}")
    stage.add("BOUNDING", shape.bounding, note=f"keep {shape.bounding:#x}")
    # Init keeps its capabilities, but none to inherit: root's programs get the bounding set. With the one to
    # trace it would follow links through its own /proc/1/fd, where a program's name may lead.
    kept = -1 if shape.bounding & CAP_SYS_PTRACE else ~CAP_SYS_PTRACE
    stage.add("CAPABILITIES", kept, note="nothing inheritable, nothing ambient")
    stage.add("NO_NEW_PRIVS", note="set")
    stage.add("DUMPABLE", 0)
    stage.add("UMASK", 0o022, note="022")
    return stage.ops


def setup_plan(setup: Setup) -> list[Op]:
    """Return the ops that make one container of what `prepare_plan` left."""
    stage = _Stage("/")
    for place in setup.join_fds:
        stage.add("JOIN_CGROUP", place, note=f"descriptor {place}")
    if setup.late_namespaces:
        stage.add("UNSHARE", setup.late_namespaces, note="cgroup and time namespaces")
    if setup.hostname is not None:
        stage.add("HOSTNAME", strings=(setup.hostname,))
    if setup.mounts or setup.read_only or setup.files or setup.workdir:
        stage.add("ROOT", strings=("/",))
    for path, content in setup.files:  # before the mounts: a user's own may cover them
        stage.add("FILE", 0o644, BELOW_ROOT, strings=(path, content), note="the container's name")
    _mounts(stage, setup.mounts)
    if setup.workdir is not None:
        _workdir(stage, setup.workdir)
    for target in setup.read_only:
        stage.add("OPEN_TREE", 0, BELOW_ROOT, strings=(target,))
        stage.add("SETATTR", ATTR_RDONLY, 0, note="read-only")
    _landlock(stage, setup.scoped, setup.landlock)
    return stage.ops


def _workdir(stage: _Stage, path: str) -> None:
    """Make it and what leads to it. What can't be made is told to who goes there."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for depth, last in enumerate(parts[:_DEEPEST], 1):
        if last != "..":
            made = "/" + "/".join(parts[:depth])
            stage.add("MKDIR", 0o755, BELOW_ROOT, IF_POSSIBLE, strings=(made,), note="working directory")


def _volumes(stage: _Stage, targets: Sequence[str]) -> None:
    """Bind directories onto themselves: each is a mount of its own, which a read-only root leaves as it is.

    Before /proc is there, a copy of which would be without its covers: a link may lead to it.
    """
    for target in sorted(targets, key=components):
        parts = components(target)
        for depth in range(1, len(parts) + 1):
            made = "/" + "/".join(parts[:depth])
            stage.add("MKDIR", 0o755, BELOW_ROOT, 1, strings=(made,), note=f"for {target}")
        stage.add("OPEN_TREE", OPEN_TREE_CLONE, BELOW_ROOT, strings=(target,))
        stage.add("ATTACH", BELOW_ROOT, strings=(target,), note="a volume of the container's own")


def _landlock(stage: _Stage, scoped: int, rules: Ruleset | None) -> None:
    if scoped:
        # On init itself: it costs its programs nothing, and to them the container is one. Not so with rules
        # for paths, under which init could mount nothing and serve no files.
        stage.add("LANDLOCK_RULESET", 0, 0, scoped, note=f"scopes {scoped:#x}")
        stage.add("LANDLOCK_RESTRICT", 1, note="the container as a whole")
    if rules is None:
        return
    note = f"for each program: fs {rules.fs:#x}, net {rules.net:#x}, scopes {rules.scoped:#x}"
    stage.add("LANDLOCK_RULESET", rules.fs, rules.net, rules.scoped, note=note)
    for path, access in rules.paths:
        stage.add("LANDLOCK_PATH", access, strings=(path,), note=allowed(access))
    for port, access in rules.ports:
        kinds = "bind" * (access != CONNECT_TCP), "connect" * bool(access & CONNECT_TCP)
        stage.add("LANDLOCK_PORT", access, port, note=f"TCP {port}: {', '.join(filter(None, kinds))}")


def _cpu_mask(cpus: Iterable[int]) -> bytes:
    mask = sum(1 << cpu for cpu in cpus)
    words = mask.bit_length() // 64 + 1
    return mask.to_bytes(words * 8, "little")


def _scratch(stage: _Stage, setup: Shape) -> None:
    """A tmpfs of the container's own for everything that it may write, and for mount points on the way."""
    options = _bounds(setup.scratch_size) | {"mode": "0755"}
    stage.mount("tmpfs", options, ATTR_NODEV, setup.stage, HOST_PATH)
    stage.mkdir(f"{setup.stage}/root")
    if setup.disk_scratch is not None:
        stage.mkdir(f"{setup.stage}/disk")
        if setup.disk_fd is not None:
            stage.add("TAKE_TREE", setup.disk_fd, note=setup.disk_scratch)
        else:
            stage.add("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(setup.disk_scratch,))
        stage.add("ATTACH", HOST_PATH, strings=(f"{setup.stage}/disk",), note="the layer on disk")


def _bounds(size: int) -> dict[str, str]:
    """How much a tmpfs holds. Without nr_inodes, empty files fill the machine whatever the size."""
    # The kernel's own ratio (shmem_default_max_inodes in mm/shmem.c): an inode a page.
    return {"size": str(size), "nr_inodes": str(max(size // 4096, _FEWEST_INODES))}


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


def _trees(stage: _Stage, setup: Shape) -> None:
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


def _like(stage: _Stage, rootfs: Rootfs, upper: str, last: str) -> None:
    """What is new and lies over a directory that was there has its owner, mode, times and attributes."""
    same = ["0/etc"] if rootfs.etc is not None else []
    same += [str(number) for number, tree in enumerate(rootfs.trees) if tree.kind == "overlay"]
    for path in same:
        stage.add("LIKE", strings=(f"{upper}/{path}", f"{last}/{path}"), note="owner, mode, times")


def _etc_like(stage: _Stage, rootfs: Rootfs, upper: str, layers: Sequence[str]) -> None:
    """The container's own /etc has the owner of its image's."""
    if rootfs.etc is not None and rootfs.etc.like is not None:
        like = f"{layers[rootfs.etc.like]}/etc"
        stage.add("LIKE", strings=(f"{upper}/0/etc", like), note="owner, mode, times")


def _begun(stage: _Stage, setup: Shape) -> list[str]:
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
    stage: _Stage, setup: Shape, number: int, tree: Tree, uppers: str, begun: Sequence[str] = ()
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


def _overlay(stage: _Stage, setup: Shape, number: int, lowers: Sequence[str], uppers: str) -> None:
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


def _joined_overlay(stage: _Stage, setup: Shape, number: int, lowers: Sequence[str], uppers: str) -> None:
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


def _lowers(stage: _Stage, number: int, tree: Tree, fds: Sequence[int] | None) -> list[str]:
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


def _kernel_file_systems(stage: _Stage, setup: Shape) -> None:
    hard = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC
    for path in ("/proc", "/sys", "/dev"):
        if all(directory.path != path for directory in setup.rootfs.skeleton):
            stage.add("MKDIR", 0o755, BELOW_ROOT, 1, strings=(path,))
    stage.mount("proc", {}, hard, "/proc", NO_LINKS)
    if setup.own_netns:
        stage.mount("sysfs", {}, hard | ATTR_RDONLY, "/sys", NO_LINKS)
    else:
        # A new sysfs shows the network namespace's devices, so the kernel wants to see it owned.
        stage.add("OPEN_TREE", OPEN_TREE_CLONE | AT_RECURSIVE, HOST_PATH, strings=("/sys",))
        stage.add("ATTACH", NO_LINKS, strings=("/sys",), note="the host's")
        stage.add("SETATTR", hard | ATTR_RDONLY, AT_RECURSIVE, note="read-only")


def _covers(stage: _Stage, covers: Covers) -> None:
    empty = f"{stage.root}/empty"
    if any(is_directory for _, is_directory in covers.masked):
        stage.mkdir(empty, 0o555)
    stage.ops += cover_ops(covers, BELOW_ROOT, empty)


def _devices(stage: _Stage, setup: Shape) -> None:
    quiet = ATTR_NOSUID | ATTR_NOEXEC
    if setup.dev_fd is not None:
        stage.add("TAKE_TREE", setup.dev_fd, note="device nodes")
        stage.add("ATTACH", NO_LINKS, strings=("/dev",), note="device nodes")
        stage.add("SETATTR", quiet | ATTR_RDONLY, 0, note="read-only; its devices work all the same")
    else:
        stage.mount("tmpfs", {"size": "65536", "mode": "0755"}, quiet, "/dev", NO_LINKS)
        for name in DEVICES:
            _bind_device(stage, f"/dev/{name}")
        for name, target in DEVICE_LINKS.items():
            stage.add("SYMLINK", 0, BELOW_ROOT, strings=(f"/dev/{name}", target))
        for name in ("pts", "shm", "mqueue"):
            stage.add("MKDIR", 0o755, BELOW_ROOT, 0, strings=(f"/dev/{name}",))
        for path in setup.devices:
            _bind_device(stage, path)
    terminals = {"newinstance": None, "ptmxmode": "0666", "mode": "0620", "max": str(MOST_TERMINALS)}
    if setup.tty_group:
        terminals["gid"] = "5"
    stage.mount("devpts", terminals, quiet, "/dev/pts", BELOW_ROOT)
    shared = _bounds(min(SHM_SIZE, setup.scratch_size)) | {"mode": "1777"}
    stage.mount("tmpfs", shared, quiet | ATTR_NODEV, "/dev/shm", BELOW_ROOT)
    if setup.own_ipcns:
        stage.mount("mqueue", {}, quiet | ATTR_NODEV, "/dev/mqueue", BELOW_ROOT)


def _bind_device(stage: _Stage, path: str) -> None:
    stage.add("FILE", 0o666, BELOW_ROOT, strings=(path, b""))
    stage.add("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(path,))
    stage.add("ATTACH", BELOW_ROOT, strings=(path,), note="device")


def _views(stage: _Stage, views: Sequence[tuple[str, bytes]]) -> None:
    """Files that show the container's limits, bound over those that show the host's size."""
    for number, (path, content) in enumerate(views):
        if number == 0:
            stage.mkdir(f"{stage.root}/view")
        source = f"{stage.root}/view/{number}"
        stage.add("FILE", 0o644, HOST_PATH, strings=(source, content))
        stage.add("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(source,))
        stage.add("ATTACH", BELOW_ROOT, strings=(path,), note="the container's limits")


def view_plan(source: str, target: str) -> list[Op]:
    """Return the ops that show a file of a running container in the place of another."""
    stage = _Stage("/")
    stage.add("ROOT", strings=("/",))
    stage.add("OPEN_TREE", OPEN_TREE_CLONE, BELOW_ROOT, strings=(source,))
    stage.add("ATTACH", BELOW_ROOT, strings=(target,), note="the container's limits")
    return stage.ops


def _mounts(stage: _Stage, mounts: Sequence[Placed]) -> None:
    made: set[str] = set()
    for placed in sorted(mounts, key=lambda placed: placed.mount.target.count("/")):
        mount = placed.mount
        parts = [part for part in mount.target.split("/") if part]
        for depth in range(1, len(parts) + (0 if placed.is_file else 1)):
            path = "/" + "/".join(parts[:depth])
            if path not in made:
                made.add(path)
                stage.add("MKDIR", 0o755, BELOW_ROOT, 1, strings=(path,), note=f"for {mount.target}")
        if placed.is_file:
            stage.add("FILE", 0o644, BELOW_ROOT, 1, strings=(mount.target, b""), note="mount point")
        if mount.kind == "tmpfs":
            options = {"mode": "1777"} | ({} if mount.size is None else _bounds(mount.size))
            stage.mount("tmpfs", options, ATTR_NOSUID | ATTR_NODEV, mount.target, BELOW_ROOT)
            continue
        assert mount.source is not None
        if placed.tree is not None:
            stage.add("TAKE_TREE", placed.tree, note=mount.source)
        else:
            stage.add("OPEN_TREE", OPEN_TREE_CLONE | AT_RECURSIVE, HOST_PATH, strings=(mount.source,))
        attributes = ATTR_NOSUID | ATTR_NODEV | (ATTR_RDONLY if mount.read_only else 0)
        stage.add("ATTACH", BELOW_ROOT, strings=(mount.target,), note=f"bind of {mount.source}")
        stage.add(
            "SETATTR", attributes, AT_RECURSIVE, note="read-only" if mount.read_only else "nosuid, nodev"
        )
