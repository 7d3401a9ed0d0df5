"""What root file systems are made of: overlays, folders, fresh /proc and /sys, terminals."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from isobox import _native
from isobox.errors import IsoboxError, UnsupportedError
from isobox.findings import Item
from isobox.hints import NESTED, disk_refused, overlay_refused
from isobox.host import features
from isobox.plan.ops import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER, HOST_PATH, make
from isobox.probes import ATTR_QUIET, Probes, Refusal
from isobox.runtime import Owner

from .outcome import USERNS, failed, tried


def try_file_systems(probes: Probes, owner: Owner | None) -> Iterator[Item]:
    """Try what a root file system needs."""
    stage = probes.stage
    folders = ("lower", "more", "upper", "work", "merged")
    layers = {"upperdir": f"{stage}/upper", "workdir": f"{stage}/work", "userxattr": None}
    merged = [probes.file("merged/file", b"x")]
    lower: dict[str, str | None] = {"lowerdir": f"{stage}/lower:{stage}/more"}
    overlay = probes.mount("overlay", lower | layers, f"{stage}/merged")
    yield tried(
        "overlay",
        probes.run(USERNS, [*probes.scratch(folders=folders), *overlay, *merged]),
        overlay_refused(0)[1],
        "copy-on-write root file systems, upper in memory",
        needed=True,
    )
    yield _layer_disk(probes, owner)
    yield _idmapped(probes, owner)
    yield _disk_limit(probes)
    kernels = probes.scratch(folders=("proc", "sys", "mqueue"))
    kernels += probes.mount("proc", {}, f"{stage}/proc", ATTR_QUIET)
    kernels += probes.mount("sysfs", {}, f"{stage}/sys", ATTR_QUIET | 1)
    kernels += probes.mount("mqueue", {}, f"{stage}/mqueue", ATTR_QUIET)
    yield tried(
        "/proc and /sys",
        probes.run(USERNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC, kernels),
        NESTED,
        "fresh ones for each container",
        needed=True,
    )
    yield tried(
        "tty",
        _pty()
        or probes.run(
            USERNS,
            [
                *probes.scratch(folders=("pts",)),
                *probes.mount(
                    "devpts", {"newinstance": None, "ptmxmode": "0666"}, f"{stage}/pts", ATTR_QUIET & ~4
                ),
            ],
        ),
        "mount devpts with ptmxmode=0666 on this host",
        "terminals of its own for each container",
    )


def _pty() -> Refusal | None:
    try:
        for fd in os.openpty():
            os.close(fd)
    except OSError as error:
        return Refusal("openpty", error.errno or errno.EIO)
    return None


def _layer_disk(probes: Probes, owner: Owner | None) -> Item:
    """An overlay whose upper is a directory of the data folder."""
    name = 'upper="disk"'
    if owner is None:
        return Item(name, "missing", "it needs the state folder", "see the state folder")
    try:
        place = owner.disk_dir()
    except (IsoboxError, OSError) as error:
        return failed(name, error, "set ISOBOX_DATA_DIR to a directory on a disk")
    stage = probes.stage
    fds: list[int] = []
    try:
        ops = probes.scratch(folders=("disk", "lower", "merged"))
        if os.geteuid() == 0:
            os.chown(place, probes.id_map.root_uid, probes.id_map.root_gid)
            fds.append(_native.clone_tree(place))
            ops.append(make("TAKE_TREE", 0, note=place))
        else:
            ops.append(make("OPEN_TREE", 1, HOST_PATH, strings=(os.fsencode(place),)))
        ops.append(make("ATTACH", HOST_PATH, strings=(f"{stage}/disk".encode(),)))
        ops += [
            make("MKDIR", 0o755, HOST_PATH, 1, strings=(f"{stage}/disk/{sub}".encode(),))
            for sub in ("u", "w")
        ]
        options: dict[str, str | None] = {
            "lowerdir": f"{stage}/lower",
            "upperdir": f"{stage}/disk/u",
            "workdir": f"{stage}/disk/w",
            "userxattr": None,
            "volatile": None,
        }
        ops += probes.mount("overlay", options, f"{stage}/merged")
        refused = probes.run(USERNS, [*ops, probes.file("merged/file", b"x")], fds)
    except OSError as error:
        refused = Refusal(place, error.errno or errno.EIO)
    finally:
        for fd in fds:
            os.close(fd)
        owner.discard(place)
    if refused is not None and refused.where == "FSCONFIG_STRING" and refused.errno == errno.EINVAL:
        return Item(name, "missing", *disk_refused(owner.data)[1:])
    return tried(name, refused, disk_refused(owner.data)[2], owner.data)


def _idmapped(probes: Probes, owner: Owner | None) -> Item:
    """Folders and archives as images: their root has to be root inside."""
    name = "folder and tar images"
    if probes.id_map.single:
        return Item(name, "degraded", "all files belong to root inside", "see the id ranges")
    if os.geteuid() != 0:
        return Item(name, "works", "owners by newuidmap's ranges")
    if owner is None:
        return Item(name, "missing", "it needs the state folder", "see the state folder")
    try:
        place = owner.disk_dir()
        fd = _native.clone_tree(place)
        try:
            with probes.process(CLONE_NEWUSER) as (_, pid, _):
                userns_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _native.mount_setattr(fd, 0, userns_fd=userns_fd)
                finally:
                    os.close(userns_fd)
        finally:
            os.close(fd)
            owner.discard(place)
    except UnsupportedError as error:
        return failed(name, error)
    except (IsoboxError, OSError) as error:
        code = error.errno if isinstance(error, OSError) else None
        why = os.strerror(code) if code else str(error)
        remedy = (
            "use Linux 5.19 and a file system with idmapped mounts (ext4, xfs, btrfs) for ISOBOX_DATA_DIR"
        )
        if features().in_user_namespace:
            remedy = "only the machine's root can make them: run isobox outside of the container around it"
        return Item(name, "missing", f"an idmapped mount of {owner.data}: {why}", remedy)
    if not features().since("idmapped_overlay"):
        return Item(name, "missing", features().why("idmapped_overlay"), "boot a newer kernel")
    return Item(name, "works", "owners by idmapped mounts")


def _disk_limit(probes: Probes) -> Item:
    """A file larger than the scratch file system must not fit."""
    name = "disk limit"
    refused = probes.run(USERNS, [*probes.scratch(65536), probes.file("big", bytes(262144))])
    if refused is None:
        return Item(name, "missing", "a file system took more than its size", "use a newer kernel")
    if refused.errno != errno.ENOSPC:
        return tried(name, refused, "")
    return Item(
        name,
        "degraded",
        'enforced with upper="memory"; refused with upper="disk"',
        'use upper="memory" with disk=',
    )
