from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobox.errors import NotFound, SetupError, SpecError, UnpackError
from isobox.images.layers import unpacking
from isobox.images.layers.root import Unpacked, unpack
from isobox.images.tar import pax
from isobox.rootfs.folder import folder_image


def archive(*entries: tuple[str, dict[str, object], bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, attributes, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = b"x", **attributes: object) -> tuple[str, dict[str, object], bytes]:
    return name, attributes, data


def link(name: str, target: str, type: bytes = tarfile.SYMTYPE) -> tuple[str, dict[str, object], bytes]:
    return name, {"type": type, "linkname": target}, b""


def directory(name: str, mode: int = 0o755) -> tuple[str, dict[str, object], bytes]:
    return name, {"type": tarfile.DIRTYPE, "mode": mode}, b""


def run(tmp_path: Path, data: bytes, **options: int) -> tuple[Path, Unpacked]:
    source = tmp_path / "image.tar"
    source.write_bytes(data)
    into = tmp_path / "state" / "root"
    into.parent.mkdir(exist_ok=True)
    return into, unpack(source, into, keep_owners=False, **options)


def refused(tmp_path: Path, data: bytes, match: str | None = None, **options: int) -> None:
    with pytest.raises(UnpackError, match=match):
        run(tmp_path, data, **options)
    assert os.listdir(tmp_path / "state") == []


def test_files_modes_links_times(tmp_path: Path) -> None:
    root, made = run(
        tmp_path,
        archive(
            directory("./"),
            directory("usr/bin", 0o555),
            file("usr/bin/tool", b"#!", mode=0o4755, mtime=1_000_000_000),
            file("empty", b""),
            link("bin", "usr/bin"),
            link("hard", "usr/bin/tool", tarfile.LNKTYPE),
            ("pipe", {"type": tarfile.FIFOTYPE}, b""),
            ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
        ),
    )
    tool = (root / "usr/bin/tool").stat()
    assert stat.S_IMODE(tool.st_mode) == 0o755
    assert tool.st_mtime == 1_000_000_000
    assert os.readlink(root / "bin") == "usr/bin"
    assert (root / "hard").stat().st_ino == tool.st_ino
    assert stat.S_ISFIFO((root / "pipe").lstat().st_mode)
    assert (root / "empty").read_bytes() == b""
    assert not (root / "null").exists()
    assert made == Unpacked(entries=8, size=2, devices=1)
    assert stat.S_IMODE(root.stat().st_mode) == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_owners_and_setuid_are_kept_for_root(tmp_path: Path) -> None:
    source = tmp_path / "image.tar"
    source.write_bytes(archive(file("su", mode=0o4755, uid=7, gid=8), link("l", "su"), directory("d")))
    unpack(source, tmp_path / "root", keep_owners=True)
    status = (tmp_path / "root/su").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o4755)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_and_long_names(tmp_path: Path, format: int) -> None:
    deep = "/".join(["d" * 40] * 4) + "/file"
    target = "t" * (90 if format == tarfile.USTAR_FORMAT else 300)
    root, _ = run(tmp_path, archive(file(deep, b"deep"), link("l", target), format=format))
    assert (root / deep).read_bytes() == b"deep"
    assert os.readlink(root / "l") == target


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root, _ = run(tmp_path, archive(file("a\udcff"), format=tarfile.GNU_FORMAT))
    assert os.listdir(os.fsencode(root)) == [b"a\xff"]


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_compressed(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    data = compress(archive(file("f", b"y" * 100_000)))
    root, _ = run(tmp_path, data)
    assert (root / "f").read_bytes() == b"y" * 100_000
    other = tmp_path / "other"
    other.mkdir()
    refused(other, data[:-6])
    refused(other, data[: len(data) // 2])


def test_zstd(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.compress(archive(file("f", b"y" * 100_000)))
    root, _ = run(tmp_path, data)
    assert (root / "f").read_bytes() == b"y" * 100_000
    other = tmp_path / "other"
    other.mkdir()
    refused(other, data[: len(data) // 2])
    refused(other, data[:30] + b"\xff" * 20 + data[50:])


def test_an_absolute_link_stays_inside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root, _ = run(
        tmp_path,
        archive(
            link("abs", str(outside)),
            file("abs/in", b"1"),
            link("up", "../../../../../.."),
            file("up/in", b"2"),
        ),
    )
    assert os.listdir(outside) == []
    assert (root / str(outside).lstrip("/") / "in").read_bytes() == b"1"
    assert (root / "in").read_bytes() == b"2"


def test_a_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"safe")
    root, _ = run(tmp_path, archive(link("f", str(victim)), file("f", b"new")))
    assert victim.read_bytes() == b"safe"
    assert (root / "f").read_bytes() == b"new"
    assert not (root / "f").is_symlink()


def test_a_hard_link_to_a_link_does_not_open_a_way_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    data = archive(
        link("s", str(outside)), link("h", "s", tarfile.LNKTYPE), file("h/in", b"1"), directory("s")
    )
    run(tmp_path, data)
    assert os.listdir(outside) == []


@pytest.mark.parametrize(
    "entries",
    [
        [file("/etc/passwd")],
        [file("../x")],
        [file("a/../../x")],
        [file("a/..")],
        [link("h", "/etc/passwd", tarfile.LNKTYPE)],
        [link("h", "../../etc/passwd", tarfile.LNKTYPE)],
        [link("h", "missing", tarfile.LNKTYPE)],
        [directory("d"), link("h", "d", tarfile.LNKTYPE)],
        [link("h", ".", tarfile.LNKTYPE)],
        [link("a", "b"), link("b", "a"), file("a/x")],
        [file("f"), file("f/x")],
        [directory("d"), file("d/x"), file("d")],
        [link(".", "/")],
        [file("n" * 300)],
        [file("/".join(["d"] * 300))],
        [link("l", "")],
        [file("p", pax_headers={"GNU.sparse.major": "1"})],
        [file("p", pax_headers={"path": "a\0b"})],
    ],
)
def test_hostile_entries(tmp_path: Path, entries: list[tuple[str, dict[str, object], bytes]]) -> None:
    refused(tmp_path, archive(file("first"), *entries))


def test_a_parent_that_is_replaced_is_found_anew(tmp_path: Path) -> None:
    """Where the entry before was put says nothing once its parent is another."""
    way = [directory("a"), link("l", "a"), file("l/x")]
    root, _ = run(tmp_path, archive(*way, directory("l"), file("l/y")))
    assert os.listdir(root / "a") == ["x"] and os.listdir(root / "l") == ["y"]


@pytest.mark.parametrize("replace", [link("d", "../../outside"), link("d", "l", tarfile.LNKTYPE)])
def test_a_parent_that_became_a_link(replace: tuple[str, dict[str, object], bytes], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    node = ("d/x", {"type": tarfile.CHRTYPE}, b"")  # makes the folder, and is not made itself
    run(tmp_path, archive(link("l", "../../outside"), node, replace, file("d/y")))
    assert os.listdir(tmp_path / "outside") == []


def test_deep_through_links(tmp_path: Path) -> None:
    entries = [file("/".join(["d"] * 200) + "/f"), link("l", "/".join(["d"] * 200))]
    refused(tmp_path, archive(*entries, file("l/" + "/".join(["e"] * 100))), "deep")


def test_bounds(tmp_path: Path) -> None:
    bomb = gzip.compress(archive(file("zeros", bytes(5_000_000))))
    refused(tmp_path, bomb, "more than 1000000 bytes", most_bytes=1_000_000)
    refused(tmp_path, archive(*[file(f"f{n}") for n in range(20)]), "more than 10 entries", most_entries=10)


def test_an_extended_header_is_bounded(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 1 << 40
    refused(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(2048), "extended header")


def test_every_truncation_is_found(tmp_path: Path) -> None:
    data = archive(file("a", b"a" * 700), link("l", "a"), file("b" * 150, b"b"))
    end = len(data.rstrip(b"\0"))
    for length in [0, 1, 511, 512, 513, 1024, 1500, 2048, end - 1, end, -(-end // 512) * 512]:
        refused(tmp_path, data[:length])


@pytest.mark.parametrize("position", [0, 100, 130, 150, 156, 345])
def test_a_flipped_byte_in_a_header(tmp_path: Path, position: int) -> None:
    data = bytearray(archive(file("a", b"a" * 700)))
    data[position] ^= 1
    refused(tmp_path, bytes(data))


def test_not_an_archive(tmp_path: Path) -> None:
    for data in (b"", b"hello\n", os.urandom(4096), b"\x1f\x8b" + bytes(100), b"\xfd7zXZ\0" + bytes(99)):
        refused(tmp_path, data)


def test_a_missing_archive_and_an_existing_target(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        unpack(tmp_path / "none.tar", tmp_path / "root", keep_owners=False)
    source = tmp_path / "image.tar"
    source.write_bytes(archive(file("f")))
    (tmp_path / "root").mkdir()
    with pytest.raises(SetupError):
        unpack(source, tmp_path / "root", keep_owners=False)
    with pytest.raises(SetupError):
        unpack(source, tmp_path / "no" / "root", keep_owners=False)
    assert sorted(os.listdir(tmp_path)) == ["image.tar", "root"]


def test_links_that_take_long_to_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may stand for 2000 names and lead through forty others, at every entry anew."""
    monkeypatch.setattr(unpacking, "_MOST_FOLLOWED", 5000)
    way = [directory("a"), link("l", "a/../" * 400)]
    refused(tmp_path, archive(*way, *(file(f"l/{n}/f") for n in range(9))), "links on the way to all")
    assert run(tmp_path, archive(*way, *(file(f"l/{n}/f") for n in range(5))))[1].entries == 7


def test_names_that_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_MOST_NAMES", 20_000)
    refused(
        tmp_path, archive(*(directory("/".join(["d"] * n)) for n in range(1, 99))), "too many directories"
    )
    refused(tmp_path, archive(*(link(f"l{n}", "t" * 4000) for n in range(9))), "too many directories")
    assert run(tmp_path, archive(*(directory(f"d{n}") for n in range(99))))[1].entries == 99


def test_headers_of_no_use_are_not_kept() -> None:
    """Each may have a hundred thousand records, and 32 stand in front of one entry."""
    records = b"".join(b"%d %05d=\n" % (10, n) for n in range(1000))
    found = pax.Records()
    pax.read_records(records + b"9 path=x\n", found)
    assert found == pax.Records(values={b"path": b"x"})


names = st.sampled_from(["a", "b", "c", "..", ".", "", "a/b", "l", "l/a", "/a", "\udcff", "é", "x" * 256])
paths = st.lists(names, min_size=1, max_size=6).map("/".join)
entries = st.one_of(
    st.builds(file, paths),
    st.builds(directory, paths, st.integers(0, 0o7777)),
    st.builds(link, paths, paths.filter(lambda p: len(p) < 4000)),
    st.builds(link, paths, paths, st.just(tarfile.LNKTYPE)),
)


@settings(max_examples=150)
@given(st.lists(entries, max_size=8), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_nothing_ever_lands_outside(
    tmp_path_factory: pytest.TempPathFactory,
    listed: list[tuple[str, dict[str, object], bytes]],
    format: int,
) -> None:
    base = tmp_path_factory.mktemp("tar")
    (base / "image.tar").write_bytes(archive(*listed, format=format))
    (base / "state").mkdir()
    (base / "a").mkdir()
    before = sorted(os.listdir("/"))
    try:
        unpack(base / "image.tar", base / "state" / "root", keep_owners=False)
    except UnpackError:
        assert os.listdir(base / "state") == []
    else:
        assert os.listdir(base / "state") == ["root"]
    assert sorted(os.listdir(base)) == ["a", "image.tar", "state"]
    assert os.listdir(base / "a") == []
    assert sorted(os.listdir("/")) == before


@settings(max_examples=150)
@given(st.data())
def test_damage_is_an_unpack_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base = tmp_path_factory.mktemp("tar")
    whole = archive(file("a", b"data", pax_headers={"comment": "c" * 30}), link("l", "a"))
    at = data.draw(st.integers(0, len(whole) - 1))
    raw = bytearray(whole)
    raw[at : at + 1] = data.draw(st.binary(max_size=3))
    (base / "image.tar").write_bytes(raw)
    try:
        unpack(base / "image.tar", base / "root", keep_owners=False)
    except UnpackError:
        assert os.listdir(base) == ["image.tar"]


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    rootfs = folder_image(tmp_path, root=True)
    assert rootfs.trees[0].layers[0].idmap
    assert [d.path for d in rootfs.skeleton] == ["/dev", "/sys", "/tmp"]
    with pytest.raises(NotFound):
        folder_image(tmp_path / "none", root=False)
    (tmp_path / "file").write_bytes(b"")
    for wrong in (tmp_path / "file", Path("/"), Path("/usr/..")):
        with pytest.raises(SpecError):
            folder_image(wrong, root=False)
