"""Where cgroups are on this host, and where this process may make its own: found, never assumed.

Two files of the kernel say it: /proc/self/cgroup (the group that this process is in, one line a
hierarchy) and /proc/self/mountinfo (where each hierarchy is mounted). Nothing is written here.
"""

from __future__ import annotations

import os
import re
from typing import Final, Literal

from attrs import frozen

from .placement import place

Layout = Literal["v1", "v2", "hybrid", "none"]

CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "blkio", "devices", "hugetlb")
"""Those that isobox uses, by their v1 names. On v2, io stands for blkio, cpu for cpu and cpuacct;
the freezer is a part of every group, and every group takes a program that controls devices."""

_V2_NAMES: Final = {"cpu": ("cpu", "cpuacct"), "io": ("blkio",)}
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


@frozen
class Membership:
    """A line of /proc/self/cgroup. `controllers` is empty for v2, else holds names or ``name=x``."""

    number: int
    controllers: tuple[str, ...]
    path: str

    @property
    def unified(self) -> bool:
        """Whether the line is the one of v2."""
        return self.number == 0 and not self.controllers


@frozen
class CgroupMount:
    """A mounted hierarchy, from /proc/self/mountinfo; `root` is the group that `point` shows."""

    version: Literal[1, 2]
    options: frozenset[str]
    root: str
    point: str
    read_only: bool
    device: int


@frozen
class Controller:
    """One controller of the host.

    `root` is the directory below which isobox makes its own: on v1 the group that this process is
    in. `writable` says whether it may; where not, `why` says what is in the way. On v2 `vacate` is
    true where the processes of `root` have to move to a group below it first (a group of v2
    either holds processes or gives out resources, never both), and `borrowed` where `root` is a group
    that nobody handed on: another program, a service manager mostly, divides it. `remedy` is what would
    help against `why`, where that is known here.
    """

    name: str
    version: Literal[1, 2]
    root: str
    writable: bool
    why: str = ""
    vacate: bool = False
    borrowed: bool = False
    remedy: str = ""


@frozen
class CgroupHost:
    """What cgroups this host has for this process.

    `controllers` is by v1 name (`CONTROLLERS`); one that is absent is not there at all. `swap` is
    true where the host has swap in use, so that a limit of memory needs one of swap as well.
    """

    layout: Layout
    controllers: dict[str, Controller]
    swap: bool

    def usable(self, name: str) -> bool:
        """Return whether groups with this controller can be made."""
        controller = self.controllers.get(name)
        return controller is not None and controller.writable


def parse_memberships(text: bytes) -> tuple[Membership, ...]:
    """Parse /proc/self/cgroup.

    >>> parse_memberships(b"8:cpu,cpuacct:/a:b\\n0::/\\n")[0].path
    '/a:b'
    """
    found = []
    for line in text.split(b"\n"):
        parts = line.split(b":", 2)
        if len(parts) != 3 or not _is_small(parts[0]):
            continue
        names = tuple(os.fsdecode(name) for name in parts[1].split(b",") if name)
        found.append(Membership(int(parts[0]), names, os.fsdecode(parts[2])))
    return tuple(found)


def parse_mounts(text: bytes) -> tuple[CgroupMount, ...]:
    """Parse the cgroup lines of /proc/self/mountinfo, in its order; others are left out."""
    found = []
    for line in text.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 3 or rest[0] not in (b"cgroup", b"cgroup2"):
            continue
        major, _, minor = fields[2].partition(b":")
        if not (_is_small(major) and _is_small(minor)):
            continue
        options = frozenset(os.fsdecode(option) for option in rest[2].split(b","))
        found.append(
            CgroupMount(
                version=1 if rest[0] == b"cgroup" else 2,
                options=options,
                root=_unescape(fields[3]),
                point=_unescape(fields[4]),
                read_only=b"ro" in fields[5].split(b",") or "ro" in options,
                device=os.makedev(int(major), int(minor)),
            )
        )
    return tuple(found)


def _is_small(text: bytes) -> bool:
    """Whether it is a number of at most 30 bits: of a hierarchy, or half of a device's."""
    return text.isdigit() and len(text) <= 9


