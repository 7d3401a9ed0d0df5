"""Containers of images, as the users of images expect them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import isobox
from archives import entry, folder, link, packed
from isobox import Container, Image, shared
from isobox.cli import main
from isobox.images import local
from leftovers import nothing_left
from made import archive, base, busybox, upper
from patience import patient
from programs import said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

Captured: TypeAlias = pytest.CaptureFixture[str]


def load(tmp_path: Path, *layers: bytes, name: str = "app:1", **run: Any) -> Image:
    """An image of these layers, or of a small one, whose config is `run`."""
    path = archive(tmp_path / "image.tar", *(layers or (base(),)), tags=(name,), run=run)
    return Image.load(path)


class TestKeptReady:
    """What a process keeps of an image from one container to the next."""

    def test_the_same_values(self, tmp_path: Path) -> None:
        load(tmp_path)
        with Container("app:1") as one, Container("app:1") as two:
            # So that what was prepared for one container fits the next.
            assert rootfs(one) is rootfs(two)
            load(tmp_path, name="other:1")  # changes the names in the store, not this image
            with Container("app:1") as three, Container("other:1") as other:
                assert rootfs(three) is rootfs(one)
                assert said(other, ["cat", "/data/old"]) == "x"

    def test_a_name_that_moves(self, tmp_path: Path) -> None:
        load(tmp_path)
        with Container("app:1") as old:
            load(tmp_path, base(), upper())
            with Container("app:1") as new:
                assert said(new, ["ls", "/data"]) == "new\n"
            assert said(old, ["ls", "/data"]) == "old\n"

    def test_layers_stay_while_they_are_kept(self, tmp_path: Path) -> None:
        """Another process may remove the image meanwhile; who comes back later unpacks it anew."""
        load(tmp_path)
        with local.own_layers() as found:
            layers = Path(found.path, "layers")
        isobox.run(["true"], "app:1").check()
        remove = "import isobox; isobox.Image.get('app:1').remove()"
        subprocess.run([sys.executable, "-c", remove], check=True, timeout=patient(60))
        assert len(os.listdir(layers)) == 1
        with pytest.raises(isobox.NotFound):
            isobox.run(["true"], "app:1")
        load(tmp_path)
        local.forget()
        subprocess.run([sys.executable, "-c", remove], check=True, timeout=patient(60))
        assert os.listdir(layers) == []
        load(tmp_path)
        isobox.run(["true"], "app:1").check()

    def test_a_removed_image_that_still_runs(self, tmp_path: Path, capfd: Captured) -> None:
        """Whoever removes it is told what stays, and what takes that away."""
        load(tmp_path, base(), upper())
        with Container("app:1") as box:
            assert main(["rmi", "app:1"]) == 0
            said_there = capfd.readouterr()
            assert said_there.out.startswith("Untagged: app:1\nDeleted: sha256:")
            stays = "2 unpacked layers stay while in use: isobox prune, when the containers have ended\n"
            assert said_there.err == stays
            assert main(["prune"]) == 0 and capfd.readouterr().err == stays
            assert sh(box, "echo runs") == "runs\n"
        assert "2 unpacked layers removed" in isobox_command(capfd, "prune")
        assert main(["prune"]) == 0 and capfd.readouterr().err == ""

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        load(tmp_path)
        with nothing_left():
            isobox.run(["true"], "app:1").check()
            pid = os.fork()
            if pid == 0:
                kept = [fd for fd in os.listdir("/proc/self/fd") if "/layers/locks/" in target(fd)]
                os._exit(len(kept))
            assert os.waitpid(pid, 0)[1] == 0

    def test_many_layers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Given one by one, and in one option: the kernel takes a page of those before Linux 6.8."""
        # What would mean something to the kernel there.
        monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "a:b,c\\d"))
        load(tmp_path, base(), *[packed(entry(f"etc/{number}", b"x")) for number in range(130)])
        for _ in range(2):
            with Container("app:1") as box:
                assert len(said(box, ["ls", "/etc"]).split()) == 132 + 3  # those of isobox
                said(box, ["busybox", "rm", "/etc/7"])
                assert len(said(box, ["ls", "/etc"]).split()) == 132 + 2
                if not shared.shared().lowerdir_plus:
                    assert "lowerdir=0:1:2:3" in box.explain()
            monkeypatch.setattr(shared.shared(), "lowerdir_plus", False)


