"""Images in one file, read into a store: as Docker has written them, and as an attacker would."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archives import entry, folder, link, packed
from isobox.errors import DigestMismatch, ImageError, UnpackError
from isobox.images.archives import archive
from isobox.images.archives.archive import load
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST
from isobox.images.documents.model import ImageConfig, Manifest
from isobox.images.store import Store
from made_images import APP, LAYERS, check, config, layout


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def listed(*names: str, tags: tuple[str, ...] = ("app:1",), named: str = "config.json") -> bytes:
    return json.dumps([{"Config": named, "RepoTags": list(tags) or None, "Layers": list(names)}]).encode()


def saved(*more: Any, layers: tuple[bytes, ...] = LAYERS, tags: tuple[str, ...] = ("app:1",)) -> bytes:
    """As `docker save` wrote it until version 24."""
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    parts = [part for name, layer in zip(names, layers, strict=True) for part in _layer(name, layer)]
    return packed(
        entry("config.json", config(*LAYERS)),
        *parts,
        *more,
        entry("repositories", b"{}"),
        entry("manifest.json", listed(*names, tags=tags)),
    )


def _layer(name: str, layer: bytes) -> list[Any]:
    return [folder(name.partition("/")[0]), entry(name, layer)]


class TestDocker:
    def test_an_image(self, store: Store) -> None:
        (loaded,) = load(store, io.BytesIO(saved()))
        assert loaded.references == (APP,)
        check(store)
        manifest = Manifest.parse(store.read(loaded.descriptor.digest))
        assert manifest.config.digest == Digest.of(config(*LAYERS)), "the id that Docker gives it"
        assert [layer.media_type for layer in manifest.layers] == [OCI_LAYER] * 2

    @pytest.mark.parametrize("compress", [gzip.compress, lambda data: data])
    def test_compressed(self, store: Store, compress: Any) -> None:
        load(store, io.BytesIO(compress(saved())))
        check(store)

    @pytest.mark.parametrize("name", [f"sha256:{'0' * 64}", "blobs/config"])
    def test_a_config_without_its_suffix(self, store: Store, name: str) -> None:
        """As crane names it, and Docker since version 25."""
        data = packed(
            entry("0.tar", LAYERS[0]),
            entry("1.tar", LAYERS[1]),
            entry(name, config(*LAYERS)),
            entry("manifest.json", listed("0.tar", "1.tar", named=name)),
        )
        load(store, io.BytesIO(data))
        check(store)
        with pytest.raises(ImageError, match="lacks the file"):
            load(store, io.BytesIO(packed(entry("manifest.json", listed(named=name)))))

    def test_compressed_layers(self, store: Store) -> None:
        (loaded,) = load(store, io.BytesIO(saved(layers=(gzip.compress(LAYERS[0]), LAYERS[1]))))
        manifest = Manifest.parse(store.read(loaded.descriptor.digest))
        assert [layer.media_type for layer in manifest.layers] == [OCI_LAYER_GZIP, OCI_LAYER]

    def test_a_layer_that_is_a_link_to_another(self, store: Store) -> None:
        same = (LAYERS[0], LAYERS[0])
        data = packed(
            entry("config.json", config(*same)),
            entry("x.tar", LAYERS[0]),
            link("1/layer.tar", "../x.tar"),
            link("2/layer.tar", "1/layer.tar", tarfile.LNKTYPE),
            entry("manifest.json", listed("1/layer.tar", "2/layer.tar")),
        )
        (loaded,) = load(store, io.BytesIO(data))
        manifest = Manifest.parse(store.read(loaded.descriptor.digest))
        assert [store.read(layer.digest) for layer in manifest.layers] == list(same)

    def test_several_names(self, store: Store) -> None:
        (loaded,) = load(store, io.BytesIO(saved(tags=("app:1", "localhost:5000/other:2"))))
        assert [reference.familiar for reference in loaded.references] == ["app:1", "localhost:5000/other:2"]
        assert store.resolve("localhost:5000/other:2") == store.resolve(APP) == loaded.descriptor

    def test_links_in_a_circle(self, store: Store) -> None:
        data = packed(
            entry("config.json", config(LAYERS[0])),
            link("1/layer.tar", "../2/layer.tar"),
            link("2/layer.tar", "../1/layer.tar"),
            entry("manifest.json", listed("1/layer.tar")),
        )
        with pytest.raises(ImageError, match="lacks the file '1/layer.tar'"):
            load(store, io.BytesIO(data))
        assert store.references() == ()

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ([entry("manifest.json", listed())], "lacks the file 'config.json'"),
            ([entry("manifest.json", b"[]" * 2)], "manifest.json"),
            ([entry("config.json", config(LAYERS[0])), entry("manifest.json", listed())], "diff_ids"),
            (
                [
                    entry("config.json", config(LAYERS[0])),
                    entry("manifest.json", listed("../../../etc/passwd")),
                ],
                "relative path",
            ),
            ([entry("file", b"x")], "no image: it has neither"),
            ([], "no image"),
        ],
    )
    def test_what_is_missing_is_named(self, store: Store, parts: list[Any], message: str) -> None:
        with pytest.raises(ImageError, match=message):
            load(store, io.BytesIO(packed(*parts)))
        assert store.references() == ()

    def test_another_layer_than_the_config_means(self, store: Store) -> None:
        with pytest.raises(DigestMismatch) as raised:
            load(store, io.BytesIO(saved(layers=(LAYERS[0], LAYERS[0]))))
        assert raised.value.expected == str(Digest.of(LAYERS[1]))
        assert store.references() == ()


class TestLayout:
    def test_an_image(self, store: Store) -> None:
        (loaded,) = load(store, io.BytesIO(layout()))
        assert loaded.references == (APP,)
        check(store)

    def test_both_formats(self, store: Store) -> None:
        """The layout has more: the manifest as it was pulled, and its digest."""
        data = layout(entry("manifest.json", listed("no/such.tar")))
        load(store, io.BytesIO(data))
        check(store)

    def test_without_a_name(self, store: Store) -> None:
        (loaded,) = load(store, io.BytesIO(layout(name="")))
        assert loaded.references == () and store.references() == ()

    def test_a_blob_that_is_not_what_it_is_called(self, store: Store) -> None:
        with pytest.raises(DigestMismatch):
            load(store, io.BytesIO(layout(blob=b"another")))
        assert store.references() == ()
        load(store, io.BytesIO(layout()))
        check(store)

    def test_a_missing_blob(self, store: Store) -> None:
        index = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"none")), "size": 4}
        index |= {"annotations": {"org.opencontainers.image.ref.name": "app:1"}}
        document = json.dumps({"schemaVersion": 2, "manifests": [index]}).encode()
        with pytest.raises(ImageError, match=str(Digest.of(b"none"))):
            load(store, io.BytesIO(packed(entry("index.json", document))))
        assert store.references() == ()

    def test_one_of_two_is_damaged(self, store: Store) -> None:
        """Then neither gets its name."""
        with tarfile.open(fileobj=io.BytesIO(layout())) as tar:
            *parts, index = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
        other = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"none")), "size": 4}
        other |= {"annotations": {"org.opencontainers.image.ref.name": "other:1"}}
        document = json.loads(index[1])
        document["manifests"].append(other)
        with pytest.raises(ImageError, match=str(Digest.of(b"none"))):
            load(store, io.BytesIO(packed(*parts, entry("index.json", json.dumps(document).encode()))))
        assert store.references() == ()
        load(store, io.BytesIO(layout()))
        check(store)

    @pytest.mark.parametrize("name", ["blobs/sha256/../../../x", "blobs/md5/" + "0" * 32, "blobs/sha256/XY"])
    def test_odd_names_of_blobs(self, store: Store, name: str) -> None:
        try:
            load(store, io.BytesIO(layout(entry(name, b"x"))))
        except ImageError:
            assert store.references() == ()
        else:
            check_only_ours(store)


def check_only_ours(store: Store) -> None:
    store.prune()
    check(store)


class TestHostile:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_damaged(self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Cut off or changed anywhere: an ImageError and no name, or the very image."""
        store = Store(tmp_path_factory.mktemp("store"))
        whole = data.draw(st.sampled_from([saved(), layout()]))
        at = data.draw(st.integers(0, len(whole)))
        other = data.draw(st.binary(max_size=20))
        cut = data.draw(st.booleans())
        try:
            load(store, io.BytesIO(whole[:at] if cut else whole[:at] + other + whole[at + len(other) :]))
        except ImageError:
            assert store.references() == ()
        else:
            for name in store.references():
                manifest = Manifest.parse(store.read(store.resolve(name).digest))
                assert ImageConfig.parse(store.read(manifest.config.digest)).diff_ids
                for layer in manifest.layers:
                    store.read(layer.digest)

    def test_more_than_it_may_unpack_to(self, store: Store) -> None:
        data = gzip.compress(packed(entry("big", bytes(1 << 20))))
        with pytest.raises(UnpackError, match="more than"):
            load(store, io.BytesIO(data), most_bytes=1 << 19)
        assert store.sizes().total == 0

    def test_names_without_end(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "_MOST_NAMES", 1000)
        data = packed(*[link(f"{number:0100}", "x" * 100) for number in range(6)])
        with pytest.raises(UnpackError, match="without end"):
            load(store, io.BytesIO(data))

    def test_documents_without_end(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "_MOST_DOCUMENTS", 1000)
        data = packed(*[entry(f"{number}.json", bytes(300)) for number in range(4)])
        with pytest.raises(UnpackError, match="documents"):
            load(store, io.BytesIO(data))
