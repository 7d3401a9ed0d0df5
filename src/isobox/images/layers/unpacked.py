"""The layers of images on disk, once for each chain id, for all containers and processes of one user.

    <path>/lock                        shared while a layer is taken, exclusive while some are removed
    <path>/locks/<chain id>            shared by whoever uses the layer
    <path>/locks/<chain id>.make       exclusive by whoever makes it
    <path>/layers/<chain id>/layer.erofs  the lower directory of an overlay, to be mounted; never changed
    <path>/layers/<chain id>/root      the same as a directory, for who can't mount it
    <path>/layers/<chain id>/parent    the chain id of the layer below; empty for the lowest
    <path>/layers/<chain id>/hides-all there if nothing of the layers below is to be seen
    <path>/layers/.layer-*             being made or removed; collected when its process is gone

Root's layers are files where the kernel mounts them (Linux 6.15, not on a tmpfs), in images of a few layers.
One may have both forms: for who has another kernel or fewer privileges on the same path, or an image of many.

A layer appears by one rename, whole and on disk even if the power fails, and goes by one. All locks
(locks.py) go with their process. That a layer is used keeps those below it too.

Owners are right for root (``keep_owners``, shown through idmapped mounts), for an ordinary user with subids
(``id_map``: see mapped.py), and for one with a single id, to whom everything belongs. The three never share a
path: the same files have other owners with another map.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Final

from attrs import define

from isobox import _native, idmap
from isobox.discard import remove_tree, remove_tree_mapped
from isobox.errors import ImageError, SetupError
from isobox.idmap import IdMap
from isobox.locks import Lock
from isobox.owners import DATA, check_directory

from ..documents.config import chain_ids
from ..documents.digest import Digest
from ..tar.compression import Readable
from .layer import PREFIX, LayerUnpacked, collect, unpack_layer, work_directory
from .mapped import Mapped
from .mounted import Mount, mount, possible
from .packed import pack_layer

__all__ = ["Held", "Layers"]

_FILE: Final = "layer.erofs"
_FULL: Final = {
    errno.ENOSPC: "Free some space there (isobox prune removes what no image needs), or name another "
    "folder in ISOBOX_DATA_DIR",
    errno.EDQUOT: "Free some space of this user's (isobox prune removes what no image needs)",
}
_MOST_FILES: Final = 8
_MOST_BELOW: Final = 1024  # more than any image has; a loop on disk ends


@define
class Held:
    """A layer in use: it and those below it stay until this is closed.

    `lowers`: for an overlay, topmost first; `lowers[0]` is its own directory. They are paths for this
    process, until then.
    """

    chain_id: Digest
    lowers: tuple[str, ...]
    _lock: Lock
    _mounts: tuple[Mount, ...] = ()

    def close(self) -> None:
        """Let go of it; idempotent."""
        self._mounts = ()
        self._lock.close()

    def __del__(self) -> None:  # Ctrl-C on its way to whoever was to close it
        self.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Layers:
    """The unpacked layers in the directory `path`, which is made if needed and closed to other users.

    `keep_owners` as `unpack_layer` has it. `id_map`: of the containers of an ordinary user with subids; its
    layers have the owners that are right in those. Both are the same for all who share a path. `files`:
    whether root's layers are files where the kernel mounts them; see `expect` too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep_owners: bool = False,
        id_map: IdMap | None = None,
        files: bool = True,
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.id_map = id_map
        self._keep_owners = keep_owners
        self._files = files and keep_owners and id_map is None
        self._as_files = self._files
        self._idle: list[Mapped] = []  # processes that can take a layer
        self._places = f"{self.path}/layers"
        check_directory(self.path, DATA)
        with _as_setup_error(self.path):
            os.chmod(self.path, 0o700)
            for place in (self._places, f"{self.path}/locks"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(place, 0o700)

    def expect(self, count: int) -> None:
        """Say of how many layers the image is that comes next.

        Those of many are directories, made beside a file where that is all there is: one mount shows a
        container all of them, where each file needs its own, and a message has room for 253 descriptors.
        """
        self._as_files = self._files and count <= _MOST_FILES

    def find(self, chain_id: Digest) -> Held | None:
        """Take a layer that is there; None if it isn't, or not yet."""
        with _as_setup_error(self.path), self._shared():
            if not os.path.isdir(self._place(chain_id)):
                return None
            with ExitStack() as unused:
                lock = unused.enter_context(self._lock(str(chain_id)))
                lock.take(shared=True)  # at once: only a prune has it otherwise
                lowers, mounts = self._lowers(chain_id)
                if not lowers:
                    return None
                held = Held(chain_id, lowers, lock, mounts)
                unused.pop_all()
                return held

    def ensure(
        self,
        parent: Held | None,
        diff_id: Digest,
        open_layer: Callable[[], AbstractContextManager[Readable]],
    ) -> Held:
        """Take the layer `diff_id` on top of `parent`; make it from `open_layer()` if it isn't there.

        However many processes and threads ask at once, one makes it and the others wait. Raises what
        `unpack_layer` raises, and then it isn't there; who waited tries it next.
        """
        # A chain may begin with the chain id of all that lies below.
        chain_id = chain_ids([diff_id] if parent is None else [parent.chain_id, diff_id])[-1]
        while True:
            held = self.find(chain_id)
            if held is not None:
                return held
            with _as_setup_error(self.path):
                lock = self._lock(f"{chain_id}.make")
            with lock:
                with _as_setup_error(self.path):
                    lock.take()
                    if not os.fstat(lock.fileno()).st_nlink or self._lower(chain_id):
                        continue  # the lock was removed meanwhile, or the layer made
                self._make(chain_id, parent, diff_id, open_layer)

    def prune(self, keep: Collection[Digest]) -> list[Digest]:
        """Remove the layers that neither `keep` names nor anybody uses, nor lie below such; return them.

        `keep`: chain ids, of the topmost layer of each image at least. Also removes what processes
        that were killed left. What can't be removed any more is tried again next time.
        """
        with _as_setup_error(self.path), self._exclusive():
            there = self.chain_ids()
            kept = set(keep)
            kept.update(chain_id for chain_id in there if not self._unlocked(str(chain_id)))
            for chain_id in kept & set(there):
                with contextlib.suppress(ImageError):  # a damaged one: it keeps what is known
                    kept.update(self._chain(chain_id))
            # From the top: whatever ends this, no layer stays without the one below.
            removed = sorted((each for each in there if each not in kept), key=self._depth, reverse=True)
            self._remove(removed)
            for name in set(os.listdir(f"{self.path}/locks")) - set(map(str, there)):
                if self._unlocked(name):
                    os.unlink(f"{self.path}/locks/{name}")
            collect(self._places, self._delete)
        return removed

    def beyond(self, keep: Collection[Digest]) -> list[Digest]:
        """The layers that `keep` neither names nor has below: after a prune, those that somebody uses."""
        with _as_setup_error(self.path):
            there = self.chain_ids()
        kept: set[Digest] = set()
        for chain_id in set(keep) & set(there):
            with contextlib.suppress(ImageError):
                kept.update(self._chain(chain_id))
        return [each for each in there if each not in kept]

    def in_use(self, chain_id: Digest) -> bool:
        """Whether somebody has taken this layer, as the topmost of theirs."""
        with _as_setup_error(self.path), self._exclusive():
            return not self._unlocked(str(chain_id))

    def _unlocked(self, name: str) -> bool:
        """Whether nobody has this lock. That of a layer in use can't be taken anew meanwhile."""
        try:
            lock = Lock(f"{self.path}/locks/{name}")
        except FileNotFoundError:
            return True
        with lock:
            return lock.try_alone()

    def chain_ids(self) -> list[Digest]:
        """The layers that are there."""
        found: list[Digest] = []
        for name in sorted(os.listdir(self._places)):
            with contextlib.suppress(ImageError):
                found.append(Digest.parse(name))
        return found

    def _make(
        self,
        chain_id: Digest,
        parent: Held | None,
        diff_id: Digest,
        open_layer: Callable[[], AbstractContextManager[Readable]],
    ) -> None:
        with _as_setup_error(self.path):
            collect(self._places, self._delete)
            work, fd = work_directory(self._places)
        try:
            with _as_setup_error(self.path):
                with open(f"{work}/parent", "w", encoding="ascii") as file:
                    file.write("" if parent is None else str(parent.chain_id))
                # A file that can't be mounted may be there already.
                as_file = self._as_files and not os.path.lexists(self._place(chain_id)) and possible(work)
            lowers = () if parent is None else parent.lowers
            with open_layer() as stream:
                if as_file:
                    made = pack_layer(stream, f"{work}/{_FILE}", diff_id=diff_id, lowers=lowers)
                else:
                    made = self._unpack(stream, f"{work}/root", diff_id, lowers)
            with _as_setup_error(self.path):
                if made.hides_all:
                    with open(f"{work}/hides-all", "wb"):
                        pass
                _native.sync_file_system(fd)  # once: fsync of each file takes many times as long
                self._publish(work, chain_id)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._delete(work)
            if isinstance(error, SetupError) and (number := error.errno) in _FULL:
                raise SetupError(
                    number, f"unpack into {self._places}", stage="layer", hint=_FULL[number]
                ) from error
            raise
        finally:
            os.close(fd)

    def _publish(self, work: str, chain_id: Digest) -> None:
        place = self._place(chain_id)
        with self._shared():
            if not os.path.lexists(place):
                os.rename(work, place)
                return
            os.rename(f"{work}/root", f"{place}/root")
        self._delete(work)

    def _remove(self, chain_ids: Sequence[Digest]) -> None:
        if not chain_ids:
            return
        gone = f"{self._places}/{PREFIX}{os.urandom(8).hex()}"
        os.mkdir(gone, 0o700)
        for chain_id in chain_ids:
            os.rename(self._place(chain_id), f"{gone}/{chain_id}")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}/locks/{chain_id}")
        with contextlib.suppress(OSError):
            self._delete(gone)  # all at once: it may take a process

    def _depth(self, chain_id: Digest) -> int:
        """How many layers there are from here down; one whose chain is broken lies on top of all."""
        try:
            return len(self._chain(chain_id))
        except ImageError:
            return _MOST_BELOW + 1

    def _unpack(self, stream: Readable, into: str, diff_id: Digest, lowers: tuple[str, ...]) -> LayerUnpacked:
        if self.id_map is None:
            return unpack_layer(stream, into, keep_owners=self._keep_owners, diff_id=diff_id, lowers=lowers)
        try:
            mapped = self._idle.pop()
        except IndexError:
            mapped = Mapped(self.id_map)
        try:
            return mapped.unpack(stream, into, diff_id=diff_id, lowers=lowers)
        finally:
            if mapped.usable:
                self._idle.append(mapped)
            else:
                mapped.close()

    def _delete(self, path: str) -> None:
        id_map = self.id_map
        if id_map is None:
            remove_tree(path)
        else:
            remove_tree_mapped(path, lambda pid: idmap.write(pid, id_map))

    def close(self) -> None:
        """End the processes that unpack, if there are any; idempotent. They also go with this object."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Layers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chain(self, chain_id: Digest) -> list[Digest]:
        """The layer and those below it; raises ImageError if what is on disk makes no sense."""
        found: list[Digest] = []
        while len(found) < _MOST_BELOW:
            found.append(chain_id)
            try:
                with open(f"{self._place(chain_id)}/parent", "rb") as file:
                    text = file.read(200).decode("ascii", "replace")
            except FileNotFoundError:
                text = f"layer {found[0]}: {chain_id} below it is missing; pull the image anew"
                raise ImageError(text) from None
            if not text:
                return found
            chain_id = Digest.parse(text)
        raise ImageError(f"layer {found[0]}: more than {_MOST_BELOW} layers lie below it")

    def _lowers(self, chain_id: Digest) -> tuple[tuple[str, ...], tuple[Mount, ...]]:
        """The directories of the layer and of those below, and their mounts; none if one can't be used."""
        lowers: list[str] = []
        mounts: list[Mount] = []
        for below in self._chain(chain_id):
            found = self._lower(below)
            if found is None:
                return (), ()
            if isinstance(found, Mount):
                mounts.append(found)
                found = found.path
            lowers.append(found)
            if os.path.lexists(f"{self._place(below)}/hides-all"):
                break
        return tuple(lowers), tuple(mounts)

    def _lower(self, chain_id: Digest) -> Mount | str | None:
        """The layer's directory; None if it isn't there, or not in a form that can be used here."""
        place = self._place(chain_id)
        found = None
        if self._as_files:
            with contextlib.suppress(FileNotFoundError):
                found = mount(f"{place}/{_FILE}")
        return found or (f"{place}/root" if os.path.isdir(f"{place}/root") else None)

    def _place(self, chain_id: Digest) -> str:
        return f"{self._places}/{chain_id}"

    def _lock(self, name: str) -> Lock:
        return Lock(f"{self.path}/locks/{name}", make=True)

    @contextlib.contextmanager
    def _shared(self) -> Iterator[None]:
        """Nothing is removed meanwhile."""
        with self._locked(shared=True):
            yield

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Nobody takes a layer meanwhile."""
        with self._locked(shared=False):
            yield

    @contextlib.contextmanager
    def _locked(self, *, shared: bool) -> Iterator[None]:
        with Lock(f"{self.path}/lock", make=True) as lock:
            lock.take(shared=shared)
            yield


@contextlib.contextmanager
def _as_setup_error(path: str) -> Iterator[None]:
    try:
        yield
    except SetupError:
        raise
    except OSError as error:
        raise SetupError(error.errno or errno.EIO, f"the layers in {path}", stage="layer") from error
