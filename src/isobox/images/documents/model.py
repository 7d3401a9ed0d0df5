"""The documents of images as values: index, manifest, config and the descriptors in them.

OCI's (image-spec, image-index.md, manifest.md) and Docker's schema 2, which have the same fields.
Whoever follows descriptors from one document to the next bounds how many and how deep: an index
may name an index, and nothing here keeps two of them from naming each other's digests in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from isobox.errors import ImageError, shown

from .config import MOST_LAYERS, History, ImageConfig, RunConfig, chain_ids
from .descriptor import Descriptor
from .digest import Digest
from .fields import MOST_BYTES, Fields, encode
from .media import INDEXES, MANIFESTS, OCI_INDEX, OCI_MANIFEST, SCHEMA_1, plain_media_type
from .platform import Platform, best

__all__ = [
    "MOST_BYTES",
    "MOST_LAYERS",
    "MOST_MANIFESTS",
    "Descriptor",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "RunConfig",
    "chain_ids",
    "pair_layers",
    "parse_document",
]

MOST_MANIFESTS: Final = 20_000


@frozen
class Index:
    """A list of manifests, for several platforms or under several names (image-index.md).

    `raw` are the bytes that were parsed; a value that was made otherwise, by ``attrs.evolve`` say,
    has none.
    """

    manifests: tuple[Descriptor, ...] = ()
    annotations: Mapping[str, str] = field(factory=dict, hash=False)
    media_type: str = OCI_INDEX
    artifact_type: str | None = None
    subject: Descriptor | None = None
    extra: Mapping[str, Any] = field(factory=dict, hash=False)
    raw: bytes | None = field(init=False, default=None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.media_type not in INDEXES:
            raise ImageError(f"index: media type {shown(self.media_type)}: expected one of an index")

    @classmethod
    def parse(cls, data: bytes, media_type: str | None = None) -> Index:
        """Read an index as `parse_document` does; `ImageError` also where it is a manifest."""
        document = parse_document(data, media_type)
        if not isinstance(document, Index):
            raise ImageError(f"index: expected one, got a manifest ({document.media_type})")
        return document

    def encode(self) -> bytes:
        """The document: byte for byte the one that was parsed, else in `fields.encode`'s form."""
        if self.raw is not None:
            return self.raw
        return encode(_common(self) | {"manifests": [item.to_fields() for item in self.manifests]})

    def choices(self, wanted: Platform) -> tuple[Descriptor, ...]:
        """Return the images and indexes that may run on `wanted`, the best first.

        First the one that `platform.best` takes, then those that say no platform: their configs
        (or their own lists) do. Raises `ImageError`, which names the platforms that there are.
        """
        offered = [item for item in self.manifests if item.media_type in MANIFESTS | INDEXES]
        place = best([item.platform for item in offered], wanted)
        chosen = [] if place is None else [offered[place]]
        chosen += [item for item in offered if item.platform is None]
        if not chosen:
            named = sorted({str(item.platform) for item in offered} - {"unknown/unknown"})
            there = ", ".join(named[:20]) + (", ..." if len(named) > 20 else "")
            raise ImageError(f"the image has nothing for {wanted}; it has {there or 'no platforms at all'}")
        return tuple(chosen)


@frozen
class Manifest:
    """One image: its config and its layers, the lowest first (manifest.md).

    `raw` are the bytes that were parsed; a value that was made otherwise, by ``attrs.evolve`` say,
    has none.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    annotations: Mapping[str, str] = field(factory=dict, hash=False)
    media_type: str = OCI_MANIFEST
    artifact_type: str | None = None
    subject: Descriptor | None = None
    extra: Mapping[str, Any] = field(factory=dict, hash=False)
    raw: bytes | None = field(init=False, default=None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.media_type not in MANIFESTS:
            raise ImageError(f"manifest: media type {shown(self.media_type)}: expected one of a manifest")
        if len(self.layers) > MOST_LAYERS:
            raise ImageError(f"manifest: layers: expected at most {MOST_LAYERS}, got {len(self.layers)}")

    @classmethod
    def parse(cls, data: bytes, media_type: str | None = None) -> Manifest:
        """Read a manifest as `parse_document` does; `ImageError` also where it is an index."""
        document = parse_document(data, media_type)
        if not isinstance(document, Manifest):
            raise ImageError(f"manifest: expected one, got an index ({document.media_type})")
        return document

    def encode(self) -> bytes:
        """The document: byte for byte the one that was parsed, else in `fields.encode`'s form."""
        if self.raw is not None:
            return self.raw
        values = {"config": self.config.to_fields(), "layers": [item.to_fields() for item in self.layers]}
        return encode(_common(self) | values)


