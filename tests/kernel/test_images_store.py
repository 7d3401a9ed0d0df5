"""The store on a disk that fills up, and read in place by skopeo and umoci."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.media import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST
from isobox.images.documents.model import Index, Manifest
from isobox.images.documents.platform import Platform
from isobox.images.documents.reference import Reference
from isobox.images.store import Store
from patience import patient
from requirements import program

ROOT = os.geteuid() == 0
DEBIAN, APP = Reference.parse("debian:12"), Reference.parse("localhost:5000/team/app:1.0")


def run(*args: str) -> str:
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=patient(60))
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    return done.stdout


def add(store: Store, data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type, *store.add(data))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with an image of one file, as the index "debian:12" and as the manifest of another name."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("hello")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"world"))
    diff_id = hashlib.sha256(archive.getvalue()).hexdigest()
    here = Platform.here()
    config = {
        "architecture": here.architecture,
        "os": here.os,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
    }
    store = Store(tmp_path / "store")
    with store.lease():
        layer = add(store, gzip.compress(archive.getvalue()), OCI_LAYER_GZIP)
        manifest = Manifest(add(store, json.dumps(config).encode(), OCI_CONFIG), (layer,))
        image = add(store, manifest.encode(), OCI_MANIFEST)
        store.tag(DEBIAN, add(store, Index((image,)).encode(), OCI_INDEX))
        store.tag(APP, image)
        store.tag(Reference.parse(f"debian@{image.digest}"), image)
    return store


def test_skopeo_reads_it_in_place(store: Store) -> None:
    skopeo = program("skopeo")
    for name in (reference.familiar for reference in store.references()):
        said = json.loads(run(skopeo, "inspect", f"oci:{store.path}:{name}"))
        assert said["Digest"] == str(store.resolve(name).digest)
        assert len(said["Layers"]) == 1


def test_umoci_reads_it_in_place(store: Store, tmp_path: Path) -> None:
    umoci = program("umoci")
    names = [reference.familiar for reference in store.references()]
    assert sorted(run(umoci, "ls", "--layout", store.path).split()) == sorted(names)
    rootless = [] if ROOT else ["--rootless"]
    for number, name in enumerate(names):
        bundle = tmp_path / str(number)
        run(umoci, "unpack", *rootless, "--image", f"{store.path}:{name}", str(bundle))
        assert (bundle / "rootfs" / "hello").read_bytes() == b"world"


def test_what_they_write_is_read(store: Store, tmp_path: Path) -> None:
    skopeo, umoci = program("skopeo"), program("umoci")
    image = store.resolve(APP)
    other = str(tmp_path / "other")
    for layout in (store.path, other):
        run(skopeo, "copy", "-q", f"oci:{store.path}:{APP.familiar}", f"oci:{layout}:debian:13")
        run(umoci, "tag", "--image", f"{layout}:debian:13", "debian:14")
        found = Store(layout)
        assert found.resolve("debian:13").digest == found.resolve("debian:14").digest == image.digest
        assert found.prune().blobs == ()
        found.tag(Reference.parse("more"), found.resolve("debian:14"))
        found.untag(Reference.parse("debian:13"))
        run(skopeo, "inspect", f"oci:{layout}:more:latest")
        run(skopeo, "inspect", f"oci:{layout}:debian:14")
    # One of our names, moved by another tool.
    run(umoci, "tag", "--image", f"{store.path}:{APP.familiar}", "debian:12")
    assert store.resolve(DEBIAN).digest == image.digest
    run(umoci, "gc", "--layout", store.path)
    assert store.resolve(APP) == image and store.prune().blobs == ()


FILL = """
import os, sys
sys.path[:] = {path!r}
from isobox.errors import ImageError
from isobox.images.documents.reference import Reference
from isobox.images.store import Store
from test_images_store import image, whole
path = {folder!r} + "/store"
store = Store(path)
kept = {{}}

def fill(name, left):
    with open({folder!r} + "/" + name, "wb", buffering=0) as ballast:
        for _ in range(os.statvfs(path).f_bfree - left):
            ballast.write(bytes(4096))

for left in range(0, 40):
    # Leaves a little more room each time, so that it runs out somewhere else.
    name = Reference.parse("app:%d" % left)
    image(path, name, b"%d" % left)
    kept[name] = b"%d" % left
    fill("ballast", left)
    for large in (os.urandom(40 * 4096), b"small"):
        try:
            image(path, Reference.parse("new"), large)
            store.untag(Reference.parse("new"))
        except ImageError as error:
            assert "No space left on device" in str(error) and "Free some space" in str(error), error
            print("full", left)
    for name, data in kept.items():
        assert whole(store, store.resolve(name)) == [data]
    if left % 4 == 3:
        # However full it is, an image can be removed.
        fill("more", 0)
        assert os.statvfs(path).f_bfree == 0
        gone = Reference.parse("app:%d" % (left - 2))
        store.untag(gone)
        del kept[gone]
        assert len(store.prune().blobs) >= 2
        os.unlink({folder!r} + "/more")
    os.unlink({folder!r} + "/ballast")
store.prune()
assert len(store.references()) == len(kept), store.references()
assert store.sizes().unused == 0
assert not os.listdir(path + "/.isobox/leases")
"""


@pytest.mark.requires("user_namespaces")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A small tmpfs with less and less room: nothing earlier is lost, and images can be removed."""
    unit = str(Path(__file__).parent.parent / "unit")
    code = FILL.format(path=[*sys.path, unit], folder=str(tmp_path))
    namespaces = ["--mount"] if ROOT else ["--user", "--map-root-user", "--mount"]
    mount = 'mount -t tmpfs -o size=2m,nr_inodes=2000 tmpfs "$0" && exec "$@"'
    said = run("unshare", *namespaces, "sh", "-c", mount, str(tmp_path), sys.executable, "-c", code)
    assert said.count("full") > 20
