"""TLS with private registries: authorities and client certificates, where podman and Docker have them."""

from __future__ import annotations

import http.server
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from archives import entry, packed
from isobox import Image, ImageError, RegistryError, Store
from isobox.images.documents.reference import Reference
from isobox.images.registry import certificates
from isobox.images.registry.certificates import tls_context
from isobox.images.registry.client import Client, Patience
from isobox.images.registry.credentials import Credential
from isobox.images.registry.login import log_in
from isobox.images.registry.push import push
from made import archive
from patience import patient
from registry import make_certificate, running_registry
from requirements import program


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with no certificates, on a machine without any."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(certificates, "_SYSTEM", (f"{tmp_path}/etc/containers", f"{tmp_path}/etc/docker"))
    return tmp_path / "home"


def folder(home: Path, registry: str) -> Path:
    place = home / ".config/containers/certs.d" / registry
    place.mkdir(parents=True)
    return place


def test_a_registry_that_wants_to_know_who_asks(tmp_path: Path, home: Path) -> None:
    image = Image.load(archive(tmp_path / "app.tar", packed(entry("a", b"1"))))

    def refused(expected: str, insecure: bool = False) -> None:
        store, reference = Store.default(), Reference.parse(name)
        with pytest.raises(RegistryError, match=expected):
            push(
                store,
                store.resolve("app:1"),
                reference,
                insecure=insecure,
                patience=Patience(pause=0.01, tries=10),
            )

    with running_registry(tmp_path / "r", tls=True, clients=True) as registry:
        assert registry.ca is not None
        name = f"{registry.address}/app:1"
        refused(r"can't be verified.*NAME\.crt into ~/\.config/containers")
        place = folder(home, registry.address)
        shutil.copy(registry.ca, place / "ours.crt")
        for insecure in (False, True):
            refused(r"wants? a client certificate.*NAME\.cert with NAME\.key", insecure)
        own = tmp_path / "r"
        (tmp_path / "theirs").mkdir()
        make_certificate(tmp_path / "theirs")
        for maker in (tmp_path / "theirs", own):
            for end in ("cert", "key"):
                shutil.copy(maker / f"client.{end}", place / f"client.{end}")
            if maker != own:
                refused("refuses the one that it gets|or want a client certificate")
        assert image.push(name) == image.digest
        assert Image.pull(name, store=Store(tmp_path / "other")) == image
        log_in(registry.address, Credential("builder", "x"))
        # They are where skopeo has them, too.
        command = [program("skopeo"), "inspect", "--no-creds", f"docker://{name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60))
        assert done.returncode == 0 and image.digest in done.stdout, done.stderr
        (place / "ours.crt").unlink()
        refused("can't be verified")
        assert image.push(name, insecure=True) == image.digest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    make_certificate(place)
    return place


class TestFolders:
    @staticmethod
    def authorities(registry: str) -> int:
        return sum(
            ("commonName", "CA of a test") in part
            for one in tls_context(registry).get_ca_certs()
            for part in one["subject"]  # type: ignore[union-attr]
        )

    def test_the_first_counts_alone(
        self, made: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        places = [
            home / ".config/containers/certs.d",
            home / ".config/docker/certs.d",
            tmp_path / "etc/containers",
            tmp_path / "etc/docker",
        ]
        for place in reversed(places):
            (place / "r.example:5000").mkdir(parents=True)
            assert self.authorities("r.example:5000") == 0
            shutil.copy(made / "ca.pem", place / "r.example:5000/any.crt")
            assert self.authorities("r.example:5000") == 1
        for other in ("r.example", "example:5000", "docker.io"):
            assert self.authorities(other) == 0
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
        shutil.rmtree(places[0])
        (tmp_path / "xdg/docker/certs.d/r.example:5000").mkdir(parents=True)
        assert self.authorities("r.example:5000") == 0

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
    def test_one_that_is_closed(self, made: Path, tmp_path: Path, home: Path) -> None:
        own = folder(home, "r.example")
        shutil.copy(made / "ca.pem", own / "a.crt")
        assert self.authorities("r.example") == 1
        own.chmod(0)
        assert self.authorities("r.example") == 0
        own.chmod(0o700)
        (own / "a.crt").chmod(0)
        with pytest.raises(ImageError, match=r"a\.crt: Permission denied.*goes before those in /etc"):
            tls_context("r.example")

    def test_what_is_wrong_there(self, made: Path, home: Path) -> None:
        own = folder(home, "r.example")
        tls_context("r.example")
        (own / "readme").write_text("else")

        def wrong(name: str, content: bytes | Path | None, expected: str) -> None:
            if content is None:
                os.mkfifo(own / name)
            else:
                (own / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            with pytest.raises(ImageError, match=rf"r\.example/{expected}"):
                tls_context("r.example")
            (own / name).unlink()

        for content in (b"", b"no certificate", b"\xff\x00" * 100, made / "key.pem"):
            wrong("a.crt", content, r"a\.crt: expected certificates of authorities, in PEM")
        wrong("a.crt", None, r"a\.crt: it is no regular file")
        wrong("a.cert", made / "client.cert", r"a\.cert: there is no a\.key with it")
        wrong("a.key", made / "client.key", r"a\.key: there is no a\.cert with it")
        shutil.copy(made / "client.cert", own / "b.cert")
        wrong("b.key", made / "key.pem", r"b\.cert: expected a certificate in PEM that belongs to .*b\.key")
        wrong("b.key", b"", r"b\.cert: expected a certificate in PEM")
        wrong("b.key", None, r"b\.key: it is no regular file")
        locked = home / "locked.key"
        command = ["pkcs8", "-topk8", "-in", str(made / "client.key"), "-passout", "pass:secret"]
        subprocess.run([program("openssl"), *command, "-out", str(locked)], check=True)
        wrong("b.key", locked, r"b\.key: it is encrypted")
        shutil.copy(made / "client.key", own / "b.key")
        tls_context("r.example")

    def test_it_is_shown_to_the_registry_alone(self, made: Path, home: Path) -> None:
        """Not where that redirects; whose certificate may be of the registry's authority still."""
        with ExitStack() as stack:
            storage, seen_there = stack.enter_context(server(made, {"/blob": b"content"}))
            address, seen = stack.enter_context(server(made, {"/v2/": b"", "/v2/blob": f"{storage}/blob"}))
            host = address.removeprefix("https://localhost").join(["127.0.0.1", ""])
            own = folder(home, host)
            shutil.copy(made / "ca.pem", own / "ca.crt")
            for end in ("cert", "key"):
                shutil.copy(made / f"client.{end}", own / f"client.{end}")
            with Client(host) as client, client.request("GET", "/v2/blob", repository="") as answer:
                assert answer.read_all(100) == b"content"
        assert seen and all(seen) and seen_there == [False]


@contextmanager
def server(made: Path, answers: dict[str, bytes | str]) -> Iterator[tuple[str, list[bool]]]:
    """One of TLS that asks for a client certificate: its address, and whether it got one each time.

    Text in `answers` is where it redirects to.
    """
    seen: list[bool] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(bool(self.connection.getpeercert()))  # type: ignore[attr-defined]
            answer = answers[self.path]
            self.send_response(307 if isinstance(answer, str) else 200)
            if isinstance(answer, str):
                self.send_header("Location", answer)
            self.end_headers()
            if isinstance(answer, bytes):
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def get_request(self) -> Any:
            connection, address = super().get_request()
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, *_: object) -> None:  # plain text, which is tried first on this machine
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(made / "ca.pem"))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_cert_chain(made / "cert.pem", made / "key.pem")
    with Quiet(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"https://localhost:{running.server_port}", seen
        finally:
            running.shutdown()
            thread.join()
