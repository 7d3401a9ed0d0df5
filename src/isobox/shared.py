"""What all containers of this process share: made at the first start, gone with the process.

isobox-init in memory, this process's pidfd, its place in the state and in the cgroups, the tree of
device nodes, the description of the host image. After a fork the child makes its own.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Final, TypeVar

from . import _native, cgroups, runtime
from .hints import proc_refused, unsupported
from .host import features
from .interrupts import Undisturbed
from .plan.devices import DEVICE_LINKS, DEVICES
from .plan.ops import Op, encode
from .plan.parts import Shape
from .plan.setup import prepare_plan
from .rootfs.folder import folder_image
from .rootfs.host_image import host_image, python_paths
from .rootfs.layers import Rootfs
from .worker import Job, Worker

IMAGES_SECONDS: Final = 5.0
"""After so long it is looked for the first time whether an image is still used."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Bounded(dict[Key, Value]):
    """A cache of at most `most` entries: when full it begins anew."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        if len(self) >= self._most:
            self.clear()
        super().__setitem__(key, value)


_current: Shared | None = None
_lock = threading.Lock()


def shared() -> Shared:
    """The one of this process."""
    global _current
    found = _current
    if found is None:
        with Undisturbed(), _lock:
            found = _current
            if found is None:
                found = _current = Shared()
    return found


def _forget() -> None:
    """In the child of a fork: its parent's things are not its own."""
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        _current.abandon()
        _current = None


os.register_at_fork(after_in_child=_forget)


