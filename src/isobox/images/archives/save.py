"""Images out of a store, in one file: an OCI layout in a tar, which Docker can read too if it is to.

For Docker a manifest.json stands beside the layout, whose blobs it names; so Docker itself writes it since
version 25 (``docker save``), and every reader of the one format or the other finds what it knows. Layers
stay as they are stored, compressed mostly: Docker, podman and skopeo take them so.

Equal images give equal bytes: nothing in it says when, where or by whom it was written.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from typing import IO, Final

from attrs import evolve, frozen

from isobox.errors import ImageError

from ..documents.descriptor import Descriptor
from ..documents.digest import Digest
from ..documents.media import OCI_INDEX
from ..documents.platform import Platform
from ..documents.reference import Reference
from ..layout.choose import choose, choose_there
from ..layout.index_file import IndexFile, named
from ..layout.walk import missing, reachable
from ..store import Store
from ..tar.stream import BLOCK
from .archive import Loaded
from .docker_archive import MANIFEST, ArchivedImage, encode_images

__all__ = ["Saved", "save", "together"]

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_PIECE: Final = 1 << 20


@frozen
class Saved:
    """An image that is to be saved: with which names, and for which platform it stands in Docker's list.

    `platform`: None for this machine's; where that isn't there, for one that is.
    """

    descriptor: Descriptor
    references: tuple[Reference, ...]
    platform: Platform | None = None

    @property
    def loaded(self) -> Loaded:
        """What reading it again gives."""
        return Loaded(self.descriptor, self.references)

    def alone(self, store: Store, platform: Platform) -> Saved:
        """What there is for one platform, without an index around it; raises `ImageError`."""
        found = choose(store, self.descriptor, platform).descriptor
        names = tuple(name for name in self.references if name.digest in (None, found.digest))
        return Saved(found, names, platform)


def together(images: Iterable[Saved]) -> tuple[Saved, ...]:
    """Each image once, with all the names that it has among them."""
    found: dict[Digest, Saved] = {}
    for image in images:
        before = found.get(image.descriptor.digest, evolve(image, references=()))
        names = dict.fromkeys([*before.references, *image.references])
        found[image.descriptor.digest] = evolve(before, references=tuple(names))
    return tuple(found.values())


def save(store: Store, images: Iterable[Saved], file: IO[bytes], *, docker: bool) -> None:
    """Write images with their names to `file`, which need not be able to seek.

    What an image of several platforms lacks in the store it lacks there too. `docker`: with a manifest.json,
    which has each image for one platform alone. Raises `NotFound` and `ImageError` for what is
    missing or damaged in the store, and what ``file.write`` raises.
    """
    images = together(images)
    with store.lease():
        needed = sorted(reachable(store, [image.descriptor for image in images], strict=True))
        needed = [digest for digest in needed if store.has(digest)]  # from now on they stay
        for image in images:
            lacking = missing(store, image.descriptor)
            if lacking is not None:
                raise ImageError(
                    f"can't save {image.descriptor.digest}: its blob {lacking} is not in the store "
                    f"{store.path}. Load the image again"
                )
        documents = [("oci-layout", _LAYOUT), ("index.json", _index(images))]
        if docker:
            documents.append((MANIFEST, encode_images(_listed(store, images))))
        for name, data in documents:
            _write(file, name, len(data), [data])
        _write_blobs(store, needed, file)
    file.write(bytes(2 * BLOCK))
    file.flush()


def _index(images: Iterable[Saved]) -> bytes:
    entries: list[Descriptor] = []
    for image in images:
        entries += [named(image.descriptor, name) for name in image.references] or [image.descriptor]
    return IndexFile(tuple(entries), {"mediaType": OCI_INDEX}).encode()


def _listed(store: Store, images: Iterable[Saved]) -> list[ArchivedImage]:
    listed = []
    for image in images:
        chosen = choose_there(store, image.descriptor, image.platform)
        for layer, _ in chosen.layers:
            if not store.has(layer.digest):
                raise ImageError(
                    f"can't save {image.descriptor.digest} for Docker: its layer {layer.digest} is had from "
                    "elsewhere only. Save it in the format oci"
                )
        layers = tuple(_path(layer.digest) for layer, _ in chosen.layers)
        tags = tuple(name for name in image.references if _is_tag(name))
        listed.append(ArchivedImage(_path(chosen.id), layers, tags))
    return listed


def _is_tag(name: Reference) -> bool:
    return name.tag is not None and name.digest is None


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _write_blobs(store: Store, digests: Iterable[Digest], file: IO[bytes]) -> None:
    folders: set[str] = set()
    for digest in digests:
        for folder in ("blobs", f"blobs/{digest.algorithm}"):
            if folder not in folders:
                folders.add(folder)
                file.write(_header(f"{folder}/", 0, tarfile.DIRTYPE))
        with store.open(digest) as blob:
            size = os.fstat(blob.fileno()).st_size
            _write(file, _path(digest), size, iter(lambda: blob.read(_PIECE), b""))


def _write(file: IO[bytes], name: str, size: int, pieces: Iterable[bytes]) -> None:
    file.write(_header(name, size))
    for piece in pieces:
        file.write(piece)
    file.write(bytes(-size % BLOCK))


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, size, 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)
