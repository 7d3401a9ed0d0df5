"""Starting one container: what was asked becomes a running isobox-init, or nothing at all.

Everything that is acquired goes on the caller's ExitStack in the line that makes it; the stack is what
`Container.remove` unwinds later, and what an error unwinds at once.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Sequence
from contextlib import ExitStack

from attrs import define, evolve

from . import _native
from .cgroups import Device, Group
from .control import Control
from .errors import UnsupportedError
from .idmap import IdMap
from .interrupts import Undisturbed
from .mounts import bound_mounts, mounted_volumes, named_mounts, placed_mounts
from .pidfds import Pidfd
from .plan.devices import DEVICES, TERMINALS
from .plan.ops import Op, encode
from .plan.parts import Placed, Setup
from .plan.setup import setup_plan
from .refusals import TooDeep, refuse, refused, setup_error
from .rootfs.etc import ETC, NAMED, etc_files, etc_size
from .rootfs.layers import Rootfs
from .rootfs.views import views, visible_cpus
from .security import capabilities, landlock, seccomp
from .shared import Shared
from .shell import Descriptors, Shell, Wanted, shell_plan
from .shells import shells
from .sources import Defaults, Origin, Source, open_origin
from .spawn import late_namespaces
from .spec import ContainerSpec, Mount


@define
class Launched:
    """A container whose PID 1 runs and has carried out its plan."""

    id: str
    shell: Shell
    group: Group
    ops: list[Op]
    capabilities: int
    filters: tuple[bytes, ...]
    landlock: bool
    rlimits: dict[int, tuple[int, int]]
    origin: Origin
    volumes: tuple[str, ...]
    """Where directories of its own are mounted, which are no part of its root file system."""

    @property
    def own(self) -> tuple[str, ...]:
        """What is the container's own, whatever its image has there, and no change of it."""
        return (*(ETC if self.rootfs.etc is not None else ()), *self.volumes)

    @property
    def rootfs(self) -> Rootfs:
        """What its root file system is made of."""
        return self.origin.source.rootfs

    @property
    def defaults(self) -> Defaults:
        """What its image says for its programs."""
        return self.origin.source.defaults

    @property
    def control(self) -> Control:
        """The socket to its init."""
        return self.shell.control

    @property
    def pid(self) -> int:
        """Its init, as this process sees it."""
        return self.shell.pid

    @property
    def pidfd(self) -> Pidfd:
        """Its init; readable once it has ended."""
        return self.shell.pidfd

    @property
    def id_map(self) -> IdMap | None:
        """The ids of its user namespace; None where it has none of its own."""
        return self.shell.id_map


def make_id() -> str:
    """Return twelve hex digits, unlike any other container's of this machine for all practical purposes."""
    return os.urandom(6).hex()


def claim_name(spec: ContainerSpec, shared: Shared, stack: ExitStack) -> None:
    """Take the container's name, if it has one, until the stack is closed. Raises `SpecError`."""
    if spec.name is not None:
        with Undisturbed():
            shared.owner.name(spec.name)
            stack.callback(shared.owner.release_name, spec.name)


def launch(
    spec: ContainerSpec, shared: Shared, container_id: str, stack: ExitStack, origin: Origin | None = None
) -> Launched:
    """Make the container, of its image or of `origin`.

    On an error everything made so far is undone by the caller's stack, its own.
    """
    refuse(spec, shared)
    # A process can only be born in groups that its parent may write to all the way from its own: so before
    # the shell is made. And not in a block that keeps Ctrl-C waiting.
    shared.groups.settle()
    try:
        return _launch(spec, shared, container_id, stack, origin)
    except TooDeep:
        # Only trying tells how many overlays lie on one another: then those are shown read-only.
        if spec.image != "host" or origin is not None or not shared.stack_no_more():
            raise
    stack.close()
    return _launch(spec, shared, container_id, stack, None)


