"""Digests: what is well-formed, and nothing else."""

from __future__ import annotations

import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import DigestMismatch, ImageError
from isobox.images.documents.digest import Digest

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(st.binary())
def test_the_digest_of_bytes_is_theirs(data: bytes) -> None:
    digest = Digest.of(data)
    assert (digest.algorithm, digest.hex) == ("sha256", hashlib.sha256(data).hexdigest())
    assert Digest.parse(str(digest)) == digest
    digest.check(data, "it")
    with pytest.raises(DigestMismatch) as caught:
        digest.check(data + b"x", "it")
    assert caught.value.expected == str(digest)
    assert caught.value.found == str(Digest.of(data + b"x"))


def test_both_algorithms_hash() -> None:
    for name in ("sha256", "sha512"):
        expected = hashlib.new(name, b"hello").hexdigest()
        hasher = Digest.parse(f"{name}:{expected}").hasher()
        hasher.update(b"he")
        hasher.update(memoryview(b"llo"))
        assert hasher.hexdigest() == expected


def test_it_is_a_value() -> None:
    digest = Digest.of(b"")
    assert digest == Digest("sha256", EMPTY)
    assert len({digest, Digest("sha256", EMPTY)}) == 1
    assert pickle.loads(pickle.dumps(digest)) == digest
    assert sorted([Digest.of(b"b"), digest, Digest.of(b"a")], key=str) == sorted(
        [Digest.of(b"a"), Digest.of(b"b"), digest]
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        EMPTY,
        f"sha256:{EMPTY[1:]}",
        f"sha256:{EMPTY}0",
        f"sha256:{EMPTY}\n",
        f"sha256:{EMPTY.upper()}",
        f"SHA256:{EMPTY}",
        f" sha256:{EMPTY}",
        f"sha512:{EMPTY}",
        f"sha384:{'0' * 96}",
        f"md5:{'0' * 32}",
        f"blake3:{EMPTY}",
        "sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564",
        f"sha256:../../{EMPTY[6:]}",
        f"sha256:{chr(0x660) * 64}",
        "sha256:" + "0" * 10_000_000,
        "\udcff:\udcff",
        None,
        b"sha256:" + EMPTY.encode(),
        3,
    ],
    ids=lambda text: repr(text)[:24],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="digest") as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("parts", [("sha256", None), (None, EMPTY), ([], EMPTY), ("sha256", EMPTY.encode())])
def test_a_wrong_one_cannot_be_made_by_hand(parts: tuple[str, str]) -> None:
    with pytest.raises(ImageError):
        Digest(*parts)


@given(st.text() | st.builds("{}:{}".format, st.sampled_from(["sha256", "sha512", "md5"]), st.text("0aF")))
def test_any_text_is_a_digest_or_an_error(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except ImageError:
        return
    assert str(digest) == text
