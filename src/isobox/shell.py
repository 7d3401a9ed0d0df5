"""A shell: isobox-init in fresh namespaces with its root file system made, waiting for a container.

It names no container: it depends on the kind of root and of namespaces only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, Protocol

from attrs import define, evolve, field, frozen

from . import _native
from .cgroups import Bundle
from .control import Control
from .errors import UnsupportedError
from .host import features
from .idmap import IdMap
from .pidfds import Pidfd
from .plan.ops import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, Op
from .plan.parts import Placed, Shape
from .plan.setup import prepare_plan
from .rootfs.layers import Rootfs
from .security.paths import covers
from .shared import Shared
from .spawn import spawn, write_maps
from .worker import Worker

NS_GET_USERNS: Final = 0xB701  # include/uapi/linux/nsfs.h


class Holdable(Protocol):
    """What has to stay while a shell is made of it."""

    def hold(self, stack: ExitStack) -> None:
        """Keep it until the stack is closed. Raises `StateError` once it is gone."""


@frozen(slots=False)
class Wanted:
    """The kind of a shell."""

    rootfs: Rootfs = field(eq=id)
    scratch_size: int
    disk: str | None
    devices: tuple[str, ...]
    own_userns: bool
    own_netns: bool
    own_utsns: bool
    own_ipcns: bool
    views: tuple[tuple[str, bytes], ...]
    cpus: frozenset[int] | None
    bounding: int
    mounts: tuple[Placed, ...]
    files: tuple[tuple[str, bytes], ...] = ()
    volumes: tuple[str, ...] = ()
    begun: Holdable | None = field(default=None, eq=False, repr=False)

    @property
    def flags(self) -> int:
        """CLONE_NEW* for clone."""
        flags = CLONE_NEWNS | CLONE_NEWPID
        flags |= CLONE_NEWUSER if self.own_userns else 0
        flags |= CLONE_NEWNET if self.own_netns else 0
        flags |= CLONE_NEWUTS if self.own_utsns else 0
        return flags | (CLONE_NEWIPC if self.own_ipcns else 0)


class Descriptors:
    """The table of descriptors that travels with a plan: some lent, the others its own until `close`."""

    def __init__(self, lent: Sequence[int] = ()) -> None:
        self.fds: list[int] = list(lent)
        self._own: list[int] = []

    def own(self, fd: int) -> int:
        """Take a descriptor over; returns its place in the table."""
        self.fds.append(fd)
        self._own.append(fd)
        return len(self.fds) - 1

    def lend(self, fd: int) -> int:
        """Have one travel along that stays its owner's; returns its place in the table."""
        self.fds.append(fd)
        return len(self.fds) - 1

    def close(self) -> None:
        """Close what is its own; idempotent."""
        while self._own:
            os.close(self._own.pop())


@define(eq=False)
class Shell:
    """One of them. `close` ends it and everything that runs in it, and waits until the kernel is done."""

    control: Control
    pid: int
    pidfd: Pidfd
    id_map: IdMap | None
    ops: list[Op]
    bundle: Bundle | None
    userns_fd: int
    stack: ExitStack
    worker: Worker
    mounts_fd: int
    born: float = field(factory=time.monotonic)

    def unmount_at_end(self) -> None:
        """Have its mounts gone when `close` returns: they are over directories of the user's."""
        if self.mounts_fd >= 0 and self.userns_fd < 0 and self.id_map is not None:
            self.userns_fd = self.open_userns()
            self.stack.callback(os.close, self.userns_fd)
        fd, self.mounts_fd = self.mounts_fd, -1
        if fd >= 0:
            os.close(fd)

    def open_userns(self) -> int:
        """A descriptor of its own user namespace, the caller's."""
        if self.userns_fd >= 0:
            return os.dup(self.userns_fd)
        # Its own files of /proc can't be opened any more: PR_SET_DUMPABLE.
        return fcntl.ioctl(self.mounts_fd, NS_GET_USERNS)

    def close(self) -> None:
        """End it; idempotent."""
        self.stack.close()
        fd, self.mounts_fd = self.mounts_fd, -1
        if fd >= 0:
            # The kernel waits for all CPUs when it takes mounts away: that is the worker's time.
            self.worker.submit(lambda: os.close(fd))