def _launch(
    spec: ContainerSpec, shared: Shared, container_id: str, stack: ExitStack, origin: Origin | None
) -> Launched:
    if origin is None:
        origin = open_origin(spec, shared)
    origin.hold(stack)
    rootfs = origin.source.rootfs
    if any(mount.kind == "volume" for mount in spec.mounts):
        spec = evolve(spec, mounts=mounted_volumes(spec, rootfs, stack))
    mask = capabilities.effective(spec.cap_add, spec.cap_drop)
    hostname = _hostname(spec, container_id)
    table = Descriptors()
    stack.callback(table.close)
    with Undisturbed():
        wanted = _wanted(spec, shared, origin.source, mask, hostname, stack)
        if rootfs.begun:
            wanted = evolve(wanted, begun=origin)
        shell = shells(shared).take(wanted)
        stack.callback(shell.close)
        # From here on the shell prepares its root file system by itself; meanwhile, on this side:
        group = shared.groups.container(
            spec.limits, id=container_id, bundle=shell.bundle, devices=_held_to(spec, mask, shared)
        )
        stack.callback(group.close)
        if not group.present and shell.id_map is not None:
            landlock.refuse_proc(spec.landlock)
        if group.unified and shell.id_map is not None:
            group.let_start(shell.id_map.root_uid)
        program = seccomp.compile(spec.seccomp, capabilities=mask, cache=shared.seccomp_cache)
        rlimits = _rlimits(spec, group)
        if spec.mounts:
            shell.unmount_at_end()
        table.fds.extend(group.join_fds)
        mounts = bound_mounts(spec, shell, table) if shared.root else []
        own = _own(spec, shared, origin.source, group.join_fds, group.unified, mounts, hostname)
        ops = setup_plan(own)
    try:
        reply = shell.control.setup(encode(ops), table.fds)
    finally:
        table.close()
    shared.worker.submit(group.joined)  # six descriptors: nothing to wait for
    if reply.kind != _native.READY:
        ops = shell.ops if reply.status == _native.PREPARE else ops
        raise refused(spec, rootfs, ops, reply) or setup_error(ops, reply, group)
    return Launched(
        container_id,
        shell,
        group,
        [*shell.ops, *ops],
        mask,
        _filters(own.landlock, program),
        own.landlock is not None,
        rlimits,
        origin,
        wanted.volumes,
    )


def _filters(rules: landlock.Ruleset | None, program: bytes | None) -> tuple[bytes, ...]:
    """The container's own last: it may forbid to install another."""
    ports = (landlock.port_filter(os.uname().machine),) if rules is not None and rules.net else ()
    return ports if program is None else (*ports, program)


def _hostname(spec: ContainerSpec, container_id: str) -> str:
    own = spec.hostname or spec.name or container_id
    return own if spec.namespaces["uts"] == "private" else os.uname().nodename


def _wanted(
    spec: ContainerSpec, shared: Shared, origin: Source, mask: int, hostname: str, stack: ExitStack
) -> Wanted:
    """Everything of the container that its shell can prepare."""
    disk = None
    if spec.upper == "disk":
        disk = shared.owner.disk_dir()
        stack.callback(shared.owner.discard, disk)
    allowed = os.sched_getaffinity(0)
    chosen = visible_cpus(spec.limits, allowed)
    named = named_mounts(spec.mounts)
    # root mounts descriptors later; what an ordinary user mounts has to be in sight still.
    placed = () if shared.root else placed_mounts(named)
    rootfs = origin.rootfs
    taken = {mount.target for mount in named}
    asked = (*origin.defaults.volumes, *(mount.target for mount in spec.mounts if mount not in named))
    files = () if rootfs.etc is None else etc_files(hostname, spec.network)
    size = _scratch_size(spec) + etc_size(files)
    if not placed:
        files = tuple((path, b"" if path in NAMED else content) for path, content in files)
    return Wanted(
        rootfs=rootfs,
        scratch_size=size,
        disk=disk,
        devices=spec.devices,
        own_userns=spec.userns == "auto",
        own_netns=spec.network != "host",
        own_utsns=spec.namespaces["uts"] == "private",
        own_ipcns=spec.namespaces["ipc"] == "private",
        views=tuple(views(spec.limits, sorted(chosen or allowed)).items()),
        cpus=None if chosen is None else frozenset(chosen),
        bounding=mask,
        mounts=placed,
        files=files,
        volumes=tuple(path for path in dict.fromkeys(asked) if path not in taken),
    )


