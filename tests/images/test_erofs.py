"""Layers as EROFS files: what the kernel and erofs-utils read of them is what the directory form has."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archives import attributes_kept, entry, folder, link, packed
from isobox.errors import UnpackError
from isobox.images.layers.layer import unpack_layer
from isobox.images.layers.mounted import mount, possible
from isobox.images.layers.packed import pack_layer
from listing import listing
from programs import ROOT
from requirements import program

Member = tuple[tarfile.TarInfo, bytes]
HARD = tarfile.LNKTYPE
OPAQUE = ".wh..wh..opq"


def dated(*members: Member) -> bytes:
    """A layer in which everything has a time and an owner of its own."""
    for number, (info, _) in enumerate(members):
        info.mtime = 1_600_000_000.25 + number  # type: ignore[assignment]
        info.uid, info.gid = (70_000 + number, 80_000 + number) if ROOT else (0, 0)
    return packed(*members)


def named(count: int, length: int) -> list[Member]:
    """Files of one directory in no order, some before "." and some beyond ASCII."""
    chance = random.Random(count)
    starts = ["", "!", "-", ".a", "Z", "z", "\udcff"]
    names = [f"{chance.choice(starts)}{number:0{length}}" for number in range(count)]
    chance.shuffle(names)
    return [entry(f"d/{name}", name.encode("utf-8", "surrogateescape")) for name in names]


def sized(*sizes: int) -> list[Member]:
    return [entry(f"f{size}", random.Random(size).randbytes(size), mode=0o640) for size in sizes]


def attributed(member: Member, **values: str) -> Member:
    member[0].pax_headers = {f"SCHILY.xattr.user.{name}": value for name, value in values.items()}
    return member


SHAPES = {
    "nothing": [],
    "kinds": [
        folder("./", 0o711),
        folder("a", 0o1777),
        folder("a/b", 0o500),
        entry("a/b/f", b"x" * 5000, mode=0o4755 if ROOT else 0o755),
        link("a/b/g", "a/b/f", HARD),
        link("h", "a/b/f", HARD),
        link("s", "a/b"),
        link("s-too", "s", HARD),
        link("long", "t" * 4000),
        link("longer", "u/" * 1000),
        entry("pipe", type=tarfile.FIFOTYPE, mode=0o622),
        entry("n" * 255, b"a long name"),
        entry("late/in/no/entry", b"x"),
    ],
    "sizes": sized(0, 1, 100, 1900, 1984, 1985, 2048, 4032, 4033, 4095, 4096, 4097, 8192, 70_000, 300_001),
    "a directory of many blocks": named(700, 40),
    "a directory of whole blocks": [entry(f"d/{number:0244}") for number in range(15 + 16 * 3)],
    "directories in each other": [folder("/".join(["d" * 15] * depth), 0o755) for depth in range(1, 200)],
    "attributes": [
        attributed(entry("f", b"x" * 3000), a="1", empty="", long="v" * 2500),
        attributed(folder("d"), where="here"),
        attributed(folder("./"), root="too"),
        *[attributed(entry(f"g{n}", b"t" * n), **{f"k{k}": "v" * k for k in range(n)}) for n in range(40)],
    ],
    "replaced": [
        entry("f", b"old"), link("g", "f", HARD), link("kept", "f", HARD), entry("f", b"new"),
        folder("d"), entry("d", b"a file"), link("l", "f"), folder("l"), entry("l/in", b"x"),
        link("g", "l/in", HARD),
    ],
}  # fmt: skip


@pytest.fixture
def kernel(tmp_path: Path) -> None:
    """Skip a test where this process can't mount what it writes here."""
    if not ROOT or not possible(str(tmp_path)):
        pytest.skip("nothing mounts a file here")


def both(tmp_path: Path, layer: bytes) -> tuple[Path, Path]:
    """The layer as a directory and as a file."""
    made = unpack_layer(io.BytesIO(layer), tmp_path / "folder", keep_owners=ROOT)
    assert pack_layer(io.BytesIO(layer), tmp_path / "layer.erofs") == made
    return tmp_path / "folder", tmp_path / "layer.erofs"


def seen(top: str) -> dict[str, Any]:
    """`listing`, how many names everything has, and all attributes; of a whiteout only that it is one."""
    tree: dict[str, Any] = listing(top)
    for path, known in tree.items():
        if known["mode"].startswith("c"):
            known.clear()
        else:
            known["names"] = os.lstat(f"{top}/{path}").st_nlink
            known["all"] = sorted(os.listxattr(f"{top}/{path}", follow_symlinks=False))
    return tree


@pytest.mark.parametrize("shape", SHAPES)
def test_as_erofs_utils_extracts_it(shape: str, tmp_path: Path) -> None:
    attributes_kept(tmp_path)
    directory, file = both(tmp_path, dated(*SHAPES[shape]))
    fsck = [program("fsck.erofs"), f"--extract={tmp_path}/theirs", "--preserve-perms"]
    fsck += ["--preserve-owner"] if ROOT else []
    done = subprocess.run([*fsck, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    trees = [listing(str(path)) for path in (directory, tmp_path / "theirs")]
    for known in (known for tree in trees for known in tree.values()):
        known["xattrs"] = {}  # this version doesn't extract them
        known["mode"] = known["mode"].replace("s", "x", 1)  # gives files their owner after their mode
        known.pop("same", None)
        known["mtime"] = known["mtime"] if ROOT and not known["mode"].startswith("l") else 0
    assert trees[0] == trees[1]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("shape", SHAPES)
def test_as_the_kernel_shows_it(shape: str, tmp_path: Path) -> None:
    attributes_kept(tmp_path)
    directory, file = both(tmp_path, dated(*SHAPES[shape]))
    mounted = mount(str(file))
    assert mounted is not None
    assert seen(mounted.path) == seen(str(directory))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_files(format: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    chance = random.Random(5)
    for name, size in (("one", 50_000_000), ("odd", 1_234_567), ("hole", 9_999_999), ("end", 8192)):
        with open(tmp_path / "in" / name, "wb") as file:
            file.truncate(size)
            for _ in range(0 if name == "hole" else 12):
                file.seek(chance.randrange(size))
                file.write(chance.randbytes(chance.choice([1, 100, 4096, 20_000]))[: size - file.tell()])
    for path in (tmp_path / "in", *(tmp_path / "in").iterdir()):
        os.utime(path, (1, 1))
    command = [program("tar"), "--sparse", f"--format={format}", "-C", tmp_path / "in", "-c", "."]
    layer = subprocess.run(command, check=True, capture_output=True).stdout
    directory, file_ = both(tmp_path, layer)
    assert file_.stat().st_size < 2 << 20
    mounted = mount(str(file_))
    assert mounted is not None
    assert listing(mounted.path) == listing(str(directory)) == listing(str(tmp_path / "in"))
    subprocess.run([program("fsck.erofs"), "--extract", file_], check=True, capture_output=True)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("mtime", [-1, -1.5, 0.000000001, 2**33, 2**40])
def test_odd_times(mtime: float, tmp_path: Path) -> None:
    info, _ = entry("f")
    info.pax_headers = {"mtime": f"{mtime:.9f}"}
    pack_layer(io.BytesIO(packed((info, b""))), tmp_path / "layer.erofs")
    mounted = mount(str(tmp_path / "layer.erofs"))
    assert mounted is not None
    assert os.stat(f"{mounted.path}/f").st_mtime_ns == round(mtime * 10**9)


names = st.sampled_from(["a", "b", ".", "a/b", "l", "/a", "a/b/c", ".wh.a", "a/.wh.b", OPAQUE, f"a/{OPAQUE}"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
members = st.one_of(
    st.builds(entry, paths, st.sampled_from([b"", b"x"])),
    st.builds(folder, paths, st.sampled_from([0o755, 0o700])),
    st.builds(link, paths, paths, st.just(HARD)),
    st.builds(link, paths, paths),
)


@pytest.mark.usefixtures("kernel")
@settings(max_examples=120, deadline=None)
@given(st.lists(members, min_size=1, max_size=7))
def test_any_layer_is_the_same_in_both_forms(
    tmp_path_factory: pytest.TempPathFactory, listed: list[Member]
) -> None:
    tmp_path = tmp_path_factory.mktemp("layer")
    layer = dated(*listed)
    try:
        made = unpack_layer(io.BytesIO(layer), tmp_path / "folder", keep_owners=True)
    except UnpackError as error:
        with pytest.raises(UnpackError) as raised:
            pack_layer(io.BytesIO(layer), tmp_path / "layer.erofs")
        assert str(raised.value) == str(error) and os.listdir(tmp_path) == []
        return
    assert pack_layer(io.BytesIO(layer), tmp_path / "layer.erofs") == made
    mounted = mount(str(tmp_path / "layer.erofs"))
    assert mounted is not None
    assert seen(mounted.path) == seen(str(tmp_path / "folder"))
