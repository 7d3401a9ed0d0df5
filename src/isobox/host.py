"""What this kernel and this user can do: read-only facts, cheap enough for the first start.

`features` reads two files; what costs more is looked at when it is first asked for. Kernel
features go by the kernel's version, so a distribution's backport counts as absent. A system call has to
answer too: a seccomp filter around an outer container may hide it. What else is forbidden here is seen
by trying, which `isobox.doctor` does.

>>> features().kernel >= (5, 0)
True
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from isobox import _native, idmap
from isobox.errors import UnsupportedError
from isobox.forks import kept
from isobox.idmap import IdRange

if TYPE_CHECKING:
    from isobox.cgroups.discovery import CgroupHost

SINCE: Final[dict[str, tuple[tuple[int, int], str]]] = {
    "pidfd": ((5, 3), "descriptors of processes"),
    "open_tree": ((5, 2), "the mount calls open_tree, fsopen, fsmount and move_mount"),
    "openat2": ((5, 6), "the system call openat2"),
    "close_range": ((5, 9), "the system call close_range"),
    "whiteouts": ((5, 8), "whiteouts made by ordinary users"),
    "volatile_overlay": ((5, 10), "overlays that skip syncing"),
    "overlay_in_userns": ((5, 11), "overlays in user namespaces"),
    "mount_setattr": ((5, 12), "the system call mount_setattr"),
    "idmapped_mounts": ((5, 12), "idmapped mounts"),
    "cgroup_kill": ((5, 14), "the file cgroup.kill"),
    "idmapped_overlay": ((5, 19), "overlays over idmapped layers"),
    "memory_peak": ((5, 19), "the file memory.peak of cgroup v2 (v1 has its own)"),
    "pids_peak": ((6, 1), "the file pids.peak"),
    "idmapped_tmpfs": ((6, 3), "idmapped mounts of tmpfs"),
    "tmpfs_xattrs": ((6, 6), "removals of an image's directories with changes in memory"),
    "landlock_paths": ((6, 2), "Landlock's rules for paths"),
    "landlock_ports": ((6, 7), "Landlock's rules for TCP ports"),
    "lowerdir_plus": ((6, 8), "overlay layers given one by one"),
    "landlock_scopes": ((6, 12), "Landlock's scopes"),
    "layer_fds": ((6, 13), "overlay layers given as descriptors"),
    "detached_copies": ((6, 15), "copies of mounts that are attached nowhere"),
}
"""Facts that follow from the kernel's version: since when, and what it is (docs/reference/kernels.md)."""

CALLS: Final[dict[str, tuple[int, ...]]] = {
    "pidfd": (434,),
    "open_tree": (428, 429, 430, 431, 432),
    "openat2": (437,),
    "close_range": (436,),
    "mount_setattr": (442,),
    "landlock_paths": (444,),
    "landlock_ports": (444,),
    "landlock_scopes": (444,),
}
"""The system calls of those facts: pidfd_open; open_tree, move_mount, fsopen, fsconfig, fsmount; and so on.

The same numbers on every machine: since Linux 5.1 there is one table for all.
"""

_FOR_ROOT: Final = frozenset({429, 430, 432})
"""Those that say EPERM to an ordinary user before they look at their arguments."""

NEEDED: Final = ("pidfd", "open_tree", "openat2")
"""Those of `CALLS` that nothing stands in for."""

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

CAP_SYS_ADMIN: Final = 21


