"""How a registry is told who asks: Basic, and the tokens of an authorization server.

RFC 9110, section 11, for the challenges; github.com/distribution/distribution, docs/spec/auth/token.md and
oauth.md, for the tokens, which Docker Hub and every other large registry wants.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from urllib.parse import urlencode, urlsplit

from attrs import Factory, define, frozen

from isobox.errors import ImageError, RegistryError, shown

from ..documents.fields import Fields
from .credentials import Credential

__all__ = ["Authorization", "Challenge", "is_loopback", "parse_challenges"]

MOST_TOKEN: Final = 1 << 20
"""Bytes of a token server's answer."""

_MOST_HEADER: Final = 8192
_MOST_CHALLENGES: Final = 20
_LONGEST_TOKEN: Final = 48 << 10  # what fits into a header of common servers, by far
_DEFAULT_SECONDS: Final = 60  # token.md: "expires_in"
_LONGEST_SECONDS: Final = 1_000_000
_EARLY: Final = 5.0  # seconds before its end a token is no longer used
_CLIENT: Final = "isobox"

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_EQUALS: Final = re.compile(r"[ \t]*=[ \t]*")
_SPACE: Final = re.compile(r"[ \t]+")
_BETWEEN: Final = re.compile(r"[ \t,]*")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_TOKEN_68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_TOKEN: Final = re.compile(r"[!-~]+")

Send = Callable[[str, str, Mapping[str, str], bytes | None], tuple[int, bytes]]
"""Method, URL, headers, body; returns the status and up to `MOST_TOKEN` bytes."""


@frozen
class Challenge:
    """What a server wants to see before it answers: a scheme, in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str] = Factory(dict)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read WWW-Authenticate headers (RFC 9110, section 11.6.1); what can't be read ends the header.

    >>> parse_challenges(['Basic realm="a, b", Bearer realm="https://x/",service=y'])[1].parameters
    {'realm': 'https://x/', 'service': 'y'}
    """
    found: list[Challenge] = []
    for header in headers:
        text = header[:_MOST_HEADER]
        at = 0
        while len(found) < _MOST_CHALLENGES:
            at = _end(_BETWEEN, text, at)
            scheme = _NAME.match(text, at)
            if scheme is None:
                break
            at = _end(_SPACE, text, scheme.end())
            parameters: dict[str, str] = {}
            found.append(Challenge(scheme[0].lower(), parameters))
            if at > scheme.end() and (match := _TOKEN_68.match(text, at)) is not None:
                at = match.end()
                continue
            at = _read_parameters(text, at, parameters)
    return found


def _read_parameters(text: str, at: int, into: dict[str, str]) -> int:
    """Read ``a=b, c="d"``; return where something else begins."""
    while True:
        start = _end(_BETWEEN, text, at)
        name = _NAME.match(text, start)
        equals = _EQUALS.match(text, name.end()) if name is not None else None
        if name is None or equals is None:
            return at
        quoted = _QUOTED.match(text, equals.end())
        plain = _NAME.match(text, equals.end())
        if quoted is not None:
            value, at = re.sub(r"\\(.)", r"\1", quoted[1]), quoted.end()
        elif plain is not None:
            value, at = plain[0], plain.end()
        else:
            return len(text)
        into.setdefault(name[0].lower(), value)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()


def is_loopback(host: str) -> bool:
    """Whether a host, without a port, is this machine: localhost, 127.0.0.0/8 or ::1.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("127.0.0.1.example")
    (True, True, False)
    """
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@define
class _Kept:
    token: str
    until: float


