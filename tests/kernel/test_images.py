"""Containers of images: loaded from archives of other programs and from made ones, run, removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import isobox
from archives import entry, folder, link, packed
from isobox import Change, Container, Image, ImageError, NotFound, UnpackError, idmap
from isobox.images.documents.platform import Platform
from isobox.images.local import forget, open_image, own_layers
from leftovers import nothing_left
from made import archive, base, busybox, upper
from patience import patient
from programs import said, sh
from requirements import program

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

LISTED = ["/data:", "new", "/etc:", "hostname", "hosts", "passwd", "resolv.conf"]
"""What ls shows of /etc and /data in a container of `image`."""

ONE_ID = os.geteuid() != 0 and idmap.of_user().single


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def unpacked() -> str:
    """Where the layers of this user's containers are."""
    with own_layers() as layers:
        return f"{layers.path}/layers"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image.load(archive(tmp_path / "app.tar", base(), upper()))


class TestRunning:
    def test_layers_and_settings(self, image: Image) -> None:
        assert image.references == ("app:1",) and image.created == "2026-01-02T03:04:05Z"
        with Container("app:1", env={"B": "own"}) as box:
            assert said(box, ["ls", "/etc", "/data"]).split() == LISTED
            assert sh(box, "echo $A, $B, $PWD, $HOME") == "of the image, own, /srv, /srv\n"
            assert sh(box, "cat mine") == "m"
            assert sh(box, "id -u; id -g").split() == ["1000", "1000"]
            found = sh(box, "stat -c %u:%g:%a mine /bin/busybox", user="0")
            assert found.split() == ["1000:1000:600", "0:0:755"]
            assert box.changes() == []
            sh(box, "echo x > /data/new", user="0")
            assert box.changes() == [Change("modified", "/data/new")]
        with Container("app:1", user="0", workdir="/", env={"A": "caller's"}) as box:
            assert sh(box, "id -u; echo $A $PWD; cat /data/new").split() == ["0", "caller's", "/", "n"]

    def test_one_id(self, image: Image) -> None:
        """What an ordinary user's files look like inside."""
        with Container("app:1", user="0") as box:
            assert sh(box, "cat /srv/mine; echo x > /etc/x; cat /etc/x", user="0") == "mx\n"

    def test_layers_are_there_once(self, image: Image, data: Path, tmp_path: Path) -> None:
        Image.load(archive(tmp_path / "other.tar", base(), upper(b"other"), tags=("other:1",)))
        for name in ("app:1", "other:1", "app:1"):
            with Container(name, user="0") as box:
                assert said(box, ["cat", "/data/new"]) == ("other" if name == "other:1" else "n")
        assert len(os.listdir(unpacked())) == 3

    def test_by_its_digest(self, image: Image) -> None:
        for name in (image.digest, image.digest.partition(":")[2][:12]):
            assert isobox.run(["true"], name, user="0").ok

    def test_without_layers(self, tmp_path: Path) -> None:
        Image.load(archive(tmp_path / "empty.tar", tags=("empty:1",), run={}))
        with Container("empty:1") as box:
            box.write_bytes("/file", b"x")
            assert box.changes() == [Change("added", "/file")]
            with pytest.raises(isobox.ExecError):
                box.exec(["/bin/sh"])

    def test_hostile_settings(self, tmp_path: Path) -> None:
        run = {"User": "no such user", "Env": ["=x", "A", "PATH=" + "/x:" * 5000], "WorkingDir": "/../../etc"}
        Image.load(archive(tmp_path / "odd.tar", base(), tags=("odd:1",), run=run))
        with Container("odd:1") as box:
            with pytest.raises(isobox.SpecError, match="no such user"):
                box.exec(["/bin/true"])
            assert sh(box, "echo $PWD", user="0", env={"PATH": "/bin"}) == "/etc\n"

    def test_leaves_nothing(self, image: Image) -> None:
        isobox.run(["true"], "app:1", user="0").check()
        with nothing_left():
            for _ in range(3):
                isobox.run(["true"], "app:1", user="0").check()
                with pytest.raises(isobox.SpecError), Container("app:1", user="nobody there") as box:
                    box.exec(["true"])
            with pytest.raises(NotFound):
                isobox.run(["true"], "none:1")

    def test_stop_signal(self, tmp_path: Path) -> None:
        Image.load(archive(tmp_path / "stop.tar", base(), tags=("stop:1",), run={"StopSignal": "SIGRTMIN+3"}))
        with Container("stop:1", env={"PATH": "/bin"}) as box:
            script = "trap 'echo asked; exit 7' 37; echo ready; while :; do true; done"
            with box.popen(["sh", "-c", script], stdout=isobox.PIPE) as process:
                assert process.stdout is not None and process.stdout.readline() == b"ready\n"
                box.stop()
                assert process.stdout.read() == b"asked\n" and process.returncode == 7


