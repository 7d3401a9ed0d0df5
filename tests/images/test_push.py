"""Images pushed to a real registry: as others read them, mounted, refused, cut, killed, and lied to."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from archives import entry, packed
from isobox import Image
from isobox.cli.app import dispatch
from isobox.errors import DigestMismatch, ImageError, NotFound, RegistryError
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
)
from isobox.images.documents.model import Index, Manifest
from isobox.images.documents.platform import Platform
from isobox.images.documents.reference import Reference
from isobox.images.registry.client import Patience
from isobox.images.registry.credentials import Credential, save
from isobox.images.registry.progress import Progress
from isobox.images.registry.push import push
from isobox.images.store import Store
from made import archive
from patience import patient
from registry import Registry, running_registry, skopeo

USERS = {"builder": "se cret:ü"}
QUICK = Patience(pause=0.01)
OCI = (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER_GZIP)
DOCKER = (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER_GZIP)
SMALL = (packed(entry("a", b"1")), packed(entry("b", b"2")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def add(
    store: Store, *layers: bytes, kinds: tuple[str, str, str] = OCI, architecture: str = "amd64"
) -> Descriptor:
    """Put an image into a store, its layers compressed."""
    manifest, config, layer = kinds
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    values = {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    with store.lease():
        parts = [Descriptor(layer, *store.add(gzip.compress(data, 1, mtime=0))) for data in layers]
        described = Descriptor(config, *store.add(json.dumps(values).encode()))
        document = Manifest(described, tuple(parts), media_type=manifest)
        platform = Platform("linux", architecture)
        image = Descriptor(manifest, *store.add(document.encode()), platform=platform)
        store.tag(Reference.parse(f"made@{image.digest}"), image)
    return image


def noise(size: int) -> bytes:
    return packed(entry("noise", os.urandom(size)))


def named(registry: Registry, name: str) -> Reference:
    return Reference.parse(f"{registry.address}/{name}")


def there(registry: Registry, name: str, **login: Any) -> bytes:
    """What has that name there: the bytes of its manifest or index, as skopeo gets them."""
    return skopeo(
        "inspect", "--raw", f"docker://{registry.address}/{name}", registry=registry, **login
    ).encode()


def same(registry: Registry, store: Store, image: Descriptor, name: str) -> None:
    """Every blob lies at the registry, byte for byte, and the name leads to it."""
    assert there(registry, name) == store.read(image.digest)
    manifest = Manifest.parse(store.read(image.digest))
    for blob in (manifest.config, *manifest.layers):
        assert registry.blob(str(blob.digest)).read_bytes() == store.open(blob.digest).read()


def sent(registry: Registry, name: str) -> list[str]:
    """The methods of all requests for a repository."""
    return [line.split()[0] for line in registry.requests() if f"/v2/{name}/" in line]


@pytest.mark.parametrize("kinds", [OCI, DOCKER], ids=["oci", "docker"])
def test_what_others_read(
    registry: Registry, store: Store, tmp_path: Path, kinds: tuple[str, str, str]
) -> None:
    name = f"read/{'oci' if kinds is OCI else 'docker'}"
    image = add(store, *SMALL, kinds=kinds)
    told: list[Progress] = []
    push(store, image, named(registry, f"{name}:1"), progress=told.append)
    same(registry, store, image, f"{name}:1")
    path = f"docker://{registry.address}/{name}:1"
    said = json.loads(skopeo("inspect", path, registry=registry))
    assert said["Digest"] == str(image.digest) and said["RepoTags"] == ["1"]
    skopeo("copy", "-q", "--all", path, f"dir:{tmp_path}/copy", registry=registry)
    for layer in Manifest.parse(store.read(image.digest)).layers:
        assert (tmp_path / "copy" / layer.digest.hex).read_bytes() == store.read(layer.digest)
    for number in (1, 2):
        steps = [one for one in told if one.layer == number]
        assert [one.step for one in steps] == ["waiting", *["uploading"] * (len(steps) - 2), "done"]
        assert steps[-1].layers == 2 and steps[-1].received == steps[-1].size

    before = sent(registry, name)
    told.clear()
    push(store, image, named(registry, f"{name}:2"), progress=told.append)
    assert sorted(sent(registry, name)[len(before) :]) == ["HEAD", "HEAD", "HEAD", "PUT"]
    assert [one.step for one in told[-2:]] == ["there", "there"]
    assert there(registry, f"{name}:2") == there(registry, f"{name}:1")


def test_by_digest(registry: Registry, store: Store) -> None:
    image = add(store, *SMALL)
    push(store, image, named(registry, f"digest/app@{image.digest}"))
    assert there(registry, f"digest/app@{image.digest}") == store.read(image.digest)
    with pytest.raises(ImageError, match="the image that is pushed has the digest"):
        push(store, image, named(registry, f"digest/app@sha256:{'0' * 64}"))


def test_a_layer_of_another_repository_is_mounted(registry: Registry, store: Store) -> None:
    base = add(store, noise(1000))
    push(store, base, named(registry, "mount/base:1"))
    store.tag(named(registry, "mount/base:1"), base)
    store.tag(named(registry, "mount/absent:1"), base)
    layer = Manifest.parse(store.read(base.digest)).layers[0]
    with store.lease():
        config = Descriptor(OCI_CONFIG, *store.add(b'{"rootfs": {"type": "layers"}}'))
        more = Descriptor(OCI_LAYER_GZIP, *store.add(gzip.compress(noise(10))))
        image = Descriptor(OCI_MANIFEST, *store.add(Manifest(config, (layer, more)).encode()))
        told: list[Progress] = []
        push(store, image, named(registry, "mount/app:1"), progress=told.append)
    same(registry, store, image, "mount/app:1")
    assert {one.step for one in told if one.layer == 1} == {"waiting", "mounted"}
    assert sent(registry, "mount/app").count("PATCH") == 2  # of the new layer and the config
    assert any(f"mount={str(layer.digest).replace(':', '%3A')}" in line for line in registry.requests())


class TestIndexes:
    @pytest.fixture
    def images(self, store: Store) -> list[Descriptor]:
        return [add(store, noise(n), architecture=name) for n, name in ((10, "amd64"), (20, "arm64"))]

    def index(self, store: Store, *images: Descriptor) -> Descriptor:
        with store.lease():
            index = Descriptor(OCI_INDEX, *store.add(Index(images).encode()))
            store.tag(Reference.parse("made:index"), index)
        return index

    def test_all_of_it(self, registry: Registry, store: Store, images: list[Descriptor]) -> None:
        nested = self.index(store, images[1])
        index = self.index(store, images[0], nested)
        push(store, index, named(registry, "index/all:1"))
        assert there(registry, "index/all:1") == store.read(index.digest)
        for image in images:
            same(registry, store, image, f"index/all@{image.digest}")

    def test_a_child_that_is_not_here(
        self, registry: Registry, store: Store, tmp_path: Path, images: list[Descriptor]
    ) -> None:
        other = Store(tmp_path / "other")
        absent = add(other, noise(30), architecture="s390x")
        index = self.index(store, images[0], absent)
        name = named(registry, "index/part:1")
        with pytest.raises(
            NotFound, match=rf"manifest for linux/s390x, {absent.digest}, is neither in the store nor"
        ):
            push(store, index, name)
        assert sent(registry, "index/part") == ["HEAD"]
        push(other, absent, name.with_tag("other"))
        push(store, index, name)
        assert there(registry, "index/part:1") == store.read(index.digest)


class TestPeople:
    def test_there_and_back(self, registry: Registry, tmp_path: Path) -> None:
        image = Image.load(archive(tmp_path / "app.tar", *SMALL))
        name = f"{registry.address}/back/app:1"
        with pytest.raises(NotFound):
            Image.pull(name)
        assert image.push(name) == image.digest
        other = Store(tmp_path / "other")
        back = Image.pull(name, store=other)
        assert back == image and back.layers == image.layers
        for blob in Manifest.parse(other.read(other.resolve(name).digest)).layers:
            assert other.read(blob.digest) == Store.default().read(blob.digest)
        told: list[Progress] = []
        image.tag(name).untag("app:1")
        assert Image.get(name).push(progress=told.append) == image.digest
        assert {one.step for one in told} == {"waiting", "there"}
        with pytest.raises(ImageError, match="say under which name: 127.0.0.1:[0-9]+.back.app:1 app:2"):
            Image.get(name).tag("app:2").push()

    def test_one_platform_of_several(self, registry: Registry, store: Store, tmp_path: Path) -> None:
        """What a pull leaves: an index, and the image of one platform."""
        here = Platform.here().architecture
        one, other = add(store, *SMALL, architecture=here), add(store, noise(10), architecture="s390x")
        with store.lease():
            index = Descriptor(OCI_INDEX, *store.add(Index((one, other)).encode()))
            push(store, index, named(registry, "several/app:1"))
        image = Image.pull(f"{registry.address}/several/app:1")
        name = f"{registry.address}/several/part:1"
        with pytest.raises(NotFound, match=f"isobox push --platform linux/{here} {name}"):
            image.push(name)
        assert image.push(name, platform=f"linux/{here}") == str(one.digest)
        assert there(registry, "several/part:1") == store.read(one.digest)

    def test_command(self, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        name = f"{registry.address}/command/app:1"
        image = Image.load(archive(tmp_path / "app.tar", *SMALL)).tag(name)
        assert dispatch(["push", name]) == 0
        said = capsys.readouterr()
        assert said.out == f"{name}@{image.digest}\n"
        assert sorted(line.partition(": ")[2] for line in said.err.splitlines()) == ["done", "done"]
        assert dispatch(["push", "-q", name]) == 0 and not capsys.readouterr().err
        for args, expected in (
            ([image.digest.partition(":")[2][:12]], "is no name of the image: give it one with its registry"),
            (["absent:1"], "isobox: no image 'absent:1' in the store"),
            (["--platform", "linux/s390x", name], "expected one for linux/s390x"),
        ):
            assert dispatch(["push", *args]) == 125
            assert expected in capsys.readouterr().err


class TestLogins:
    def test_passwords(self, store: Store, tmp_path: Path) -> None:
        image = add(store, *SMALL)
        with running_registry(tmp_path / "registry", users=USERS) as registry:
            name = named(registry, "app:1")
            with pytest.raises(RegistryError, match=f"Log in: isobox login {registry.address}") as refused:
                push(store, image, name)
            assert refused.value.status == 401
            save(registry.address, Credential("builder", "wrong-word"))
            with pytest.raises(RegistryError) as refused:
                push(store, image, name)
            assert refused.value.status == 401 and "wrong-word" not in str(refused.value)
            save(registry.address, Credential("builder", USERS["builder"]))
            push(store, image, name)
            assert there(registry, "app:1", login=("builder", USERS["builder"])) == store.read(image.digest)

    def test_tokens(self, store: Store, tmp_path: Path) -> None:
        image = add(store, *SMALL)
        with running_registry(tmp_path / "registry", users=USERS, tokens=True) as registry:
            tokens = registry.tokens
            assert tokens is not None
            name = named(registry, "team/app:1")
            with pytest.raises(RegistryError, match="isobox login"):
                push(store, image, name)
            save(registry.address, Credential("builder", USERS["builder"]))
            tokens.asked.clear()
            push(store, image, name)
            assert [asked["scopes"] for asked in tokens.asked] == [["repository:team/app:pull,push"]]
            assert there(registry, "team/app:1", login=("builder", USERS["builder"])) == store.read(
                image.digest
            )

            store.tag(name, image)
            push(store, image, named(registry, "other/app:1"))
            assert sent(registry, "other/app").count("PATCH") == 0
            assert ["repository:other/app:pull,push", "repository:team/app:pull"] in [
                asked["scopes"] for asked in tokens.asked
            ]

            tokens.identities["id-secret"] = "builder"
            save(registry.address, Credential("<token>", "", "id-secret"))
            push(store, image, name.with_tag("2"))
            assert tokens.asked[-1]["grant"] == "refresh_token"

    def test_tls(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        image = add(store, *SMALL)
        with running_registry(tmp_path / "registry", users=USERS, tls=True) as registry:
            save(registry.address, Credential("builder", USERS["builder"]))
            name = named(registry, "app:1")
            with pytest.raises(RegistryError, match="certificate can't be verified"):
                push(store, image, name)
            push(store, image, name, insecure=True)
            monkeypatch.setenv("SSL_CERT_FILE", str(registry.ca))
            push(store, image, name.with_tag("2"))
            assert there(registry, "app:2", login=("builder", USERS["builder"])) == store.read(image.digest)


@contextmanager
def cutting(registry: Registry, *bounds: int) -> Iterator[str]:
    """A proxy before a registry: each of the first connections that sends more than a bound is cut there."""
    left = list(bounds)
    lock = threading.Lock()
    target = registry.address.split(":")
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    def pass_on(source: socket.socket, sink: socket.socket, counts: bool) -> None:
        count = 0
        while True:
            try:
                data = source.recv(65536)
                count += len(data)
                with lock:
                    cut = bool(counts and left and count > left[0])
                    if cut:
                        left.pop(0)
                if data and not cut:
                    sink.sendall(data)
                    continue
            except OSError:
                pass
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            return

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((target[0], int(target[1])))
            sockets.extend([client, server])
            for pair in ((client, server, True), (server, client, False)):
                threads.append(threading.Thread(target=pass_on, args=pair))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
            assert not left
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for end in sockets:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for one in threads:
                one.join()
            for end in sockets:
                end.close()


class TestCuts:
    def test_connections_that_are_cut(self, registry: Registry, store: Store) -> None:
        image = add(store, noise(3_000_000), noise(1_000_000))
        told: list[Progress] = []
        with cutting(registry, 2_000_000, 500_000) as address:
            push(store, image, Reference.parse(f"{address}/cut/app:1"), progress=told.append, patience=QUICK)
        same(registry, store, image, "cut/app:1")
        assert "retrying" in {one.step for one in told}

    def test_cut_for_ever(self, registry: Registry, store: Store) -> None:
        image = add(store, noise(3_000_000))
        with cutting(registry, *[500_000] * QUICK.tries) as address:
            with pytest.raises(RegistryError, match="the connection was cut"):
                push(store, image, Reference.parse(f"{address}/ever/app:1"), patience=QUICK)
        assert not [line for line in registry.requests() if "PUT /v2/ever/app/manifests" in line]

    def test_a_registry_that_dies_meanwhile(self, store: Store, tmp_path: Path) -> None:
        image = add(store, noise(5_000_000), noise(1_000_000))
        with running_registry(tmp_path / "registry") as registry:
            killed = threading.Event()

            def report(progress: Progress) -> None:
                if progress.step == "uploading" and progress.received > 2_000_000 and not killed.is_set():
                    killed.set()
                    registry.kill()
                    registry.start()

            push(store, image, named(registry, "app:1"), progress=report, patience=QUICK)
            assert killed.is_set()
            same(registry, store, image, "app:1")

    def test_a_caller_who_has_enough(self, store: Store, tmp_path: Path) -> None:
        image = add(store, noise(3_000_000))
        with running_registry(tmp_path / "registry") as registry:

            def report(progress: Progress) -> None:
                if progress.received > 1_000_000:
                    raise KeyboardInterrupt

            before = threading.active_count()
            with pytest.raises(KeyboardInterrupt):
                push(store, image, named(registry, "app:1"), progress=report)
            assert threading.active_count() == before
            push(store, image, named(registry, "app:1"))
            same(registry, store, image, "app:1")

    def test_ctrl_c_while_the_registry_is_silent(self, store: Store, tmp_path: Path) -> None:
        """Nobody waits for it then: it is given ten minutes here."""
        image = add(store, noise(3_000_000), noise(3_000_000))
        with running_registry(tmp_path / "registry") as registry:
            stopped = threading.Event()

            def report(progress: Progress) -> None:
                if progress.step == "uploading" and not stopped.is_set():
                    os.kill(registry.pid, signal.SIGSTOP)
                    stopped.set()

            def interrupt() -> None:
                if stopped.wait(patient(60)):
                    os.kill(os.getpid(), signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            try:
                with pytest.raises(KeyboardInterrupt):
                    push(
                        store,
                        image,
                        named(registry, "app:1"),
                        progress=report,
                        patience=Patience(silence=600),
                    )
            finally:
                thread.join()
                os.kill(registry.pid, signal.SIGCONT)
            push(store, image, named(registry, "app:1"))
            same(registry, store, image, "app:1")


def test_one_that_fails_ends_the_others(registry: Registry, store: Store) -> None:
    image = add(store, noise(9_000_000), noise(9_000_000))
    under_way: set[int] = set()
    after: list[Progress] = []
    failed = False

    def report(progress: Progress) -> None:
        nonlocal failed
        if failed:
            after.append(progress)
        elif progress.step == "uploading":
            under_way.add(progress.layer)
        if not failed and (len(under_way) == 2 or progress.step == "done"):
            failed = True
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        push(store, image, named(registry, "ends/app:1"), progress=report)
    assert len(after) < 20  # it would be 35 for all that the other one has


def test_an_image_that_is_removed_meanwhile(registry: Registry, store: Store) -> None:
    """What is on its way stays until it is there; more layers than go at once."""
    image = add(store, *[noise(1000) for _ in range(12)])
    manifest = Manifest.parse(store.read(image.digest))
    other = Store(store.path)

    def report(progress: Progress) -> None:
        if progress.step == "uploading" and other.references():
            other.remove(image.digest)
            other.prune()

    push(store, image, named(registry, "removed/app:1"), progress=report)
    assert not other.references()
    for blob in (manifest.config, *manifest.layers):
        assert registry.blob(str(blob.digest)).stat().st_size == blob.size
    assert set(other.prune().blobs) == {blob.digest for blob in (image, manifest.config, *manifest.layers)}


def test_a_blob_that_is_damaged_here(store: Store, tmp_path: Path) -> None:
    image = add(store, noise(100_000))
    layer = Manifest.parse(store.read(image.digest)).layers[0]
    path = Path(store.path, "blobs/sha256", layer.digest.hex)
    good = path.read_bytes()
    with running_registry(tmp_path / "registry") as registry:
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(DigestMismatch, match="damaged on disk"):
            push(store, image, named(registry, "app:1"), patience=QUICK)
        path.write_bytes(good[:-1])
        with pytest.raises(NotFound, match="neither in the store nor at the registry"):
            push(store, image, named(registry, "app:1"), patience=QUICK)
        assert "PUT /v2/app/manifests/1" not in registry.requests()
        path.write_bytes(good)
        push(store, image, named(registry, "app:1"))
        same(registry, store, image, "app:1")
        # What the registry has needn't be here.
        path.unlink()
        push(store, image, named(registry, "app:2"))


class Answers(http.server.BaseHTTPRequestHandler):
    """Takes uploads as docker-registry 2 doesn't: it goes on where one was cut. `rules` makes it lie."""

    protocol_version = "HTTP/1.1"
    blobs: dict[str, bytes]
    upload: bytearray
    log: list[tuple[str, str, str | None]]
    logins: list[str]
    rules: dict[str, Any]

    def do_HEAD(self) -> None:
        data = self.blobs.get(self.path.rpartition("/")[2])
        self.reply(404 if data is None else 200, {"Content-Length": str(len(data or b""))})

    def do_GET(self) -> None:
        if self.path == "/v2/":
            return self.reply(200)
        return self.reply(204, self.place())

    def do_POST(self) -> None:
        self.body()
        self.upload.clear()
        self.reply(202, self.place())

    def do_PATCH(self) -> None:
        if (cut := self.rules.pop("cut", None)) is not None:
            self.upload += self.rfile.read(cut)
            self.note()
            self.close_connection = True
            return
        start = int((self.headers.get("Content-Range") or "0-").partition("-")[0])
        data = self.body()
        if len(data) > self.rules.get("most", len(data)):
            return self.reply(413)
        if start != len(self.upload):
            return self.reply(416, self.place())
        self.upload += data
        self.reply(202, self.place())
        del self.upload[len(self.upload) - self.rules.pop("forgets", 0) :]

    def do_PUT(self) -> None:
        data = self.body()
        if "/manifests/" in self.path:
            return self.reply(201, {"Docker-Content-Digest": self.rules.get("manifest", "")})
        digest = self.path.rpartition("digest=")[2].replace("%3A", ":")
        self.blobs[digest] = bytes(self.upload) + data
        assert digest == f"sha256:{hashlib.sha256(self.blobs[digest]).hexdigest()}"
        if self.rules.pop("silent", False):
            self.close_connection = True
            return self.note()
        return self.reply(201, {"Docker-Content-Digest": self.rules.get("digest", digest)})

    def do_DELETE(self) -> None:
        self.reply(204)

    def place(self) -> dict[str, str]:
        location = self.rules.get("location", "/v2/app/blobs/uploads/1?state=%2F")
        return {"Location": location, "Range": f"0-{max(0, len(self.upload) - 1)}"}

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def note(self) -> None:
        self.log.append((self.command, self.path, self.headers.get("Content-Range")))
        self.logins += self.headers.get_all("Authorization", [])

    def reply(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.note()
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(**rules: Any) -> Iterator[tuple[str, type[Answers]]]:
    own = {"blobs": {}, "upload": bytearray(), "log": [], "logins": [], "rules": rules}
    here: type[Answers] = type("Here", (Answers,), own)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), here) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", here
        finally:
            server.shutdown()
            thread.join()


