"""Images made of containers, as other programs and isobox's own containers see them."""

from __future__ import annotations

import ast
import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import isobox
from archives import attributes_kept, entry, folder, link, packed
from isobox import Container, Image, ImageError, StateError, UnpackError, UnsupportedError, idmap
from leftovers import nothing_left
from made import archive, busybox
from patience import patient
from programs import ROOT, said, sh
from requirements import program

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

TOOLS = "sh ls cat stat ln rm mkdir touch chmod chown mv mkfifo find setfattr sleep sort readlink true"

# All that a layer keeps of a file, but for the times of / and /etc, which are each container's own.
LISTING = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp \
    -o -name mnt -o -name host\* -o -name resolv\* \) -prune -o -print |
sort | while read -r name; do
    case $name in /|/etc) stat -c '%n %f %u %g' "$name"; continue ;; esac
    stat -c '%n %f %u %g %y' "$name"
    [ -d "$name" ] || stat -c '%s %h' "$name"
    [ ! -h "$name" ] || readlink "$name"
done
"""

CAPABLE = b"\1\0\0\2" + b"\0\4\0\0" + bytes(12)
PYTHON_ITSELF = os.path.realpath(sys.executable)
PYTHON = {"LD_LIBRARY_PATH": os.path.join(sys.base_prefix, "lib"), "PYTHONDONTWRITEBYTECODE": "1"}

CHANGES = """
umask 022
mkdir -p /new/deep /srv/mnt
echo added > /new/deep/file
ln /new/deep/file /new/linked
ln -s ../nowhere /new/symlink
mkfifo -m 640 /new/fifo
echo more >> /etc/kept
rm /etc/gone
rm -r /data
mkdir -m 1777 /data
echo fresh > /data/fresh
rm -r /dir
echo file > /dir
rm /file
mkdir /file
chmod 2750 /srv
touch -d '2001-02-03 04:05:06' /new/deep/file /srv
touch -d '1969-12-31 23:59:58' /new/deep
touch "/new/$(printf 'caf\\303\\251 \\377')"
touch "/new/$(printf '%0250d' 7)"
chmod 4711 /bin/tool
"""


def base() -> bytes:
    return packed(
        folder("./"),
        folder("bin"),
        entry("bin/busybox", busybox(), mode=0o755),
        entry("bin/tool", b"#!/bin/sh\n", mode=0o755),
        *[link(f"bin/{name}", "busybox") for name in TOOLS.split()],
        folder("etc"),
        entry("etc/kept", b"kept\n"),
        entry("etc/gone", b"gone\n"),
        folder("data"),
        entry("data/old", b"x"),
        folder("dir"),
        entry("dir/old", b"x"),
        entry("file", b"x"),
        folder("srv"),
        *[folder(name) for name in ("dev", "proc", "sys", "tmp")],
    )


@pytest.fixture
def image(tmp_path: Path) -> Image:
    run = {"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"]}
    return Image.load(archive(tmp_path / "base.tar", base(), tags=("base:1",), run=run))


def layer(image: Image, number: int = -1) -> bytes:
    return gzip.decompress(image._store.read(image._chosen.layers[number][0].digest))


def names(image: Image) -> list[str]:
    return names_of(image, -1)


def names_of(image: Image, number: int) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer(image, number))) as tar:
        return tar.getnames()


def members(image: Image) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer(image))) as tar:
        return tar.getmembers()


def listing(box: Container) -> list[str]:
    return sh(box, LISTING, user="0", errors="surrogateescape").splitlines()


@pytest.mark.parametrize("userns", ["auto", pytest.param("host", marks=pytest.mark.requires("root"))])
class TestCommit:
    @pytest.mark.requires("tmpfs_xattrs")
    def test_the_same_again(self, userns: Any, image: Image, tmp_path: Path, data: Path) -> None:
        """What the container had is what a container of the new image has, and what umoci unpacks."""
        if userns == "auto":
            attributes_kept(tmp_path)
        owners = (
            ROOT or isobox.host.features().id_ranges
        ) and "chown 33:44 /new/deep /new/symlink; chown -h 5 /bin/tool"
        with Container(
            "base:1", userns=userns, mounts=[f"{tmp_path}:/srv/mnt", f"{tmp_path}:/mnt/a:ro"]
        ) as box:
            box.write_bytes("/etc/hosts", b"of the container")
            sh(box, CHANGES.replace("chmod 4711", f"{owners or ':'}\nchmod 4711"))
            expected = listing(box)
            changed = box.changes()
            made = box.commit(
                "new:1", author="a", message="m", env={"B": "2"}, cmd=["/bin/sh"], workdir="/new"
            )
            assert box.state == "running" and said(box, ["cat", "/dir"]) == "file\n"
        assert made.layers[:-1] == image.layers and made.references == ("new:1",)
        assert made.config.config.env == ("PATH=/bin", "A=1", "B=2") and made.config.author == "a"
        assert b"overlay" not in layer(made)
        kept = names(made)
        assert "data/.wh..wh..opq" in kept and "etc/.wh.gone" in kept and "new/.wh..wh..opq" not in kept
        assert not [name for name in kept if name.startswith(("mnt", "srv/mnt/", "etc/host", "etc/res"))]
        with Container("new:1", userns=userns) as box:
            assert sh(box, "echo $B; echo $PWD").split() == ["2", "/new"]
            found = listing(box)
            if owners:
                assert found == expected
            else:  # layers have one owner, and no set-id bits
                assert [line.split()[0] for line in found] == [line.split()[0] for line in expected]
            assert box.changes() == []
        assert {change.kind for change in changed} == {"added", "modified", "deleted"}
        with Container("new:1", userns=userns) as box:
            box.export(tmp_path / "ours.tar")
        theirs = seen(unpacked_by_umoci(data, tmp_path))
        ours = in_tar(tmp_path / "ours.tar")
        assert ours["new/deep/file"][-1] == (b"added\n", "new/deep/file") and "new/fifo" in ours
        if not ROOT:
            ours, theirs = (
                {name: (about[0], *about[4:]) for name, about in of.items()} for of in (ours, theirs)
            )
        assert ours == theirs

    @pytest.mark.requires("tmpfs_xattrs")
    def test_the_same_layer(self, userns: Any, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
        """Equal content gives an equal layer, be it of another container; later times are one time."""
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        made = []
        for script in (
            "echo b > /b; echo a > /a; rm -r /data; mkdir /data",
            "rm -r /data; mkdir /data; echo a > /a; echo b > /b",
        ):
            with Container("base:1", userns=userns) as box:
                sh(box, script)
                made += [box.commit("new:1"), box.commit("new:1")]
        assert len({(image.digest, image.layers) for image in made}) == 1
        assert made[0].created == "2023-11-14T22:13:20Z"

    def test_nothing_changed(self, userns: Any, image: Image, tmp_path: Path) -> None:
        with Container("base:1", userns=userns, mounts=[f"{tmp_path}:/mnt/a/b"]) as box:
            assert names(box.commit("new:1")) == []

    @pytest.mark.requires("tmpfs_xattrs")
    def test_attributes(self, userns: Any, image: Image, tmp_path: Path, data: Path) -> None:
        """A file's own, and its capabilities as the container's root gave them."""
        attributes_kept(tmp_path)
        tools = [path for path in ("/usr", "/lib", "/lib64", sys.base_prefix) if os.path.isdir(path)]
        mounts = [f"{path}:{path}:ro" for path in tools]
        give = f"""import os