ONE_ID = """
import sys
sys.path = {path}
from isobox import Container, Image
Image.load({archive!r})
with Container("app:1", mounts=["web:/data"]) as box:
    script = "stat -c %u:%g /srv /data; cat /data/new; echo own > /data/own"
    print(box.exec(["sh", "-c", script], text=True).stdout)
    box.commit("new:1")
print(*[image.references for image in Image.all()])
for image in Image.all():
    image.remove()
"""


def test_root_with_one_id(tmp_path: Path, data: Path) -> None:
    """As unshare --map-root-user makes it: all files of an image are its own."""
    path = str(archive(tmp_path / "image.tar", base(), upper(), run={}))
    command = [sys.executable, "-c", ONE_ID.format(path=sys.path, archive=path)]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as state:  # /run/isobox is another's in there
        os.chmod(state, 0o711)
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", *command],
            env={**os.environ, "ISOBOX_STATE_DIR": state},
            capture_output=True,
            timeout=patient(60),
        )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.split() == b"0:0 0:0 n ('app:1',) ('new:1',)".split()
    assert os.listdir(data / "layers-1/layers") == []


class TestWhatItRuns:
    def test_in_python(self, tmp_path: Path) -> None:
        load(tmp_path, Entrypoint=["echo", "-n"], Cmd=["a", "b"], Labels={"one": "1", "two": "2"})
        assert isobox.run(image="app:1").stdout == b"a b"
        assert isobox.run(None, "app:1").stdout == b"a b"
        assert isobox.run(["echo", "own"], "app:1").stdout == b"own\n"
        with Container("app:1", labels={"two": "own"}) as box:
            assert (box.entrypoint, box.cmd) == (("echo", "-n"), ("a", "b"))
            assert box.labels == {"one": "1", "two": "own"}
            assert box.exec(["echo", "x"]).stdout == b"x\n"

    def test_of_an_image_value(self, tmp_path: Path) -> None:
        image = load(tmp_path, Cmd=["echo", "x"])
        assert isobox.run(image=image).stdout == b"x\n"
        with Container(image) as box:
            assert box.image == image.digest
        with pytest.raises(isobox.SpecError, match="an Image or a Snapshot"):
            Container(3)  # type: ignore[arg-type]

    def test_nothing_to_run(self, tmp_path: Path) -> None:
        load(tmp_path)
        for image in ("app:1", "host"):
            with pytest.raises(isobox.SpecError, match=f"a program.*image {image} names none"):
                isobox.run(image=image)

    @pytest.mark.parametrize(
        ("run", "given", "said"),
        [
            ({"Cmd": ["echo", "cmd"]}, ["app:1"], "cmd"),
            ({"Cmd": ["echo", "cmd"]}, ["app:1", "echo", "own"], "own"),
            ({"Entrypoint": ["echo", "e"], "Cmd": ["cmd"]}, ["app:1"], "e cmd"),
            ({"Entrypoint": ["echo", "e"], "Cmd": ["cmd"]}, ["app:1", "own"], "e own"),
            ({"Entrypoint": ["false"], "Cmd": ["cmd"]}, ["--entrypoint", "echo", "app:1"], ""),
            ({"Entrypoint": ["false"]}, ["--entrypoint", "echo", "app:1", "own"], "own"),
            ({"Entrypoint": ["false"]}, ["--entrypoint", "", "app:1", "echo", "own"], "own"),
        ],
    )
    def test_command_line(
        self, run: dict[str, Any], given: list[str], said: str, tmp_path: Path, capfd: Captured
    ) -> None:
        load(tmp_path, **run)
        assert isobox_command(capfd, "run", *given) == f"{said}\n"

    def test_command_line_without_any(self, tmp_path: Path, capfd: Captured) -> None:
        load(tmp_path)
        assert "add a command, such as isobox run app:1 sh" in isobox_command(
            capfd, "run", "app:1", status=125
        )


