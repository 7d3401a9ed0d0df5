"""What this kernel can do: by its version, by its answers, by what it says in /proc and /sys."""

from __future__ import annotations

import errno
import os
import re
from typing import Final

from attrs import field, frozen

from isobox import _native, idmap
from isobox.errors import UnsupportedError
from isobox.forks import kept

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
class Kernel:
    """Facts about the kernel, for the user that this process runs as; see `isobox.host.HostFeatures`."""

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

    # What it has

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


def parse_release(release: str) -> tuple[int, int]:
    """(major, minor) of a kernel's release.

    >>> parse_release("6.8.0-31-generic")
    (6, 8)
    """
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
