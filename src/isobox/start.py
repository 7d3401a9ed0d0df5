"""Starting one container: what was asked becomes a running isobox-init, or nothing at all.

Everything that is acquired goes on the caller's ExitStack in the line that makes it; the stack is what
`Container.remove` unwinds later, and what an error unwinds at once.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import signal
import socket
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from attrs import define, field

from . import _native, idmap
from .control import Control
from .errors import ExecError, SetupError, SpecError, UnsupportedError
from .hints import hint
from .idmap import IdMap
from .plan.ops import Op, describe, encode
from .plan.setup import Placed, Setup, container_plan
from .rootfs.folder import folder_image
from .rootfs.layers import Rootfs
from .rootfs.tar import unpack
from .rootfs.views import views, visible_cpus
from .security import capabilities, paths, seccomp
from .shared import Shared
from .spec import ContainerSpec, Mount
from .cgroups import Group

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_NEWTIME: Final = 0x00000080
WALL: Final = 0x40000000


def namespaces_of(spec: ContainerSpec) -> tuple[int, int]:
    """Return CLONE_NEW* flags for clone3, and those that isobox-init unshares once it is in its cgroup."""
    private = {name for name, mode in spec.namespaces.items() if mode == "private"}
    flags = CLONE_NEWNS | CLONE_NEWPID
    flags |= CLONE_NEWUTS if "uts" in private else 0
    flags |= CLONE_NEWIPC if "ipc" in private else 0
    flags |= CLONE_NEWNET if spec.network != "host" else 0
    flags |= CLONE_NEWUSER if spec.userns == "auto" else 0
    late = CLONE_NEWCGROUP if "cgroup" in private else 0
    late |= CLONE_NEWTIME if "time" in private else 0
    return flags, late


@define
class Launched:
    """A container whose PID 1 runs and has carried out its plan."""

    id: str
    control: Control
    pid: int
    pidfd: int
    group: Group
    id_map: IdMap | None
    ops: list[Op]
    capabilities: int
    seccomp: bytes | None
    rlimits: dict[int, tuple[int, int]]
    rootfs: Rootfs
    image_env: dict[str, str] = field(factory=dict)


class _Descriptors:
    """The table of descriptors that travels with a plan; owns what it holds until the plan is sent."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def add(self, fd: int) -> int:
        self.fds.append(fd)
        return len(self.fds) - 1

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def make_id(shared: Shared) -> str:
    """Return twelve hex digits, unlike any other container's of this machine for all practical purposes."""
    return secrets.token_hex(6)


def launch(spec: ContainerSpec, shared: Shared, container_id: str, stack: ExitStack) -> Launched:
    """Make the container. On an error everything made so far is undone by the caller's stack."""
    _refuse(spec, shared)
    if spec.name is not None:
        shared.owner.name(spec.name)
        stack.callback(shared.owner.release_name, spec.name)
    image = _rootfs(spec, shared, stack)
    group = shared.groups.container(spec.limits, id=container_id)
    stack.callback(group.close)
    id_map = None
    if spec.userns == "auto":
        id_map = shared.owner.id_map()
        stack.callback(shared.owner.release_id_map, id_map)
    scratch = None
    if spec.upper == "disk":
        scratch = shared.owner.disk_dir()
        stack.callback(shared.owner.discard, scratch)
        if id_map is not None:
            os.chown(scratch, id_map.root_uid, id_map.root_gid)
        os.chmod(scratch, 0o711)
    mask = capabilities.effective(spec.cap_add, spec.cap_drop)
    program = seccomp.compile(spec.seccomp, capabilities=mask, cache=shared.seccomp_cache)
    rlimits = _rlimits(spec, group)

    flags, late = namespaces_of(spec)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        control = Control(ours.detach())
        stack.callback(control.close)
        pid, pidfd = _spawn(flags, shared, theirs.fileno(), group)
    finally:
        ours.close()
        theirs.close()
    stack.callback(_end, pidfd)
    if id_map is not None:
        idmap.write(pid, id_map)

    table = _Descriptors()
    try:
        ops = _plan(spec, shared, group, id_map, image, scratch, mask, late, pid, table)
        reply = control.setup(encode(ops), [*group.join_fds, *table.fds])
    finally:
        table.close()
    if reply.kind != _native.READY:
        raise _setup_error(ops, reply, group)
    return Launched(container_id, control, pid, pidfd, group, id_map, ops, mask, program, rlimits, image)


