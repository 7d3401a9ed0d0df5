"""What to do about an errno, by the op that met it: the kernel's numbers often mislead.

Sources: the man pages of the calls, and what they return in namespaces (user_namespaces(7),
mount_namespaces(7), overlayfs.rst).
"""

from __future__ import annotations

import errno

from .plan.ops import Op

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
    ): "The kernel lacks clone3 (Linux 5.3), or a seccomp filter around this process hides it",
    ("spawn", errno.ENOMEM): "No memory, or the PID namespace of this process has ended",
    ("spawn", errno.EACCES): "This process may not execute from memory: see sysctl vm.memfd_noexec",
    ("host", errno.EMFILE): "This process has no descriptors left: raise 'ulimit -n'",
    ("host", errno.ENFILE): "The machine has no descriptors left: raise sysctl fs.file-max",
    ("host", errno.ENOSPC): "The disk is full",
    ("host", errno.E2BIG): "Pass large data in a file or stdin",
    ("setup", errno.EPIPE): "It was killed, by the memory limit perhaps: raise memory=",
    ("clone", errno.EAGAIN): "The container's pids limit is reached: raise pids=",
    ("clone", errno.ENOSPC): "Too many programs run in this container at once",
    ("clone", errno.ENOMEM): "The container's memory limit is reached: raise memory=",
    (
        "EXEC",
        errno.ENOENT,
    ): "No such program in the container; a script's interpreter or a dynamic loader counts too",
    ("EXEC", errno.EACCES): "The file is not executable, or a directory on the way is closed to this user",
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
    ("JOIN_CGROUP", errno.EAGAIN): "The pids limit is reached",
    ("IDS", errno.EAGAIN): "The limit on processes of this user is reached",
    ("RLIMIT", errno.EPERM): "A hard limit can't be raised above this process's own",
}

_ATTACH_MOUNTS: dict[int, str] = {
    errno.EPERM: (
        "The kernel refuses a new /proc or /sys where the one around it is partly hidden "
        "(inside Docker or Kubernetes): run that outer container with /proc unmasked "
        "(--security-opt systempaths=unconfined)"
    ),
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
    if (
        not found
        and op is not None
        and where in ("ATTACH", "FSMOUNT", "MKDIR", "FILE", "OPEN_TREE", "FSOPEN")
    ):
        found = _ATTACH_MOUNTS.get(number, "")
    return found
