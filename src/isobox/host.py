"""What this kernel and this user can do: read-only facts, cheap enough for the first start.

`features` reads two files; what costs more is looked at when it is first asked for. Kernel
features go by the kernel's version, so a distribution's backport counts as absent. A system call has to
answer too: a seccomp filter around an outer container may hide it. What else is forbidden here is seen
by trying, which `isobox.doctor` does.

>>> features().kernel >= (5, 0)
True
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final

from attrs import frozen

from isobox import idmap
from isobox.forks import kept
from isobox.idmap import IdRange
from isobox.kernel import SINCE, Kernel, parse_release

if TYPE_CHECKING:
    from isobox.cgroups.discovery import CgroupHost


@frozen(slots=False)
class HostFeatures(Kernel):
    """Facts about this host, for the user that this process runs as.

    `kernel` is (major, minor); `capabilities` the effective ones as a mask; `no_new_privs` says that
    exec can't gain privileges (so newuidmap can't work), `filtered` that this process runs under a
    seccomp filter itself, as in most containers. Sizes are bytes. Every other public attribute is
    a fact that is computed when first asked for; `why` says why one is false.
    """

    # The machine

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

    # Overlays and archives

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


def _meminfo(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", idmap.read_text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
