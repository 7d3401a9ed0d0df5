"""Blobs pushed in chunks: where what is before a registry takes no large bodies, or cuts them."""

from __future__ import annotations

import http.client
import http.server
import io
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from isobox.errors import DigestMismatch, RegistryError
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import OCI_CONFIG, OCI_MANIFEST
from isobox.images.documents.model import Manifest
from isobox.images.documents.reference import Reference
from isobox.images.registry.client import Patience
from isobox.images.registry.progress import Progress
from isobox.images.registry.push import push
from isobox.images.store import Store
from registry import Registry

MIB = 1 << 20
QUICK = Patience(pause=0.01)


class Bounded:
    """An HTTP proxy before a registry. Bodies of more than `most` bytes are refused with 413, or cut."""

    def __init__(self, registry: Registry, most: int, *, cuts: bool) -> None:
        self.sent: list[tuple[int, str | None, int]] = []
        """Of each body on its way to a blob: its bytes, where in the blob they are said to be, the answer."""
        self.least = 0
        """What is put into the answer to POST as OCI-Chunk-Min-Length."""
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                place = self.headers.get("Content-Range")
                if length > most:
                    proxy.sent.append((length, place, 0 if cuts else 413))
                    return self.refuse(length)
                behind = http.client.HTTPConnection(registry.address)
                with suppress(ConnectionError):
                    headers = dict(self.headers.items())
                    behind.request(self.command, self.path, self.rfile.read(length), headers)
                    answer = behind.getresponse()
                    data = answer.read()
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in ("date", "server"):
                            self.send_header(name, value)
                    if self.command == "POST" and proxy.least:
                        self.send_header("OCI-Chunk-Min-Length", str(proxy.least))
                    self.end_headers()
                    self.wfile.write(data)
                    if self.command == "PATCH":
                        proxy.sent.append((length, place, answer.status))
                behind.close()

            do_HEAD = do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

            def refuse(self, length: int) -> None:
                """As nginx does it: the answer first, and then what still comes is thrown away."""
                self.close_connection = True
                if not cuts:
                    self.send_response(413)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    length = most
                while length and (data := self.rfile.read(min(length, MIB))):
                    length -= len(data)
                if cuts:
                    with suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Bounded:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def pushed(
    registry: Registry, store: Store, size: int, name: str, most: int, **options: Any
) -> Iterator[tuple[Bounded, Descriptor, Any]]:
    """A proxy, a blob of the store, and what pushes an image of that blob alone through it."""
    with store.lease():
        blob = Descriptor(OCI_CONFIG, *store.add(os.urandom(size)))
        image = Descriptor(OCI_MANIFEST, *store.add(Manifest(blob, ()).encode()))
        store.tag(Reference.parse("made:1"), image)
    with Bounded(registry, most, **options) as proxy:
        reference = Reference.parse(f"{proxy.address}/chunks/{name}:1")
        yield proxy, blob, lambda **given: push(store, image, reference, patience=QUICK, **given)


class Counting(Store):
    """Knows how often each blob was opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.opened = Counter[Digest]()

    def open(self, digest: Digest) -> io.BufferedReader:
        self.opened[digest] += 1
        return super().open(digest)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "store")


@pytest.mark.parametrize("cuts", [False, True])
def test_smaller_and_smaller_ones(registry: Registry, store: Counting, cuts: bool) -> None:
    size = 17 * MIB + 5
    name = "cut" if cuts else "refused"
    with pushed(registry, store, size, name, MIB, cuts=cuts) as (proxy, blob, push_it):
        push_it()
    assert store.opened[blob.digest] == 4  # not for each of the chunks that go through
    assert registry.blob(str(blob.digest)).read_bytes() == store.open(blob.digest).read()
    answer = 0 if cuts else 413
    assert proxy.sent[:3] == [
        (size, None, answer),
        (16 * MIB, f"0-{16 * MIB - 1}", answer),
        (4 * MIB, f"0-{4 * MIB - 1}", answer),
    ]
    assert proxy.sent[3:] == [
        (min(MIB, size - at), f"{at}-{min(at + MIB, size) - 1}", 202) for at in range(0, size, MIB)
    ]


def test_none_where_one_piece_will_do(registry: Registry, store: Store) -> None:
    with pushed(registry, store, 3 * MIB, "whole", 3 * MIB, cuts=False) as (proxy, _, push_it):
        push_it()
    assert proxy.sent == [(3 * MIB, None, 202)]


def test_not_smaller_than_the_registry_takes(registry: Registry, store: Store) -> None:
    with pushed(registry, store, 7 * MIB, "least", 3 * MIB, cuts=False) as (proxy, blob, push_it):
        proxy.least = 2 * MIB
        push_it()
        assert [length for length, *_ in proxy.sent] == [7 * MIB, 4 * MIB, *[2 * MIB] * 3, MIB]
        assert registry.blob(str(blob.digest)).read_bytes() == store.read(blob.digest, 7 * MIB)
    with pushed(registry, store, 7 * MIB, "least", 3 * MIB, cuts=False) as (proxy, _, push_it):
        proxy.least = 5 * MIB
        with pytest.raises(RegistryError, match="refuses 5242880 bytes in one request.*client_max_body"):
            push_it()


@pytest.mark.parametrize("cuts", [False, True])
def test_where_nothing_goes_through(registry: Registry, store: Store, cuts: bool) -> None:
    expected = "the connection was cut" if cuts else "413.*refuses 1048576 bytes in one request"
    with pushed(registry, store, 3 * MIB, "none", MIB - 1, cuts=cuts) as (proxy, blob, push_it):
        with pytest.raises(RegistryError, match=expected):
            push_it()
    assert [length for length, *_ in proxy.sent] == [3 * MIB, *[MIB] * (QUICK.tries - 1 if cuts else 1)]
    assert not registry.blob(str(blob.digest)).exists()


def test_a_blob_that_is_damaged_in_its_last_chunk(registry: Registry, store: Store) -> None:
    """All chunks are of one reading, which is checked at its end."""
    with pushed(registry, store, 3 * MIB, "damaged", MIB, cuts=False) as (_, blob, push_it):
        path = Path(store.path, "blobs/sha256", blob.digest.hex)
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        with pytest.raises(DigestMismatch, match="damaged on disk"):
            push_it()
        assert not registry.blob(str(blob.digest)).exists()
        path.write_bytes(good)
        push_it()
    assert registry.blob(str(blob.digest)).read_bytes() == good


def test_a_registry_that_starts_over(registry: Registry, store: Store) -> None:
    """docker-registry gives up what was cut in the middle of a chunk: all of it goes again."""
    told: list[Progress] = []
    with pushed(registry, store, 5 * MIB, "over", 2 * MIB, cuts=True) as (proxy, blob, push_it):
        push_it(progress=told.append)
    assert [length for length, *_ in proxy.sent] == [5 * MIB, 4 * MIB, *[MIB] * 5]
    assert registry.blob(str(blob.digest)).read_bytes() == store.read(blob.digest, 5 * MIB)
