"""Our images in the hands of skopeo, umoci and podman, and theirs in ours: the same trees, file by file."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from archives import attributes_kept, entry, packed
from isobox import Container, Image, Store
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.media import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST
from isobox.images.documents.model import Index, Manifest
from isobox.images.documents.platform import Platform
from isobox.images.documents.reference import Reference
from isobox.images.layers.layer import unpack_layer
from made import archive, base, upper
from others import Podman, by_umoci, run
from programs import ROOT, sh
from requirements import program
from shapes import STACK, compared, dated, merged, shaped

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

RUN = {"Cmd": ["/bin/sh"], "Env": ["A=b"], "Labels": {"a": "b"}}
DEVICE = "null"


def sparse(tmp_path: Path) -> bytes:
    """A layer of GNU tar's with a sparse file in it."""
    place = tmp_path / "sparse-layer"
    place.mkdir()
    with (place / "sparse").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(3 << 20)
        file.write(b"in the middle")
    os.utime(place / "sparse", (1_600_000_000, 1_600_000_000))
    options = [
        "--sparse",
        "--format=posix",
        "--pax-option=delete=atime,delete=ctime",
        "--owner=0",
        "--group=0",
    ]
    done = subprocess.run(
        ["tar", *options, "-C", str(place), "-c", "sparse"], check=True, capture_output=True
    )
    assert len(done.stdout) < 1 << 20
    return done.stdout


def agreeing(layer: bytes) -> bytes:
    """The same where what is said of a hard link is what is said of its file: podman takes the last word."""
    members: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            if info.islnk():
                target, name = members[info.linkname][0], info.name
                info = target.replace(name=name, linkname=target.name, deep=True)
                info.type, info.size = tarfile.LNKTYPE, 0
            # Read anew, they have names and times twice.
            kept = {name: text for name, text in info.pax_headers.items() if name.startswith("SCHILY.")}
            info.pax_headers = kept
            members[info.name] = info, b"" if file is None else file.read()
    return packed(*members.values())


@pytest.fixture
def odd(tmp_path: Path) -> Image:
    """An image of layers of odd shapes, compressed and not."""
    return image(tmp_path, sparse(tmp_path))


@pytest.fixture
def rewritable(tmp_path: Path) -> Image:
    """Without the sparse file, whose layer podman can't write again: it says that its digest is wrong."""
    return image(tmp_path)


def image(tmp_path: Path, *more: bytes) -> Image:
    attributes_kept(tmp_path)
    # podman has a whiteout remove what the same layer brought before it.
    stack = [sorted(members, key=lambda member: "/.wh." not in f"/{member[0].name}") for members in STACK]
    layers = [agreeing(shaped(empty=False)), *(agreeing(dated(*members)) for members in stack), *more]
    if ROOT:
        layers.append(dated(entry(DEVICE, type=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)))
    here = Platform.here()
    config = {
        "architecture": here.architecture,
        "os": here.os,
        "created": "2026-01-02T03:04:05Z",
        "config": RUN,
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
        },
    }
    store = Store.default()
    with store.lease():
        parts = []
        for number, layer in enumerate(layers):
            data = gzip.compress(layer, mtime=0) if number % 2 else layer
            parts.append(Descriptor(OCI_LAYER_GZIP if number % 2 else OCI_LAYER, *store.add(data)))
        found = Descriptor(OCI_CONFIG, *store.add(json.dumps(config).encode()))
        encoded = Manifest(found, tuple(parts)).encode()
        store.add(encoded)
        store.tag(Reference.parse("odd:1"), Descriptor.of(encoded, OCI_MANIFEST))
    return Image.get("odd:1")


def tree(image: Image, place: Path) -> dict[str, dict[str, Any]]:
    """The image as isobox unpacks it and an overlay shows it; without devices: a container has its own."""
    place.mkdir()
    folders: list[Path] = []
    for number, (layer, _) in enumerate(image._chosen.layers):
        folder = place / str(number)
        with image._store.open(layer.digest) as blob:
            unpack_layer(io.BufferedReader(blob), folder, keep_owners=ROOT, lowers=folders)
        folders.insert(0, folder)
    return merged(place / "merged", folders, "" if ROOT else ",userxattr")


