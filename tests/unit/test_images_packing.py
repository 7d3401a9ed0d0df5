"""Layers as isobox writes them: read back by isobox and by Python, the same bytes for the same content."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archives import attributes_kept
from isobox.errors import ImageError
from isobox.images.layers.attributes import Owners, attributes
from isobox.images.layers.layer import unpack_layer
from isobox.images.layers.packing import Packing
from isobox.images.layers.unpacking import Place
from isobox.images.layers.upper import Below, UpperPacking
from isobox.images.tar.stream import TarStream
from isobox.images.tar.writer import BLOCK, END, Member, header
from programs import ROOT

OPAQUE = b"user.overlay.opaque"

names = st.binary(min_size=1, max_size=300).filter(
    lambda name: not set(name) & {0, 47} and name not in (b".", b"..")
)
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
ids = st.integers(0, 2**32 - 2)
members = st.builds(
    Member,
    name=paths,
    kind=st.sampled_from(["file", "directory", "symlink", "hardlink", "fifo"]),
    mode=st.integers(0, 0o7777),
    uid=ids,
    gid=ids,
    mtime=st.integers(-(10**19), 10**20),
    target=paths,
    xattrs=st.dictionaries(
        names.map(lambda name: (b"user." + name)[:255]), st.binary(max_size=200), max_size=3
    ),
)


def pack(folder: Path, **options: Any) -> bytes:
    out = io.BytesIO()
    fd = os.open(folder, os.O_RDONLY)
    try:
        Packing(out.write, Owners(), **options).run(fd)
    finally:
        os.close(fd)
    return out.getvalue()


def pack_upper(upper: Path, *lowers: Path, made: tuple[Place, ...] = (), opaque: bytes = OPAQUE) -> bytes:
    out = io.BytesIO()
    fd = os.open(upper, os.O_RDONLY)
    root = (stat.S_IMODE(os.fstat(fd).st_mode), os.geteuid(), os.getegid())
    below = Below([(str(path), Owners()) for path in lowers])
    try:
        UpperPacking(out.write, Owners(), below, opaque=opaque, made=made, root=root).run(fd)
    finally:
        os.close(fd)
    return out.getvalue()


def listed(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def unpacked(tmp_path: Path, data: bytes) -> Path:
    into = tmp_path / "unpacked"
    unpack_layer(io.BytesIO(data), into, keep_owners=ROOT)
    return into


def state(folder: Path) -> list[tuple[Any, ...]]:
    """Everything that a layer keeps of a tree."""
    found = []
    inodes: dict[int, str] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: object = (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        )
        kept = {} if path.is_symlink() else {name: os.getxattr(path, name) for name in os.listxattr(path)}
        name = str(path.relative_to(folder))
        first = inodes.setdefault(status.st_ino, name)
        found.append(
            (name, kind, oct(status.st_mode), status.st_uid, status.st_mtime_ns, content, kept, first)
        )
    return found


def example(folder: Path, order: int = 1) -> Path:
    """A tree with a bit of everything; `order` -1 makes it the other way round."""
    folder.mkdir()
    makers: list[Callable[[], object]] = [
        lambda: (folder / "dir").mkdir(),
        lambda: (folder / "file").write_bytes(b"content"),
        lambda: (folder / "empty").write_bytes(b""),
        lambda: (folder / "link").symlink_to("/etc/passwd"),
        lambda: os.mkfifo(folder / "pipe"),
        lambda: (folder / ("long" * 60)).write_bytes(b"x" * BLOCK),
        lambda: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).write_bytes(b"not UTF-8"),
    ]
    for make in makers[::order]:
        make()
    (folder / "dir/first").write_bytes(b"linked")
    os.link(folder / "dir/first", folder / "a link")
    (folder / "file").chmod(0o4755)
    (folder / "dir").chmod(0o1777)
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, ns=(order * 10**9, 1_600_000_000_123_456_789 + number), follow_symlinks=False)
    os.utime(folder, ns=(0, -1_500_000_000))
    return folder


class TestHeaders:
    @given(members)
    def test_read_back(self, made: Member) -> None:
        data = header(made) + END
        stream = TarStream(io.BytesIO(data), 1 << 30)
        (found,) = stream.entries()
        assert found.name.rstrip(b"/") == made.name.rstrip(b"/") and found.kind == made.kind
        assert (found.mode, found.uid, found.gid) == (made.mode, made.uid, made.gid)
        assert found.mtime == made.mtime and dict(found.xattrs) == dict(made.xattrs)
        if made.kind.endswith("link"):
            assert found.target == made.target
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            (info,) = tar.getmembers()
        assert os.fsencode(info.name) == made.name.rstrip(b"/") and (info.uid, info.mode) == (
            made.uid,
            made.mode,
        )

    def test_pax_where_needed_only(self) -> None:
        plain = Member(b"a" * 100, "file", mtime=10**18)
        assert len(header(plain)) == BLOCK
        assert len(header(Member(b"d" * 100 + b"/" + b"a" * 100, "file"))) == BLOCK
        for other in (
            Member(b"a" * 101, "file"),
            Member(b"a", "symlink", target=b"a" * 101),
            Member(b"a", "file", uid=8**7),
            Member(b"a", "file", size=8**11),
            Member(b"a", "file", mtime=1),
            Member(b"a", "file", mtime=-(10**9)),
            Member(b"a", "file", xattrs={b"user.a": b""}),
        ):
            assert len(header(other)) == 3 * BLOCK
        with pytest.raises(ImageError, match="too many"):
            header(Member(b"a", "file", xattrs={b"user.a%d" % n: bytes(60000) for n in range(20)}))


class TestTrees:
    def test_read_back(self, tmp_path: Path) -> None:
        folder = example(tmp_path / "tree")
        into = unpacked(tmp_path, pack(folder))
        expected = state(folder)
        if not ROOT:  # an ordinary user's layers have no set-id bits
            expected = [
                tuple(v.replace("0o1047", "0o1007") if k == 2 else v for k, v in enumerate(e))
                for e in expected
            ]
        assert state(into) == expected

    def test_attributes(self, tmp_path: Path) -> None:
        attributes_kept(tmp_path)
        (tmp_path / "tree/dir").mkdir(parents=True)
        (tmp_path / "tree/file").write_bytes(b"x")
        for name in ("dir", "file"):
            os.setxattr(tmp_path / "tree" / name, "user.a=%b", b"\0value\n")
            os.setxattr(tmp_path / "tree" / name, "user.overlay.opaque", b"y")
        into = unpacked(tmp_path, pack(tmp_path / "tree"))
        for name in ("dir", "file"):
            assert {n: os.getxattr(into / name, n) for n in os.listxattr(into / name)} == {
                "user.a=%b": b"\0value\n"
            }

    def test_the_same_bytes(self, tmp_path: Path) -> None:
        one, other = example(tmp_path / "one"), example(tmp_path / "other", -1)
        assert state(one) == state(other) and pack(one) == pack(other)
        (other / "file").write_bytes(b"other")
        assert pack(one) != pack(other)

    def test_newest(self, tmp_path: Path) -> None:
        one, other = tmp_path / "one", tmp_path / "other"
        for number, folder in enumerate((one, other)):
            folder.mkdir()
            for name, time in (("new", 2_000_000_000 + number), ("old", 5)):
                (folder / name).write_bytes(b"x")
                os.utime(folder / name, (time, time))
        assert pack(one, newest=10**18) == pack(other, newest=10**18)
        with tarfile.open(fileobj=io.BytesIO(pack(one, newest=10**18))) as tar:
            assert [info.mtime for info in tar] == [10**9, 10**9, 5]

    def test_sorted_by_bytes(self, tmp_path: Path) -> None:
        for name in ("b", "a", "a-", "a/x", "a.b", "é", "Z"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).mkdir() if name == "a" else (tmp_path / name).touch()
        assert listed(pack(tmp_path)) == [".", "Z", "a", "a/x", "a-", "a.b", "b", "é"]

    def test_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
            os.mknod("whiteout", stat.S_IFCHR, 0)
            assert listed(pack(tmp_path)) == ["."]
        assert listed(pack(tmp_path, layer=False)) == [".", "whiteout"]

    def test_mount_points(self, tmp_path: Path) -> None:
        (tmp_path / "proc/1").mkdir(parents=True)
        (tmp_path / "hosts").write_bytes(b"x")
        data = pack(tmp_path, mounts={(b"proc",), (b"hosts",)})
        assert listed(data) == [".", "hosts", "proc"]
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert tar.getmember("hosts").size == 0

    def test_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/.wh.b").touch()
        with pytest.raises(ImageError, match=r"/a/\.wh\.b.*rename"):
            pack(tmp_path)
        assert listed(pack(tmp_path, layer=False)) == [".", "a", "a/.wh.b"]
        with pytest.raises(ImageError, match="more than 1 files"):
            pack(tmp_path, most_entries=1)
        with open(tmp_path / "large", "wb") as file:
            file.truncate(1 << 41)
        with pytest.raises(ImageError, match="/large.*bytes"):
            pack(tmp_path, layer=False)
        deep = tmp_path / "deep"
        for _ in range(258):
            deep.mkdir()
            deep /= "d"
        with pytest.raises(ImageError, match="256 directories"):
            pack(tmp_path / "deep")

    @pytest.mark.requires("ordinary_user")
    def test_what_others_may_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret").touch(0)
        with pytest.raises(ImageError, match="can't read /secret"):
            pack(tmp_path)
        opened = []

        def reopen(path: bytes, flags: int) -> int:
            opened.append(path)
            (tmp_path / "secret").chmod(0o600)
            return os.open(tmp_path / os.fsdecode(path), flags)

        assert listed(pack(tmp_path, reopen=reopen)) == [".", "secret"] and opened == [b"secret"]


class Meddling:
    """Takes an archive, and does something to the tree at the header of a file."""

    def __init__(self, name: bytes, meddle: Callable[[], object]) -> None:
        self.data = b""
        self._name = name
        self._meddle: Callable[[], object] | None = meddle

    def write(self, data: bytes | memoryview) -> None:
        self.data += data
        if self._meddle is not None and self._name in bytes(data):
            self._meddle()
            self._meddle = None

    def run(self, folder: Path) -> dict[str, bytes]:
        """The files that came of it."""
        fd = os.open(folder, os.O_RDONLY)
        try:
            Packing(self.write, Owners()).run(fd)
        finally:
            os.close(fd)
        assert self._meddle is None and len(self.data) % BLOCK == 0
        with tarfile.open(fileobj=io.BytesIO(self.data)) as tar:
            files = [info for info in tar if info.isreg()]
            return {info.name: tar.extractfile(info).read() for info in files}  # type: ignore[union-attr]


class TestRaces:
    @pytest.mark.parametrize("size", [0, 1, 1000, 600_000])
    def test_sizes(self, tmp_path: Path, size: int) -> None:
        """A file is as long as its header said."""
        (tmp_path / "file").write_bytes(b"x" * 300_000)
        (tmp_path / "next").write_bytes(b"next")
        found = Meddling(b"file", lambda: os.truncate(tmp_path / "file", size)).run(tmp_path)
        assert found == {"file": (b"x" * size)[:300_000].ljust(300_000, b"\0"), "next": b"next"}

    def test_what_vanishes(self, tmp_path: Path) -> None:
        (tmp_path / "gone").mkdir()
        for name in ("file", "gone/a", "later"):
            (tmp_path / name).write_bytes(b"x")

        def remove() -> None:
            (tmp_path / "gone/a").unlink()
            (tmp_path / "gone").rmdir()
            (tmp_path / "later").unlink()
            (tmp_path / "new").write_bytes(b"x")

        assert Meddling(b"file", remove).run(tmp_path) == {"file": b"x"}

    @pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
    def test_what_is_replaced(self, tmp_path: Path, kind: str) -> None:
        """Between a look at the name and its opening: no link is followed, nothing is waited for."""
        target = tmp_path / "target"
        target.write_bytes(b"not of the tree")
        place = tmp_path / "tree"
        place.mkdir()
        (place / "file").write_bytes(b"x")
        data = io.BytesIO()

        class Late(Packing):
            def special(self, found: Any) -> bool:
                (place / "file").unlink()
                if kind == "link":
                    (place / "file").symlink_to(target)
                elif kind == "pipe":
                    os.mkfifo(place / "file")
                else:
                    (place / "file").mkdir()
                return False

        fd = os.open(place, os.O_RDONLY)
        try:
            Late(data.write, Owners()).run(fd)
        finally:
            os.close(fd)
        assert listed(data.getvalue()) == ["."]


class TestUppers:
    @pytest.fixture
    def trees(self, tmp_path: Path) -> tuple[Path, Path]:
        attributes_kept(tmp_path)
        lower, upper = tmp_path / "lower", tmp_path / "upper"
        (lower / "kept/old").mkdir(parents=True)
        (lower / "file").write_bytes(b"x")
        upper.mkdir()
        return lower, upper

    def test_whiteouts(self, trees: tuple[Path, Path]) -> None:
        lower, upper = trees
        os.mknod(upper / "file", stat.S_IFCHR, 0)
        (upper / "kept").mkdir()
        os.mknod(upper / "kept/old", stat.S_IFCHR, 0)
        data = pack_upper(upper, lower)
        assert listed(data) == [".wh.file", "kept", "kept/.wh.old"]
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            whiteout = tar.getmember(".wh.file")
            assert whiteout.isreg() and whiteout.size == 0

    def test_opaque(self, trees: tuple[Path, Path], tmp_path: Path) -> None:
        lower, upper = trees
        for name in ("kept", "new", "kept/-first"):
            (upper / name).mkdir()
            os.setxattr(upper / name, OPAQUE, b"y")
        # The kernel marks new directories as well: said is only what hides something.
        assert listed(pack_upper(upper, lower)) == ["kept", "kept/.wh..wh..opq", "kept/-first", "new"]
        # Where it is not overlayfs' own, it says nothing, and is not in the layer.
        data = pack_upper(upper, lower, opaque=b"trusted.overlay.opaque")
        assert listed(data) == ["kept", "kept/-first", "new"] and b"overlay" not in data
        other = tmp_path / "other"
        (other / "kept").mkdir(parents=True)
        assert "kept/.wh..wh..opq" in listed(pack_upper(upper, other, lower))

    def test_hidden_below(self, trees: tuple[Path, Path], tmp_path: Path) -> None:
        """What a layer in between hides is not there to be hidden."""
        lower, upper = trees
        (upper / "kept").mkdir()
        os.setxattr(upper / "kept", OPAQUE, b"y")
        between = tmp_path / "between"
        between.mkdir()
        os.mknod(between / "kept", stat.S_IFCHR, 0)
        assert listed(pack_upper(upper, between, lower)) == ["kept"]
        (between / "kept").unlink()
        (between / "kept").write_bytes(b"a file")
        assert listed(pack_upper(upper, between, lower)) == ["kept", "kept/.wh..wh..opq"]

    def test_what_isobox_made(self, trees: tuple[Path, Path]) -> None:
        lower, upper = trees
        made = ((b"kept", b"mnt"), (b"new", b"mnt"), (b"used",), (b"hosts",), (b"file",))
        for name in ("kept/mnt", "new/mnt", "used"):
            (upper / name).mkdir(parents=True)
        (upper / "hosts").touch()
        assert listed(pack_upper(upper, lower, made=made)) == []
        (upper / "file").write_bytes(b"the image's own, changed")
        (upper / "used/file").write_bytes(b"a program's")
        assert listed(pack_upper(upper, lower, made=made)) == ["file", "used", "used/file"]
        (upper / "kept").chmod(0o700)
        assert listed(pack_upper(upper, lower, made=made)) == ["file", "kept", "used", "used/file"]
        (upper / "new/mnt/x").touch()
        assert listed(pack_upper(upper, lower, made=made))[2:5] == ["new", "new/mnt", "new/mnt/x"]

    def test_root(self, trees: tuple[Path, Path]) -> None:
        lower, upper = trees
        out = io.BytesIO()
        fd = os.open(upper, os.O_RDONLY)
        try:
            packing = UpperPacking(
                out.write,
                Owners(),
                Below([(str(lower), Owners())]),
                opaque=OPAQUE,
                made=(),
                root=(0o123, 0, 0),
            )
            packing.run(fd)
        finally:
            os.close(fd)
        assert listed(out.getvalue()) == ["."]


class TestOwners:
    def test_maps(self) -> None:
        owners = Owners(((0, 1000, 1), (1, 100000, 10)), ((0, 100, 1),), unknown=7)
        assert [owners.uid(host) for host in (1000, 100000, 100009, 100010, 0)] == [0, 1, 10, 7, 7]
        assert [owners.gid(host) for host in (100, 0)] == [0, 7]

    def test_in_the_archive(self, tmp_path: Path) -> None:
        uid = tmp_path.stat().st_uid
        out = io.BytesIO()
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            Packing(out.write, Owners(((33, uid, 1),), ())).run(fd)
        finally:
            os.close(fd)
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
            (root,) = tar.getmembers()
        assert (root.uid, root.gid, root.uname) == (33, 65534, "")

    @pytest.mark.requires("root")
    def test_capabilities(self, tmp_path: Path) -> None:
        """Those of a container's root are bound to the id that it has outside."""
        plain = b"\1\0\0\2" + bytes([0, 4, 0, 0]) + bytes(12)
        bound = b"\1\0\0\3" + plain[4:] + (100000).to_bytes(4, "little")
        file = tmp_path / "file"
        file.touch()
        os.setxattr(file, "security.capability", bound)
        fd = os.open(file, os.O_RDONLY)
        try:
            for first, expected in ((0, plain), (5, bound[:20] + b"\5\0\0\0"), (None, None)):
                owners = Owners(((first, 100000, 1),) if first is not None else (), ())
                found = attributes(fd, [b"security.capability"], owners)
                assert found.get(b"security.capability") == expected
            assert attributes(fd, [b"security.capability"], Owners()) == {b"security.capability": bound}
        finally:
            os.close(fd)
