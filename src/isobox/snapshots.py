"""Snapshots: what a container has written up to one moment, for any number of containers to begin at.

A snapshot is a copy of the container's upper directories, made by an isobox-init beside the container while
the cgroup freezer holds that still. For a container that begins there it is one more lower directory of its
overlays: nothing is copied again.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Final

from attrs import evolve

from . import _native
from .control import Control
from .errors import SetupError, StateError, UnsupportedError
from .hints import hint
from .host import features
from .interrupts import Undisturbed
from .plan.copy import Copying, copy_plan, held_plan
from .plan.ops import Op, describe, encode
from .rootfs.layers import Begun, Etc, Rootfs
from .shared import Shared
from .shell import Descriptors, idmapped
from .shells import shells
from .sources import Origin
from .spawn import start_init, thaw_at_end
from .spec import ContainerSpec
from .start import Launched

__all__ = ["Snapshot", "Uppers", "hold_still", "take_snapshot"]

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOM: Final = 1 << 20  # for what the two count differently
_MOST_BELOW: Final = 64  # each is a layer of the overlays and a descriptor of the plan


class Snapshot:
    """What a container had written when `Container.snapshot` was called; it never changes.

    Give it to `Container` in place of an image, or to `Container.restore`, as often as you like and many at a
    time. It needs nothing of the container that it was taken of, which may be gone. It is held by this
    process: `close` it, leave its ``with`` block or forget it, and it goes with the last container that
    began at it; it goes with the process too.

    `image`: what that container was made of; `userns`: its user namespace, "auto" or "host", which the
    containers that begin here have too.

    >>> from isobox import Container
    >>> with Container() as c:
    ...     c.write_text("/greeting", "prepared")
    ...     ready = c.snapshot()
    >>> with ready, Container(ready) as c:
    ...     c.read_text("/greeting")
    'prepared'
    """

    def __init__(self, image: str, userns: str, origin: Origin) -> None:
        self.image = image
        self.userns = userns
        self._pid = os.getpid()
        self._stack = ExitStack()
        self._origin = origin
        origin.hold(self._stack)
        self._closed = False

    def __repr__(self) -> str:
        return f"<isobox.Snapshot of {self.image!r}{' closed' * self._closed}>"

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    @property
    def origin(self) -> Origin:
        """What a container begins at; for isobox itself. Raises `StateError`."""
        if self._pid != os.getpid():
            raise StateError("this snapshot belongs to the process that forked; take one here")
        if self._closed:
            raise StateError("the snapshot is closed")
        return self._origin

    def close(self) -> None:
        """Give it back; containers that began at it go on. Idempotent."""
        if self._pid == os.getpid():
            self._closed = True
            self._stack.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Uppers:
    """The upper directories of a container, by the number of their tree: open until `close`."""

    def __init__(self, control: Control, rootfs: Rootfs) -> None:
        self.fds: dict[int, int] = {}
        try:
            for number, tree in enumerate(rootfs.trees):
                if tree.kind == "overlay":
                    self.fds[number] = control.open(".", _DIRECTORY, base=number + 1)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close them; idempotent."""
        while self.fds:
            os.close(self.fds.popitem()[1])


def take_snapshot(launched: Launched, spec: ContainerSpec, shared: Shared, uppers: Uppers | None) -> Snapshot:
    """Take one; `uppers` are those of a container that is frozen already.

    Raises `StateError`, `SetupError`, `UnsupportedError`, `CgroupError`.
    """
    rootfs = launched.rootfs
    if len(rootfs.begun) >= _MOST_BELOW:
        raise StateError(
            f"snapshot: {_MOST_BELOW} snapshots lie on one another here, each taken of a container that "
            "began at the one before; prepare the container anew, without going through each of them"
        )
    with ExitStack() as stack, ExitStack() as kept:
        table = Descriptors()
        stack.callback(table.close)
        still = uppers is not None
        with Undisturbed():
            if uppers is None:
                uppers = Uppers(launched.control, rootfs)
                stack.callback(uppers.close)
            begun, copying = _prepare(launched, spec, shared, uppers, table, kept)
            ops = copy_plan(copying)
            held = copying.held is not None
            control = start_init(shared, kept if held else stack)
            if not still and launched.group.can_freeze:
                hold_still(launched, shared, stack)
        control.copy(encode(ops), table.fds)
        with Undisturbed():
            reply, fd = control.copied()
            if reply.kind != _native.READY:
                raise _error(ops, reply)
            if begun.fd is None:
                os.close(fd)
            else:
                kept.callback(os.close, fd)
                begun = evolve(begun, fd=fd, copy=partial(_copy, control) if held else None)
            return _made(launched, spec, shared, begun, kept)


def _copy(control: Control) -> int:
    """One more mount of the snapshot that this init holds."""
    return control.keep(encode(held_plan()))


