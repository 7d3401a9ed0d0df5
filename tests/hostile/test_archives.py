"""Images that attack whoever unpacks them: out of the folder, over other files, up to other rights.

Each archive is first given to an extractor that trusts it, Python's own without its filter: the attack
works. Then to isobox.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from archives import Trusting, entry, folder, link, ours, packed, state_of, trusted, written
from isobox import Container
from isobox.errors import UnpackError
from leftovers import nothing_left
from programs import ROOT

HARD, EVIL = tarfile.LNKTYPE, b"evil"

ESCAPES: dict[str, Callable[[Path], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "dots": lambda out: [entry("../../outside/new", EVIL)],
    "dots on the way": lambda out: [folder("a"), entry("a/../../../outside/new", EVIL)],
    "dots in a pax header": lambda out: [entry("x", EVIL, pax_headers={"path": "../../outside/new"})],
    "an absolute name": lambda out: [entry(f"{out}/new", EVIL)],
    "through a link": lambda out: [link("l", out), entry("l/new", EVIL)],
    "through a relative link": lambda out: [link("l", "../../outside"), entry("l/new", EVIL)],
    "through a chain of links": lambda out: [
        link("a", ".."),
        link("b", "a/../outside"),
        entry("b/new", EVIL),
    ],
    "through a link that is its own parent": lambda out: [
        folder("d"),
        link("d/up", "../../.."),
        entry("d/up/outside/new", EVIL),
    ],
    "a folder made a link": lambda out: [folder("d"), link("d", out), entry("d/new", EVIL)],
    "over a link": lambda out: [link("f", out / "secret"), entry("f", EVIL)],
    "the mode of a link's folder": lambda out: [link("l", out), folder("l", 0o777)],
    "a hard link": lambda out: [link("h", "../../outside/secret", HARD), entry("h", EVIL)],
    "an absolute hard link": lambda out: [link("h", out / "secret", HARD), entry("h", EVIL)],
    "a hard link to a link": lambda out: [
        link("s", out / "secret"),
        link("h", "s", HARD),
        entry("h", EVIL),
    ],
    "a hard link through a link": lambda out: [link("l", out), link("h", "l/secret", HARD), entry("h", EVIL)],
}


@pytest.mark.parametrize("attack", ESCAPES)
def test_nothing_outside_is_touched(attack: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "secret").write_bytes(b"the host's")
    archive = written(tmp_path, packed(*ESCAPES[attack](outside)))
    before = state_of(outside)
    try:
        place, _ = ours(archive)
    except UnpackError:
        pass
    else:
        assert list(place.rglob("*"))  # what was not refused lies inside
    assert state_of(outside) == before
    trusted(archive, tmp_path / "trusted" / "in")
    assert state_of(outside) != before


@pytest.mark.requires("root")
def test_device_nodes_are_not_made(tmp_path: Path) -> None:
    zero = entry("zero", type=tarfile.CHRTYPE, devmajor=1, devminor=5, mode=0o666)
    archive = written(tmp_path, packed(zero, entry("b", type=tarfile.BLKTYPE, devmajor=240, devminor=7)))
    try:
        node = trusted(archive, tmp_path / "trusted") / "zero"
    except PermissionError:
        pytest.skip("nobody makes devices here")
    assert stat.S_ISCHR(node.stat().st_mode)
    with open(node, "rb") as file:
        assert file.read(2) == b"\0\0"
    place, made = ours(archive)
    assert os.listdir(place) == [] and made.devices == 2


@pytest.mark.requires("user_namespaces", "overlay")
def test_a_fifo_makes_nobody_wait(tmp_path: Path) -> None:
    archive = written(
        tmp_path, packed(entry("d/pipe", type=tarfile.FIFOTYPE, mode=0o666), entry("d/f", b"x"))
    )
    pipe = trusted(archive, tmp_path / "trusted") / "d/pipe"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["cat", pipe], timeout=0.5)
    with nothing_left(), Container(archive) as container:
        with pytest.raises(OSError, match="not a regular file"):
            container.read_bytes("/d/pipe")
        container.copy_out("/d", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["f"]


@pytest.mark.requires("root", "user_namespaces", "overlay")
def test_setuid_files_give_nobody_the_host_s_root(tmp_path: Path) -> None:
    with open("/usr/bin/id", "rb") as file:
        archive = written(tmp_path, packed(entry("bin/id", file.read(), mode=0o4755)))

    def who(path: str) -> str:
        """Whom a stranger on the host becomes."""
        result = subprocess.run(
            [path, "-u"], user=65534, group=65534, capture_output=True, cwd="/", text=True
        )
        return result.stdout.strip()

    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    assert who(str(trusted(archive, tmp_path / "trusted") / "bin/id")) == "0"
    with nothing_left(), Container(archive) as container:
        unpacked = re.findall(r"take-tree +(/\S+/rootfs)$", container.explain(), re.MULTILINE)
        assert len(unpacked) == 1
        for root in (*unpacked, f"/proc/{container.pid}/root"):
            assert os.stat(f"{root}/bin/id").st_mode & stat.S_ISUID
            with pytest.raises(PermissionError):
                who(f"{root}/bin/id")


@pytest.mark.requires("root")
def test_an_owner_that_leaves_the_file_to_us(tmp_path: Path) -> None:
    """chown(2) takes -1 for "as it is": a setuid file of whoever unpacks."""
    uid = 2**32 - 1
    info = entry("tool", b"#!", mode=0o4755, uid=uid, gid=uid)
    archive = written(tmp_path, packed(info, format=tarfile.GNU_FORMAT))
    with Trusting.open(archive) as tar:
        tar.extraction_filter = lambda member, path: member
        tar.extractall(tmp_path / "trusted", numeric_owner=True)
    status = (tmp_path / "trusted/tool").stat()
    assert status.st_uid == 0 and status.st_mode & stat.S_ISUID
    with pytest.raises(UnpackError, match="no file can have"):
        ours(archive)


XATTRS = {
    "user.overlay.opaque": b"y",
    "user.overlay.redirect": b"/etc",
    "user.overlay.metacopy": b"",
    **(
        {
            "security.capability": struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0),
            "trusted.overlay.redirect": b"/etc",
        }
        if ROOT
        else {}
    ),
}


@pytest.mark.parametrize("name", XATTRS)
def test_attributes_that_mean_something_to_the_kernel(name: str, tmp_path: Path) -> None:
    """What tells overlayfs to look elsewhere, and what makes a program privileged."""
    value = XATTRS[name].decode("latin-1")
    info = entry("f", b"x", pax_headers={f"SCHILY.xattr.{name}": value, f"LIBARCHIVE.xattr.{name}": "eQ=="})
    archive = written(tmp_path, packed(info))
    kept = trusted(archive, tmp_path / "trusted") / "f"
    try:  # what GNU tar and bsdtar do with it
        os.setxattr(kept, name, XATTRS[name])
    except OSError as error:
        pytest.skip(f"nobody sets {name} here: {error.strerror}")
    assert name in os.listxattr(kept)
    place, _ = ours(archive)
    assert os.listxattr(place / "f") == [] == os.listxattr(place)


@pytest.mark.requires("user_namespaces", "overlay")
def test_names_that_mean_whiteouts_in_a_layer_hide_nothing(tmp_path: Path) -> None:
    """In one archive there is no other layer that they could speak of: they are names like others."""
    names = [".wh.etc", ".wh..wh..opq", "etc/.wh.passwd", "etc/passwd"]
    archive = written(tmp_path, packed(*(entry(name, b"x") for name in names)))
    with nothing_left(), Container(archive) as container:
        assert [container.read_bytes(f"/{name}") for name in names] == [b"x"] * 4
        assert container.changes() == []


def test_a_name_does_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\n/../x"
    assert "\x1b" in name
    with pytest.raises(UnpackError) as caught:
        ours(written(tmp_path, packed(entry(name))))
    assert not [character for character in str(caught.value) if ord(character) < 32]
