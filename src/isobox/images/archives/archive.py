"""Images in one file: what ``docker save``, ``podman save`` and ``skopeo copy`` write, read into a store.

Two formats, and their union, which Docker writes since version 25: an OCI layout in a tar (image-spec,
image-layout.md), and Docker's own, whose ``manifest.json`` names a configuration and layers for each
image. The archive is read once, from its start to its end, so a pipe will do. Every file goes to the store
as it comes; it is part of an image once all that the image needs has been there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import IO, Final, TypeVar

from attrs import Factory, define, evolve, frozen

from isobox.errors import DigestMismatch, ImageError, UnpackError, shown

from ..documents.config import ImageConfig
from ..documents.descriptor import Descriptor
from ..documents.digest import Digest
from ..documents.media import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST
from ..documents.model import Manifest
from ..documents.reference import Reference
from ..layout.index_file import IndexFile, bare, name_of
from ..layout.walk import is_image, missing
from ..store import Store
from ..tar.compression import GZIP, ZSTD, decompressed
from ..tar.stream import Entry, TarStream
from .docker_archive import MANIFEST, ArchivedImage, parse_images

__all__ = ["Loaded", "load"]

_T = TypeVar("_T")

MOST_BYTES: Final = 1 << 40
_MOST_ENTRIES: Final = 100_000
_MOST_NAMES: Final = 16 << 20  # bytes of the names of all files and links
_SMALL: Final = 4 << 20  # of a document at the top: as much as a registry takes for a manifest
_MOST_DOCUMENTS: Final = 64 << 20  # bytes of all of them
_MOST_LINKS: Final = 40  # on the way to one file


@frozen
class Loaded:
    """An image that was read: what `Store.tag` takes, and the names that the archive has for it."""

    descriptor: Descriptor
    references: tuple[Reference, ...] = ()


def load(store: Store, file: IO[bytes], *, most_bytes: int = MOST_BYTES) -> tuple[Loaded, ...]:
    """Read every image of an archive (plain, gzip, zstd or xz), and name it as the archive does.

    One without a name is kept until a prune. Returns them in the archive's order. Nothing of a damaged or
    hostile archive gets a name: it raises `UnpackError` for the tar itself, `DigestMismatch` for a blob that
    is not what its name says, another `ImageError` for what the documents in it say. `most_bytes` bounds
    the archive after decompression.
    """
    with store.lease():
        files = _Files.read(store, TarStream(decompressed(file), most_bytes))
        if "index.json" in files.documents:
            images = _of_layout(files)
        elif MANIFEST in files.documents:
            images = _of_docker(store, files)
        else:
            raise ImageError("the archive holds no image: it has neither an index.json nor a manifest.json")
        images = tuple(image for image in images if image.references or is_image(store, image.descriptor))
        if not images:
            raise ImageError("the archive holds no image: what it has are artifacts without names")
        for image in images:
            lacking = missing(store, image.descriptor)
            if lacking is not None:
                raise ImageError(f"the archive lacks the blob {lacking}, which an image of it needs")
        for image in images:
            for reference in image.references:
                store.tag(reference, image.descriptor)
            if not image.references:
                store.keep(image.descriptor)
    return images


@define
class _Files:
    """What an archive had: documents at its top, blobs in the store, and links from name to name."""

    documents: dict[str, bytes] = Factory(dict)
    blobs: dict[str, tuple[Digest, int]] = Factory(dict)
    links: dict[str, str] = Factory(dict)

    @classmethod
    def read(cls, store: Store, stream: TarStream) -> _Files:
        """Put every file in its place; what is neither a file nor a link is passed over."""
        files = cls()
        names = documents = 0
        for count, entry in enumerate(stream.entries()):
            names += len(entry.name) + len(entry.target)
            if count >= _MOST_ENTRIES or names > _MOST_NAMES:
                raise UnpackError(f"the archive has more than {_MOST_ENTRIES} files, or names without end")
            name = _plain(entry.name)
            if entry.kind == "symlink":
                files.links[name] = _plain(posixpath.join(posixpath.dirname(entry.name), entry.target))
            elif entry.kind == "hardlink":
                files.links[name] = _plain(entry.target)
            elif entry.kind == "file" and _is_document(name, entry):
                documents += entry.size
                if documents > _MOST_DOCUMENTS:
                    raise UnpackError(f"the archive's documents have more than {_MOST_DOCUMENTS} bytes")
                document = bytearray()
                stream.contents(document.extend)
                files.documents[name] = bytes(document)
            elif entry.kind == "file":
                with store.writer(_named_digest(name), entry.size) as writer:
                    stream.contents(writer.write)
                    files.blobs[name] = writer.commit(), entry.size
        return files

    def document(self, name: str) -> bytes:
        """The bytes of a document; raises `ImageError`."""
        found = self._find(name, self.documents)
        if found is None:
            raise ImageError(f"the archive lacks the file {shown(name)}, which an image of it needs")
        return found

    def config(self, store: Store, name: str) -> bytes:
        """The bytes of an image's config, which some programs give a name without .json."""
        found = self._find(name, self.documents)
        return store.read(self.blob(name)[0]) if found is None else found

    def blob(self, name: str) -> tuple[Digest, int]:
        """The digest and size of a file in the store; raises `ImageError`."""
        found = self._find(name, self.blobs)
        if found is None:
            raise ImageError(f"the archive lacks the file {shown(name)}, which an image of it needs")
        return found

    def _find(self, name: str, among: Mapping[str, _T]) -> _T | None:
        name = posixpath.normpath(name)
        for _ in range(_MOST_LINKS):
            if name in among:
                return among[name]
            if name not in self.links:
                return None
            name = self.links[name]
        return None