def _rootfs(spec: ContainerSpec, shared: Shared, stack: ExitStack) -> Rootfs:
    """What the image is made of; a tar is unpacked into a directory that goes on the stack."""
    if spec.image == "host":
        return shared.host_image()
    own_ids = shared.root and spec.userns == "auto"
    if os.path.isfile(spec.image):
        place = shared.owner.disk_dir()
        stack.callback(shared.owner.discard, place)
        unpack(spec.image, f"{place}/rootfs", keep_owners=shared.root)
        return folder_image(f"{place}/rootfs", root=own_ids)
    return folder_image(spec.image, root=own_ids)


def explain_plan(spec: ContainerSpec, shared: Shared) -> list[Op]:
    """Return the ops of a container that is not started."""
    with ExitStack() as stack:
        image = _rootfs(spec, shared, stack)
        id_map = None
        if spec.userns == "auto":
            id_map = shared.owner.id_map()
            stack.callback(shared.owner.release_id_map, id_map)
        mask = capabilities.effective(spec.cap_add, spec.cap_drop)
        _flags, late = namespaces_of(spec)
        return _plan(spec, shared, None, id_map, image, None, mask, late, 0, None)


def _refuse(spec: ContainerSpec, shared: Shared) -> None:
    """What this host can't do is said before anything is made."""
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
    if spec.disk is not None and spec.upper == "disk":
        raise UnsupportedError(
            'disk with upper="disk"',
            "the bound on a directory of a disk needs project quotas, which are not used yet",
            'use upper="memory", where disk= is enforced by the kernel',
        )


def _spawn(flags: int, shared: Shared, control_fd: int, group: Group) -> tuple[int, int]:
    try:
        return _native.spawn(
            flags,
            init_fd=shared.init_fd,
            control_fd=control_fd,
            owner_fd=shared.owner_fd,
            cgroup_fd=-1 if group.into_fd is None else group.into_fd,
        )
    except _native.SpawnError as error:
        number = error.errno or errno.EIO
        raise SetupError(
            number, f"{error.step} of isobox-init", stage="spawn", op=error.step, hint=hint("spawn", number)
        ) from None


