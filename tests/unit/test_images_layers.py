"""Layers as lower directories: whiteouts, opaque directories, attributes, digests, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archives import attributes_kept, entry, folder, link, packed
from isobox.discard import remove_tree
from isobox.errors import DigestMismatch, SetupError, UnpackError, UnsupportedError
from isobox.images.documents.digest import Digest
from isobox.images.layers import layer as layers
from isobox.images.layers.layer import LayerUnpacked, collect, unpack_layer
from isobox.images.layers.mounted import Mount, mount, possible
from isobox.images.layers.packed import pack_layer
from isobox.images.tar.ahead import Ahead
from programs import ROOT

Member = tuple[tarfile.TarInfo, bytes]
HARD = tarfile.LNKTYPE
OPAQUE = ".wh..wh..opq"


_as_files = False
_mounted: list[Mount] = []


@pytest.fixture(params=["folder", "file"])
def form(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers as directories, and as files that are mounted."""
    if request.param == "file":
        if not ROOT or not possible(str(tmp_path)):
            pytest.skip("nothing mounts a file here")
        monkeypatch.setattr(sys.modules[__name__], "_as_files", True)
    yield
    _mounted.clear()


def unpacked(tmp_path: Path, *members: Member, **options: Any) -> tuple[Path, LayerUnpacked]:
    """Unpack a layer of these; nothing may be left of one that is refused."""
    place = tmp_path / "layers"
    place.mkdir(exist_ok=True)
    before = sorted(os.listdir(place))
    into = place / f"layer{len(before)}"
    threads = threading.active_count()
    layer = io.BytesIO(packed(*members))
    if "lowers" in options:
        options["lowers"] = [f"{lower}/." for lower in options["lowers"]]  # one may be a link of /proc
    try:
        if _as_files and options.get("keep_owners", True):
            made = pack_layer(layer, into, **{key: options[key] for key in options if key != "keep_owners"})
            mounted = mount(str(into))
            assert mounted is not None
            _mounted.append(mounted)
            return Path(mounted.path), made
        made = unpack_layer(layer, into, **{"keep_owners": ROOT, **options})
    except BaseException:
        assert sorted(os.listdir(place)) == before
        raise
    finally:
        assert threading.active_count() == threads
    return into, made


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def open_up(path: Path) -> None:
    """Let an ordinary user look into directories that the layer closes to their owner too."""
    path.chmod(0o755)
    for above, folders, _ in os.walk(path):
        for each in (Path(above, name) for name in folders):
            if not each.is_symlink():
                each.chmod(0o755)


def is_opaque(path: Path) -> bool:
    names = ["user.overlay.opaque", *(["trusted.overlay.opaque"] if ROOT else [])]
    found = [name for name in names if name in os.listxattr(path) and os.getxattr(path, name) == b"y"]
    assert found in ([], names)
    return bool(found)


@pytest.fixture
def attributes(tmp_path: Path) -> None:
    attributes_kept(tmp_path)


@pytest.mark.usefixtures("form")
def test_whiteouts(tmp_path: Path) -> None:
    place, made = unpacked(
        tmp_path, folder("etc"), entry("etc/.wh.motd"), entry(".wh.srv"), entry("etc/f", b"x")
    )
    assert is_whiteout(place / "etc/motd") and is_whiteout(place / "srv")
    assert sorted(os.listdir(place)) == ["etc", "srv"] and sorted(os.listdir(place / "etc")) == ["f", "motd"]
    assert (made.whiteouts, made.opaque, made.hides_all, made.entries) == (2, 0, False, 4)


@pytest.mark.usefixtures("attributes", "form")
@pytest.mark.parametrize("order", [1, -1])
def test_what_is_deleted_and_made_anew(order: int, tmp_path: Path) -> None:
    """A directory in the place of one below must not be merged with it; a file hides all there is."""
    members = [folder("a"), entry("a/.wh.d"), folder("a/d"), entry("a/d/new", b"x"), entry("a/.wh.f")]
    place, made = unpacked(tmp_path, *[*members, entry("a/f", b"y")][::order])
    assert is_opaque(place / "a/d") and not is_opaque(place / "a")
    assert os.listdir(place / "a/d") == ["new"] and (place / "a/f").read_bytes() == b"y"
    assert (made.whiteouts, made.opaque) == (0, 1)


@pytest.mark.usefixtures("attributes", "form")
@pytest.mark.parametrize("order", [1, -1])
def test_opaque_directories(order: int, tmp_path: Path) -> None:
    members = [entry(f"a/{OPAQUE}"), folder("a/b"), folder("a/b/c"), entry("a/b/c/foo", b"x")]
    place, made = unpacked(tmp_path, *members[::order])
    assert is_opaque(place / "a") and not is_opaque(place / "a/b")
    assert os.listdir(place / "a") == ["b"] and made.opaque == 1 and not made.hides_all


