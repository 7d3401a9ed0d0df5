"""Images out of a store: what the archives have in them, and what is left when writing fails."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import stat
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from archives import entry, packed
from isobox import Image, SpecError
from isobox.errors import DigestMismatch, ImageError, NotFound
from isobox.images.archives.archive import load
from isobox.images.archives.outfile import replacing
from isobox.images.archives.save import Saved, save
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from isobox.images.documents.model import Index, Manifest
from isobox.images.documents.platform import Platform
from isobox.images.documents.reference import Reference
from isobox.images.store import Store

LAYERS = (packed(entry("a", b"1")), packed(entry("b", b"2")))
HERE = Platform.here()
OTHER = "linux/s390x" if HERE.architecture != "s390x" else "linux/amd64"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(
    store: Store, *names: str, layers: tuple[bytes, ...] = LAYERS, cmd: str = "sh", platform: str = ""
) -> Descriptor:
    """An image for this machine, named."""
    config = json.dumps(
        {
            "architecture": platform.rpartition("/")[2] or HERE.architecture,
            "os": HERE.os,
            "config": {"Cmd": [cmd]},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
        }
    ).encode()
    with store.lease():
        parts = tuple(Descriptor(OCI_LAYER, *store.add(layer)) for layer in layers)
        encoded = Manifest(Descriptor(OCI_CONFIG, *store.add(config)), parts).encode()
        store.add(encoded)
        descriptor = Descriptor.of(encoded, OCI_MANIFEST)
        for name in names:
            store.tag(Reference.parse(name), descriptor)
        if not names:
            store.keep(descriptor)
    return descriptor


def saved(images: list[Image | str], format: Any = "oci", store: Store | None = None) -> bytes:
    file = io.BytesIO()
    Image.save_all(images, file, format=format, store=store)
    return file.getvalue()


def files(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isreg()}  # type: ignore[union-attr]


def again(data: bytes, tmp_path: Path) -> Store:
    """A store that has read it."""
    other = Store(tmp_path / os.urandom(4).hex())
    load(other, io.BytesIO(data))
    return other


class TestArchives:
    @pytest.mark.parametrize("format", ["oci", "docker"])
    def test_comes_back_as_it_was(self, store: Store, tmp_path: Path, format: str) -> None:
        put(store, "app:1", "localhost:5000/team/app:2")
        image = Image.get("app:1", store=store)
        other = again(saved([image], format), tmp_path)
        (back,) = other.images()
        assert back == image and back.id == image.id and back.layers == image.layers
        assert back.references == ("app:1", "localhost:5000/team/app:2")
        assert [other.read(layer.digest) for layer in back._chosen.manifest.layers] == list(LAYERS)

    @pytest.mark.parametrize("format", ["oci", "docker"])
    def test_equal_images_give_equal_bytes(self, store: Store, tmp_path: Path, format: str) -> None:
        data = []
        for path in (store.path, tmp_path / "other"):
            put(Store(path), "app:1")
            data.append(saved(["app:1"], format, Store(path)))
        assert data[0] == data[1] and len(data[0]) % 512 == 0
        with tarfile.open(fileobj=io.BytesIO(data[0])) as tar:
            assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}

    def test_what_docker_goes_by(self, store: Store) -> None:
        put(store, "app:1")
        found = files(saved(["app:1"], "docker", store))
        (listed,) = json.loads(found["manifest.json"])
        assert listed["RepoTags"] == ["app:1"]
        assert [found[name] for name in listed["Layers"]] == list(LAYERS)
        assert Image.get("app:1", store=store).id == f"sha256:{Digest.of(found[listed['Config']]).hex}"
        assert "manifest.json" not in files(saved(["app:1"], "oci", store))
        del found["index.json"]
        (loaded,) = load(
            Store(f"{store.path}-2"), io.BytesIO(packed(*[entry(*item) for item in found.items()]))
        )
        assert loaded.references == (Reference.parse("app:1"),)

    def test_a_name_alone_or_all(self, store: Store, tmp_path: Path) -> None:
        descriptor = put(store, "app:1", "app:2", "app:3")
        image = Image.get("app:1", store=store)

        def names(*images: Image | str) -> list[tuple[str, ...]]:
            found = again(saved(list(images), "docker", store), tmp_path).images()
            return [back.references for back in found]

        assert names("docker.io/library/app:2") == [("app:2",)]
        assert names("app:3", "app:1") == [("app:1", "app:3")]
        assert names(image) == [("app:1", "app:2", "app:3")]
        assert names(image.id) == names(str(descriptor.digest)[7:19]) == [()]
        with pytest.raises(NotFound):
            names("app:4")

    def test_several(self, store: Store, tmp_path: Path) -> None:
        put(store, "one:1")
        put(store, "two:2", layers=LAYERS[:1], cmd="two")
        put(store, layers=(), cmd="unnamed")
        data = saved(list(store.images()), "docker", store)
        assert again(data, tmp_path).images() == store.images() and len(store.images()) == 3
        assert len([name for name in files(data) if name.startswith("blobs")]) == 8, "shared ones once"

    def test_one_platform_of_two(self, store: Store, tmp_path: Path) -> None:
        one = put(store)
        here = Descriptor(one.media_type, one.digest, one.size, platform=HERE)
        absent = Descriptor.of(b"absent", OCI_MANIFEST, platform=Platform("linux", "other"))
        with store.lease():
            both = Descriptor(OCI_INDEX, *store.add(Index((absent, here)).encode()))
            store.tag(Reference.parse("app:1"), both)
        for format in ("oci", "docker"):
            other = again(saved(["app:1"], format, store), tmp_path)
            assert other.resolve("app:1") == both and Image.get("app:1", store=other).layers

    def test_for_one_platform(self, store: Store, tmp_path: Path) -> None:
        one = put(store, "one:1")
        here = evolve(one, platform=HERE)
        other = evolve(put(store, layers=(), cmd="other", platform=OTHER), platform=Platform.parse(OTHER))
        with store.lease():
            both = Descriptor(OCI_INDEX, *store.add(Index((other, here)).encode()))
            store.tag(Reference.parse("app:1"), both)
        for format in ("oci", "docker"):
            for platform, expected in ((OTHER, other), (str(HERE), here)):
                file = io.BytesIO()
                Image.save_all(["app:1"], file, format=format, platform=platform, store=store)
                found = files(file.getvalue())
                back = again(file.getvalue(), tmp_path)
                assert back.resolve("app:1").digest == expected.digest
                assert len([name for name in found if "blobs" in name]) == (2 if expected is other else 4)
            with pytest.raises(ImageError, match="windows"):
                Image.get("app:1", store=store).save(io.BytesIO(), format=format, platform="windows/amd64")
        # Without a platform, what is for another machine alone can be saved.
        for format in ("oci", "docker"):
            back = again(saved([str(other.digest)], format, store), tmp_path)
            assert str(back.images()[0].config.platform) == OTHER

    def test_of_one_store(self, store: Store, tmp_path: Path) -> None:
        put(store, "app:1")
        put(Store(tmp_path / "other"), "app:1")
        with pytest.raises(SpecError, match="one store"):
            saved([*store.images(), *Store(tmp_path / "other").images()])
        for images in ([], ["app:1"]):
            with pytest.raises(SpecError, match="format|images"):
                saved(images, "oci" if not images else "zip", store)

    def test_a_pipe_or_device_that_takes_no_more(self, store: Store) -> None:
        put(store, "app:1")
        with open("/dev/full", "wb", buffering=0) as file, pytest.raises(ImageError, match="No space left"):
            Image.save_all(["app:1"], file, store=store)
        read_end, write_end = os.pipe()
        os.close(read_end)
        with open(write_end, "wb", buffering=0) as file, pytest.raises(BrokenPipeError):
            Image.save_all(["app:1"], file, store=store)
        assert os.listdir(f"{store.path}/.isobox/leases") == []

    @pytest.mark.parametrize("which", ["layer", "config", "manifest"])
    @pytest.mark.parametrize("gone", [False, True])
    def test_damaged_in_the_store(self, store: Store, tmp_path: Path, which: str, gone: bool) -> None:
        descriptor = put(store, "app:1")
        image = Image.get("app:1", store=store)
        digest = {
            "layer": Digest.of(LAYERS[1]),
            "config": Digest.parse(image.id),
            "manifest": descriptor.digest,
        }[which]
        blob = Path(store.path, "blobs/sha256", digest.hex)
        blob.write_bytes(b"x" * blob.stat().st_size)
        if gone:
            blob.unlink()
        (tmp_path / "app.tar").write_bytes(b"before")
        for format in ("oci", "docker"):
            with pytest.raises(ImageError if gone else DigestMismatch, match=digest.hex):
                image.save(tmp_path / "app.tar", format=format)
        assert (tmp_path / "app.tar").read_bytes() == b"before"
        assert sorted(os.listdir(tmp_path)) == ["app.tar", "store"]

    def test_kept_while_it_is_written(self, store: Store) -> None:
        """A prune in another process takes nothing that is still to be written."""
        descriptor = put(store, "app:1")
        other = Store(store.path)

        class Pruning(io.BytesIO):
            def write(self, data: Any) -> int:
                if other.entries():
                    other.remove(descriptor.digest)
                other.prune()
                return super().write(data)

        file = Pruning()
        Image.get("app:1", store=store).save(file)
        assert {Digest.of(layer).hex for layer in LAYERS} <= {name[-64:] for name in files(file.getvalue())}
        other.prune()
        assert other.sizes().total == 0


class TestFolders:
    def test_comes_back_and_is_added_to(self, store: Store, tmp_path: Path) -> None:
        put(store, "app:1")
        put(store, layers=(), cmd="unnamed")
        for image in store.images():
            image.save(tmp_path / "folder", format="oci-dir")
        assert Store(tmp_path / "folder").images() == store.images()
        other = Store(tmp_path / "other")
        assert Image.load_all(tmp_path / "folder", store=other) == store.images() == other.images()

    def test_no_place_for_one(self, store: Store, tmp_path: Path) -> None:
        put(store, "app:1")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/file").write_bytes(b"mine")
        with pytest.raises(ImageError, match="other things"):
            Image.get("app:1", store=store).save(tmp_path / "mine", format="oci-dir")
        assert os.listdir(tmp_path / "mine") == ["file"]
        with pytest.raises(SpecError, match="path of a folder"):
            saved(["app:1"], "oci-dir", store)


class TestReplacing:
    def test_as_a_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        for number in range(2):
            with replacing(str(path)) as file:
                file.write(b"%d" % number)
                assert path.exists() == bool(number), "it appears at the end"
            assert path.read_bytes() == b"%d" % number
        os.chmod(path, 0o640)
        (tmp_path / "link").symlink_to("file")
        with replacing(str(tmp_path / "link")) as file:
            file.write(b"2")
        assert (tmp_path / "link").is_symlink() and path.read_bytes() == b"2"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert sorted(os.listdir(tmp_path)) == ["file", "link"]

    def test_its_mode_is_the_umask_s(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            with replacing(str(tmp_path / "file")):
                pass
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640

    @pytest.mark.parametrize("unnamed", [True, False])
    def test_a_full_disk(self, tmp_path: Path, unnamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """As a limit on the size of files says it."""
        if not unnamed:
            monkeypatch.setattr(os, "O_TMPFILE", os.O_TMPFILE | os.O_CREAT)  # which no kernel takes
        path = tmp_path / "file"
        path.write_bytes(b"before")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(ImageError, match=r"can't write .*file.*ulimit"):
                with replacing(str(path)) as file:
                    file.write(bytes(2 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]
        with replacing(str(path)) as file:
            file.write(b"after")
        assert path.read_bytes() == b"after" and os.listdir(tmp_path) == ["file"]

    def test_what_is_no_file_stays_what_it_is(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        with replacing(str(tmp_path / "pipe")) as file:
            file.write(b"through")
        reader.join()
        assert read == [b"through"] and (tmp_path / "pipe").is_fifo()
        with replacing("/dev/null") as file:
            file.write(b"gone")
        assert Path("/dev/null").is_char_device()
        with pytest.raises(ImageError, match="Is a directory.*Name a file in it"):
            with replacing(str(tmp_path)):
                pass
        with pytest.raises(ImageError, match="Make the directory first"):
            with replacing(str(tmp_path / "none/file")):
                pass

    def test_killed_at_any_moment(self, store: Store, tmp_path: Path) -> None:
        put(store, "app:1", layers=(os.urandom(1 << 20),))
        image = Image.get("app:1", store=store)
        folder = tmp_path / "folder"
        folder.mkdir()
        path = folder / "app.tar"
        image.save(path)
        whole = path.read_bytes()
        seed = random.Random(5)
        for _ in range(10):
            child = os.fork()
            if not child:
                try:
                    while True:
                        image.save(path)
                finally:
                    os._exit(1)
            threading.Event().wait(seed.random() / 20)
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            assert path.read_bytes() == whole
        # Between the link and the rename, at the most.
        assert len(os.listdir(folder)) <= 2
        store.prune()
        assert os.listdir(f"{store.path}/.isobox/leases") == []


def test_larger_than_a_header_has_digits_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 8 GiB: pax has a record for it."""
    from isobox.images.archives.save import _header

    for size, name in ((1 << 40, "blob"), (5, "blobs/sha512/" + "a" * 128)):
        data = _header(name, size)
        with tarfile.open(fileobj=io.BytesIO(data + bytes(1024))) as tar:
            info = tar.next()
        assert info is not None and (info.size, info.name) == (size, name)


