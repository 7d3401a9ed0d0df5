"""HTTP to one registry's hosts, without knowing what is said: connections, TLS, proxies, what cuts them."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
import urllib3.exceptions
from attrs import frozen
from urllib3.connection import HTTPConnection, HTTPSConnection

from isobox.errors import ImageError, RegistryError, shown

from ..tar.compression import Readable
from .authorization import is_loopback
from .paced import PacedResponse

__all__ = ["Body", "Patience", "Response", "Wire", "bare", "split"]

Body = bytes | Callable[[], AbstractContextManager[Readable]] | None
"""What a request sends. A callable opens it anew for each time that it is sent."""

_AGENT: Final = "isobox"
_FOLDER: Final = "~/.config/containers/certs.d/HOST:PORT, named as the registry is in images' names"


@frozen
class Patience:
    """How long a registry is waited for, in seconds, and how often it is asked (`tries`).

    `connect`: for a connection; `silence`: for the next bytes. In so many seconds at least `least` bytes a
    second come of what it sends, or it counts as cut. Before it is asked again `pause` passes, then
    twice that and so on, or what the registry asks for in Retry-After; `longest_pause` at most.
    """

    connect: float = 15.0
    silence: float = 60.0
    least: int = 1024
    tries: int = 5
    pause: float = 0.5
    longest_pause: float = 60.0


class Response:
    """An answer whose body is read as it comes. A context manager; who has it closes it.

    `headers` has names in any case; `url` is what answered, behind all redirects: a relative Location
    header goes on from there (``urllib.parse.urljoin``). `what` was asked, for messages.
    """

    def __init__(
        self,
        raw: urllib3.BaseHTTPResponse,
        url: str,
        what: str,
        forget: Callable[[Response], object],
    ) -> None:
        self._raw = raw
        self.what = what
        self._forget = forget
        self.status: int = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self.url = url

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, as many as are there, and none at the end.

        `RegistryError` where the connection is cut, and where what comes takes too long.
        """
        with _as_registry_error(self.what):
            data: bytes = self._raw.read1(size)
        return data

    def read_all(self, most: int) -> bytes:
        """Return the whole body; `RegistryError` where it has more than `most` bytes."""
        data = bytearray()
        while len(data) <= most and (piece := self.read(most + 1 - len(data))):
            data += piece
        if len(data) > most:
            raise RegistryError(f"{self.what}: an answer of more than {most} bytes")
        return bytes(data)

    def all_headers(self, name: str) -> list[str]:
        """Return the values of a header that may come several times."""
        return self._raw.headers.getlist(name)

    def shutdown(self) -> None:
        """Have a read that waits in another thread end at once."""
        with contextlib.suppress(Exception):  # it may have ended by itself
            self._raw.shutdown()

    def close(self) -> None:
        """Let go of the connection; idempotent."""
        self._forget(self)
        self._raw.close()
        self._raw.release_conn()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Wire:
    """The connections of one client; safe to use from any thread.

    `insecure`: certificates aren't looked at. `tls` makes the context of connections to those who may know
    who we are, and to others. What it raises, `send` does.
    """

    def __init__(self, *, insecure: bool, patience: Patience, tls: Callable[[bool], ssl.SSLContext]) -> None:
        self.answered = False
        """Whether anything has ever answered."""
        self._insecure = insecure
        self._tls = tls
        self._patience = patience
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._open: set[Response] = set()
        self._pools: dict[tuple[str, bool], urllib3.PoolManager] = {}
        self._connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body,
        what: str,
        *,
        identified: bool = False,
    ) -> Response:
        """Send a request as it is, and return the answer as it is; `what` names it in a `RegistryError`.

        `identified`: with our certificate, where there is one.
        """
        self.check(what)
        sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **headers}
        with ExitStack() as stack:
            data: Any = stack.enter_context(body()) if callable(body) else body
            with _as_registry_error(what):
                raw = self._pool(url, identified).request(
                    method,
                    url,
                    body=data,
                    headers=sent,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
        self.answered = True
        response = Response(raw, url, what, self._open.discard)
        self._open.add(response)
        if self._stop.is_set():
            response.shutdown()
        return response

    def wait(self, seconds: float, what: str) -> None:
        """Wait; `RegistryError` after `abort`."""
        self._stop.wait(seconds)
        self.check(what)

    def check(self, what: str) -> None:
        """Raise `RegistryError` after `abort`."""
        if self._stop.is_set():
            raise RegistryError(f"{what}: given up")

    def abort(self) -> None:
        """End all that is under way in other threads; for good."""
        self._stop.set()
        for response in list(self._open):
            response.shutdown()
        with self._mutex:
            connections = list(self._connections)
        for connection in connections:  # those that wait for an answer to begin
            if (sock := connection.sock) is not None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # beneath TLS

    def close(self) -> None:
        """Close all connections; idempotent."""
        with self._mutex:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            for key in tuple(pool.pools.keys()):
                pool.pools[key].close()  # which clear() leaves to the garbage collector
            pool.clear()

    def _pool(self, url: str, identified: bool) -> urllib3.PoolManager:
        parts = split(url)
        proxy = _proxy(parts)
        key = proxy or "", identified
        with self._mutex:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._make_pool(proxy, identified)
            return pool

    def _make_pool(self, proxy: str | None, identified: bool) -> urllib3.PoolManager:
        given: dict[str, Any] = {
            "num_pools": 10,
            "maxsize": 8,
            "timeout": urllib3.Timeout(connect=self._patience.connect, read=self._patience.silence),
            "ssl_context": self._tls(identified),
        }
        if self._insecure:
            given["assert_hostname"] = False
        pool = urllib3.PoolManager(**given) if proxy is None else urllib3.ProxyManager(proxy, **given)
        pool.pool_classes_by_scheme = self._pool_classes()
        return pool

    def _pool_classes(self) -> dict[str, type[urllib3.HTTPConnectionPool]]:
        """Pools whose connections are known here, so that `abort` can end them."""
        wire = self
        patience = self._patience
        answer: Any = staticmethod(partial(PacedResponse, silence=patience.silence, least=patience.least))

        class Plain(HTTPConnection):
            response_class = answer

            def connect(self) -> None:
                super().connect()
                wire._connected(self)

        class Secure(HTTPSConnection):
            response_class = answer

            def connect(self) -> None:
                super().connect()
                if wire._insecure:
                    self.is_verified = True  # nobody is to be warned of what was asked for
                wire._connected(self)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        return {"http": PlainPool, "https": SecurePool}

    def _connected(self, connection: HTTPConnection) -> None:
        with self._mutex:
            self._connections.add(connection)


def split(url: str) -> SplitResult:
    """The parts of a URL; raises `RegistryError`."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise RegistryError(f"{shown(bare(url))} is no address that can be asked") from None
    return parts


def bare(url: str) -> str:
    """A URL without what may be secret in it."""
    return url.partition("?")[0].partition("#")[0]


def _proxy(parts: SplitResult) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    host = parts.hostname or ""
    if not proxy or is_loopback(host) or proxy_bypass(parts.netloc, proxies):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@contextlib.contextmanager
def _as_registry_error(what: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
        why, transient = _reason(error)
        raise RegistryError(f"{what}: {why}", transient=transient) from None


def _reason(error: Exception) -> tuple[str, bool]:
    """Why there is no answer, and whether that may pass. The library's own texts have whole URLs in them."""
    exceptions = urllib3.exceptions
    if isinstance(error, exceptions.ProxyError):
        return "the proxy of HTTPS_PROXY or HTTP_PROXY can't be reached", True
    if isinstance(error, exceptions.NameResolutionError):
        return "there is no host of that name, or the name service does not answer", True
    if isinstance(error, (exceptions.SSLError, ssl.SSLError)):
        if "ALERT" in str(error) and ("CERTIFICATE" in str(error) or "UNKNOWN_CA" in str(error)):
            return (
                "it wants a client certificate, or refuses the one that it gets. Put one for it, "
                f"NAME.cert with NAME.key, into {_FOLDER}"
            ), False
        if "CERTIFICATE" in str(error):
            return (
                "its certificate can't be verified. Add its authority to the system's certificates, or put "
                f"it as NAME.crt into {_FOLDER}, or name a file with it in SSL_CERT_FILE"
            ), False
        if "EOF" in str(error):  # so it is, too, where it has said why and what we send comes too late
            return (
                "it ended the connection when TLS began: it may speak plain http, for which insecure is "
                f"needed, or want a client certificate, NAME.cert with NAME.key in {_FOLDER}"
            ), True
        return "TLS with it failed: it may speak plain http, for which insecure is needed", False
    if isinstance(error, exceptions.NewConnectionError):
        return "no connection to it: is it running, at this address and port?", True
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return "it did not answer in time, or too slowly", True
    if isinstance(error, (exceptions.ProtocolError, http.client.HTTPException, OSError)):
        return "the connection was cut, or its answer is not HTTP", True
    if isinstance(error, (exceptions.LocationValueError, ValueError)):
        return "an address or header that can't be sent", False
    return f"no answer that can be read ({type(error).__name__})", True