os.setxattr("/file", "user.a", "é".encode())
os.setxattr("/srv", "user.b", b"b")
if {ROOT}: os.setxattr("/bin/tool", "security.capability", {CAPABLE!r})
"""
        with Container("base:1", userns=userns, mounts=mounts, env=PYTHON) as box:
            said(box, [PYTHON_ITSELF, "-I", "-S", "-c", give])
            box.commit("new:1")
        theirs = unpacked_by_umoci(data, tmp_path)
        read = (
            "import os; print({n: os.getxattr(f, n) for f in ('/file', '/srv', '/bin/tool')"
            " for n in os.listxattr(f)})"
        )
        with Container("new:1", userns=userns, mounts=mounts, env=PYTHON) as box:
            ours = ast.literal_eval(said(box, [PYTHON_ITSELF, "-I", "-S", "-c", read]))
        found = {
            name: os.getxattr(theirs / path, name)
            for path in ("file", "srv", "bin/tool")
            for name in os.listxattr(theirs / path)
            if not name.startswith("user.rootlesscontainers")
        }
        capable = {"security.capability": CAPABLE} if ROOT else {}
        assert ours == found == {"user.a": "é".encode(), "user.b": b"b", **capable}

    def test_an_etc_of_somebody(self, userns: Any, image: Image, tmp_path: Path) -> None:
        """The container's own /etc has the owner of the image's, and so has the layer."""
        somebodys = entry("etc", type=tarfile.DIRTYPE, mode=0o750, uid=5, gid=6, mtime=7)
        above = packed(entry("other", b"x"))
        Image.load(archive(tmp_path / "etc.tar", base(), packed(somebodys), above, tags=("etc:1",), run={}))
        owner = (5, 6) if ROOT or not idmap.of_user().single else (0, 0)
        with Container("etc:1", userns=userns, env={"PATH": "/bin"}) as box:
            assert sh(box, "stat -c '%u %g %a' /etc").split() == [*map(str, owner), "750"]
            assert box.read_text("/etc/hostname") == f"{box.id}\n" and box.changes() == []
            assert names(box.commit("new:1")) == []
            with box.snapshot() as taken, Container(taken, userns=userns, env={"PATH": "/bin"}) as after:
                assert sh(after, "stat -c '%u %g %a' /etc").split() == [*map(str, owner), "750"]
            sh(box, "touch /etc/new")
            (found, _) = members(box.commit("new:2"))
            assert (found.name, found.uid, found.gid, found.mode) == ("etc", *owner, 0o750)
            if owner != (0, 0):
                sh(box, "rm /etc/new; chown 0:0 /etc")
                (found,) = members(box.commit("new:3"))
                assert (found.name, found.uid, found.gid) == ("etc", 0, 0)

    def test_many_times(self, userns: Any, image: Image) -> None:
        """Each on top of the one before, deleting what that added."""
        for number in range(3):
            with Container(f"base:{number + 1}", userns=userns) as box:
                sh(
                    box,
                    f"rm -rf /etc/{number} /data; touch /etc/{number + 1}; mkdir /data; touch /data/{number}",
                )
                box.commit(f"base:{number + 2}")
        with Container("base:4", userns=userns) as box:
            assert sh(box, "ls /data; cd /etc; ls ?; ls gone kept").split() == ["2", "3", "gone", "kept"]


About = tuple[Any, ...]
OWN = (".", "tmp", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf")


def in_tar(path: Path) -> dict[str, About]:
    """What an archive says of each name: kind, mode, owners, seconds, attributes, content or target."""
    found: dict[str, About] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            of = tar.getmember(info.linkname) if info.islnk() else info
            file = tar.extractfile(of) if of.isreg() else None
            content: object = (file.read(), of.name) if file is not None else info.linkname
            kept = {k: v for k, v in of.pax_headers.items() if k.startswith("SCHILY")}
            found[info.name] = (of.type, of.mode, of.uid, of.gid, int(of.mtime // 1), kept, content)
    return {name: about for name, about in found.items() if name not in OWN}


def seen(root: Path) -> dict[str, About]:
    """The same of files on disk."""
    found: dict[str, About] = {}
    first: dict[int, str] = {}
    kinds = {0o10: tarfile.FIFOTYPE, 0o40: tarfile.DIRTYPE, 0o100: tarfile.REGTYPE, 0o120: tarfile.SYMTYPE}
    for path in sorted(root.rglob("*"), key=lambda path: os.fsencode(path.relative_to(root)).split(b"/")):
        status = path.lstat()
        name = str(path.relative_to(root))
        kind = kinds[status.st_mode >> 12 << 3]
        content: object = os.readlink(path) if path.is_symlink() else ""
        if kind == tarfile.REGTYPE:
            content = (path.read_bytes(), first.setdefault(status.st_ino, name))
        kept = (
            {}
            if path.is_symlink()
            else {
                f"SCHILY.xattr.{attribute}": os.fsdecode(os.getxattr(path, attribute))
                for attribute in os.listxattr(path)
                if attribute != "user.rootlesscontainers"  # umoci's own
            }
        )
        mtime = status.st_mtime_ns // 10**9
        found[name] = (kind, status.st_mode & 0o7777, status.st_uid, status.st_gid, mtime, kept, content)
    return {name: about for name, about in found.items() if name not in OWN}


def unpacked_by_umoci(data: Path, tmp_path: Path) -> Path:
    into = tmp_path / "theirs"
    rootless = [] if ROOT else ["--rootless"]
    command = [program("umoci"), "unpack", *rootless, "--image", f"{data}/images:new:1", str(into)]
    subprocess.run(command, check=True, timeout=patient(60), capture_output=True)
    return into / "rootfs"


class TestOthers:
    def test_of_a_folder(self, tmp_path: Path) -> None:
        place = tmp_path / "root"
        (place / "bin").mkdir(parents=True)
        shutil.copy(program("busybox"), place / "bin/busybox")
        (place / "bin/sh").symlink_to("busybox")
        with Container(place) as box:
            sh(box, "echo x > /bin/x; /bin/busybox chown 0:0 /bin/x")
            made = box.commit("folder:1", cmd=["/bin/sh"])
        assert len(made.layers) == 2 and names(made) == ["bin", "bin/x"]
        with Container("folder:1") as box:
            assert sh(box, "cat /bin/x; /bin/busybox stat -c %u:%g /bin /bin/busybox").split() == [
                "x",
                "0:0",
                "0:0",
            ]

    def test_of_a_tar(self, tmp_path: Path) -> None:
        (tmp_path / "root.tar").write_bytes(base())
        with Container(tmp_path / "root.tar", env={"PATH": "/bin"}) as box:
            sh(box, "rm /etc/gone")
            made = box.commit("tar:1")
        assert len(made.layers) == 2 and names(made) == ["etc", "etc/.wh.gone"]
        assert made.config.config.env == ()

    def test_refused(self, image: Image) -> None:
        with Container() as box:
            for what in (lambda: box.commit("new:1"), lambda: box.export(io.BytesIO())):
                with pytest.raises(UnsupportedError, match="from an image, a folder or a tar"):
                    what()
        with Container("base:1") as box:
            with pytest.raises(isobox.InvalidReference):
                box.commit("No Name")
            with pytest.raises(TypeError, match="no_such"):
                box.commit("new:1", no_such=1)  # type: ignore[call-arg]
            sh(box, "touch /etc/.wh.kept")
            with pytest.raises(ImageError, match=r"/etc/\.wh\.kept"):
                box.commit("new:1")
            assert box.state == "running" and said(box, ["true"]) == ""
            box.export(io.BytesIO())
        for what in (lambda: box.commit("new:1"), lambda: box.export(io.BytesIO())):
            with pytest.raises(StateError):
                what()
        assert [found.references for found in Image.all()] == [("base:1",)]

    def test_an_image_that_is_gone(self, image: Image) -> None:
        with Container("base:1") as box:
            image.remove()
            with pytest.raises(ImageError, match="pull or load that again"):
                box.commit("new:1")

    def test_leaves_nothing(self, image: Image, tmp_path: Path) -> None:
        isobox.run(["true"], "base:1").check()
        with nothing_left():
            with Container("base:1") as box:
                sh(box, "touch /.wh.x")
                with pytest.raises(ImageError):
                    box.commit("new:1")
                sh(box, "rm /.wh.x")
                box.commit("new:1")
                box.export(tmp_path / "out.tar")
                with pytest.raises(ImageError, match="can't write /no/such"):
                    box.export("/no/such/out.tar")
        assert sorted(os.listdir(tmp_path / "data/images/.isobox/leases")) == []
        assert not [name for name in os.listdir(tmp_path) if name.startswith("out.tar.")]

    @pytest.mark.requires("cgroup_freezer")
    def test_at_one_moment(self, image: Image) -> None:
        """A program that goes on with two files doesn't get in between."""
        with Container("base:1") as box:
            script = "n=0; while :; do n=$((n+1)); echo $n > /etc/1; echo $n > /zz; done"
            with box.popen(["sh", "-c", script]) as process:
                while b"zz" not in box.exec(["ls", "/"]).stdout:
                    pass
                for _ in range(5):
                    made = box.commit("new:1")
                    with tarfile.open(fileobj=io.BytesIO(layer(made))) as tar:
                        first, last = (tar.extractfile(name).read() or b"0" for name in ("etc/1", "zz"))  # type: ignore[union-attr]
                    assert int(first) - int(last) in (0, 1) or b"0" in (first, last)
                assert process.poll() is None
                process.kill()

    @pytest.mark.requires("cgroup_freezer")
    def test_while_it_is_paused(self, image: Image) -> None:
        with Container("base:1") as box:
            sh(box, "echo x > /x")
            box.pause()
            made = box.commit("new:1")
            assert box.state == "paused" and names(made) == ["x"]
            with pytest.raises(StateError):
                box.export(io.BytesIO())
            box.resume()
            assert box.commit("new:2").layers == made.layers

    @pytest.mark.requires("tmpfs_xattrs")
    @pytest.mark.parametrize("userns", ["auto", pytest.param("host", marks=pytest.mark.requires("root"))])
    def test_of_a_snapshot(self, userns: Any, image: Image) -> None:
        with Container("base:1", userns=userns) as box:
            sh(box, "rm -r /data; mkdir /data; touch /data/1 /one; chown 0:0 /one; rm /etc/gone")
            first = box.snapshot()
        with first, Container(first, userns=userns) as box:
            sh(box, "rm /data/1; touch /data/2 /two")
            second = box.snapshot()
        with second, Container(second, userns=userns) as box:
            sh(box, "rm -r /data; mkdir /data; touch /data/3")
            before = listing(box)
            made = box.commit("new:1")
        assert [names(made)[:2], names_of(made, -2), names_of(made, -3)] == [
            ["data", "data/.wh..wh..opq"],
            ["data", "data/.wh.1", "data/2", "two"],
            ["data", "data/.wh..wh..opq", "data/1", "etc", "etc/.wh.gone", "one"],
        ]
        with Container("new:1", userns=userns) as box:
            assert listing(box) == before

    def test_while_it_changes(self, image: Image) -> None:
        """Whatever goes on in there, paused or not, the layer is whole."""
        script = """
        while :; do
            mkdir -p /a/b/c; echo x > /a/b/c/d; ln -s / /a/l; mkfifo /a/p
            mv /a/b /a/x; rm -r /a/x; rm -r /a; ln -s /etc /a; rm /a
        done
        """
        with Container("base:1") as box, box.popen(["sh", "-c", script]) as process:
            for _ in range(5):
                made = box.commit("new:1")
                assert not [name for name in names(made) if name.startswith("a/l/")]
                Image.from_tar(io.BytesIO(export(box)))
            process.kill()

    @pytest.mark.requires("tmpfs_xattrs")
    @pytest.mark.requires("id_ranges")
    def test_files_of_other_users(self, image: Image) -> None:
        """An ordinary user can't read them from outside; the container's root can."""
        with Container("base:1") as box:
            sh(
                box,
                "mkdir -m 700 /secret; echo s > /secret/file; chmod 600 /secret/file; ln -s x /secret/link",
            )
            sh(
                box,
                "mkdir /secret/dir; chown -R 7:7 /secret; rm -r /data; mkdir -m 700 /data; chown 7:7 /data",
            )
            made = box.commit("new:1")
            with tarfile.open(fileobj=io.BytesIO(export(box))) as tar:
                assert tar.getmember("secret/file").uid == 7
        with tarfile.open(fileobj=io.BytesIO(layer(made))) as tar:
            about = {info.name: (info.uid, info.mode, info.linkname) for info in tar}
            file = tar.extractfile("secret/file")
            assert file is not None and file.read() == b"s\n"
        assert about["secret/file"] == (7, 0o600, "") and about["secret/link"][2] == "x"
        assert about["secret/dir"][0] == 7 and "data/.wh..wh..opq" in about
        # Now they are in a layer below, closed to this user as well.
        with Container("new:1", mounts=["/usr:/secret/mnt:ro"]) as box:
            sh(box, "rm /secret/file; rm -r /secret/dir; mkdir /secret/dir; touch /secret/dir/new")
            before = listing(box)
            made = box.commit("new:2")
        assert {"secret/.wh.file", "secret/dir/.wh..wh..opq", "secret/dir/new"} <= set(names(made))
        with Container("new:2") as box:
            assert listing(box) == before


