"""What registries ask for before they answer, and what is said to whom."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox import RegistryError
from isobox.images.registry.authorization import Authorization, Challenge, is_loopback, parse_challenges
from isobox.images.registry.credentials import Credential

SCOPES = ("repository:team/app:pull",)
HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'


class TestChallenges:
    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("Basic", [("basic", {})]),
            ("Basic realm=x", [("basic", {"realm": "x"})]),
            (HUB, [("bearer", {"realm": "https://auth.docker.io/token", "service": "registry.docker.io"})]),
            # RFC 9110, section 11.6.1
            (
                'Basic realm="simple", Newauth realm="apps", type=1, title="Login to \\"apps\\""',
                [
                    ("basic", {"realm": "simple"}),
                    ("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
                ],
            ),
            ("Negotiate YII=, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
            (",, Basic ,realm = x ,", [("basic", {"realm": "x"})]),
            ('Bearer realm="a", realm="b"', [("bearer", {"realm": "a"})]),
            ('Bearer realm="not ended', [("bearer", {})]),
            ("", []),
            ("=?= Basic", []),
        ],
    )
    def test_one_header(self, header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
        assert parse_challenges([header]) == [Challenge(*one) for one in expected]

    def test_several_headers(self) -> None:
        found = parse_challenges(["Basic realm=x", HUB])
        assert [challenge.scheme for challenge in found] == ["basic", "bearer"]

    @given(st.lists(st.text(alphabet=' \t,="\\aB/+é', max_size=60), max_size=4))
    def test_garbage(self, headers: list[str]) -> None:
        for challenge in parse_challenges(headers):
            assert challenge.scheme == challenge.scheme.lower() != ""

    def test_much(self) -> None:
        assert len(parse_challenges(["a," * 1_000_000] * 10)) <= 20
        assert parse_challenges(['B r="' + "\\" * 1_000_000]) == [Challenge("b", {})]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.1.2.3", True),
        ("[::1]", True),
        ("::1", True),
        ("", False),
        ("0.0.0.0", False),
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


class Tokens:
    """A token server of one answer, which keeps what it is asked."""

    def __init__(self, answer: bytes | object, status: int = 200) -> None:
        self.answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.status = status
        self.asked: list[tuple[str, str, Mapping[str, str], bytes | None]] = []

    def __call__(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        self.asked.append((method, url, headers, body))
        return self.status, self.answer


def asked(
    tokens: Tokens,
    credential: Credential | None = None,
    header: str = HUB,
    *,
    plain: bool = False,
    insecure: bool = False,
) -> str | None:
    authorization = Authorization("r.example", credential, tokens, insecure=insecure)
    return authorization.answer(parse_challenges([header]), SCOPES, None, plain=plain)


class TestTokens:
    def test_nobody(self) -> None:
        tokens = Tokens({"token": "t.o.k"})
        assert asked(tokens) == "Bearer t.o.k"
        [(method, url, headers, body)] = tokens.asked
        assert (method, headers, body) == ("GET", {}, None)
        assert parse_qs(urlsplit(url).query) == {"service": ["registry.docker.io"], "scope": [SCOPES[0]]}

    def test_somebody(self) -> None:
        tokens = Tokens({"access_token": "t"})
        assert asked(tokens, Credential("builder", "pass:wörd")) == "Bearer t"
        assert tokens.asked[0][2] == {"Authorization": "Basic YnVpbGRlcjpwYXNzOnfDtnJk"}
        assert "pass" not in tokens.asked[0][1]

    def test_identity(self) -> None:
        tokens = Tokens({"access_token": "t"})
        assert asked(tokens, Credential(identity_token="secret")) == "Bearer t"
        method, url, _, body = tokens.asked[0]
        assert (method, url) == ("POST", "https://auth.docker.io/token") and body is not None
        form = {name: value for name, [value] in parse_qs(body.decode()).items()}
        assert form["grant_type"] == "refresh_token" and form["refresh_token"] == "secret"

    def test_one_is_kept_until_it_is_refused_or_runs_out(self) -> None:
        tokens = Tokens({"token": "t", "expires_in": 300})
        authorization = Authorization("r.example", None, tokens, insecure=False)
        assert authorization.header(SCOPES, plain=False) is None
        challenges = parse_challenges([HUB])
        first = authorization.answer(challenges, SCOPES, None, plain=False)
        assert authorization.header(SCOPES, plain=False) == first
        assert len(tokens.asked) == 1
        tokens.answer = b'{"token": "u", "expires_in": 0}'
        assert authorization.answer(challenges, SCOPES, first, plain=False) == "Bearer u"
        assert authorization.header(SCOPES, plain=False) == "Bearer u"  # asked for once more
        assert len(tokens.asked) == 3
        authorization.header(("repository:other:pull",), plain=False)
        assert len(tokens.asked) == 4

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"<html>",
            b"[]",
            b'{"token": 3}',
            b'{"token": ""}',
            b'{"token": "a\\r\\nHost: evil"}',
            b'{"token": "a b"}',
            b'{"token": "\\u00e9"}',
            b'{"token": "' + b"x" * 100_000 + b'"}',
            b"\xff\xfe",
        ],
    )
    def test_nonsense(self, answer: bytes) -> None:
        with pytest.raises(RegistryError, match=r"r\.example"):
            asked(Tokens(answer), Credential("builder", "secret"))

    @pytest.mark.parametrize("said", [-5, 1e400, 10**30, "soon", None, 1.5])
    def test_odd_lifetimes(self, said: object) -> None:
        text = json.dumps({"token": "t", "expires_in": said}).replace("Infinity", "60").encode()
        assert asked(Tokens(text)) == "Bearer t"

    @pytest.mark.parametrize(
        "realm",
        [
            "http://auth.example/token",
            "https://",
            "file:///etc/passwd",
            "//auth.example/token",
            "https://builder:secret@auth.example/",
            "https://[::1/token",
            "https://auth.example/to ken",
            "https://auth.example/#x",
            "",
        ],
    )
    def test_realms_that_nobody_is_asked_at(self, realm: str) -> None:
        tokens = Tokens({"token": "t"})
        with pytest.raises(RegistryError, match="expected an https:// address"):
            asked(tokens, Credential("builder", "secret"), f'Bearer realm="{realm}"')
        assert tokens.asked == []

    def test_plain_realms(self) -> None:
        local, far = ('Bearer realm="http://127.0.0.1:5/t"', 'Bearer realm="http://auth.example/t"')
        tokens = Tokens({"token": "t"})
        assert asked(tokens, header=local, plain=True) == "Bearer t"
        assert asked(tokens, header=far, plain=True, insecure=True) == "Bearer t"
        for header, insecure in ((far, False), (far, True), (local, False)):
            with pytest.raises(RegistryError):
                asked(tokens, header=header, plain=header is far and not insecure, insecure=insecure)

    @pytest.mark.parametrize(("status", "transient"), [(401, False), (403, False), (429, True), (503, True)])
    def test_refused(self, status: int, transient: bool) -> None:
        with pytest.raises(RegistryError, match=f"token server answered {status}") as refused:
            asked(Tokens(b"", status), Credential("builder", "secret"))
        assert refused.value.transient is transient and refused.value.status == status
        assert "secret" not in str(refused.value)


def test_basic() -> None:
    tokens = Tokens({})
    assert asked(tokens, Credential("builder", "x"), "Basic realm=r") == "Basic YnVpbGRlcjp4"
    assert asked(tokens, None, "Basic realm=r") is None
    assert asked(tokens, Credential("builder", "x"), "Negotiate") is None
    both = Authorization("r.example", Credential("builder", "x"), tokens, insecure=False)
    challenges = parse_challenges(["Basic realm=r"])
    first = both.answer(challenges, SCOPES, None, plain=False)
    assert both.header(SCOPES, plain=False) == first
    assert both.answer(challenges, SCOPES, first, plain=False) is None  # it was refused: there is no other
    assert tokens.asked == []