@pytest.mark.skipif(ONE_ID, reason="no ids but the user's own")
class TestOwners:
    """The same for root and for an ordinary user with subids."""

    def owned(self, name: str, uid: int, gid: int, **values: Any) -> tuple[tarfile.TarInfo, bytes]:
        return entry(name, b"x" if "type" not in values else b"", uid=uid, gid=gid, **values)

    def layers(self) -> tuple[bytes, bytes]:
        """The second has things in directories that only the first says the owners of."""
        directory = tarfile.DIRTYPE
        return (
            packed(
                folder("./"),
                folder("bin"),
                entry("bin/busybox", busybox(), mode=0o755),
                *[link(f"bin/{name}", "busybox") for name in "sh stat cat id chown touch".split()],
                folder("f"),
                self.owned("f/shadow", 0, 42, mode=0o640),
                self.owned("f/app", 1000, 1000, mode=0o600),
                self.owned("f/nobody", 65534, 65534),
                self.owned("f/setuid", 33, 33, mode=0o4755),
                self.owned("f/link", 1000, 42, type=tarfile.SYMTYPE, linkname="nowhere"),
                self.owned("f/pipe", 7, 8, type=tarfile.FIFOTYPE, mode=0o600),
                self.owned("closed", 999, 998, type=directory, mode=0o700),
                self.owned("closed/deep", 997, 996, type=directory, mode=0o710),
            ),
            packed(
                self.owned("closed/deep/new", 1000, 1000, mode=0o400),
                self.owned("f/.wh.nobody", 0, 0),
                self.owned("only", 5, 6, type=directory, mode=0o755),
            ),
        )

    def test_inside(self, tmp_path: Path) -> None:
        Image.load(archive(tmp_path / "owned.tar", *self.layers(), tags=("owned:1",), run={}))
        expected = {
            "f": "0:0:755",
            "f/shadow": "0:42:640",
            "f/app": "1000:1000:600",
            "f/setuid": "33:33:4755",
            "f/link": "1000:42:777",
            "f/pipe": "7:8:600",
            "closed": "999:998:700",
            "closed/deep": "997:996:710",
            "closed/deep/new": "1000:1000:400",
            "only": "5:6:755",
        }
        with Container("owned:1", env={"PATH": "/bin"}) as box:
            found = said(box, ["stat", "-c", "%n %u:%g:%a", *expected]).splitlines()
            assert dict(line.split() for line in found) == expected
            assert not box.exec(["stat", "f/nobody"]).ok
            # As the kernel sees it, not stat alone.
            assert said(box, ["cat", "f/app"], user="1000") == "x"
            assert not box.exec(["cat", "f/app"], user="1001").ok
            sh(box, "echo new > f/app; chown 1234:4321 f/shadow; touch closed/deep/more", user="0")
            assert said(box, ["stat", "-c", "%u:%g", "f/app", "f/shadow"]) == "1000:1000\n1234:4321\n"
            assert Change("modified", "/f/app") in box.changes()
        Image.get("owned:1").remove()
        assert os.listdir(unpacked()) == []

    @pytest.mark.requires("tmpfs_xattrs")  # else nothing marks a directory as made anew
    def test_changes_where_this_user_may_not_look(self, tmp_path: Path) -> None:
        """In directories that are closed to all but one user of the container."""
        directory = tarfile.DIRTYPE
        layer = packed(
            folder("./"),
            folder("bin"),
            entry("bin/busybox", busybox(), mode=0o755),
            *[link(f"bin/{name}", "busybox") for name in "sh rm mkdir touch chmod".split()],
            self.owned("c", 999, 998, type=directory, mode=0o700),
            self.owned("c/deep", 997, 996, type=directory, mode=0o711),
            self.owned("c/deep/kept", 5, 5),
            self.owned("c/deep/changed", 5, 5, mode=0o600),
            self.owned("c/removed", 999, 998),
            self.owned("c/anew", 999, 998, type=directory, mode=0o700),
            self.owned("c/anew/gone", 999, 998),
            self.owned("c/anew/back", 999, 998),
        )
        above = packed(
            self.owned("c/opaque", 999, 998, type=directory, mode=0o700),
            self.owned("c/opaque/.wh..wh..opq", 0, 0),
        )
        Image.load(archive(tmp_path / "closed.tar", layer, above, tags=("closed:1",), run={}))
        with Container("closed:1", user="0", env={"PATH": "/bin"}) as box:
            assert box.changes() == []
            sh(box, "echo x >> c/deep/changed; touch c/deep/new c/opaque/new; rm c/removed; chmod 750 c")
            sh(box, "rm -r c/anew; mkdir -m 700 c/anew; touch c/anew/back")
            assert box.changes() == [
                Change("modified", "/c"),
                Change("modified", "/c/anew"),
                Change("modified", "/c/anew/back"),
                Change("deleted", "/c/anew/gone"),
                Change("modified", "/c/deep/changed"),
                Change("added", "/c/deep/new"),
                Change("added", "/c/opaque/new"),
                Change("deleted", "/c/removed"),
            ]

    def test_a_root_that_is_closed(self, tmp_path: Path) -> None:
        layer = packed(
            self.owned("./", 1000, 1000, type=tarfile.DIRTYPE, mode=0o700),
            folder("bin"),
            entry("bin/busybox", busybox(), mode=0o755),
            *[link(f"bin/{name}", "busybox") for name in ("sh", "rm")],
            folder("proc"),
            entry("there", b"x"),
        )
        Image.load(archive(tmp_path / "shut.tar", layer, tags=("shut:1",), run={}))
        with Container("shut:1", user="0", env={"PATH": "/bin"}) as box:
            sh(box, "test -d /proc/self; test -c /dev/null; rm /there; echo x > /new")
            assert box.changes() == [Change("added", "/new"), Change("deleted", "/there")]

    @pytest.mark.requires("ordinary_user")
    def test_an_owner_that_this_user_may_not_have(self, tmp_path: Path) -> None:
        layer = packed(self.owned("x", 2_000_000_000, 0))
        Image.load(archive(tmp_path / "odd.tar", layer, tags=("odd:1",), run={}))
        with pytest.raises(UnpackError, match="2000000000:0.*/etc/subuid"):
            Container("odd:1").start()
        assert os.listdir(unpacked()) == []

    @pytest.mark.requires("ordinary_user")
    def test_the_user_s_range_changes(
        self, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was unpacked with other ids is not used, and removed with its image."""
        before = unpacked()
        assert isobox.run(["true"], "app:1", user="0").ok
        single = idmap.for_user(os.getuid(), os.getgid(), (), (), newuidmap_available=False)
        with monkeypatch.context() as changed:
            changed.setattr(idmap, "of_user", lambda: single)
            other = unpacked()
            forget()
            open_image("app:1").close()
            assert other != before and len(os.listdir(other)) == len(os.listdir(before)) == 2
            assert os.stat(f"{other}/{os.listdir(other)[0]}/root").st_uid == os.getuid()
        image.remove()
        assert os.listdir(other) == os.listdir(before) == []


class TestNames:
    def test_no_such_image(self) -> None:
        with pytest.raises(NotFound, match="debian:12.*isobox load"):
            isobox.run(["true"], "debian:12")

    def test_a_file_of_that_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "rootfs/bin").mkdir(parents=True)
        (tmp_path / "rootfs/bin/busybox").write_bytes(busybox())
        (tmp_path / "rootfs/bin/busybox").chmod(0o755)
        with pytest.raises(NotFound, match=r"write \./rootfs"):
            isobox.run(["true"], "rootfs")
        for path in ("./rootfs", Path("rootfs"), tmp_path / "rootfs"):
            assert isobox.run(["/bin/busybox", "true"], path).ok

    def test_for_another_machine(self, tmp_path: Path) -> None:
        other = "s390x" if Platform.here().architecture != "s390x" else "amd64"
        image = Image.load(archive(tmp_path / "other.tar", base(), architecture=other))
        assert str(image.config.platform) == f"linux/{other}" and Image.all() == [image]
        for name in ("app:1", image):
            with pytest.raises(ImageError, match=f"is here for linux/{other} alone.*--platform.*platform="):
                isobox.run(["true"], name)

    def test_tag_and_remove(self, image: Image, data: Path) -> None:
        assert image.tag("localhost:5000/team/app:2").references == ("app:1", "localhost:5000/team/app:2")
        assert [found.references for found in Image.all()] == [("app:1", "localhost:5000/team/app:2")]
        assert isobox.run(["true"], "localhost:5000/team/app:2", user="0").ok
        Image.get("app:1").remove()
        assert Image.all() == [] and os.listdir(unpacked()) == []
        assert [name for _, _, names in os.walk(data / "images/blobs") for name in names] == []
        with pytest.raises(NotFound):
            Image.get("app:1")

    def test_removed_while_it_runs(self, image: Image, data: Path) -> None:
        with Container("app:1", user="0") as box:
            image.remove()
            assert said(box, ["cat", "/data/new"]) == "n"
            assert len(os.listdir(unpacked())) == 2
        other = Image.load(archive(data.parent / "other.tar", base(), tags=("other:1",)))
        other.remove()
        assert os.listdir(unpacked()) == []

    def test_one_name_after_the_other(self, image: Image, data: Path, tmp_path: Path) -> None:
        image.tag("app:2")
        Image.load(archive(tmp_path / "other.tar", base(), tags=("other:1",)))
        with pytest.raises(NotFound):
            image.untag("app:3")
        with pytest.raises(NotFound, match="another image"):
            image.untag("other:1")
        image.untag("app:1")
        assert Image.get(image.id).references == ("app:2",)
        assert isobox.run(["true"], "app:2", user="0").ok and not image.in_use
        with Container("app:2", user="0") as box:
            assert image.in_use
            image.untag("app:2")
            assert said(box, ["cat", "/data/new"]) == "n"
            assert len(os.listdir(unpacked())) == 2
        assert [found.references for found in Image.all()] == [("other:1",)]
        assert len(isobox.Store.default().prune().layers) == 1
        assert len(os.listdir(unpacked())) == 1, "what the other image shares"

    def test_without_a_name(self, image: Image, data: Path, tmp_path: Path) -> None:
        unnamed = Image.load(archive(tmp_path / "unnamed.tar", base(), tags=()))
        assert unnamed.references == () and Image.all() == [image, unnamed]
        for name in (unnamed.id, unnamed.id[7:19], unnamed.digest):
            assert isobox.run(["true"], name, user="0").ok
        Image.load(archive(tmp_path / "other.tar", tags=("other:1",), run={})).remove()
        assert Image.get(unnamed.id) == unnamed, "it goes by no other image's end"
        isobox.run(["true"], "app:1", user="0").check()
        pruned = isobox.Store.default().prune()
        assert [str(digest) for digest in pruned.images] == [unnamed.digest] and pruned.layers == ()
        assert Image.all() == [image] and len(os.listdir(unpacked())) == 2
        again = Image.load(tmp_path / "unnamed.tar")
        assert again.tag("app:2").references == ("app:2",)
        assert isobox.Store.default().prune().images == ()
        assert {found.references for found in Image.all()} == {("app:1",), ("app:2",)}

    def test_in_a_store_of_its_own(self, image: Image, tmp_path: Path) -> None:
        store = isobox.Store(tmp_path / "own")
        assert store.images() == [] and Image.all() == [image]
        with (tmp_path / "app.tar").open("rb") as file:
            own = Image.load(file, store=store)
        assert store.images() == [own] == [Image.get("app:1", store=store)] and own == image
        own.tag("app:2")
        assert Image.get("app:2", store=store).references == ("app:1", "app:2")
        Image.get("app:1").remove()
        assert len(store.images()) == 1 and store.prune().size == 0
        own.remove()
        assert store.images() == []

    def test_several_in_one_archive(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "app.tar", base(), tags=("app:1", "app:2"))
        assert Image.load(path).references == ("app:1", "app:2")
        with pytest.raises(NotFound, match="no such archive"):
            Image.load(tmp_path / "none.tar")
        with pytest.raises(ImageError, match="holds no image"):
            Image.load(tmp_path)


@pytest.mark.parametrize("format", ["docker-archive", "oci-archive"])
def test_what_skopeo_writes(format: str, image: Image, data: Path, tmp_path: Path) -> None:
    """Our store in its hands, its archive in ours: the same image."""
    path = tmp_path / "theirs.tar"
    command = [program("skopeo"), "copy", "-q", f"oci:{data}/images:app:1", f"{format}:{path}:app:1"]
    subprocess.run(command, check=True, timeout=patient(60))
    shutil.rmtree(data)
    loaded = Image.load(path)
    assert loaded.layers == image.layers and loaded.config.config == image.config.config
    with Container("app:1", user="0") as box:
        assert said(box, ["ls", "/etc", "/data"]).split() == LISTED


def test_command_line(tmp_path: Path) -> None:
    def isobox_command(*args: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "isobox.cli", *args], capture_output=True, text=True, timeout=patient(60)
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stdout if status == 0 else done.stderr

    path = archive(tmp_path / "app.tar", base(), upper())
    assert isobox_command("images") == "NAME  ID  SIZE  CREATED\n"
    assert isobox_command("load", str(path)) == "app:1\n"
    head, line = isobox_command("images").splitlines()
    assert head.split() == ["NAME", "ID", "SIZE", "CREATED"]
    name, short, _size, unit, created = line.split()
    assert (name, unit, created) == ("app:1", "MiB", "2026-01-02") and Image.get("app:1").id[7:19] == short
    assert isobox_command("run", "app:1", "sh", "-c", "echo $A") == "of the image\n"
    assert isobox_command("rmi", "app:1").splitlines()[0] == "Untagged: app:1"
    error = isobox_command("rmi", "app:1", status=125)
    assert "isobox load" in error and "IMAGE is" not in error
    assert "IMAGE is" in isobox_command("run", "--pull", "never", "app:1", "true", status=125)
    assert "IMAGE is" not in isobox_command("load", "/no/such.tar", status=125)
