from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.rootfs import host_image as module
from isobox.rootfs.host_image import SKELETON, host_image, python_paths
from isobox.rootfs.layers import Directory, Layer, Link, Rootfs, Tree, components
from isobox.rootfs.mountinfo import Mountpoint, mount_table, parse
from isobox.rootfs.python_in_use import Homes, trace

ROOT = os.getuid() == 0


def image(*paths: str | os.PathLike[str], root: bool = ROOT) -> Rootfs:
    return host_image(root=root, state_dir="/run/isobox", python_paths=[os.fspath(p) for p in paths])


def targets(rootfs: Rootfs) -> set[str]:
    return {tree.target for tree in rootfs.trees}


@pytest.fixture
def hidden_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is hidden, wherever pytest keeps its own."""
    place = Path(os.path.realpath(tmp_path))
    monkeypatch.setattr(module, "HIDDEN", (*module.HIDDEN, str(place)))
    return place


def test_root_is_one_overlay_over_everything() -> None:
    rootfs = image(root=True)
    first = rootfs.trees[0]
    assert (first.target, first.layers, first.kind) == ("/", (Layer("/"),), "overlay")
    for name in ("home", "root", "tmp", "run", "mnt", "media", "srv", "boot", "proc", "sys", "dev"):
        assert name in first.hidden
    assert rootfs.links == ()
    assert {"/tmp", "/var/tmp", "/run", "/run/lock", "/root"} <= {d.path for d in rootfs.skeleton}


def test_an_ordinary_user_has_a_tree_for_each_directory() -> None:
    rootfs = image(root=False)
    assert rootfs.trees[0] == Tree("/", ())
    for name in os.listdir("/"):
        path = "/" + name
        if os.path.islink(path) and path not in module.HIDDEN:
            assert Link(path, os.readlink(path)) in rootfs.links
    assert "/usr" in targets(rootfs)
    assert not targets(rootfs) & {"/home", "/root", "/tmp", "/run", "/proc", "/sys", "/dev"}
    var = [tree for tree in rootfs.trees if tree.target == "/var"]
    assert all(tree.kind == "bind" or "tmp" in tree.hidden for tree in var)


@pytest.mark.parametrize("root", [True, False])
def test_every_mount_point_is_there_before_its_tree(root: bool) -> None:
    rootfs = image(*python_paths(), root=root)
    there: list[str] = []
    for step in rootfs.steps():
        path = step.target if isinstance(step, Tree) else step.path
        if isinstance(step, Tree) and not step.is_file and path != "/":
            covered = any(path.startswith(t.rstrip("/") + "/") and os.path.isdir(path) for t in there)
            assert Directory in {type(s) for s in rootfs.steps() if getattr(s, "path", "") == path} or covered
        there.append(path)
    assert there[0] == "/"


def test_private_home_unless_the_python_is_in_it(hidden_place: Path) -> None:
    assert Directory("/root", 0o700) in image().skeleton


def test_the_python_in_use_gets_a_tree(hidden_place: Path) -> None:
    venv = hidden_place / "venv"
    (venv / "lib" / "site-packages").mkdir(parents=True)
    rootfs = image(venv, venv / "lib" / "site-packages")
    shown = [tree for tree in rootfs.trees if tree.target.startswith(str(hidden_place))]
    assert [tree.target for tree in shown] == [str(venv)]
    assert shown[0].layers == (Layer(str(venv)),)
    paths = {directory.path: directory.mode for directory in rootfs.skeleton}
    assert paths[str(hidden_place)] == 0o755
    assert str(venv) in paths


def test_a_zip_file_on_the_path(hidden_place: Path) -> None:
    zipped = hidden_place / "lib" / "bundle.zip"
    zipped.parent.mkdir()
    zipped.write_bytes(b"PK")
    tree = [t for t in image(zipped).trees if t.target == str(zipped)]
    assert tree == [Tree(str(zipped), (Layer(str(zipped)),), "bind", is_file=True)]


def test_links_on_the_way_are_made_again(hidden_place: Path) -> None:
    real = hidden_place / "pythons" / "3.11.7"
    (real / "bin").mkdir(parents=True)
    (real / "bin" / "python").write_bytes(b"")
    (hidden_place / "pythons" / "3.11").symlink_to("3.11.7")
    (hidden_place / "bin").mkdir()
    (hidden_place / "bin" / "python").symlink_to(hidden_place / "pythons" / "3.11" / "bin" / "python")
    rootfs = image(hidden_place / "pythons" / "3.11", hidden_place / "bin" / "python")
    assert str(real) in targets(rootfs)
    links = {link.path: link.target for link in rootfs.links}
    assert links[str(hidden_place / "pythons" / "3.11")] == "3.11.7"
    assert str(hidden_place / "bin" / "python") in links
    assert str(hidden_place / "bin") in {d.path for d in rootfs.skeleton}
    assert str(hidden_place / "bin") not in targets(rootfs)


@pytest.mark.parametrize("entry", ["/tmp", "/home", "/", "/root", "/home/somebody", "/var", "~"])
def test_a_whole_home_is_never_shown(entry: str) -> None:
    assert image(os.path.expanduser(entry)) == image()


def test_the_state_directory_is_hidden() -> None:
    rootfs = host_image(root=True, state_dir="/var/lib/isobox-x", python_paths=[])
    assert not os.path.isdir("/var/lib") or "var/lib/isobox-x" in rootfs.trees[0].hidden


def test_mounts_below_visible_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = [
        Mountpoint(1, "/", "ext4"),
        Mountpoint(2, "/usr", "ext4"),
        Mountpoint(3, "/etc/hostname", "ext4"),
        Mountpoint(4, "/home/x", "ext4"),
        Mountpoint(5, "/opt", "nfs4"),
        Mountpoint(6, "/usr/lib", "proc"),
    ]
    monkeypatch.setattr(module, "mount_table", lambda: table)
    rootfs = image(root=True)
    trees = {tree.target: tree for tree in rootfs.trees}
    assert trees["/usr"].kind == "overlay"
    assert "/home/x" not in trees
    assert "/usr/lib" not in trees
    if os.path.isfile("/etc/hostname"):
        assert trees["/etc/hostname"].is_file
    if os.path.isdir("/opt"):
        assert trees["/opt"].kind == "bind"
    # Without privileges a directory is taken with all that is mounted in it, or not at all.
    trees = {tree.target: tree for tree in image(root=False).trees}
    assert trees["/etc"].kind == trees["/usr"].kind == "bind"


def test_hidden_places_below_a_whole_directory_are_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.isdir("/var/tmp") or not os.path.isdir("/var/lib"):
        pytest.skip("no /var/tmp here")
    table = [Mountpoint(1, "/", "ext4"), Mountpoint(2, "/var/lib", "ext4")]
    monkeypatch.setattr(module, "mount_table", lambda: table)
    trees = {tree.target: tree for tree in image(root=False).trees}
    assert trees["/var"].kind == "bind"
    assert trees["/var/tmp"] == Tree("/var/tmp", (), mode=0o1777)


def test_python_paths() -> None:
    paths = python_paths()
    assert os.path.abspath(sys.prefix) in paths
    assert all(os.path.isabs(path) and os.path.exists(path) for path in paths)


def test_homes(tmp_path: Path) -> None:
    for name in ("alice", "daemon", "nobody"):
        (tmp_path / name).mkdir()
    passwd = tmp_path / "passwd"
    passwd.write_text(
        f"alice:x:1000:1000::{tmp_path}/alice:/bin/sh\ndaemon:x:5:5::{tmp_path}/daemon:/bin/sh\n"
        f"nobody:x:65534:65534::{tmp_path}/nobody:/bin/sh\nbad line\nweb:x:1001:1001::/var/www:/bin/sh\n"
        f"gone:x:1002:1002::{tmp_path}/gone:/bin/sh\n"
    )
    homes = Homes.read(str(passwd))
    assert str(tmp_path / "alice") in homes.paths
    assert not {str(tmp_path / "daemon"), str(tmp_path / "gone"), "/var/www"} & set(homes.paths)
    if os.getuid() != 65534:
        assert str(tmp_path / "nobody") not in homes.paths
    assert homes.is_home("/home/whoever")
    assert not homes.is_home(str(tmp_path / "alice" / "project"))


def test_trace(tmp_path: Path) -> None:
    base = Path(os.path.realpath(tmp_path))
    (base / "d").mkdir()
    (base / "l").symlink_to("d/../e")
    (base / "e").symlink_to(base / "d")
    (base / "loop").symlink_to("loop")
    found = trace(str(base / "l" / "missing" / "x"))
    assert found.real == str(base / "d" / "missing" / "x")
    assert [link.path for link in found.links] == [str(base / "l"), str(base / "e")]
    trace(str(base / "loop" / "x"))  # ends


def test_mountinfo_of_odd_names() -> None:
    text = b"28 27 0:25 / /a\rb rw - tmpfs none ro\n29 27 0:25 / /\\777 rw - tmpfs none ro\n"
    assert [mount.path for mount in parse(text)] == ["/a\rb", "/\\777"]


@given(st.binary(max_size=300))
def test_mountinfo_of_any_bytes(text: bytes) -> None:
    list(parse(text))


def test_mount_table() -> None:
    table = {mount.path: mount for mount in mount_table()}
    assert table["/proc"].fstype == "proc"


paths = st.lists(st.sampled_from(["a", "b", "a-b"]), max_size=4).map(lambda names: "/" + "/".join(names))


@given(st.lists(paths), st.lists(paths), st.lists(paths))
def test_steps_put_parents_first(trees: list[str], directories: list[str], links: list[str]) -> None:
    rootfs = Rootfs(
        (Tree("/", ()), *(Tree(t, ()) for t in trees)),
        tuple(Directory(d) for d in directories),
        tuple(Link(p, "x") for p in links),
    )
    places = [components(s.target if isinstance(s, Tree) else s.path) for s in rootfs.steps()]
    assert places == sorted(places)
    assert len(places) == 1 + len(trees) + len(directories) + len(links)


def test_the_root_tree_comes_first() -> None:
    with pytest.raises(ValueError, match="first tree"):
        Rootfs((Tree("/usr", ()),))
    assert len({d.path for d in SKELETON}) == len(SKELETON)