def _plain(name: bytes) -> str:
    """A name as a key: nothing is looked up by it outside of the archive."""
    return posixpath.normpath(name.decode("utf-8", "surrogateescape").lstrip("/"))


def _is_document(name: str, entry: Entry) -> bool:
    known = name.endswith(".json") or name in ("oci-layout", "repositories")
    return known and "/" not in name and entry.size <= _SMALL


def _named_digest(name: str) -> Digest | None:
    """The digest that a blob's name in a layout promises."""
    parts = name.split("/")
    return Digest(parts[1], parts[2]) if len(parts) == 3 and parts[0] == "blobs" else None


def _of_layout(files: _Files) -> tuple[Loaded, ...]:
    entries = IndexFile.parse(files.document("index.json"), "index.json").manifests
    images: dict[Digest, Loaded] = {}
    for entry in entries:
        found = images.setdefault(entry.digest, Loaded(bare(entry)))
        name = name_of(entry)
        if name is not None:
            images[entry.digest] = evolve(found, references=(*found.references, name))
    return tuple(images.values())


def _of_docker(store: Store, files: _Files) -> tuple[Loaded, ...]:
    return tuple(
        Loaded(_manifest(store, files, image), image.tags) for image in parse_images(files.document(MANIFEST))
    )


def _manifest(store: Store, files: _Files, image: ArchivedImage) -> Descriptor:
    """Make the manifest that Docker's format lacks; the config, whose digest is the image's id, stays."""
    data = files.config(store, image.config)
    config = ImageConfig.parse(data)
    if len(image.layers) != len(config.diff_ids):
        raise ImageError(
            f"docker archive: {shown(image.config)}: expected {len(image.layers)} diff_ids, as the image has "
            f"layers there, got {len(config.diff_ids)}"
        )
    layers = tuple(
        _layer(store, files.blob(name), diff_id)
        for name, diff_id in zip(image.layers, config.diff_ids, strict=True)
    )
    digest, size = store.add(data)
    encoded = Manifest(Descriptor(OCI_CONFIG, digest, size), layers).encode()
    store.add(encoded)
    return Descriptor.of(encoded, OCI_MANIFEST)


def _layer(store: Store, blob: tuple[Digest, int], diff_id: Digest) -> Descriptor:
    """Say of a file what it is. As a plain tar, which it should be, it is the layer that the config means."""
    digest, size = blob
    with store.open(digest) as file:
        start = file.read(len(ZSTD))
    media_type = OCI_LAYER
    if start.startswith(GZIP):
        media_type = OCI_LAYER_GZIP
    elif start == ZSTD:
        media_type = OCI_LAYER_ZSTD
    elif digest != diff_id:
        raise DigestMismatch("a layer of the archive (diff_id)", diff_id, digest)
    return Descriptor(media_type, digest, size)