class TestWorkingDirectory:
    def test_is_made(self, tmp_path: Path) -> None:
        load(tmp_path, WorkingDir="/new/place")
        with Container("app:1", read_only=True) as box:
            assert sh(box, "pwd; stat -c %u:%g:%a /new . /data") == "/new/place\n" + "0:0:755\n" * 3
            assert [change.path for change in box.changes()] == ["/new", "/new/place"]
        with Container("app:1", workdir="/data/own/../there") as box:
            assert sh(box, "pwd; ls /data") == "/data/there\nold\nown\nthere\n"

    def test_never_outside(self, tmp_path: Path) -> None:
        """Links of the image lead nowhere else, whatever they say."""
        outside = tmp_path / "outside"
        outside.mkdir(mode=0o777)
        outside.chmod(0o777)
        links = packed(
            link("up", "../../../.." + str(outside)), link("straight", str(outside)), link("loop", "loop")
        )
        load(tmp_path, base(), links)
        for workdir in ("/up/a", "/straight/a", "/loop/a", "/bin/sh/a", "/../../a", "/" + "n" * 300):
            with Container("app:1", workdir=workdir) as box:
                if workdir.startswith("/.."):
                    assert said(box, ["sh", "-c", "pwd"]) == "/a\n"
                    continue
                with pytest.raises(isobox.ExecError, match="workdir"):
                    box.exec(["true"])
                assert box.exec(["true"], workdir="/").ok
        assert os.listdir(outside) == []

    def test_not_on_the_host_image(self) -> None:
        with Container("host", workdir="/no/such") as box, pytest.raises(isobox.ExecError, match="/no/such"):
            box.exec(["true"])


class TestFilesOfEtc:
    def test_of_an_image(self, tmp_path: Path) -> None:
        odd = packed(link("etc/resolv.conf", "../run/none"), entry("etc/hosts", b"of the image"))
        load(tmp_path, base(), odd)
        kinds: list[Any] = [{}, {"read_only": True}, {"upper": "disk"}, {"hostname": "box", "disk": "64K"}]
        for options in kinds:
            with Container("app:1", **options) as box:
                name = box.spec.hostname or box.id
                lines = said(box, ["cat", "/etc/hosts"]).splitlines()
                assert lines[0] == "127.0.0.1\tlocalhost" and lines[-1] == f"127.0.1.1\t{name}"
                assert said(box, ["cat", "/etc/hostname"]) == f"{name}\n"
                assert said(box, ["cat", "/etc/resolv.conf"]) == ""
                assert sh(box, "stat -c %u:%g:%a /etc /etc/hosts; ls /etc") == (
                    "0:0:755\n0:0:644\ngone\nhostname\nhosts\npasswd\nresolv.conf\n"
                )
                assert box.changes() == []
                if not box.spec.read_only:
                    sh(box, "echo x > /etc/hosts; echo x > /etc/own; true")
                    assert box.changes() == [isobox.Change("added", "/etc/own")]

    def test_with_the_hosts_network(self, tmp_path: Path) -> None:
        load(tmp_path)
        with Container("app:1", network="host") as box:
            there = Path("/etc/resolv.conf")
            assert box.read_bytes("/etc/resolv.conf") == (there.read_bytes() if there.exists() else b"")
            assert box.read_text("/etc/hosts").endswith(f"127.0.1.1\t{box.id}\n")

    def test_a_users_own(self, tmp_path: Path) -> None:
        """What is mounted there is the user's, and is not written to."""
        own = tmp_path / "own"
        own.mkdir()
        for name in ("hosts", "hostname"):
            (own / name).write_text("mine")
        load(tmp_path, base(), packed(link("way", "etc")))
        with Container("app:1", mounts=[f"{own}:/etc"]) as box:
            assert said(box, ["cat", "/etc/hosts"]) == "mine"
        with Container("app:1", mounts=[f"{own}/hosts:/way/hosts"]) as box:
            assert said(box, ["cat", "/etc/hosts"]) == "mine"
            assert said(box, ["cat", "/etc/hostname"]) == f"{box.id}\n"
        assert [path.read_text() for path in sorted(own.iterdir())] == ["mine", "mine"]

    def test_links_and_files_in_the_way(self, tmp_path: Path) -> None:
        """Nothing is written where an image's /etc leads to; what is no directory stays what it is."""
        outside = tmp_path / "outside"
        outside.mkdir()
        load(tmp_path, packed(*busy(), link("etc", str(outside))))
        with Container("app:1") as box:
            assert said(box, ["/bin/busybox", "readlink", "/etc"]) == f"{outside}\n"
        load(tmp_path, packed(*busy(), entry("etc", b"file")))
        with Container("app:1") as box:
            assert said(box, ["/bin/busybox", "cat", "/etc"]) == "file"
        load(tmp_path, packed(*busy()))
        with Container("app:1") as box:
            assert box.read_text("/etc/hostname") == f"{box.id}\n"
        assert os.listdir(outside) == []

    def test_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "root/bin").mkdir(parents=True)
        (tmp_path / "root/bin/busybox").write_bytes(busybox())
        (tmp_path / "root/bin/busybox").chmod(0o755)
        with Container(tmp_path / "root", hostname="box") as box:
            assert said(box, ["/bin/busybox", "cat", "/etc/hostname"]) == "box\n"
            assert box.changes() == []