def test_names_with_a_digest(store: Store, tmp_path: Path) -> None:
    """Docker's list has no place for them, the layout has."""
    descriptor = put(store)
    name = Reference.parse(f"app@{descriptor.digest}")
    store.tag(name, descriptor)
    file = io.BytesIO()
    save(store, [Saved(descriptor, (name,), HERE)], file, docker=True)
    found = files(file.getvalue())
    assert json.loads(found["manifest.json"])[0]["RepoTags"] is None
    assert again(file.getvalue(), tmp_path).references() == (name,)


@st.composite
def images(draw: st.DrawFn) -> list[tuple[list[int], list[str], bool]]:
    """Layers, names and whether there is an index around it, for each of some images."""
    names = draw(
        st.lists(st.sampled_from(["a:1", "b:2", "localhost:5000/c:3", "d/e:4"]), unique=True, max_size=4)
    )
    found = []
    for _ in range(draw(st.integers(1, 4))):
        taken, names = (names[:2], names[2:]) if draw(st.booleans()) else ([], names)
        found.append((draw(st.lists(st.integers(0, 2), max_size=4)), taken, draw(st.booleans())))
    return found


@given(images=images(), format=st.sampled_from(["oci", "docker", "oci-dir"]))
@settings(max_examples=6)  # each waits for a disk many times
def test_whatever_is_saved_comes_back(images: list[tuple[list[int], list[str], bool]], format: Any) -> None:
    pool = (*LAYERS, packed(entry("c", b"3" * 10_000)))
    with tempfile.TemporaryDirectory() as folder:
        store, other = Store(f"{folder}/store"), Store(f"{folder}/other")
        for layers, names, index in images:
            descriptor = put(
                store, *([] if index else names), layers=tuple(pool[number] for number in layers)
            )
            if index:
                with store.lease():
                    descriptor = Descriptor(OCI_INDEX, *store.add(Index((descriptor,)).encode()))
                    for name in names:
                        store.tag(Reference.parse(name), descriptor)
                    if not names:
                        store.keep(descriptor)
        Image.save_all(store.images(), f"{folder}/saved", format=format)
        back = Image.load_all(f"{folder}/saved", store=other)
        assert other.entries() == store.entries() and sorted(back, key=hash) == sorted(
            store.images(), key=hash
        )
        assert other.prune(unnamed=False).blobs == ()
