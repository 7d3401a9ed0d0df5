"""A real registry on loopback, Debian's docker-registry: with passwords, tokens or TLS where asked for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from patience import patient
from requirements import program
from tokens import TokenServer, running_token_server

_LISTENS = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


class Registry:
    """One registry, which may be killed and started again on the same port with the same data."""

    def __init__(
        self,
        directory: Path,
        starter: ThreadPoolExecutor,
        *,
        tls: bool,
        clients: bool,
        tokens: TokenServer | None,
        options: Mapping[str, object],
    ) -> None:
        self.data = directory / "data"
        """Its files: blobs lie in docker/registry/v2/blobs/sha256/AA/DIGEST/data."""
        self.log = directory / "log"
        self.ca = directory / "ca.pem" if tls else None
        """What its certificate is to be verified with; None without `tls`."""
        self._clients = clients
        self.tokens = tokens
        """The server of its tokens; None where it wants none."""
        self._directory = directory
        self._options = options
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._starter = starter

    @property
    def address(self) -> str:
        """Host and port, as they stand in the names of images."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it takes connections; on the port of the first time."""
        config = self._directory / "config.yml"
        config.write_text(json.dumps(self._config()))  # which YAML includes
        self.log.write_bytes(b"")
        # REGISTRY_AUTH_FILE, say, which is podman's, would be an option of its own.
        environment = {name: text for name, text in os.environ.items() if not name.startswith("REGISTRY_")}
        # It ends with this process, however that ends; in truth with the thread that has started it.
        command = [
            program("setpriv"),
            "--pdeathsig",
            "KILL",
            program("docker-registry"),
            "serve",
            str(config),
        ]
        with self.log.open("ab") as log:
            self._process = self._starter.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=environment,
            ).result()
        deadline = time.monotonic() + patient(30)
        while (found := _LISTENS.search(self.log.read_text())) is None:
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        self._port = int(found[1])

    def kill(self) -> None:
        """End it as a crash does; connections are cut."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    def requests(self) -> list[str]:
        """What it was asked since it was started: ``"GET /v2/"``. Those that it has answered."""
        found = re.finditer(r'"([A-Z]+ /v2/[^ ]*) HTTP/[^"]*" \d{3}', self.log.read_text())
        return [match[1] for match in found]

    def blob(self, digest: str) -> Path:
        """Where a blob lies."""
        algorithm, _, digits = digest.partition(":")
        return self.data / "docker/registry/v2/blobs" / algorithm / digits[:2] / digits / "data"

    def _config(self) -> dict[str, object]:
        http: dict[str, object] = {"addr": f"127.0.0.1:{self._port}", "secret": "known after a restart"}
        if self.ca is not None:
            http["tls"] = {
                "certificate": str(self._directory / "cert.pem"),
                "key": str(self._directory / "key.pem"),
                **({"clientcas": [str(self.ca)]} if self._clients else {}),
            }
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.data)},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http | dict(self._options),
        }
        if self.tokens is not None:
            config["auth"] = {
                "token": {
                    "realm": self.tokens.realm,
                    "service": self.tokens.service,
                    "issuer": self.tokens.issuer,
                    "rootcertbundle": str(self.tokens.certificate),
                }
            }
        elif (self._directory / "htpasswd").exists():
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(self._directory / "htpasswd")}}
        return config


def _leave_signals() -> None:
    """To the main thread, where handlers run; the registry inherits this, and needs the others."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2})


@contextlib.contextmanager
def running_registry(
    directory: Path,
    *,
    users: Mapping[str, str] | None = None,
    tls: bool = False,
    clients: bool = False,
    tokens: bool = False,
    **http: object,
) -> Iterator[Registry]:
    """Run a registry whose files are below `directory`, which is made; it takes deletions.

    `users` are names and passwords: asked for directly, or by the server of `tokens`, which gives everybody a
    token where there are none. With `clients` (and `tls`) it takes those alone who have a certificate: its
    folder has client.cert and client.key. `http` are options of docker-registry's "http" section
    (relativeurls=True).
    """
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if tls:
            make_certificate(directory)
        server = stack.enter_context(running_token_server(directory / "tokens", users)) if tokens else None
        if users is not None and not tokens:
            lines = [_run("htpasswd", "-inB", "-C4", name, input=word) for name, word in users.items()]
            (directory / "htpasswd").write_text("".join(lines))
        starter = stack.enter_context(ThreadPoolExecutor(1, initializer=_leave_signals))
        registry = Registry(directory, starter, tls=tls, clients=clients, tokens=server, options=http)
        stack.callback(registry.kill)
        registry.start()
        yield registry


def make_certificate(directory: Path) -> None:
    """Write ca.pem, and what it has signed, for 127.0.0.1 and localhost: cert.pem, and client.cert."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    usage = ["-addext", "keyUsage=critical,keyCertSign"]
    _run(
        "openssl",
        "req",
        "-x509",
        *key,
        "-subj",
        "/CN=CA of a test",
        *usage,
        "-keyout",
        str(ca_key),
        "-out",
        str(ca),
    )
    for certificate, own_key in (("cert.pem", "key.pem"), ("client.cert", "client.key")):
        (directory / "ext").write_text(f"{names}\nbasicConstraints=CA:FALSE\nauthorityKeyIdentifier=keyid\n")
        request = directory / "request.pem"
        _run(
            "openssl",
            "req",
            *key[:-2],
            "-subj",
            "/CN=localhost",
            "-keyout",
            str(directory / own_key),
            "-out",
            str(request),
        )
        signer = ["-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial", "-days", "2"]
        _run(
            "openssl",
            "x509",
            "-req",
            "-in",
            str(request),
            *signer,
            "-extfile",
            str(directory / "ext"),
            "-out",
            str(directory / certificate),
        )


def push_with_skopeo(
    source: str | Path,
    registry: Registry,
    name: str,
    *,
    login: tuple[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> None:
    """Fill a registry: `name` is ``"team/app:1"``.

    `source` is as skopeo takes it (``"oci:DIRECTORY:TAG"``); a path is an OCI layout, or an archive that
    docker save wrote.
    """
    if isinstance(source, Path):
        source = f"oci:{source}" if source.is_dir() else f"docker-archive:{source}"
    skopeo(
        "copy", "-q", *options, source, f"docker://{registry.address}/{name}", registry=registry, login=login
    )


def skopeo(command: str, *arguments: str, registry: Registry, login: tuple[str, str] | None = None) -> str:
    """Run skopeo inspect, copy or delete with what it needs to be let in; returns what it says."""
    word = (
        "dest-"
        if command == "copy" and arguments[-1].startswith("docker://")
        else "src-"
        if command == "copy"
        else ""
    )
    environment = dict(os.environ)
    options = []
    if registry.ca is not None:
        environment["SSL_CERT_FILE"] = str(registry.ca)
    else:
        options += [f"--{word}tls-verify=false"]
    if login is not None:
        options += [f"--{word}creds={login[0]}:{login[1]}"]
    return _run("skopeo", "--insecure-policy", command, *options, *arguments, env=environment)


def _run(*command: str, input: str | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [program(command[0]), *command[1:]],
        input=input,
        env=env,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout
