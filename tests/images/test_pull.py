"""Images pulled from a real registry: as it should be, cut, killed, refused, and lied to."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from archives import entry, packed
from isobox import Container, DigestMismatch, Image, ImageError, NotFound, Progress, RegistryError
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import (
    OCI_INDEX,
)
from isobox.images.documents.reference import Reference
from isobox.images.local import open_image
from isobox.images.registry.client import Client, Patience
from isobox.images.registry.credentials import Credential, save
from isobox.images.registry.pull import pull
from isobox.images.store import Store
from leftovers import wait_until
from made import archive, base, upper
from patience import patient
from pushed import HERE, noise, put, put_image
from registry import Registry, push_with_skopeo, running_registry

OTHER = "arm64" if HERE != "arm64" else "amd64"
QUICK = Patience(pause=0.01)


def layers_asked(registry: Registry) -> list[str]:
    return [request for request in registry.requests() if "/blobs/" in request and request.startswith("GET")]


@pytest.mark.requires("user_namespaces", "overlay", "host_folders")
def test_an_image_of_a_registry_runs(registry: Registry, tmp_path: Path) -> None:
    push_with_skopeo(archive(tmp_path / "app.tar", base(), upper()), registry, "first/app:1")
    name = f"{registry.address}/first/app:1"
    image = Image.pull(name)
    assert image.references == (name,) and image == Image.get(name)
    with Container(name) as c:
        assert c.exec(["cat", "/data/new"]).stdout == b"n"
        assert not c.exec(["cat", "/etc/gone"]).ok and c.exec(["cat", "/etc/passwd"]).ok
    before = len(layers_asked(registry))
    assert Image.pull(name) == image and len(layers_asked(registry)) == before


def test_the_same_layer_is_fetched_once_and_progress_is_told(registry: Registry) -> None:
    layer = packed(entry("a", b"1" * 1000))
    put_image(registry, "told/app", "1", layer, noise(1, 700_000), layer)
    told: list[Progress] = []
    image = Image.pull(f"{registry.address}/told/app:1", progress=told.append)
    again: list[Progress] = []
    Image.pull(f"{registry.address}/told/app:1", progress=again.append)
    assert {one.step for one in again} == {"waiting", "there", "unpacking", "done"}
    for number in (1, 2, 3):
        steps = [one for one in told if one.layer == number]
        assert steps[0].step == "waiting" and steps[-1].step == "done" and steps[0].layers == 3
        received = [one.received for one in steps]
        assert received == sorted(received) and received[-1] == steps[0].size
    assert sum(one.step == "downloaded" for one in told) == 2
    assert sum(one.step == "downloading" for one in told if one.layer == 2) >= 2
    assert image.size == sum(one.size for one in told if one.step == "done")


def test_a_layer_is_unpacked_while_it_is_fetched(registry: Registry, data: Path) -> None:
    put_image(registry, "early/app", "1", noise(5, 3_000_000))

    def unpacking() -> bool:
        made = [*data.glob("layers*/layers/.layer-*/*")]
        return any(path.name != "parent" for path in made)

    def wait(one: Progress) -> None:
        if one.step == "downloading" and one.size // 2 < one.received < one.size:
            seen.append(wait_until(unpacking))

    seen: list[bool] = []
    image = Image.pull(f"{registry.address}/early/app:1", progress=wait)
    assert seen and all(seen) and not unpacking()
    assert [*data.glob("layers*/layers/sha256:*")] and image.layers


def test_progress_for_people(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    put_image(registry, "people/app", "1", packed(entry("a", b"1")))
    image = Image.pull(f"{registry.address}/people/app:1", progress=True)
    assert capsys.readouterr().err.endswith(": done\n")
    assert image.layers


def test_an_index_brings_its_one_platform(registry: Registry) -> None:
    own = put_image(registry, "index/app", "", packed(entry("a", b"own")))
    other = put_image(registry, "index/app", "", packed(entry("a", b"other")), architecture=OTHER)
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            other | {"platform": {"os": "linux", "architecture": OTHER}},
            own | {"platform": {"os": "linux", "architecture": HERE}},
        ],
    }
    data = json.dumps(index).encode()
    put(registry, "index/app", "1", data, OCI_INDEX)
    name = f"{registry.address}/index/app:1"
    image = Image.pull(name)
    store = Store.default()
    assert image.digest == str(Digest.of(data)) and image.config.platform.architecture == HERE
    assert not store.has(Digest.parse(other["digest"]))
    assert store.prune().blobs == ()
    theirs = Image.pull(name, platform=f"linux/{OTHER}")
    assert theirs.digest == image.digest and theirs.config.platform.architecture == OTHER
    assert Image.get(name).layers == image.layers != theirs.layers
    by_digest = Image.pull(f"{registry.address}/index/app@{own['digest']}")
    assert by_digest.layers == image.layers and by_digest.digest == own["digest"]
    with pytest.raises(ImageError, match=f"nothing for linux/s390x; it has linux/{min(HERE, OTHER)}"):
        Image.pull(name, platform="linux/s390x")


def test_an_index_of_which_another_platform_is_here(registry: Registry, tmp_path: Path) -> None:
    own = put_image(registry, "theirs/app", "", packed(entry("a", b"own")))
    other = put_image(registry, "theirs/app", "", packed(entry("a", b"other")), architecture=OTHER)
    own["platform"] = {"os": "linux", "architecture": HERE}
    other["platform"] = {"os": "linux", "architecture": OTHER}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [own, other]}
    put(registry, "theirs/app", "1", json.dumps(index).encode(), OCI_INDEX)
    name = f"{registry.address}/theirs/app:1"
    theirs = Image.pull(name, platform=f"linux/{OTHER}")
    found = Image.get(name)
    assert found == theirs and found.layers == theirs.layers and Image.all() == [found]
    assert str(found.config.platform) == f"linux/{OTHER}"
    with pytest.raises(NotFound, match=f"is here for linux/{OTHER} alone"):
        open_image(name)
    with pytest.raises(NotFound, match=own["digest"]):
        Image.get(name, platform=f"linux/{HERE}")
    assert found.tag(f"{registry.address}/theirs/app:2").push(f"{registry.address}/theirs/app:2")
    for format in ("oci", "docker"):
        found.save(tmp_path / format, format=format)
        back = Image.load(tmp_path / format, store=Store(tmp_path / f"{format}-store"))
        assert back.layers == found.layers
    own_image = Image.pull(name)
    assert Image.get(name).layers == own_image.layers != found.layers
    assert Image.get(name, platform=f"linux/{OTHER}").layers == found.layers
    open_image(name).close()
    own_image.remove()
    assert Image.all() == [] and Store.default().sizes().total == 0


@pytest.mark.requires("user_namespaces", "overlay", "host_folders")
def test_command_line(registry: Registry, tmp_path: Path) -> None:
    push_with_skopeo(archive(tmp_path / "app.tar", base(), upper()), registry, "cli/app:1")
    name = f"{registry.address}/cli/app:1"

    def isobox_command(*args: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "isobox.cli", *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60))
        return done.returncode, done.stdout, done.stderr

    status, _, said = isobox_command("run", "--pull", "never", name, "cat", "/data/new")
    assert status == 125 and "isobox pull" in said
    assert isobox_command("run", name, "cat", "/data/new")[:2] == (0, "n")
    asked = len(registry.requests())
    assert isobox_command("run", name, "cat", "/data/new") == (0, "n", "")
    assert len(registry.requests()) == asked
    status, printed, said = isobox_command("pull", name)
    assert (status, printed) == (0, f"{name}\n") and said.count(": done\n") == 2
    assert isobox_command("pull", "-q", name) == (0, f"{name}\n", "")
    status, printed, said = isobox_command("run", f"{registry.address}/cli/none:1", "true")
    assert (status, printed) == (125, "") and "not in the store, and can't be fetched" in said
    status, _, said = isobox_command("pull", f"{registry.address}/cli/none:1")
    assert status == 125 and "404" in said and "IMAGE is" not in said


def test_what_is_not_there(registry: Registry) -> None:
    put_image(registry, "not/app", "1", packed(entry("a", b"1")))
    for name in ("not/app:2", "not/there:1", f"not/app@sha256:{'0' * 64}"):
        with pytest.raises(NotFound, match="404 MANIFEST_UNKNOWN|404 NAME_UNKNOWN"):
            Image.pull(f"{registry.address}/{name}")
    assert Image.all() == []


def test_a_store_of_ones_own(registry: Registry, tmp_path: Path, data: Path) -> None:
    put_image(registry, "own/app", "1", packed(entry("a", b"1")))
    store = Store(tmp_path / "own")
    image = Image.pull(f"{registry.address}/own/app:1", store=store)
    assert store.images() == [image] and not data.exists()


class TestWhoMay:
    def test_basic(self, tmp_path: Path) -> None:
        with running_registry(tmp_path / "r", users={"builder": "se cret:ü"}) as registry:
            push_with_skopeo(
                archive(tmp_path / "a.tar", base()), registry, "app:1", login=("builder", "se cret:ü")
            )
            name = f"{registry.address}/app:1"
            with pytest.raises(RegistryError, match=f"isobox login {registry.address}") as refused:
                Image.pull(name)
            assert refused.value.status == 401 and refused.value.code == "UNAUTHORIZED"
            save(registry.address, Credential("builder", "wrong"))
            with pytest.raises(RegistryError, match="another login") as refused:
                Image.pull(name)
            assert "wrong" not in str(refused.value) and refused.value.status == 401
            save(registry.address, Credential("builder", "se cret:ü"))
            assert Image.pull(name).references == (name,)

    def test_tokens(self, tmp_path: Path) -> None:
        with running_registry(tmp_path / "r", users={"builder": "x"}, tokens=True) as registry:
            push_with_skopeo(archive(tmp_path / "a.tar", base()), registry, "app:1", login=("builder", "x"))
            tokens = registry.tokens
            assert tokens is not None
            name = f"{registry.address}/app:1"
            with pytest.raises(RegistryError, match="Log in: isobox login"):
                Image.pull(name)
            save(registry.address, Credential("builder", "wrong"))
            with pytest.raises(RegistryError, match="token server answered 401: the login"):
                Image.pull(name)
            save(registry.address, Credential("builder", "x"))
            tokens.asked.clear()
            tokens.lifetimes[:] = [0]  # the first has run out when it arrives
            with Client(registry.address, credential=Credential("builder", "x")) as client:
                for _ in range(3):
                    with pytest.raises(RegistryError) as refused:
                        client.request("GET", "/v2/app/manifests/2", repository="app", retry=False)
                    first = refused.value.status
                assert first == 404
            assert len(tokens.asked) == 2
            tokens.asked.clear()
            assert Image.pull(name).references == (name,)
            assert [asked["scopes"] for asked in tokens.asked] == [["repository:app:pull"]]
            identity = next(iter(tokens.identities), None)
            if identity is not None:
                save(registry.address, Credential(identity_token=identity))
                Image.get(name).remove()
                assert Image.pull(name).references == (name,)

    def test_a_token_that_runs_out_on_the_way(self, tmp_path: Path) -> None:
        with running_registry(tmp_path / "r", users={"builder": "x"}, tokens=True) as registry:
            layers = [packed(entry(f"{number}", b"x")) for number in range(6)]
            push_with_skopeo(archive(tmp_path / "a.tar", *layers), registry, "app:1", login=("builder", "x"))
            tokens = registry.tokens
            assert tokens is not None
            tokens.asked.clear()
            tokens.lifetimes[:] = [2]  # it says 60
            save(registry.address, Credential("builder", "x"))
            waited: list[Progress] = []

            def wait(progress: Progress) -> None:
                if progress.step == "downloaded" and not waited:
                    waited.append(progress)
                    began = time.time()
                    assert wait_until(lambda: time.time() > began + 3)

            name = f"{registry.address}/app:1"
            assert Image.pull(name, progress=wait).references == (name,)
            assert len(tokens.asked) == 2 and len(waited) == 1

    def test_tls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with running_registry(tmp_path / "r", tls=True) as registry:
            push_with_skopeo(archive(tmp_path / "a.tar", base()), registry, "app:1")
            name = f"{registry.address}/app:1"
            with pytest.raises(RegistryError, match="certificate can't be verified.*SSL_CERT_FILE"):
                Image.pull(name)
            assert Image.pull(name, insecure=True).references == (name,)
            Image.get(name).remove()
            monkeypatch.setenv("SSL_CERT_FILE", str(registry.ca))
            assert Image.pull(name).references == (name,)


class Cutting:
    """A TCP proxy to a registry which cuts each connection after so many bytes of answers."""

    def __init__(self, registry: Registry, allowed: list[int]) -> None:
        host, _, port = registry.address.partition(":")
        self._behind = host, int(port)
        self.allowed = allowed
        """Bytes for the next connections; no bound once it is empty."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Cutting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        relays = []
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                break
            relays.append(threading.Thread(target=self._relay, args=(near,)))
            relays[-1].start()
        for relay in relays:
            relay.join()

    def _relay(self, near: socket.socket) -> None:
        left = self.allowed.pop(0) if self.allowed else 1 << 60
        with near, socket.create_connection(self._behind) as far:
            back = threading.Thread(target=_copy, args=(near, far))
            back.start()
            while left > 0 and (data := far.recv(min(left, 65536))):
                left -= len(data)
                try:
                    near.sendall(data)
                except OSError:
                    break
            for one in (near, far):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            back.join()


