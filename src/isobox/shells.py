"""Shells: isobox-init in fresh namespaces with its root file system made, waiting for a container.

A shell names no container: it depends on the kind of root and of namespaces only. So a program that
starts containers of one kind now and again finds one ready: a thread makes the next while the last
runs. It keeps still until `QUIET_SECONDS` after the last start, since two starts at the same time hinder
each other in the kernel. The first two of a kind make their own; a shell that nobody takes goes after
`IDLE_SECONDS`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Final, Protocol

from attrs import define, evolve, field, frozen

from . import _native, idmap
from .cgroups import Bundle, Group
from .control import Control
from .errors import CgroupError, IsoboxError, SetupError, UnsupportedError
from .hints import hint, unsupported
from .host import features
from .idmap import IdMap
from .pidfds import Pidfd
from .plan.ops import Op
from .plan.setup import Placed, Shape, prepare_plan
from .rootfs.layers import Rootfs
from .security.paths import covers
from .shared import Shared
from .worker import Worker, take_no_signals

# include/uapi/linux/sched.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
NS_GET_USERNS: Final = 0xB701  # include/uapi/linux/nsfs.h

_NO_BIRTHS: Final = (errno.ENOSYS, errno.EPERM, errno.E2BIG, errno.EINVAL)
"""What clone3 says to CLONE_INTO_CGROUP where it lacks that, or is kept from us: see clone(2)."""

IDLE_SECONDS: Final = 1.0
QUIET_SECONDS: Final = 0.005


def late_namespaces(namespaces: Mapping[str, str], unified: bool) -> int:
    """The namespaces that isobox-init unshares once it is in its cgroup, whose root they show.

    On v2 it stays in the host's: a process can't be born in a group that its parent's namespace doesn't
    show, and init's own group has none below it. There each program unshares one.
    """
    late = CLONE_NEWCGROUP if namespaces["cgroup"] == "private" and not unified else 0
    return late | (CLONE_NEWTIME if namespaces["time"] == "private" else 0)


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
            "put it on ext4, xfs or btrfs (Linux 5.19), mount it read-only, or use userns='host'",
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
        if not begun.idmap or id_map is None:
            places.append(None if begun.fd is None else table.lend(begun.fd))
            continue
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
            id_map = shared.owner.id_map()
            stack.callback(shared.owner.release_id_map, id_map)
        if wanted.disk is not None:
            if id_map is not None and shared.root:
                os.chown(wanted.disk, id_map.root_uid, id_map.root_gid)
            os.chmod(wanted.disk, 0o711)
        bundle = shared.groups.birthplace()
        if bundle is not None:
            stack.callback(bundle.drop)
        control, pid, pidfd = _start(wanted.flags, shared, stack, bundle)
        if id_map is not None:
            _map(pid, id_map)
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


def start_init(shared: Shared, stack: ExitStack) -> Control:
    """Start isobox-init in no new namespace, for what this process can't do itself. The stack ends it."""
    return _start(0, shared, stack)[0]


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


def _start(
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


def _map(pid: int, id_map: IdMap) -> None:
    try:
        idmap.write(pid, id_map)
    except SetupError as error:
        said = str(error).removesuffix(f". {error.hint}")
        refused = unsupported(os.path.basename(error.op), error.errno or errno.EIO, said)
        if refused is None:
            raise
        raise refused from error


_pool: Shells | None = None


def shells(shared: Shared) -> Shells:
    """Those of this process."""
    global _pool
    found = _pool
    if found is None or found.shared is not shared:
        with shared.lock:
            found = _pool
            if found is None or found.shared is not shared:
                found = _pool = Shells(shared)
                shared.before_close.append(found.close)
    return found


class Shells:
    """Shells that wait: `take` gives one, ready where one of its kind is."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._ready: dict[Wanted, deque[Shell]] = {}
        self._starts: dict[Wanted, int] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._order: deque[Wanted] = deque()
        self._taken = 0.0
        self._asleep = False
        self._closed = False

    def take(self, wanted: Wanted) -> Shell:
        """Return a shell of this kind, the caller's. Raises `SetupError`."""
        one_off = wanted.disk is not None or wanted.devices or wanted.mounts
        if one_off or not self.shared.lasts(wanted.rootfs):
            return make_shell(wanted, self.shared)
        with self._changed:
            ready = self._ready.get(wanted)
            shell = ready.popleft() if ready else None
            count = self._starts[wanted] = self._starts.pop(wanted, 0) + 1
            if len(self._starts) > 16:
                del self._starts[next(iter(self._starts))]
            self._taken = time.monotonic()
            if count > 1 and not ready and wanted not in self._order and not self._closed:
                self._order.append(wanted)
                self._wake()
        return shell or make_shell(wanted, self.shared)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="isobox-shells", daemon=True)
            self._thread.start()
        elif self._asleep:
            self._changed.notify()

    def _work(self) -> None:
        take_no_signals()
        while True:
            with self._changed:
                if not self._await_order() or self._closed:
                    return
                wanted = self._order.popleft() if self._order else None
                old = self._outdated()
            for shell in old:
                with suppress(IsoboxError, OSError):
                    shell.close()
            if wanted is not None:
                self._make(wanted)

    def _await_order(self) -> bool:
        """Wait for something to do, then for quiet; False where the thread isn't needed any more."""
        if not self._order and not self._closed:
            self._asleep = True
            self._changed.wait(IDLE_SECONDS)
            self._asleep = False
            if not self._order and not any(self._ready.values()):
                self._thread = None
                return False
        while self._order and not self._closed:
            left = self._taken + QUIET_SECONDS - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)
        return True

    def _make(self, wanted: Wanted) -> None:
        with ExitStack() as held:
            try:
                if wanted.begun is not None:
                    wanted.begun.hold(held)
                shell = make_shell(wanted, self.shared)
            except (IsoboxError, OSError):
                return  # the next start's own attempt will say it
            with self._changed:
                ready = self._ready.setdefault(wanted, deque())
                if not self._closed and not ready:
                    ready.append(shell)
                    return
            shell.close()

    def forget(self, rootfs: Rootfs) -> None:
        """End those that wait with this root file system, which is about to go."""
        with self._changed:
            gone = [wanted for wanted in self._ready if wanted.rootfs is rootfs]
            shells = [shell for wanted in gone for shell in self._ready.pop(wanted)]
            for wanted in [wanted for wanted in self._starts if wanted.rootfs is rootfs]:
                del self._starts[wanted]
        for shell in shells:
            with suppress(IsoboxError, OSError):
                shell.close()

    def _outdated(self) -> list[Shell]:
        before = time.monotonic() - IDLE_SECONDS
        found = []
        for wanted in list(self._ready):
            ready = self._ready.get(wanted)  # `forget` may come from the garbage collector
            while ready and ready[0].born < before:
                found.append(ready.popleft())
            if not ready:
                self._ready.pop(wanted, None)
        return found

    def close(self) -> None:
        """End all that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            shells = [shell for ready in self._ready.values() for shell in ready]
            self._ready.clear()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
        for shell in shells:
            with suppress(IsoboxError, OSError):
                shell.close()
