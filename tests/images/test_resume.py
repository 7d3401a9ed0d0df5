"""Blobs that a pull was killed at: the next one goes on with them, and believes nothing of what it finds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from isobox import RegistryError
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import OCI_MANIFEST
from isobox.images.documents.model import Manifest
from isobox.images.documents.reference import Reference
from isobox.images.registry.client import Client, Patience
from isobox.images.registry.progress import Progress
from isobox.images.registry.pull import pull
from isobox.images.store import Store
from leftovers import wait_until
from patience import patient
from pushed import noise, put_image
from registry import Registry

SIZE = 8_000_000
STOPS = 5_000_000
QUICK = Patience(pause=0.01, tries=2)


class Slow:
    """A TCP proxy to a registry that counts what it answers, and stops after `left` bytes of it.

    Then it says no more until `go` is set, and cuts that connection; at once where `cuts` is set.
    """

    def __init__(self, registry: Registry) -> None:
        host, _, port = registry.address.partition(":")
        self._behind = host, int(port)
        self.served = 0
        self.left = 1 << 60
        self.cuts = False
        self.go = threading.Event()
        self._mutex = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._serve)]

    def __enter__(self) -> Slow:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._pass_on, args=(near,))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._behind) as far, suppress(OSError):
            back = threading.Thread(target=self._requests, args=(near, far))
            back.start()
            try:
                while data := far.recv(65536):
                    with self._mutex:
                        part = data[: self.left]
                        self.left -= len(part)
                        self.served += len(part)
                    near.sendall(part)
                    if len(part) < len(data):
                        if not self.cuts:
                            self.go.wait()
                        break
            finally:
                for end in (near, far):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                back.join()

    def _requests(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
            far.shutdown(socket.SHUT_RDWR)


PULL = """
import sys
from isobox.images.documents.reference import Reference
from isobox.images.registry.pull import pull
from isobox.images.store import Store
pull(Store(sys.argv[1]), Reference.parse(sys.argv[2]))
"""


def halves(store: Store) -> list[Path]:
    return list(Path(store.path).glob(".isobox/halves/*"))


def whole(store: Store, reference: Reference) -> None:
    """All of the image is there, every byte of it right, and nothing else."""
    manifest = Manifest.parse(store.read(store.resolve(reference).digest))
    for layer in manifest.layers:
        with store.open(layer.digest) as file:
            assert len(file.read()) == layer.size
    assert halves(store) == [] and os.listdir(f"{store.path}/.isobox/leases") == []


@contextmanager
def pulling(store: Store, reference: Reference) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", PULL, store.path, str(reference)]) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def blob(registry: Registry) -> Path:
    """The only layer of the image, as the registry has it."""
    put_image(registry, "resume/app", "1", noise(40, SIZE))
    with Client(registry.address) as client:
        path = "/v2/resume/app/manifests/1"
        headers = {"Accept": OCI_MANIFEST}
        with client.request("GET", path, repository="resume/app", headers=headers) as answer:
            (layer,) = Manifest.parse(answer.read_all(1 << 20)).layers
    return registry.blob(str(layer.digest))


@pytest.fixture
def proxy(registry: Registry, blob: Path) -> Iterator[Slow]:
    with Slow(registry) as proxy:
        yield proxy


@pytest.fixture
def reference(proxy: Slow) -> Reference:
    return Reference.parse(f"{proxy.address}/resume/app:1")


def left(store: Store, blob: Path, size: int = STOPS) -> Path:
    """A half as a killed pull leaves it."""
    data = blob.read_bytes()
    with store.lease(), store.writer(Digest.of(data), len(data), resume=True) as writer:
        writer.write(data[:size])
    (half,) = halves(store)
    return half


def left_by_a_killed_one(store: Store, proxy: Slow, reference: Reference) -> Path:
    """That of one that was killed when it had nearly all that the proxy lets through."""
    proxy.left = STOPS
    with pulling(store, reference) as process:

        def far() -> bool:
            assert process.poll() is None
            return any(half.stat().st_size > STOPS - 500_000 for half in halves(store))

        assert wait_until(far, patient(60))
        process.send_signal(signal.SIGKILL)
    proxy.left = 1 << 60
    proxy.go.set()
    blobs = [path for path in Path(store.path, "blobs").rglob("*") if path.is_file()]
    assert all(Digest.of(path.read_bytes()).hex == path.name for path in blobs) and len(blobs) <= 2
    (half,) = halves(store)
    return half


class TestKilled:
    def test_the_next_one_goes_on(self, store: Store, proxy: Slow, reference: Reference) -> None:
        half = left_by_a_killed_one(store, proxy, reference)
        there, proxy.served = half.stat().st_size, 0
        told: list[Progress] = []
        pull(store, reference, progress=told.append)
        whole(store, reference)
        assert SIZE - there < proxy.served < SIZE - there + 100_000
        received = [one.received for one in told]
        assert received == sorted(received) and there in received

    @pytest.mark.parametrize("longer", [False, True])
    def test_what_is_left_is_damaged(
        self, store: Store, blob: Path, reference: Reference, longer: bool
    ) -> None:
        """By a loss of power, say: it all comes anew."""
        half = left(store, blob)
        with half.open("r+b") as file:
            file.write(bytes(4096))
            if longer:
                file.truncate(2 * SIZE)
        pull(store, reference)
        whole(store, reference)

    def test_all_of_it_was_there(self, store: Store, proxy: Slow, blob: Path, reference: Reference) -> None:
        """Killed before its name: nothing of it is asked for."""
        left(store, blob, 2 * SIZE)
        pull(store, reference)
        whole(store, reference)
        assert proxy.served < 100_000

    def test_a_registry_that_knows_no_such_range(
        self, registry: Registry, store: Store, blob: Path, reference: Reference
    ) -> None:
        """What it has is shorter by now. What was left doesn't stand in the way of the next one."""
        half = left(store, blob)
        honest = blob.read_bytes()
        blob.write_bytes(honest[:1000])
        try:
            asked = len(registry.requests())
            with pytest.raises(RegistryError, match="416"):
                pull(store, reference, patience=QUICK)
            assert len([line for line in registry.requests()[asked:] if half.name[7:] in line]) == 3
            assert halves(store) == []
        finally:
            blob.write_bytes(honest)
        pull(store, reference)
        whole(store, reference)


