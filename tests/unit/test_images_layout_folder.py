"""Images in folders: OCI layouts of other tools, and of people who mean harm, read into a store."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from isobox.errors import DigestMismatch, ImageError
from isobox.images.archives.folder import load_folder
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import EMPTY, OCI_MANIFEST
from isobox.images.documents.model import Manifest
from isobox.images.store import Store
from made_images import APP, LAYERS, check, config, layout


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def folder(tmp_path: Path, data: bytes | None = None) -> Path:
    """A layout as a folder."""
    path = tmp_path / "folder"
    with tarfile.open(fileobj=BytesIO(layout() if data is None else data)) as tar:
        tar.extractall(path, filter="data")
    return path


def blob(path: Path, data: bytes) -> Path:
    return path / "blobs/sha256" / Digest.of(data).hex


def nothing_in(store: Store) -> None:
    assert store.entries() == {}
    store.prune()
    assert store.sizes().total == 0


def test_an_image(store: Store, tmp_path: Path) -> None:
    path = folder(tmp_path)
    before = {found: found.stat().st_mtime_ns for found in path.rglob("*")}
    for _ in range(2):
        (loaded,) = load_folder(store, str(path))
        assert loaded.references == (APP,)
        check(store)
    assert {found: found.stat().st_mtime_ns for found in path.rglob("*")} == before, "it is only read"


def test_without_a_name(store: Store, tmp_path: Path) -> None:
    (loaded,) = load_folder(store, str(folder(tmp_path, layout(name=""))))
    assert store.entries() == {loaded.descriptor: ()}
    assert store.resolve(Digest.of(config(*LAYERS))) == loaded.descriptor
    assert store.prune(unnamed=False).blobs == ()
    assert store.prune().images == (loaded.descriptor.digest,)
    nothing_in(store)


def test_what_is_no_image_is_passed_over(store: Store, tmp_path: Path) -> None:
    path = folder(tmp_path)
    there = Store(path)
    with there.lease():
        there.add(b"{}")
        encoded = Manifest(Descriptor.of(b"{}", EMPTY)).encode()
        there.add(encoded)
        artifact = Descriptor.of(encoded, OCI_MANIFEST)
    index = json.loads((path / "index.json").read_bytes())
    named = index["manifests"]
    index["manifests"] = [artifact.to_fields()]
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ImageError, match="holds no image"):
        load_folder(store, str(path))
    index["manifests"] += named
    (path / "index.json").write_text(json.dumps(index))
    assert len(load_folder(store, str(path))) == 1
    check(store)


def test_no_layout(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"holds no image.*Container\(folder\)"):
        load_folder(store, str(tmp_path / "empty"))
    path = folder(tmp_path)
    (path / "oci-layout").unlink()
    with pytest.raises(ImageError, match="no oci-layout"):
        load_folder(store, str(path))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def another(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path) -> None:
    """To the same bytes elsewhere, which nobody may be led to."""
    shutil.move(path, path.parents[3] / "elsewhere")
    path.symlink_to(path.parents[3] / "elsewhere")


def parent_linked(path: Path) -> None:
    shutil.move(path.parent, path.parents[3] / "elsewhere")
    path.parent.symlink_to(path.parents[3] / "elsewhere")


@pytest.mark.parametrize("what", [config(*LAYERS), LAYERS[0]])
@pytest.mark.parametrize("damage", [Path.unlink, emptied, another, fifo, linked, parent_linked])
def test_hostile_blobs(store: Store, tmp_path: Path, damage: Any, what: bytes) -> None:
    path = folder(tmp_path)
    damage(blob(path, what))
    with pytest.raises(ImageError) as caught:
        load_folder(store, str(path))
    assert isinstance(caught.value, DigestMismatch) == (damage is another)
    nothing_in(store)
    shutil.rmtree(path)
    (tmp_path / "elsewhere").unlink() if (tmp_path / "elsewhere").is_file() else None
    load_folder(store, str(folder(tmp_path)))
    check(store)


@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
@pytest.mark.parametrize("damage", [emptied, another, fifo, linked])
def test_hostile_documents(store: Store, tmp_path: Path, damage: Any, name: str) -> None:
    path = folder(tmp_path)
    target = path / name
    if damage is linked:
        target.rename(tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    else:
        damage(target)
    with pytest.raises(ImageError):
        load_folder(store, str(path))
    nothing_in(store)


def test_more_than_it_may_have(store: Store, tmp_path: Path) -> None:
    path = folder(tmp_path)
    with pytest.raises(ImageError, match="too many bytes"):
        load_folder(store, str(path), most_bytes=len(LAYERS[0]) + 10)
    nothing_in(store)
    with (path / "index.json").open("ab") as file:
        file.truncate(1 << 33)
    with pytest.raises(ImageError, match="more than"):
        load_folder(store, str(path))
