"""The plan of a container: from fresh namespaces to a PID 1 that is ready, as a list of ops.

Pure: takes what was asked and what was prepared (descriptors as numbers of a table), returns data.
All mounting happens inside the container's own user and mount namespace, for root and for ordinary
users alike, on a scratch directory (`stage`) that goes away with the host's tree at the pivot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ..rootfs.layers import components
from ..security.capabilities import BITS
from ..security.landlock import CONNECT_TCP, Ruleset, allowed
from ..security.paths import Covers
from .covers import cover_ops
from .devices import add_devices
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
)
from .parts import Placed, Setup, Shape
from .stage import Stage, bounds
from .trees import add_scratch, add_trees

CAP_SYS_PTRACE: Final = 1 << BITS["CAP_SYS_PTRACE"]

_DEEPEST: Final = 64  # directories in each other that are made for a working directory


def prepare_plan(shape: Shape) -> list[Op]:
    """Return the ops that turn fresh namespaces into a root file system with /proc, /sys and /dev."""
    stage = Stage(shape.stage)
    if shape.own_userns:
        stage.add("IDS", 0, 0, note="root of the user namespace")
        if shape.groups_allowed:
            stage.add("GROUPS", 0, strings=(b"",), note="none")
    stage.add("KEYRING", note="an empty session keyring")
    stage.add("UMASK", 0)
    stage.add("PROPAGATION", MS_REC_PRIVATE, note="private, recursively")
    if shape.own_netns:
        stage.add("LOOPBACK", note="lo up")
    add_scratch(stage, shape)
    add_trees(stage, shape)
    _volumes(stage, shape.volumes)
    _kernel_file_systems(stage, shape)
    for path, value in shape.sysctls:
        stage.add("FILE", 0o644, BELOW_ROOT, strings=(path, value), note=f"at most {value.decode()}")
    _covers(stage, shape.covers)
    add_devices(stage, shape)
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
    stage = Stage("/")
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


def _workdir(stage: Stage, path: str) -> None:
    """Make it and what leads to it. What can't be made is told to who goes there."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for depth, last in enumerate(parts[:_DEEPEST], 1):
        if last != "..":
            made = "/" + "/".join(parts[:depth])
            stage.add("MKDIR", 0o755, BELOW_ROOT, IF_POSSIBLE, strings=(made,), note="working directory")


def _volumes(stage: Stage, targets: Sequence[str]) -> None:
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


def _landlock(stage: Stage, scoped: int, rules: Ruleset | None) -> None:
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


def _kernel_file_systems(stage: Stage, setup: Shape) -> None:
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


def _covers(stage: Stage, covers: Covers) -> None:
    empty = f"{stage.root}/empty"
    if any(is_directory for _, is_directory in covers.masked):
        stage.mkdir(empty, 0o555)
    stage.ops += cover_ops(covers, BELOW_ROOT, empty)


def _views(stage: Stage, views: Sequence[tuple[str, bytes]]) -> None:
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
    stage = Stage("/")
    stage.add("ROOT", strings=("/",))
    stage.add("OPEN_TREE", OPEN_TREE_CLONE, BELOW_ROOT, strings=(source,))
    stage.add("ATTACH", BELOW_ROOT, strings=(target,), note="the container's limits")
    return stage.ops


def _mounts(stage: Stage, mounts: Sequence[Placed]) -> None:
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
            options = {"mode": "1777"} | ({} if mount.size is None else bounds(mount.size))
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