def test_after_cuts_too(store: Store, proxy: Slow, reference: Reference) -> None:
    proxy.left, proxy.cuts = STOPS, True
    with pytest.raises(RegistryError):
        pull(store, reference, patience=QUICK)
    (half,) = halves(store)
    assert half.stat().st_size > STOPS - 500_000
    proxy.left, proxy.served = 1 << 60, 0
    pull(store, reference)
    whole(store, reference)
    assert proxy.served < SIZE - STOPS + 600_000


class TestSeveral:
    def test_two_at_once(self, store: Store, proxy: Slow, reference: Reference) -> None:
        """The second waits for nobody, and takes nothing from the first."""
        proxy.left = STOPS
        with pulling(store, reference) as first:
            assert wait_until(lambda: proxy.left == 0, patient(60))
            proxy.left = 1 << 60
            pull(store, reference)
            assert first.poll() is None and len(halves(store)) == 1
            assert store.prune().size == 0 and len(halves(store)) == 1
            proxy.go.set()
            assert first.wait(patient(60)) == 0
        whole(store, reference)

    def test_a_forked_child_keeps_none(self, store: Store) -> None:
        data = os.urandom(3 << 20)
        digest = Digest.of(data)
        with store.lease(), store.writer(digest, len(data), resume=True) as writer:
            writer.write(data[: 2 << 20])
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    writer.__exit__(None, None, None)
                    signal.pause()
                os._exit(0)
        try:
            with store.lease(), store.writer(digest, len(data), resume=True) as writer:
                assert writer.resumed == 2 << 20
                writer.write(data[2 << 20 :])
                assert writer.commit() == digest
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert store.read(digest) == data and halves(store) == []


class TestCollected:
    def half(self, store: Store, size: int = 2 << 20) -> Path:
        before = set(halves(store))
        digest = Digest.of(os.urandom(8))
        with store.lease(), store.writer(digest, 4 << 20, resume=True) as writer:
            writer.write(bytes(size))
        return next(iter(set(halves(store)) - before), Path())

    def test_by_a_prune(self, store: Store) -> None:
        half = self.half(store)
        assert half.is_file()
        assert store.prune(unnamed=False).size == 0 and half.is_file()
        assert store.prune().size == 2 << 20 and not half.exists()

    def test_by_age(self, store: Store) -> None:
        old, young = self.half(store), self.half(store)
        os.utime(old, (time.time() - 90_000,) * 2)
        with store.lease():
            assert not old.exists() and young.is_file()

    def test_what_is_not_worth_it(self, store: Store) -> None:
        self.half(store, 1000)
        assert halves(store) == []

    def test_what_is_none(self, store: Store, tmp_path: Path) -> None:
        """Others' things in its place are neither followed nor waited for."""
        half = self.half(store)
        outside = tmp_path / "outside"
        outside.write_bytes(b"mine")
        data = os.urandom(2 << 20)
        digest = Digest.of(data)
        place = half.with_name(f"sha256-{digest.hex}")
        for make in (lambda: place.symlink_to(outside), lambda: os.mkfifo(place), place.mkdir):
            make()
            with store.lease(), store.writer(digest, len(data), resume=True) as writer:
                writer.write(data)
                assert writer.commit() == digest
            os.utime(place, (0, 0), follow_symlinks=False)
            assert store.read(digest) == data and store.prune()
            assert outside.read_bytes() == b"mine" and place.is_dir() is place.exists()

    def test_tidied_up_by_hand(self, store: Store) -> None:
        data = os.urandom(2 << 20)
        digest = Digest.of(data)
        with store.lease(), store.writer(digest, len(data), resume=True) as writer:
            writer.write(data)
            (half,) = halves(store)
            half.unlink()
            half.write_bytes(b"another's")
            with pytest.raises(Exception, match="No such file"):
                writer.commit()
            assert not store.has(digest) and half.read_bytes() == b"another's"
