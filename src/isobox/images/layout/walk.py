"""From an image to all of its blobs: indexes, manifests, configs and layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from isobox.errors import ImageError, NotFound

from ..documents.descriptor import Descriptor
from ..documents.digest import Digest
from ..documents.fields import MOST_BYTES
from ..documents.media import CONFIGS, INDEXES, MANIFESTS, is_distributable, plain_media_type
from ..documents.model import Index, Manifest, parse_document
from .blobs import Blobs

__all__ = ["configs", "document", "find", "is_image", "lacking", "manifests", "missing", "reachable"]

_DOCUMENTS: Final = INDEXES | MANIFESTS
_MOST_BLOBS: Final = 2_000_000  # some hundred megabytes of memory
_DIGEST: Final = re.compile(rb"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def document(blobs: Blobs, descriptor: Descriptor) -> Index | Manifest:
    """Read an index or a manifest, verified; raises `ImageError`, `NotFound` where it isn't there."""
    data = blobs.read(descriptor.digest)
    try:
        return parse_document(data, descriptor.media_type)
    except ImageError as error:
        raise ImageError(f"blob {descriptor.digest}: {error}") from error


def reachable(blobs: Blobs, roots: Iterable[Descriptor], *, strict: bool) -> set[Digest]:
    """Return the digests of all blobs that `roots` lead to, and their own.

    Blobs that aren't there lead nowhere: a layout may lack some (image-layout.md, "Blobs").
    `strict`: one that can't be read is an ImageError, else it too leads nowhere. Where an image's
    media type is unknown, all that looks like a digest in it counts. Each document is read once,
    so circles end; more than two million blobs are an ImageError.
    """
    seen: set[Digest] = set()
    known: set[tuple[Digest, str | None]] = set()
    todo: list[Descriptor] = []

    def follow(images: Iterable[Descriptor]) -> None:
        for image in images:
            seen.add(image.digest)
            # Named under a wrong media type as well, it must not be passed over under the right one.
            key = image.digest, plain_media_type(image.media_type) if _is_document(image) else None
            if key not in known:
                known.add(key)
                todo.append(image)

    follow(roots)
    while todo:
        image = todo.pop()
        try:
            if not _is_document(image):
                seen |= _mentioned(blobs, image)
                continue
            found = document(blobs, image)
        except NotFound:
            continue
        except ImageError:
            if strict:
                raise
            continue
        if isinstance(found, Index):
            follow(found.manifests)
        else:
            seen.add(found.config.digest)
            seen.update(layer.digest for layer in found.layers)
        if found.subject is not None:
            follow([found.subject])
        if len(seen) > _MOST_BLOBS:
            raise ImageError(
                f"store {blobs.path}: its images lead to more than {_MOST_BLOBS} blobs. Remove some of them"
            )
    return seen


def _is_document(descriptor: Descriptor) -> bool:
    return plain_media_type(descriptor.media_type) in _DOCUMENTS


def _mentioned(blobs: Blobs, descriptor: Descriptor) -> set[Digest]:
    if descriptor.size > MOST_BYTES:  # no manifest of whatever kind
        return set()
    data = blobs.read(descriptor.digest)
    return {Digest.parse(found.decode()) for found in _DIGEST.findall(data)}


def find(blobs: Blobs, roots: Iterable[Descriptor], digest: Digest) -> Descriptor | None:
    """Return the index or manifest of this digest that `roots` lead to; None where there is none."""
    seen: set[Digest] = set()
    todo = list(roots)
    while todo:
        descriptor = todo.pop()
        if descriptor.digest == digest:
            return descriptor
        if plain_media_type(descriptor.media_type) not in INDEXES or descriptor.digest in seen:
            continue
        seen.add(descriptor.digest)
        try:
            found = document(blobs, descriptor)
        except ImageError:
            continue  # it can't say what it has
        if isinstance(found, Index):
            todo.extend(child for child in found.manifests if child.digest not in seen)
    return None


def manifests(blobs: Blobs, root: Descriptor) -> Iterator[tuple[Descriptor, Manifest]]:
    """Yield all manifests that an index or manifest leads to, in their order, as far as they are there."""
    seen: set[Digest] = set()
    todo = [root]
    while todo:
        descriptor = todo.pop()
        if descriptor.digest in seen or not _is_document(descriptor):
            continue
        seen.add(descriptor.digest)
        try:
            found = document(blobs, descriptor)
        except ImageError:
            continue  # it can't say what it has
        if isinstance(found, Index):
            todo.extend(reversed(found.manifests))
        else:
            yield descriptor, found


def configs(blobs: Blobs, root: Descriptor) -> set[Digest]:
    """The configs of all container images that an index or manifest leads to, as far as they are there."""
    found = (manifest.config for _, manifest in manifests(blobs, root))
    return {config.digest for config in found if plain_media_type(config.media_type) in CONFIGS}


def is_image(blobs: Blobs, root: Descriptor) -> bool:
    """Whether it is there for containers to be made of it: no artifact, and not about another image."""
    if not configs(blobs, root):
        return False
    return document(blobs, root).subject is None


def missing(blobs: Blobs, root: Descriptor) -> Digest | None:
    """Return a blob that an image lacks to be of use, or None.

    An index is of use where one of its manifests is; a manifest, where its config and its layers
    are there. Layers that are fetched from elsewhere (`Descriptor.urls`) may be absent. Raises
    `ImageError` for what is no image, or damaged.
    """
    seen: set[Digest] = set()
    todo = [root]
    first: Digest | None = None
    while todo:
        descriptor = todo.pop()
        if descriptor.digest in seen:
            continue
        seen.add(descriptor.digest)
        if not blobs.there(descriptor.digest, descriptor.size):
            first = first or descriptor.digest
            continue
        found = document(blobs, descriptor)
        if isinstance(found, Index):
            # The first one first, which is most likely to be there.
            todo.extend(child for child in reversed(found.manifests) if _is_document(child))
            continue
        part = lacking(blobs, found)
        if part is None:
            return None
        first = first or part
    return first or root.digest


def lacking(blobs: Blobs, manifest: Manifest) -> Digest | None:
    """Return the first of its config and layers that isn't there, but for what is had from elsewhere."""
    for part in (manifest.config, *manifest.layers):
        elsewhere = part.urls and not is_distributable(part.media_type)
        if not elsewhere and not blobs.there(part.digest, part.size):
            return part.digest
    return None