class TestVolumesOfTheImage:
    def test_a_place_of_its_own(self, tmp_path: Path) -> None:
        load(tmp_path, Volumes={"/data": {}, "/new/deep/": {}})
        for _ in range(2):  # what one container writes, the next doesn't see
            with Container("app:1", read_only=True) as box:
                assert sh(box, "ls /data /new/deep; echo x > /data/old; echo y > /new/deep/y") == (
                    "/data:\nold\n\n/new/deep:\n"
                )
                assert sh(box, "cat /data/old /new/deep/y; stat -c %u:%a /new/deep") == "x\ny\n0:755\n"
                with pytest.raises(OSError, match="Read-only"):
                    box.write_bytes("/file", b"")
                assert box.changes() == []

    def test_a_mount_of_the_users_instead(self, tmp_path: Path) -> None:
        own = tmp_path / "own"
        own.mkdir()
        load(tmp_path, Volumes={"/data": {}})
        with Container("app:1", mounts=[f"{own}:/data"]) as box:
            box.write_bytes("/data/file", b"x")
        assert (own / "file").read_bytes() == b"x"

    def test_links_of_the_image(self, tmp_path: Path) -> None:
        """What is shown at a volume is the image's own, not the machine's: /proc has its covers."""
        outside = tmp_path / "outside"
        outside.mkdir()
        links = packed(link("p", "proc"), link("s", "../sys"), link("o", str(outside)), folder("tmp"))
        load(tmp_path, base(), links, Volumes={"/p": {}, "/s/kernel": {}, "/proc": {}, "/dev/x": {}})
        load(tmp_path, base(), links, name="plain:1")
        with Container("app:1") as box, Container("plain:1") as plain:
            mine, others = (
                [
                    line.split()[:3]
                    for line in sh(one, "cat /proc/mounts").splitlines()
                    if " overlay " not in line
                ]
                for one in (box, plain)
            )
            assert mine == others
        load(tmp_path, base(), links, Volumes={"/o": {}})
        with pytest.raises(isobox.SetupError, match="/o"):
            Container("app:1").start()
        assert os.listdir(outside) == []

    @pytest.mark.parametrize("path", ["/", "data", "/a/../../b", "", "/" + "a/" * 40])
    def test_nonsense(self, path: str, tmp_path: Path) -> None:
        load(tmp_path, Volumes={path: {}})
        with pytest.raises(isobox.ImageError, match="Volumes"):
            Container("app:1").start()


def busy() -> list[Any]:
    """Of a layer: a program."""
    return [folder("bin"), entry("bin/busybox", busybox(), mode=0o755)]


def isobox_command(capfd: Captured, *args: str, status: int = 0) -> str:
    """What a command writes to stdout; to stderr where it is to fail."""
    found, (out, err) = main(args), capfd.readouterr()
    assert found == status, (out, err)
    return out if status == 0 else err


def rootfs(box: Container) -> object:
    assert box._programs is not None
    return box._programs.launched.rootfs


def target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""