@pytest.mark.usefixtures("attributes", "form")
def test_a_layer_that_hides_all_below(tmp_path: Path) -> None:
    place, made = unpacked(tmp_path, entry(OPAQUE), entry("f", b"x"))
    assert made.hides_all and is_opaque(place) and os.listdir(place) == ["f"]


@pytest.mark.usefixtures("form")
def test_a_whiteout_whose_directory_became_a_file(tmp_path: Path) -> None:
    place, made = unpacked(tmp_path, entry("d/.wh.x"), entry(f"d/{OPAQUE}"), entry("d", b"file"))
    assert (place / "d").read_bytes() == b"file" and made.whiteouts == made.opaque == 0


@pytest.mark.usefixtures("form")
def test_whiteouts_through_links_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/f").write_bytes(b"")
    place, _ = unpacked(
        tmp_path, link("l", "../../outside"), entry("l/.wh.f"), link("m", "/e"), entry("m/.wh.g")
    )
    assert is_whiteout(place / "outside/f") and is_whiteout(place / "e/g")
    assert os.listdir(tmp_path / "outside") == ["f"] and (tmp_path / "outside/f").is_file()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    "members",
    [
        [entry(".wh.")],
        [entry(".wh..")],
        [entry(".wh...")],
        [entry("a/.wh...")],
        [entry("a/.wh./b")],
        [entry("a/.wh.x/b")],
        [entry("a/.wh../b")],
        [entry(f"a/{OPAQUE}/b")],
        [folder(".wh.d")],
        [link(".wh.l", "x")],
        [link("l", ".wh.x"), entry("l/f")],
        [entry("f"), link("h", ".wh.f", HARD)],
        [entry("../.wh.x")],
        [entry("a/../.wh.x")],
    ],
    ids=lambda members: members[-1][0].name,
)
def test_names_that_whiteouts_do_not_have(members: list[Member], tmp_path: Path) -> None:
    with pytest.raises(UnpackError):
        unpacked(tmp_path, entry("first"), *members)


@pytest.mark.usefixtures("form")
def test_what_old_layers_have_of_aufs(tmp_path: Path) -> None:
    aufs = [folder(".wh..wh.plnk"), entry(".wh..wh.plnk/12.34", b"x"), entry(".wh..wh.aufs")]
    place, made = unpacked(tmp_path, *aufs, link(".wh.gone", ".wh..wh.aufs", HARD), entry("f"))
    assert sorted(os.listdir(place)) == ["f", "gone"] and is_whiteout(place / "gone") and made.whiteouts == 1


@pytest.mark.usefixtures("form")
def test_absolute_names_lie_below_the_root(tmp_path: Path) -> None:
    place, _ = unpacked(tmp_path, folder("/"), entry("/etc/f", b"x"), link("h", "/etc/f", HARD))
    assert (place / "etc/f").read_bytes() == (place / "h").read_bytes() == b"x"


@pytest.mark.usefixtures("form")
def test_hard_links(tmp_path: Path) -> None:
    place, _ = unpacked(tmp_path, entry("a/f", b"x"), link("b/g", "a/f", HARD), link("h", "./b/g", HARD))
    assert {(place / name).stat().st_ino for name in ("a/f", "b/g", "h")} == {(place / "h").stat().st_ino}
    for target in ("usr/bin/tool", "f2"):
        with pytest.raises(UnpackError, match="which this layer doesn't have"):
            unpacked(tmp_path, entry("f"), link("h", target, HARD))


@pytest.mark.usefixtures("attributes", "form")
def test_attributes(tmp_path: Path) -> None:
    ours = {"user.a": "1", "user.empty": "", "user.overlayish": "2"}
    theirs = {"user.overlay.opaque": "y", "user.overlay.redirect": "/etc", "trusted.overlay.opaque": "y"}
    theirs |= {"trusted.x": "1", "security.selinux": "a", "system.posix_acl_access": "b", "other": "c"}
    headers = {f"SCHILY.xattr.{name}": value for name, value in (ours | theirs).items()}
    file = entry("f", b"x", mode=0o444, pax_headers=headers)
    directory = folder("d", 0o555)
    directory[0].pax_headers = headers
    symlink = link("l", "f")
    symlink[0].pax_headers = headers
    place, made = unpacked(tmp_path, file, directory, symlink)
    for name in ("f", "d"):
        found = {key: os.getxattr(place / name, key).decode() for key in os.listxattr(place / name)}
        assert found == ours
    assert os.listxattr(place / "l", follow_symlinks=False) == []
    assert made.attributes == 2 * len(theirs) + len(headers)
    assert stat.S_IMODE((place / "f").stat().st_mode) == 0o444


