"""References: Docker's grammar and its short names."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import ImageError, InvalidReference
from isobox.images.documents.digest import Digest
from isobox.images.documents.reference import Reference

HEX = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
AT = f"@sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("library/debian:12", "docker.io/library/debian:12", "debian:12"),
        ("docker.io/debian:12", "docker.io/library/debian:12", "debian:12"),
        ("docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
        ("index.docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("team/app", "docker.io/team/app:latest", "team/app:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("debian" + AT, "docker.io/library/debian" + AT, "debian" + AT),
        ("debian:12" + AT, "docker.io/library/debian:12" + AT, "debian:12" + AT),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost", "docker.io/library/localhost:latest", "localhost:latest"),
        # One name without a slash is never a registry: this is a tag, not a port.
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("localhost:5000/app:1" + AT, "localhost:5000/app:1" + AT, "localhost:5000/app:1" + AT),
        ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1", "quay.io/a/b/c:v1"),
        ("registry:80/debian", "registry:80/debian:latest", "registry:80/debian:latest"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest", "127.0.0.1:5000/x:latest"),
        ("[::1]:5000/x:2", "[::1]:5000/x:2", "[::1]:5000/x:2"),
        ("[2001:DB8::1]/x", "[2001:DB8::1]/x:latest", "[2001:DB8::1]/x:latest"),
        ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
        ("xn--n3h.example/app", "xn--n3h.example/app:latest", "xn--n3h.example/app:latest"),
        ("a__b/c--d_e.f", "docker.io/a__b/c--d_e.f:latest", "a__b/c--d_e.f:latest"),
        # These look like something else, but Docker takes them as names.
        ("host.example", "docker.io/library/host.example:latest", "host.example:latest"),
        ("sha256:" + HEX, "docker.io/library/sha256:" + HEX, "sha256:" + HEX),
        # A repository of Docker Hub whose short name would mean another registry.
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
        ("docker.io/docker.io/c", "docker.io/docker.io/c:latest", "docker.io/docker.io/c:latest"),
        ("docker.io/index.docker.io/c:1", "docker.io/index.docker.io/c:1", "docker.io/index.docker.io/c:1"),
        ("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest"),
        ("x:" + "T" * 128, "docker.io/library/x:" + "T" * 128, "x:" + "T" * 128),
        ("x/" + "a" * 253, "docker.io/x/" + "a" * 253 + ":latest", "x/" + "a" * 253 + ":latest"),
    ],
)  # fmt: skip
def test_names_mean_what_docker_means(text: str, full: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == full
    assert reference.familiar == familiar
    assert Reference.parse(full) == reference
    assert Reference.parse(familiar) == reference
    assert pickle.loads(pickle.dumps(reference)) == reference


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (HEX, "id of an image"),
        (":", "repository ''"),
        (":12", "repository"),
        ("debian:", "tag ''"),
        ("debian:.x", "tag"),
        ("debian:-x", "tag"),
        ("debian:a/b", "registry 'debian:a'"),
        ("debian:12:13", "tag '12:13'"),
        ("x:" + "t" * 129, "tag"),
        ("debian:12\n", "tag"),
        ("debian:é", "tag"),
        ("debian@", "digest"),
        ("debian@sha256:00", "64 digits"),
        ("debian@sha384:" + "0" * 96, "sha384"),
        (f"debian@sha256:{HEX.upper()}", "digits"),
        (f"debian{AT}{AT}", "digits"),
        ("@sha256:" + HEX, "repository ''"),
        ("Debian", "lower-case"),
        ("a/Debian", "lower-case"),
        ("debian ", "repository"),
        (" debian", "repository"),
        ("de\x1bbian", "repository"),
        ("dé/x", "repository"),
        ("a//b", "repository"),
        ("/a", "repository"),
        ("a/", "repository"),
        ("../a", "registry '..'"),
        ("a/../b", "repository"),
        ("./a", "registry '.'"),
        ("a..b", "repository"),
        ("a___b", "repository"),
        ("-a", "repository"),
        ("a-", "repository"),
        ("https://debian", "registry 'https:'"),
        ("host.example:/x", "registry"),
        ("host.example:0/x", "port"),
        ("host.example:65536/x", "port"),
        ("host.example:" + "9" * 200 + "/x", "port"),
        ("host.example:٣/x", "registry"),
        ("user@host.example/x", "registry"),
        ("my_host.example/x", "registry"),
        (".example/x", "registry"),
        ("-a.example/x", "registry"),
        ("a." * 127 + "example/x", "registry"),
        ("[::1/x", "registry"),
        ("[]/x.", "repository|registry"),
        ("[::1%eth0]/x", "registry"),
        ("[1:2]/x", "IPv6"),
        ("[::ffff:1.2.3.4]/x", "registry"),
        ("x/" + "a" * 254, "255"),
        ("x" * 2000, "1024"),
        ("\udcff", "repository"),
    ],
    ids=lambda text: repr(text)[:24],
)
def test_what_is_no_name_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidReference, match=why) as caught:
        Reference.parse(text)
    assert isinstance(caught.value, ImageError) and isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "parts",
    [
        ("index.docker.io", "library/x"),  # its name is docker.io
        ("host", "x"),  # would be read as docker.io/host/x
        ("docker.io", "x"),  # would be read as library/x
        ("localhost", "X"),
        ("localhost", "x", ""),
        ("localhost", "x", None, "sha256:" + HEX),
        ("localhost", "x", 3),
        (None, "x"),
        ("localhost", None),
    ],
)
def test_a_wrong_one_cannot_be_made_by_hand(parts: tuple[str, str]) -> None:
    with pytest.raises(InvalidReference):
        Reference(*parts)


def test_other_tags_and_digests() -> None:
    reference = Reference.parse("debian:12")
    digest = Digest("sha256", HEX)
    assert reference.with_tag("13").familiar == "debian:13"
    assert reference.with_digest(digest).familiar == "debian:12" + AT
    assert reference.with_digest(digest).with_tag(None).familiar == "debian" + AT
    assert str(reference.with_tag(None)) == reference.name == "docker.io/library/debian"
    assert Reference("docker.io", "library/" + HEX).familiar == "docker.io/library/" + HEX
    with pytest.raises(InvalidReference):
        reference.with_tag("../x")


# The grammar as the reference implementation has it, in one expression.
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
GRAMMAR = re.compile(
    rf"((?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*)(?::([\w][\w.-]{{0,127}}))?(?:@(sha256:[0-9a-f]{{64}}))?",
    re.ASCII,
)


@given(st.from_regex(GRAMMAR, fullmatch=True) | st.text("aB0.:/@_-[]", max_size=20) | st.text(max_size=20))
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert GRAMMAR.fullmatch(text)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
    assert reference.tag is not None or reference.digest is not None


SHORT = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT}){{0,3}}(?::\w[\w.-]{{0,20}})?", re.ASCII)


@given(st.from_regex(SHORT, fullmatch=True))
def test_short_names_of_the_grammar_are_read(text: str) -> None:
    first, slash, _ = text.partition("/")
    if (slash and "." in first) or re.fullmatch("[0-9a-f]{64}", text) or len(text) > 240:
        return
    reference = Reference.parse(text)
    assert reference.registry in ("docker.io", "localhost")
    assert reference.tag == (text.partition(":")[2] or "latest")
