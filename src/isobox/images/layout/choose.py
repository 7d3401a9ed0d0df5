"""From a name in a store to what one container runs: a manifest, its config, its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from attrs import frozen

from isobox.errors import ImageError, NotFound

from ..documents.descriptor import Descriptor
from ..documents.digest import Digest
from ..documents.media import CONFIGS, plain_media_type
from ..documents.model import ImageConfig, Index, Manifest, pair_layers
from ..documents.platform import Platform, best
from .blobs import Blobs
from .walk import document, lacking, manifests

__all__ = ["Chosen", "Unsuited", "choose", "choose_there", "platforms_there"]

_DEEPEST: Final = 4  # indexes in each other
_MOST: Final = 100  # documents that are looked at


@frozen
class Chosen:
    """One image for one platform. `layers` has each layer with its diff_id, the lowest first."""

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig
    layers: tuple[tuple[Descriptor, Digest], ...]

    @property
    def id(self) -> Digest:
        """What Docker calls the image's id: the digest of its config."""
        return self.manifest.config.digest


def choose(
    blobs: Blobs,
    descriptor: Descriptor,
    wanted: Platform | None = None,
    *,
    fetch: Callable[[Descriptor], object] | None = None,
) -> Chosen:
    """Return the image behind `descriptor` for a platform (None: this machine's).

    An index leads to its best image that is there. `fetch` is called with each document before it is read,
    and may put it there. Raises `ImageError` where there is none for this
    platform, and where a document is damaged or is no container image's; `NotFound` where a blob is not
    in the store.
    """
    wanted = wanted or Platform.here()
    return _Search(blobs, wanted, fetch or _nothing).of(descriptor, 0)


def choose_there(blobs: Blobs, descriptor: Descriptor, wanted: Platform | None = None) -> Chosen:
    """As `choose`; where that one isn't all there, the first image of another platform that is.

    For all that is done to images but running them.
    """
    try:
        found = choose(blobs, descriptor, wanted)
    except (NotFound, Unsuited):
        other = next(_there(blobs, descriptor), None)
        if other is None:
            raise
        return other
    if lacking(blobs, found.manifest) is None:
        return found
    return next(_there(blobs, descriptor), found)


def platforms_there(blobs: Blobs, descriptor: Descriptor) -> tuple[Platform, ...]:
    """The platforms of the container images behind `descriptor` that are all there, in their order."""
    return tuple(dict.fromkeys(chosen.config.platform for chosen in _there(blobs, descriptor)))


def _there(blobs: Blobs, root: Descriptor) -> Iterator[Chosen]:
    for descriptor, manifest in manifests(blobs, root):
        if lacking(blobs, manifest) is not None:
            continue
        try:
            config = _config(blobs, descriptor, manifest)
            chosen = Chosen(descriptor, manifest, config, pair_layers(manifest, config))
        except ImageError:
            continue  # damaged, or no container image
        yield chosen


def _config(blobs: Blobs, descriptor: Descriptor, manifest: Manifest) -> ImageConfig:
    if plain_media_type(manifest.config.media_type) not in CONFIGS:
        raise Unsuited(
            f"image {descriptor.digest}: it is no container image: its config is {manifest.config.media_type}"
        )
    return ImageConfig.parse(blobs.read(manifest.config.digest), manifest.config.media_type)


class _Search:
    def __init__(self, blobs: Blobs, wanted: Platform, fetch: Callable[[Descriptor], object]) -> None:
        self._blobs = blobs
        self._wanted = wanted
        self._fetch = fetch
        self._looked = 0

    def of(self, descriptor: Descriptor, depth: int) -> Chosen:
        self._looked += 1
        if depth > _DEEPEST or self._looked > _MOST:
            raise ImageError(f"image {descriptor.digest}: indexes in it that lead to others without an end")
        self._fetch(descriptor)
        found = document(self._blobs, descriptor)
        if isinstance(found, Manifest):
            return self._image(descriptor, found)
        return self._of_index(found, depth)

    def _of_index(self, index: Index, depth: int) -> Chosen:
        problem: ImageError | None = None
        try:
            choices = index.choices(self._wanted)
        except ImageError as error:
            raise Unsuited(str(error)) from None
        for choice in choices:
            try:
                return self.of(choice, depth + 1)
            except (NotFound, Unsuited) as error:
                problem = problem or error
        assert problem is not None  # there is a first choice
        raise problem

    def _image(self, descriptor: Descriptor, manifest: Manifest) -> Chosen:
        if plain_media_type(manifest.config.media_type) in CONFIGS:
            self._fetch(manifest.config)
        config = _config(self._blobs, descriptor, manifest)
        if best([config.platform], self._wanted) is None:
            raise Unsuited(
                f"image {descriptor.digest} is for {config.platform}: expected one for {self._wanted}"
            )
        return Chosen(descriptor, manifest, config, pair_layers(manifest, config))


def _nothing(descriptor: Descriptor) -> None:
    """Fetch nothing: what is there is there."""


class Unsuited(ImageError):
    """It is for another platform, or no container image; another one of an index may do."""
