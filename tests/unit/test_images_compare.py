"""What one image has otherwise than another: layers laid on one another as an overlay shows them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from archives import entry, folder, link, packed
from isobox import Image, ImageError, UnpackError
from isobox.images.compare import between, of_the_last
from isobox.images.documents.digest import Digest
from isobox.images.layers.listed import list_layer
from made import archive

BASE = packed(
    folder("./"),
    folder("etc", mode=0o750),
    entry("etc/kept", b"kept", mtime=1),
    entry("etc/gone", b"gone"),
    folder("data"),
    entry("data/old", b"old"),
    folder("data/deep"),
    entry("data/deep/old", b"old"),
    link("link", "etc"),
    folder("tree"),
    entry("tree/a", b"a"),
    entry("file", b"file"),
    entry("one", b"same"),
)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def image(tmp_path: Path, name: str, *layers: bytes) -> Image:
    return Image.load(archive(tmp_path / "image.tar", *layers, tags=(name,), run={}))


def found(tmp_path: Path, *layers: bytes, base: tuple[bytes, ...] = (BASE,)) -> list[str]:
    """What layers on top of `base` change, in both ways that it can be asked for."""
    first, second = image(tmp_path, "a:1", *base), image(tmp_path, "a:2", *base, *layers)
    changes = between(first._store, first._chosen, second._chosen)
    if len(layers) == 1:
        assert of_the_last(second._store, second._chosen) == changes
    back = between(first._store, second._chosen, first._chosen)
    assert named(back, "modified") == named(changes, "modified")
    for one, other in ((back, changes), (changes, back)):  # of what is deleted, the topmost stands for all
        stand = named(one, "deleted") | named(one, "modified")
        assert all(stand & {path, *map(str, Path(path).parents)} for path in named(other, "added"))
        assert named(one, "deleted") <= named(other, "added")
    return [f"{kind[0].upper()} {path}" for kind, path in changes]


def named(changes: list[tuple[str, str]], kind: str) -> set[str]:
    return {path for found, path in changes if found == kind}


LAYERS: dict[str, tuple[list[Any], list[str]]] = {
    "nothing": ([], []),
    "the same again, at another time": (
        [folder("etc", mode=0o750), entry("etc/kept", b"kept", mtime=9), link("link", "etc")],
        [],
    ),
    "a directory without an entry": ([entry("etc/new", b"")], ["A /etc/new"]),
    "a directory below one that is new": (
        [entry("new/deep/x", b"")],
        ["A /new", "A /new/deep", "A /new/deep/x"],
    ),
    "content": ([entry("etc/kept", b"KEPT")], ["M /etc/kept"]),
    "a mode": ([entry("etc/kept", b"kept", mode=0o600)], ["M /etc/kept"]),
    "an owner": ([entry("etc/kept", b"kept", uid=7)], ["M /etc/kept"]),
    "a group, of a directory": ([entry("etc", type=tarfile.DIRTYPE, mode=0o750, gid=7)], ["M /etc"]),
    "an attribute": (
        [entry("etc/kept", b"kept", pax_headers={"SCHILY.xattr.user.a": "1"})],
        ["M /etc/kept"],
    ),
    "the root": ([folder("./", mode=0o700)], ["M /"]),
    "a whiteout": ([entry("etc/.wh.gone")], ["D /etc/gone"]),
    "a whiteout of what isn't there": ([entry("etc/.wh.none"), entry("nowhere/.wh.x")], ["A /nowhere"]),
    "a whiteout of a directory": ([entry(".wh.data")], ["D /data"]),
    "deleted and made again": (
        [entry(".wh.data"), folder("data"), entry("data/old", b"old")],
        ["D /data/deep"],
    ),
    "an opaque directory": (
        [folder("data"), entry("data/.wh..wh..opq"), entry("data/new", b"")],
        ["D /data/deep", "A /data/new", "D /data/old"],
    ),
    "an opaque root": (
        [entry(".wh..wh..opq"), entry("one", b"same")],
        ["D /data", "D /etc", "D /file", "D /link", "D /tree"],
    ),
    "a file in the place of a directory": ([entry("tree", b"")], ["M /tree"]),
    "a directory in the place of a file": ([folder("file"), entry("file/x", b"")], ["M /file", "A /file/x"]),
    "a directory in the place of a link": ([entry("link/x", b"")], ["M /link", "A /link/x"]),
    "a link elsewhere": ([link("link", "data")], ["M /link"]),
    "a hard link": (
        [entry("one", b"same"), link("two", "one", tarfile.LNKTYPE)],
        ["A /two"],
    ),
    "a link on the way": (
        [folder("real"), link("way", "real"), entry("way/x", b"")],
        ["A /real", "A /real/x", "A /way"],
    ),
    "an entry twice": ([entry("one", b"other"), entry("one", b"same")], []),
    "a fifo": ([entry("one", type=tarfile.FIFOTYPE)], ["M /one"]),
    "a device, which nobody has": (
        [entry("one", type=tarfile.CHRTYPE), entry("new", type=tarfile.CHRTYPE)],
        [],
    ),
    "a name that is no text": ([entry("caf\udce9", b"")], ["A /caf\udce9"]),
}


@pytest.mark.parametrize("shape", LAYERS)
def test_of_a_layer(shape: str, tmp_path: Path) -> None:
    entries, changes = LAYERS[shape]
    assert found(tmp_path, packed(*entries)) == changes


def test_of_several_layers(tmp_path: Path) -> None:
    """What one adds and the next takes away is no change, and what a third one says counts most."""
    above = [
        packed(entry("etc/new", b"1"), entry(".wh.tree"), entry("etc/kept", b"2")),
        packed(entry("etc/.wh.new"), folder("tree"), entry("tree/b", b"")),
        packed(entry("etc/kept", b"kept"), folder("data/deep", mode=0o711)),
    ]
    assert found(tmp_path, *above) == ["M /data/deep", "D /tree/a", "A /tree/b"]


def test_images_that_share_nothing(tmp_path: Path) -> None:
    """What counts is what is to be seen."""
    again = packed(*[(info, file) for info, file in unpacked(BASE)], format=tarfile.GNU_FORMAT)
    first, second = image(tmp_path, "a:1", BASE), image(tmp_path, "a:2", again)
    assert first.layers != second.layers
    assert between(first._store, first._chosen, second._chosen) == []


def unpacked(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [
            (info, file.read() if (file := tar.extractfile(info)) else b"")
            for info in tar
            if not info.issym()
        ] + [(info, b"") for info in tar if info.issym()]


def test_sparse_files(tmp_path: Path) -> None:
    """A hole is as good as zeros."""
    place = tmp_path / "f"
    with open(place, "wb") as file:
        for at in (0, 1 << 20):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(3 << 20)
    layers = []
    for option in ("--sparse", "--no-same-owner"):
        command = ["tar", option, "--format=posix", "-C", tmp_path, "-cf", tmp_path / "f.tar", "f"]
        subprocess.run(command, check=True)
        layers.append((tmp_path / "f.tar").read_bytes())
    assert len(layers[0]) < 100_000 < len(layers[1])
    assert found(tmp_path, layers[1], base=(layers[0],)) == []
    place.write_bytes(b"data")
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "f.tar", "f"], check=True)
    assert found(tmp_path, (tmp_path / "f.tar").read_bytes(), base=(layers[0],)) == ["M /f"]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([entry("a", b""), entry("a/b", b"")], "File exists"),
        ([link("a", "none", tarfile.LNKTYPE)], "doesn't have"),
        ([entry("x" * 256, b"")], "name too long"),
        ([folder("a"), entry("a/b", b""), entry("a", b"")], "not empty"),
        ([entry("../x", b"")], r"'\.\.'"),
        ([entry("/".join("d" * 300), b"")], "directories deep"),
        ([entry("a", b""), entry("b", b""), entry("c", b"")], "more than 2 entries"),
    ],
)
def test_what_is_no_layer(entries: list[Any], text: str) -> None:
    """The same is refused as where it is unpacked."""
    data = packed(*entries)
    with pytest.raises(UnpackError, match=text):
        list_layer(io.BytesIO(data), Digest.of(data), 2 if len(entries) == 3 and "entries" in text else 100)


def test_the_deepest_tree(tmp_path: Path) -> None:
    names = "/".join("d" * 256)
    assert len(found(tmp_path, packed(folder(names)))) == 256


def test_damaged_and_missing(tmp_path: Path, data: Path) -> None:
    first, second = image(tmp_path, "a:1", BASE), image(tmp_path, "a:2", BASE, packed(entry("new", b"n")))
    blob = data / "images/blobs" / str(second._chosen.layers[1][0].digest).replace(":", "/")
    content = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(content.replace(b"new", b"old"))
    with pytest.raises(ImageError):
        between(first._store, first._chosen, second._chosen)
    blob.unlink()
    with pytest.raises(ImageError, match="lacks the layer sha256:.* pull or load"):
        between(first._store, first._chosen, second._chosen)
    assert between(first._store, first._chosen, first._chosen) == []
