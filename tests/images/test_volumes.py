"""Named volumes: made, filled from an image, shared, removed; by several processes and after SIGKILL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import isobox
from archives import attributes_kept, entry, folder, link, packed
from isobox import Container, Image, Mount, NotFound, SpecError, StateError, Volume, idmap
from isobox.cli import main
from isobox.images import seed
from isobox.images.local import own_layers
from leftovers import nothing_left, wait_until
from made import archive, base
from patience import patient
from programs import ROOT, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

CAPABLE = b"\1\0\0\2" + b"\0\4\0\0" + bytes(12)

Captured: TypeAlias = pytest.CaptureFixture[str]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """One with a folder of many kinds of files at /data, in two layers."""
    below = packed(
        entry("data/hidden", b"x"),
        folder("data/gone"),
        entry("data/gone/x", b"x"),
        entry("data/changed", b"1"),
        folder("data/merged"),
        entry("data/merged/one", b"1"),
        folder("data/opaque"),
        entry("data/opaque/one", b"1"),
    )
    above = packed(
        entry("data", type=tarfile.DIRTYPE, mode=0o1770, uid=1000, gid=1000, mtime=7),
        entry("data/.wh.hidden"),
        entry("data/.wh.gone"),
        entry("data/changed", b"2", mode=0o604, uid=1000, gid=1000, mtime=5),
        entry("data/same", type=tarfile.LNKTYPE, linkname="data/changed"),
        entry("data/merged/two", b"2", mode=0o000),
        entry("data/opaque/.wh..wh..opq"),
        entry("data/opaque/two", b"2"),
        link("data/link", "/etc/passwd"),
        folder("data/closed", mode=0o500),
        entry("data/closed/file", b"c"),
    )
    return Image.load(archive(tmp_path / "app.tar", base(), below, above, run={}))


class TestFirstContent:
    def test_of_the_image(self, image: Image) -> None:
        with Container("app:1") as plain, Container("app:1", mounts=["web:/data"]) as box:
            names = said(plain, ["/bin/busybox", "find", "/data"])
            assert "hidden" not in names and "/data/opaque/two" in names and "opaque/one" not in names
            script = "busybox find /data | busybox sort | busybox xargs stat -c '%n %a %u:%g %F %Y'"
            assert sh(box, script) == sh(plain, script)
            assert sh(box, "cat /data/changed /data/merged/* /data/closed/file") == "2" + "12" + "c"
            assert sh(box, "stat -c %h /data/same") == "2\n"
            assert box.changes() == []

    def test_attributes(self, tmp_path: Path) -> None:
        """Those that layers have; a file's capabilities where the container has several ids."""
        attributes_kept(tmp_path)
        tool = entry("data/tool", b"x", uid=7, mode=0o755)
        tool[0].pax_headers = {"SCHILY.xattr.security.capability": CAPABLE.decode("latin-1")}
        at = folder("data", mode=0o500)
        at[0].pax_headers = {"SCHILY.xattr.user.of": "a folder", "SCHILY.xattr.user.overlay.opaque": "y"}
        file = entry("data/file", b"x", mode=0o400)
        file[0].pax_headers = {"SCHILY.xattr.user.of": "a file"}
        Image.load(archive(tmp_path / "app.tar", base(), packed(at, file, tool), run={}))
        with Container("app:1", mounts=["web:/data"]) as box:
            assert sh(box, "stat -c %a /data /data/file /data/tool").split() == ["500", "400", "755"]
        place = Volume.get("web").path
        found = {name: os.listxattr(f"{place}/{name}") for name in (".", "file", "tool")}
        assert found == {
            ".": ["user.of"],
            "file": ["user.of"],
            "tool": ["security.capability"] if ROOT or not idmap.of_user().single else [],
        }
        assert os.getxattr(place, "user.of") == b"a folder"
        if ROOT:
            assert os.getxattr(f"{place}/tool", "security.capability") == CAPABLE

    def test_sparse_files(self, tmp_path: Path) -> None:
        content = b"".join(os.urandom(5000).ljust(1 << 20, b"\0") for _ in range(3)) + bytes(4 << 20)
        (tmp_path / "sparse").mkdir()
        (tmp_path / "sparse/empty").write_bytes(b"")
        with open(tmp_path / "sparse/file", "wb") as file:
            for at in range(0, len(content), 4096):
                if any(content[at : at + 4096]):
                    os.pwrite(file.fileno(), content[at : at + 4096], at)
            file.truncate(len(content))
        tar = subprocess.run(["tar", "-cSC", tmp_path, "sparse"], capture_output=True, check=True).stdout
        Image.load(archive(tmp_path / "app.tar", base(), tar, run={}))
        isobox.run(["true"], "app:1", mounts=["web:/sparse"]).check()
        made = Path(Volume.get("web").path)
        assert (made / "file").read_bytes() == content and (made / "empty").read_bytes() == b""
        assert (made / "file").stat().st_blocks * 512 < 200_000

    def test_once(self, image: Image) -> None:
        with Container("app:1", mounts=["web:/data"]) as box:
            sh(box, "rm -r /data/*; echo own > /data/own")
        with Container("app:1", mounts=[Mount.volume("web", "/data", read_only=True)]) as box:
            assert said(box, ["ls", "/data"]) == "own\n"
            with pytest.raises(OSError, match="Read-only"):
                box.write_bytes("/data/x", b"")

    def test_none(self, image: Image) -> None:
        """Where the image has nothing, and on the host image, it is empty."""
        with Container("app:1", mounts=["web:/no/such"]) as box:
            assert said(box, ["ls", "/no/such"]) == ""
            box.write_bytes("/no/such/file", b"kept")
        assert isobox.run(["cat", "/data/file"], mounts=["web:/data:ro"]).stdout == b"kept"

    def test_many_at_once(self, image: Image) -> None:
        with ThreadPoolExecutor(4) as pool:
            run = lambda _: isobox.run(["cat", "/data/changed"], "app:1", mounts=["web:/data"]).stdout  # noqa: E731
            assert list(pool.map(run, range(4))) == [b"2"] * 4
        assert [volume.name for volume in Volume.all()] == ["web"]

    def test_a_failure(self, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing half-made is seen, and the next try works."""
        with monkeypatch.context() as broken:
            broken.setattr("isobox.images.seed.seed", half)
            with pytest.raises(isobox.SetupError, match="No space"):
                isobox.run(["true"], "app:1", mounts=["web:/data"])
        assert os.listdir(Volume.get("web").path) == []
        assert not Volume.get("web").in_use
        with Container("app:1", mounts=["web:/data"]) as box:
            assert said(box, ["cat", "/data/changed"]) == "2"

    def test_a_failure_that_another_waits_for(self, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who waited fills it."""
        waiting, real, calls = threading.Event(), seed.seed, []

        def first_fails(*args: Any) -> None:
            calls.append(args)
            if len(calls) > 1:
                real(*args)
                return
            waiting.set()
            assert wait_until(lambda: waits_for_lock(other.native_id))
            half(*args)

        def second() -> None:
            waiting.wait(patient(30))
            said_there.append(isobox.run(["cat", "/data/changed"], "app:1", mounts=["web:/data"]).stdout)

        said_there: list[bytes] = []
        monkeypatch.setattr(seed, "seed", first_fails)
        other = threading.Thread(target=second)
        other.start()
        with pytest.raises(isobox.SetupError, match="No space"):
            isobox.run(["true"], "app:1", mounts=["web:/data"])
        other.join()
        assert said_there == [b"2"] and len(calls) == 2

    def test_killed_on_the_way(self, image: Image, data: Path) -> None:
        code = (
            "import isobox, os; from isobox.images import seed\n"
            "def half(lowers, path, into):\n"
            "    open(into + '/half', 'w').close(); os.kill(os.getpid(), 9)\n"
            "seed.seed = half\n"
            "isobox.run(['true'], 'app:1', mounts=['web:/data'])"
        )
        done = subprocess.run([sys.executable, "-c", code], timeout=patient(60))
        assert done.returncode == -9 and len(os.listdir(data / "volumes/web")) == 3
        with Container("app:1", mounts=["web:/data"]) as box:
            assert "changed" in said(box, ["ls", "/data"])
        assert sorted(os.listdir(data / "volumes/web")) == ["data", "lock"]


def waits_for_lock(thread: int | None) -> bool:
    """By the name of what it sleeps in, in the kernel."""
    return "lock" in Path(f"/proc/self/task/{thread}/wchan").read_text()


def half(lowers: object, path: str, into: str) -> None:
    Path(into, "half").write_bytes(b"x")
    raise isobox.SetupError(28, "copy", stage="volume")


class TestLife:
    def test_shared_and_kept(self, image: Image) -> None:
        with Container("app:1", mounts=["web:/a"]) as one, Container("app:1", mounts=["web:/b"]) as two:
            one.write_bytes("/a/file", b"x")
            assert two.read_bytes("/b/file") == b"x"
            assert sh(two, "stat -c %u:%g /b /b/file").split() == ["0:0", "0:0"]
        assert isobox.run(["cat", "/c/file"], "app:1", mounts=["web:/c"]).stdout == b"x"

    def test_in_use(self, image: Image, data: Path, capfd: Captured) -> None:
        volume = Volume.create("web")
        assert Volume.create("web") == volume and not volume.in_use
        with pytest.raises(SpecError, match="^name='a/b': expected the name of a volume [^/]*$"):
            Volume.create("a/b")
        with Container("app:1", mounts=["web:/a", "web:/b"]) as box:
            assert volume.in_use
            with pytest.raises(StateError, match="volume web: a container uses it"):
                volume.remove()
            assert "uses it" in isobox_command(capfd, "volume", "rm", "web", status=125)
            assert Volume.prune() == []
            box.write_bytes("/a/x", b"")
        volume.remove()
        assert os.listdir(data / "volumes") == [".lock"] and Volume.all() == []
        with pytest.raises(NotFound, match="no volume web"):
            Volume.get("web")
        with pytest.raises(NotFound):
            volume.remove()

    def test_what_containers_wrote_goes(self, image: Image) -> None:
        with Container("app:1", mounts=["web:/a"]) as box:
            sh(box, "mkdir -p /a/b/c; echo > /a/b/c/d; chmod 000 /a/b/c /a/b")
            if box.exec(["/bin/busybox", "chown", "7:7", "/a/b"]).ok:
                assert sh(box, "stat -c %u /a/b") == "7\n"
        assert [volume.name for volume in Volume.prune()] == ["web"]
        assert Volume.all() == []

    def test_leaves_nothing(self, image: Image) -> None:
        Volume.create("web")
        with nothing_left():
            isobox.run(["true"], "app:1", mounts=["web:/data"]).check()
            with pytest.raises(isobox.ExecError):
                isobox.run(["no-such"], "app:1", mounts=["web:/data"])

    def test_of_the_containers_own(self, image: Image) -> None:
        for _ in range(2):
            with Container("app:1", mounts=["/data"], read_only=True) as box:
                assert sh(box, "ls /data/own; echo x > /data/own; cat /data/changed; true") == "2"
                assert box.changes() == []
        assert Volume.all() == []

    def test_a_child_that_lives_on(self, image: Image) -> None:
        """Forked while a container used the volume and the image's layers, it uses neither."""
        ends, go = os.pipe()
        with Container("app:1", mounts=["web:/data"]):
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(go)
                    os.read(ends, 1)
                finally:
                    os._exit(0)
        try:
            Volume.get("web").remove()
            image.remove()
            assert image._chosen.layers and Image.all() == []
            with own_layers() as layers:
                assert layers.chain_ids() == []
        finally:
            os.close(go)
            os.close(ends)
            assert os.waitpid(pid, 0) == (pid, 0)

    def test_explained(self, image: Image, data: Path) -> None:
        assert f"{data}/volumes/web/data" in Container("app:1", mounts=["web:/data"]).explain()
        assert Volume.all() == []


def test_command_line(image: Image, capfd: Captured) -> None:
    assert isobox_command(capfd, "volume", "ls") == "NAME  IN USE  CREATED\n"
    assert isobox_command(capfd, "volume", "create", "lock") == "lock\n"
    assert isobox_command(capfd, "run", "-v", "web:/data", "app:1", "cat", "/data/changed") == "2"
    assert isobox_command(capfd, "volume", "ls", "-q") == "lock\nweb\n"
    assert isobox_command(capfd, "volume", "ls").splitlines()[1].split()[:2] == ["lock", "no"]
    (found,) = json.loads(isobox_command(capfd, "volume", "inspect", "web"))
    assert (found["Name"], found["InUse"], found["Mountpoint"]) == ("web", False, Volume.get("web").path)
    assert "no volume none" in isobox_command(capfd, "volume", "inspect", "none", status=125)
    assert isobox_command(capfd, "volume", "rm", "lock") == "lock\n"
    assert "--force" in isobox_command(capfd, "volume", "prune", status=125)
    assert isobox_command(capfd, "volume", "prune", "-f") == "web\n"


def isobox_command(capfd: Captured, *args: str, status: int = 0) -> str:
    """What a command writes to stdout; to stderr where it is to fail."""
    found, (out, err) = main(args), capfd.readouterr()
    assert found == status, (out, err)
    return out if status == 0 else err