def idmapped(fd: int, userns_fd: int, *, recursive: bool, what: str) -> None:
    """Make a detached mount show host ids 0.. as the container's 0... Raises `UnsupportedError`."""
    try:
        _native.mount_setattr(fd, 0, recursive=recursive, userns_fd=userns_fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
            raise
        raise UnsupportedError(
            f"owners of {what}",
            "its file system or the kernel has no idmapped mounts, so root inside would own no file of it",
            "put it on ext4, xfs or btrfs (Linux 5.19; images of a store: by ISOBOX_DATA_DIR), mount it "
            "read-only, or use userns='host'",
        ) from None


def _shape(
    wanted: Wanted, shared: Shared, id_map: IdMap | None, pid: int, table: Descriptors | None
) -> Shape:
    """Gather what the plan needs; with a table, make the detached copies that root may make."""
    layer_fds: dict[int, Sequence[int]] = {}
    begun_fds: list[int | None] = []
    dev_fd = disk_fd = None
    if table is not None and shared.root:
        layer_fds = _layers(wanted.rootfs, id_map, pid, table)
        if wanted.disk is not None:
            disk_fd = table.own(_native.clone_tree(wanted.disk))
    if table is not None:
        if wanted.rootfs.begun:
            begun_fds = _begun(wanted.rootfs, id_map, pid, table)
        owner = (0, 0) if id_map is None else (id_map.root_uid, id_map.root_gid)
        tree = shared.device_tree(wanted.devices, owner)
        dev_fd = None if tree is None else table.own(tree)
    return Shape(
        stage=shared.stage,
        rootfs=wanted.rootfs,
        layer_fds=layer_fds,
        dev_fd=dev_fd,
        devices=wanted.devices,
        scratch_size=wanted.scratch_size,
        disk_scratch=wanted.disk,
        disk_fd=disk_fd,
        groups_allowed=id_map is None or not id_map.deny_setgroups,
        tty_group=features().id_ranges if id_map is None else not id_map.single,
        own_userns=wanted.own_userns,
        own_netns=wanted.own_netns,
        own_ipcns=wanted.own_ipcns,
        lowerdir_plus=shared.lowerdir_plus,
        views=wanted.views,
        cpus=wanted.cpus,
        bounding=wanted.bounding,
        mounts=wanted.mounts,
        files=wanted.files,
        volumes=wanted.volumes,
        covers=covers(own_userns=wanted.own_userns, capabilities=wanted.bounding),
        sysctls=shared.sysctls if wanted.own_userns else (),
        begun_fds=begun_fds,
    )


def _begun(rootfs: Rootfs, id_map: IdMap | None, pid: int, table: Descriptors) -> list[int | None]:
    """Copies that show the owners as this container has them; where they need not, it makes its own."""
    places: list[int | None] = []
    for begun in rootfs.begun:
        fd = None if begun.copy is None else begun.copy()
        if not begun.idmap or id_map is None:
            if fd is not None:
                places.append(table.own(fd))
            else:
                places.append(None if begun.fd is None else table.lend(begun.fd))
            continue
        if fd is None:
            path, place = (begun.path, -100) if begun.fd is None else ("", begun.fd)
            fd = _native.clone_tree(path, dir_fd=place)
        places.append(table.own(fd))
        userns_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            idmapped(fd, userns_fd, recursive=False, what="a snapshot")
        finally:
            os.close(userns_fd)
    return places


def _layers(rootfs: Rootfs, id_map: IdMap | None, pid: int, table: Descriptors) -> dict[int, Sequence[int]]:
    """Copies of the layers' mounts, for each tree: one of what they lie in, where they do."""
    found: dict[int, Sequence[int]] = {}
    userns_fd = -1
    try:
        for number, tree in enumerate(rootfs.trees):
            places = []
            layers = tree.layers
            if tree.within is not None and len(layers) > 1:
                layers = (evolve(layers[0], path=tree.within),)
            for layer in layers:
                fd = _native.clone_tree(layer.path, recursive=tree.kind == "bind")
                places.append(table.own(fd))
                if layer.idmap and id_map is not None and id_map.root_uid != 0:
                    if userns_fd < 0:
                        userns_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                    idmapped(fd, userns_fd, recursive=False, what=f"the image {layer.path}")
            found[number] = places
    finally:
        if userns_fd >= 0:
            os.close(userns_fd)
    return found


def shell_plan(wanted: Wanted, shared: Shared) -> list[Op]:
    """The ops of a shell that is not made."""
    id_map = shared.owner.id_map() if wanted.own_userns else None
    try:
        return prepare_plan(_shape(wanted, shared, id_map, 0, None))
    finally:
        if id_map is not None:
            shared.owner.release_id_map(id_map)


def make_shell(wanted: Wanted, shared: Shared) -> Shell:
    """Make one; it carries its part of the plan out while this returns. Raises `SetupError`."""
    with ExitStack() as stack:
        id_map = None
        if wanted.own_userns:
            ids = [begun.ids for begun in wanted.rootfs.begun if begun.ids is not None]
            id_map = shared.owner.share_id_map(ids[0]) if ids else shared.owner.id_map()
            stack.callback(shared.owner.release_id_map, id_map)
        if wanted.disk is not None:
            if id_map is not None and shared.root:
                os.chown(wanted.disk, id_map.root_uid, id_map.root_gid)
            os.chmod(wanted.disk, 0o711)
        bundle = shared.groups.birthplace()
        if bundle is not None:
            stack.callback(bundle.drop)
        control, pid, pidfd = spawn(wanted.flags, shared, stack, bundle)
        if id_map is not None:
            write_maps(pid, id_map)
        userns_fd = -1
        if id_map is not None and shared.root and not shared.makes_devices:
            # Root of a user namespace may not look at the init any more once its plan has begun.
            userns_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, userns_fd)
        # Before the plan is sent: where that fails, the process and its place in /proc are gone.
        mounts_fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        table = Descriptors()
        try:
            shape = _shape(wanted, shared, id_map, pid, table)
            ops, plan = shared.prepared(wanted, shape)
            control.prepare(plan, table.fds)
        except BaseException:
            os.close(mounts_fd)
            raise
        finally:
            table.close()
        return Shell(
            control, pid, pidfd, id_map, ops, bundle, userns_fd, stack.pop_all(), shared.worker, mounts_fd
        )
