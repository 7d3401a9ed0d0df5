"""Images in a folder: an OCI layout that another tool wrote, read into a store.

``skopeo copy ... oci:FOLDER:NAME``, umoci and ``podman save --format oci-dir`` make such folders
(image-spec, image-layout.md). Nothing of it is changed, no link below it is followed, and every blob is
verified while it is copied.
"""

from __future__ import annotations

from typing import Final

from isobox.errors import ImageError

from ..layout.walk import is_image, missing, reachable
from ..store import Store
from .archive import MOST_BYTES, Loaded

__all__ = ["copy_images", "load_folder"]

_PIECE: Final = 1 << 20
_MOST_BLOBS: Final = 100_000


def load_folder(store: Store, path: str, *, most_bytes: int = MOST_BYTES) -> tuple[Loaded, ...]:
    """Read every image of the layout at `path`, and name it as the layout does; in the layout's order.

    Raises `DigestMismatch` for a blob that is not what its name says, another `ImageError` for a folder
    that is no layout, has no image in it, or more than `most_bytes` bytes of them.
    """
    folder = Store(path)
    found = folder.entries()
    images = [Loaded(image, names) for image, names in found.items() if names or is_image(folder, image)]
    if not images:
        raise ImageError(
            f"the folder {path} holds no image: expected an OCI layout with an index.json, as "
            "skopeo copy writes it. A root file system is run as it is: Container(folder)"
        )
    copy_images(folder, store, images, most_bytes=most_bytes)
    return tuple(images)


def copy_images(source: Store, target: Store, images: list[Loaded], *, most_bytes: int = MOST_BYTES) -> None:
    """Copy images from one store to another, and name them there; all or none of them.

    What an image of several platforms lacks in `source` it lacks in `target`.
    """
    for image in images:
        lacking = missing(source, image.descriptor)
        if lacking is not None:
            raise ImageError(
                f"{source.path} lacks the blob {lacking}, which its image {image.descriptor.digest} needs"
            )
    needed = sorted(reachable(source, [image.descriptor for image in images], strict=True))
    if len(needed) > _MOST_BLOBS:
        raise ImageError(f"{source.path}: more than {_MOST_BLOBS} blobs in its images")
    with target.lease():
        for digest in needed:
            try:
                size = source.size(digest)
            except OSError as error:
                raise ImageError(f"can't read {digest} in {source.path}: {error.strerror}") from error
            if size is None or target.has(digest, size):
                continue
            most_bytes -= size
            if most_bytes < 0:
                raise ImageError(f"{source.path}: its images have too many bytes")
            with source.open(digest) as file, target.writer(digest, size) as writer:
                while piece := file.read(_PIECE):
                    writer.write(piece)
                writer.commit()
        for image in images:
            for reference in image.references:
                target.tag(reference, image.descriptor)
            if not image.references:
                target.keep(image.descriptor)