def _end(pidfd: int) -> None:
    """Kill PID 1, and with it everything in its PID namespace; wait until the kernel is done."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | WALL)
    except (ProcessLookupError, ChildProcessError):
        pass  # reaped already
    finally:
        os.close(pidfd)


def _rlimits(spec: ContainerSpec, group: Group) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for name, (soft, hard) in spec.rlimits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        most = resource.getrlimit(number)[1]
        if most != resource.RLIM_INFINITY and not 0 <= hard <= most:
            raise UnsupportedError(
                f"rlimits[{name!r}]", f"{hard} is above this process's own hard limit, {most}", f"ulimit -H: {name}"
            )
        found[number] = (soft, hard)
    if "pids" in group.degraded and spec.limits.pids is not None:
        found.setdefault(resource.RLIMIT_NPROC, (spec.limits.pids, spec.limits.pids))
    return found


def _scratch_size(spec: ContainerSpec) -> int:
    if spec.disk is not None:
        return spec.disk
    whole = spec.limits.memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(whole // 2, 1 << 20)


def _layer_fds(image: Rootfs, userns_fd: int, table: _Descriptors, first: int) -> dict[int, Sequence[int]]:
    """Detached copies of the layers, which root may make of any path."""
    found: dict[int, Sequence[int]] = {}
    for number, tree in enumerate(image.trees):
        places = []
        for layer in tree.layers:
            fd = _native.clone_tree(layer.path, recursive=tree.kind == "bind")
            places.append(first + table.add(fd))
            if layer.idmap and userns_fd >= 0:
                _idmap(fd, userns_fd, False, f"the image {layer.path}")
        found[number] = places
    return found


def _idmap(fd: int, userns_fd: int, recursive: bool, what: str) -> None:
    try:
        _native.mount_setattr(fd, 0, recursive=recursive, userns_fd=userns_fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
            raise
        raise UnsupportedError(
            f"owners of {what}",
            "the file system or the kernel has no idmapped mounts, so root inside would own none of its files",
            "put it on ext4, xfs or btrfs (Linux 5.19), mount it read-only, or use userns='host'",
        ) from None


def _place(mount: Mount, shared: Shared, userns_fd: int, table: _Descriptors | None, first: int) -> Placed:
    if mount.kind == "tmpfs":
        return Placed(mount, False, None)
    assert mount.source is not None
    try:
        found = os.stat(mount.source)
    except OSError as error:
        number = error.errno or errno.EIO
        raise SetupError(
            number, f"mounts: source {mount.source}", stage="mounts", op="stat", hint="Give a path that exists on the host"
        ) from None
    tree = None
    if shared.root and table is not None:
        fd = _native.clone_tree(mount.source, recursive=True)
        tree = first + table.add(fd)
        if userns_fd >= 0:
            try:
                _idmap(fd, userns_fd, True, mount.source)
            except UnsupportedError:
                if not mount.read_only:
                    raise
    return Placed(mount, not stat.S_ISDIR(found.st_mode), tree)


def _plan(
    spec: ContainerSpec,
    shared: Shared,
    group: Group | None,
    id_map: IdMap | None,
    image: Rootfs,
    scratch: str | None,
    mask: int,
    late: int,
    pid: int,
    table: _Descriptors | None,
) -> list[Op]:
    """The ops of the container; descriptors go into `table`, behind those of the cgroups."""
    joins = len(group.join_fds) if group is not None else 0
    allowed = os.sched_getaffinity(0)
    cpus = visible_cpus(spec.limits, allowed)
    needs_userns = any(layer.idmap for tree in image.trees for layer in tree.layers) or spec.mounts
    userns_fd = -1
    if id_map is not None and shared.root and needs_userns and table is not None:
        userns_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        layer_fds = _layer_fds(image, userns_fd, table, joins) if shared.root and table is not None else {}
        mounts = [_place(mount, shared, userns_fd, table, joins) for mount in spec.mounts]
    finally:
        if userns_fd >= 0:
            os.close(userns_fd)
    dev_fd = None
    if table is not None:
        owner = (0, 0) if id_map is None else (id_map.root_uid, id_map.root_gid)
        tree = shared.device_tree(spec.devices, owner)
        dev_fd = None if tree is None else joins + table.add(tree)
    masked: list[tuple[str, bool]] = []
    if spec.userns == "host":  # else the user namespace keeps these out of reach
        masked = [(path, os.path.isdir(path)) for path in paths.MASKED if os.path.exists(path)]
    return container_plan(
        Setup(
            stage=shared.stage,
            rootfs=image,
            hostname=spec.hostname or spec.name or "isobox",
            join_fds=range(joins),
            layer_fds=layer_fds,
            dev_fd=dev_fd,
            mounts=mounts,
            views=views(spec.limits, sorted(cpus or allowed)),
            cpus=None if cpus is None else frozenset(cpus),
            bounding=mask,
            scratch_size=_scratch_size(spec),
            disk_scratch=scratch,
            groups_allowed=id_map is None or not id_map.deny_setgroups,
            tty_group=id_map is None or not id_map.single,
            own_userns=id_map is not None,
            own_netns=spec.network != "host",
            own_utsns=spec.namespaces.get("uts") == "private",
            own_ipcns=spec.namespaces.get("ipc") == "private",
            late_namespaces=late,
            read_only=spec.read_only,
            lowerdir_plus=shared.lowerdir_plus,
            devices=spec.devices,
            masked=masked,
            protected=[path for path in paths.READ_ONLY if spec.userns == "host" and os.path.exists(path)],
        )
    )


def _setup_error(ops: Sequence[Op], reply: _native.Reply, group: Group) -> SetupError:
    number = reply.error if 0 < reply.error < 4096 else errno.EPROTO
    if not 0 <= reply.op < len(ops):
        if group.oom_kills():
            return SetupError(errno.ENOMEM, "isobox-init was killed", stage="setup", hint="Raise memory=")
        return SetupError(number, "isobox-init ended", stage="setup", hint=hint("setup", number))
    op = ops[reply.op]
    name = op.name.lower().replace("_", "-")
    return SetupError(number, describe(op), stage="setup", op=name, hint=hint(op.name, number, op))


def exec_error(ops: Sequence[Op], reply: _native.Reply, program: str) -> Exception:
    """What a FAILED record of an exec means. `ops` are those before the execve."""
    number = reply.error if 0 < reply.error < 4096 else errno.EPROTO
    if reply.op == len(ops):
        return ExecError(number, program, stage="exec", op="execve", hint=hint("EXEC", number))
    if 0 <= reply.op < len(ops):
        op = ops[reply.op]
        if op.name == "CHDIR":
            text = os.fsdecode(op.strings[0])
            return ExecError(number, f"workdir {text}", stage="exec", op="chdir", hint=hint("CHDIR", number))
        if op.name == "IDS" and number == errno.EINVAL:
            return SpecError("user", op.args[0], "an id that exists in the container (see idmap)")
        return ExecError(number, describe(op), stage="exec", op=op.name.lower(), hint=hint(op.name, number, op))
    return ExecError(number, program, stage="exec", op="clone3", hint=hint("clone", number))