def parse_document(data: bytes, media_type: str | None = None) -> Index | Manifest:
    """Read an index or a manifest of at most `MOST_BYTES`; raises `ImageError`.

    `media_type` is what the descriptor or the Content-Type header says, None where nothing does.
    Where the document says it too, both must agree; where neither does, its fields decide. A
    document that could be read as both an index and a manifest is refused (CVE-2021-41190), and
    so is Docker's schema 1. The digest is not looked at here.

    >>> parse_document(b'{"schemaVersion": 2, "manifests": []}')
    Index(manifests=(), annotations={}, media_type='application/vnd.oci.image.index.v1+json', ...)
    """
    fields = Fields.read(data, "manifest")
    given = plain_media_type(media_type)
    own = fields.optional_text("mediaType")
    is_index, has_config, has_layers = (fields.has(name) for name in ("manifests", "config", "layers"))
    version = fields.number("schemaVersion")
    if given in SCHEMA_1 or own in SCHEMA_1 or version == 1:
        raise ImageError(
            "manifest: Docker's schema 1, which has no digest of its config; build the image anew, or "
            "convert it once with skopeo copy --format v2s2"
        )
    if version != 2:
        fields.fail("schemaVersion", "2")
    if given is not None and own is not None and given != own:
        raise ImageError(
            f"manifest: mediaType: expected {shown(given)}, as it was announced, got {shown(own)}"
        )
    if fields.has("fsLayers") or (is_index and (has_config or has_layers)):
        raise ImageError(
            "manifest: it can be read as an index and as a manifest: expected manifests, or config and layers"
        )
    kind = given or own or (OCI_INDEX if is_index else OCI_MANIFEST)
    document: Index | Manifest
    if kind in INDEXES:
        if not is_index:
            fields.fail("manifests", "an array of objects")
        manifests = [Descriptor.from_fields(item) for item in fields.objects("manifests", MOST_MANIFESTS)]
        document = Index(tuple(manifests), **_rest(fields, kind))
    elif kind in MANIFESTS:
        config = Descriptor.from_fields(fields.required_object("config"))
        if not has_layers:
            fields.fail("layers", "an array of objects")
        layers = [Descriptor.from_fields(item) for item in fields.objects("layers", MOST_LAYERS)]
        document = Manifest(config, tuple(layers), **_rest(fields, kind))
    else:
        raise ImageError(
            f"manifest: media type {shown(kind)}: expected an index or a manifest of OCI or Docker"
        )
    object.__setattr__(document, "raw", bytes(data))
    return document


def pair_layers(manifest: Manifest, config: ImageConfig) -> tuple[tuple[Descriptor, Digest], ...]:
    """Return each layer with its diff_id; raises `ImageError` where the two lists differ in length."""
    if len(manifest.layers) != len(config.diff_ids):
        raise ImageError(
            f"the manifest has {len(manifest.layers)} layers and its config {len(config.diff_ids)} diff_ids: "
            "expected as many of one as of the other"
        )
    return tuple(zip(manifest.layers, config.diff_ids, strict=True))


def _rest(fields: Fields, media_type: str) -> dict[str, Any]:
    subject = fields.object("subject")
    return {
        "annotations": fields.text_map("annotations"),
        "media_type": media_type,
        "artifact_type": fields.optional_text("artifactType"),
        "subject": None if subject is None else Descriptor.from_fields(subject),
        "extra": fields.extra(),
    }


def _common(document: Index | Manifest) -> dict[str, Any]:
    values = dict(document.extra) | {"schemaVersion": 2, "mediaType": document.media_type}
    if document.annotations:
        values["annotations"] = dict(document.annotations)
    if document.artifact_type is not None:
        values["artifactType"] = document.artifact_type
    if document.subject is not None:
        values["subject"] = document.subject.to_fields()
    return values
