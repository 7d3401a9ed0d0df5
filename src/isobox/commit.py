"""What a container made, taken out of it: as a layer of a new image, or all of it as a tar archive."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import IO

from . import idmap
from .errors import StateError, UnsupportedError
from .images.archives.importing import add_folder
from .images.archives.outfile import replacing
from .images.image import Image
from .images.layers.attributes import Owners
from .images.layers.packing import Packing, Reopen, Write
from .images.layers.unpacking import Place
from .images.layers.upper import Below, UpperPacking
from .images.making import Added, Changes, add_image, add_layer, epoch, named
from .images.store import Store
from .rootfs.folder import NEEDED
from .rootfs.layers import Begun, components
from .rootfs.mountinfo import parse
from .shared import Shared
from .snapshots import Uppers, hold_still
from .start import Launched

__all__ = ["commit", "export"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UPPER = 1  # of the tree at "/": see Control.open


def commit(
    launched: Launched,
    shared: Shared,
    uppers: Uppers | None,
    made: Iterable[str],
    reference: str,
    changes: Changes,
    *,
    author: str,
    message: str,
) -> Image:
    """See `Container.commit`. `uppers` are those of a container that is frozen already.

    `made`: the paths that isobox itself made in the container, beside the skeleton.
    """
    _refuse_host(launched, "commit")
    name = named(reference)
    assert name is not None
    store = Store.default()
    with store.lease():
        packer = _Packer(store, launched, made)
        layers = packer.below()
        layers.append(_upper(packer, launched, shared, uppers))
        image = launched.origin.source.image
        descriptor = add_image(
            store, image, layers, changes, author=author, comment=message, created_by="isobox commit"
        )
        store.tag(name, descriptor)
    return Image.get(str(descriptor.digest), store=store)


def _refuse_host(launched: Launched, what: str) -> None:
    if any(tree.target != "/" for tree in launched.rootfs.trees):
        raise UnsupportedError(
            f'{what} of image="host"',
            "this machine's system is no image, and parts of it are hidden from the container",
            "start the container from an image, a folder or a tar",
        )


def _upper(packer: _Packer, launched: Launched, shared: Shared, uppers: Uppers | None) -> Added:
    with ExitStack() as stack:
        if uppers is not None:
            fd = os.open(".", _DIRECTORY, dir_fd=uppers.fds[0])
            stack.callback(os.close, fd)
            try:
                return packer.upper(fd, _nobody)
            except _InitNeeded:
                why = "some of its files only its own root may read, and it is paused; resume it first"
                raise StateError(f"commit: {why}") from None
        fd = launched.control.open(".", _DIRECTORY, 0, base=_UPPER)
        stack.callback(os.close, fd)
        if launched.group.can_freeze:
            with ExitStack() as still:
                hold_still(launched, shared, still)
                try:
                    return packer.upper(fd, _nobody)
                except _InitNeeded:
                    pass  # it has to run for that
        return packer.upper(fd, _init(launched, _UPPER))


class _Packer:
    """Makes the layers of one container. What is below the topmost doesn't change."""

    def __init__(self, store: Store, launched: Launched, made: Iterable[str]) -> None:
        rootfs = launched.rootfs
        self._store = store
        self._tree = rootfs.trees[0]
        self._begun = rootfs.begun
        self._has_image = launched.origin.source.image is not None
        self._owners = _owners(launched)
        self._opaque = b"trusted.overlay.opaque" if launched.id_map is None else b"user.overlay.opaque"
        skeleton = [directory.path for directory in (*rootfs.skeleton, *NEEDED)]
        self._made = [_place(path) for path in (*made, *skeleton)]
        self._own = [_place(path) for path in launched.own]
        seconds = epoch()
        self._newest = None if seconds is None else seconds * 10**9

    def below(self) -> list[Added]:
        """The layers that the container began with and its image has not, the lowest first."""
        layers: list[Added] = []
        if not self._has_image and self._tree.layers:
            layers.append(add_folder(self._store, self._tree.layers[0].path))
        for number in reversed(range(len(self._begun))):
            begun = self._begun[number]
            owners = self._owners_of(begun)
            fd = os.open("0" if begun.fd is not None else f"{begun.path}/0", _DIRECTORY, dir_fd=begun.fd)
            try:
                layers.append(self._layer(fd, owners, number + 1, None))
            finally:
                os.close(fd)
        return layers

    def upper(self, fd: int, reopen: Reopen) -> Added:
        """The topmost layer."""
        return self._layer(fd, self._owners, 0, reopen)

    def _layer(self, fd: int, owners: Owners, first: int, reopen: Reopen | None) -> Added:
        """`first` of `begun` is the topmost that lies below."""
        below = [(_place_of(begun), self._owners_of(begun)) for begun in self._begun[first:]]
        # Where the host's ids are shown as the same of the container, or are the same.
        as_on_disk = Owners() if any(layer.idmap for layer in self._tree.layers) else self._owners
        below += [(layer.path, as_on_disk) for layer in self._tree.layers]

        def fill(write: Write) -> None:
            packing = UpperPacking(
                write,
                owners,
                Below(below),
                opaque=self._opaque,
                made=self._made,
                own=self._own,
                root=(self._tree.mode, 0, 0),
                reopen=reopen,
                newest=self._newest,
            )
            packing.run(fd)

        return add_layer(self._store, fill)

    def _owners_of(self, begun: Begun) -> Owners:
        if not begun.idmap:
            return self._owners
        lines = ((0, begun.root, idmap.COUNT),)
        return Owners(lines, lines)


def _place_of(begun: Begun) -> str:
    return f"{begun.path}/0" if begun.fd is None else f"/proc/self/fd/{begun.fd}/0"


def _owners(launched: Launched) -> Owners:
    if launched.id_map is None:
        return Owners()
    return Owners(launched.id_map.uid_lines, launched.id_map.gid_lines)


class _InitNeeded(Exception):
    """Only the container's init may read a file, and it stands still."""


def _nobody(path: bytes, flags: int) -> int:
    raise _InitNeeded


def _init(launched: Launched, base: int) -> Reopen:
    def reopen(path: bytes, flags: int) -> int:
        return launched.control.open(os.fsdecode(path), flags, 0, base=base)

    return reopen


def _place(path: str) -> Place:
    return tuple(os.fsencode(name) for name in components(path))


def export(launched: Launched, target: str | os.PathLike[str] | IO[bytes]) -> None:
    """See `Container.export`."""
    _refuse_host(launched, "export")
    with open(f"/proc/{launched.pid}/mountinfo", "rb") as file:
        mounts = {_place(mount.path) for mount in parse(file.read())} - {()}
    emptied = {_place(path) for path in launched.volumes}
    mounts |= {_place(path) for path in launched.own} - emptied
    mounts -= emptied
    with ExitStack() as stack:
        fd = launched.control.open("/", _DIRECTORY, 0)
        stack.callback(os.close, fd)
        if isinstance(target, str | os.PathLike):
            target = stack.enter_context(replacing(os.fspath(target)))
        reopen = _init(launched, 0)
        packing = Packing(
            _whole(target), _owners(launched), reopen=reopen, mounts=mounts, emptied=emptied, layer=False
        )
        packing.run(fd)


def _whole(file: IO[bytes]) -> Write:
    """Raw files may take a part."""

    def write(data: bytes | memoryview) -> None:
        while (count := file.write(data)) is not None and count < len(data):
            data = memoryview(data)[count:]

    return write