def _own(
    spec: ContainerSpec,
    shared: Shared,
    origin: Source,
    join_fds: Sequence[int],
    unified: bool,
    mounts: Sequence[Placed],
    hostname: str,
) -> Setup:
    """Gather the container's own part."""
    rootfs = origin.rootfs
    # Where its mounts are made already, so are these: the next write might go to a file of the user's.
    there = rootfs.etc is None or (named_mounts(spec.mounts) and not shared.root)
    files = [] if there else [file for file in etc_files(hostname, spec.network) if file[0] in NAMED]
    return Setup(
        hostname=hostname if spec.namespaces["uts"] == "private" else None,
        join_fds=range(len(join_fds)),
        late_namespaces=late_namespaces(spec.namespaces, unified),
        mounts=mounts,
        read_only=_in_sight(rootfs, spec.mounts) if spec.read_only else (),
        scoped=landlock.container_scope(spec.landlock, spec.network, shared.landlock_abi),
        landlock=landlock.ruleset(spec.landlock, shared.landlock_abi),
        files=files,
        workdir=_absent(spec, origin.defaults),
    )


def _absent(spec: ContainerSpec, defaults: Defaults) -> str | None:
    """The working directory, where it may have to be made."""
    if spec.workdir is None:
        return defaults.workdir if defaults.make_workdir else None
    return spec.workdir if spec.image != "host" else None


def _in_sight(rootfs: Rootfs, mounts: Sequence[Mount]) -> list[str]:
    """Where the trees are that no mount of the user's covers: what is found there is the tree itself."""
    covered = tuple(f"{mount.target}/" for mount in mounts)
    targets = (tree.target for tree in rootfs.trees if tree.kind == "overlay")
    return [target for target in targets if not f"{target}/".startswith(covered)]


def explain_plan(spec: ContainerSpec, shared: Shared, origin: Origin | None = None) -> list[Op]:
    """Return the ops of a container that is not started."""
    with ExitStack() as stack:
        origin = origin or open_origin(spec, shared)
        origin.hold(stack)
        source = origin.source
        mask = capabilities.effective(spec.cap_add, spec.cap_drop)
        if any(mount.kind == "volume" for mount in spec.mounts):
            from .volumes import located

            spec = evolve(spec, mounts=located(spec.mounts))
        hostname = _hostname(spec, "0" * 12)
        wanted = _wanted(spec, shared, source, mask, hostname, stack)
        mounts = placed_mounts(named_mounts(spec.mounts)) if shared.root else ()
        own = _own(spec, shared, source, (), shared.groups.unified, mounts, hostname)
        return [*shell_plan(wanted, shared), *setup_plan(own)]


def _held_to(spec: ContainerSpec, mask: int, shared: Shared) -> frozenset[Device] | None:
    """What its cgroup is to hold a container of root to; None where the kernel does so anyway.

    In a user namespace nobody makes device nodes that work (mknod(2), and SB_I_NODEV in fs/super.c). But
    one who may mount there could open those that lie in a folder of the host's that is bound in.
    """
    may_mount = mask >> capabilities.BITS["CAP_SYS_ADMIN"] & 1
    if not shared.makes_devices or (spec.userns == "auto" and not may_mount):
        return None
    usual = {Device("c", *numbers) for numbers in (*DEVICES.values(), *TERMINALS)}
    return frozenset(usual.union(*map(_device, spec.devices)))


def _device(path: str) -> tuple[Device, ...]:
    found = os.stat(path)
    numbers = os.major(found.st_rdev), os.minor(found.st_rdev)
    if stat.S_ISCHR(found.st_mode):
        return (Device("c", *numbers),)
    return (Device("b", *numbers),) if stat.S_ISBLK(found.st_mode) else ()


def _rlimits(spec: ContainerSpec, group: Group) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for name, (soft, hard) in spec.rlimits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        most = resource.getrlimit(number)[1]
        if most != resource.RLIM_INFINITY and not 0 <= hard <= most:
            raise UnsupportedError(
                f"rlimits[{name!r}]",
                f"{hard} is above this process's own hard limit, {most}",
                f"ulimit -H: {name}",
            )
        found[number] = (soft, hard)
    # A core_pattern that is a pipe starts a program of the host's, as its root, whatever the limit but 1: see
    # vfs_coredump in fs/coredump.c. And no file is dumped that is smaller than a page.
    if resource.getrlimit(resource.RLIMIT_CORE)[1]:
        found.setdefault(resource.RLIMIT_CORE, (1, 1))
    if "pids" in group.degraded and spec.limits.pids is not None:
        found.setdefault(resource.RLIMIT_NPROC, (spec.limits.pids, spec.limits.pids))
    return found


def _scratch_size(spec: ContainerSpec) -> int:
    if spec.disk is not None:
        return spec.disk
    whole = spec.limits.memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(whole // 2, 1 << 20)
