"""What a container's root file system is made of: this machine, a folder, a tar, or an image of the store.

What images need is imported by the first container of one: most programs use the host image alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final

from attrs import Factory, define, field, frozen

from . import forks
from .checks import is_path, target
from .errors import ImageError, SpecError, StateError, shown
from .idmap import IdMap
from .interrupts import Undisturbed
from .rootfs.etc import etc_of
from .rootfs.folder import NEEDED, folder_image
from .rootfs.layers import Layer, Rootfs, Tree
from .shared import Shared
from .spec import ContainerSpec

if TYPE_CHECKING:
    from .images.layers.mapped import Mapped
    from .images.layout.choose import Chosen
    from .images.local import LocalImage

_MOST_VOLUMES: Final = 64
_DEEPEST_VOLUME: Final = 32


@frozen
class Defaults:
    """What an image says for its programs where the caller says nothing (OCI image-spec, config.md).

    `env` stands over the usual variables; `workdir` and `user` are as `Container` takes them;
    `stop_signal` is what `Container.stop` sends first. `make_workdir`: the image doesn't have it.
    `volumes` are the directories that each container has a place of its own for.
    """

    env: Mapping[str, str] = Factory(dict)
    workdir: str | None = None
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    labels: Mapping[str, str] = Factory(dict)
    make_workdir: bool = False
    volumes: tuple[str, ...] = ()


@frozen
class Source:
    """A root file system as data, and what its image says of programs.

    `image`: the documents of an image of the store, None for a folder and for this machine.
    """

    rootfs: Rootfs
    defaults: Defaults = Defaults()
    image: Chosen | None = None


@define(eq=False)
class Origin:
    """What containers begin at, and all that it takes: it is there until the last who holds it lets go."""

    source: Source
    _stack: ExitStack
    _holders: int = 0
    _pid: int = field(factory=os.getpid)
    _lock: threading.RLock = field(factory=threading.RLock)  # RLock: __del__ of a snapshot may let go

    def hold(self, stack: ExitStack) -> None:
        """Keep it until the stack is closed. Raises `StateError` once it is gone."""
        with Undisturbed(), self._lock:
            if self._holders < 0:
                raise StateError("the snapshot is closed")
            self._holders += 1
            stack.callback(self._let_go)

    def _let_go(self) -> None:
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
            self._holders -= last
        if last:
            self._close()

    def _close(self) -> None:
        if self._pid == os.getpid():  # else it is that of the process that forked
            self._stack.close()

    def __del__(self) -> None:  # an error or Ctrl-C on its way to whoever was to hold it
        self._close()


class Closed:
    """What is closed to this ordinary user in the layers of a container, though they are its own.

    There the container's other users are ids of ``/etc/subuid``. Only a process with the container's ids can
    look: it is started when something is asked, and ends with the ``with`` block.
    """

    def __init__(self, id_map: IdMap | None) -> None:
        self._id_map = id_map if id_map is not None and id_map.needs_newuidmap else None
        self._mapped: Mapped | None = None

    def look(self, path: str) -> tuple[os.stat_result, bool, list[str]] | None:
        """As `isobox.images.layers.mapped.Mapped.look` does it; None where there are no such ids."""
        if self._id_map is None:
            return None
        if self._mapped is None:
            with forks.whole:
                from .images.layers.mapped import Mapped
            self._mapped = Mapped(self._id_map)
        return self._mapped.look(path)

    def __enter__(self) -> Closed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mapped is not None:
            self._mapped.close()


def open_origin(spec: ContainerSpec, shared: Shared) -> Origin:
    """Return what a container of this spec begins at; raises what `source` does."""
    with ExitStack() as stack:
        found = source(spec, shared, stack)
        with Undisturbed():
            return Origin(found, stack.pop_all())


def source(spec: ContainerSpec, shared: Shared, stack: ExitStack) -> Source:
    """Return what the image is made of; what has to be held or removed goes on the stack.

    Raises `NotFound`, `SpecError`, `UnpackError`, `ImageError`, `SetupError`.
    """
    own_ids = shared.root and spec.userns == "auto"
    if spec.image == "host":
        return Source(shared.host_image())
    if not is_path(spec.image):
        return _of_store(spec.image, own_ids, shared, stack)
    if os.path.isfile(spec.image):
        return Source(_of_tar(spec.image, shared, own_ids, stack))
    return Source(shared.folder_image(spec.image, own_ids))


def _of_tar(path: str, shared: Shared, own_ids: bool, stack: ExitStack) -> Rootfs:
    with Undisturbed():
        place = shared.owner.disk_dir()
        stack.callback(shared.owner.discard, place)
    with forks.whole:
        from .images.layers.root import unpack
    unpack(path, f"{place}/rootfs", keep_owners=shared.root)
    return folder_image(f"{place}/rootfs", root=own_ids)


def _of_store(name: str, own_ids: bool, shared: Shared, stack: ExitStack) -> Source:
    with forks.whole:
        from .images import local
    image = local.open_image(name)
    stack.callback(image.close)
    found: Source | None = image.made.get(own_ids)
    if found is None:
        # The first to put one in: two threads that start the first containers are to have the same.
        found = image.made.setdefault(own_ids, _of_image(image, own_ids))
    shared.keep_images(local.expire, local.forget)
    shared.keep(found.rootfs)
    return found


def _of_image(image: LocalImage, own_ids: bool) -> Source:
    layers = tuple(Layer(path, idmap=own_ids) for path in image.lowers)
    missing = tuple(needed for needed in NEEDED if not image.has(needed.path))
    run = image.config.config
    workdir = run.working_dir
    defaults = Defaults(
        run.environment(),
        workdir or None,
        run.user or None,
        image.stop_signal or signal.SIGTERM,
        run.entrypoint or (),
        run.cmd or (),
        run.labels,
        make_workdir=bool(workdir) and image.directory(workdir) is None,
        volumes=_volumes(run.volumes),
    )
    number, found = image.topmost("/etc")
    owner = os.geteuid(), os.getegid()
    etc = etc_of(found, number, owner) if found is not None or not image.has("/etc") else None
    return Source(
        Rootfs((Tree("/", layers, mode=image.mode, within=image.within),), missing, etc=etc),
        defaults,
        image.chosen,
    )


def _volumes(paths: Sequence[str]) -> tuple[str, ...]:
    """Check those that an image asks for."""
    if len(paths) > _MOST_VOLUMES:
        raise ImageError(f"Volumes: expected at most {_MOST_VOLUMES}, got {len(paths)}")
    found = []
    for path in paths:
        try:
            found.append(target(path))
        except SpecError:
            raise ImageError(f"Volumes: {shown(path)}: expected an absolute path below /") from None
        if found[-1].count("/") > _DEEPEST_VOLUME:
            raise ImageError(f"Volumes: {shown(path)}: more than {_DEEPEST_VOLUME} directories in each other")
    return tuple(dict.fromkeys(found))