@frozen(slots=False)
class HostFeatures:
    """Facts about this host, for the user that this process runs as.

    `kernel` is (major, minor); `capabilities` the effective ones as a mask; `no_new_privs` says that
    exec can't gain privileges (so newuidmap can't work), `filtered` that this process runs under a
    seccomp filter itself, as in most containers. Sizes are bytes. Every other public attribute is
    a fact that is computed when first asked for; `why` says why one is false.
    """

    release: str
    kernel: tuple[int, int]
    machine: str
    uid: int
    gid: int
    capabilities: int = field(repr=hex)
    no_new_privs: bool
    filtered: bool

    def since(self, name: str) -> bool:
        """True if the kernel is new enough for an entry of `SINCE`, and answers to its calls."""
        return self.kernel >= SINCE[name][0] and name not in self.unanswered

    @kept
    def unanswered(self) -> frozenset[str]:
        """Those of `CALLS` that the kernel lacks, or that a seccomp filter keeps from this process."""
        return frozenset(name for name, numbers in CALLS.items() if not all(map(self._answers, numbers)))

    def _answers(self, number: int) -> bool:
        said = _native.try_call(number)
        may_be_refused = number in _FOR_ROOT and not self.is_root
        return said != errno.ENOSYS and (said != errno.EPERM or may_be_refused)

    def need_calls(self) -> None:
        """Raise `UnsupportedError` where a system call is missing that every container needs."""
        for name in NEEDED:
            if name in self.unanswered:
                (major, minor), what = SINCE[name]
                raise UnsupportedError(
                    "kernel",
                    f"containers need {what}, which Linux {major}.{minor} or newer has "
                    f"(this is {self.release}) unless a seccomp filter forbids it, "
                    "that of a container around this program perhaps",
                    "boot a newer kernel, or give the container around this program a seccomp profile that "
                    "allows it (docker run --security-opt seccomp=unconfined; of isobox: seccomp=None and "
                    "cap_add=['ALL'])",
                )

    # Who we are

    @property
    def is_root(self) -> bool:
        """Effective uid 0 with CAP_SYS_ADMIN: mounts and cgroups are ours to use."""
        return self.uid == 0 and bool(self.capabilities >> CAP_SYS_ADMIN & 1)

    @kept
    def in_user_namespace(self) -> bool:
        """This process is in a user namespace that is not the machine's."""
        return idmap.read_own_maps()[0] != ((0, 0, 4294967295),)

    @kept
    def cpus(self) -> frozenset[int]:
        """The CPUs that this process may use."""
        return frozenset(os.sched_getaffinity(0))

    @kept
    def memory(self) -> int:
        """Bytes of the machine's memory."""
        return _meminfo("MemTotal")

    @kept
    def swap(self) -> int:
        """Bytes of the machine's swap space; 0 without."""
        return _meminfo("SwapTotal")

    # User namespaces and ids

    @kept
    def user_namespaces(self) -> bool:
        """This user may make user namespaces, as far as the kernel's settings tell."""
        return not self._userns_obstacle

    @kept
    def _userns_obstacle(self) -> str:
        if "user" not in self.namespaces:
            return "the kernel was built without user namespaces"
        if idmap.sysctl("user/max_user_namespaces") == "0":
            return "the setting user.max_user_namespaces is 0"
        if self.uid != 0:
            if idmap.sysctl("kernel/unprivileged_userns_clone") == "0":
                return "the setting kernel.unprivileged_userns_clone is 0"
            if self.apparmor_restricted:
                return "the setting kernel.apparmor_restrict_unprivileged_userns is 1"
        return ""

    @kept
    def apparmor_restricted(self) -> bool:
        """AppArmor takes the capabilities of ordinary users' user namespaces (Ubuntu 23.10 and later).

        A profile with the rule "userns" lifts that for a program, so only unconfined ones count.
        """
        if idmap.sysctl("kernel/apparmor_restrict_unprivileged_userns") != "1":
            return False
        profile = idmap.read_text("/proc/self/attr/apparmor/current")
        return profile.strip("\0\n ") in ("", "unconfined")

    @kept
    def subuids(self) -> tuple[IdRange, ...]:
        """This user's ranges in /etc/subuid."""
        return self._subids[0]

    @kept
    def subgids(self) -> tuple[IdRange, ...]:
        """This user's ranges in /etc/subgid."""
        return self._subids[1]

    @kept
    def _subids(self) -> tuple[tuple[IdRange, ...], tuple[IdRange, ...]]:
        return idmap.read_user_ranges(self.uid)

    @kept
    def newuidmap(self) -> bool:
        """The programs newuidmap and newgidmap are there and may do their work."""
        return not self.no_new_privs and idmap.newuidmap_programs() is not None

    @kept
    def id_ranges(self) -> bool:
        """Containers have more than one user: a range of ids, not a single one."""
        if self.uid == 0:
            return bool(idmap.read_root_ranges()) or not self._own_map.single
        return not self._own_map.single

    @kept
    def _own_map(self) -> idmap.IdMap:
        if self.uid == 0:
            return idmap.for_nested(*idmap.read_own_maps())
        return idmap.for_user(self.uid, self.gid, self.subuids, self.subgids, self.newuidmap)

    # The kernel

    @kept
    def namespaces(self) -> frozenset[str]:
        """The kinds of namespaces that the kernel has, of `NAMESPACES`."""
        return frozenset(name for name in NAMESPACES if os.path.exists(f"/proc/self/ns/{name}"))

    @property
    def time_namespaces(self) -> bool:
        """The kernel has time namespaces."""
        return "time" in self.namespaces

    @kept
    def filesystems(self) -> frozenset[str]:
        """The file systems that the kernel has now; one that is a module not yet loaded is absent."""
        lines = idmap.read_text("/proc/filesystems").splitlines()
        return frozenset(line.rpartition("\t")[2] for line in lines)

    @kept
    def overlay(self) -> bool:
        """Overlays can be mounted in a container's user namespace."""
        return not self._overlay_obstacle

    @kept
    def _overlay_obstacle(self) -> str:
        if not self.since("overlay_in_userns"):
            return f"overlays in user namespaces need Linux 5.11, this is {self.release}"
        if "overlay" not in self.filesystems and not self._module("overlay"):
            return "the kernel has no overlay file system, and no module for it is installed"
        return self._userns_obstacle

    def _module(self, name: str) -> bool:
        modules = idmap.read_text(f"/lib/modules/{self.release}/modules.dep")
        return bool(re.search(rf"^\S*/{name}\.ko", modules, re.MULTILINE))

    @property
    def tmpfs_xattrs(self) -> bool:
        """A tmpfs has user.* attributes, by which overlays in user namespaces note removed directories.

        Without, removing a directory of the image that was changed, or making one anew, fails with EIO.
        """
        return self.since("tmpfs_xattrs")

    @property
    def lowerdir_plus(self) -> bool:
        """Overlay layers can be given one by one, without the one-page bound on mount options."""
        return self.since("lowerdir_plus")

    @property
    def detached_copies(self) -> bool:
        """Mounts that are attached nowhere can be copied: snapshots are kept in memory."""
        return self.since("detached_copies")

    @property
    def layer_fds(self) -> bool:
        """Overlay layers can be given as descriptors."""
        return self.since("layer_fds")

    @property
    def openat2(self) -> bool:
        """The kernel has openat2."""
        return self.since("openat2")

    @property
    def open_tree(self) -> bool:
        """The kernel has the newer mount calls."""
        return self.since("open_tree")

    @property
    def mount_setattr(self) -> bool:
        """The kernel has mount_setattr."""
        return self.since("mount_setattr")

    @property
    def idmapped_mounts(self) -> bool:
        """This user can make idmapped mounts of host directories: root only, below an overlay."""
        return (
            self.is_root
            and not self.in_user_namespace
            and self.since("mount_setattr")
            and self.since("idmapped_overlay")
        )

    @property
    def idmapped_tmpfs(self) -> bool:
        """Idmapped mounts work on tmpfs too."""
        return self.idmapped_mounts and self.since("idmapped_tmpfs")

    @property
    def host_folders(self) -> bool:
        """Folders of the host can be images and writable mounts: root's by idmapped mounts."""
        return not self.is_root or (self.since("mount_setattr") and self.since("idmapped_overlay"))

    @kept
    def memfd_exec(self) -> bool:
        """Programs can be run from memory, as isobox-init is."""
        return idmap.sysctl("vm/memfd_noexec") != "2"

    @kept
    def seccomp(self) -> bool:
        """The kernel has seccomp filters."""
        return "errno" in idmap.sysctl("kernel/seccomp/actions_avail").split()

    @kept
    def security_modules(self) -> frozenset[str] | None:
        """The kernel's security modules; None where it can't be read (no securityfs)."""
        names = idmap.read_text("/sys/kernel/security/lsm").strip()
        return frozenset(names.split(",")) if names else None

    @kept
    def landlock_abi(self) -> int:
        """The version of Landlock's ABI; 0 without Landlock, or where a seccomp filter hides it."""
        return max(self._landlock_answer, 0)

    @kept
    def _landlock_answer(self) -> int:
        try:
            return _native.landlock_abi()
        except OSError as error:
            return -(error.errno or errno.EIO)

    @property
    def landlock(self) -> bool:
        """Landlock is in use, of whatever version."""
        return self.landlock_abi > 0

    @property
    def landlock_paths(self) -> bool:
        """Landlock restricts paths, writing with truncation."""
        return self.landlock_abi >= 3

    @property
    def landlock_ports(self) -> bool:
        """Landlock restricts TCP ports."""
        return self.landlock_abi >= 4

    @property
    def landlock_scopes(self) -> bool:
        """Landlock scopes abstract UNIX sockets and signals."""
        return self.landlock_abi >= 6

    @kept
    def pressure(self) -> bool:
        """The kernel measures pressure (PSI)."""
        return os.path.exists("/proc/pressure/memory")

    @kept
    def zstd(self) -> bool:
        """Zstandard can be decompressed: Python 3.14, or the extra "zstd"."""
        return sys.version_info >= (3, 14) or _installed("zstandard")

    # Cgroups

    @property
    def cgroup(self) -> CgroupHost:
        """Where cgroups are and which of them are ours to use."""
        from isobox.cgroups.discovery import discover

        return discover()

    @property
    def cgroup_layout(self) -> str:
        """Which versions there are: "v1", "v2", "hybrid" or "none"."""
        return self.cgroup.layout

    @property
    def cgroup_cpu(self) -> bool:
        """Groups with a limit of CPU can be made."""
        return self.cgroup.usable("cpu")

    @property
    def cgroup_cpuacct(self) -> bool:
        """The CPU time of groups can be read."""
        return self.cgroup.usable("cpuacct")

    @property
    def cgroup_cpuset(self) -> bool:
        """Groups with CPUs of their own can be made."""
        return self.cgroup.usable("cpuset")

    @property
    def cgroup_memory(self) -> bool:
        """Groups with a limit of memory can be made."""
        return self.cgroup.usable("memory")

    @property
    def cgroup_pids(self) -> bool:
        """Groups with a limit of processes can be made."""
        return self.cgroup.usable("pids")

    @property
    def cgroup_io(self) -> bool:
        """Groups with limits of block I/O can be made."""
        return self.cgroup.usable("blkio")

    @property
    def cgroup_freezer(self) -> bool:
        """Groups can be paused."""
        return self.cgroup.usable("freezer")

    @property
    def systemd(self) -> bool:
        """A manager of systemd can be asked for a scope: the user's own, for root the system's."""
        from isobox.cgroups.scope import why_no_manager

        return not why_no_manager()

    @property
    def cgroups(self) -> bool:
        """Groups with limits of CPU, memory and processes can be made."""
        return self.cgroup_cpu and self.cgroup_memory and self.cgroup_pids

    def why(self, name: str) -> str:
        """Why the fact `name` is false, for people; empty if it is true or nothing is known.

        >>> features().why("openat2")
        ''
        """
        if name in SINCE and not self.since(name):
            return self._why_missing(name)
        if (name in SINCE and not hasattr(type(self), name)) or getattr(self, name):
            return ""
        if name.startswith("cgroup"):
            return self._why_cgroup(name)
        if name == "systemd":
            from isobox.cgroups.scope import why_no_manager

            return why_no_manager()
        if name.startswith("landlock"):
            return self._why_landlock()
        if name == "user_namespaces":
            return self._userns_obstacle
        if name == "overlay":
            return self._overlay_obstacle
        if name == "is_root":
            return "this is an ordinary user" if self.uid else "root lacks CAP_SYS_ADMIN here"
        if name == "newuidmap":
            if self.no_new_privs:
                return "this process may not gain privileges (no_new_privs)"
            return "newuidmap and newgidmap are not installed, or not setuid root"
        if name == "id_ranges":
            if not self.subuids or not self.subgids:
                return "/etc/subuid and /etc/subgid give this user no range"
            return self.why("newuidmap")
        if name in ("idmapped_mounts", "idmapped_tmpfs", "host_folders"):
            for needed in ("mount_setattr", "idmapped_overlay"):
                if not self.since(needed):
                    return self._why_missing(needed)
            return "only the machine's root can make them"
        return _WHY.get(name, "")

    def _why_landlock(self) -> str:
        if self.landlock_abi:
            return f"this kernel, {self.release}, has version {self.landlock_abi} of Landlock's ABI"
        if self._landlock_answer == -errno.EOPNOTSUPP:
            return "Landlock is built in, but not among the modules that the kernel was started with (lsm=)"
        return "the kernel was built without Landlock, or a seccomp filter keeps it from this process"

    def _why_missing(self, name: str) -> str:
        """Why `since` says no."""
        version, what = SINCE[name]
        newer = f"Linux {version[0]}.{version[1]}"
        if self.kernel < version:
            return f"{what} need {newer}, this is {self.release}"
        return (
            f"{what}: {newer} or newer has it (this is {self.release}), and here it is refused; "
            "a seccomp filter forbids it, that of a container around this program perhaps"
        )

    def _why_cgroup(self, name: str) -> str:
        wanted = {"cgroup_io": ["blkio"], "cgroups": ["cpu", "memory", "pids"]}.get(
            name, [name.removeprefix("cgroup_")]
        )
        for controller in wanted:
            found = self.cgroup.controllers.get(controller)
            if found is None:
                return f"there is no {controller} controller for this process"
            if not found.writable:
                return found.why
        return ""