class Authorization:
    """The Authorization headers for one registry; safe to use from any thread.

    `send` asks a token server. `plain`: the registry itself is spoken to without TLS, so that its token
    server may be too, where that is this machine or the caller has said that it doesn't matter (`insecure`).
    """

    def __init__(self, registry: str, credential: Credential | None, send: Send, *, insecure: bool) -> None:
        self._registry = registry
        self._credential = credential
        self._send = send
        self._insecure = insecure
        self._mutex = threading.Lock()
        self._basic: str | None = None
        self._tokens: dict[tuple[str, ...], _Kept] = {}
        self._bearer: Challenge | None = None

    def header(self, scopes: tuple[str, ...], *, plain: bool) -> str | None:
        """The header for these scopes, as far as it is known what the registry wants; None before that."""
        with self._mutex:
            if self._bearer is None:
                return self._basic
            return self._token(self._bearer, scopes, plain)

    def answer(
        self, challenges: list[Challenge], scopes: tuple[str, ...], refused: str | None, *, plain: bool
    ) -> str | None:
        """The header that answers a 401 to a request that had the header `refused`; None: there is no other.

        Raises `RegistryError` where the token server has none to give.
        """
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        with self._mutex:
            if (challenge := by_scheme.get("bearer")) is not None:
                self._bearer = challenge
                kept = self._tokens.get(scopes)
                if kept is not None and refused == f"Bearer {kept.token}":
                    del self._tokens[scopes]
                return self._token(challenge, scopes, plain)
            if "basic" in by_scheme and self._credential is not None and self._credential.password:
                self._bearer = None
                self._basic = _basic(self._credential)
                return None if refused == self._basic else self._basic
        return None

    def _token(self, challenge: Challenge, scopes: tuple[str, ...], plain: bool) -> str:
        kept = self._tokens.get(scopes)
        if kept is None or kept.until <= time.monotonic():
            kept = self._tokens[scopes] = self._fetched(challenge, scopes, plain)
        return f"Bearer {kept.token}"

    def _fetched(self, challenge: Challenge, scopes: tuple[str, ...], plain: bool) -> _Kept:
        realm = self._realm(challenge, plain)
        service = challenge.parameters.get("service", "")
        credential = self._credential
        if credential is not None and credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": _CLIENT,
                "scope": " ".join(scopes),
                "refresh_token": credential.identity_token,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            status, data = self._send("POST", realm, headers, urlencode(form).encode())
        else:
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in scopes]
            headers = {}
            if credential is not None:
                headers["Authorization"] = _basic(credential)
                query.append(("account", credential.username))
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
            status, data = self._send("GET", url, headers, None)
        if status != 200:
            raise self._refused(status)
        return self._read(data)

    def _realm(self, challenge: Challenge, plain: bool) -> str:
        realm = challenge.parameters.get("realm", "")
        try:
            parts = urlsplit(realm)
            host = parts.hostname or ""
            known = bool(_TOKEN.fullmatch(realm)) and "@" not in parts.netloc and not parts.fragment
        except ValueError:
            host, known = "", False
        if known and host:
            if parts.scheme == "https":
                return realm
            if parts.scheme == "http" and plain and (self._insecure or is_loopback(host)):
                return realm
        raise RegistryError(
            f"registry {self._registry}: it wants a token of {shown(realm)}: expected an https:// address"
        )

    def _refused(self, status: int) -> RegistryError:
        who = "the login for it was refused" if self._credential is not None else "it wants a login"
        if status in (400, 401, 403):
            return RegistryError(
                f"registry {self._registry}: its token server answered {status}: {who}. "
                f"Log in: isobox login {self._registry}",
                status=status,
            )
        return RegistryError(
            f"registry {self._registry}: its token server answered {status}",
            status=status,
            transient=status == 429 or status >= 500,
        )

    def _read(self, data: bytes) -> _Kept:
        what = f"the token of the registry {self._registry}"
        seconds: float = _DEFAULT_SECONDS
        try:
            fields = Fields.read(data, what)
            token = fields.optional_text("token") or fields.optional_text("access_token") or ""
        except ImageError as error:
            raise RegistryError(str(error)) from None
        if fields.has("expires_in"):
            try:
                seconds = min(max(float(fields.number("expires_in")), 0), _LONGEST_SECONDS)
            except ImageError:
                pass  # what it had to say is none; a 401 will tell
        if len(token) > _LONGEST_TOKEN or not _TOKEN.fullmatch(token):
            raise RegistryError(f"{what}: expected a token of up to {_LONGEST_TOKEN} printable characters")
        return _Kept(token, time.monotonic() + max(seconds - _EARLY, seconds / 2))


def _basic(credential: Credential) -> str:
    both = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(both).decode('ascii')}"