def _unescape(field: bytes) -> str:
    r"""Undo the octal escapes of mountinfo: ``\040`` is a space."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field))


def locate(path: str, mount: CgroupMount) -> str | None:
    """Return the directory where ``mount`` shows the group ``path``; None where it does not.

    In a container without a cgroup namespace, both name the container's group as the host does:
    what `mount` shows at its point begins with its root.
    """
    if ".." in path.split("/"):  # outside the cgroup namespace of this process
        return None
    if mount.root == "/":
        inside = path
    elif path == mount.root or path.startswith(mount.root + "/"):
        inside = path[len(mount.root) :]
    else:
        return None
    return os.path.normpath(mount.point + "/" + inside)


def discover(*, anew: bool = False) -> CgroupHost:
    """Return what cgroups there are for this process. Cached until a fork; ``anew`` looks again.

    >>> discover().layout in ("v1", "v2", "hybrid", "none")
    True
    """
    global _cached
    if anew or _cached is None or _cached[0] != os.getpid():
        _cached = (os.getpid(), _discover())
    return _cached[1]


_cached: tuple[int, CgroupHost] | None = None


def _discover() -> CgroupHost:
    memberships = parse_memberships(_read("/proc/self/cgroup"))
    mounts = parse_mounts(_read("/proc/self/mountinfo"))
    controllers: dict[str, Controller] = {}
    for membership in memberships:
        if membership.unified:
            continue
        wanted = [name for name in membership.controllers if name in CONTROLLERS]
        for name in wanted:
            controllers[name] = _v1(name, membership, mounts)
    has_v1 = bool(controllers)
    has_v2 = False
    for membership in memberships:
        if membership.unified:
            for mount in mounts:
                if mount.version == 2:
                    has_v2 = True
            for controller in _v2(membership, mounts, hybrid=has_v1):
                there = controllers.get(controller.name)
                # A program on v2 needs no controller: it is there beside a v1 that can't be used.
                if there is None or (controller.name == "devices" and not there.writable):
                    controllers[controller.name] = controller
    layout: Layout = "none"
    if has_v1 or has_v2:
        layout = "hybrid" if has_v1 and has_v2 else "v1" if has_v1 else "v2"
    return CgroupHost(layout, controllers, _has_swap())


def own_group() -> str:
    """Return the path of this process's group of v2, as its cgroup namespace shows it; "" if none."""
    memberships = parse_memberships(_read("/proc/self/cgroup"))
    return next((each.path for each in memberships if each.unified), "")


def in_kernel(controller: str) -> bool:
    """Return whether the kernel has a controller at all, by its v1 name: see /proc/cgroups in cgroups(7)."""
    table = _read("/proc/cgroups")
    return not table or any(line.split()[:1] == [controller.encode()] for line in table.splitlines())


def _v1(name: str, membership: Membership, mounts: tuple[CgroupMount, ...]) -> Controller:
    why = f"the {name} controller is in the kernel but its hierarchy is not mounted"
    for mount in mounts:
        if mount.version != 1 or not mount.options.issuperset(membership.controllers):
            continue
        root = locate(membership.path, mount)
        if root is None:
            why = f"{mount.point} does not show this process's own group {membership.path}"
            continue
        why = _obstacle(root, mount)
        if not why:
            return Controller(name, 1, root, True)
    return Controller(name, 1, "", False, why)


def _v2(membership: Membership, mounts: tuple[CgroupMount, ...], *, hybrid: bool) -> list[Controller]:
    for mount in mounts:
        if mount.version != 2:
            continue
        own = locate(membership.path, mount)
        if own is None or _shown(own, mount):
            continue
        found = place(own, mount.point, mount.read_only, namespace_root=membership.path == "/")
        names = [name for v2 in found.controllers for name in _V2_NAMES.get(v2, (v2,))]
        if found.controllers:
            names.append("freezer")  # every group of v2 has cgroup.freeze
        names.append("devices")
        writable = not found.why
        return [
            Controller(name, 2, found.root, False, f"{found.root} does not hand on {name}")
            if name == "hugetlb" and hybrid and writable and not _handed_on(found.root, name)
            else Controller(
                name, 2, found.root, writable, found.why, found.vacate, found.borrowed, found.remedy
            )
            for name in names
            if name in CONTROLLERS
        ]
    return []


def _handed_on(root: str, name: str) -> bool:
    """Return whether the groups below ``root`` have a controller.

    Where most are on v1, v2 belongs to the machine's service manager: none is added for all its groups.
    """
    return name.encode() in _read(f"{root}/cgroup.subtree_control").split()


def _obstacle(root: str, mount: CgroupMount) -> str:
    """Return why groups can't be made in ``root``; empty where they can."""
    hidden = _shown(root, mount)
    if hidden:
        return hidden
    if mount.read_only:
        return f"{mount.point} is mounted read-only"
    if not os.access(root, os.W_OK | os.X_OK, effective_ids=True):
        return f"no permission to make groups in {root}"
    return ""


def _shown(path: str, mount: CgroupMount) -> str:
    """Return why ``path`` isn't a directory of ``mount`` (another mount may lie over it), or ``""``."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return "" if status.st_dev == mount.device else f"another file system is mounted over {mount.point}"


def _has_swap() -> bool:
    return len(_read("/proc/swaps").splitlines()) > 1


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""  # no /proc, or no such file in this kernel: then nothing is there for us
