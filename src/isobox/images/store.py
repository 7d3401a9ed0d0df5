"""The images of this machine: an OCI image layout that other tools can read in place.

``skopeo inspect oci:PATH:debian:12`` finds what ``Store(PATH)`` has as "debian:12". Any number of
threads and processes use one store at once. Reading takes no lock: index.json is replaced as a
whole, and blobs never change. What changes the index holds the store's lock alone (layout.py), and
leases.py says why no prune takes away what somebody is about to name.

Killed at any moment, a store is as it was before or after a change. Other tools know nothing of
the lock: they may read at any time, and write when nobody else does.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from isobox.errors import ImageError, InvalidReference, NotFound, shown
from isobox.owners import DATA, check_directory, data_dir

from .documents.descriptor import Descriptor
from .documents.digest import Digest
from .documents.fields import MOST_BYTES, Fields
from .documents.reference import Reference
from .layout.blobs import Blobs
from .layout.halves import AGE
from .layout.index_file import IndexFile, bare, is_unnamed, name_of, named, short_name
from .layout.layout import OWN
from .layout.leases import collect
from .layout.walk import configs, find, is_image, missing, reachable

if TYPE_CHECKING:
    from .image import Image

__all__ = ["Discarded", "ImageSize", "Pruned", "Sizes", "Store"]

_ID: Final = re.compile("(?:sha256:|sha512:)?([0-9a-f]{4,128})")
_PLACE: Final = "images"  # in the data folder
_SHOWN: Final = 8  # images in a message


@frozen
class Pruned:
    """What `Store.prune` removed.

    `size`: the bytes of blobs, those of dead processes' half-written ones too. `images`: the digests of
    images without a name. `layers`: the chain ids of unpacked layers, whose bytes nobody counts. `used`: the
    layers of images that are gone, which a container uses or its process keeps ready: they stay until a
    later prune.
    """

    blobs: tuple[Digest, ...]
    size: int
    images: tuple[Digest, ...] = ()
    layers: tuple[Digest, ...] = ()
    used: tuple[Digest, ...] = ()


@frozen
class Discarded:
    """What `Store.discard` took away: names, and the image's digest; None where it has other names.

    `used`: as `Pruned` has it.
    """

    names: tuple[str, ...]
    image: Digest | None
    used: tuple[Digest, ...] = ()


@frozen
class ImageSize:
    """The bytes of one image's files in a store.

    `unique` are those that no other image there has, which removing it would free; `shared` the
    others, such as a common base's layers.
    """

    digest: Digest
    references: tuple[Reference, ...]
    unique: int
    shared: int


@frozen
class Sizes:
    """The bytes of all blobs in a store, each counted once; `unused` is what a prune may free."""

    total: int
    unused: int
    images: tuple[ImageSize, ...]


class Store(Blobs):
    """Images below `path`, which is made by the first change; `Store.default` is the user's own.

    ``Image.load(path, store=store)`` and its likes put images in, `images` lists them and `prune`
    clears up. What stands below these two is for whoever moves blobs and names by hand: blobs are
    put in and read as `Blobs` says. Every method raises `ImageError` for what is wrong on disk and
    for what the machine refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Store(folder)
    ...     store.images(), store.prune().size
    ([], 0)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._parsed: tuple[bytes, bytes, IndexFile] | None = None

    @classmethod
    def default(cls) -> Store:
        """Return the store of this user: `images` in the data folder (ISOBOX_DATA_DIR).

        Raises `UnsupportedError` where that isn't this user's alone.
        """
        data = data_dir()
        check_directory(data, DATA)
        path = f"{data}/{_PLACE}"
        with contextlib.suppress(OSError):  # the next line says it better
            os.mkdir(path, 0o700)
        check_directory(path, DATA)
        return cls(path)

    def images(self) -> list[Image]:
        """Return every container image, as `Image.all` does."""
        from .image import Image  # which knows stores

        return Image.all(store=self)

    # Names

    def entries(self) -> dict[Descriptor, tuple[Reference, ...]]:
        """Every image and artifact with its names, which may be none; in the order of the index."""
        found: dict[Digest, tuple[Descriptor, list[Reference]]] = {}
        for entry in self._index().manifests:
            _, names = found.setdefault(entry.digest, (bare(entry), []))
            if (name := name_of(entry)) is not None:
                names.append(name)
        return {descriptor: tuple(sorted(set(names), key=str)) for descriptor, names in found.values()}

    def references(self) -> tuple[Reference, ...]:
        """The names of all images, sorted by their full form."""
        names = {name for entry in self._index().manifests if (name := name_of(entry)) is not None}
        return tuple(sorted(names, key=str))

    def resolve(self, name: Reference | Digest | str) -> Descriptor:
        """Return the descriptor of an image: of its index where it is one for several platforms.

        Text may be a full or a short reference, a digest, or the beginning of a digest's digits,
        at least 4 of them; the digest of a config, which Docker calls the image's id, will do. A
        reference with a digest names what the images of its repository have by that digest, be it the
        manifest of one platform. Raises `NotFound`, and `ImageError`
        where several images are meant.
        """
        entries = self._index().manifests
        if isinstance(name, str):
            found = self._by_text(entries, name)
        elif isinstance(name, Digest):
            found = find(self, entries, name) or self._by_id(entries, str(name), name.hex)
        elif isinstance(name, Reference):
            found = self._by_reference(entries, name)
        else:
            raise InvalidReference(
                f'image {shown(name)}: expected its name or id as text, such as "debian:12"'
            )
        if found is None:
            text = name.familiar if isinstance(name, Reference) else str(name)
            remedy = "Fetch it with isobox pull, or read it from an archive with isobox load"
            where = f"the store {self._layout.where()}"
            raise NotFound(f"no image {shown(text)} in {where}. {remedy}")
        return bare(found)

    def _by_text(self, entries: tuple[Descriptor, ...], text: str) -> Descriptor | None:
        is_id = _ID.fullmatch(text)
        with contextlib.suppress(ImageError):
            digest = Digest.parse(text)
            return find(self, entries, digest) or self._by_id(entries, text, digest.hex)
        try:
            found = self._by_reference(entries, Reference.parse(text))
        except InvalidReference:
            # Another tool's name, such as "Foo".
            same = [entry for entry in entries if text and short_name(entry) == text]
            if not same and is_id is None:
                raise
            found = self._one(same, text)
        if found is None and is_id is not None:
            found = self._by_id(entries, text, is_id[1])
        return found

    def _by_id(self, entries: tuple[Descriptor, ...], text: str, digits: str) -> Descriptor | None:
        """The image whose digest begins like this, or else the one whose config's does."""
        found = [entry for entry in entries if entry.digest.hex.startswith(digits)]
        if not found:
            for entry in entries:
                if any(digest.hex.startswith(digits) for digest in configs(self, entry)):
                    found.append(entry)
        return self._one(found, text)

    def _by_reference(self, entries: tuple[Descriptor, ...], reference: Reference) -> Descriptor | None:
        if reference.digest is None:
            return self._one([entry for entry in entries if name_of(entry) == reference], reference.familiar)
        roots = []
        for entry in entries:
            known = name_of(entry)
            if known is not None and known.name == reference.name:
                roots.append(entry)
        return find(self, roots, reference.digest)

    def _one(self, found: list[Descriptor], name: str) -> Descriptor | None:
        digests = sorted({str(entry.digest) for entry in found})
        if len(digests) > 1:
            listed = ", ".join(digests[:_SHOWN]) + (", ..." if len(digests) > _SHOWN else "")
            raise ImageError(
                f"{shown(name)} may be any of {len(digests)} images in the store {self._layout.where()}: "
                f"{listed}. Say which by its digest"
            )
        return found[0] if found else None

    def tag(self, reference: Reference, descriptor: Descriptor) -> None:
        """Give an image a name, which another image may have had until now.

        The image must be there: a manifest with its config and all of its layers, or an index
        with at least one such manifest; otherwise an ImageError says what is missing. An image
        that thereby loses its last name is removed by the next `prune`.
        """
        if reference.tag is None and reference.digest is None:
            raise ImageError(f"name {reference}: expected a tag or a digest behind it")
        if reference.digest not in (None, descriptor.digest):
            raise ImageError(f"name {reference}: the image that it was to name is {descriptor.digest}")
        with self._changing() as index:
            self._check(descriptor, f"name {descriptor.digest} {reference.familiar}")
            entry = named(bare(descriptor), reference)
            others = [
                other
                for other in index.manifests
                if name_of(other) != reference
                and not (other.digest == descriptor.digest and is_unnamed(other))
            ]
            self._write(index.with_entries([*others, entry]))

    def keep(self, descriptor: Descriptor) -> None:
        """Have an image stay without a name, until a `prune`; nothing happens where it has one.

        Raises as `tag` does.
        """
        with self._changing() as index:
            self._check(descriptor, f"keep {descriptor.digest}")
            if not any(entry.digest == descriptor.digest for entry in index.manifests):
                self._write(index.with_entries([*index.manifests, bare(descriptor)]))

    def _check(self, descriptor: Descriptor, what: str) -> None:
        """Raise ImageError where an image is not all there."""
        with self._layout.doing(f"look for the image {descriptor.digest}"):
            lacking = missing(self, descriptor)
        if lacking is not None:
            raise ImageError(
                f"store {self._layout.where()}: can't {what}: its blob {lacking} is not there. "
                "Pull or load the image again"
            )

    def untag(self, reference: Reference) -> None:
        """Take a name away; `NotFound` where no image has it. Blobs stay until the next `prune`."""
        if not any(name_of(entry) == reference for entry in self._index().manifests):
            raise self._no_name(reference)
        with self._changing() as index:
            kept = [entry for entry in index.manifests if name_of(entry) != reference]
            if len(kept) == len(index.manifests):
                raise self._no_name(reference)
            self._write(index.with_entries(kept))

    def _no_name(self, reference: Reference) -> NotFound:
        return NotFound(f"no image {shown(reference.familiar)} in the store {self._layout.where()}")

    def remove(self, digest: Digest) -> tuple[Reference, ...]:
        """Take all names of an image away, and return them; it may have had none. `NotFound`."""
        missing_image = NotFound(f"no image {digest} in the store {self._layout.where()}")
        if not any(entry.digest == digest for entry in self._index().manifests):
            raise missing_image
        with self._changing() as index:
            gone = [entry for entry in index.manifests if entry.digest == digest]
            if not gone:
                raise missing_image
            self._write(index.with_entries(entry for entry in index.manifests if entry.digest != digest))
        return tuple(sorted({name for entry in gone if (name := name_of(entry)) is not None}, key=str))

    # The index

    def _index(self) -> IndexFile:
        version = self._layout.read("oci-layout", MOST_BYTES)
        data = self._layout.read("index.json", MOST_BYTES)
        if version is None:
            # Not there yet, or not finished: nothing can be named in it.
            if data is None or os.path.lexists(f"{self.path}/{OWN}"):
                return IndexFile()
            raise ImageError(f"store {self._layout.where()}: no OCI image layout: it has no oci-layout file")
        kept = self._parsed
        if kept is not None and kept[:2] == (version, data):
            return kept[2]
        what = self._layout.where("oci-layout")
        found = Fields.read(version, what).required_text("imageLayoutVersion")
        if not found.startswith("1."):
            raise ImageError(f"{what}: imageLayoutVersion: expected 1.0.0, got {shown(found)}")
        what = self._layout.where("index.json")
        if data is None:
            raise ImageError(f"{what}: missing, so nothing says what the blobs are. Restore it")
        index = IndexFile.parse(data, what)
        self._parsed = version, data, index
        return index

    @contextlib.contextmanager
    def _changing(self) -> Iterator[IndexFile]:
        with self._layout.locked():
            yield self._index()

    def _write(self, index: IndexFile) -> None:
        self._layout.replace("index.json", index.encode())

    # What there is

    def prune(self, *, unnamed: bool = True, unused: bool = False) -> Pruned:
        """Remove the images without a name, and the blobs that no image and no living process needs.

        What cut and killed pulls have left half-fetched goes too, and in the user's own store the unpacked
        layers of images that are gone, but for those that a container uses. `unnamed`: False keeps the
        images without a name, and what was half-fetched in the last day. `unused`: images with names go too
        where no container of this user runs them. What is no image, an artifact of another tool say, stays.

        An index or manifest that is damaged is an ImageError, and nothing is removed: its image's
        layers could not be told from others.
        """
        if not os.path.isdir(self.path):
            return Pruned((), 0)
        free = self._unused() if unused else set()
        removed: list[Digest] = []
        with self._changing() as index, self._layout.doing("prune"):
            kept, size = collect(self._layout, age=0.0 if unnamed else AGE)
            needed = reachable(self, index.manifests, strict=True)
            gone = [
                entry
                for entry in index.manifests
                if entry.digest in free or (unnamed and is_unnamed(entry) and is_image(self, entry))
            ]
            if gone:
                index = index.with_entries(entry for entry in index.manifests if entry not in gone)
                self._write(index)
                needed = reachable(self, index.manifests, strict=True)
            needed |= kept
            for digest, length in list(self._files()):
                if digest not in needed:
                    with (
                        self._layout.directory("blobs", digest.algorithm) as directory,
                        contextlib.suppress(FileNotFoundError),
                    ):
                        os.unlink(digest.hex, dir_fd=directory)
                    removed.append(digest)
                    size += length
        images = tuple(dict.fromkeys(entry.digest for entry in gone))
        return Pruned(tuple(sorted(removed)), size, images, *self._prune_layers())

    def discard(self, name: str, *, force: bool = False) -> Discarded:
        """Take a name away, and its image with the last one, as people expect of ``rmi``.

        A digest or an id means the image itself: where that has several names, ImageError lists them, unless
        `force`. Images for other machines go as well. Then blobs and layers that nothing needs are
        removed, as by `prune`; images without a name stay. Raises `NotFound`.
        """
        digest = self.resolve(name).digest
        found = [names for image, names in self.entries().items() if image.digest == digest]
        if not found:
            raise ImageError(
                f"{shown(name)} is a part of an image for several platforms. Remove that, by its name"
            )
        (names,) = found
        one = None
        with contextlib.suppress(InvalidReference):
            one = Reference.parse(name)
        if one in names and len(names) > 1:
            self.untag(one)
            gone = Discarded((one.familiar,), None)
        elif one not in names and len(names) > 1 and not force:
            listed = ", ".join([other.familiar for other in names[:_SHOWN]])
            raise ImageError(f"{shown(name)} has several names: {listed}. Remove these, or use force")
        else:
            gone = Discarded(tuple(other.familiar for other in self.remove(digest)), digest)
        return evolve(gone, used=self.prune(unnamed=False).used)

    def _unused(self) -> set[Digest]:
        from .local import unused  # which knows stores

        return unused(self)

    def _prune_layers(self) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
        if self.path != os.path.abspath(f"{data_dir()}/{_PLACE}"):
            return (), ()
        from .local import prune_layers  # which knows stores

        return prune_layers(self)

    def sizes(self) -> Sizes:
        """Measure all images and the whole: the lengths of files, a shared layer counted once."""
        index = self._index()
        with self._layout.doing("look through the blobs"):
            sizes = dict(self._files())
        images: dict[Digest, set[Digest]] = {}
        names: dict[Digest, set[Reference]] = {}
        for entry in index.manifests:
            if entry.digest not in images:
                images[entry.digest] = reachable(self, [entry], strict=False) & sizes.keys()
            if (name := name_of(entry)) is not None:
                names.setdefault(entry.digest, set()).add(name)
        users = Counter(digest for parts in images.values() for digest in parts)
        measured = []
        for digest, parts in images.items():
            unique = sum(sizes[part] for part in parts if users[part] == 1)
            shared = sum(sizes[part] for part in parts if users[part] > 1)
            references = tuple(sorted(names.get(digest, ()), key=str))
            measured.append(ImageSize(digest, references, unique, shared))
        unused = sum(size for digest, size in sizes.items() if digest not in users)
        return Sizes(sum(sizes.values()), unused, tuple(measured))

    def _files(self) -> Iterator[tuple[Digest, int]]:
        """Every blob and its bytes; what else is in its place has none. Raises OSError."""
        try:
            with self._layout.directory("blobs") as directory:
                algorithms = os.listdir(directory)
        except FileNotFoundError:
            return
        for algorithm in algorithms:
            try:
                with self._layout.directory("blobs", algorithm) as directory:
                    for name in os.listdir(directory):
                        with contextlib.suppress(ImageError, FileNotFoundError):  # none of ours; gone by now
                            digest = Digest(algorithm, name)
                            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                            if not stat.S_ISDIR(status.st_mode):
                                yield digest, status.st_size if stat.S_ISREG(status.st_mode) else 0
            except (FileNotFoundError, NotADirectoryError):
                continue
