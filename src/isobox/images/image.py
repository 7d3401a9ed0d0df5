"""Images for people: what `isobox.Image` is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Literal, TypeAlias, get_args

from attrs import field, frozen

from isobox import forks
from isobox.errors import ImageError, InvalidReference, NotFound, SpecError
from isobox.options import ConfigOptions, known

from .archives.archive import load
from .archives.folder import copy_images, load_folder
from .archives.importing import import_folder, import_tar
from .archives.outfile import replacing, writing
from .archives.save import Saved, save, together
from .documents.descriptor import Descriptor
from .documents.model import ImageConfig
from .documents.platform import Platform, best
from .documents.reference import Reference
from .layout.choose import Chosen, choose, choose_there
from .local import own_layers, unused
from .making import Changes
from .store import Store

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .registry.progress import Report

__all__ = ["Format", "Image"]

Format: TypeAlias = Literal["oci", "docker", "oci-dir"]


@frozen(eq=False)
class Image:
    """An image of a store, this user's by default; what ``Container("debian:12")`` runs.

    Made by `pull`, `load`, `from_dir`, `from_tar`, `get` and `all`. Two are equal where they have the same
    digest. It is read when it is made, and knows nothing of names that others give or take later.

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
    def load(cls, path: str | os.PathLike[str] | IO[bytes], *, store: Store | None = None) -> Image:
        """Read the image of an archive or a folder into the store, with the names that it has there.

        The archive is what ``docker save``, ``podman save`` and ``skopeo copy`` write (Docker's format or an
        OCI layout in a tar), plain or compressed with gzip, zstd or xz; a binary file, a pipe say, is read
        to its end. A folder is an OCI layout, as ``skopeo copy`` and umoci write it. Nothing of a damaged one
        gets a name. An image without a name is found by its `id`, and stays until `Store.prune`.

        `store`: None for this user's. Raises `NotFound`, `ImageError`; also where there are several images:
        see `load_all`.
        """
        images = cls.load_all(path, store=store)
        if len(images) == 1:
            return images[0]
        names = ", ".join(" ".join(image.references) or image.id[:19] for image in images)
        raise ImageError(f"{_shown(path)}: {len(images)} images were loaded: {names}. Use Image.load_all")

    @classmethod
    def load_all(cls, path: str | os.PathLike[str] | IO[bytes], *, store: Store | None = None) -> list[Image]:
        """Read every image of an archive or a folder; in its order. Raises as `load` does."""
        store = store or Store.default()
        if not isinstance(path, str | os.PathLike):
            loaded = load(store, path)
        elif os.path.isdir(path):
            loaded = load_folder(store, os.fspath(path))
        else:
            with _opened(os.fspath(path)) as file:
                loaded = load(store, file)
        return [cls._of(store, item.descriptor, item.references) for item in loaded]

    @classmethod
    def pull(
        cls,
        reference: str,
        *,
        platform: str | None = None,
        progress: bool | Report = False,
        insecure: bool = False,
        store: Store | None = None,
    ) -> Image:
        """Fetch an image from its registry into the store, unpacked and ready to run.

        `reference`: ``"debian:12"`` is Docker Hub's, ``"registry.example:5000/team/app:1"`` another's.
        `platform`: ``"linux/arm64"``, None for this machine's. `progress`: True for a bar on standard error,
        or what is to be called with a `Progress` for everything that happens, by one thread at a time.
        `insecure`: a registry that isn't on this machine may speak plain http, and its certificate is not
        looked at. Logins are those that `isobox login`, Docker and podman keep. `store`: None for this
        user's; for another one nothing is unpacked.

        What is there already isn't fetched again; the name goes to the image when all of it is there. Raises
        `NotFound`, `RegistryError`, `DigestMismatch`, `InvalidReference`, `SpecError`, `ImageError`.

        >>> image = isobox.Image.pull("registry.example/team/app:1", progress=True)  # doctest: +SKIP
        """
        with forks.whole:
            from .registry.progress import reporting
            from .registry.pull import pull
        name = Reference.parse(reference)
        wanted = Platform.here() if platform is None else Platform.parse(platform)
        runs_here = best([wanted], Platform.here()) is not None
        with contextlib.ExitStack() as stack:
            unpack = runs_here and store is None
            layers = stack.enter_context(own_layers()) if unpack else None
            store = store or Store.default()
            report = stack.enter_context(reporting(progress))
            descriptor = pull(store, name, platform=wanted, progress=report, insecure=insecure, layers=layers)
        chosen = choose(store, descriptor, wanted)
        return cls(store, descriptor, chosen, _familiar(_names(store, descriptor)))

    @classmethod
    def from_dir(
        cls,
        path: str | os.PathLike[str],
        reference: str | None = None,
        *,
        store: Store | None = None,
        **changes: Unpack[ConfigOptions],
    ) -> Image:
        """Make an image of one layer, all that is in a folder; equal content gives an equal layer.

        Links are kept as links, and what is mounted below the folder is left out. Owners are as they are
        for root; an ordinary user's files belong to root in the image, and so do others' files, but for
        those of subordinate ids, which belong to the users whom these stand for in its containers.

        `reference`: its name; without one it stays until `Store.prune`. `changes`: what `Container.commit`
        takes for the config. With SOURCE_DATE_EPOCH in the environment, that is the time of all that is
        later. Raises `NotFound`, `ImageError`, `SpecError`.

        >>> import tempfile
        >>> from isobox import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image = Image.from_dir(folder, "empty:1", cmd=["/bin/sh"])
        >>> image.references, image.config.config.cmd
        (('empty:1',), ('/bin/sh',))
        >>> image.remove()
        """
        known(changes, ConfigOptions.__annotations__)
        store = store or Store.default()
        descriptor = import_folder(store, os.fspath(path), reference, Changes(**changes))
        return cls.get(str(descriptor.digest), store=store)

    @classmethod
    def from_tar(
        cls,
        path: str | os.PathLike[str] | IO[bytes],
        reference: str | None = None,
        *,
        store: Store | None = None,
        **changes: Unpack[ConfigOptions],
    ) -> Image:
        """Make an image of one layer, the tar archive of a root file system.

        The archive, plain or compressed with gzip, zstd or xz, may be a path or a binary file, which is read
        to its end. The rest is as `from_dir` has it; the archive itself is not changed, and it is unpacked
        by the first container. Raises `NotFound`, `UnpackError`, `ImageError`, `SpecError`.
        """
        known(changes, ConfigOptions.__annotations__)
        store = store or Store.default()
        if isinstance(path, str | os.PathLike):
            with _opened(os.fspath(path)) as file:
                descriptor = import_tar(store, file, reference, Changes(**changes))
        else:
            descriptor = import_tar(store, path, reference, Changes(**changes))
        return cls.get(str(descriptor.digest), store=store)

    @classmethod
    def get(cls, name: str, *, platform: str | None = None, store: Store | None = None) -> Image:
        """Return the image that a reference, a digest or id, or the beginning of its digits means.

        `platform`: what is said of an image for several is for this one, ``"linux/arm64"``. None: for this
        machine's where the store has that, else for the first that it has; such an image can be
        named, saved, pushed and removed, though not run. `store`: None for this user's.

        Raises `NotFound`, `ImageError`, also where several are meant, and `SpecError`.
        """
        store = store or Store.default()
        descriptor = store.resolve(name)
        names = _names(store, descriptor)
        if platform is None:
            return cls._of(store, descriptor, names)
        chosen = choose(store, descriptor, Platform.parse(platform))
        return cls(store, descriptor, chosen, _familiar(names))

    @classmethod
    def all(cls, *, store: Store | None = None) -> list[Image]:
        """Return every container image, by its first name; those without one are last.

        Those for other platforms are among them: see `get`. `store`: None for this user's.
        """
        store = store or Store.default()
        images = []
        for descriptor, names in store.entries().items():
            with contextlib.suppress(ImageError):  # damaged, or no container's: `get` says which
                images.append(cls._of(store, descriptor, names))
        return sorted(images, key=lambda image: (not image.references, image.references, image.id))

    @classmethod
    def _of(cls, store: Store, descriptor: Descriptor, names: Iterable[Reference]) -> Image:
        return cls(store, descriptor, choose_there(store, descriptor), _familiar(names))

    @property
    def digest(self) -> str:
        """The digest of its manifest, or of its index where it is one for several platforms."""
        return str(self._descriptor.digest)

    @property
    def id(self) -> str:
        """What Docker calls its id: the digest of its config, for the platform of `config`."""
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

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """The bytes of each of `layers`, as it is stored."""
        return tuple(layer.size for layer, _ in self._chosen.layers)

    @property
    def in_use(self) -> bool:
        """Whether a container of this user runs it now; another process keeps it for some seconds longer."""
        return self._descriptor.digest not in unused(self._store)

    def save(
        self,
        path: str | os.PathLike[str] | IO[bytes],
        *,
        format: Format = "oci",
        platform: str | None = None,
    ) -> None:
        """Write it to an archive, with all of its names; see `save_all`.

        >>> import isobox, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for image in isobox.Image.all():
        ...         image.save(f"{folder}/image.tar", format="docker")
        """
        self.save_all([self], path, format=format, platform=platform)

    @classmethod
    def save_all(
        cls,
        images: Iterable[Image | str],
        path: str | os.PathLike[str] | IO[bytes],
        *,
        format: Format = "oci",
        platform: str | None = None,
        store: Store | None = None,
    ) -> None:
        """Write images to one archive: what stands here as text with that name alone, others with all.

        `format`: "oci" is an OCI layout in a tar (``oci-archive:`` of skopeo and podman); "docker" the same
        with a manifest.json, for ``docker load`` and all others; "oci-dir" a folder that is an OCI layout
        (``oci:`` of skopeo, umoci), which is made, or added to where it is one already. The layers are as
        they are in the store. An archive takes the place of what was at `path` as a whole, once it is on
        disk; a binary file gets it as it comes.

        Of an image for several platforms all that the store has is written, and in Docker's list stands the
        one for this machine or that it was pulled for, else the first that the store has. `platform`: that
        one alone, such as "linux/arm64"; umoci reads nothing else. `store`: None for this user's, where
        there is text. Raises `NotFound`, and `ImageError` also for what the machine refuses.
        """
        if format not in get_args(Format):
            raise SpecError("format", format, "one of " + ", ".join(get_args(Format)))
        wanted = None if platform is None else Platform.parse(platform)
        parts: list[Saved] = []
        stores: dict[str, Store] = {}
        for image in images:
            source = image._store if isinstance(image, Image) else store or Store.default()
            stores[source.path] = source
            if isinstance(image, Image):
                names: Iterable[Reference] = map(Reference.parse, image.references)
                part = Saved(image._descriptor, tuple(names), image._chosen.config.platform)
            else:
                descriptor = source.resolve(image)
                part = Saved(descriptor, _meant(source, descriptor, image))
            parts.append(part if wanted is None else part.alone(source, wanted))
        if len(stores) != 1:
            raise SpecError("images", sorted(stores), "images of one store, one at least")
        (source,) = stores.values()
        if not isinstance(path, str | os.PathLike):
            if format == "oci-dir":
                raise SpecError("path", path, "the path of a folder")
            with writing("the archive"):
                save(source, parts, path, docker=format == "docker")
        elif format == "oci-dir":
            copy_images(source, Store(path), [part.loaded for part in together(parts)])
        else:
            with replacing(os.fspath(path)) as file:
                save(source, parts, file, docker=format == "docker")

    def push(
        self,
        reference: str | None = None,
        *,
        platform: str | None = None,
        progress: bool | Report = False,
        insecure: bool = False,
    ) -> str:
        """Send it to a registry, where it gets the name `reference`; return the digest that it has there.

        `reference`: None for the only name that it has here. `platform`: of an image for several, only the
        one for that, ``"linux/arm64"``; None for all of them, which must be here or there then. `progress`
        and `insecure` are as for `pull`. What the registry has isn't sent again. Raises `RegistryError`,
        `NotFound`, `DigestMismatch`, `InvalidReference`, `SpecError`, `ImageError`.

        >>> image.push("registry.example/team/app:1")  # doctest: +SKIP
        'sha256:...'
        """
        with forks.whole:
            from .registry.progress import reporting
            from .registry.push import push
        if reference is None:
            if len(self.references) != 1:
                names = " ".join(self.references) or "it has no name"
                raise ImageError(f"image {self.digest}: push: say under which name: {names}")
            reference = self.references[0]
        name = Reference.parse(reference)
        descriptor = self._descriptor
        if platform is not None:
            descriptor = choose(self._store, descriptor, Platform.parse(platform)).descriptor
        with reporting(progress) as report:
            push(self._store, descriptor, name, progress=report, insecure=insecure)
        return str(descriptor.digest)

    def tag(self, reference: str) -> Image:
        """Give it one more name, which another image may have had; return it with all its names.

        A name without a tag gets ``latest``. Raises `InvalidReference`, and `ImageError` where a part of the
        image is gone from the store.
        """
        self._store.tag(Reference.parse(reference), self._descriptor)
        names = _names(self._store, self._descriptor)
        return Image(self._store, self._descriptor, self._chosen, _familiar(names))

    def untag(self, reference: str) -> None:
        """Take one of its names away; with the last one the image goes, as by `remove`.

        Raises `NotFound` where that is none of its names.
        """
        name = Reference.parse(reference)
        if self._store.resolve(name).digest != self._descriptor.digest:
            raise NotFound(f"{name.familiar} is the name of another image")
        self._store.untag(name)
        self._store.prune(unnamed=False)

    def remove(self) -> None:
        """Take its names away, and free what no other image and no container needs; `NotFound`."""
        self._store.remove(self._descriptor.digest)
        self._store.prune(unnamed=False)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Image) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._descriptor.digest)


def _opened(name: str) -> IO[bytes]:
    try:
        # O_NONBLOCK: a fifo put there must not hang us.
        return os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except FileNotFoundError:
        raise NotFound(f"no such archive: {name}") from None
    except OSError as error:
        raise ImageError(f"can't read the archive {name}: {error.strerror}") from error


def _shown(path: object) -> str:
    return os.fspath(path) if isinstance(path, str | os.PathLike) else "the archive"


def _meant(store: Store, descriptor: Descriptor, text: str) -> tuple[Reference, ...]:
    """The name that `text` is of this image; none where it is a digest."""
    with contextlib.suppress(InvalidReference):
        name = Reference.parse(text)
        return (name,) if name in _names(store, descriptor) else ()
    return ()


def _names(store: Store, descriptor: Descriptor) -> tuple[Reference, ...]:
    found = [names for entry, names in store.entries().items() if entry.digest == descriptor.digest]
    return found[0] if found else ()


def _familiar(names: Iterable[Reference]) -> tuple[str, ...]:
    return tuple(sorted(name.familiar for name in names))
