"""Images for people: what `isobox.Image` is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from attrs import field, frozen

from isobox.errors import ImageError, NotFound

from .archive import Loaded, load
from .choose import Chosen, choose
from .descriptor import Descriptor
from .digest import Digest
from .local import forget, own_layers
from .model import ImageConfig, chain_ids
from .reference import Reference
from .store import Store

__all__ = ["Image"]


@frozen(eq=False)
class Image:
    """An image of this user's store; what ``Container("debian:12")`` runs.

    Made by `load`, `get` and `all`. Two are equal where they have the same digest. It is read when it is
    made, and knows nothing of names that others give or take later.

    >>> import isobox
    >>> for image in isobox.Image.all():
    ...     print(image.references, image.size)
    """

    _store: Store = field(repr=False)
    _descriptor: Descriptor
    _chosen: Chosen = field(repr=False)
    references: tuple[str, ...] = ()
    """Its names, as Docker shows them, sorted: ``("debian:12",)``."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Image:
        """Read the image of an archive into the store, with the names that it has there.

        The archive is what ``docker save``, ``podman save`` and ``skopeo copy`` write (Docker's format or an
        OCI layout in a tar), plain or compressed with gzip, zstd or xz. Nothing of a damaged one gets a
        name. Raises `NotFound`, `ImageError`; also where it holds several images: see `load_all`.
        """
        images = cls.load_all(path)
        if len(images) == 1:
            return images[0]
        names = ", ".join(" ".join(image.references) or image.id[:19] for image in images)
        raise ImageError(f"{os.fspath(path)}: {len(images)} images were loaded: {names}. Use Image.load_all")

    @classmethod
    def load_all(cls, path: str | os.PathLike[str]) -> list[Image]:
        """Read every image of an archive; in the archive's order. Raises as `load` does."""
        store = Store.default()
        name = os.fspath(path)
        try:
            # O_NONBLOCK: a fifo put there must not hang us.
            file = os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
        except FileNotFoundError:
            raise NotFound(f"no such archive: {name}") from None
        except OSError as error:
            raise ImageError(f"can't read the archive {name}: {error.strerror}") from error
        with file:
            loaded = load(store, file)
        return [cls._of(store, item.descriptor, item.references) for item in _named(loaded)]

    @classmethod
    def get(cls, name: str) -> Image:
        """Return the image that a reference, a digest or the beginning of its digits means.

        Raises `NotFound`, and `ImageError` where several are meant.
        """
        store = Store.default()
        descriptor = store.resolve(name)
        return cls._of(store, descriptor, _names(store, descriptor.digest))

    @classmethod
    def all(cls) -> list[Image]:
        """Return every image with a name that this machine could run, sorted by its first name."""
        store = Store.default()
        names: dict[Digest, list[Reference]] = {}
        descriptors: dict[Digest, Descriptor] = {}
        for reference in store.references():
            descriptor = store.resolve(reference)
            names.setdefault(descriptor.digest, []).append(reference)
            descriptors[descriptor.digest] = descriptor
        images = []
        for digest, descriptor in descriptors.items():
            with contextlib.suppress(ImageError):  # for another machine, or damaged: `get` says which
                images.append(cls._of(store, descriptor, names[digest]))
        return images

    @classmethod
    def _of(cls, store: Store, descriptor: Descriptor, names: Iterable[Reference]) -> Image:
        familiar = tuple(sorted(name.familiar for name in names))
        return cls(store, descriptor, choose(store, descriptor), familiar)

    @property
    def digest(self) -> str:
        """The digest of its manifest, or of its index where it is one for several platforms."""
        return str(self._descriptor.digest)

    @property
    def id(self) -> str:
        """What Docker calls its id: the digest of its config, for this machine's platform."""
        return str(self._chosen.id)

    @property
    def config(self) -> ImageConfig:
        """What it runs, with which environment, as whom (OCI image-spec, config.md)."""
        return self._chosen.config

    @property
    def created(self) -> str | None:
        """When it was made, as RFC 3339 writes it; None where it doesn't say."""
        return self._chosen.config.created

    @property
    def layers(self) -> tuple[str, ...]:
        """The digests of its layers' content, uncompressed (diff_ids), the lowest first."""
        return tuple(str(diff_id) for _, diff_id in self._chosen.layers)

    @property
    def size(self) -> int:
        """The bytes of its layers as they are stored; compressed, mostly."""
        return sum(layer.size for layer, _ in self._chosen.layers)

    def tag(self, reference: str) -> Image:
        """Give it one more name, which another image may have had; return it with all its names."""
        self._store.tag(Reference.parse(reference), self._descriptor)
        return Image.get(self.digest)

    def remove(self) -> None:
        """Take its names away, and free what no other image and no container needs; `NotFound`."""
        self._store.remove(self._descriptor.digest)
        self._store.prune()
        kept = [chain for image in Image.all() for chain in chain_ids(image.config.diff_ids)]
        forget()
        own_layers().prune(kept)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Image) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._descriptor.digest)


def _names(store: Store, digest: Digest) -> list[Reference]:
    return [name for name in store.references() if store.resolve(name).digest == digest]


def _named(loaded: Iterable[Loaded]) -> Iterable[Loaded]:
    unnamed = [item for item in loaded if not item.references]
    if unnamed:
        raise ImageError(
            f"the archive's image {unnamed[0].descriptor.digest} has no name: save it with one, such as "
            "docker save NAME:TAG"
        )
    return loaded
