"""What to do about an errno, by the op that met it: the kernel's numbers often mislead.

Sources: the man pages of the calls, and what they return in namespaces (user_namespaces(7),
mount_namespaces(7), overlayfs.rst).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from . import idmap
from .errors import UnsupportedError
from .host import features
from .plan.ops import NO_LINKS, Op

NESTED: Final = (
    "run the container around this program with its /proc and /sys unmasked "
    "(docker run --security-opt systempaths=unconfined), or run isobox outside of it"
)
_DENIED: Final = (errno.EPERM, errno.EACCES)
_NO_DIRECTORY: Final = (errno.ELOOP, errno.EINVAL, errno.ENOTDIR)

_HINTS: dict[tuple[str, int], str] = {
    ("spawn", errno.EPERM): (
        "User namespaces are refused here: see 'isobox doctor' "
        "(sysctl kernel.apparmor_restrict_unprivileged_userns=0, kernel.unprivileged_userns_clone=1; "
        "inside a container, more privileges)"
    ),
    ("spawn", errno.ENOSPC): "Too many namespaces: raise sysctl user.max_user_namespaces and its siblings",
    ("spawn", errno.EUSERS): "User namespaces are nested too deep (32 at most)",
    ("spawn", errno.EAGAIN): "No more processes: raise the pids limit or 'ulimit -u' of this process",
    (
        "spawn",
        errno.ENOSYS,
    ): "The kernel lacks a system call (isobox needs Linux 5.10), or a seccomp filter hides it",
    ("spawn", errno.ENOMEM): "No memory, or the PID namespace of this process has ended",
    ("spawn", errno.EACCES): "This process may not execute from memory: see sysctl vm.memfd_noexec",
    ("host", errno.EMFILE): "This process has no descriptors left: raise 'ulimit -n'",
    ("host", errno.ENFILE): "The machine has no descriptors left: raise sysctl fs.file-max",
    ("host", errno.ENOSPC): "The disk is full",
    ("host", errno.E2BIG): "Pass large data in a file or stdin",
    ("terminal", errno.ENOSPC): "All terminals of the container are open, or of the machine (kernel.pty.max)",
    ("setup", errno.EPIPE): "It was killed, by the memory limit perhaps: raise memory=",
    ("clone", errno.EAGAIN): "The container's pids limit is reached: raise pids=",
    ("clone", errno.ENOSPC): "Too many programs run in this container at once",
    ("clone", errno.EMFILE): (
        "The container's init has no descriptors left: raise 'ulimit -Hn', or run fewer programs at once"
    ),
    ("clone", errno.ENOMEM): "The container's memory limit is reached: raise memory=",
    (
        "EXEC",
        errno.ENOENT,
    ): "No such program in the container; a script's interpreter or a dynamic loader counts too",
    ("EXEC", errno.EACCES): (
        "The file is not executable, a directory on the way is closed to this user, or landlock= forbids it"
    ),
    ("EXEC", errno.ENOEXEC): "Not a program: a script needs a first line such as '#!/bin/sh'",
    (
        "EXEC",
        errno.E2BIG,
    ): "The arguments and the environment are larger than the kernel takes: pass them in a file or stdin",
    ("EXEC", errno.ENOMEM): "The memory limit is too small to start it: raise memory=",
    ("EXEC", errno.ETXTBSY): "The file is still open for writing",
    ("CHDIR", errno.ENOENT): "Give a directory that exists in the container as workdir",
    ("CHDIR", errno.ENOTDIR): "Give a directory as workdir",
    ("CHDIR", errno.EACCES): "The user may not enter it",
    ("CHDIR", errno.ELOOP): "Links of /proc to what a process has open are not followed, nor too many others",
    ("FSCONFIG_STRING", errno.EINVAL): (
        "The path of an overlay's layer may have 255 characters: "
        "give the image or ISOBOX_STATE_DIR a shorter path"
    ),
    ("LANDLOCK_PATH", errno.ENOENT): "A path of landlock= has to be there when the container starts",
    ("LANDLOCK_PATH", errno.ELOOP): "A path of landlock= may not lead through /proc/PID/root and the like",
    ("LANDLOCK_PORT", errno.EAFNOSUPPORT): "The kernel was built without TCP",
    ("LANDLOCK_RESTRICT", errno.E2BIG): "Landlock's domains are nested too deep (16 at most)",
    ("JOIN_CGROUP", errno.EAGAIN): "The pids limit is reached",
    ("IDS", errno.EAGAIN): "The limit on processes of this user is reached",
    ("KEYRING", errno.EDQUOT): "This user has too many keyrings: raise sysctl kernel.keys.maxkeys",
    ("COPY", errno.ELOOP): "More than 1000 directories lie in each other: remove some in the container",
    ("COPY", errno.EMFILE): "Too many directories lie in each other: raise 'ulimit -Hn', or remove some",
    (
        "COPY",
        errno.ENOSPC,
    ): "The disk is full, or the container wrote on while it was copied: pause it",
    (
        "COPY",
        errno.EOPNOTSUPP,
    ): "Where the snapshot goes are no extended attributes of users: in ISOBOX_DATA_DIR, "
    "or in memory before Linux 6.6",
    ("RLIMIT", errno.EPERM): "A hard limit can't be raised above this process's own",
}

_ATTACH_MOUNTS: dict[int, str] = {
    errno.EPERM: "This user may not mount it: see 'isobox doctor'",
    errno.ENOENT: "The target is not in the image, and could not be made",
    errno.ELOOP: "A layer lies inside another, or a path has too many symlinks",
    errno.ENOTDIR: "A file can only be mounted on a file, a directory on a directory",
    errno.EROFS: "The place for it is on a read-only file system: make the target in the image",
    errno.EACCES: "The container's root may not write there: choose another target, or make it first",
    errno.EINVAL: "The kernel refuses the file system or an option of it: see 'isobox doctor'",
    errno.ENODEV: "The kernel has no such file system",
}


def hint(where: str, number: int, op: Op | None = None) -> str:
    """Return one sentence that says what would help, or ""."""
    found = _HINTS.get((where, number), "")
    if where == "ATTACH" and number == errno.EINVAL and op is not None and op.note.startswith("bind of"):
        return _ATTACH_MOUNTS[errno.ENOTDIR]
    if where == "ATTACH" and number in _NO_DIRECTORY and op is not None and op.args[0] == NO_LINKS:
        return (
            f"Make {os.fsdecode(op.strings[0])} a directory in the image: a link or a file is not mounted on"
        )
    if (
        not found
        and op is not None
        and where in ("ATTACH", "FSMOUNT", "MOUNT", "MKDIR", "FILE", "OPEN_TREE", "FSOPEN")
    ):
        found = _ATTACH_MOUNTS.get(number, "")
    return found


def proc_refused() -> UnsupportedError | None:
    """The error where /proc is not of this process's PID namespace: its numbers are other processes'."""
    try:
        if os.readlink("/proc/self") == str(os.getpid()):
            return None
        why = "/proc is that of another PID namespace (unshare --pid without --mount-proc)"
    except OSError:
        why = "no /proc is mounted here, which tells what a process is and has"
    return UnsupportedError("/proc and /sys", why, "mount -t proc proc /proc")


def unsupported(
    where: str, number: int, what: str = "", *, own_userns: bool = True
) -> UnsupportedError | None:
    """Return the error where this host refuses to every container what `where` did; None for all else.

    `where` is the system call of a spawn, or the op of a plan that met errno `number`; `what` the file
    system that the op is about. `UnsupportedError.feature` is the name of the doctor's item.
    """
    said = os.strerror(number)
    if where in ("memfd", "execveat") and number in _DENIED:
        remedy = "let this process run what it keeps in memory (memfd_create, execveat)"
        if not features().memfd_exec:
            remedy = "set vm.memfd_noexec to 0 or 1"
        return UnsupportedError("isobox-init", f"it may not be run from memory: {said}", remedy)
    if where == "newuidmap":
        remedy = (
            "check the lines of this user in /etc/subuid and /etc/subgid "
            "(getsubids NAME), that it has a name in /etc/passwd, and that newuidmap is setuid root"
        )
        return UnsupportedError("id ranges", what or said, remedy)
    if where in ("clone", "PROPAGATION", "setgroups", "gid_map", "uid_map"):
        remedy = idmap.hint(number)
        if not remedy or (where != "clone" and number not in _DENIED):
            return None
        if not own_userns:
            return UnsupportedError("namespaces", f"{where}: {said}", remedy)
        if features().is_root and number != errno.ENOSYS:
            remedy += "; or use userns='host' for programs that you trust: root inside is root outside then"
        reason = features().why("user_namespaces")
        return UnsupportedError("user namespace", f"{where}: {said}" + f" ({reason})" * bool(reason), remedy)
    if where not in ("FSOPEN", "FSMOUNT", "MOUNT"):
        return None
    if what in ("proc", "sysfs") and number == errno.EPERM:
        path = "/proc" if what == "proc" else "/sys"
        if not os.path.ismount(path):
            why = f"a new {path} is for those who have one already, and none is mounted here"
            return UnsupportedError("/proc and /sys", why, f"mount -t {what} {what} {path}")
        why = (
            f"a new {path} is refused where a part of the one around it is hidden (inside Docker, Kubernetes)"
        )
        return UnsupportedError("/proc and /sys", why, NESTED)
    if what == "overlay" and number in (errno.ENODEV, *_DENIED):
        return UnsupportedError("overlay", *overlay_refused(number))
    return None


def overlay_refused(number: int) -> tuple[str, str]:
    """Why there are no overlays here, and what helps."""
    facts = features()
    said = os.strerror(number)
    if not facts.since("overlay_in_userns"):
        remedy = "boot Linux 5.11 or later" + (
            ", or use userns='host' for programs that you trust" if facts.is_root else ""
        )
        return f"{said} ({facts.why('overlay')})", remedy
    if "overlay" not in facts.filesystems:
        return f"{said} (the kernel has no overlay file system now)", "load the module: modprobe overlay"
    return said, "let the seccomp filter or the security module around this program allow mounts"


def disk_refused(data: str) -> tuple[str, str, str]:
    """What is missing where the data folder can't hold the upper layer of an overlay, why, and what helps."""
    remedy = "set ISOBOX_DATA_DIR to a directory on ext4, xfs, btrfs or tmpfs, or use upper='memory'"
    return 'upper="disk"', f"the file system of {data} can't hold the upper layer of an overlay", remedy
