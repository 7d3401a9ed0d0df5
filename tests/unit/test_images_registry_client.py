"""A client of registries that answer nonsense: what no real one does, a small server of HTTP says here."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archives import entry, packed
from isobox import DigestMismatch, ImageError, NotFound, RegistryError
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from isobox.images.documents.platform import Platform
from isobox.images.documents.reference import Reference
from isobox.images.layers.unpacked import Layers
from isobox.images.registry.client import Client, Patience
from isobox.images.registry.credentials import Credential
from isobox.images.registry.pull import _Fetching, pull
from isobox.images.store import Store

QUICK = Patience(connect=5, silence=5, tries=3, pause=0.001, longest_pause=0.01)
LAYER = packed(entry("a", b"1" * 50_000))


class Server:
    """Answers with what `answers` has for a path: bytes, or a function that is given the handler."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"/v2/": b"{}"}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.asked.append((self.command, self.path, headers, body))
                answer = server.answers.get(self.path.partition("?")[0], 404)
                if callable(answer):
                    answer(self)
                elif isinstance(answer, int):
                    say(self, answer)
                else:
                    say(self, 200, answer)

            do_POST = do_PUT = do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:  # a client that has heard enough
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def client(self, **options: Any) -> Client:
        return Client(self.address, patience=QUICK, **options)


