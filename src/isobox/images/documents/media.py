"""Media types: what a blob is (image-spec, media-types.md; Docker's image manifest version 2, schema 2)."""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

from isobox.errors import ImageError, shown

__all__ = [
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_LAYER",
    "DOCKER_LAYER_GZIP",
    "DOCKER_LAYER_ZSTD",
    "DOCKER_MANIFEST",
    "EMPTY",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_LAYER_GZIP",
    "OCI_LAYER_ZSTD",
    "OCI_MANIFEST",
    "CONFIGS",
    "INDEXES",
    "MANIFESTS",
    "SCHEMA_1",
    "Compression",
    "check_media_type",
    "is_distributable",
    "is_layer",
    "layer_compression",
    "plain_media_type",
]

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD: Final = OCI_LAYER + "+zstd"
EMPTY: Final = "application/vnd.oci.empty.v1+json"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = DOCKER_LAYER + ".gzip"
DOCKER_LAYER_ZSTD: Final = DOCKER_LAYER + ".zstd"

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
SCHEMA_1: Final = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

Compression: TypeAlias = Literal["none", "gzip", "zstd"]

_OCI_FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"

_LAYERS: Final[dict[str, Compression]] = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    _OCI_FOREIGN: "none",
    _OCI_FOREIGN + "+gzip": "gzip",
    _OCI_FOREIGN + "+zstd": "zstd",
    _DOCKER_FOREIGN: "none",
    _DOCKER_FOREIGN + ".gzip": "gzip",
    _DOCKER_FOREIGN + ".zstd": "zstd",
}

# RFC 6838, section 4.2; parameters behind it are looked at by nobody, but artifacts have them.
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE: Final = re.compile(rf"{_NAME}/{_NAME}(?:;[ -~]{{0,255}})?")


def layer_compression(media_type: str) -> Compression:
    """Return how a layer of this media type is compressed; raises `ImageError` if it is no layer.

    >>> layer_compression("application/vnd.oci.image.layer.v1.tar+gzip")
    'gzip'
    """
    compression = _LAYERS.get(media_type)
    if compression is None:
        why = "it is encrypted" if media_type.endswith("+encrypted") else "isobox can't unpack it"
        raise ImageError(
            f"layer of media type {shown(media_type)}: {why}; expected a tar archive, plain, gzip or zstd"
        )
    return compression


def is_layer(media_type: str) -> bool:
    """Whether `layer_compression` knows it."""
    return media_type in _LAYERS


def is_distributable(media_type: str) -> bool:
    """Whether a layer may be pushed to other registries (layer.md, "Non-Distributable Layers")."""
    return not media_type.startswith((_OCI_FOREIGN, _DOCKER_FOREIGN))


def check_media_type(media_type: object) -> None:
    """Raise `ImageError` unless it is a media type, be it an unknown one."""
    if not isinstance(media_type, str) or _MEDIA_TYPE.fullmatch(media_type) is None:
        raise ImageError(f"media type {shown(media_type)}: expected one such as {OCI_MANIFEST}")


def plain_media_type(header: str | None) -> str | None:
    """Return the media type of a Content-Type header, without parameters, in lower case.

    None where the header says nothing about the document: registries that serve plain files send
    ``application/json`` or ``text/plain``.

    >>> plain_media_type("Application/vnd.OCI.image.index.v1+json; charset=utf-8")
    'application/vnd.oci.image.index.v1+json'
    """
    plain = (header or "").partition(";")[0].strip().lower()
    if plain in ("", "application/json", "application/octet-stream", "binary/octet-stream", "text/plain"):
        return None
    return plain