@pytest.mark.usefixtures("form")
@pytest.mark.requires("root")
def test_capabilities_of_files_are_for_root_alone(tmp_path: Path) -> None:
    capability = "\x01\x00\x00\x02\x00\x20" + "\x00" * 14  # VFS_CAP_REVISION_2 with CAP_NET_RAW
    info, data = entry("ping", b"x", mode=0o755, uid=5, gid=6)
    info.pax_headers = {"SCHILY.xattr.security.capability": capability}
    place, made = unpacked(tmp_path, (info, data))
    assert os.getxattr(place / "ping", "security.capability") == capability.encode("latin-1")
    assert (place / "ping").stat().st_uid == 5 and made.attributes == 0
    place, made = unpacked(tmp_path, (info, data), keep_owners=False)
    assert os.listxattr(place / "ping") == [] and made.attributes == 1


@pytest.mark.usefixtures("form")
def test_owners_and_setuid_bits(tmp_path: Path) -> None:
    place, _ = unpacked(tmp_path, entry("su", b"x", mode=0o4755, uid=7, gid=8), keep_owners=ROOT)
    status = (place / "su").stat()
    assert stat.S_IMODE(status.st_mode) == (0o4755 if ROOT else 0o755)
    assert (status.st_uid, status.st_gid) == ((7, 8) if ROOT else (os.geteuid(), os.getegid()))


@pytest.mark.usefixtures("form")
def test_directories_that_are_closed_in_the_end(tmp_path: Path) -> None:
    """What is put into them comes after, and what is wrong with the layer after that."""
    closed = [folder("./", 0o500), folder("d", 0o000), folder("d/e", 0o100)]
    closed += [entry("d/e/f", b"x"), entry("d/.wh.g")]
    with pytest.raises(DigestMismatch):
        unpacked(tmp_path, *closed, diff_id=Digest.of(b""))
    place, _ = unpacked(tmp_path, *closed)
    assert stat.S_IMODE(place.stat().st_mode) == 0o500 and stat.S_IMODE((place / "d").stat().st_mode) == 0
    above, _ = unpacked(tmp_path, entry("d/new"), entry("d/e/new"), lowers=[place])
    assert stat.S_IMODE(above.stat().st_mode) == 0o500 and stat.S_IMODE((above / "d").stat().st_mode) == 0
    for path in (place, above):
        if not _as_files:
            (path / "d").chmod(0o700)
        assert stat.S_IMODE((path / "d/e").stat().st_mode) == (0o100 if path == place or ROOT else 0o755)
        if not _as_files:
            remove_tree(path)


@pytest.mark.usefixtures("form")
def test_device_nodes_are_left_out(tmp_path: Path) -> None:
    """One of 0:0 would be a whiteout."""
    nodes = [entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), entry("w", type=tarfile.CHRTYPE)]
    place, made = unpacked(tmp_path, *nodes, entry("f"))
    assert os.listdir(place) == ["f"] and made.devices == 2


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_the_diff_id(compress: Callable[[bytes], bytes], algorithm: str, tmp_path: Path) -> None:
    plain = packed(entry("f", b"x" * 300_000)) + bytes(5120)
    right = Digest(algorithm, hashlib.new(algorithm, plain).hexdigest())
    made = unpack_layer(io.BytesIO(compress(plain)), tmp_path / "a", keep_owners=False, diff_id=right)
    assert made.diff_id == right and (tmp_path / "a/f").stat().st_size == 300_000
    with pytest.raises(DigestMismatch) as caught:
        unpack_layer(io.BytesIO(compress(plain + b"\0")), tmp_path / "b", keep_owners=False, diff_id=right)
    assert caught.value.expected == str(right) and os.listdir(tmp_path) == ["a"]


def test_without_a_diff_id_it_is_found_out(tmp_path: Path) -> None:
    data = packed(entry("f", b"x"))
    made = unpack_layer(io.BytesIO(data), tmp_path / "a", keep_owners=False)
    assert made.diff_id == Digest.of(data)


