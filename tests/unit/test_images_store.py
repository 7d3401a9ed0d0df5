"""Images in a store: names, what keeps blobs, sizes; and an index.json that somebody else wrote."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from isobox.errors import DigestMismatch, ImageError, InvalidReference, NotFound, UnsupportedError
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import EMPTY, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from isobox.images.documents.model import Index, Manifest
from isobox.images.documents.platform import Platform
from isobox.images.documents.reference import Reference
from isobox.images.store import Store

DEBIAN = Reference.parse("debian:12")
NGINX = Reference.parse("localhost:5000/web/nginx:1")


def add(store: Store, data: bytes, media_type: str, *, lazily: bool = False, **given: Any) -> Descriptor:
    descriptor = Descriptor.of(data, media_type, **given)
    if not (lazily and store.has(descriptor.digest, descriptor.size)):
        assert store.add(data) == (descriptor.digest, descriptor.size)
    return descriptor


def put(store: Store, *layers: bytes, lazily: bool = False, **given: Any) -> Descriptor:
    """A manifest with these layers; `lazily`, nothing is added that is there."""
    parts = [add(store, layer, OCI_LAYER, lazily=lazily) for layer in layers]
    config = add(store, b'{"os":"linux"}', OCI_CONFIG, lazily=lazily)
    return add(store, Manifest(config, tuple(parts)).encode(), OCI_MANIFEST, **given)


def image(path: Path | str, reference: Reference, *layers: bytes) -> Descriptor:
    store = Store(path)
    with store.lease():
        descriptor = put(store, *layers)
        store.tag(reference, descriptor)
    return descriptor


def whole(store: Store, descriptor: Descriptor) -> list[bytes]:
    """The layers of a manifest, all read and verified."""
    manifest = Manifest.parse(store.read(descriptor.digest), descriptor.media_type)
    store.read(manifest.config.digest)
    return [store.read(layer.digest) for layer in manifest.layers]


def blobs(path: Path | str) -> set[Digest]:
    return {digest for digest, _ in Store(path)._files()}


def index(path: Path) -> dict[str, Any]:
    value = json.loads((path / "index.json").read_bytes())
    assert isinstance(value, dict)
    return value


class TestNames:
    def test_nothing_there(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "no")
        assert store.references() == ()
        with pytest.raises(NotFound, match="debian:12.*isobox pull.*isobox load"):
            store.resolve(DEBIAN)
        with pytest.raises(NotFound):
            store.untag(DEBIAN)
        with pytest.raises(NotFound):
            store.remove(Digest.of(b""))
        assert store.prune().blobs == () and store.sizes().total == 0
        assert not (tmp_path / "no").exists()

    def test_by_every_way(self, tmp_path: Path) -> None:
        first, second = image(tmp_path, NGINX, b"web"), image(tmp_path, DEBIAN, b"base", b"more")
        store = Store(tmp_path)
        assert store.references() == (DEBIAN, NGINX)
        hexadecimal = second.digest.hex
        for name in (
            DEBIAN,
            "debian:12",
            "docker.io/library/debian:12",
            second.digest,
            str(second.digest),
            hexadecimal,
            hexadecimal[:12],
            hexadecimal[:4],
            f"sha256:{hexadecimal[:8]}",
            f"debian@{second.digest}",
            f"debian:11@{second.digest}",
        ):
            assert store.resolve(name) == second
        assert store.resolve(NGINX) == first
        assert whole(store, second) == [b"base", b"more"]
        for wrong in (
            "debian",
            "debian:11",
            "ffffff",
            f"nginx@{second.digest}",
            hexadecimal[:3],
            str(DEBIAN) + "3",
        ):
            with pytest.raises(NotFound):
                store.resolve(wrong)
        for wrong in ("", "De bian", "debian:", "\ud800", "x" * 10_000, "ABCDEF"):
            with pytest.raises(InvalidReference):
                store.resolve(wrong)
        with pytest.raises(InvalidReference, match="as text"):
            store.resolve(12)  # type: ignore[arg-type]

    def test_an_id_of_several_is_none(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        seen: dict[str, Digest] = {}
        number = 0
        with store.lease():
            while True:
                number += 1
                config = Descriptor.of(b"{}", EMPTY, extra={"n": number})
                data = Manifest(config).encode()
                start = Digest.of(data).hex[:4]
                if start in seen:
                    break
                seen[start] = Digest.of(data)
        entries = [Descriptor(OCI_MANIFEST, digest, 1) for digest in (seen[start], Digest.of(data))]
        value = {"schemaVersion": 2, "manifests": [entry.to_fields() for entry in entries]}
        (tmp_path / "index.json").write_text(json.dumps(value))
        with pytest.raises(ImageError) as caught:
            store.resolve(start)
        assert all(str(entry.digest) in str(caught.value) for entry in entries)
        assert store.resolve(entries[0].digest) == entries[0]

    def test_a_name_moves(self, tmp_path: Path) -> None:
        first = image(tmp_path, DEBIAN, b"one")
        image(tmp_path, NGINX, b"other")
        second = image(tmp_path, DEBIAN, b"two")
        store = Store(tmp_path)
        assert store.resolve(DEBIAN) == second
        assert len(index(tmp_path)["manifests"]) == 2
        with pytest.raises(NotFound):
            store.resolve(first.digest)
        store.tag(NGINX, store.resolve(DEBIAN))
        assert store.resolve(NGINX) == second
        store.untag(NGINX)
        assert store.references() == (DEBIAN,)
        with pytest.raises(NotFound):
            store.untag(NGINX)

    def test_remove_takes_all_names(self, tmp_path: Path) -> None:
        descriptor = image(tmp_path, DEBIAN, b"one")
        store = Store(tmp_path)
        store.tag(NGINX, descriptor)
        assert store.remove(descriptor.digest) == (DEBIAN, NGINX)
        assert store.references() == ()

    def test_what_is_not_there_gets_no_name(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        with store.lease():
            layer = Descriptor.of(b"layer", OCI_LAYER)
            config = add(store, b"{}", OCI_CONFIG)
            manifest = add(store, Manifest(config, (layer,)).encode(), OCI_MANIFEST)
            for descriptor, lacking in (
                (manifest, layer.digest),
                (Descriptor.of(b"no", OCI_MANIFEST), Digest.of(b"no")),
                (Descriptor(OCI_MANIFEST, manifest.digest, 1), manifest.digest),
            ):
                with pytest.raises(ImageError, match=f"{lacking} is not there"):
                    store.tag(DEBIAN, descriptor)
            with pytest.raises(ImageError):
                store.tag(DEBIAN, config)
            with pytest.raises(ImageError):
                store.tag(Reference("docker.io", "library/debian"), manifest)
            with pytest.raises(ImageError):
                store.tag(DEBIAN.with_digest(Digest.of(b"")), manifest)
            assert store.references() == ()
            store.add(b"layer")
            store.tag(DEBIAN, manifest)
            store.tag(Reference("docker.io", "library/debian", None, manifest.digest), manifest)
        assert store.resolve(f"debian@{manifest.digest}") == manifest

    def test_an_index_with_one_platform_of_two(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        with store.lease():
            here = put(store, b"amd64", platform=Platform.parse("linux/amd64"))
            absent = Descriptor.of(b"absent", OCI_MANIFEST)
            both = add(store, Index((absent, here)).encode(), OCI_INDEX)
            none = add(store, Index((absent,)).encode(), OCI_INDEX)
            store.tag(DEBIAN, both)
            with pytest.raises(ImageError, match=f"{absent.digest} is not there"):
                store.tag(NGINX, none)
            with pytest.raises(ImageError):
                store.tag(NGINX, add(store, Index().encode(), OCI_INDEX))
        assert store.resolve(DEBIAN) == both
        assert store.resolve(here.digest) == here
        assert store.resolve(f"debian@{here.digest}") == here
        assert store.prune().blobs == tuple(sorted({none.digest, Digest.of(Index().encode())}))
        assert whole(store, here) == [b"amd64"]


class TestPrune:
    def test_removes_what_nothing_names(self, tmp_path: Path) -> None:
        base = os.urandom(100)
        first, second = image(tmp_path, DEBIAN, base, b"x" * 10), image(tmp_path, NGINX, base, b"y" * 20)
        store = Store(tmp_path)
        assert store.prune() == (done := store.prune()) and done.blobs == () and done.size == 0
        store.untag(DEBIAN)
        pruned = store.prune()
        assert set(pruned.blobs) == {first.digest, Digest.of(b"x" * 10)}
        assert pruned.size == first.size + 10
        assert whole(store, second) == [base, b"y" * 20]
        store.untag(NGINX)
        store.prune()
        assert blobs(tmp_path) == set()

    def test_keeps_what_a_living_process_works_on(self, tmp_path: Path) -> None:
        descriptor = image(tmp_path, DEBIAN, b"old")
        mine, other = Store(tmp_path), Store(tmp_path)
        with mine.lease():
            assert mine.has(Digest.of(b"old"))
            new, _ = mine.add(b"new")
            other.untag(DEBIAN)
            assert set(other.prune().blobs) == {descriptor.digest, Digest.of(b'{"os":"linux"}')}
            assert blobs(tmp_path) == {Digest.of(b"old"), new}
            assert not mine.has(descriptor.digest)
            mine.tag(NGINX, put(mine, b"old", b"new"))
        assert other.prune().blobs == ()
        assert whole(other, other.resolve(NGINX)) == [b"old", b"new"]

    def test_circles_and_depth(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        with store.lease():
            inner = put(store, b"layer")
            for _ in range(60):
                # Each is named twice by the next, and names what isn't there.
                absent = Descriptor.of(os.urandom(8), OCI_INDEX)
                inner = add(store, Index((inner, absent, inner)).encode(), OCI_INDEX)
            store.tag(DEBIAN, inner)
        before = blobs(tmp_path)
        assert store.prune().blobs == ()
        assert blobs(tmp_path) == before

    def test_a_damaged_manifest_keeps_everything(self, tmp_path: Path) -> None:
        descriptor = image(tmp_path, DEBIAN, b"layer")
        (tmp_path / "blobs" / "sha256" / descriptor.digest.hex).write_bytes(b"x" * descriptor.size)
        store = Store(tmp_path)
        before = blobs(tmp_path)
        with pytest.raises(DigestMismatch, match="damaged on disk"):
            store.prune()
        assert blobs(tmp_path) == before
        assert store.sizes().images[0].references == (DEBIAN,)
        image(tmp_path, DEBIAN, b"layer")
        assert store.prune().blobs == ()

    def test_what_can_not_be_understood_keeps_everything(self, tmp_path: Path) -> None:
        image(tmp_path, DEBIAN, b"layer")
        store = Store(tmp_path)
        with store.lease():
            odd = add(store, b'{"schemaVersion": 2}', OCI_MANIFEST)
            unnamed = add(store, b"unnamed", OCI_LAYER)
        value = index(tmp_path)
        value["manifests"].append(odd.to_fields())
        (tmp_path / "index.json").write_text(json.dumps(value))
        with pytest.raises(ImageError, match=str(odd.digest)):
            store.prune()
        assert store.has(unnamed.digest)
        store.remove(odd.digest)
        assert set(store.prune().blobs) == {odd.digest, unnamed.digest}

    @pytest.mark.parametrize("turned", [False, True])
    def test_named_under_a_wrong_type_too(self, tmp_path: Path, turned: bool) -> None:
        store = Store(tmp_path)
        with store.lease():
            inner = put(store, b"layer")
            outer = add(store, Index((inner,)).encode(), OCI_INDEX)
            store.tag(DEBIAN, outer)
        value = index(tmp_path)
        value["manifests"].append({**outer.to_fields(), "mediaType": "application/x"})
        if turned:
            value["manifests"].reverse()
        (tmp_path / "index.json").write_text(json.dumps(value))
        assert store.prune().blobs == ()
        assert whole(store, inner) == [b"layer"]

    def test_other_tools_entries_and_files_stay(self, tmp_path: Path) -> None:
        image(tmp_path, DEBIAN, b"layer")
        store = Store(tmp_path)
        with store.lease():
            blob = add(store, b"of an artifact", "application/x")
            artifact = add(
                store,
                json.dumps({"blobs": [blob.to_fields()]}).encode(),
                "application/vnd.oci.artifact.manifest.v1+json",
            )
            subject = put(store, b"subject")
            nested = add(store, b"in an index", "application/x")
            inner = add(store, str(nested.digest).encode(), "application/vnd.unknown.manifest+json")
            outer = add(store, Index((inner,)).encode(), OCI_INDEX)
            config = add(store, b"{}", EMPTY)
            referrer = add(store, Manifest(config, subject=subject).encode(), OCI_MANIFEST)
            own = add(store, b'{"os":"linux"}', OCI_CONFIG)
            about = add(store, Manifest(own, subject=subject).encode(), OCI_MANIFEST)
        value = index(tmp_path)
        value["manifests"] += [entry.to_fields() for entry in (artifact, referrer, about, outer)]
        (tmp_path / "index.json").write_text(json.dumps(value))
        (tmp_path / "blobs" / "sha256" / "partial").touch()
        (tmp_path / "blobs" / "notes").touch()
        (tmp_path / "blobs" / "sha256" / ("0" * 64)).mkdir()
        planted = tmp_path / "blobs" / "sha256" / ("1" * 64)
        planted.symlink_to(tmp_path / "index.json")
        assert store.prune().blobs == (Digest("sha256", "1" * 64),)
        assert (tmp_path / "index.json").exists() and not planted.is_symlink()
        assert (tmp_path / "blobs" / "sha256" / "partial").exists()
        assert store.has(blob.digest) and store.has(Digest.of(b"subject")) and store.has(nested.digest)
        assert len(store.entries()) == 5


def test_sizes(tmp_path: Path) -> None:
    base, one, two, extra = (os.urandom(size) for size in (1000, 10, 20, 7))
    first, second = image(tmp_path, DEBIAN, base, one), image(tmp_path, NGINX, base, two)
    store = Store(tmp_path)
    store.tag(Reference.parse("same"), first)
    with store.lease():
        store.add(extra)
    config = len(b'{"os":"linux"}')
    sizes = store.sizes()
    assert sizes.total == 1000 + config + first.size + 10 + second.size + 20 + 7
    assert sizes.unused == 7
    assert [(i.digest, i.unique, i.shared) for i in sizes.images] == [
        (first.digest, first.size + 10, 1000 + config),
        (second.digest, second.size + 20, 1000 + config),
    ]
    assert sizes.images[0].references == (DEBIAN, Reference.parse("same"))
    on_disk = sum(file.stat().st_size for file in (tmp_path / "blobs").rglob("*") if file.is_file())
    assert sizes.total == on_disk


class TestOtherTools:
    def entry(self, descriptor: Descriptor, **annotations: str) -> dict[str, Any]:
        return (
            {**descriptor.to_fields(), "annotations": annotations} if annotations else descriptor.to_fields()
        )

    def test_what_they_wrote_survives(self, tmp_path: Path) -> None:
        descriptor = image(tmp_path, DEBIAN, b"layer")
        value = index(tmp_path)
        value["x-new"] = {"deep": [1, 2.5, None]}
        value["annotations"] = {"who": "me"}
        strange = {"mediaType": "application/x", "digest": f"sha256:{'5' * 64}", "size": 3, "x": [True]}
        value["manifests"][:0] = [strange]
        (tmp_path / "index.json").write_text(json.dumps(value))
        store = Store(tmp_path)
        store.tag(NGINX, descriptor)
        store.untag(DEBIAN)
        after = index(tmp_path)
        assert after["manifests"][0] == strange
        del after["manifests"], value["manifests"]
        assert after == value

    def test_names_as_they_write_them(self, tmp_path: Path) -> None:
        one = image(tmp_path, DEBIAN, b"one")
        two, three = image(tmp_path, DEBIAN, b"two"), image(tmp_path, DEBIAN, b"three")
        ref, full = "org.opencontainers.image.ref.name", "io.containerd.image.name"
        value = index(tmp_path)
        value["manifests"] = [
            self.entry(one, **{ref: "12", full: "docker.io/library/debian:12", "x": "y"}),
            self.entry(two, **{ref: "Foo"}),
            self.entry(three),
            # By umoci, which changes only the one name that it knows.
            self.entry(two, **{ref: "tool:1", full: "docker.io/library/debian:11"}),
        ]
        (tmp_path / "index.json").write_text(json.dumps(value))
        store = Store(tmp_path)
        assert store.references() == (DEBIAN, Reference.parse("tool:1"))
        assert store.resolve(DEBIAN).annotations == {"x": "y"}
        assert store.resolve("Foo") == store.resolve("tool:1") == two
        assert store.resolve(three.digest) == three
        store.tag(DEBIAN, two)
        assert [entry["digest"] for entry in index(tmp_path)["manifests"]] == [
            str(digest.digest) for digest in (two, three, two, two)
        ]
        assert store.remove(three.digest) == ()

    def test_one_name_for_two(self, tmp_path: Path) -> None:
        one, two = image(tmp_path, DEBIAN, b"one"), image(tmp_path, NGINX, b"two")
        value = index(tmp_path)
        for entry in value["manifests"]:
            entry["annotations"] = {"org.opencontainers.image.ref.name": "twice"}
        (tmp_path / "index.json").write_text(json.dumps(value))
        store = Store(tmp_path)
        with pytest.raises(ImageError) as caught:
            store.resolve("twice")
        assert str(one.digest) in str(caught.value) and str(two.digest) in str(caught.value)
        assert store.references() == (Reference.parse("twice"),)
        store.tag(Reference.parse("twice"), one)
        assert store.resolve("twice") == one

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"[]",
            b"\xff\xfe",
            b'{"schemaVersion": 2, "manifests": ' + b"[" * 100_000,
            b'{"schemaVersion": 1, "manifests": []}',
            b'{"schemaVersion": 2, "manifests": {}}',
            b'{"schemaVersion": 2, "manifests": [3]}',
            b'{"schemaVersion": 2, "manifests": [{}]}',
            b'{"schemaVersion": 2, "manifests": [{"mediaType": "a/b", "digest": "sha256:../x", "size": 1}]}',
            b'{"schemaVersion": 2, "manifests": [], "manifests": []}',
            b" " * ((4 << 20) + 1),
        ],
    )
    def test_a_hostile_index(self, tmp_path: Path, data: bytes) -> None:
        descriptor = image(tmp_path, DEBIAN, b"one")
        (tmp_path / "index.json").write_bytes(data)
        store = Store(tmp_path)
        for call in (
            store.references,
            store.sizes,
            store.prune,
            lambda: store.resolve(DEBIAN),
            lambda: store.tag(DEBIAN, descriptor),
            lambda: store.untag(DEBIAN),
            lambda: store.remove(descriptor.digest),
        ):
            with pytest.raises(ImageError, match="index.json"):
                call()
        assert (tmp_path / "index.json").read_bytes() == data
        assert len(blobs(tmp_path)) == 3

    @pytest.mark.parametrize(
        "data", [b"", b"{}", b'{"imageLayoutVersion": 1}', b'{"imageLayoutVersion": "2.0.0"}']
    )
    def test_another_version(self, tmp_path: Path, data: bytes) -> None:
        image(tmp_path, DEBIAN, b"one")
        (tmp_path / "oci-layout").write_bytes(data)
        with pytest.raises(ImageError, match="oci-layout"):
            Store(tmp_path).resolve(DEBIAN)

    def test_no_index(self, tmp_path: Path) -> None:
        image(tmp_path, DEBIAN, b"one")
        (tmp_path / "index.json").unlink()
        with pytest.raises(ImageError, match="index.json: missing"):
            Store(tmp_path).references()
        (tmp_path / "index.json").symlink_to("oci-layout")
        with pytest.raises(ImageError, match="link"):
            Store(tmp_path).references()

    def test_no_layout(self, tmp_path: Path) -> None:
        (tmp_path / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
        with pytest.raises(ImageError, match="no oci-layout file"):
            Store(tmp_path).references()

    def test_an_index_that_grows_too_large_is_not_written(self, tmp_path: Path) -> None:
        descriptor = image(tmp_path, DEBIAN, b"one")
        large = Descriptor(
            descriptor.media_type, descriptor.digest, descriptor.size, annotations={"x": "y" * (4 << 20)}
        )
        with pytest.raises(ImageError, match="another store"):
            Store(tmp_path).tag(NGINX, large)
        assert Store(tmp_path).references() == (DEBIAN,)


class TestDefault:
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "data"))

    def test_beside_the_trees_of_containers(self, tmp_path: Path) -> None:
        store = Store.default()
        assert store.path == str(tmp_path / "data" / "images")
        assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
        assert Store.default().references() == ()

    def test_must_be_ones_own(self, tmp_path: Path) -> None:
        Store.default()
        os.chmod(tmp_path / "data" / "images", 0o777)
        with pytest.raises(UnsupportedError, match="ISOBOX_DATA_DIR"):
            Store.default()
        (tmp_path / "data" / "images").rmdir()
        (tmp_path / "data" / "images").symlink_to("/tmp")
        with pytest.raises(UnsupportedError, match="ISOBOX_DATA_DIR"):
            Store.default()


class TestFullDisk:
    @pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "unlink"])
    def test_at_each_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        old = image(tmp_path, DEBIAN, b"old")
        real = getattr(os, call)
        left, failed = 0, False

        def fails(*arguments: Any, **named: Any) -> Any:
            nonlocal left, failed
            left -= 1
            if left < 0 and not failed:
                failed = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        store = Store(tmp_path)
        for number in range(200):
            left, failed, errors = number, False, []
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fails)
                for step in (
                    lambda: image(tmp_path, NGINX, b"new"),
                    lambda: store.untag(NGINX),
                    lambda: store.prune(),
                ):
                    try:
                        step()
                    except NotFound:
                        pass
                    except ImageError as error:
                        errors.append(str(error))
            assert all("No space left" in error and "Free some space" in error for error in errors)
            assert len(errors) <= 1
            assert whole(store, store.resolve(DEBIAN)) == [b"old"]
            assert store.resolve(DEBIAN) == old
            if NGINX in store.references():
                assert whole(store, store.resolve(NGINX)) == [b"new"]
            if not failed:
                break
        assert not failed and number
        store.prune()
        assert len(blobs(tmp_path)) == 3
        assert os.listdir(tmp_path / ".isobox" / "leases") == []


class Worker:
    """A forked process that puts images into a store, says the number of each, and prunes now and then.

    As a pull does, it adds no layer that is there already. `forgets`: it takes each name away again.
    """

    def __init__(self, path: Path, seed: int, *, forgets: bool = False) -> None:
        self.forgets = forgets
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(reader)
                self._work(Store(path), seed, writer)
            finally:
                os._exit(1)
        os.close(writer)
        self.said = os.fdopen(reader, "rb")

    def _work(self, store: Store, seed: int, said: int) -> None:
        name = Reference.parse(f"app:{seed}")
        for number in count(seed + 1):
            layers = [b"shared", b"%d" % number, os.urandom(1000)]
            with store.lease():
                descriptor = put(store, *layers, lazily=True)
                store.tag(name, descriptor)
            assert whole(store, store.resolve(name)) == layers
            os.write(said, b"%d\n" % number)
            if self.forgets:
                store.untag(name)
            if number % 3 == 0 or self.forgets:
                store.prune()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert os.waitpid(self.pid, 0)[1] == signal.SIGKILL


class TestProcesses:
    def test_killed_at_any_moment(self, tmp_path: Path) -> None:
        """What was said to be done is there, whole, whenever it ends; and nothing is left for good."""
        other = image(tmp_path, DEBIAN, b"shared", b"old")
        store = Store(tmp_path)
        for number in range(50):
            seed = 1000 * (number % 5 + 1)
            worker = Worker(tmp_path, seed)
            with worker.said as said:
                if number % 2:
                    lines = [said.readline()]
                    time.sleep(random.random() * 0.02)
                else:
                    lines = []
                    time.sleep(random.random() * 0.04)
                worker.kill()
                lines += said.readlines()
            if lines:
                # It may have been killed before it could say so.
                assert int(whole(store, store.resolve(f"app:{seed}"))[1]) in (
                    int(lines[-1]),
                    int(lines[-1]) + 1,
                )
            assert whole(store, store.resolve(DEBIAN)) == [b"shared", b"old"]
        store.prune()
        for name in store.references():
            assert whole(store, store.resolve(name))[0] == b"shared"
        assert store.resolve(DEBIAN) == other
        assert os.listdir(tmp_path / ".isobox" / "leases") == []
        assert store.sizes().unused == 0

    def test_killed_while_it_is_made(self, tmp_path: Path) -> None:
        for number in range(15):
            path = tmp_path / str(number)
            worker = Worker(path, 0)
            time.sleep(0.001 * number)
            worker.kill()
            worker.said.close()
            assert len(Store(path).references()) <= 1
            descriptor = image(path, DEBIAN, b"one")
            assert Store(path).resolve(DEBIAN) == descriptor

    def test_several_at_once(self, tmp_path: Path) -> None:
        """They add the same blobs and prune; no image ever lacks one."""
        workers = [Worker(tmp_path, 1000 * number, forgets=True) for number in (1, 2, 3)]
        store = Store(tmp_path)
        try:
            for worker in workers:
                for _ in range(15):
                    assert worker.said.readline()
                with store.lease():
                    mine = put(store, b"shared", b"mine")
                    store.prune()
                    store.tag(DEBIAN, mine)
                store.untag(DEBIAN)
        finally:
            for worker in workers:
                worker.kill()
                worker.said.close()
        for name in store.references():
            assert whole(store, store.resolve(name))[0] == b"shared"


class Machine(RuleBasedStateMachine):
    """Two stores on one path against a dict."""

    images: Bundle[Descriptor] = Bundle("images")

    @initialize(base=st.just(0))
    def begin(self, base: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.stores = [Store(self.folder.name), Store(self.folder.name)]
        self.leases: list[Any] = [None, None]
        self.kept: list[set[Digest]] = [set(), set()]
        self.names: dict[Reference, Descriptor] = {}
        self.parts: dict[Digest, set[Digest]] = {}

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        for lease in self.leases:
            if lease is not None:
                lease.__exit__(None, None, None)
        self.folder.cleanup()

    @rule(who=st.integers(0, 1))
    def lease(self, who: int) -> None:
        if self.leases[who] is None:
            self.leases[who] = self.stores[who].lease()
            self.leases[who].__enter__()
        else:
            self.leases[who].__exit__(None, None, None)
            self.leases[who] = None
            self.kept[who] = set()

    @rule(
        target=images,
        who=st.integers(0, 1),
        layers=st.lists(st.sampled_from([b"a", b"b", b"c", b""]), max_size=3),
    )
    def put(self, who: int, layers: list[bytes]) -> Any:
        if self.leases[who] is None:
            return multiple()
        descriptor = put(self.stores[who], *layers)
        parts = {descriptor.digest, Digest.of(b'{"os":"linux"}'), *map(Digest.of, layers)}
        self.parts[descriptor.digest] = parts
        self.kept[who] |= parts
        return descriptor

    @rule(who=st.integers(0, 1), name=st.sampled_from([DEBIAN, NGINX]), descriptor=images)
    def tag(self, who: int, name: Reference, descriptor: Descriptor) -> None:
        there = all(self.stores[1 - who].there(part) for part in self.parts[descriptor.digest])
        if there:
            self.stores[who].tag(name, descriptor)
            self.names[name] = descriptor
        else:
            with pytest.raises(ImageError, match="not there"):
                self.stores[who].tag(name, descriptor)

    @rule(who=st.integers(0, 1), name=st.sampled_from([DEBIAN, NGINX]))
    def untag(self, who: int, name: Reference) -> None:
        if self.names.pop(name, None) is None:
            with pytest.raises(NotFound):
                self.stores[who].untag(name)
        else:
            self.stores[who].untag(name)

    @rule(who=st.integers(0, 1), descriptor=images)
    def has(self, who: int, descriptor: Descriptor) -> None:
        self.stores[who].has(descriptor.digest)
        if self.leases[who] is not None:
            self.kept[who].add(descriptor.digest)

    @rule(who=st.integers(0, 1))
    def prune(self, who: int) -> None:
        before = blobs(self.folder.name)
        removed = set(self.stores[who].prune().blobs)
        needed = set().union(*self.kept, *(self.parts[named.digest] for named in self.names.values()))
        assert removed == before - needed
        assert blobs(self.folder.name) == before & needed

    @invariant()
    def names_lead_to_images(self) -> None:
        if not hasattr(self, "names"):
            return
        for store in self.stores:
            assert set(store.references()) == set(self.names)
            for name, descriptor in self.names.items():
                assert store.resolve(name) == descriptor
                whole(store, descriptor)
        sizes = self.stores[0].sizes()
        there = blobs(self.folder.name)
        assert sum(image.unique for image in sizes.images) <= sizes.total - sizes.unused
        used = {part for named in self.names.values() for part in self.parts[named.digest]}
        assert (sizes.unused == 0) or there - used


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=15, stateful_step_count=25)


FIELDS = st.sampled_from(["schemaVersion", "manifests", "digest", "mediaType", "size", "annotations"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=10,
)


@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=60)
def test_any_index(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-index"
    if not path.exists():
        image(path, DEBIAN, b"one")
    (path / "index.json").write_bytes(data)
    store = Store(path)
    try:
        store.references()
        store.sizes()
    except ImageError:
        pass