def _prepare(
    launched: Launched,
    spec: ContainerSpec,
    shared: Shared,
    uppers: Uppers,
    table: Descriptors,
    kept: ExitStack,
) -> tuple[Begun, Copying]:
    """Where the copy goes, and the plan's places."""
    id_map = launched.id_map
    userns_fd = -1
    userns = None
    if id_map is not None:
        userns_fd = launched.shell.open_userns()
        userns = table.own(userns_fd)
    places = {number: table.lend(fd) for number, fd in uppers.fds.items()}
    root = 0 if id_map is None else id_map.root_uid
    # An ordinary user's containers, and those of a nested root, have the same ids all of them.
    idmap = shared.root and root != 0
    target = held = None
    size = files = 0
    path = _on_disk(launched.rootfs, spec, shared, kept)
    if path is None:
        if spec.upper == "memory":
            bounds = os.fstatvfs(next(iter(uppers.fds.values())))
            size, files = bounds.f_blocks * bounds.f_frsize, bounds.f_files
        else:
            size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
            files = size // 4096
        size += _ROOM
        files *= 2  # a file of several names has one more while it is copied
        ids = None
        if idmap and not features().idmapped_tmpfs:
            assert id_map is not None
            ids, idmap = shared.owner.share_id_map(id_map), False
            kept.callback(shared.owner.release_id_map, ids)
        if not features().detached_copies:
            held = shared.stage
        begun = Begun("the snapshot", -1, idmap, root, ids=ids)
    else:
        fd = _native.clone_tree(path) if idmap else os.open(path, _DIRECTORY)
        target = table.own(fd)
        if idmap:
            idmapped(fd, userns_fd, recursive=False, what=path)
        begun = Begun(path, None, idmap, 0 if idmap else root)
    allowed = id_map is not None and not id_map.deny_setgroups
    most_open = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return begun, Copying(places, userns, allowed, target, size, files, most_open, held)


def _on_disk(rootfs: Rootfs, spec: ContainerSpec, shared: Shared, kept: ExitStack) -> str | None:
    """A new directory for it, until the stack is closed; None where it goes to memory."""
    if spec.upper == "memory":
        return None
    path = shared.owner.disk_dir()
    kept.callback(shared.owner.discard, path)
    if not _lies_in_a_layer(path, rootfs):
        return path
    kept.close()
    if features().tmpfs_xattrs or spec.userns == "host":
        return None
    raise UnsupportedError(
        "snapshots on disk of this image",
        f"the snapshot in {path} would lie in a layer of the image, and an overlay takes no such layers; "
        "in memory nothing can be noted of removed directories before Linux 6.6",
        'use upper="memory", set ISOBOX_DATA_DIR to a place on another file system, or boot a newer kernel',
    )


def _lies_in_a_layer(path: str, rootfs: Rootfs) -> bool:
    real = os.path.realpath(path)
    device = os.stat(real).st_dev
    layers = [layer.path for tree in rootfs.trees if tree.kind == "overlay" for layer in tree.layers]
    return any(real.startswith(f"{at.rstrip('/')}/") and os.stat(at).st_dev == device for at in layers)


def hold_still(launched: Launched, shared: Shared, stack: ExitStack) -> None:
    """Freeze the container until the stack is closed, or this process ends."""
    group = launched.group
    stack.enter_context(launched.control.silence())
    thaw_at_end(group, shared, stack)
    stack.callback(group.thaw)
    group.freeze(briefly=True)


def _etc(begun: Begun) -> Etc | None:
    """The copy's /etc; None where that is no directory any more."""
    path = f"{begun.path}/0/etc" if begun.fd is None else "0/etc"
    try:
        found = os.stat(path, dir_fd=begun.fd, follow_symlinks=False)
    except OSError:
        return None
    return Etc(found.st_mode & 0o1777) if stat.S_ISDIR(found.st_mode) else None


def _error(ops: Sequence[Op], reply: _native.Reply) -> SetupError:
    number = reply.error if 0 < reply.error < 4096 else errno.EPROTO
    if not 0 <= reply.op < len(ops):
        said = "This process's cgroup or the machine has no memory left for it, perhaps"
        return SetupError(number, "what copies the container's files ended", stage="snapshot", hint=said)
    op = ops[reply.op]
    name = op.name.lower().replace("_", "-")
    return SetupError(number, describe(op, 0), stage="snapshot", op=name, hint=hint(op.name, number, op))


def _made(launched: Launched, spec: ContainerSpec, shared: Shared, begun: Begun, kept: ExitStack) -> Snapshot:
    source = launched.origin.source
    rootfs = source.rootfs
    launched.origin.hold(kept)
    # What was made of the skeleton is in the copy; what the container made of it since, too.
    targets = {tree.target for tree in rootfs.trees}
    rootfs = evolve(
        rootfs,
        skeleton=tuple(made for made in rootfs.skeleton if made.path in targets),
        links=(),
        etc=None if rootfs.etc is None else _etc(begun),
        begun=(begun, *rootfs.begun),
    )
    shared.keep(rootfs)
    kept.callback(shells(shared).forget, rootfs)
    return Snapshot(spec.image, spec.userns, Origin(evolve(source, rootfs=rootfs), kept.pop_all()))
