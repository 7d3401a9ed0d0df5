"""A server of tokens for a registry (distribution's docs, spec/auth/token.md and oauth.md).

Its tokens are signed with a key whose certificate the registry trusts.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from isobox.worker import take_no_signals
from patience import patient
from requirements import program

# docker-registry takes a token for so long after its end.
_LEEWAY = 60


class TokenServer:
    """What it gives and what it was asked."""

    service = "registry of a test"
    issuer = "tokens of a test"

    def __init__(self, directory: Path, users: Mapping[str, str] | None) -> None:
        self.certificate = directory / "tokens.pem"
        self.realm = ""
        self.users = users
        self.asked: list[dict[str, Any]] = []
        """Each request: its method, user (None: nobody), scopes, grant and account."""
        self.lifetimes: list[float] = []
        """Seconds for the next tokens; 300 when it is empty. With 0 the registry refuses it already."""
        self.announces = True
        """Whether it says how long a token lives; a client then counts on 60 seconds."""
        self.identities: dict[str, str] = {}
        """Identity tokens that it has given, and to whom."""
        self.lock = threading.Lock()
        self._key = directory / "tokens.key"
        _openssl(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=tokens",
            "-keyout",
            str(self._key),
            "-out",
            str(self.certificate),
        )
        pem = self.certificate.read_text().splitlines()
        self._x5c = "".join(line for line in pem if "-----" not in line)

    def user(self, name: str, password: str) -> str | None:
        """The name where the password is right."""
        return name if self.users is not None and self.users.get(name) == password else None

    def answer(
        self, method: str, user: str | None, scopes: list[str], offline: bool, **said: Any
    ) -> dict[str, Any]:
        """A token for what may be done: everything by those it knows, nothing by others if it knows any."""
        with self.lock:
            self.asked.append({"method": method, "user": user, "scopes": scopes, **said})
            lifetime = self.lifetimes.pop(0) if self.lifetimes else 300
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if user is not None or self.users is None:
                access.append({"type": kind, "name": name, "actions": actions.split(",")})
        token = self._sign(access, user or "", lifetime)
        word = "access_token" if method == "POST" else "token"
        given: dict[str, Any] = {word: token}
        if self.announces:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            given |= {"expires_in": max(60, int(lifetime)), "issued_at": now}
        if offline and user is not None:
            identity = f"identity-{len(self.identities)}-{user}"
            self.identities[identity] = user
            given["refresh_token"] = identity
        return given

    def _sign(self, access: list[dict[str, Any]], subject: str, lifetime: float) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer, "sub": subject, "aud": self.service, "jti": str(time.monotonic_ns()),
            "exp": int(now + lifetime) - _LEEWAY, "nbf": now - 3600, "iat": now - 3600, "access": access,
        }  # fmt: skip
        parts = [{"typ": "JWT", "alg": "RS256", "x5c": [self._x5c]}, claims]
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in parts)
        signature = _openssl("dgst", "-sha256", "-sign", str(self._key), input=signed)
        return (signed + b"." + _base64url(signature)).decode()


@contextlib.contextmanager
def running_token_server(directory: Path, users: Mapping[str, str] | None) -> Iterator[TokenServer]:
    """Run one in a thread of this process."""
    directory.mkdir(parents=True, exist_ok=True)
    tokens = TokenServer(directory, users)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            user = None
            kind, _, word = self.headers.get("Authorization", "").partition(" ")
            if kind == "Basic":
                name, _, password = base64.b64decode(word).decode().partition(":")
                user = tokens.user(name, password)
                if user is None:
                    return self._send(401, {"details": "incorrect username or password"})
            scopes = [part for scope in query.get("scope", []) for part in scope.split()]
            offline = query.get("offline_token") == ["true"]
            return self._send(200, tokens.answer("GET", user, scopes, offline, account=query.get("account")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            grant = form.get("grant_type")
            if grant == "refresh_token":
                user = tokens.identities.get(form.get("refresh_token", ""))
            else:
                user = tokens.user(form.get("username", ""), form.get("password", ""))
            if user is None:
                return self._send(401, {"error": "invalid_grant"})
            offline = form.get("access_type") == "offline"
            return self._send(
                200, tokens.answer("POST", user, form.get("scope", "").split(), offline, grant=grant)
            )

        def _send(self, status: int, values: dict[str, Any]) -> None:
            data = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:

        def serve() -> None:
            take_no_signals()
            server.serve_forever(0.02)

        tokens.realm = f"http://127.0.0.1:{server.server_port}/token"
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield tokens
        finally:
            server.shutdown()
            thread.join()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _openssl(*arguments: str, input: bytes | None = None) -> bytes:
    command = [program("openssl"), *arguments]
    done = subprocess.run(command, input=input, capture_output=True, timeout=patient(60))
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout
