"""Layers of odd shapes, unpacked by isobox and by others: the trees are the same, file by file."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from archives import attributes_kept, packed
from isobox.images.layers.layer import unpack_layer
from isobox.images.layers.mounted import Mount, mount, possible
from isobox.images.layers.packed import pack_layer
from listing import listing
from patience import patient
from programs import ROOT
from requirements import program
from shapes import STACK, compared, dated, merged, shaped


@pytest.fixture(params=["folder", "file"])
def as_file(request: pytest.FixtureRequest, tmp_path: Path) -> bool:
    """Layers as directories, and as files that are mounted."""
    if request.param == "file" and not (ROOT and possible(str(tmp_path))):
        pytest.skip("nothing mounts a file here")
    return bool(request.param == "file")


FULL = """
import errno, gzip, io, os, sys
sys.path = {path}
from archives import entry, packed
from isobox import SetupError
from isobox.images.documents.digest import Digest
from isobox.images.layers.unpacked import Layers

def ensure(layers, below, *entries):
    data = packed(*entries)
    return layers.ensure(below, Digest.of(data), lambda: io.BytesIO(gzip.compress(data, 1)))

with Layers({folder!r} + "/layers") as layers, ensure(layers, None, entry("first", b"x")) as first:
    free = os.statvfs({folder!r}).f_bfree
    bombs = [entry("zeros", bytes(64 << 20))], [entry(str(number)) for number in range(3000)]
    for bomb in bombs * 2:
        try:
            ensure(layers, first, *bomb)
        except SetupError as error:
            assert error.errno == errno.ENOSPC and "isobox prune" in str(error), error
            print("full")
        assert layers.chain_ids() == [first.chain_id] and os.statvfs({folder!r}).f_bfree >= free - 4
    with ensure(layers, first, entry("second", b"x")) as second:
        assert len(second.lowers) == 2 and os.path.exists(first.lowers[0] + "/first")
"""


@pytest.mark.requires("user_namespaces")
def test_what_fills_the_disk(tmp_path: Path) -> None:
    """Bombs of bytes and of files: nothing of them is left, nothing earlier is lost, the next one fits."""
    code = FULL.format(path=sys.path, folder=str(tmp_path))
    namespaces = ["--mount"] if ROOT else ["--user", "--map-root-user", "--mount"]
    mounted = 'mount -t tmpfs -o size=4m,nr_inodes=2000 tmpfs "$0" && exec "$@"'
    command = ["unshare", *namespaces, "sh", "-c", mounted, str(tmp_path), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60))
    assert done.returncode == 0 and done.stdout == "full\n" * 4, (done.stdout, done.stderr)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_one_layer_as_gnu_tar_unpacks_it(format: int, as_file: bool, tmp_path: Path) -> None:
    attributes_kept(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(shaped())) as tar:
        whole = [(info, tar.extractfile(info).read() if info.isreg() else b"") for info in tar]  # type: ignore[union-attr]
    for info, _ in whole:
        info.mtime = int(info.mtime) if format == tarfile.GNU_FORMAT else info.mtime
    layer = packed(*whole, format=format)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "-p", *(["--numeric-owner", "--same-owner"] if ROOT else [])]
    subprocess.run(["tar", *options, "-C", theirs, "-x"], input=layer, check=True)
    if as_file:
        pack_layer(io.BytesIO(gzip.compress(layer)), tmp_path / "layer.erofs")
        mounted = mount(str(tmp_path / "layer.erofs"))
        assert mounted is not None
        ours = listing(mounted.path)
    else:
        unpack_layer(io.BytesIO(gzip.compress(layer)), tmp_path / "ours", keep_owners=ROOT)
        ours = listing(str(tmp_path / "ours"))
    assert compared(ours) == compared(listing(str(theirs)))


@pytest.mark.requires("user_namespaces", "overlay")
@pytest.mark.parametrize("options", [",userxattr", *([""] if ROOT else [])])
def test_layers_on_each_other_as_umoci_unpacks_them(options: str, as_file: bool, tmp_path: Path) -> None:
    attributes_kept(tmp_path)
    stack = [dated(*members) for members in STACK]
    image = f"{tmp_path}/image:latest"
    umoci = [program("umoci"), "--log=error"]
    subprocess.run([*umoci, "init", "--layout", f"{tmp_path}/image"], check=True)
    subprocess.run([*umoci, "new", "--image", image], check=True)
    folders: list[Path] = []
    mounts: list[Mount] = []
    for number, data in enumerate(stack):
        archive = tmp_path / f"{number}.tar"
        archive.write_bytes(data)
        subprocess.run([*umoci, "raw", "add-layer", "--image", image, archive], check=True)
        place = tmp_path / f"layer{number}"
        if as_file:
            pack_layer(io.BytesIO(data), place, lowers=[made.path for made in mounts])
            mounted = mount(str(place))
            assert mounted is not None
            mounts.insert(0, mounted)
        else:
            unpack_layer(io.BytesIO(data), place, keep_owners=ROOT, lowers=folders)
        folders.insert(0, place)
    rootless = [] if ROOT else ["--rootless"]
    subprocess.run([*umoci, "raw", "unpack", *rootless, "--image", image, tmp_path / "theirs"], check=True)
    theirs = listing(str(tmp_path / "theirs"))
    ours = merged(tmp_path / "merged", folders, options)
    for known in (*theirs.values(), *ours.values()):
        known["xattrs"].pop("user.rootlesscontainers", None)  # umoci's way to keep owners
        if not options:
            known["xattrs"].pop("user.overlay.opaque", None)  # hidden only from those whom it is for
    for tree in (ours, theirs):
        del tree["."]  # no layer says anything of it
    assert sorted(ours) == sorted(theirs)
    assert compared(ours, folders=False) == compared(theirs, folders=False)


def test_the_shapes_are_all_there(tmp_path: Path) -> None:
    attributes_kept(tmp_path)
    unpack_layer(io.BytesIO(shaped()), tmp_path / "ours", keep_owners=ROOT)
    tree = listing(str(tmp_path / "ours"))
    assert {known["mode"][0] for known in tree.values()} == set("d-lp")
    assert tree["usr/bin/ping6"]["same"] == "usr/bin/ping"
    assert len([known for known in tree.values() if known["xattrs"]]) == (4 if ROOT else 2)
    assert os.fsdecode(b"\xff\xfe") in tree
