"""The images of this user, ready to run: from the store's blobs to directories for an overlay."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import stat
from collections.abc import Hashable
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from attrs import define, field

from isobox import idmap
from isobox.errors import ImageError, IsoboxError, NotFound, printable, shown
from isobox.owners import data_dir

from .documents.descriptor import Descriptor
from .documents.digest import Digest
from .documents.media import layer_compression
from .documents.model import ImageConfig, chain_ids
from .documents.platform import Platform, best
from .kept import Kept, stamp
from .layers.lowers import Lowers
from .layers.mapped import Mapped
from .layers.unpacked import Held, Layers
from .layout.choose import Chosen, Unsuited, choose, platforms_there
from .layout.walk import configs
from .store import Store

__all__ = [
    "LocalImage",
    "expire",
    "forget",
    "open_image",
    "own_layers",
    "parse_signal",
    "prune_layers",
    "unused",
]

_LONGEST_SIGNAL: Final = 20
_LONGEST_PATH: Final = 4095
_DEEPEST: Final = 64
_SHOWN: Final = 8  # platforms in a message
_kept: Final = Kept["LocalImage"]()
os.register_at_fork(after_in_child=_kept.forget)


@define(eq=False)
class LocalImage:
    """An image whose layers are on disk, and stay there until all that share it are closed.

    `made` has what others made of it, by a name of theirs; it is for all that share it.
    """

    chosen: Chosen
    lowers: tuple[str, ...]
    _held: Held | None
    made: dict[Hashable, Any] = field(factory=dict, repr=False)
    closed: bool = False

    @property
    def config(self) -> ImageConfig:
        """What it runs."""
        return self.chosen.config

    @property
    def stop_signal(self) -> int | None:
        """What asks its program to end (config.md, "StopSignal"), None where it doesn't say: ``SIGQUIT``."""
        text = self.config.config.stop_signal
        return parse_signal(text) if text else None

    @property
    def within(self) -> str | None:
        """The directory that has all the layers, each by one rename; None where there are none, or mounts."""
        found = os.path.dirname(os.path.dirname(self.lowers[0])) if self.lowers else ""
        same = all(lower.startswith(f"{found}/") and lower.endswith("/root") for lower in self.lowers)
        return found if found and same else None

    @property
    def mode(self) -> int:
        """The mode of its root directory: that of the topmost layer."""
        return stat.S_IMODE(os.lstat(self.lowers[0]).st_mode) & 0o1777 if self.lowers else 0o755

    def has(self, path: str) -> bool:
        """Whether the image has something at `path`, a name in its root directory."""
        for lower in self.lowers:
            try:
                status = os.lstat(lower + path)
            except FileNotFoundError:
                continue
            except PermissionError:  # the root itself is closed to this user, and belongs to a subid
                with Mapped(idmap.of_user()) as mapped:
                    seen = mapped.look(lower + path)
                if seen is None:
                    continue
                status = seen[0]
            return not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0)  # a whiteout
        return False

    def directory(self, path: str) -> os.stat_result | None:
        """The directory at `path`, as the image's layers show it; None where none is without a link."""
        return self.topmost(path)[1]

    def topmost(self, path: str) -> tuple[int, os.stat_result | None]:
        """The same, and before it the number of the layer that it is seen of; the topmost is 0."""
        place = tuple(os.fsencode(name) for name in path.split("/") if name not in ("", "."))
        if b".." in place or len(place) > _DEEPEST or len(path) > _LONGEST_PATH:
            return 0, None
        try:
            merged = Lowers(self.lowers, ()).merged(place)
        except OSError:  # a name that is too long, say
            return 0, None
        if not merged:
            return 0, None
        at, found = merged[0]
        return [b"/".join((os.fsencode(lower), *place)) for lower in self.lowers].index(at), found

    def shared(self) -> LocalImage:
        """The same for one more user."""
        return LocalImage(self.chosen, self.lowers, self._held, self.made)

    def close(self) -> None:
        """Let go of the layers; idempotent."""
        self.closed = True
        self._held = None  # the last reference unlocks it


def parse_signal(text: str) -> int:
    """Return the number of a signal that an image names; raises `ImageError`.

    >>> parse_signal("SIGQUIT"), parse_signal("quit"), parse_signal("3"), parse_signal("SIGRTMIN+3")
    (3, 3, 3, 37)
    """
    name, plus, more = text.upper().removeprefix("SIG").partition("+")
    if text.isascii() and len(text) <= _LONGEST_SIGNAL and (not plus or (name == "RTMIN" and more.isdigit())):
        known = signal.Signals.__members__.get(f"SIG{name}")
        number = int(name) if name.isdigit() else int(known or 0) + int(more or 0)
        if 0 < number < signal.NSIG:
            return number
    raise ImageError(f'StopSignal {shown(text)}: expected a signal such as "SIGQUIT" or "SIGRTMIN+3"')


def own_layers() -> Layers:
    """Return the unpacked layers of this user, for its containers: beside the store in the data folder."""
    if os.geteuid() == 0:
        if all(sum(line[2] for line in lines) == 1 for lines in idmap.read_own_maps()):
            # Root of a user namespace with one id (unshare -r): nobody else can own a file.
            return Layers(f"{data_dir()}/layers-1")
        return Layers(f"{data_dir()}/layers", keep_owners=True)
    id_map = idmap.of_user()
    if id_map.single:
        return Layers(f"{data_dir()}/layers")
    # Another map gives the same files other owners: it has another place.
    name = hashlib.sha256(id_map.uid_text + b"\n" + id_map.gid_text).hexdigest()[:12]
    return Layers(f"{data_dir()}/layers-{name}", id_map=id_map)