def test_gzip_without_isal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gzip.compress(packed(entry("f", b"x" * 100_000)))
    for number, missing in enumerate((False, True)):
        if missing:
            monkeypatch.setitem(sys.modules, "isal.igzip", None)
        place = tmp_path / str(number)
        place.mkdir()
        unpack_layer(io.BytesIO(whole), place / "a", keep_owners=False)
        assert (place / "a/f").stat().st_size == 100_000
        for damaged in (whole[:-9], whole[:200] + b"\xff" * 20 + whole[220:], whole[:-8] + bytes(8)):
            with pytest.raises(UnpackError):
                unpack_layer(io.BytesIO(damaged), place / "b", keep_owners=False)
        assert os.listdir(place) == ["a"]


class Dribble(io.RawIOBase):
    """A stream that can't seek, gives little at a time and breaks after `most` bytes."""

    def __init__(self, data: bytes, most: int | None = None) -> None:
        self._file = io.BytesIO(data)
        self._left = most

    def read(self, size: int = -1, /) -> bytes:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise ConnectionResetError(104, "Connection reset by peer")
        return self._file.read(min(size, 7) if size >= 0 else 7)


def test_streams_that_come_in_bits(tmp_path: Path) -> None:
    data = gzip.compress(packed(entry("f", os.urandom(5000))))
    unpack_layer(Dribble(data), tmp_path / "a", keep_owners=False)
    assert (tmp_path / "a/f").stat().st_size == 5000
    threads = threading.active_count()
    with pytest.raises(SetupError):
        unpack_layer(Dribble(data, 100), tmp_path / "b", keep_owners=False)
    assert os.listdir(tmp_path) == ["a"] and threading.active_count() == threads


def test_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    data = packed(entry("f", b"x" * 3_000_000))
    made = unpack_layer(io.BytesIO(data), tmp_path / "a", keep_owners=False, diff_id=Digest.of(data))
    assert made.size == 3_000_000


def test_a_reader_that_is_left_early_ends() -> None:
    read: list[int] = []

    class Endless:
        def read(self, size: int = -1, /) -> bytes:
            read.append(size)
            return bytes(size)

    threads = threading.active_count()
    with Ahead(Endless(), hashlib.sha256()) as ahead:
        assert ahead.read()
    assert threading.active_count() == threads and len(read) < 20


@pytest.mark.usefixtures("form")
def test_directories_that_a_layer_has_no_entry_for(tmp_path: Path) -> None:
    """They cover those below: owner, mode and time are to be seen as they are there."""
    base = [folder("./", 0o711), folder("secret", 0o700), folder("secret/in", 0o750), folder("tmp", 0o1777)]
    for number, (info, _) in enumerate(base):
        info.mtime, info.uid = 1_000_000 + number, 40 + number
    lower, _ = unpacked(tmp_path, *base)
    middle, _ = unpacked(tmp_path, entry("secret/other"), lowers=[lower])
    upper, _ = unpacked(
        tmp_path, entry("secret/in/f", b"x"), entry("tmp/f"), entry("new/f"), lowers=[middle, lower]
    )
    for name in (".", "secret", "secret/in", "tmp"):
        below, above = (lower / name).stat(), (upper / name).stat()
        assert (above.st_mode, above.st_uid, above.st_mtime) == (below.st_mode, below.st_uid, below.st_mtime)
    assert stat.S_IMODE((upper / "new").stat().st_mode) == 0o755 and (upper / "new").stat().st_mtime == 0