class Shared:
    """See the module."""

    def __init__(self) -> None:
        facts = features()
        facts.need_calls()  # before anything is made
        if refused := proc_refused():
            raise refused
        self.root = facts.is_root
        # Device nodes are the machine's root's to make, not those of root in a user namespace.
        self.makes_devices = facts.is_root and not facts.in_user_namespace
        self.lowerdir_plus = facts.since("lowerdir_plus")
        # Here, and not at each start: finding them out takes a while.
        self.no_userns_overlays = facts.why("overlay_in_userns")
        self.no_host_folders = facts.why("host_folders")
        self.sysctls = _halves()
        self.landlock_abi = facts.landlock_abi
        self.owner = runtime.current()
        self.groups = cgroups.Groups(cgroups.discover(), self.owner.id)
        self.owner.collect_once(self.groups.collect)
        self.stage = self.owner.directory("stage")
        self.owner_fd = os.pidfd_open(os.getpid())
        try:
            # Unreadable for root's containers: with its owner unmapped inside, their PID 1 can't be traced
            # (would_dump in fs/exec.c). An ordinary user owns the program and has to reach /proc/PID.
            self.init_fd = _native.init_memfd(0o100 if self.root else 0o500)
        except BaseException as error:
            os.close(self.owner_fd)
            refused = unsupported("memfd", error.errno or 0) if isinstance(error, OSError) else None
            if refused is not None:
                raise refused from error
            raise
        self.seccomp_cache = f"{self.owner.state}/seccomp"
        self._device_fd: int | None = None
        self._clonable = True
        self.host_rootfs: Rootfs | None = None
        self._stacks = True
        self._host_paths: tuple[str, ...] = ()
        self.lock = threading.Lock()
        self._folders = Bounded[tuple[object, ...], Rootfs](8)
        self._lasting = Bounded[int, Rootfs](16)
        self._keeping = False
        self._plans = Bounded[Hashable, tuple[Shape, list[Op], bytes]](16)
        self.worker = Worker("isobox-later")
        self.before_close: list[Callable[[], object]] = []
        atexit.register(self.close)

    def abandon(self) -> None:
        """In a forked child: drop the descriptors, touch nothing of the parent's."""
        atexit.unregister(self.close)
        for fd in (self.owner_fd, self.init_fd, self._device_fd):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def close(self) -> None:
        """Remove the cgroups, at exit; the owner closes itself. Idempotent."""
        global _current
        if _current is self:
            _current = None
        atexit.unregister(self.close)
        for close in self.before_close:
            close()
        self.worker.close(5.0)
        with contextlib.suppress(OSError):
            self.owner.trim()
        with self.lock:
            fds, self.owner_fd, self.init_fd, self._device_fd = (
                (self.owner_fd, self.init_fd, self._device_fd), -1, -1, None
            )  # fmt: skip
        try:
            self.groups.close()
        finally:
            for fd in fds:
                if fd is not None and fd >= 0:
                    os.close(fd)

    def host_image(self) -> Rootfs:
        """Describe the host image; anew when sys.path has changed."""
        paths = python_paths()
        with self.lock:
            if self.host_rootfs is None or paths != self._host_paths:
                with Undisturbed():  # it opens each mount for a moment
                    self.host_rootfs = host_image(
                        root=self.root,
                        whole=self.root and self._stacks and _clones_root(),
                        stacks=self._stacks,
                        state_dir=self.owner.state,
                        python_paths=paths,
                    )
                self._host_paths = paths
            return self.host_rootfs

    def stack_no_more(self) -> bool:
        """Have no overlay over an overlay in the host image from now on; False if it is so already."""
        with self.lock:
            changed, self._stacks, self.host_rootfs = self._stacks, False, None
        return changed

    def folder_image(self, path: str, own_ids: bool) -> Rootfs:
        """Describe a folder as an image; the same value for the same folder."""
        found = os.stat(path) if os.path.isdir(path) else None
        if found is None or os.path.ismount(path):  # what is mounted there must not be held longer
            return folder_image(path, root=own_ids)
        key = (path, own_ids, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_mode)
        rootfs = self._folders.get(key)
        if rootfs is None:
            rootfs = self._folders[key] = folder_image(path, root=own_ids)
        return rootfs

    def keep(self, rootfs: Rootfs) -> None:
        """Note that later containers may be made of this very value."""
        self._lasting[id(rootfs)] = rootfs

    def keep_images(self, expire: Job, forget: Callable[[], object]) -> None:
        """Have images that are kept ready let go of: by `expire` now and again, by `forget` at exit."""
        if self._keeping:
            return
        self._keeping = True
        if forget not in self.before_close:
            self.before_close.append(forget)

        def later() -> float | None:
            self._keeping = False  # first: who comes in between has it done again
            seconds = expire()
            if seconds is not None:
                self._keeping = True
            return seconds

        self.worker.submit(later, IMAGES_SECONDS)

    def lasts(self, rootfs: Rootfs) -> bool:
        """Whether a later container may be made of this very value."""
        return (
            rootfs is self.host_rootfs
            or self._lasting.get(id(rootfs)) is rootfs
            or any(rootfs is kept for kept in list(self._folders.values()))
        )

    def prepared(self, kind: Hashable, shape: Shape) -> tuple[list[Op], bytes]:
        """Return the plan of a shell and its bytes; made once for all shells of a kind."""
        found = self._plans.get(kind)
        if found is not None and found[0] == shape:
            return found[1], found[2]
        ops = prepare_plan(shape)
        plan = encode(ops)
        self._plans[kind] = (shape, ops, plan)
        return ops, plan

    def device_tree(self, extra: Sequence[str], owner: tuple[int, int]) -> int | None:
        """Return a detached tmpfs of device nodes, the caller's; None for an ordinary user."""
        if not self.makes_devices:
            return None
        if extra:
            return _make_device_tree(extra, owner)
        if not self._clonable:
            return _make_device_tree((), (0, 0))
        with self.lock:
            if self._device_fd is None:
                self._device_fd = _make_device_tree((), (0, 0))
        try:
            return _native.clone_tree("", dir_fd=self._device_fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._clonable = False  # before Linux 6.15: no copy of a detached tree
            return _make_device_tree((), (0, 0))


def _halves() -> list[tuple[str, bytes]]:
    """What a container gets of that which all user namespaces of one user share: half of it.

    They count for the user who made the namespace too (inc_ucount in kernel/ucount.c), with a bound of 128
    for instances: one container would take them all, from the host and from the others.
    """
    found = []
    for name in ("max_inotify_instances", "max_inotify_watches"):
        path = f"/proc/sys/user/{name}"
        with contextlib.suppress(OSError), open(path, "rb") as file:  # not there without CONFIG_INOTIFY_USER
            found.append((path, b"%d" % max(1, int(file.read()) // 2)))
    return found


def _clones_root() -> bool:
    """Whether the kernel gives "/" without the mounts below it: not where another user made those."""
    try:
        os.close(_native.clone_tree("/"))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _make_device_tree(extra: Sequence[str], owner: tuple[int, int]) -> int:
    """A tmpfs with the nodes, links and mount points of /dev, which the plan makes read-only."""
    fd = _native.new_tmpfs(65536, 0o755)
    try:
        for name, (major, minor) in DEVICES.items():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=fd)
            os.chmod(name, 0o666, dir_fd=fd)  # whatever the umask, which belongs to all threads
        for name, target in DEVICE_LINKS.items():
            os.symlink(target, name, dir_fd=fd)
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(name, 0o755, dir_fd=fd)
        for path in extra:
            _copy_device(fd, path, owner)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _copy_device(fd: int, path: str, owner: tuple[int, int]) -> None:
    found = os.stat(path)
    *parents, name = [part for part in path.removeprefix("/dev/").split("/") if part]
    place = os.dup(fd)
    try:
        for parent in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, 0o755, dir_fd=place)
            below = os.open(parent, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            os.close(place)
            place = below
        os.mknod(name, stat.S_IFMT(found.st_mode) | 0o660, found.st_rdev, dir_fd=place)
        os.chown(name, *owner, dir_fd=place)
    finally:
        os.close(place)
