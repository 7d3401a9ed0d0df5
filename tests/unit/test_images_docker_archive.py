"""The list of images in an archive of `docker save`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import ImageError
from isobox.images.archives.docker_archive import ArchivedImage, encode_images, parse_images
from isobox.images.documents.reference import Reference

HEX = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
# As Docker writes it since version 25, and as it and skopeo did before.
NEW = {
    "Config": f"blobs/sha256/{HEX}",
    "RepoTags": ["debian:12", "localhost:5000/a/b:1"],
    "Layers": [f"blobs/sha256/{HEX}", f"blobs/sha256/{HEX}"],
    "LayerSources": {f"sha256:{HEX}": {"size": 3}},
}
OLD = {"Config": f"{HEX}.json", "RepoTags": None, "Layers": [f"{HEX}/layer.tar"]}


def parse(values: Any) -> tuple[ArchivedImage, ...]:
    return parse_images(json.dumps(values).encode())


def test_images_of_an_archive() -> None:
    new, old = parse([NEW, OLD])
    assert new.config == f"blobs/sha256/{HEX}"
    assert new.layers == (new.config, new.config)
    assert [str(tag) for tag in new.tags] == ["docker.io/library/debian:12", "localhost:5000/a/b:1"]
    assert set(new.extra) == {"LayerSources"}
    assert old == ArchivedImage(f"{HEX}.json", (f"{HEX}/layer.tar",))
    assert json.loads(encode_images([new, old])) == [NEW, OLD]
    hash(new)


def test_what_docker_takes() -> None:
    assert parse([]) == ()
    assert parse([{"Config": "c"}]) == (ArchivedImage("c"),)
    assert parse([{"Config": "c", "Layers": None, "RepoTags": []}]) == (ArchivedImage("c"),)
    assert parse([{"Config": "c", "RepoTags": ["a"]}])[0].tags == (Reference.parse("a:latest"),)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"Config": None}, "Config: expected a string, got nothing"),
        ({"Config": ""}, "Config: ''"),
        ({"Config": "/etc/passwd"}, "a relative path"),
        ({"Config": "../x"}, "a relative path"),
        ({"Config": "a/../../x"}, "a relative path"),
        ({"Config": "./x"}, "a relative path"),
        ({"Config": "a//x"}, "a relative path"),
        ({"Config": "a\0"}, "a relative path"),
        ({"Config": "x" * 5000}, "a relative path"),
        ({"Layers": "x"}, "Layers: expected an array of strings"),
        ({"Layers": [None]}, "Layers"),
        ({"Layers": ["l", ".."]}, "Layers: '..': expected a relative path"),
        ({"Layers": ["l"] * 1001}, "Layers: expected at most 1000"),
        ({"RepoTags": "a:1"}, "RepoTags"),
        ({"RepoTags": ["A:1"]}, "repository 'A'|repository 'library/A'"),
        ({"RepoTags": ["<none>:<none>"]}, "repository"),
        ({"RepoTags": [f"a@sha256:{HEX}"]}, "with a tag and without a digest"),
        ({"RepoTags": [f"a:1@sha256:{HEX}"]}, "with a tag and without a digest"),
        ({"config": "y"}, "expected it to be written Config"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_images_that_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        parse([OLD, OLD | change])
    assert str(caught.value).startswith("docker archive: manifest.json[1]")
    assert str(caught.value).count("docker archive") == 1
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("values", [None, {}, 3, [None], [[]], [{"Config": "c"}] * 10_001])
def test_what_is_no_list_is_refused(values: Any) -> None:
    with pytest.raises(ImageError, match=r"^docker archive: manifest.json"):
        parse(values)


@given(st.binary() | st.text('[]{}",:a', max_size=30).map(str.encode))
def test_any_bytes_are_images_or_an_error(data: bytes) -> None:
    try:
        images = parse_images(data)
    except ImageError:
        return
    assert parse_images(encode_images(images)) == images