def same(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> None:
    """Whether nothing but what is known to differ does; `theirs` is another program's tree."""
    theirs = dict(theirs)
    if DEVICE in theirs:
        assert theirs.pop(DEVICE)["mode"].startswith("c") and DEVICE not in ours
    for known in (*ours.values(), *theirs.values()):
        known["xattrs"].pop("user.rootlesscontainers", None)  # umoci's way to keep owners
        for scope in ("user", "trusted"):
            known["xattrs"].pop(f"{scope}.overlay.opaque", None)
    assert sorted(ours) == sorted(theirs)
    for found in (ours, theirs):
        found.pop(".")  # no layer says anything of it
    assert compared(ours, folders=False) == compared(theirs, folders=False)


class TestOursInTheirHands:
    def test_umoci(self, odd: Image, tmp_path: Path) -> None:
        odd.save(tmp_path / "folder", format="oci-dir")
        same(tree(odd, tmp_path / "ours"), by_umoci(tmp_path / "folder", "odd:1", tmp_path / "theirs"))

    def test_one_platform_in_umoci(self, odd: Image, tmp_path: Path) -> None:
        """Which takes an index of two for two images of one name."""
        store, here = Store.default(), evolve(odd._descriptor, platform=Platform.here())
        with store.lease():
            absent = Descriptor.of(b"absent", OCI_MANIFEST, platform=Platform("linux", "other"))
            index = Descriptor(OCI_INDEX, *store.add(Index((absent, here)).encode()))
            store.tag(Reference.parse("both:1"), index)
        folder = tmp_path / "folder"
        Image.get("both:1").save(folder, format="oci-dir", platform=str(Platform.here()))
        same(tree(odd, tmp_path / "ours"), by_umoci(folder, "both:1", tmp_path / "theirs"))

    @pytest.mark.parametrize("format", ["docker", "oci"])
    def test_podman(self, odd: Image, podman: Podman, tmp_path: Path, format: Any) -> None:
        odd.save(tmp_path / "odd.tar", format=format)
        podman("load", "-q", "-i", str(tmp_path / "odd.tar"))
        (found,) = json.loads(podman("image", "inspect", "odd:1"))
        assert f"sha256:{found['Id']}" == odd.id and found["RootFS"]["Layers"] == list(odd.layers)
        assert {name: found["Config"][name] for name in RUN} == RUN
        same(tree(odd, tmp_path / "ours"), podman.tree("odd:1"))

    def test_several_in_podman(self, odd: Image, podman: Podman, tmp_path: Path) -> None:
        busy = Image.load(archive(tmp_path / "busy.tar", base(), upper(), tags=("busy:1", "busy:2")))
        Image.save_all([busy, "odd:1"], tmp_path / "both.tar", format="docker")
        podman("load", "-q", "-i", str(tmp_path / "both.tar"))
        found = podman("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").split()
        assert dict(zip(found[::2], found[1::2], strict=True)) == {
            "localhost/busy:1": busy.id,
            "localhost/busy:2": busy.id,
            "localhost/odd:1": odd.id,
        }

    @pytest.mark.parametrize(
        ("format", "transport"),
        [("docker", "docker-archive"), ("docker", "oci-archive"), ("oci", "oci-archive"), ("oci-dir", "oci")],
    )
    def test_skopeo(self, odd: Image, tmp_path: Path, format: Any, transport: str) -> None:
        odd.save(tmp_path / "odd", format=format)
        source, target = f"{transport}:{tmp_path}/odd:odd:1", f"oci:{tmp_path}/copied:odd:1"
        options = [] if transport == "docker-archive" else ["--preserve-digests"]
        run(program("skopeo"), "copy", "-q", *options, source, target, TMPDIR=str(tmp_path))
        (copied,) = Store(tmp_path / "copied").images()
        assert copied.layers == odd.layers and copied.config.config == odd.config.config
        assert copied.digest == odd.digest or transport == "docker-archive"


def skopeo_docker(odd: Image, tmp_path: Path, path: Path) -> None:
    source = f"oci:{odd._store.path}:odd:1"
    run(program("skopeo"), "copy", "-q", source, f"docker-archive:{path}:odd:1", TMPDIR=str(tmp_path))


def skopeo_oci(odd: Image, tmp_path: Path, path: Path) -> None:
    source = f"oci:{odd._store.path}:odd:1"
    run(program("skopeo"), "copy", "-q", source, f"oci-archive:{path}:odd:1", TMPDIR=str(tmp_path))


def skopeo_folder(odd: Image, tmp_path: Path, path: Path) -> None:
    source = f"oci:{odd._store.path}:odd:1"
    run(program("skopeo"), "copy", "-q", source, f"oci:{path}:odd:1", TMPDIR=str(tmp_path))


class TestTheirsInOurs:
    @pytest.mark.parametrize("write", [skopeo_docker, skopeo_oci, skopeo_folder])
    def test_what_skopeo_copies(
        self, odd: Image, tmp_path: Path, write: Callable[[Image, Path, Path], None]
    ) -> None:
        write(odd, tmp_path, tmp_path / "theirs")
        store = Store(tmp_path / "store")
        copied = Image.load(tmp_path / "theirs", store=store)
        assert copied.references == ("odd:1",) and copied.id == odd.id and copied.layers == odd.layers
        assert [store.size(layer.digest) for layer, _ in copied._chosen.layers] == list(copied.layer_sizes)

    def test_what_umoci_makes(self, odd: Image, tmp_path: Path) -> None:
        """A layer of its own, with a whiteout, over ours."""
        folder = tmp_path / "folder"
        odd.save(folder, format="oci-dir")
        by_umoci(folder, "odd:1", tmp_path / "bundle")
        change(tmp_path / "bundle/rootfs")
        run(program("umoci"), "--log=error", "repack", "--image", f"{folder}:odd:2", str(tmp_path / "bundle"))
        made = {image.references: image for image in Image.load_all(folder, store=Store(tmp_path / "store"))}
        ours = tree(made[("odd:2",)], tmp_path / "ours")
        assert "added" in ours and "etc/gone" not in ours
        same(ours, by_umoci(folder, "odd:2", tmp_path / "again"))

    @pytest.mark.parametrize("format", ["docker-archive", "oci-archive", "oci-dir"])
    def test_what_podman_makes(self, rewritable: Image, podman: Podman, tmp_path: Path, format: str) -> None:
        """A layer of its own, with a whiteout, over ours."""
        rewritable.save(tmp_path / "odd.tar", format="docker")
        podman("load", "-q", "-i", str(tmp_path / "odd.tar"))
        script = """
            $podman create --name box odd:1 >/dev/null
            top=$($podman mount box)
            "$1" -c "$2" "$top"
            $podman umount box >/dev/null
            $podman commit -q box changed:1
            $podman save -q --format "$3" -o "$4" changed:1
        """
        podman.inside(script, sys.executable, CHANGE, format, str(tmp_path / "changed"))
        changed = Image.load(tmp_path / "changed", store=Store(tmp_path / "store"))
        assert changed.layers[: len(rewritable.layers)] == rewritable.layers
        ours = tree(changed, tmp_path / "ours")
        assert "added" in ours and "etc/gone" not in ours
        same(ours, podman.tree("changed:1"))


CHANGE = """
import os, sys
top = sys.argv[1]
os.unlink(f"{top}/etc/gone")
os.mkdir(f"{top}/added", 0o751)
with open(f"{top}/added/file", "wb") as file:
    file.write(b"x" * 100_000)
os.link(f"{top}/added/file", f"{top}/added/hard")
os.symlink("file", f"{top}/added/soft")
os.setxattr(f"{top}/added/file", "user.of", b"theirs")
os.utime(f"{top}/added/file", ns=(1_500_000_000_123_456_789, 1_500_000_000_123_456_789))
"""


def change(top: Path) -> None:
    run(sys.executable, "-c", CHANGE, str(top))


@pytest.mark.parametrize("writer", ["podman", "skopeo"])
def test_owners_inside(writer: str, tmp_path: Path, request: pytest.FixtureRequest, data: Path) -> None:
    """A real image through another program and back: what programs in a container see of it, owners too."""
    Image.load(archive(tmp_path / "busy.tar", base(), upper(), tags=("busy:1",)))
    script = "find /bin /data /srv -exec stat -c '%n %F %a %u:%g %Y %h' {} + | sort"

    def seen() -> str:
        with Container("busy:1", user="0", env={"PATH": "/bin"}) as box:
            return sh(box, f'/bin/busybox sh -c "{script}"')

    before = seen()
    assert ("/srv/mine regular file 600 1000:1000" in before) or not ROOT
    Image.get("busy:1").save(tmp_path / "ours.tar", format="docker")
    if writer == "podman":
        podman = request.getfixturevalue("podman")
        podman("load", "-q", "-i", str(tmp_path / "ours.tar"))
        podman("save", "-q", "-o", str(tmp_path / "theirs.tar"), "busy:1")
    else:
        theirs = f"docker-archive:{tmp_path}/theirs.tar:busy:1"
        run(
            program("skopeo"),
            "copy",
            "-q",
            f"docker-archive:{tmp_path}/ours.tar",
            theirs,
            TMPDIR=str(tmp_path),
        )
    Image.get("busy:1").remove()
    shutil.rmtree(data / "images")
    Image.load(tmp_path / "theirs.tar")
    assert seen() == before
