"""Plain files of layers, made many at a time: just as one by one, and nothing that is not plain."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import resource
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from archives import binary, entry, folder, header, link, packed
from isobox import _native
from isobox.errors import UnpackError
from isobox.images.layers.layer import LayerUnpacked, unpack_layer
from isobox.images.tar.ahead import Ahead
from listing import listing
from patience import patient
from programs import ROOT

FILES = _native.make_files


def files(*names: str, size: int = 700, **values: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [entry(name, name.encode().ljust(size, b"."), mtime=1_600_000_000, **values) for name in names]


def plain(*names: str, **values: Any) -> bytes:
    """Entries without an end."""
    members = files(*names, **values)
    return b"".join(
        info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) for info, data in members
    )


def make(place: Path, archive: bytes, at: int = 0, **values: Any) -> _native.Files:
    fd = os.open(place, os.O_RDONLY)
    try:
        options = {"most": 1000, "keep_owners": False, "modes": 0o1777, **values}
        return FILES(fd, b"in", b"./d", archive, at, **options)
    finally:
        os.close(fd)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place/in").mkdir(parents=True)
    return tmp_path / "place"


def test_what_it_makes(place: Path) -> None:
    archive = plain("./d/a", mode=0o644) + plain("./d/b", mode=0o6755, size=1024) + plain("./d/c", size=5)
    assert make(place, bytes(100) + archive, 100) == (3, 1729, len(archive))
    assert sorted(os.listdir(place / "in")) == ["a", "b", "c"]
    assert (place / "in/a").read_bytes() == b"./d/a".ljust(700, b".")
    found = [os.stat(place / "in" / name) for name in "abc"]
    assert [oct(status.st_mode) for status in found] == ["0o100644", "0o100755", "0o100644"]
    assert {status.st_mtime_ns for status in found} == {1_600_000_000 * 10**9}


@pytest.mark.parametrize("step", [1, 97])
def test_what_has_not_come_whole(place: Path, step: int) -> None:
    """Each prefix of an archive."""
    archive = plain("./d/a", "./d/b", size=520)
    for end in range(step - 1, len(archive) + 1, step):
        made = make(place, archive[:end])
        assert made.files == end // 1536 and made.used == made.files * 1536
        assert len(os.listdir(place / "in")) == made.files
        for name in os.listdir(place / "in"):
            os.unlink(place / "in" / name)


@pytest.mark.parametrize(
    "name",
    ["d/a", "./d/", "./d/.", "./d/..", "./d/.wh.a", "./d/sub/a", "./da", "a", "", "/", "./e/a", "./d/../a"],
)
def test_other_names(place: Path, name: str) -> None:
    info = tarfile.TarInfo("x")
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[0:100] = name.encode().ljust(100, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert make(place, bytes(block)) == (0, 0, 0)
    assert os.listdir(place / "in") == [] and os.listdir(place) == ["in"]


def test_other_headers(place: Path) -> None:
    """Those that say something else, or say it in another way."""
    name = (0, b"./d/a".ljust(100, b"\0"))

    def block(at: int, data: bytes) -> bytes:
        made = bytearray(header(b"0", b"%011o\0" % 0))
        for where, what in (name, (at, data)):
            made[where : where + len(what)] = what
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % sum(made)
        return bytes(made)

    odd = [(156, bytes([kind])) for kind in b"123456gxLKSV7"]
    odd += [(124, binary(5)), (124, b" " * 12), (124, b"-0000000001\0"), (124, b"00000000009\0")]
    odd += [(100, b"0644 5 \0"), (108, b"\0" * 8), (136, binary(-1)), (124, b"77777777777\0")]
    for at, data in odd:
        assert make(place, block(at, data)) == (0, 0, 0), (at, data)
    wrong = bytearray(block(100, b"0000644\0"))
    for at in range(0, 512, 3):
        wrong[at] ^= 1
        assert make(place, bytes(wrong)).files == 0 or 148 <= at < 156
        wrong[at] ^= 1
    assert make(place, bytes(wrong)).files == 1


def test_what_is_in_the_way(place: Path) -> None:
    """It is neither followed nor replaced."""
    victim = place / "victim"
    victim.write_bytes(b"mine")
    target = place / "in/b"
    archive = plain("./d/a", "./d/b", "./d/c")
    for make_it in (
        lambda: target.symlink_to(victim),
        lambda: target.symlink_to(place / "dangling"),
        lambda: target.mkdir(),
        lambda: os.mkfifo(target),
        lambda: os.link(victim, target),
    ):
        make_it()
        assert make(place, archive).files == 1
        assert victim.read_bytes() == b"mine" and sorted(os.listdir(place)) == ["in", "victim"]
        os.unlink(place / "in/a")
        os.rmdir(target) if target.is_dir() else target.unlink()


def test_what_fails_leaves_nothing(place: Path) -> None:
    archive = plain("./d/a", size=10) + plain("./d/b", size=900)
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        made = make(place, archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert made.files == 1 and os.listdir(place / "in") == ["a"]
    if not ROOT:
        foreign = plain("./d/c", uid=0, gid=0)
        assert make(place, foreign, keep_owners=True).files == 0 and os.listdir(place / "in") == ["a"]
    assert make(place, plain("./d/x", "./d/y"), most=1).files == 1
    assert make(place / "in", plain("./d/z")).files == 0  # no such directory there
    assert len(os.listdir("/proc/self/fd")) == before


def stream(seed: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    """A layer of mostly plain files, and of all that may come between them."""
    chosen = random.Random(seed)
    places = ["./", "usr/", "usr/lib/", "./usr/share/", "l/", "etc/" + "d" * 90 + "/" + "e" * 60 + "/"]
    members = [folder("usr"), link("l", "usr/lib"), folder("usr/lib", 0o750)]
    for number in range(100):
        above = chosen.choice(places)
        for _ in range(chosen.randrange(16)):
            name = above + chosen.choice(["f", "g", "é", "x" * 99, "file-"]) + str(chosen.randrange(40))
            kind = chosen.randrange(14)
            values: dict[str, Any] = {
                "mtime": chosen.choice([0, 1_600_000_000, 1_600_000_000.25, -5]),
                "mode": chosen.choice([0o644, 0o755, 0o4755, 0o400]),
                "uid": chosen.choice([0, 1000, 3_000_000]),
                "gid": chosen.choice([0, 42]),
            }
            if kind == 0:
                members.append(link(name, chosen.choice(["f1", "/usr", "../../..", "nowhere"])))
            elif kind == 1:
                members.append(entry(above + ".wh." + f"gone{number}"))
            elif kind == 2:
                members.append(entry(name, type=tarfile.FIFOTYPE, **values))
            else:
                size = chosen.choice([0, 1, 511, 512, 513, 5000, 70_000])
                members.append(entry(name, chosen.randbytes(size), **values))
    return members


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("seed", range(3))
def test_just_as_one_by_one(seed: int, format: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(*stream(seed), format=format)
    made: dict[str, LayerUnpacked] = {}
    count = 0

    def many(*arguments: Any, **values: Any) -> _native.Files:
        nonlocal count
        found = FILES(*arguments, **values)
        count += found.files
        return found

    for name, function in (("many", many), ("one", lambda *_, **__: _native.Files(0, 0, 0))):
        monkeypatch.setattr(_native, "make_files", function)
        made[name] = unpack_layer(io.BytesIO(archive), tmp_path / name, keep_owners=ROOT)
    assert made["many"] == made["one"] and count > 20
    trees = [listing(str(tmp_path / name)) for name in ("many", "one")]
    for found in (*trees[0].values(), *trees[1].values()):
        if found["mode"].startswith("c"):
            del found["mtime"]  # of a whiteout: now
    assert trees[0] == trees[1]


def test_the_bound_on_entries(tmp_path: Path) -> None:
    archive = packed(folder("d"), *files(*(f"d/{number}" for number in range(20))))
    assert unpack_layer(io.BytesIO(archive), tmp_path / "a", keep_owners=ROOT, most_entries=21).entries == 21
    with pytest.raises(UnpackError, match="more than 20 entries"):
        unpack_layer(io.BytesIO(archive), tmp_path / "b", keep_owners=ROOT, most_entries=20)
    assert os.listdir(tmp_path) == ["a"]


class TestAhead:
    DATA = random.Random(1).randbytes(3_000_000) * 7

    def test_all_is_hashed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = hashlib.sha256(self.DATA).hexdigest()
        original = threading.Thread.start
        for threads in (1, 0):
            started = 0

            def start(thread: Any, most: int = threads) -> None:
                nonlocal started
                if started == most:
                    raise RuntimeError("can't start new thread")
                started += 1
                original(thread)

            with monkeypatch.context() as changed:
                changed.setattr(threading.Thread, "start", start)
                hasher = hashlib.sha256()
                with Ahead(io.BytesIO(self.DATA), hasher) as ahead:
                    found = b"".join(iter(ahead.read, b""))
            assert found == self.DATA and hasher.hexdigest() == expected and started == threads

    def test_errors(self) -> None:
        class Failing:
            def read(self, size: int = -1, /) -> bytes:
                raise OSError(errno.EIO, "read")

            def update(self, data: bytes, /) -> None:
                raise MemoryError

        with pytest.raises(OSError, match="read"), Ahead(Failing(), hashlib.sha256()) as ahead:
            ahead.read()
        hasher: Any = Failing()
        with pytest.raises(MemoryError), Ahead(io.BytesIO(self.DATA), hasher) as ahead:
            for _ in iter(ahead.read, b""):
                pass
        with pytest.raises(MemoryError), Ahead(io.BytesIO(self.DATA[:1000]), hasher) as ahead:
            ahead.read()

    @pytest.mark.parametrize("slow", ["reading", "writing"])
    def test_who_waits_hashes(self, slow: str) -> None:
        class Hasher:
            def __init__(self) -> None:
                self.here = threading.Event()
                self.there = threading.Event()

            def update(self, data: Any, /) -> None:
                mine = threading.current_thread() is threading.main_thread()
                (self.here if mine else self.there).set()

            def hexdigest(self) -> str:
                return ""

        class Source(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if slow == "reading" and self.tell():
                    assert hasher.here.wait(patient(10))
                return super().read(size)

        hasher = Hasher()
        with Ahead(Source(self.DATA), hasher) as ahead:
            assert ahead.read()
            if slow == "writing":
                assert hasher.there.wait(patient(10))
            assert sum(map(len, iter(ahead.read, b""))) < len(self.DATA)
