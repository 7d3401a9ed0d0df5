"""The targets for what images, registries and logins say; see targets.py."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from isobox.discard import remove_tree
from isobox.errors import ImageError, RegistryError, SetupError, UnpackError, UnsupportedError
from isobox.images.archives.archive import load
from isobox.images.archives.folder import load_folder
from isobox.images.documents.digest import Digest
from isobox.images.layers.attributes import Owners
from isobox.images.layers.mounted import Mount, possible
from isobox.images.layers.packed import pack_layer
from isobox.images.layers.packing import Packing
from isobox.images.layers.root import unpack
from isobox.images.layout.walk import missing
from isobox.images.registry.authorization import Authorization, parse_challenges
from isobox.images.registry.client import _joined, _own_words, _retry_after
from isobox.images.registry.credentials import Credential, find
from isobox.images.registry.pull import _passed_over
from isobox.images.registry.upload import _location, _reached
from isobox.images.store import Store
from listing import listing

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_SECRET = "5ecret"


def with_checksums(data: bytes) -> bytes:
    """Make the checksum of each header right: no fuzzer would guess it. Others stay as they are."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block) - sum(block[148:156]) + 8 * 32
            blocks[number] = b"%b%06o\0 %b" % (block[:148], total, block[156:])
    return b"".join(blocks)


@contextlib.contextmanager
def place() -> Iterator[str]:
    """A new directory in memory."""
    path = tempfile.mkdtemp(dir=MEMORY)
    try:
        yield path
    finally:
        remove_tree(path)


@contextlib.contextmanager
def small_store(path: str) -> Iterator[Store]:
    """What is named in it in the end is there, whole; and nothing is half-made."""
    store = Store(path)
    with mock.patch("os.fsync"):
        yield store
        for descriptor in store.entries():
            assert missing(store, descriptor) is None
        store.prune(unnamed=False)
    assert not os.path.isdir(f"{path}/.isobox/leases") or not os.listdir(f"{path}/.isobox/leases")


def image_archive(data: bytes) -> None:
    """An archive of images."""
    with place() as top, small_store(f"{top}/store") as store:
        try:
            loaded = load(store, io.BytesIO(with_checksums(data)), most_bytes=1 << 20)
        except (ImageError, UnsupportedError):
            assert store.entries() == {}
        else:
            there = {found.digest for found in store.entries()}
            assert {image.descriptor.digest for image in loaded} == there


def image_folder(data: bytes) -> None:
    """A layout: the index, then its blobs, between lines of "--"; {0} stands for the first one's digest."""
    with place() as top, small_store(f"{top}/store") as store:
        folder = Path(top, "folder")
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        pieces = data.split(b"\n--\n")
        for number, blob in enumerate(pieces[1:9]):
            digest = Digest.of(blob)
            (folder / f"blobs/sha256/{digest.hex}").write_bytes(blob)
            described = f'"digest":"{digest}","size":{len(blob)}'
            pieces[0] = pieces[0].replace(b"{%d}" % number, described.encode())
        (folder / "index.json").write_bytes(pieces[0])
        try:
            load_folder(store, str(folder), most_bytes=1 << 20)
        except ImageError:
            assert store.entries() == {}


def layer_file(data: bytes) -> None:
    """A layer as a file, mounted where that is possible: what it shows can be read."""
    with place() as top:
        path = f"{top}/layer"
        try:
            pack_layer(io.BytesIO(with_checksums(data)), path, most_bytes=1 << 20, most_entries=64)
        except (UnpackError, UnsupportedError, SetupError):
            assert os.listdir(top) == []
            return
        assert os.path.getsize(path) % 4096 == 0
        if os.geteuid() == 0 and MEMORY is not None:
            _look(path)


def _look(path: str) -> None:
    """A tmpfs can't be mounted from: it is copied to a disk."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
        if possible(disk):
            shutil.copy(path, f"{disk}/layer")
            mount = Mount(f"{disk}/layer")
            for name, found in listing(mount.path).items():
                assert not os.path.basename(name).startswith(".wh.") and found["mode"]


def packing(data: bytes) -> None:
    """A tree that an archive made, written as a layer and unpacked again: the same tree."""
    with place() as top:
        Path(top, "archive").write_bytes(with_checksums(data))
        try:
            unpack(f"{top}/archive", f"{top}/one", keep_owners=False, most_bytes=1 << 20, most_entries=64)
        except (UnpackError, UnsupportedError):
            return
        out = io.BytesIO()
        fd = os.open(f"{top}/one", os.O_RDONLY | os.O_DIRECTORY)
        try:
            Packing(out.write, Owners()).run(fd)
        except ImageError as error:
            assert ".wh." in str(error)
            return
        finally:
            os.close(fd)
        Path(top, "again").write_bytes(out.getvalue())
        unpack(f"{top}/again", f"{top}/other", keep_owners=False)
        one, other = listing(f"{top}/one"), listing(f"{top}/other")
        for trees in (one, other):
            trees["."].pop("mtime")
        assert one == other


class _Answer:
    """What a registry has said."""

    status, url, what = 206, "http://127.0.0.1:5000/v2/app/blobs/uploads/1", "registry"

    def __init__(self, text: str) -> None:
        self.headers: Mapping[str, str] = dict.fromkeys(("Location", "Range", "Content-Range"), text)


class _Registry:
    registry = "127.0.0.1:5000"


def registry_headers(data: bytes) -> None:
    """What a registry says beside its documents: challenges, tokens, addresses, ranges, errors, pauses."""
    text = data.decode("latin-1")
    answer: Any = _Answer(text)
    client: Any = _Registry()
    for look in (
        lambda: _joined("http://127.0.0.1:5000/", text, "registry"),
        lambda: _location(answer, client),
        lambda: _passed_over(answer, 5),
    ):
        with contextlib.suppress(RegistryError):
            look()
    assert (_reached(answer) or 0) >= 0
    assert (_retry_after(text) or 0) >= 0
    assert all(len(part) < 1000 for part in _own_words(data))
    asked: list[str] = []

    def send(_method: str, url: str, _headers: Mapping[str, str], _body: bytes | None) -> tuple[int, bytes]:
        asked.append(url)
        return 200, data.partition(b"\n")[2]

    authorization = Authorization("127.0.0.1:5000", Credential("builder", _SECRET), send, insecure=False)
    challenges = parse_challenges(text.splitlines())
    try:
        header = authorization.answer(challenges, ("repository:app:pull",), None, plain=True)
    except RegistryError as error:
        assert _SECRET not in str(error)
    else:
        assert header is None or (header.isascii() and header.isprintable())
    for url in asked:
        assert url.lower().startswith(("https://", "http://127.", "http://localhost", "http://["))
        assert url.isascii() and url.isprintable() and " " not in url


def logins(data: bytes) -> None:
    """A file with logins."""
    rest = data
    for name in (b"password", b"identitytoken"):
        rest = rest.replace(b'"%b":"%b"' % (name, _SECRET.encode()), b"")
    secret = _SECRET if _SECRET.encode() not in rest else "\0"  # what stands elsewhere may be shown
    with place() as top:
        Path(top, "config.json").write_bytes(data)
        environment = {"DOCKER_CONFIG": top, "REGISTRY_AUTH_FILE": f"{top}/none", "PATH": top, "HOME": top}
        with mock.patch.dict(os.environ, environment, clear=True):
            for name in ("docker.io", "registry.example:5000"):
                try:
                    found = find(name, "team/app")
                except ImageError as error:
                    assert secret not in str(error)
                else:
                    assert secret not in repr(found)


TARGETS = (image_archive, image_folder, layer_file, logins, packing, registry_headers)
