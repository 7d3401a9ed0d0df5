"""What kept a container or a program from starting: what this host can't do, and what the kernel refused.

`refuse` says the one before anything is made, the others what a failed op of a plan means.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from . import _native
from .cgroups import Group
from .errors import ExecError, SetupError, SpecError, UnsupportedError
from .hints import disk_refused, hint, unsupported
from .owners import data_dir
from .plan.ops import Op, describe, filesystem
from .rootfs.layers import Rootfs
from .rootfs.mountinfo import mount_table
from .security import landlock
from .shared import Shared
from .spec import ContainerSpec


class TooDeep(UnsupportedError):
    """An overlay over an overlay that is over one already."""


def refuse(spec: ContainerSpec, shared: Shared) -> None:
    """Raise `UnsupportedError` for what this host can't do, before anything is made."""
    if spec.namespaces.get("pid") == "host":
        raise UnsupportedError(
            "the host's PID namespace",
            "the end of a container's own PID namespace is what ends all that runs in it",
            'leave namespaces["pid"] at "private"',
        )
    if spec.userns == "host" and not shared.root:
        raise UnsupportedError(
            'userns="host"', "only root may make the other namespaces without it", 'use userns="auto"'
        )
    if spec.namespaces["time"] == "private" and not os.path.exists("/proc/self/ns/time"):
        raise UnsupportedError(
            "a time namespace of its own",
            "the kernel was built without time namespaces",
            'leave namespaces["time"] at "host", or boot a kernel that has them',
        )
    if spec.userns == "auto" and shared.no_userns_overlays:
        raise UnsupportedError(
            'userns="auto"',
            shared.no_userns_overlays,
            "boot Linux 5.11 or newer" + (', or use userns="host"' if shared.root else ""),
        )
    if spec.userns == "auto" and shared.root and spec.image != "host" and shared.no_host_folders:
        raise UnsupportedError(
            f"owners of the image {spec.image}",
            shared.no_host_folders,
            'boot Linux 5.19 or newer, or use userns="host"',
        )
    landlock.ruleset(spec.landlock, shared.landlock_abi)
    if spec.disk is not None and spec.upper == "disk":
        raise UnsupportedError(
            'disk with upper="disk"',
            "the bound on a directory of a disk needs project quotas, which are not used yet",
            'use upper="memory", where disk= is enforced by the kernel',
        )


def refused(
    spec: ContainerSpec, rootfs: Rootfs, ops: Sequence[Op], reply: _native.Reply
) -> UnsupportedError | None:
    """What this host can't do, where that is what failed."""
    if not 0 <= reply.op < len(ops):
        return None
    op = ops[reply.op]
    if op.name == "FSCONFIG_STRING" and op.strings[0] == b"upperdir" and spec.upper == "disk":
        if reply.error == errno.EINVAL:
            return UnsupportedError(*disk_refused(data_dir()))
    elif filesystem(op) == "overlay" and reply.error == errno.EINVAL:
        stacked = [layer.path for tree in rootfs.trees for layer in tree.layers if _on_overlay(layer.path)]
        if stacked:
            return TooDeep(
                "overlay",
                f"{stacked[0]} lies on an overlay over another already, and the kernel stacks two at most",
                "put the image on another file system: a tmpfs, or a bind mount of a directory on a disk",
            )
        if op.name == "MOUNT" and spec.upper == "disk":
            return UnsupportedError(*disk_refused(data_dir()))
    return unsupported(op.name, reply.error, filesystem(op), own_userns=spec.userns == "auto")


def _on_overlay(path: str) -> bool:
    found = max(
        (mount for mount in mount_table() if f"{path}/".startswith(mount.path.rstrip("/") + "/")),
        key=lambda mount: len(mount.path),
        default=None,
    )
    return found is not None and found.fstype == "overlay"


def setup_error(ops: Sequence[Op], reply: _native.Reply, group: Group) -> SetupError:
    """What any other failed op means."""
    number = reply.error if 0 < reply.error < 4096 else errno.EPROTO
    if not 0 <= reply.op < len(ops):
        if group.oom_kills():
            return SetupError(errno.ENOMEM, "isobox-init was killed", stage="setup", hint="Raise memory=")
        return SetupError(number, "isobox-init ended", stage="setup", hint=hint("setup", number))
    op = ops[reply.op]
    name = op.name.lower().replace("_", "-")
    return SetupError(number, describe(op, 0), stage="setup", op=name, hint=hint(op.name, number, op))


def exec_error(ops: Sequence[Op], reply: _native.Reply, program: str) -> Exception:
    """What a FAILED record of an exec means. `ops` are those before the execve."""
    number = reply.error if 0 < reply.error < 4096 else errno.EPROTO
    if len(program) > 200:
        program = f"{program[:197]}..."
    if reply.op == len(ops):
        return ExecError(number, program, stage="exec", op="execve", hint=hint("EXEC", number))
    if 0 <= reply.op < len(ops):
        op = ops[reply.op]
        if op.name == "CHDIR":
            text = os.fsdecode(op.strings[0])
            return ExecError(number, f"workdir {text}", stage="exec", op="chdir", hint=hint("CHDIR", number))
        if op.name == "IDS" and number == errno.EINVAL:
            return SpecError("user", op.args[0], "an id that exists in the container (see idmap)")
        return ExecError(
            number, describe(op, 0), stage="exec", op=op.name.lower(), hint=hint(op.name, number, op)
        )
    return ExecError(number, program, stage="exec", op="clone", hint=hint("clone", number))