def _copy(source: socket.socket, to: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_cut_connections_go_on_where_they_were(registry: Registry, tmp_path: Path) -> None:
    put_image(registry, "cut/app", "1", noise(2, 3_000_000))
    asked = len(registry.requests())
    with Cutting(registry, [100, 20_000, 1_000_000, 1_200_000, 30_000, 0]) as proxy:
        told: list[Progress] = []
        store = Store(tmp_path / "own")
        reference = Reference.parse(f"{proxy.address}/cut/app:1")
        pull(store, reference, progress=told.append, patience=QUICK)
        assert store.references() == (reference,)
    assert sum(one.step == "retrying" for one in told) >= 3
    received = [one.received for one in told]
    assert received == sorted(received)  # nothing came twice
    assert len(registry.requests()) - asked >= 5


def test_a_registry_that_dies_and_comes_back(tmp_path: Path) -> None:
    with running_registry(tmp_path / "r") as registry:
        layers = [noise(number, 300_000) for number in range(20, 28)]
        put_image(registry, "app", "1", *layers)
        store = Store(tmp_path / "own")
        reference = Reference.parse(f"{registry.address}/app:1")

        def kill(progress: Progress) -> None:
            if progress.step == "downloaded" and progress.layer <= 3:  # three come at once
                registry.kill()

        with pytest.raises(RegistryError, match=registry.address):
            pull(store, reference, progress=kill, patience=QUICK)
        assert store.references() == ()
        registry.start()
        told: list[Progress] = []
        pull(store, reference, progress=told.append)
        assert store.references() == (reference,)
        assert any(one.step == "there" for one in told)


class TestLies:
    def test_another_blob(self, registry: Registry) -> None:
        layer = gzip.compress(packed(entry("a", b"1")), 1, mtime=0)
        put_image(registry, "lies/app", "1", packed(entry("a", b"1")))
        blob = registry.blob(str(Digest.of(layer)))
        honest = blob.read_bytes()
        name = f"{registry.address}/lies/app:1"
        for lie in (honest[:-1] + b"x", honest + b"x", honest[:-1]):
            blob.write_bytes(lie)
            with pytest.raises(ImageError, match=f"{Digest.of(layer)}") as told:
                Image.pull(name)
            if len(lie) >= len(honest):
                assert isinstance(told.value, DigestMismatch) and "as the registry sends it" in str(
                    told.value
                )
            assert Image.all() == []
        blob.write_bytes(honest)
        assert Image.pull(name).references == (name,)


PULLS = """
import os, sys, time
from isobox import Image
import isobox.images.registry.pull, isobox.images.layers.layer
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            Image.pull(sys.argv[1])
        finally:
            os._exit(0)
    time.sleep(float(line))
    os.kill(child, 9)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_at_any_moment(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 times, 20 for an ordinary user, whose pulls take longer.

    Each pull after it finishes, with an image whose every byte is right.
    """
    size = 1_100_000  # enough for a half to be kept
    put_image(registry, "killed/app", "1", noise(10, size), noise(11, 50_000), noise(12, 200_000))
    name = f"{registry.address}/killed/app:1"
    killed = half = 0
    with contextlib.ExitStack() as stack:
        # In memory: what a disk takes for fsync is no matter here.
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        data = place / "data"
        monkeypatch.setenv("ISOBOX_DATA_DIR", str(data))
        # Children of a process that has imported everything: killed in the pull, not on the way to it.
        command = [sys.executable, "-c", PULLS, name]
        parent = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        assert parent.stdin is not None and parent.stdout is not None
        stack.callback(parent.stdin.close)
        seconds = 0.1
        for number in range(100 if os.geteuid() == 0 else 20):
            parent.stdin.write(f"{seconds * (number * 7 % 34) / 30}\n")
            parent.stdin.flush()
            killed += int(parent.stdout.readline()) == -signal.SIGKILL
            half += (data / "images/blobs").is_dir() and not Store.default().references()
            begun = time.monotonic()
            image = Image.pull(name)
            if number == 0:
                seconds = min(time.monotonic() - begun, 0.5)
            assert image.references == (name,)
            store = Store.default()
            for layer, diff_id in image._chosen.layers:
                with store.open(layer.digest) as file:
                    assert Digest.of(gzip.decompress(file.read())) == diff_id
            lowers = {one.parent.parent.name: one for one in data.glob("layers*/layers/sha256:*/root/*")}
            assert len(lowers) == 3 and max(os.path.getsize(one) for one in lowers.values()) == size
            assert store.prune().blobs == () and os.listdir(data / "images/.isobox/leases") == []
            image.remove()
            shutil.rmtree(data / "images")
    assert killed > 6 and half > 2