class TestOtherRegistries:
    @pytest.fixture
    def image(self, store: Store) -> Descriptor:
        """One blob only, so that uploads don't meet."""
        with store.lease():
            blob = Descriptor(OCI_CONFIG, *store.add(os.urandom(3_000_000)))
            image = Descriptor(OCI_MANIFEST, *store.add(Manifest(blob, ()).encode()))
            store.tag(Reference.parse("made:1"), image)
        return image

    def test_it_goes_on_where_it_was_cut(self, store: Store, image: Descriptor) -> None:
        with answering(cut=2_000_000) as (address, server):
            push(store, image, Reference.parse(f"{address}/app:1"), patience=QUICK)
        ranges = [given for method, _, given in server.log if method == "PATCH"]
        assert ranges == [None, "2000000-2999999"]
        assert all(
            path.startswith("/v2/app/blobs/uploads/1?state=%2F")
            for method, path, _ in server.log
            if method == "PATCH"
        )
        blob = Manifest.parse(store.read(image.digest)).config
        assert server.blobs == {str(blob.digest): store.read(blob.digest)}

    def test_it_has_less_than_it_said(self, store: Store, image: Descriptor) -> None:
        """416 to the next chunk: it is asked how far it is, and gets what follows that."""
        with answering(most=2_000_000, forgets=48_576) as (address, server):
            push(store, image, Reference.parse(f"{address}/app:1"), patience=QUICK)
        log = [(method, given) for method, path, given in server.log if "/uploads/" in path]
        assert log == [
            ("POST", None),
            ("PATCH", None),
            ("GET", None),
            ("PATCH", "0-1048575"),
            ("PATCH", "1048576-2097151"),
            ("GET", None),
            ("PATCH", "1000000-2048575"),
            ("PATCH", "2048576-2999999"),
            ("PUT", None),
        ]
        blob = Manifest.parse(store.read(image.digest)).config
        assert server.blobs == {str(blob.digest): store.read(blob.digest)}

    def test_it_has_all_but_says_nothing(self, store: Store, image: Descriptor) -> None:
        with answering(silent=True) as (address, server):
            push(store, image, Reference.parse(f"{address}/app:1"), patience=QUICK)
        methods = [method for method, path, _ in server.log if "/blobs/" in path]
        assert methods == ["HEAD", "POST", "PATCH", "PUT", "HEAD"]

    def test_a_blob_of_another_length_is_another_one(self, store: Store, image: Descriptor) -> None:
        blob = Manifest.parse(store.read(image.digest)).config
        with answering() as (address, server):
            server.blobs[str(blob.digest)] = b"short"
            push(store, image, Reference.parse(f"{address}/app:1"), patience=QUICK)
            assert server.blobs[str(blob.digest)] == store.read(blob.digest)

    def test_foreign_layers_stay_where_they_are(self, store: Store, image: Descriptor) -> None:
        blob = Manifest.parse(store.read(image.digest)).config
        kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
        layer = Descriptor(kind, Digest.of(b"elsewhere"), 9, urls=("https://x.example/",))
        with store.lease(), answering() as (address, server):
            foreign = Descriptor(OCI_MANIFEST, *store.add(Manifest(blob, (layer,)).encode()))
            push(store, foreign, Reference.parse(f"{address}/app:1"), patience=QUICK)
        assert list(server.blobs) == [str(blob.digest)]

    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            ({"location": ""}, "no Location header"),
            ({"location": "http://[::1/x"}, "is no address"),
            ({"location": "ftp://127.0.0.1/x"}, "expected an https:// address"),
            ({"location": "http://registry.example/x"}, "expected an https:// address"),
            ({"digest": f"sha256:{'0' * 64}"}, "what the registry has got of sha256"),
            ({"manifest": f"sha256:{'0' * 64}"}, "what the registry has got of sha256"),
        ],
    )
    def test_answers_that_make_no_sense(
        self, store: Store, image: Descriptor, rules: dict[str, Any], expected: str
    ) -> None:
        with answering(**rules) as (address, server):
            with pytest.raises(ImageError, match=expected):
                push(store, image, Reference.parse(f"{address}/app:1"), patience=QUICK)
        if "digest" in rules:  # what the registry should forget
            assert server.log[-1][:2] == ("DELETE", "/v2/app/blobs/uploads/1?state=%2F")

    def test_a_login_goes_to_the_registry_alone(
        self, store: Store, image: Descriptor, tmp_path: Path
    ) -> None:
        """Where uploads lead elsewhere, to a storage, that gets the blob and no password."""
        with answering() as (address, storage):
            with running_registry(tmp_path / "registry", users=USERS, host=f"http://{address}") as registry:
                save(registry.address, Credential("builder", USERS["builder"]))
                with pytest.raises(RegistryError):  # it has never got the blob
                    push(store, image, named(registry, "app:1"), patience=QUICK)
        assert [method for method, _, _ in storage.log] == ["PATCH", "PUT"]
        assert not storage.logins
