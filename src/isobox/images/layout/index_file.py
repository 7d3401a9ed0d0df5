"""index.json: which images a layout has, and their names (image-spec, image-layout.md).

A name is written twice, since the tools differ. ``org.opencontainers.image.ref.name`` is what skopeo
and podman compare, letter by letter, with what stands behind ``oci:PATH:``, and umoci behind
``PATH:``; it gets the short form, "debian:12", that people type. ``io.containerd.image.name`` is what
containerd and Docker go by: it gets the full one. Of what others wrote, the full one counts where
the short one is the same or its tag alone, as containerd and Docker write it; else the short one,
since umoci copies an entry with all its annotations and changes that only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from attrs import evolve, field, frozen

from isobox.errors import ImageError, InvalidReference

from ..documents.descriptor import Descriptor
from ..documents.fields import Fields, encode
from ..documents.reference import Reference

__all__ = ["IndexFile", "bare", "is_unnamed", "name_of", "named", "short_name"]

REF_NAME: Final = "org.opencontainers.image.ref.name"
IMAGE_NAME: Final = "io.containerd.image.name"
_VERSION: Final = 2
_MOST: Final = 100_000  # more than the bytes of a document can hold


@frozen
class IndexFile:
    """The entries of an index.json, in order, and its other fields as they were."""

    manifests: tuple[Descriptor, ...] = ()
    extra: Mapping[str, Any] = field(factory=dict)

    @classmethod
    def parse(cls, data: bytes, what: str) -> IndexFile:
        """Read one; `what` names it in the `ImageError` for all that is none."""
        fields = Fields.read(data, what)
        if fields.number("schemaVersion") != _VERSION:
            fields.fail("schemaVersion", str(_VERSION))
        entries = [Descriptor.from_fields(entry) for entry in fields.objects("manifests", _MOST)]
        return cls(tuple(entries), fields.extra())

    def encode(self) -> bytes:
        """The bytes that `parse` reads; ImageError where they are too many for it."""
        entries = [entry.to_fields() for entry in self.manifests]
        try:
            return encode({**self.extra, "schemaVersion": _VERSION, "manifests": entries})
        except ImageError as error:
            raise ImageError(
                f"index.json: {error}. Remove images that nobody needs, or keep some in another store"
            ) from error

    def with_entries(self, entries: Iterable[Descriptor]) -> IndexFile:
        """The same with other entries."""
        return evolve(self, manifests=tuple(entries))


def name_of(entry: Descriptor) -> Reference | None:
    """The name of an image in an index.json; None where it has none that is a reference."""
    full, short = (_parsed(entry.annotations.get(key)) for key in (IMAGE_NAME, REF_NAME))
    if full is None or (short is not None and short != full and short_name(entry) != full.tag):
        return short
    return full


@lru_cache(4096)
def _parsed(name: str | None) -> Reference | None:
    try:
        return None if name is None else Reference.parse(name)
    except InvalidReference:
        return None


def is_unnamed(entry: Descriptor) -> bool:
    """Whether nobody has given it a name, be it one that is no reference."""
    return not (entry.annotations.get(REF_NAME) or entry.annotations.get(IMAGE_NAME))


def short_name(entry: Descriptor) -> str:
    """What skopeo and umoci call it, which need not be a reference; empty where they can't."""
    return entry.annotations.get(REF_NAME, "")


def named(descriptor: Descriptor, reference: Reference) -> Descriptor:
    """The entry that gives an image this name."""
    names = {REF_NAME: reference.familiar, IMAGE_NAME: str(reference)}
    return evolve(descriptor, annotations={**descriptor.annotations, **names})


def bare(entry: Descriptor) -> Descriptor:
    """The descriptor of an image without what makes it an entry of an index.json."""
    kept = {key: value for key, value in entry.annotations.items() if key not in (REF_NAME, IMAGE_NAME)}
    return evolve(entry, annotations=kept)