def prune_layers(store: Store) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
    """Remove the unpacked layers that no image of `store` has and no container uses; return them.

    Those that were made for other ids of this user are among them. Behind them come those that no image
    has, but a container uses, or a process keeps ready.
    """
    kept: list[Digest] = []
    for descriptor in store.entries():
        with contextlib.suppress(ImageError):  # for another machine, damaged, or no image
            kept += chain_ids(choose(store, descriptor).config.diff_ids)
    forget()
    own = own_layers()
    removed = own.prune(kept)
    used = own.beyond(kept)
    data = data_dir()
    for name in os.listdir(data):
        path = f"{data}/{name}"
        if name.partition("-")[0] != "layers" or path == own.path:
            continue
        # What belongs to ids that this user has no more stays, out of the way.
        with contextlib.suppress(IsoboxError):
            removed += Layers(path, id_map=own.id_map).prune(kept)
    return tuple(dict.fromkeys(removed)), tuple(used)


def unused(store: Store) -> set[Digest]:
    """The images of `store` that no container of this user runs, for whichever platforms they are."""
    forget()
    found: set[Digest] = set()
    with own_layers() as layers:
        for descriptor in store.entries():
            ids = configs(store, descriptor)
            if ids and not any(_runs(store, layers, config) for config in ids):
                found.add(descriptor.digest)
    return found


def _runs(store: Store, layers: Layers, config: Digest) -> bool:
    try:
        chain = chain_ids(ImageConfig.parse(store.read(config)).diff_ids)
    except ImageError:  # not there, or damaged
        return False
    return bool(chain) and layers.in_use(chain[-1])


def open_image(name: str, *, platform: Platform | None = None) -> LocalImage:
    """Return the image of this user's store that `name` means, its layers unpacked if they aren't yet.

    `name` as `Store.resolve` takes it; `platform`: None for this machine's. What was returned for the same
    name before is shared while the store's names have not changed: see `Kept`. Raises `NotFound`,
    `ImageError`, `SetupError`, `UnsupportedError`.
    """
    data = data_dir()
    key = (data, name, platform)
    now = stamp(f"{data}/images/index.json")
    image = _kept.find(key, now)
    if image is None:
        image = _opened(name, platform)
        before = _kept.peek(key)
        if before is not None and not before.closed and _same(before, image):
            image = before
        if now is not None:
            _kept.put(key, now, image)
    shared = image.shared()
    _kept.used(key, shared)
    return shared


def _opened(name: str, platform: Platform | None) -> LocalImage:
    store = Store.default()
    try:
        descriptor = store.resolve(name)
    except NotFound as error:
        raise _not_found(name, error) from None
    try:
        chosen = choose(store, descriptor, platform)
    except (NotFound, Unsuited) as error:
        raise _not_for(store, descriptor, name, platform, error) from None
    with own_layers() as layers:
        held = _hold(store, layers, chosen)
    return LocalImage(chosen, held.lowers if held is not None else (), held)


def _same(one: LocalImage, other: LocalImage) -> bool:
    return one.lowers == other.lowers and one.chosen.id == other.chosen.id


def expire() -> float | None:
    """Let go of the images that this process keeps without using them.

    Returns the seconds after which to call it again, None once nothing is kept.
    """
    return _kept.expire()


def forget() -> None:
    """Let go of them all now, as who removes layers does first; what containers use stays."""
    _kept.clear()


def _hold(store: Store, layers: Layers, chosen: Chosen) -> Held | None:
    """Take the topmost layer, which keeps those below it; made from the lowest on where it isn't there."""
    ids = chain_ids(chosen.config.diff_ids)
    layers.expect(len(ids))
    held = layers.find(ids[-1]) if ids else None
    if held is not None:
        return held
    with store.lease():  # no prune takes the blobs meanwhile
        for descriptor, diff_id in chosen.layers:
            layer_compression(descriptor.media_type)
            store.has(descriptor.digest)
            with ExitStack() as below:
                if held is not None:
                    below.enter_context(held)
                held = layers.ensure(held, diff_id, partial(store.open, descriptor.digest))
    return held


def _not_for(
    store: Store, descriptor: Descriptor, name: str, platform: Platform | None, error: ImageError
) -> ImageError:
    """Say for which platforms the image is there, where it is for others only."""
    wanted = platform or Platform.here()
    there = platforms_there(store, descriptor)
    if not there or best(there, wanted) is not None:
        return error
    listed = ", ".join([printable(str(other)) for other in there[:_SHOWN]])
    kind = NotFound if isinstance(error, NotFound) else ImageError  # isobox run pulls what isn't there
    return kind(
        f"image {shown(name)} is here for {listed} alone, and a container needs {wanted}. Where its "
        f"registry has that: isobox pull --platform {wanted.os}/{wanted.architecture} NAME, or Image.pull "
        "with platform="
    )


def _not_found(name: str, error: NotFound) -> NotFound:
    if os.path.exists(name):
        return NotFound(f"{error}. There is a file of that name: write ./{name} if you mean that")
    return error
