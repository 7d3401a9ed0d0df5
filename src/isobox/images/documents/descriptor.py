"""Descriptors: how one document names another blob (image-spec, descriptor.md)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from isobox.errors import DigestMismatch, ImageError, shown

from .digest import Digest
from .fields import Fields
from .media import check_media_type
from .platform import Platform

__all__ = ["Descriptor", "platform_from", "platform_to"]

_LARGEST: Final = 2**63 - 1


@frozen
class Descriptor:
    """The media type, digest and size in bytes of a blob, and what else is said of it.

    `data` is the blob itself where it is embedded; it has been checked against digest and size.
    `urls` are where others say that it may be had; who follows them asks anybody for anything.
    `extra` has the fields that are not known here. What is not well-formed can't be made:
    `ImageError`, and `DigestMismatch` for `data`.

    >>> descriptor = Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json")
    >>> descriptor.size, descriptor.digest.algorithm
    (2, 'sha256')
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(factory=dict, hash=False)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    data: bytes | None = field(default=None, repr=False)
    artifact_type: str | None = None
    extra: Mapping[str, Any] = field(factory=dict, hash=False)

    def __attrs_post_init__(self) -> None:
        check_media_type(self.media_type)
        if not isinstance(self.digest, Digest):
            raise ImageError(f"digest: expected a Digest, got {shown(self.digest)}")
        if type(self.size) is not int or not 0 <= self.size <= _LARGEST:
            raise ImageError(f"size: expected bytes from 0 to {_LARGEST}, got {shown(self.size)}")
        if self.data is not None:
            self.check(self.data, "embedded data")

    @classmethod
    def of(cls, data: bytes, media_type: str, **given: Any) -> Descriptor:
        """Return the descriptor of these bytes; `given` are further attributes."""
        return cls(media_type, Digest.of(data), len(data), **given)

    def check(self, data: bytes, what: str) -> None:
        """Raise `DigestMismatch` unless `data` is the blob that this describes."""
        if len(data) != self.size:
            raise DigestMismatch(what, f"{self.size} bytes", f"{len(data)} bytes")
        self.digest.check(data, what)

    @classmethod
    def from_fields(cls, fields: Fields) -> Descriptor:
        """Read one from a document; raises `ImageError`."""
        platform = fields.object("platform")
        values: dict[str, Any] = {
            "media_type": fields.required_text("mediaType"),
            "digest": _digest(fields),
            "size": fields.number("size"),
            "annotations": fields.text_map("annotations"),
            "platform": None if platform is None else platform_from(platform),
            "urls": fields.texts("urls") or (),
            "data": _data(fields),
            "artifact_type": fields.optional_text("artifactType"),
            "extra": fields.extra(),
        }
        try:
            return cls(**values)
        except DigestMismatch as error:
            what = f"{fields.place}: {error.what}"
            raise DigestMismatch(what, error.expected, error.found) from None
        except ImageError as error:
            fields.within(error)

    def to_fields(self) -> dict[str, Any]:
        """The JSON object that `from_fields` reads."""
        values = dict(self.extra)
        values |= {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            values["annotations"] = dict(self.annotations)
        if self.platform is not None:
            values["platform"] = platform_to(self.platform)
        if self.urls:
            values["urls"] = list(self.urls)
        if self.data is not None:
            values["data"] = base64.b64encode(self.data).decode()
        if self.artifact_type is not None:
            values["artifactType"] = self.artifact_type
        return values


def _digest(fields: Fields) -> Digest:
    text = fields.required_text("digest")
    try:
        return Digest.parse(text)
    except ImageError as error:
        fields.within(error)


def _data(fields: Fields) -> bytes | None:
    text = fields.optional_text("data")
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        fields.fail("data", "base64")


def platform_from(fields: Fields, *, with_extra: bool = True) -> Platform:
    """Read the five fields that platforms and configs share; without `extra` where others follow."""
    return Platform(
        fields.required_text("os"),
        fields.required_text("architecture"),
        fields.text("variant"),
        fields.text("os.version"),
        fields.texts("os.features") or (),
        fields.extra() if with_extra else {},
    )


def platform_to(platform: Platform) -> dict[str, Any]:
    """The JSON object that `platform_from` reads."""
    values = dict(platform.extra)
    values |= {"os": platform.os, "architecture": platform.architecture}
    if platform.variant:
        values["variant"] = platform.variant
    if platform.os_version:
        values["os.version"] = platform.os_version
    if platform.os_features:
        values["os.features"] = list(platform.os_features)
    return values