def export(box: Container) -> bytes:
    out = io.BytesIO()
    box.export(out)
    return out.getvalue()


@pytest.mark.requires("tmpfs_xattrs")
def test_export(image: Image, tmp_path: Path) -> None:
    """As an image, it is the same again; what was mounted is not in it."""
    (tmp_path / "own").write_bytes(b"of the host")
    with Container("base:1", mounts=[f"{tmp_path}:/mnt"]) as box:
        sh(box, "echo new > /etc/new; rm /etc/gone; rm -r /data")
        (tmp_path / "root.tar").write_bytes(b"before")
        box.export(tmp_path / "root.tar")
        before = listing(box)
    with tarfile.open(tmp_path / "root.tar") as tar:
        found = tar.getnames()
    assert "mnt" in found and not [
        name for name in found if name.startswith(("mnt/", "proc/", "dev/", "sys/"))
    ]
    assert "etc/new" in found and "data" not in found and "etc/gone" not in found
    made = Image.from_tar(tmp_path / "root.tar", "exported:1", env={"PATH": "/bin"})
    with Container(made.id) as box:
        assert listing(box) == before
    with pytest.raises(UnpackError, match=r"\.wh\."):
        Image.from_tar(io.BytesIO(packed(entry(".wh.a"))))


def test_volumes(tmp_path: Path) -> None:
    """What lies in a volume is no part of the image."""
    layers = packed(
        entry("vol", type=tarfile.DIRTYPE, mode=0o700, uid=5 if ROOT else 0), entry("vol/old", b"x")
    )
    Image.load(
        archive(tmp_path / "volumes.tar", base(), layers, run={"Volumes": {"/vol": {}, "/new/vol": {}}})
    )
    with Container("app:1", env={"PATH": "/bin"}) as box:
        sh(box, "echo x > /vol/file; echo x > /new/vol/file; echo x > /new/file; rm /vol/old")
        made = box.commit("app:2")
        with tarfile.open(fileobj=io.BytesIO(export(box))) as tar:
            assert (tar.getmember("vol").mode, tar.getmember("vol").uid) == (0o700, 5 if ROOT else 0)
            assert not [name for name in tar.getnames() if "vol/" in name] and "new/vol" in tar.getnames()
    assert names(made) == ["new", "new/file"]


