"""Images that isobox makes: of a folder, of a tar, on top of another."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archives import entry, folder, packed
from isobox import Image, ImageError, InvalidReference, NotFound, SpecError, UnpackError
from isobox.images.documents.config import RunConfig
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.media import DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_MANIFEST
from isobox.images.documents.platform import Platform
from isobox.images.layers.packing import Write
from isobox.images.layout.choose import choose
from isobox.images.making import Changes, add_image, add_layer, changed
from isobox.images.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    (place / "bin").mkdir(parents=True)
    (place / "bin/sh").write_bytes(b"#!")
    (place / "bin/out").symlink_to(tmp_path)
    return place


def layer(image: Image, number: int = -1) -> bytes:
    """The archive of a layer."""
    return gzip.decompress(image._store.read(image._chosen.layers[number][0].digest))


def listed(image: Image) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer(image))) as tar:
        return tar.getnames()


class TestSettings:
    def test_changes(self) -> None:
        run = RunConfig(
            "app", ("A=1", "B=2"), ("init",), ("sh",), "/", {"a": "1", "b": "2"}, ("/data",), (), "", {"X": 1}
        )
        assert changed(run, Changes()) == run
        new = changed(
            run, Changes({"A": None, "C": "="}, "/srv", 5, labels={"a": None, "c": "é"}, volumes=["/v"])
        )
        assert new.env == ("B=2", "C==") and new.labels == {"b": "2", "c": "é"} and new.user == "5"
        assert new.volumes == ("/data", "/v") and new.working_dir == "/srv" and new.extra == {"X": 1}
        assert (new.entrypoint, new.cmd) == (("init",), ("sh",))
        new = changed(run, Changes(entrypoint=["run"], stop_signal="SIGINT"))
        assert (new.entrypoint, new.cmd, new.stop_signal) == (("run",), None, "SIGINT")
        new = changed(run, Changes(entrypoint=["run"], cmd=[]))
        assert (new.entrypoint, new.cmd) == (("run",), ())

    @pytest.mark.parametrize(
        "changes",
        [
            {"env": {"A=": "1"}},
            {"env": {"": "1"}},
            {"env": {"A": "\0"}},
            {"env": ["A=1"]},
            {"workdir": "srv"},
            {"user": "\0"},
            {"cmd": "sh"},
            {"entrypoint": [1]},
            {"labels": {"a": 1}},
            {"labels": {"a": "\ud800"}},
            {"volumes": ["data"]},
        ],
    )
    def test_nonsense(self, changes: dict[str, Any], tree: Path, store: Store) -> None:
        with pytest.raises(SpecError, match=next(iter(changes))):
            Image.from_dir(tree, store=store, **changes)
        assert store.images() == []

    def test_unknown(self, tree: Path, store: Store) -> None:
        with pytest.raises(TypeError, match="unknown option 'comand': choose from cmd, "):
            Image.from_dir(tree, store=store, comand=["sh"])  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unknown option 'comand': choose from cmd, "):
            Image.from_tar(tree / "bin/sh", store=store, comand=["sh"])  # type: ignore[call-arg]


class TestFolders:
    def test_image(self, tree: Path, store: Store) -> None:
        image = Image.from_dir(tree, "app:1", store=store, cmd=["sh"], env={"A": "1"})
        assert image.references == ("app:1",) and image.config.config == RunConfig(env=("A=1",), cmd=("sh",))
        assert listed(image) == [".", "bin", "bin/out", "bin/sh"]
        assert image.layers == (f"sha256:{hashlib.sha256(layer(image)).hexdigest()}",)
        assert image.config.platform.architecture == Platform.here().architecture
        (line,) = image.config.history
        assert line.created == image.created and line.created_by == "isobox import"

    def test_reproducible(self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        one = Image.from_dir(tree, store=Store(tmp_path / "one"))
        for path in tree.rglob("*"):
            os.utime(path, ns=(0, 2_000_000_000_000_000_001), follow_symlinks=False)
        os.utime(tree)
        other = Image.from_dir(tree, store=Store(tmp_path / "other"))
        assert one == other and one.created == "2023-11-14T22:13:20Z" and one.references == ()
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
        with pytest.raises(SpecError, match="SOURCE_DATE_EPOCH"):
            Image.from_dir(tree, store=Store(tmp_path / "third"))

    def test_without_a_name(self, tree: Path, store: Store) -> None:
        image = Image.from_dir(tree, store=store)
        assert store.images() == [image] and Image.get(image.id, store=store) == image
        assert image.tag("app:1").references == ("app:1",)
        store.prune()
        assert store.images() == [image]
        nameless = Image.from_dir(tree / "bin", store=store)
        assert store.prune().images != () and store.images() == [image] != [nameless]

    def test_refused(self, tree: Path, store: Store) -> None:
        with pytest.raises(NotFound, match="no such folder"):
            Image.from_dir(tree / "none", store=store)
        with pytest.raises(ImageError, match="can't read the folder"):
            Image.from_dir(tree / "bin/sh", store=store)
        with pytest.raises(InvalidReference):
            Image.from_dir(tree, "Upper Case", store=store)
        with pytest.raises(ImageError, match="without a digest"):
            Image.from_dir(tree, f"app@sha256:{'0' * 64}", store=store)
        (tree / ".wh.x").touch()
        with pytest.raises(ImageError, match=r"/\.wh\.x"):
            Image.from_dir(tree, "app:1", store=store)
        store.prune()
        assert store.images() == [] and store.sizes().total == 0


class TestTars:
    def test_kinds(self, store: Store, tmp_path: Path) -> None:
        data = packed(folder("./"), entry("etc/motd", b"hello"))
        found = []
        for pack in (bytes, gzip.compress, lzma.compress):
            (tmp_path / "root.tar").write_bytes(pack(data))
            found.append(Image.from_tar(tmp_path / "root.tar", "app:1", store=store))
            assert layer(found[-1]) == data
        found.append(Image.from_tar(io.BytesIO(data), "app:2", store=store))
        assert len({image.layers for image in found}) == len({image._chosen.layers for image in found}) == 1

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"", "ends early"),
            (b"no archive" * 1000, "checksum"),
            (bz2.compress(bytes(10_000)), "ends early|not a tar"),
            (packed(entry("a", b"x" * 5000))[:3000], "ends early"),
            (gzip.compress(packed(entry("a")))[:-9], "damaged|ends early"),
            (packed(entry("../a")), r"\.\."),
            (packed(entry("etc/.wh.passwd")), r"\.wh\..*isobox load"),
        ],
    )
    def test_refused(self, data: bytes, match: str, store: Store, tmp_path: Path) -> None:
        (tmp_path / "root.tar").write_bytes(data)
        with pytest.raises(UnpackError, match=match):
            Image.from_tar(tmp_path / "root.tar", "app:1", store=store)
        store.prune()
        assert store.images() == [] and store.sizes().total == 0
        with pytest.raises(NotFound):
            Image.from_tar(tmp_path / "none.tar", store=store)


class TestOnTop:
    @pytest.fixture(params=["oci", "docker"])
    def base(self, request: pytest.FixtureRequest, store: Store) -> Iterator[Descriptor]:
        """An image with fields that nobody knows."""
        here = Platform.here()
        docker = request.param == "docker"
        with store.lease():
            below = add_layer(store, lambda write: write(packed(entry("a"))))
            config = {
                "os": here.os,
                "architecture": here.architecture,
                "rootfs": {"type": "layers", "diff_ids": [str(below.diff_id)], "y": 2},
                "config": {"Env": ["A=1"], "Healthcheck": {"Test": ["NONE"]}},
                "x.unknown": {"n": [1]},
            }
            data = json.dumps(config).encode()
            store.add(data)
            kinds = (DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_MANIFEST) if docker else (None,) * 3
            layer_fields = below.descriptor.to_fields()
            described = Descriptor.of(data, "application/vnd.oci.image.config.v1+json").to_fields()
            manifest = {"schemaVersion": 2, "config": described, "layers": [layer_fields], "unknown": True}
            manifest["subject"] = layer_fields
            if docker:
                described["mediaType"], layer_fields["mediaType"], manifest["mediaType"] = kinds
            encoded = json.dumps(manifest).encode()
            store.add(encoded)
            kind = DOCKER_MANIFEST if docker else "application/vnd.oci.image.manifest.v1+json"
            yield Descriptor.of(encoded, kind)

    def test_what_stays(self, base: Descriptor, store: Store) -> None:
        chosen = choose(store, base)
        with store.lease():
            top = add_layer(store, lambda write: write(packed(entry("b"))))
            found = add_image(store, chosen, [top], Changes(env={"B": "2"}), author="me", comment="why")
            store.keep(found)
        new = choose(store, found)
        assert new.config.diff_ids == (*chosen.config.diff_ids, top.diff_id)
        assert new.manifest.layers[:-1] == chosen.manifest.layers
        # All of one kind, as readers of Docker's want it.
        assert new.manifest.layers[-1].media_type == chosen.manifest.layers[0].media_type
        assert (found.media_type, new.manifest.config.media_type) == (
            base.media_type,
            chosen.manifest.config.media_type,
        )
        raw = json.loads(store.read(new.id))
        assert raw["x.unknown"] == {"n": [1]} and raw["rootfs"]["y"] == 2 and raw["author"] == "me"
        assert raw["config"] == {"Env": ["A=1", "B=2"], "Healthcheck": {"Test": ["NONE"]}}
        assert [line["comment"] for line in raw["history"]] == ["why"] and raw[
            "created"
        ] == new.config.created
        assert json.loads(store.read(found.digest))["unknown"] is True
        assert chosen.manifest.subject is not None and new.manifest.subject is None

    def test_a_layer_that_is_gone(self, base: Descriptor, store: Store) -> None:
        chosen = choose(store, base)
        os.unlink(f"{store.path}/blobs/sha256/{chosen.manifest.layers[0].digest.hex}")
        with store.lease(), pytest.raises(ImageError, match="pull or load that again"):
            add_image(store, chosen, [], Changes())


def test_gzip_is_the_same(store: Store) -> None:
    """No time and no name in its header, however it is handed over."""
    data = packed(entry("a", os.urandom(100) * 5000))

    def piece_by_piece(write: Write) -> None:
        for at in range(0, len(data), 777):
            write(data[at : at + 777])

    with store.lease():
        whole = add_layer(store, lambda write: write(data))
        pieces = add_layer(store, piece_by_piece)
    assert whole == pieces and store.read(whole.descriptor.digest)[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
