"""What is mounted on this machine and can be reached by its path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from attrs import frozen

# Interfaces of the kernel and views of other things, not files that somebody stored.
PSEUDO = frozenset(
    {
        "autofs",
        "binder",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "functionfs",
        "fuse.gvfsd-fuse",
        "fuse.lxcfs",
        "fuse.portal",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nfsd",
        "nsfs",
        "proc",
        "pstore",
        "resctrl",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sysfs",
        "tracefs",
        "xenfs",
    }
)


@frozen
class Mountpoint:
    """One line of /proc/self/mountinfo: its number, its path and the type of file system."""

    number: int
    path: str
    fstype: str


_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


def parse(text: bytes) -> Iterator[Mountpoint]:
    r"""Read the text of a mountinfo file; a line of another shape is left out.

    >>> list(parse(rb"28 27 0:25 / /a\040b ro,nosuid - tmpfs none ro"))
    [Mountpoint(number=28, path='/a b', fstype='tmpfs')]
    """
    for line in text.split(b"\n"):  # the kernel escapes no other end of a line
        fields = line.split(b" ")
        try:
            dash = fields.index(b"-", 6)
            number, raw, fstype = int(fields[0]), fields[4], fields[dash + 1]
        except (ValueError, IndexError):
            continue
        path = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), raw)
        yield Mountpoint(number, os.fsdecode(path), os.fsdecode(fstype))


def _reachable(mount: Mountpoint) -> bool:
    """Whether the path leads to this mount and not to one that covers it."""
    try:
        fd = os.open(mount.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            for line in file:
                if line.startswith(b"mnt_id:"):
                    return int(line[7:]) == mount.number
    finally:
        os.close(fd)
    return False


def mount_table() -> list[Mountpoint]:
    """List what is mounted in this process's mount namespace and not covered by another mount."""
    with open("/proc/self/mountinfo", "rb") as file:
        text = file.read()
    return [mount for mount in parse(text) if mount.fstype == "autofs" or _reachable(mount)]
