from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobox.files import copy_in, copy_out, read_bytes, write_bytes
from leftovers import close_shared


class PlainDirectory:
    """`Inside` on a directory of the host: no container, the same interface."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _at(self, path: str) -> str:
        return f"{self.root}/{path.lstrip('/')}"

    def open(self, path: str, flags: int, mode: int = 0o666, *, base: int = 0) -> int:
        return os.open(self._at(path), flags, mode)

    def mkdir(self, path: str, mode: int = 0o777, *, base: int = 0) -> None:
        os.mkdir(self._at(path), mode)

    def symlink(self, target: str, path: str, *, base: int = 0) -> None:
        os.symlink(target, self._at(path))

    def unlink(self, path: str, *, base: int = 0) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str, *, base: int = 0) -> None:
        os.rmdir(self._at(path))


@pytest.fixture
def box(tmp_path: Path) -> PlainDirectory:
    (tmp_path / "box").mkdir()
    return PlainDirectory(tmp_path / "box")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "host").mkdir()
    return tmp_path / "host"


def listing(root: Path) -> dict[str, tuple[int, bytes | str | None, int]]:
    """Path → (type and mode, contents or target, mtime) of everything below."""
    found: dict[str, tuple[int, bytes | str | None, int]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: bytes | str | None = None
        if path.is_symlink():
            found[str(path.relative_to(root))] = (stat.S_IFLNK, os.readlink(path), 0)
            continue
        if path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (status.st_mode, content, status.st_mtime_ns)
    return found


def make_tree(root: Path) -> None:
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "sub" / "deep" / "file").write_bytes(b"deep")
    (root / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("/etc/passwd")
    (root / "broken").symlink_to("nowhere")
    (root / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"")
    (root / "sub").chmod(0o750)
    os.utime(root / "run.sh", ns=(10**18, 10**18 + 123))
    os.utime(root / "sub", ns=(10**18, 10**18))


def test_bytes(box: PlainDirectory) -> None:
    write_bytes(box, "/f", b"hello", 0o600)
    assert read_bytes(box, "/f") == b"hello"
    write_bytes(box, "/f", bytearray(b"bye"), 0o777)
    assert read_bytes(box, "/f", limit=3) == b"bye"
    assert stat.S_IMODE((box.root / "f").stat().st_mode) == 0o600
    write_bytes(box, "/empty", b"")
    assert read_bytes(box, "/empty") == b""
    with pytest.raises(OSError, match="more than the limit") as caught:
        read_bytes(box, "/f", limit=2)
    assert caught.value.errno == errno.EFBIG


def test_files_that_say_they_are_empty() -> None:
    box = PlainDirectory(Path("/"))
    assert read_bytes(box, "/proc/version").startswith(b"Linux")
    with pytest.raises(OSError, match="more than the limit"):
        read_bytes(box, "/proc/version", limit=5)


def test_a_file_of_holes_does_not_fill_the_memory(box: PlainDirectory) -> None:
    with open(box.root / "huge", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="holes"):
        read_bytes(box, "/huge")


def test_what_is_no_regular_file(box: PlainDirectory, host: Path) -> None:
    os.mkfifo(box.root / "fifo")
    (box.root / "dir").mkdir()
    (box.root / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(box.root / "socket"))
        for name in ("fifo", "dir", "null", "socket"):
            with pytest.raises(OSError, match="regular|directory|Is a"):
                read_bytes(box, name)
            with pytest.raises(OSError, match="regular|directory|Is a"):
                write_bytes(box, name, b"x")
            if name in ("fifo", "socket"):
                copy_out(box, name, host / "out")
                assert not (host / "out").exists()
        copy_out(box, "/", host / "all")
    assert sorted(os.listdir(host / "all")) == ["dir", "null"]


def test_missing(box: PlainDirectory, host: Path) -> None:
    for action in (
        lambda: read_bytes(box, "/no"),
        lambda: write_bytes(box, "/no/file", b""),
        lambda: copy_out(box, "/no", host),
        lambda: copy_in(box, host / "no", "/"),
        lambda: copy_in(box, host, "/no/deeper"),
    ):
        with pytest.raises(FileNotFoundError):
            action()
    assert os.listdir(host) == []
    assert os.listdir(box.root) == []


def test_trees_both_ways(box: PlainDirectory, host: Path) -> None:
    make_tree(host)
    before = listing(host)
    copy_in(box, host, "/tree")
    assert listing(box.root / "tree") == before
    copy_out(box, "/tree", host / "back")
    assert listing(host / "back") == before


def test_where_a_copy_lands(box: PlainDirectory, host: Path) -> None:
    make_tree(host)
    (box.root / "dir").mkdir()
    copy_in(box, host, "/dir")
    assert (box.root / "dir" / "host" / "run.sh").exists()
    copy_in(box, f"{host}/.", "/dir")
    assert (box.root / "dir" / "run.sh").exists()
    copy_in(box, host / "run.sh", "/dir/sub")
    assert (box.root / "dir" / "sub" / "run.sh").exists()
    copy_in(box, host / "run.sh", "/renamed")
    assert (box.root / "renamed").read_bytes() == b"#!/bin/sh\n"
    copy_in(box, f"{host}/", "/slash")
    assert (box.root / "slash" / "run.sh").exists()
    with pytest.raises(NotADirectoryError):
        copy_in(box, host / "run.sh", "/renamed/")
    with pytest.raises(NotADirectoryError):
        copy_in(box, host, "/renamed")

    out = host / "out"
    out.mkdir()
    copy_out(box, "/dir", out)
    assert (out / "dir" / "run.sh").exists()
    copy_out(box, "/dir/.", out)
    assert (out / "run.sh").exists()
    copy_out(box, "/renamed", out / "again")
    assert (out / "again").read_bytes() == b"#!/bin/sh\n"
    copy_out(box, "/dir", out)  # merges
    copy_out(box, "/renamed", str(out) + "/")
    assert (out / "renamed").exists()


def test_the_current_directory_as_the_source(
    box: PlainDirectory, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(host)
    (box.root / "d").mkdir()
    monkeypatch.chdir(host)
    copy_in(box, ".", "/d")
    copy_in(box, "run.sh", "/one")
    assert (box.root / "d" / "run.sh").exists()
    assert (box.root / "one").exists()
    monkeypatch.chdir(host / "sub")
    copy_in(box, "..", "/d")
    assert (box.root / "d" / "host" / "run.sh").exists()


def test_nothing_is_written_through_a_link_on_the_host(box: PlainDirectory, host: Path) -> None:
    victim = host / "victim"
    victim.mkdir()
    (victim / "f").write_bytes(b"safe")
    out = host / "out"
    out.mkdir()
    (box.root / "t").mkdir()
    (box.root / "t" / "f").write_bytes(b"evil")
    (out / "t").mkdir()
    (out / "t" / "f").symlink_to(victim / "f")
    copy_out(box, "/t", out)
    assert (victim / "f").read_bytes() == b"safe"
    assert (out / "t" / "f").read_bytes() == b"evil"
    # A directory of the same name as a link that an earlier copy left.
    (out / "t" / "d").symlink_to(victim)
    (box.root / "t" / "d").mkdir()
    (box.root / "t" / "d" / "f").write_bytes(b"evil")
    with pytest.raises(OSError, match="d"):
        copy_out(box, "/t", out)
    assert (victim / "f").read_bytes() == b"safe"


def test_links_are_links(box: PlainDirectory, host: Path) -> None:
    (box.root / "secret").symlink_to("/etc/passwd")
    copy_out(box, "/secret", host / "s")
    assert os.readlink(host / "s") == "/etc/passwd"
    (host / "file").write_bytes(b"old")
    copy_out(box, "/secret", host / "file")
    assert os.readlink(host / "file") == "/etc/passwd"
    (box.root / "target").write_bytes(b"keep")
    (box.root / "l").symlink_to("target")
    (host / "new").write_bytes(b"new")
    copy_in(box, host / "new", "/l")
    assert (box.root / "target").read_bytes() == b"keep"


def test_setuid_does_not_leave(box: PlainDirectory, host: Path) -> None:
    (box.root / "su").write_bytes(b"")
    (box.root / "su").chmod(0o6755)
    (box.root / "d").mkdir()
    (box.root / "d").chmod(0o3777)
    copy_out(box, "/su", host)
    copy_out(box, "/d", host)
    assert stat.S_IMODE((host / "su").stat().st_mode) == 0o755
    assert stat.S_IMODE((host / "d").stat().st_mode) == 0o1777


def test_a_name_that_cannot_be(box: PlainDirectory, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box.root / "t").mkdir()
    real = os.listdir
    for name in ("..", ".", "a/b", "/etc/x", "", "a\0b"):
        monkeypatch.setattr(os, "listdir", lambda _fd, name=name: [name])
        with pytest.raises(OSError, match="impossible file name"):
            copy_out(box, "/t", host / "x")
    monkeypatch.setattr(os, "listdir", real)


def test_holes_stay_holes(box: PlainDirectory, host: Path) -> None:
    with open(box.root / "sparse", "wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
        file.truncate(1 << 36)
    copy_out(box, "/sparse", host)
    status = (host / "sparse").stat()
    assert status.st_size == 1 << 36
    assert status.st_blocks * 512 < 1 << 20
    with open(host / "sparse", "rb") as file:
        file.seek((50 << 20) - 1)
        assert file.read(4) == b"\0end"
    copy_in(box, host / "sparse", "/again")
    assert (box.root / "again").stat().st_blocks * 512 < 1 << 20


def test_a_limit_on_what_comes_out(box: PlainDirectory, host: Path) -> None:
    (box.root / "t").mkdir()
    for n in range(4):
        (box.root / "t" / str(n)).write_bytes(bytes(1000))
    with pytest.raises(OSError, match="limit"):
        copy_out(box, "/t", host / "t", limit=2500)
    copy_out(box, "/t", host / "t", limit=4000)


def test_trees_without_end(box: PlainDirectory, host: Path) -> None:
    place = box.root
    fd = os.open(place, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(OSError, match="deep"):
        copy_out(box, "/d", host)
    with pytest.raises(OSError, match="deep"):
        copy_in(box, box.root / "d", "/e")


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=30)
@given(
    st.dictionaries(
        names.filter(lambda name: name not in (".", "..")), st.binary(max_size=300_000), max_size=5
    )
)
def test_any_names_and_bytes(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    base = tmp_path_factory.mktemp("files")
    (base / "in").mkdir()
    (base / "box").mkdir()
    box = PlainDirectory(base / "box")
    for name, data in files.items():
        (base / "in" / name).write_bytes(data)
    copy_in(box, base / "in", "/x")
    copy_out(box, "/x", base / "out")
    assert {path.name: path.read_bytes() for path in (base / "out").iterdir()} == files
    for name, data in files.items():
        assert read_bytes(box, f"/x/{name}") == data


def test_no_descriptor_is_left(box: PlainDirectory, host: Path) -> None:
    make_tree(host)
    close_shared()  # what containers of tests before keep ready is closed at any time
    before = len(os.listdir("/proc/self/fd"))
    copy_in(box, host, "/t")
    copy_out(box, "/t", host / "o")
    with pytest.raises(OSError, match="limit"):
        copy_out(box, "/t", host / "o", limit=1)
    read_bytes(box, "/t/run.sh")
    assert len(os.listdir("/proc/self/fd")) == before