def say(handler: Any, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    headers.setdefault("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(autouse=True)
def nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login and no proxy of whoever runs the tests."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


def get(client: Client, path: str = "/v2/app/tags/list", **options: Any) -> bytes:
    with client.request("GET", path, repository="app", **options) as response:
        return response.read_all(1000)


class TestRequests:
    def test_tried_again(self, server: Server) -> None:
        states = [503, 429, 200]
        server.answers["/v2/app/tags/list"] = lambda handler: say(
            handler, states.pop(0), b"ok", Retry_After="0"
        )
        with server.client() as client:
            assert get(client) == b"ok" and states == []

    def test_not_for_ever(self, server: Server) -> None:
        server.answers["/v2/app/tags/list"] = lambda handler: say(handler, 500, Retry_After="1000000000")
        with server.client() as client:
            with pytest.raises(RegistryError, match="500") as refused:
                get(client)
            assert refused.value.transient and refused.value.status == 500
            server.asked.clear()
            with pytest.raises(RegistryError):
                client.request("POST", "/v2/app/tags/list", repository="app")
        assert len(server.asked) == 1

    @pytest.mark.parametrize(
        "body",
        [
            b"<html>\x1b[2J</html>",
            b'{"errors": 3}',
            b'{"errors": []}',
            b'{"errors": [{"code": {}}]}',
            b"[" * 60_000,
            b"\xff",
            b"x" * 100_000,
        ],
    )
    def test_errors_that_say_nothing(self, server: Server, body: bytes) -> None:
        server.answers["/v2/app/tags/list"] = lambda handler: say(handler, 403, body)
        with server.client() as client, pytest.raises(RegistryError, match="403") as refused:
            get(client)
        assert refused.value.code == "" and len(str(refused.value)) < 300

    def test_errors_are_printable_and_short(self, server: Server) -> None:
        said = {"errors": [{"code": "DENIED", "message": "\x1b[2J" + "x" * 10_000}]}
        server.answers["/v2/app/tags/list"] = lambda handler: say(handler, 403, json.dumps(said).encode())
        with (
            server.client() as client,
            pytest.raises(RegistryError, match=r"DENIED: \\x1b\[2Jx") as refused,
        ):
            get(client)
        assert len(str(refused.value)) < 1000 and refused.value.code == "DENIED"

    @pytest.mark.parametrize(
        "bytes_",
        [
            b"",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + b"x" * 2000,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nx",
            b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999/\r\nContent-Length: 0\r\n\r\n",
        ],
    )
    def test_what_is_no_http(self, server: Server, bytes_: bytes) -> None:
        def answer(handler: Any) -> None:
            handler.wfile.write(bytes_)
            handler.close_connection = True

        server.answers["/v2/app/tags/list"] = answer
        with server.client() as client, pytest.raises(RegistryError, match=server.address):
            get(client)

    def test_an_endless_answer(self, server: Server) -> None:
        def answer(handler: Any) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with contextlib.suppress(OSError):
                while True:
                    handler.wfile.write(b"x" * 65536)

        server.answers["/v2/app/tags/list"] = answer
        with server.client() as client, pytest.raises(RegistryError, match="more than 1000 bytes"):
            get(client)

    @pytest.mark.parametrize(
        "begun",
        [
            b"",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nX: ",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n900\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        ],
    )
    def test_a_slow_answer(self, server: Server, begun: bytes) -> None:
        """Byte by byte, so that it is never silent."""
        done = threading.Event()

        def answer(handler: Any) -> None:
            handler.wfile.write(begun)
            with contextlib.suppress(OSError):
                while not done.wait(0.01):
                    handler.wfile.write(b"x")

        server.answers["/v2/app/tags/list"] = answer
        patience = Patience(silence=0.3, tries=2, pause=0.001)
        try:
            with Client(server.address, patience=patience) as client:
                with pytest.raises(RegistryError, match="too slowly") as refused:
                    get(client)
                assert refused.value.transient
        finally:
            done.set()

    @pytest.mark.parametrize(
        ("begun", "repeated"),
        [
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: y\r\n"),
        ],
    )
    def test_headers_without_end(self, server: Server, begun: bytes, repeated: bytes) -> None:
        def answer(handler: Any) -> None:
            handler.wfile.write(begun)
            with contextlib.suppress(OSError):
                while True:
                    handler.wfile.write(repeated * 1000)

        server.answers["/v2/app/tags/list"] = answer
        with server.client() as client, pytest.raises(RegistryError, match="not HTTP"):
            get(client)

    def test_nobody_there(self) -> None:
        with Server() as server:
            pass
        begun = time.monotonic()
        with Client(server.address) as client, pytest.raises(RegistryError, match="is it running"):
            get(client)
        assert time.monotonic() - begun < 60  # it was not waited for

    @pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx"])
    def test_given_up(self, server: Server, begun: bytes) -> None:
        waits = threading.Event()

        def answer(handler: Any) -> None:
            handler.wfile.write(begun)
            waits.set()
            handler.rfile.read(1)
            handler.close_connection = True

        server.answers["/v2/app/tags/list"] = answer
        with Client(server.address) as client:
            failed: list[BaseException] = []

            def ask() -> None:
                try:
                    get(client)
                except BaseException as error:
                    failed.append(error)

            asking = threading.Thread(target=ask)
            asking.start()
            waits.wait(30)
            client.abort()
            asking.join(30)
            assert not asking.is_alive() and isinstance(failed[0], RegistryError)
            with pytest.raises(RegistryError, match="given up"):
                get(client)

    def test_bodies_are_opened_for_each_time(self, server: Server) -> None:
        opened: list[io.BytesIO] = []

        def body() -> io.BytesIO:
            opened.append(io.BytesIO(b"data"))
            return opened[-1]

        def answer(handler: Any) -> None:
            if "Authorization" not in handler.headers:
                say(handler, 401, WWW_Authenticate="Basic realm=x")
            else:
                say(handler, 201)

        server.answers["/v2/app/blobs/uploads/1"] = answer
        with server.client(credential=Credential("builder", "x")) as client:
            headers = {"Content-Length": "4"}
            client.request(
                "PUT",
                "/v2/app/blobs/uploads/1",
                repository="app",
                body=body,
                headers=headers,
                expect=(201,),
            ).close()
        assert [asked[3] for asked in server.asked[-2:]] == [b"data", b"data"]
        assert len(opened) == 2 and all(one.closed for one in opened)


class TestProxies:
    def test_one_that_is_named(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://{server.address}")
        monkeypatch.setenv("no_proxy", "other.invalid")
        server.answers |= {"http://far.invalid/v2/": b"{}", "http://far.invalid/v2/app/tags/list": b"ok"}
        with Client("far.invalid", insecure=True, patience=QUICK) as client:
            assert get(client) == b"ok"
        asked = len(server.asked)
        with Client("other.invalid", patience=QUICK) as client, pytest.raises(RegistryError, match="no host"):
            get(client)
        assert len(server.asked) == asked

    def test_never_to_this_machine(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        server.answers["/v2/app/tags/list"] = b"ok"
        with server.client() as client:
            assert get(client) == b"ok"


class TestRedirects:
    def login(self, server: Server, answer: Callable[[Any], None]) -> None:
        """The path wants a login, and then answers."""

        def challenge(handler: Any) -> None:
            if "Authorization" in handler.headers:
                answer(handler)
            else:
                say(handler, 401, WWW_Authenticate="Basic realm=x")

        server.answers["/v2/app/tags/list"] = challenge

    def test_logins_stay(self, server: Server) -> None:
        with Server() as other:
            other.answers["/x"] = b"ok"
            self.login(
                server, lambda handler: say(handler, 307, Location=f"http://{other.address}/x?sig=secret")
            )
            with server.client(credential=Credential("builder", "x")) as client:
                assert get(client) == b"ok"
            assert server.asked[-1][2]["authorization"] == "Basic YnVpbGRlcjp4"
            assert "authorization" not in other.asked[-1][2]
            # Nor does it get one by asking.
            other.answers["/x"] = lambda handler: say(handler, 401, WWW_Authenticate="Basic realm=x")
            with server.client(credential=Credential("builder", "x")) as client:
                with pytest.raises(RegistryError, match="401") as refused:
                    get(client)
            assert "secret" not in str(refused.value)
            realm = f'Bearer realm="http://{other.address}/token"'
            other.answers |= {
                "/x": lambda handler: say(handler, 401, WWW_Authenticate=realm),
                "/token": b'{"token": "t"}',
            }
            with server.client(credential=Credential("builder", "x")) as client:
                for _ in range(2):  # the second one comes with a login at once
                    with pytest.raises(RegistryError, match="401"):
                        get(client)
            assert {asked[1].partition("?")[0] for asked in other.asked} == {"/x"}
            assert all("authorization" not in asked[2] for asked in other.asked)

    def test_on_the_same_host_they_go_on(self, server: Server) -> None:
        server.answers["/x"] = b"ok"
        self.login(server, lambda handler: say(handler, 302, Location="/x"))
        with server.client(credential=Credential("builder", "x")) as client:
            assert get(client) == b"ok"
        assert server.asked[-1][1:3] == ("/x", {**server.asked[-1][2], "authorization": "Basic YnVpbGRlcjp4"})

    def test_not_for_ever(self, server: Server) -> None:
        server.answers["/v2/app/tags/list"] = lambda handler: say(handler, 302, Location="/v2/app/tags/list")
        with server.client() as client, pytest.raises(RegistryError, match="more than 5 redirects"):
            get(client)

    @pytest.mark.parametrize("location", ["http://far.example/x", "file:///etc/passwd", "gopher://x/"])
    def test_to_where_nobody_goes(self, server: Server, location: str) -> None:
        server.answers["/v2/app/tags/list"] = lambda handler: say(handler, 302, Location=location)
        with server.client() as client, pytest.raises(RegistryError, match="it redirects to"):
            get(client)


class Repository:
    """One image on the server; each part may lie."""

    def __init__(self, server: Server) -> None:
        self.server = server
        config = {
            "os": "linux",
            "architecture": Platform.here().architecture,
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(LAYER))]},
        }
        data = json.dumps(config).encode()
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(data) | {"mediaType": OCI_CONFIG},
            "layers": [self.blob(LAYER) | {"mediaType": OCI_LAYER}],
        }
        self.layer = f"/v2/app/blobs/{Digest.of(LAYER)}"
        self.put()

    def blob(self, data: bytes) -> dict[str, Any]:
        digest = str(Digest.of(data))
        self.server.answers[f"/v2/app/blobs/{digest}"] = data
        return {"digest": digest, "size": len(data)}

    def put(self, kind: str = OCI_MANIFEST) -> None:
        data = json.dumps(self.manifest).encode()
        self.server.answers["/v2/app/manifests/1"] = lambda handler: say(
            handler, 200, data, Content_Type=kind
        )


@pytest.fixture
def repository(server: Server) -> Repository:
    return Repository(server)


class TestPulls:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "store")

    def pull(self, server: Server, store: Store, name: str = "app:1") -> None:
        pull(store, Reference.parse(f"{server.address}/{name}"), patience=QUICK)

    def fails(
        self,
        repository: Repository,
        store: Store,
        match: str,
        kind: type[ImageError] = ImageError,
        name: str = "app:1",
    ) -> None:
        """It fails so, names nothing, leaves nothing half-made; and the next one of an honest image works."""
        with pytest.raises(kind, match=match):
            self.pull(repository.server, store, name)
        assert store.references() == ()
        assert not any((Path(store.path) / ".isobox/leases").iterdir())
        Repository(repository.server)
        self.pull(repository.server, store)
        assert len(store.references()) == 1 and store.prune().images == ()

    def test_a_foreign_layer(self, repository: Repository, store: Store) -> None:
        repository.manifest["layers"][0]["urls"] = ["http://169.254.169.254/latest"]
        repository.put()
        self.fails(repository, store, r"to be had elsewhere, 'http://169\.254")

    def test_html(self, repository: Repository, store: Store) -> None:
        repository.server.answers["/v2/app/manifests/1"] = lambda handler: say(
            handler, 200, b"<html>log in</html>", Content_Type="text/html"
        )
        self.fails(repository, store, "app:1: what the registry sends is no image", RegistryError)

    def test_another_media_type(self, repository: Repository, store: Store) -> None:
        repository.put("application/vnd.oci.image.index.v1+json")
        self.fails(repository, store, "sends is no image.*mediaType", RegistryError)

    def test_a_huge_manifest(self, repository: Repository, store: Store) -> None:
        repository.server.answers["/v2/app/manifests/1"] = b" " * (5 << 20)
        self.fails(repository, store, "more than 4194304 bytes", RegistryError)

    def test_a_huge_config(self, repository: Repository, store: Store) -> None:
        repository.manifest["config"]["size"] = 1 << 40
        repository.put()
        self.fails(repository, store, "expected at most 4194304")

    def test_another_manifest(self, repository: Repository, store: Store) -> None:
        digest = f"sha256:{'0' * 64}"
        repository.server.answers[f"/v2/app/manifests/{digest}"] = json.dumps(repository.manifest).encode()
        self.fails(repository, store, "the manifest of .*app@sha256:000", DigestMismatch, f"app@{digest}")

    def test_an_endless_layer(self, repository: Repository, store: Store) -> None:
        def answer(handler: Any) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with contextlib.suppress(OSError):
                while True:
                    handler.wfile.write(b"x" * 65536)

        repository.server.answers[repository.layer] = answer
        self.fails(repository, store, "registry sends it: expected .* bytes, found more", DigestMismatch)

    @pytest.mark.parametrize("size", [0, len(LAYER) - 1, len(LAYER) + 1, 1 << 62])
    def test_sizes_that_lie(self, repository: Repository, store: Store, size: int) -> None:
        repository.manifest["layers"][0]["size"] = size
        repository.put()
        self.fails(repository, store, "ended after|expected .* bytes, found more|as the registry sends it")

    def test_no_lengths(self, repository: Repository, store: Store) -> None:
        """What doesn't say how long it is ends with its connection, or in chunks."""

        def to_its_end(handler: Any) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + LAYER)
            handler.close_connection = True

        def chunked(handler: Any) -> None:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(LAYER), LAYER)
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data)

        for answer in (to_its_end, chunked):
            repository.server.answers[repository.layer] = answer
            self.pull(repository.server, store)
            (name,) = store.references()
            store.untag(name)
            assert len(store.prune().blobs) == 3

    def test_compressed_on_the_way(self, repository: Repository, store: Store) -> None:
        """Nobody asked for that, and what is hashed is what comes."""
        data = gzip.compress(LAYER)
        repository.server.answers[repository.layer] = lambda handler: say(
            handler, 200, data, Content_Encoding="gzip"
        )
        self.fails(repository, store, "ended after")

    @pytest.mark.parametrize(
        ("config", "why"),
        [
            (b"{}", "rootfs: expected an object"),
            (b"[]", "expected"),
            (b"\xff\xfe", "UTF-8|JSON"),
            (b"[" * 100_000, "in each other"),
            (b'{"os":"linux","architecture":"%b","rootfs":{"type":"layers","diff_ids":[]}}', "diff_ids"),
            (b'{"os":"plan9","architecture":"%b","rootfs":{"type":"layers","diff_ids":["%b"]}}', "plan9"),
        ],
    )
    def test_configs_that_lie(self, repository: Repository, store: Store, config: bytes, why: str) -> None:
        here = Platform.here().architecture.encode(), str(Digest.of(LAYER)).encode()
        data = config % here[: config.count(b"%b")]
        repository.manifest["config"] |= repository.blob(data)
        repository.put()
        self.fails(repository, store, why)

    def test_another_content_than_the_config_means(
        self, repository: Repository, store: Store, tmp_path: Path
    ) -> None:
        """Found out when it is unpacked: no name, no layer; what came whole stays for the next one."""
        config = {
            "os": "linux",
            "architecture": Platform.here().architecture,
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(b"another"))]},
        }
        repository.manifest["config"] |= repository.blob(json.dumps(config).encode())
        repository.put()
        with Layers(tmp_path / "layers") as layers:
            reference = Reference.parse(f"{repository.server.address}/app:1")
            with pytest.raises(DigestMismatch):
                pull(store, reference, patience=QUICK, layers=layers)
            assert layers.chain_ids() == [] and store.references() == ()
            Repository(repository.server)
            pull(store, reference, patience=QUICK, layers=layers)
            assert len(layers.chain_ids()) == 1 and store.references() == (reference,)

    def test_a_platform_that_is_not_there(self, repository: Repository, store: Store) -> None:
        manifest = json.dumps(repository.manifest).encode()
        repository.server.answers[f"/v2/app/manifests/{Digest.of(manifest)}"] = manifest
        entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(manifest)), "size": len(manifest)}
        entry["platform"] = {"os": "linux", "architecture": "s390x"}
        repository.manifest = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        repository.put(OCI_INDEX)
        self.fails(repository, store, "s390x")

    @pytest.mark.parametrize("kind", [OCI_INDEX, OCI_MANIFEST])
    def test_indexes_without_end(self, repository: Repository, store: Store, kind: str) -> None:
        """Each leads to another one, which the innermost can't; or is called a manifest."""
        found = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        for _ in range(20):
            data = json.dumps(found).encode()
            digest = str(Digest.of(data))
            repository.server.answers[f"/v2/app/manifests/{digest}"] = data
            entry = {"mediaType": kind, "digest": digest, "size": len(data)}
            found = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] * 50}
        repository.manifest = found
        repository.put(OCI_INDEX)
        self.fails(repository, store, "without an end|mediaType|is for|no image")

    def test_a_layer_that_is_always_cut(self, repository: Repository, store: Store) -> None:
        def answer(handler: Any) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\nx")
            handler.close_connection = True

        repository.server.answers[repository.layer] = answer
        self.fails(repository, store, "the connection was cut", RegistryError)
        assert sum(asked[1] == repository.layer for asked in repository.server.asked) == QUICK.tries + 1

    def test_a_layer_that_ends_early(self, repository: Repository, store: Store) -> None:
        repository.server.answers[repository.layer] = LAYER[:-1]
        self.fails(repository, store, "as the registry sends it|ended after", ImageError)

    @pytest.mark.parametrize("knows_ranges", [True, False])
    def test_a_layer_in_pieces(self, repository: Repository, store: Store, knows_ranges: bool) -> None:
        starts: list[int] = []

        def answer(handler: Any) -> None:
            start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
            starts.append(start)
            end = start + 9_000
            known = start if knows_ranges else 0
            status = "206 Partial Content" if start and knows_ranges else "200 OK"
            handler.wfile.write(
                f"HTTP/1.1 {status}\r\nContent-Range: bytes {start}-{len(LAYER) - 1}/{len(LAYER)}\r\n"
                f"Content-Length: {len(LAYER) - known}\r\n\r\n".encode()
            )
            handler.wfile.write(LAYER[known:end])
            handler.close_connection = True

        repository.server.answers[repository.layer] = answer
        patience = Patience(tries=20, pause=0.001, longest_pause=0.001)
        reference = Reference.parse(f"{repository.server.address}/app:1")
        pull(store, reference, patience=patience)
        assert starts == list(range(0, len(LAYER), 9_000))
        assert store.read(Digest.of(LAYER)) == LAYER

    def test_the_wrong_range(self, repository: Repository, store: Store) -> None:
        def answer(handler: Any) -> None:
            if "Range" in handler.headers:
                say(handler, 206, LAYER[9:], Content_Range=f"bytes 9-{len(LAYER) - 1}/{len(LAYER)}")
                return
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + LAYER[:100])
            handler.close_connection = True

        repository.server.answers[repository.layer] = answer
        self.fails(repository, store, "asked for what begins at byte 100, it sends", RegistryError)

    @pytest.mark.parametrize("status", [400, 416, 501])
    def test_no_ranges_at_all(self, server: Server, store: Store, status: int) -> None:
        """What an earlier pull has left is of no use then; and not in the way."""
        data = bytes(range(256)) * 10_000
        digest = Digest.of(data)

        def answer(handler: Any) -> None:
            say(handler, status) if "Range" in handler.headers else say(handler, 200, data)

        server.answers[f"/v2/app/blobs/{digest}"] = answer
        descriptor = Descriptor(OCI_LAYER, digest, len(data))
        with store.lease(), server.client() as client:
            with store.writer(digest, len(data), resume=True) as writer:
                writer.write(data[: 2 << 20])
            _Fetching(store, client, Reference.parse(f"{server.address}/app:1")).blob(descriptor)
            assert store.read(digest) == data
        asked = [headers.get("range") for _, path, headers, _ in server.asked if "/blobs/" in path]
        assert asked == ["bytes=2097152-", None]

    def test_no_layer(self, repository: Repository, store: Store) -> None:
        repository.server.answers[repository.layer] = 404
        self.fails(repository, store, "app:1: .*404", NotFound)

    def test_a_report_that_fails(self, repository: Repository, store: Store) -> None:
        def report(_: object) -> None:
            raise LookupError("not mine")

        reference = Reference.parse(f"{repository.server.address}/app:1")
        with pytest.raises(LookupError, match="not mine"):
            pull(store, reference, patience=QUICK, progress=report)
        assert store.references() == ()
        assert [one for one in threading.enumerate() if one.name.startswith("isobox-pull")] == []
