"""Starting isobox-init in new namespaces, and ending it with all that is in them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from . import _native, idmap
from .cgroups import Bundle, Group
from .control import Control
from .errors import CgroupError, IsoboxError, SetupError
from .hints import hint, unsupported
from .idmap import IdMap
from .pidfds import Pidfd
from .plan.ops import CLONE_NEWCGROUP, CLONE_NEWTIME, CLONE_NEWUSER
from .shared import Shared

_NO_BIRTHS: Final = (errno.ENOSYS, errno.EPERM, errno.E2BIG, errno.EINVAL)
"""What clone3 says to CLONE_INTO_CGROUP where it lacks that, or is kept from us: see clone(2)."""


def late_namespaces(namespaces: Mapping[str, str], unified: bool) -> int:
    """The namespaces that isobox-init unshares once it is in its cgroup, whose root they show.

    On v2 it stays in the host's: a process can't be born in a group that its parent's namespace doesn't
    show, and init's own group has none below it. There each program unshares one.
    """
    late = CLONE_NEWCGROUP if namespaces["cgroup"] == "private" and not unified else 0
    return late | (CLONE_NEWTIME if namespaces["time"] == "private" else 0)


def start_init(shared: Shared, stack: ExitStack) -> Control:
    """Start isobox-init in no new namespace, for what this process can't do itself. The stack ends it."""
    return spawn(0, shared, stack)[0]


def thaw_at_end(group: Group, shared: Shared, stack: ExitStack) -> None:
    """Have a group that is going to be frozen thawed when this process ends, until the stack is closed.

    The frozen init of a container can't notice that; on v1 it could not even be killed.
    """
    try:
        with ExitStack() as made:
            control = start_init(shared, made)
            fd, text = group.thawing()
            try:
                control.thaw_at_end(fd, text)
            finally:
                os.close(fd)
            stack.callback(made.pop_all().close)
    except IsoboxError:
        raise
    except OSError as error:
        what = "nobody would thaw it when this process ends"
        raise CgroupError(error.errno or errno.EIO, what, stage="cgroup", op="freeze") from error


def spawn(
    flags: int, shared: Shared, stack: ExitStack, bundle: Bundle | None = None
) -> tuple[Control, int, Pidfd]:
    """Start isobox-init in new namespaces (CLONE_NEW*): its socket, pid and pidfd. The stack ends it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        control = Control(ours.detach())
        stack.callback(control.close)
        pid, fd = _spawn(flags, shared, theirs.fileno(), bundle)
    finally:
        ours.close()
        theirs.close()
    pidfd = Pidfd(fd)
    stack.callback(pidfd.end)  # and with PID 1 everything in its PID namespace
    return control, pid, pidfd


def _spawn(flags: int, shared: Shared, control_fd: int, bundle: Bundle | None) -> tuple[int, int]:
    cgroup_fd = -1 if bundle is None or bundle.into_fd is None else bundle.into_fd
    try:
        return _native.spawn(
            flags,
            init_fd=shared.init_fd,
            control_fd=control_fd,
            owner_fd=shared.owner_fd,
            cgroup_fd=cgroup_fd,
        )
    except _native.SpawnError as error:
        number = error.errno or errno.EIO
        if bundle is not None and cgroup_fd >= 0 and number in _NO_BIRTHS:
            shared.groups.no_births(bundle)  # and where that is not the cause, the next attempt tells it
            return _spawn(flags, shared, control_fd, bundle)
        refused = unsupported(error.step, number, own_userns=bool(flags & CLONE_NEWUSER))
        if refused is not None:
            raise refused from error
        raise SetupError(
            number, f"{error.step} of isobox-init", stage="spawn", op=error.step, hint=hint("spawn", number)
        ) from None


def write_maps(pid: int, id_map: IdMap) -> None:
    """Write the id maps of a new user namespace. Raises `SetupError`, `UnsupportedError`."""
    try:
        idmap.write(pid, id_map)
    except SetupError as error:
        said = str(error).removesuffix(f". {error.hint}")
        refused = unsupported(os.path.basename(error.op), error.errno or errno.EIO, said)
        if refused is None:
            raise
        raise refused from error
