"""The list of images in an archive that ``docker save`` makes: its manifest.json.

Docker documents it in its image specification (moby, image/spec/v1.2.md, "Combined Image JSON +
Filesystem Changeset Format"); ``docker load``, podman and skopeo read and write the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import field, frozen

from isobox.errors import ImageError, InvalidReference, shown

from ..documents.config import MOST_LAYERS
from ..documents.fields import Fields, encode
from ..documents.reference import Reference

__all__ = ["MANIFEST", "ArchivedImage", "encode_images", "parse_images"]

MANIFEST: Final = "manifest.json"
_WHAT: Final = "docker archive"
_MOST_IMAGES: Final = 10_000
_LONGEST_NAME: Final = 4096  # PATH_MAX


@frozen
class ArchivedImage:
    """One image in the archive: the names of its files there, and of itself.

    `config` and `layers` are relative paths of entries, the lowest layer first; the same layer may
    stand there several times, and its entry may be a link to another's. Such a name may look like
    a digest and is none: the config's own bytes give the image's id, its diff_ids those of the
    layers. `tags` have no digests. `extra` has the rest (Parent, LayerSources).
    """

    config: str
    layers: tuple[str, ...] = ()
    tags: tuple[Reference, ...] = ()
    extra: Mapping[str, Any] = field(factory=dict, hash=False)

    def __attrs_post_init__(self) -> None:
        _check_name("Config", self.config)
        for name in self.layers:
            _check_name("Layers", name)
        if len(self.layers) > MOST_LAYERS:
            raise ImageError(f"Layers: expected at most {MOST_LAYERS}, got {len(self.layers)}")
        for tag in self.tags:
            if tag.tag is None or tag.digest is not None:
                raise InvalidReference(f"RepoTags: {tag}: expected a name with a tag and without a digest")


def parse_images(data: bytes) -> tuple[ArchivedImage, ...]:
    """Read manifest.json, of at most `fields.MOST_BYTES`; raises `ImageError`.

    >>> [image] = parse_images(b'[{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["1/layer.tar"]}]')
    >>> image.config, image.layers, image.tags[0].familiar
    ('c.json', ('1/layer.tar',), 'a:1')
    """
    return tuple([_image(fields) for fields in Fields.read_all(data, _WHAT, MANIFEST, _MOST_IMAGES)])


def encode_images(images: Iterable[ArchivedImage]) -> bytes:
    """Write manifest.json, in `fields.encode`'s form; names as Docker shows them.

    >>> encode_images([ArchivedImage("c.json", ("l.tar",), (Reference.parse("a:1"),))]).decode()
    '[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["a:1"]}]'
    """
    return encode(
        [
            dict(image.extra)
            | {
                "Config": image.config,
                "RepoTags": [tag.familiar for tag in image.tags] or None,
                "Layers": list(image.layers),
            }
            for image in images
        ]
    )


def _image(fields: Fields) -> ArchivedImage:
    config = fields.required_text("Config")
    layers = fields.texts("Layers") or ()
    names = fields.texts("RepoTags") or ()
    extra = fields.extra()
    try:
        return ArchivedImage(config, layers, tuple([Reference.parse(name) for name in names]), extra)
    except ImageError as error:
        fields.within(error)


def _check_name(what: str, name: str) -> None:
    parts = name.split("/")
    if not name or len(name) > _LONGEST_NAME or "\0" in name or not set(parts).isdisjoint({"", ".", ".."}):
        raise ImageError(
            f"{what}: {shown(name)}: expected a relative path in the archive, without . and .. in it"
        )
