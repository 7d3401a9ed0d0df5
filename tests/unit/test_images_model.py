"""Indexes, manifests and descriptors: read, refused, written again."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import DigestMismatch, ImageError
from isobox.images.documents import media
from isobox.images.documents.digest import Digest
from isobox.images.documents.model import (
    MOST_LAYERS,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    pair_layers,
    parse_document,
)
from isobox.images.documents.platform import Platform

BLOB = b"hello"
DIGEST = Digest.of(BLOB)
AMD64 = {"os": "linux", "architecture": "amd64"}


def descriptor(media_type: str = media.OCI_LAYER_GZIP, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(DIGEST), "size": 5, **more}


def manifest(**more: Any) -> dict[str, Any]:
    config = descriptor(media.OCI_CONFIG)
    return {"schemaVersion": 2, "config": config, "layers": [descriptor(), descriptor()], **more}


def index(**more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "manifests": [descriptor(media.OCI_MANIFEST, platform=AMD64)], **more}


def parse(values: Any, media_type: str | None = None) -> Index | Manifest:
    return parse_document(json.dumps(values).encode(), media_type)


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def test_a_manifest() -> None:
    parsed = parse(manifest(annotations={"a": "b"}, artifactType="x/y", subject=descriptor(), later=[1]))
    assert isinstance(parsed, Manifest)
    assert parsed.config == Descriptor(media.OCI_CONFIG, DIGEST, 5)
    assert parsed.layers == (Descriptor(media.OCI_LAYER_GZIP, DIGEST, 5),) * 2
    assert parsed.annotations == {"a": "b"}
    assert parsed.artifact_type == "x/y"
    assert parsed.subject == parsed.layers[0]
    assert parsed.media_type == media.OCI_MANIFEST
    assert parsed.extra == {"later": [1]}


def test_an_index() -> None:
    parsed = parse(index(annotations={"a": "b"}, artifactType="x/y", subject=descriptor(), later=[1]))
    assert isinstance(parsed, Index)
    assert parsed.manifests[0].platform == Platform("linux", "amd64")
    assert (parsed.annotations, parsed.artifact_type, parsed.extra) == ({"a": "b"}, "x/y", {"later": [1]})
    assert parsed.subject == Descriptor(media.OCI_LAYER_GZIP, DIGEST, 5)
    assert parsed.media_type == media.OCI_INDEX


@pytest.mark.parametrize(
    ("values", "given", "kind"),
    [
        (manifest(), None, media.OCI_MANIFEST),
        (manifest(), media.OCI_MANIFEST, media.OCI_MANIFEST),
        (manifest(), media.DOCKER_MANIFEST, media.DOCKER_MANIFEST),
        (manifest(), "application/json", media.OCI_MANIFEST),
        (manifest(), "Application/VND.docker.distribution.manifest.v2+json; q=1", media.DOCKER_MANIFEST),
        (manifest(mediaType=media.DOCKER_MANIFEST), None, media.DOCKER_MANIFEST),
        (manifest(mediaType=media.DOCKER_MANIFEST), "text/plain", media.DOCKER_MANIFEST),
        (manifest(mediaType=media.OCI_MANIFEST), media.OCI_MANIFEST, media.OCI_MANIFEST),
        (manifest(layers=None), None, media.OCI_MANIFEST),
        (index(), None, media.OCI_INDEX),
        (index(mediaType=media.DOCKER_INDEX), None, media.DOCKER_INDEX),
        (index(mediaType=media.DOCKER_INDEX), media.DOCKER_INDEX, media.DOCKER_INDEX),
        (index(manifests=[]), None, media.OCI_INDEX),
        (index(manifests=None), None, media.OCI_INDEX),
    ],
)
def test_what_a_document_is(values: dict[str, Any], given: str | None, kind: str) -> None:
    assert parse(values, given).media_type == kind


@pytest.mark.parametrize(
    ("values", "given", "why"),
    [
        ([], None, "a JSON object"),
        ({}, None, "schemaVersion"),
        ({"schemaVersion": 2}, None, "config"),
        (without(manifest(), "schemaVersion"), None, "schemaVersion: expected a whole number, got nothing"),
        (manifest(schemaVersion=3), None, "schemaVersion: expected 2, got 3"),
        (manifest(schemaVersion="2"), None, "schemaVersion"),
        (manifest(schemaVersion=True), None, "schemaVersion"),
        ({"schemaVersion": 1, "fsLayers": [], "history": [], "name": "x"}, None, "schema 1"),
        (manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (manifest(mediaType="application/vnd.docker.distribution.manifest.v1+json"), None, "schema 1"),
        (manifest(mediaType=3), None, "mediaType"),
        (manifest(mediaType=media.OCI_INDEX), media.OCI_MANIFEST, "mediaType: expected 'app"),
        (manifest(mediaType=media.OCI_MANIFEST), media.DOCKER_MANIFEST, "as it was announced"),
        (manifest(mediaType=media.OCI_INDEX), None, "manifests"),
        (manifest(), media.OCI_INDEX, "manifests: expected an array of objects, got nothing"),
        (index(), media.OCI_MANIFEST, "config"),
        (index(mediaType=media.OCI_MANIFEST), None, "config"),
        (manifest(mediaType=media.OCI_CONFIG), None, "expected an index or a manifest"),
        (manifest(), "text/html", "'text/html': expected an index or a manifest"),
        (manifest(manifests=[]), None, "as an index and as a manifest"),
        (manifest(manifests=None), media.OCI_MANIFEST, "as an index and as a manifest"),
        (manifest(fsLayers=[]), None, "as an index and as a manifest"),
        (manifest(Manifests=[]), None, "expected it to be written manifests"),
        (manifest(FSLAYERS=[]), None, "expected it to be written fsLayers"),
        (index(layers=[]), None, "as an index and as a manifest"),
        (index(config={}), media.OCI_INDEX, "as an index and as a manifest"),
        (index(Layers=[]), None, "expected it to be written layers"),
        (without(manifest(), "config"), None, "config"),
        (without(manifest(), "layers"), None, "layers"),
        (manifest(config=None), None, "config"),
        (manifest(layers={}), None, "layers: expected an array of objects, got an object"),
        (manifest(layers=[1]), None, "layers"),
        (manifest(layers=[descriptor()] * (MOST_LAYERS + 1)), None, "layers: expected at most 1000"),
        (manifest(annotations={"a": 1}), None, "annotations"),
        (manifest(subject=1), None, "subject"),
        (manifest(subject={}), None, "subject.mediaType"),
        (manifest(artifactType=1), None, "artifactType"),
        (index(manifests=[{}]), None, r"manifests\[0\].mediaType"),
        (index(manifests=[{}] * 20_001), None, "at most 20000"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_documents_that_are_refused(values: Any, given: str | None, why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        parse(values, given)
    assert str(caught.value).startswith("manifest: ")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mediaType": None}, "mediaType: expected a string, got nothing"),
        ({"mediaType": ""}, "media type ''"),
        ({"mediaType": "tar"}, "media type 'tar'"),
        ({"mediaType": "a/\x1b"}, "media type"),
        ({"mediaType": "a/" + "b" * 200}, "media type"),
        ({"digest": None}, "digest: expected a string, got nothing"),
        ({"digest": 3}, "digest: expected a string"),
        ({"digest": "sha256:00"}, "64 digits"),
        ({"digest": "sha384:" + "0" * 96}, "sha384"),
        ({"digest": "blake3:" + "0" * 64}, "blake3"),
        ({"digest": "sha256:../../../../etc/passwd"}, "digits"),
        ({"size": None}, "size: expected a whole number, got nothing"),
        ({"size": -1}, "from 0 to"),
        ({"size": 2**63}, "from 0 to"),
        ({"size": 10**80}, "from 0 to"),
        ({"size": 5.0}, "size"),
        ({"size": "5"}, "size"),
        ({"size": True}, "size"),
        ({"annotations": []}, "annotations"),
        ({"annotations": {"a": None}}, "annotations"),
        ({"urls": "http://x"}, "urls"),
        ({"urls": [1]}, "urls"),
        ({"artifactType": 1}, "artifactType"),
        ({"data": 3}, "data"),
        ({"data": "aGVsbG8"}, "data: expected base64"),
        ({"data": "aGVs\nbG8="}, "data: expected base64"),
        ({"data": "é"}, "data: expected base64"),
        ({"platform": []}, "platform"),
        ({"platform": {}}, "platform.os: expected a string, got nothing"),
        ({"platform": {"os": "linux"}}, "platform.architecture"),
        ({"platform": AMD64 | {"variant": 8}}, "platform.variant"),
        ({"platform": AMD64 | {"os.version": 8}}, "platform.os.version"),
        ({"platform": AMD64 | {"os.features": "x"}}, "platform.os.features"),
        ({"platform": AMD64 | {"OS": "windows"}}, "written os"),
        ({"Digest": str(Digest.of(b"other"))}, "written digest"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_descriptors_that_are_refused(change: dict[str, Any], why: str) -> None:
    for values, place in (
        (manifest(layers=[descriptor(), descriptor() | change]), r"layers\[1\]"),
        (manifest(config=descriptor() | change), "config"),
        (index(manifests=[descriptor() | change]), r"manifests\[0\]"),
        (manifest(subject=descriptor() | change), "subject"),
    ):
        with pytest.raises(ImageError, match=f"^manifest: {place}[.:]") as caught:
            parse(values)
        caught.match(why)
        assert str(caught.value).count("manifest: ") == 1
        assert str(caught.value).isprintable()


def test_embedded_data_is_checked() -> None:
    embedded = base64.b64encode(BLOB).decode()
    parsed = parse(manifest(config=descriptor(data=embedded)))
    assert isinstance(parsed, Manifest) and parsed.config.data == BLOB
    for other in (b"hellO", b"hello!", b""):
        with pytest.raises(DigestMismatch, match="manifest: config: embedded data") as caught:
            parse(manifest(config=descriptor(data=base64.b64encode(other).decode())))
        assert caught.value.expected in (str(DIGEST), "5 bytes")
    with pytest.raises(DigestMismatch):
        Descriptor(media.EMPTY, DIGEST, 5, data=b"other")
    with pytest.raises(DigestMismatch, match="expected 4 bytes, found 5 bytes"):
        Descriptor(media.EMPTY, DIGEST, 4, data=BLOB)


def test_a_descriptor_checks_a_blob() -> None:
    made = Descriptor.of(BLOB, media.OCI_LAYER, annotations={"a": "b"})
    assert made == Descriptor(media.OCI_LAYER, DIGEST, 5, {"a": "b"})
    made.check(BLOB, "it")
    for other in (b"hellO", b"hello!"):
        with pytest.raises(DigestMismatch):
            made.check(other, "it")


FULL = descriptor(
    annotations={"a": "b"},
    urls=["https://x"],
    data=base64.b64encode(BLOB).decode(),
    artifactType="x/y",
    platform={**AMD64, "variant": "v2", "os.version": "1", "os.features": ["b", "a"], "features": ["sse4"]},
    later={"x": [1, None]},
)


@pytest.mark.parametrize(
    "values",
    [
        manifest(
            mediaType=media.DOCKER_MANIFEST, annotations={"a": ""}, subject=FULL, artifactType="x/y", x=3
        ),
        manifest(mediaType=media.OCI_MANIFEST, layers=[FULL, descriptor()], config=FULL),
        index(mediaType=media.DOCKER_INDEX, manifests=[FULL], annotations={"a": "b"}, subject=FULL, x=[1.5]),
        index(mediaType=media.OCI_INDEX, artifactType="x/y"),
    ],
    ids=["docker-manifest", "manifest", "docker-index", "index"],
)
def test_nothing_is_lost_on_the_way(values: dict[str, Any]) -> None:
    data = json.dumps(values, indent=3).encode()
    parsed = parse_document(data)
    assert parsed.encode() == parsed.raw == data
    again = pickle.loads(pickle.dumps(parsed))
    assert again == parsed and again.encode() == data
    hash(parsed)
    # Changed, and changed back: written anew, with every field that was there.
    changed = attrs.evolve(attrs.evolve(parsed, annotations={"new": "1"}), annotations=parsed.annotations)
    assert changed == parsed
    assert changed.raw is None
    assert json.loads(changed.encode()) == values
    assert parse_document(changed.encode()) == parsed


def test_a_change_is_written() -> None:
    parsed = Manifest.parse(json.dumps(manifest()).encode())
    assert json.loads(attrs.evolve(parsed, layers=parsed.layers[:1]).encode())["layers"] == [descriptor()]


def test_one_kind_is_not_taken_for_the_other() -> None:
    with pytest.raises(ImageError, match="got an index"):
        Manifest.parse(json.dumps(index()).encode())
    with pytest.raises(ImageError, match="got a manifest"):
        Index.parse(json.dumps(manifest()).encode())
    config = Descriptor(media.OCI_CONFIG, DIGEST, 5)
    with pytest.raises(ImageError, match="expected one of a manifest"):
        Manifest(config, media_type=media.OCI_INDEX)
    with pytest.raises(ImageError, match="expected one of an index"):
        Index(media_type=media.OCI_MANIFEST)
    with pytest.raises(ImageError, match="at most"):
        Manifest(config, (config,) * (MOST_LAYERS + 1))


def offered(*platforms: str | None, media_type: str = media.OCI_MANIFEST) -> Index:
    return Index(
        tuple(
            Descriptor.of(str(i).encode(), media_type, platform=Platform(*name.split("/")) if name else None)
            for i, name in enumerate(platforms)
        )
    )


def test_the_choice_of_an_index() -> None:
    wanted = Platform.parse("linux/arm64")
    made = offered("linux/amd64", None, "linux/arm/v7", "linux/arm64/v8", "unknown/unknown", None)
    assert made.choices(wanted) == (made.manifests[3], made.manifests[1], made.manifests[5])
    made = offered("linux/s390x", "unknown/unknown", "linux/amd64")
    with pytest.raises(ImageError, match=r"nothing for linux/arm64; it has linux/amd64, linux/s390x$"):
        made.choices(wanted)
    with pytest.raises(ImageError, match="no platforms at all"):
        Index().choices(wanted)
    with pytest.raises(ImageError, match="no platforms at all"):
        offered("linux/arm64", media_type="application/vnd.example+json").choices(wanted)
    many = offered(*[f"linux/a{n}" for n in range(1000)])
    with pytest.raises(ImageError) as caught:
        many.choices(wanted)
    assert len(str(caught.value)) < 500


def test_layers_and_diff_ids_pair() -> None:
    parsed = Manifest.parse(json.dumps(manifest()).encode())
    ids = (Digest.of(b"1"), Digest.of(b"2"))
    config = ImageConfig(Platform("linux", "amd64"), diff_ids=ids)
    assert pair_layers(parsed, config) == tuple(zip(parsed.layers, ids, strict=True))
    for wrong in ((), ids[:1], (*ids, ids[0])):
        with pytest.raises(ImageError, match="2 layers"):
            pair_layers(parsed, attrs.evolve(config, diff_ids=wrong))


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (media.OCI_LAYER, "none"),
        (media.OCI_LAYER_GZIP, "gzip"),
        (media.OCI_LAYER_ZSTD, "zstd"),
        (media.DOCKER_LAYER, "none"),
        (media.DOCKER_LAYER_GZIP, "gzip"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "gzip"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip"),
    ],
)
def test_the_compression_of_layers(media_type: str, compression: str) -> None:
    assert media.is_layer(media_type)
    assert media.layer_compression(media_type) == compression
    assert media.is_distributable(media_type) == ("foreign" not in media_type and "non" not in media_type)


@pytest.mark.parametrize(
    "media_type", ["", media.OCI_CONFIG, media.OCI_LAYER + "+gzip+encrypted", "x" * 1000]
)
def test_what_is_no_layer_is_refused(media_type: str) -> None:
    assert not media.is_layer(media_type)
    with pytest.raises(ImageError, match="plain, gzip or zstd") as caught:
        media.layer_compression(media_type)
    assert len(str(caught.value)) < 400


JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.builds(list)
    | st.builds(dict)
    | st.builds(lambda: [{}])
)


@given(
    st.data(), st.sampled_from([manifest(layers=[FULL], subject=FULL), index(manifests=[FULL], subject=FULL)])
)
def test_any_damage_is_an_image_error(data: st.DataObject, whole: dict[str, Any]) -> None:
    values = json.loads(json.dumps(whole))
    for _ in range(data.draw(st.integers(1, 3))):
        place = values
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(JUNK)
            break
    encoded = json.dumps(values).encode()
    try:
        parsed = parse_document(encoded)
    except ImageError:
        return
    assert parsed.encode() == encoded
    anew = attrs.evolve(parsed).encode()
    assert parse_document(anew) == parsed


@given(st.binary(max_size=200), st.text(max_size=20) | st.none())
def test_any_bytes_are_an_image_error(data: bytes, media_type: str | None) -> None:
    with pytest.raises(ImageError):
        parse_document(data, media_type)
