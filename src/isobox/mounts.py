"""The mounts that a user asked for: their sources, as they are on the host."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack

from . import _native, forks
from .errors import SetupError, UnsupportedError
from .plan.parts import Placed
from .rootfs.layers import Rootfs
from .shell import Descriptors, Shell, idmapped
from .spec import ContainerSpec, Mount


def mounted_volumes(spec: ContainerSpec, rootfs: Rootfs, stack: ExitStack) -> tuple[Mount, ...]:
    """The mounts with volumes as folders of the host; held until the stack is closed."""
    with forks.whole:
        from .volumes import use
    lowers = () if spec.image == "host" else rootfs.trees[0].layers
    return use(spec.mounts, [layer.path for layer in lowers], stack)


def named_mounts(mounts: Sequence[Mount]) -> Sequence[Mount]:
    """All but the volumes of the container's own."""
    return [mount for mount in mounts if mount.kind != "volume" or mount.source is not None]


def placed_mounts(mounts: Sequence[Mount]) -> tuple[Placed, ...]:
    """Look at the sources on the host."""
    return tuple(Placed(mount, mount.kind == "bind" and _is_file(mount), None) for mount in mounts)


def _is_file(mount: Mount) -> bool:
    assert mount.source is not None
    try:
        return not stat.S_ISDIR(os.stat(mount.source).st_mode)
    except OSError as error:
        raise SetupError(
            error.errno or errno.EIO,
            f"source {mount.source}",
            stage="mounts",
            op="stat",
            hint="Give a path that exists on the host",
        ) from None


def bound_mounts(spec: ContainerSpec, shell: Shell, table: Descriptors) -> list[Placed]:
    """Detached copies of the sources, as root may make them; owners inside are those on the host."""
    if not spec.mounts:
        return []
    userns_fd = -1
    if shell.id_map is not None and shell.id_map.root_uid != 0:
        if shell.userns_fd >= 0:
            userns_fd = os.dup(shell.userns_fd)
        else:
            userns_fd = os.open(f"/proc/{shell.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [_bind(placed, userns_fd, table) for placed in placed_mounts(named_mounts(spec.mounts))]
    finally:
        if userns_fd >= 0:
            os.close(userns_fd)


def _bind(placed: Placed, userns_fd: int, table: Descriptors) -> Placed:
    mount = placed.mount
    if mount.source is None:
        return placed
    fd = _native.clone_tree(mount.source, recursive=True)
    tree = table.own(fd)
    if userns_fd >= 0:
        try:
            idmapped(fd, userns_fd, recursive=True, what=mount.source)
        except UnsupportedError:
            if not mount.read_only:
                raise
    return Placed(mount, placed.is_file, tree)
