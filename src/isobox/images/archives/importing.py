"""Images of one layer: from a folder, or from a tar of a root file system."""

from __future__ import annotations

import os
from typing import IO

from isobox import idmap
from isobox.errors import ImageError, NotFound, UnpackError

from ..documents.descriptor import Descriptor
from ..layers.attributes import Owners
from ..layers.packing import Packing, Write
from ..layers.unpacking import MOST_BYTES, MOST_ENTRIES, shown, split
from ..making import Added, Changes, add_image, add_layer, epoch, named
from ..store import Store
from ..tar.compression import Readable, decompressed
from ..tar.stream import TarStream

__all__ = ["add_folder", "own_owners", "import_folder", "import_tar"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def own_owners() -> Owners:
    """What the owners of this user's files are in an image: as its containers see them.

    Root's files keep theirs. Those of an ordinary user belong to root, those of its subordinate ids to
    the users whom these stand for; and to root, too, what belongs to others.
    """
    if os.geteuid() == 0:
        return Owners()
    uid, gid = os.geteuid(), os.getegid()
    ids = idmap.for_user(
        uid, gid, *idmap.read_user_ranges(uid), newuidmap_available=idmap.newuidmap_programs() is not None
    )
    return Owners(ids.uid_lines, ids.gid_lines, unknown=0)


def add_folder(store: Store, path: str) -> Added:
    """Add a layer that has all that is in a folder; inside a lease. Raises `NotFound`, `ImageError`."""
    seconds = epoch()
    newest = None if seconds is None else seconds * 10**9
    try:
        fd = os.open(path, _FOLDER)
    except FileNotFoundError:
        raise NotFound(f"no such folder: {path}") from None
    except OSError as error:
        raise ImageError(f"can't read the folder {path}: {error.strerror}") from error
    try:
        return add_layer(store, lambda write: Packing(write, own_owners(), newest=newest).run(fd))
    finally:
        os.close(fd)


def import_folder(store: Store, path: str, reference: str | None, changes: Changes) -> Descriptor:
    """Make an image of a folder, and name it; without a name it is kept until a prune."""
    with store.lease():
        return _image(store, add_folder(store, path), reference, changes)


def import_tar(store: Store, file: IO[bytes], reference: str | None, changes: Changes) -> Descriptor:
    """Make an image of a tar archive, plain or compressed with gzip, zstd or xz; as `import_folder`.

    The archive becomes the layer as it is; it is only compressed anew.
    """
    with store.lease():
        return _image(store, add_layer(store, _Copy(file).run), reference, changes)


def _image(store: Store, layer: Added, reference: str | None, changes: Changes) -> Descriptor:
    name = named(reference)
    descriptor = add_image(store, None, [layer], changes, created_by="isobox import")
    if name is None:
        store.keep(descriptor)
    else:
        store.tag(name, descriptor)
    return descriptor


class _Copy:
    """A tar archive on its way into a layer: every entry is looked at, nothing is changed."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._write: Write | None = None

    def run(self, write: Write) -> None:
        self._source = decompressed(self._file)
        self._write = write
        for count, entry in enumerate(TarStream(self, MOST_BYTES).entries()):
            if count >= MOST_ENTRIES:
                raise UnpackError(f"the archive has more than {MOST_ENTRIES} entries")
            if any(name.startswith(b".wh.") for name in split(entry.name, absolute=True)):
                raise UnpackError(
                    f"{shown(entry.name)}: a name that begins with .wh. would say in a layer that something "
                    "is deleted. This is no root file system: load a whole image with isobox load"
                )

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._source.read(size)
        except OSError as error:
            raise ImageError(f"can't read the archive: {error.strerror or error}") from error
        if self._write is not None:
            self._write(data)
        return data