@pytest.mark.usefixtures("attributes", "form")
@pytest.mark.parametrize(
    "middle",
    [
        [entry(".wh.d")],
        [entry("d", b"a file")],
        [entry(OPAQUE)],
        [link("d", "e")],
        [entry(".wh.d"), folder("x")],
    ],
    ids=["deleted", "a file", "opaque", "a link", "deleted beside others"],
)
def test_directories_that_are_hidden_lend_nothing(middle: list[Member], tmp_path: Path) -> None:
    lower, _ = unpacked(tmp_path, folder("d", 0o700))
    between, _ = unpacked(tmp_path, *middle)
    plain, _ = unpacked(tmp_path, entry("d/f"), lowers=[lower])
    hidden, _ = unpacked(tmp_path, entry("d/f"), lowers=[between, lower])
    own, _ = unpacked(tmp_path, entry("d/f"), entry(".wh.d"), lowers=[lower])
    assert stat.S_IMODE((plain / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE((hidden / "d").stat().st_mode) == stat.S_IMODE((own / "d").stat().st_mode) == 0o755


def test_file_systems_without_what_overlays_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: int) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            raise OSError(code, os.strerror(code))

        return call

    monkeypatch.setattr(os, "setxattr", refuse(95))
    with pytest.raises(UnsupportedError, match="opaque"):
        unpacked(tmp_path, entry(f"d/{OPAQUE}"))
    info, data = entry("f", b"x")
    info.pax_headers = {"SCHILY.xattr.user.a": "1"}
    assert unpacked(tmp_path, (info, data))[1].attributes == 1
    monkeypatch.setattr(os, "mknod", refuse(1))
    with pytest.raises(UnsupportedError, match="whiteouts"):
        unpacked(tmp_path, entry(".wh.x"))


VICTIM = """
import io, os, sys
from isobox.images.layers.layer import unpack_layer
class Stuck:
    def __init__(self, data): self.file = io.BytesIO(data)
    def read(self, size=-1, /):
        data = self.file.read(size)
        if not data:
            print("stuck", flush=True)
            sys.stdin.read()
        return data
unpack_layer(Stuck(sys.stdin.buffer.read(int(sys.argv[2]))), sys.argv[1], keep_owners=False)
"""


def test_what_a_killed_process_leaves_is_collected(tmp_path: Path) -> None:
    data = packed(entry("d/f", b"x" * 3_000_000))[:2_000_000]
    command = [sys.executable, "-c", VICTIM, str(tmp_path / "layer"), str(len(data))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdin is not None and victim.stdout is not None
        victim.stdin.write(data)
        victim.stdin.flush()
        assert victim.stdout.readline() == b"stuck\n"
        (left,) = os.listdir(tmp_path)
        assert left.startswith(".layer-")
        assert collect(tmp_path) == 0 and os.listdir(tmp_path) == [left]
        victim.send_signal(signal.SIGKILL)
    (tmp_path / left).chmod(0)  # as the root of a layer may be, just before it gets its name
    unpack_layer(io.BytesIO(packed(entry("f"))), tmp_path / "layer", keep_owners=False)
    assert collect(tmp_path) == 1 and os.listdir(tmp_path) == ["layer"]


def test_a_place_that_is_taken_or_missing(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    for place in (tmp_path / "layer", tmp_path / "no/layer"):
        with pytest.raises(SetupError):
            unpack_layer(io.BytesIO(packed(entry("f"))), place, keep_owners=False)
    assert os.listdir(tmp_path) == ["layer"] and os.listdir(tmp_path / "layer") == []


def test_a_directory_that_was_collected_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(prefix: str, dir: str) -> str:
        path = f"{dir}/{prefix}{len(made)}"
        made.append(path)
        if len(made) > 1:
            os.mkdir(path)  # the first is gone again
        return path

    monkeypatch.setattr(layers.tempfile, "mkdtemp", make)
    unpack_layer(io.BytesIO(packed(entry("f"))), tmp_path / "layer", keep_owners=False)
    assert len(made) == 2 and os.listdir(tmp_path) == ["layer"]


names = st.sampled_from(
    ["a", "b", "..", ".", "", "a/b", "l", "/a", ".wh.a", ".wh.b", OPAQUE, ".wh.", ".wh..."]
)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
members = st.one_of(
    st.builds(entry, paths), st.builds(folder, paths), st.builds(link, paths, paths, st.just(HARD)),
    st.builds(link, paths, paths),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(members, max_size=8))
def test_nothing_ever_lands_outside(tmp_path_factory: pytest.TempPathFactory, listed: list[Member]) -> None:
    base = tmp_path_factory.mktemp("layer")
    (base / "a").mkdir()
    try:
        place, made = unpacked(base, *listed)
    except (UnpackError, UnsupportedError):
        pass
    else:
        open_up(place)
        found = list(place.rglob("*"))
        assert not [path for path in found if path.name.startswith(".wh.")]
        assert sum(map(is_whiteout, found)) == made.whiteouts
    assert sorted(os.listdir(base)) == ["a", "layers"] and os.listdir(base / "a") == []


TREE = [folder("a"), folder("a/b"), entry("a/f", b"1"), entry("a/b/g", b"2"), folder("c"), entry("c/h")]
MARKS = [
    entry(f"a/{OPAQUE}"),
    entry(".wh.c"),
    entry("a/.wh.f"),
    entry("a/.wh.x"),
    entry("c/.wh.y"),
    entry(".wh.z"),
]


@pytest.mark.usefixtures("attributes", "form")
def test_the_order_of_whiteouts_is_nothing(tmp_path: Path) -> None:
    chance = random.Random(1)
    seen = set()
    for _ in range(30):
        chosen = [*TREE, *MARKS]
        chance.shuffle(chosen)
        place, made = unpacked(tmp_path, *chosen)
        tree = [
            (str(path.relative_to(place)), is_whiteout(path), path.is_dir() and is_opaque(path))
            for path in sorted(place.rglob("*"))
        ]
        seen.add((tuple(tree), made.whiteouts, made.opaque))
    assert len(seen) == 1