_WHY: Final = {
    "time_namespaces": "the kernel was built without time namespaces",
    "seccomp": "the kernel was built without seccomp filters",
    "memfd_exec": "the setting vm.memfd_noexec is 2",
    "pressure": "the kernel was built without PSI, or started with psi=0",
    "swap": "there is no swap space",
    "zstd": "the Python package zstandard is not installed",
}

_cached: HostFeatures | None = None


def features() -> HostFeatures:
    """The facts of this host; cached until the process changes its user."""
    global _cached
    found = _cached
    if found is None or found.uid != os.geteuid():
        found = _cached = _read()
    return found


def _read() -> HostFeatures:
    system = os.uname()
    status = dict(
        line.split(":\t", 1) for line in idmap.read_text("/proc/self/status").splitlines() if ":\t" in line
    )
    return HostFeatures(
        release=system.release,
        kernel=parse_release(system.release),
        machine=system.machine,
        uid=os.geteuid(),
        gid=os.getegid(),
        capabilities=int(status.get("CapEff", "0"), 16),
        no_new_privs=status.get("NoNewPrivs") == "1",
        filtered=status.get("Seccomp") == "2",
    )


def parse_release(release: str) -> tuple[int, int]:
    """(major, minor) of a kernel's release.

    >>> parse_release("6.8.0-31-generic")
    (6, 8)
    """
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _meminfo(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", idmap.read_text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