def test_read_by_skopeo(image: Image, data: Path, tmp_path: Path) -> None:
    """What skopeo makes of it, digests checked."""
    with Container("base:1") as box:
        sh(box, CHANGES)
        box.commit("new:1")
    command = [program("skopeo"), "copy", "-q", f"oci:{data}/images:new:1", f"dir:{tmp_path}/theirs"]
    subprocess.run(command, check=True, timeout=patient(60))
    assert len(os.listdir(tmp_path / "theirs")) == 5


def isobox_command(*args: str, status: int = 0, **options: Any) -> tuple[str, str]:
    """What the command prints, to standard output and to standard error."""
    command = [sys.executable, "-m", "isobox.cli", *args]
    done = subprocess.run(command, capture_output=True, timeout=patient(60), **options)
    assert done.returncode == status, (done.stdout, done.stderr)
    return os.fsdecode(done.stdout), os.fsdecode(done.stderr)


class TestCommandLine:
    def test_run(self, image: Image) -> None:
        script = "echo said; rm /etc/gone; echo x > /etc/kept; touch /etc/new"
        options = ["--commit", "new:1", "--message", "why", "--author", "me", "--change", "ENV B=2"]
        out, err = isobox_command("run", "--diff", *options, "base:1", "sh", "-c", script)
        assert out == "said\n" and err.splitlines() == ["D /etc/gone", "C /etc/kept", "A /etc/new"]
        made = Image.get("new:1")
        assert made.config.config.env == ("PATH=/bin", "A=1", "B=2")
        assert (made.config.author, made.config.history[-1].comment) == ("me", "why")
        assert isobox_command("run", "new:1", "ls", "/etc/new") == ("/etc/new\n", "")

    def test_run_that_commits_nothing(self, image: Image) -> None:
        _, err = isobox_command("run", "--commit", "new:1", "base:1", "sh", "-c", "exit 3", status=3)
        assert "nothing was committed" in err
        for options, told in (
            (["--commit", "No Name", "base:1", "true"], "No Name"),
            (["--commit", "new:1", "host", "true"], "an image, a folder or a tar"),
            (["--message", "m", "base:1", "true"], "--message is for --commit"),
            (["--commit", "new:1", "--change", "RUN x", "base:1", "true"], "RUN x"),
        ):
            assert told in isobox_command("run", *options, status=125)[1]
        assert [found.references for found in Image.all()] == [("base:1",)]

    def test_export_and_import(self, image: Image, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        (tmp_path / "root/file").write_bytes(b"x")
        out, _ = isobox_command("import", str(tmp_path / "root"), "folder:1", "-c", 'CMD ["/bin/sh"]')
        made = Image.get("folder:1")
        assert out == f"{made.id}\n" and made.config.config.cmd == ("/bin/sh",)
        isobox_command("export", "-o", str(tmp_path / "root.tar"), "base:1")
        with tarfile.open(tmp_path / "root.tar") as tar:
            assert "bin/busybox" in tar.getnames()
        with open(tmp_path / "root.tar", "rb") as file:
            out, _ = isobox_command("import", "-", stdin=file)
        assert isobox_command("run", "-e", "PATH=/bin", out.strip(), "cat", "/etc/kept") == ("kept\n", "")
        assert "such archive" in isobox_command("import", str(tmp_path / "none"), status=125)[1]
        (tmp_path / "root/oci-layout").touch()
        assert "isobox load" in isobox_command("import", str(tmp_path / "root"), status=125)[1]
        assert "no image" in isobox_command("export", "none:1", status=125)[1]
        assert "image, a folder or a tar" in isobox_command("export", "host", status=125)[1]
