"""One registry: requests with the right authorization, followed, bounded, tried again.

What pull and push have in common (OCI distribution-spec). Nothing here knows what an image is.
"""

from __future__ import annotations

import email.utils
import threading
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Final, Self
from urllib.parse import urljoin

from isobox.errors import ImageError, RegistryError, shown

from ..documents.fields import Fields
from ..documents.reference import DEFAULT_REGISTRY
from .authorization import MOST_TOKEN, Authorization, is_loopback, parse_challenges
from .certificates import tls_context
from .credentials import Credential
from .wire import Body, Patience, Response, Wire, bare, split

__all__ = ["Body", "Client", "Patience", "Response"]

_HUB: Final = "registry-1.docker.io"
_MOST_ERROR: Final = 64 << 10
_LONGEST_TEXT: Final = 300  # of the registry's own words in a message
_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})


class Client:
    """Talks to one registry, a host with an optional port as `Reference.registry` has it.

    Over https, verified with the system's certificates (or those that SSL_CERT_FILE and SSL_CERT_DIR name)
    and those of the registry's own folder, where a client certificate may be too: see `certificates`.
    A registry on this machine (localhost, 127.0.0.0/8, ::1) may speak plain http. `insecure`: any may, and
    its certificate isn't looked at: https is tried first. HTTPS_PROXY, HTTP_PROXY and NO_PROXY are obeyed.

    `credential` is sent to the registry and the token server that it names, and to nobody else; so is the
    client certificate. Safe to use from any thread; a context manager that closes all connections.
    """

    def __init__(
        self,
        registry: str,
        *,
        insecure: bool = False,
        credential: Credential | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.registry = registry
        self._host = _HUB if registry == DEFAULT_REGISTRY else registry
        self._insecure = insecure
        self._patience = patience or Patience()
        self._loopback = is_loopback(split(f"https://{self._host}").hostname or "")
        self._logged_in = credential is not None
        self._authorization = Authorization(registry, credential, self._ask_token, insecure=insecure)
        self._mutex = threading.Lock()
        self._origin: str | None = None
        self._wire = Wire(
            insecure=insecure,
            patience=self._patience,
            tls=lambda identified: tls_context(registry, insecure=insecure, identified=identified),
        )

    # Requests

    def request(
        self,
        method: str,
        path: str,
        *,
        repository: str,
        actions: str = "pull",
        also: Collection[str] = (),
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (200,),
        retry: bool | None = None,
    ) -> Response:
        """Send one request and return the answer, whose body is still to be read; the caller closes it.

        `path`: below the registry, such as ``/v2/library/debian/manifests/12``, or a whole URL that the
        registry gave (a Location header, made whole by ``urljoin(response.url, location)``); credentials go
        to the registry's own host alone. `repository` with `actions` ("pull" or "pull,push") is what a token
        is asked for, "" for none of them; `also` names further repositories that are read (those that a blob
        is mounted from).

        `body`: bytes, or a callable that opens what is sent, for each time that it is sent (after a 401 or a
        redirect once more); give Content-Length in `headers` for the latter, else it is sent in chunks.
        Redirects are followed, a bounded number of times. Where a token has run out, a new one is asked for.

        A status that isn't in `expect` is a `RegistryError`, which has it as `status`, with the registry's
        own words. `retry` (None: for GET and HEAD): ask again, with pauses, where the connection was cut,
        or the registry had no time (429, 5xx). A cut while the body is read is for the caller to mend.
        """
        own = [f"repository:{repository}:{actions}"] if repository else []
        scopes = tuple(dict.fromkeys([*own, *_reading(also)]))
        what = f"registry {self.registry}: {method} {_shown_path(path)}"
        again = method in ("GET", "HEAD") if retry is None else retry
        tries = 0
        while True:
            wait: float | None = None
            try:
                response = self._authorized(method, path, scopes, dict(headers or {}), body, what)
                if response.status in expect:
                    return response
                wait = _retry_after(response.headers.get("Retry-After"))
                error = self._problem(response, what)
            except RegistryError as failed:
                error = failed
            tries += 1
            unreachable = error.status is None and not self._wire.answered  # a wrong name, most likely
            if not (again and error.transient) or unreachable or tries >= self._patience.tries:
                raise error
            self.pause(tries, wait)

    def pause(self, tries: int, wait: float | None = None) -> None:
        """Wait before the next try, the longer the more there have been; `RegistryError` after `abort`."""
        seconds = self._patience.pause * 2 ** (tries - 1) if wait is None else wait
        self._wire.wait(min(seconds, self._patience.longest_pause), f"registry {self.registry}")

    @property
    def tries(self) -> int:
        """How often something is tried before it is given up."""
        return self._patience.tries

    def abort(self) -> None:
        """End all requests that are under way in other threads, each with a `RegistryError`; for good."""
        self._wire.abort()

    def close(self) -> None:
        """Close all connections; idempotent."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # With authorization

    def _authorized(
        self,
        method: str,
        path: str,
        scopes: tuple[str, ...],
        headers: dict[str, str],
        body: Body,
        what: str,
    ) -> Response:
        origin = self._find_origin()
        url = _joined(origin, path, what)
        plain = origin.startswith("http:")
        own = _same_origin(url, origin)
        given = self._authorization.header(scopes, plain=plain) if own else None
        if not own:
            self._checked(url, what)
        response = self._followed(method, url, headers, body, given, what)
        if response.status != 401 or not _same_origin(response.url, origin):
            return response
        challenges = parse_challenges(response.all_headers("WWW-Authenticate"))
        try:
            given = self._authorization.answer(challenges, scopes, given, plain=plain)
        except BaseException:
            response.close()
            raise
        if given is None:
            return response
        response.close()
        return self._followed(method, url, headers, body, given, what)

    def _followed(
        self, method: str, url: str, headers: dict[str, str], body: Body, authorization: str | None, what: str
    ) -> Response:
        start = url
        for _ in range(_MOST_REDIRECTS + 1):
            sent = dict(headers)
            if authorization is not None and _same_origin(url, start):
                sent["Authorization"] = authorization
            known = split(url).hostname == split(self._find_origin()).hostname
            response = self._wire.send(method, url, sent, body, what, identified=known)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                return response
            response.close()
            if response.status == 303 and method != "HEAD":
                method, body = "GET", None
            url = self._checked(_joined(url, location, what), what)
        raise RegistryError(f"{what}: more than {_MOST_REDIRECTS} redirects")

    def _checked(self, url: str, what: str) -> str:
        """A URL that the registry leads to: not from TLS to plain text."""
        parts = split(url)
        host = parts.hostname or ""
        plain = self._find_origin().startswith("http:")
        if host and parts.scheme == "https":
            return url
        if host and parts.scheme == "http" and plain and (self._insecure or is_loopback(host)):
            return url
        raise RegistryError(f"{what}: it redirects to {shown(bare(url))}: expected an https:// address")

    def _ask_token(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        """What `Authorization` asks token servers with; no redirects, which would carry logins elsewhere."""
        what = f"registry {self.registry}: its token server"
        with self._wire.send(method, url, dict(headers), body, what, identified=True) as response:
            return response.status, response.read_all(MOST_TOKEN) if response.status == 200 else b""

    def _problem(self, response: Response, what: str) -> RegistryError:
        """The error that an answer means, in the registry's own words."""
        status = response.status
        with response:
            try:
                code, text = _own_words(response.read_all(_MOST_ERROR))
            except RegistryError:
                code, text = "", ""
        message = f"{what}: {status}" + (f" {text}" if text else "")
        if status in (401, 403):
            login = f"isobox login {self.registry}"
            message += f". It may need another login: {login}" if self._logged_in else f". Log in: {login}"
        return RegistryError(message, status=status, code=code, transient=status in _AGAIN)

    def _find_origin(self) -> str:
        """``https://host/`` or ``http://host/``: found out once, by asking it for /v2/ where both may be."""
        with self._mutex:
            if self._origin is not None:
                return self._origin
        secure, plain = f"https://{self._host}/", f"http://{self._host}/"
        if self._insecure:
            tried = [secure, plain]
        elif self._loopback:
            # Plain first: such a server may wait for ever for the rest of what TLS begins with.
            tried = [plain, secure]
        else:
            tried = [secure]
        origin = tried[-1] if len(tried) == 1 else self._first(tried)
        with self._mutex:
            self._origin = self._origin or origin
            return self._origin

    def _first(self, tried: list[str]) -> str:
        problem: RegistryError | None = None
        for origin in tried:
            try:
                what = f"registry {self.registry}"
                with self._wire.send("GET", f"{origin}v2/", {}, None, what, identified=True) as response:
                    # A server of TLS answers 400 to plain text.
                    if response.status != 400 or (origin == tried[-1] and problem is None):
                        return origin
            except RegistryError as error:
                if problem is None or not error.transient:
                    problem = error
        assert problem is not None  # the last one was tried
        raise problem


def _reading(repositories: Collection[str]) -> list[str]:
    return [f"repository:{name}:pull" for name in repositories]


def _joined(url: str, location: str, what: str) -> str:
    try:
        joined = urljoin(url, location)
        split(joined)
    except (ValueError, RegistryError):
        raise RegistryError(
            f"{what}: it leads to {shown(bare(location))}, which is no address that can be asked"
        ) from None
    return joined


def _shown_path(path: str) -> str:
    return bare(path)[:_LONGEST_TEXT]


def _same_origin(one: str, other: str) -> bool:
    a, b = split(one), split(other)
    ports = [parts.port or (443 if parts.scheme == "https" else 80) for parts in (a, b)]
    return (a.scheme, a.hostname) == (b.scheme, b.hostname) and ports[0] == ports[1]


def _own_words(data: bytes) -> tuple[str, str]:
    """The code and the text of a registry's error (distribution-spec, "Error Codes"); empty for others."""
    try:
        errors = Fields.read(data, "error").objects("errors", 100)
        first = errors[0] if errors else None
        code, message = (first.text("code"), first.text("message")) if first is not None else ("", "")
    except ImageError:
        return "", ""
    return code[:_LONGEST_TEXT], ": ".join(part[:_LONGEST_TEXT] for part in (code, message) if part)


def _retry_after(header: str | None) -> float | None:
    """Seconds (RFC 9110, section 10.2.3); None where it says nothing."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        then = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, then - time.time())
