"""Snapshots of running containers: what they keep, how containers begin at them, and what is left of them."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest

import isobox
import listing
from isobox import (
    Change,
    Container,
    Image,
    Mount,
    SetupError,
    Snapshot,
    SpecError,
    StateError,
    UnsupportedError,
    host,
    idmap,
    shared,
    shells,
)
from leftovers import (
    count,
    descendants,
    nothing_left,
    resident,
    wait_until,
)
from made import archive, base, upper
from patience import patient
from programs import alone, python, said, sh
from requirements import obstacle

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

ROOT = os.geteuid() == 0
ONE_ID = not ROOT and idmap.of_user().single
LIMITED = host.features().cgroup_memory
FREEZES = host.features().cgroup_freezer
USERNS = pytest.mark.parametrize("userns", ["auto", *["host"] * ROOT])
WHERE = pytest.mark.parametrize("where", ["memory", "disk"])

ODD = """
import os, sys
os.umask(0)
os.makedirs("/data/deep/" + "/".join("d" * 90))
os.makedirs("/data/long/" + "n" * 255)
with open("/data/sparse", "wb") as file:
    for at in (0, 3 << 20, 9 << 20):
        file.seek(at)
        file.write(b"here" * 3000)
    file.truncate(20 << 20)
open("/data/first", "w").write("x" * 5000)
os.link("/data/first", "/data/long/second")
os.link("/data/first", "/data/third")
os.symlink("nowhere/" * 300, "/data/symlink")
os.mkfifo("/data/fifo", 0o620)
open("/data/setuid", "w").write("#!")
os.chmod("/data/setuid", 0o6751)
open("/data/closed", "w").write("secret")
os.chmod("/data/closed", 0)
os.mkdir("/data/shut")
open("/data/shut/in", "w").close()
os.mkdir("/data/sticky")
os.chmod("/data/sticky", 0o3777)
if "attributes" in sys.argv:
    os.setxattr("/data/first", "user.note", bytes(range(256)))
    os.setxattr("/data/sticky", "user.empty", b"")
if "ids" in sys.argv:
    os.chown("/data/shut", 7, 8)
    os.lchown("/data/symlink", 1000, 65000)
    os.chown("/data/fifo", 5, 0)
    # One more who may read: acl(5), and acl_ea_header in the kernel's posix_acl_xattr.h.
    import struct
    rules = [(1, 6, 2**32 - 1), (2, 4, 33), (4, 4, 2**32 - 1), (16, 6, 2**32 - 1), (32, 0, 2**32 - 1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *rule) for rule in rules)
    os.setxattr("/data/third", "system.posix_acl_access", acl)
    # CAP_NET_RAW, VFS_CAP_REVISION_2: capabilities(7).
    os.setxattr("/data/setuid", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
os.chmod("/data/shut", 0)
for number, name in enumerate(sorted(os.listdir("/data"))):
    os.utime("/data/" + name, ns=(10**18 + number, -(10**15) + number), follow_symlinks=False)
os.utime("/data", (5, 6))
"""


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image.load(archive(tmp_path / "app.tar", base(), upper(), run={"Env": ["A=of the image"]}))


def files(box: Container, path: str = "/data") -> Any:
    """Everything that is known of a tree of the container, as its root sees it."""
    shown = said(box, [sys.executable, "-I", "-c", Path(listing.__file__).read_text(), path])
    acl = said(
        box,
        python("import os\nprint(os.getxattr('/data/third', 'system.posix_acl_access'))\n")
        if not ONE_ID and path == "/data"
        else ["true"],
    )
    return json.loads(shown), acl


def ready(taken: Snapshot) -> bool:
    """Whether a shell waits for the next container that begins there."""
    kept = shells.shells(shared.shared())._ready
    return any(wanted.rootfs is taken.origin.source.rootfs and kept[wanted] for wanted in list(kept))


def state(box: Container) -> str:
    return box.state


@contextlib.contextmanager
def running(box: Container, args: list[str]) -> Iterator[isobox.Process]:
    """A program that has said "go" and runs on to the end of the block."""
    with box.popen(args, stderr=isobox.STDOUT) as program:
        assert program.stdout is not None and program.stdout.readline() == b"go\n"
        yield program
        program.kill()


def odd(box: Container, where: str) -> None:
    attributes = where == "disk" or host.features().tmpfs_xattrs
    said(box, python(ODD, *["ids"] * (not ONE_ID), *["attributes"] * attributes))


class TestContent:
    @USERNS
    @WHERE
    def test_file_by_file(self, where: Any, userns: Any) -> None:
        """Whatever a program writes is in another container as it was, and owners as that one has them."""
        if where == "disk" and ROOT and (reason := obstacle(["tmpfs_xattrs"])):
            pytest.skip(reason)
        with Container(upper=where, userns=userns) as box:
            odd(box, where)
            before = files(box)
            assert len(before[0]) > 100
            with box.snapshot() as taken:
                said(box, ["rm", "-rf", "/data/deep"])
                with Container(taken, upper=where, userns=userns) as other:
                    assert files(other) == before
                    blocks = said(other, ["stat", "-c", "%b", "/data/sparse"])
                    assert int(blocks) * 512 < 2 << 20, "the holes were filled"
                    sh(other, "echo more >> /data/first")
                    assert sh(other, "tail -c 5 /data/first") == "more\n"
                box.restore(taken)
                assert files(box) == before

    @pytest.mark.requires("tmpfs_xattrs")  # it removes directories that were there
    @WHERE
    def test_of_an_image(self, image: Image, where: Any) -> None:
        """What was removed of the image stays removed, what was made anew hides what was there."""
        with Container("app:1", upper=where) as box:
            sh(box, "rm -r /etc; mkdir -m 711 /etc; echo own > /etc/own")
            sh(box, "rm /data/new; chmod 700 /; mkdir /tmp/kept")
            changed = box.changes()
            taken = box.snapshot()
        image.remove()
        with taken, Container(taken, upper=where) as box:
            assert sh(box, "ls -A /etc /data; echo $A; stat -c %a / /etc; ls /tmp").split("\n") == [
                "/data:", "", "/etc:", "hostname", "hosts", "own", "resolv.conf",
                "of the image", "700", "711", "kept", "",
            ]  # fmt: skip
            assert box.read_text("/etc/hostname") == f"{box.id}\n"  # these are each container's own
            assert box.changes() == []
            sh(box, "echo again > /etc/own; rmdir /tmp/kept; mkdir /srv2")
            assert box.changes() == [
                Change("modified", "/etc/own"), Change("added", "/srv2"), Change("deleted", "/tmp/kept"),
            ]  # fmt: skip
            assert box.image == "app:1" and changed

    def test_of_a_folder_and_of_a_tar(self, tmp_path: Path) -> None:
        (tmp_path / "app.tar").write_bytes(base())
        root = tmp_path / "rootfs"
        root.mkdir()
        subprocess.run(["tar", "-xf", tmp_path / "app.tar", "-C", root], check=True)
        for source in (root, tmp_path / "app.tar"):
            with Container(source) as box:
                sh(box, "echo new > /data/new")
                taken = box.snapshot()
            with taken, Container(taken) as one, Container(taken) as two:
                sh(one, "echo one > /data/new")
                assert sh(two, "cat /data/new; ls /data") == "new\nnew\nold\n"

    def test_mounts_are_no_part(self, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir(mode=0o777)
        shared = Mount.bind(tmp_path / "shared", "/shared")
        with Container(mounts=[shared, Mount.tmpfs("/scratch")]) as box:
            sh(box, "echo 1 > /scratch/a; echo 1 > /dev/shm/a; echo 1 > /own")
            with box.snapshot() as taken:
                (tmp_path / "shared/later").write_text("x")
                with Container(taken) as other:
                    assert sh(other, "ls /shared /scratch /dev/shm; cat /own").endswith("\n1\n")
                    assert "later" not in sh(other, "ls /shared /scratch") and "a" not in sh(
                        other, "ls /scratch"
                    )
                box.restore(taken)
                assert sh(box, "ls /shared /scratch; cat /own") == "/scratch:\n\n/shared:\nlater\n1\n"

    def test_more_than_fits(self) -> None:
        """Neither the copy nor the container goes beyond the layer's bound; what is full is copied whole."""
        with Container(disk="2M") as box:
            sh(box, "dd if=/dev/zero of=/big bs=64k 2>/dev/null; rm -f /none; true")
            size = sh(box, "stat -c %s /big")
            with box.snapshot() as taken, Container(taken, disk="1M") as other:
                assert sh(other, "stat -c %s /big; echo ok > /tmp/a; cat /tmp/a") == f"{size}ok\n"
                assert not other.exec(["sh", "-c", "dd if=/dev/zero of=/tmp/b bs=64k count=40"]).ok

    def test_directories_in_each_other(self) -> None:
        """Too deep a tree is an error that says so, and the container goes on."""
        with Container() as box:
            said(
                box,
                python(
                    "import os\nfor _ in range(1100): os.mkdir('d'); os.chdir('d')",
                ),
                workdir="/tmp",
            )
            with pytest.raises(SetupError, match=r"1000 directories|descriptors|ulimit"):
                box.snapshot()
            sh(box, "rm -rf /tmp/d")
            box.snapshot().close()


class TestLife:
    def test_restore_ends_what_runs(self) -> None:
        name = f"snapshot-{os.getpid()}"
        with Container(name=name, memory="64M" if LIMITED else None, env={"A": "b"}) as box:
            known = box.id, box.name
            sh(box, "echo 1 > /number")
            taken = box.snapshot()
            before = box.pid
            if LIMITED:
                box.update(memory="128M")
            script = "setsid sleep 1000 & echo 2 > /number; echo go; exec sleep 1000"
            with running(box, ["sh", "-c", script]) as program:
                box.restore(taken)
                assert program.result().reason == "killed"
            assert (box.id, box.name) == known and state(box) == "running" and box.pid != before
            assert sh(box, "cat /number; echo $A") == "1\nb\n"
            assert alone(box)
            if LIMITED:
                assert box._programs is not None and box._programs.launched.group.limits.memory == 128 << 20
            with pytest.raises(SpecError, match="in use"):
                Container(name=box.name).start()
            taken.close()
            with pytest.raises(StateError, match="closed"):
                box.restore(taken)
            with pytest.raises(StateError, match="closed"):
                Container(taken).start()
            assert sh(box, "cat /number") == "1\n"  # it goes on without it
        Container(name=known[1]).start().remove()

    @pytest.mark.skipif(not FREEZES, reason="there is no freezer")
    def test_of_one_moment(self) -> None:
        """A program counts in many files, one after the other: each has the same number, or one less."""
        script = """
import os
os.mkdir("/counts")
files = [os.open(f"/counts/{n:03}", os.O_WRONLY | os.O_CREAT, 0o644) for n in range(300)]
for number in range(10**8, 10**9):
    for file in files: os.pwrite(file, b"%d" % number, 0)
    if number == 10**8: print("go", flush=True)
"""
        with Container() as box, running(box, python(script)) as program:
            for _ in range(3):
                with box.snapshot() as taken, Container(taken) as other:
                    counts = [int(text) for text in sh(other, "cd /counts; paste -sd ' ' *").split()]
                    assert len(counts) == 300
                    assert counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1, counts
            assert program.poll() is None, "the program did not go on"

    @pytest.mark.skipif(not FREEZES, reason="there is no freezer")
    def test_paused(self) -> None:
        with Container() as box:
            box.write_text("/a", "1")
            box.pause()
            with box.snapshot() as taken:
                assert state(box) == "paused"
                with Container(taken) as other:
                    assert other.read_text("/a") == "1"
                box.resume()
                box.write_text("/a", "2")
                box.pause()
                box.restore(taken)
                assert state(box) == "running" and box.read_text("/a") == "1"

    @pytest.mark.requires("tmpfs_xattrs")  # it removes directories that were there
    def test_many_at_once(self) -> None:
        """Each has a layer of its own, whoever else begins there at the same time."""
        with Container() as box:
            sh(box, "echo 0 > /number; mkdir /d; echo x > /d/x")
            taken = box.snapshot()

        def one(number: int) -> str:
            with Container(taken) as mine:
                sh(mine, f"echo {number} >> /number; rm -r /d")
                return sh(mine, "cat /number; ls -d /d 2>&1 | wc -l")

        with taken, ThreadPoolExecutor(6) as pool:
            found = list(pool.map(one, range(24)))
            assert found == [f"0\n{number}\n1\n" for number in range(24)]
            assert isobox.run(["cat", "/number"], taken, text=True).stdout == "0\n"
            with Container(taken) as last:
                assert sh(last, "cat /number; ls /d") == "0\nx\n"

    def test_removed_meanwhile(self) -> None:
        """Another thread that restores it can't bring it back."""
        with nothing_left():
            restored = 0

            def restore() -> None:
                nonlocal restored
                with contextlib.suppress(StateError):
                    while True:
                        box.restore(taken)
                        restored += 1

            with Container() as box, box.snapshot() as taken, ThreadPoolExecutor(1) as pool:
                done = pool.submit(restore)
                assert wait_until(lambda: restored > 2)
                box.remove()
                done.result()
            assert state(box) == "stopped"

    def test_ready_ones_go_with_it(self) -> None:
        """What is prepared for the next container does not keep a closed snapshot, nor serves anybody."""
        with Container() as box, box.snapshot() as other:
            with box.snapshot() as taken:
                for _ in range(3):
                    box.restore(taken)
                assert wait_until(lambda: ready(taken)), "nothing is prepared"
                before = box.pid
                box.restore(taken)
                assert box.pid != before
                assert wait_until(lambda: ready(taken))
                rootfs = taken.origin.source.rootfs
                box.restore(other)
            kept = shells.shells(shared.shared())._ready
            # One that is being made at that moment goes when it is.
            assert wait_until(lambda: not [wanted for wanted in list(kept) if wanted.rootfs is rootfs])
            sh(box, "true")

    def test_a_forked_child(self) -> None:
        """It has no part in its parent's snapshots, and ends nothing of them."""
        with Container() as box, box.snapshot() as taken:
            for _ in range(3):
                box.restore(taken)
            assert wait_until(lambda: ready(taken))
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    taken.close()
                    taken._origin.__del__()
                    try:
                        Container(taken).start()
                    except StateError:
                        code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            kept = shells.shells(shared.shared())._ready
            waiting = [
                shell for wanted in list(kept) for shell in kept[wanted] if wanted.begun is taken.origin
            ]
            assert not [shell for shell in waiting if shell.pidfd.ended()], "the child has ended them"
            box.restore(taken)
            sh(box, "true")

    @pytest.mark.parametrize("lacks", ["detached_copies", "detached_copies idmapped_tmpfs"])
    def test_on_older_kernels(self, lacks: str, monkeypatch: pytest.MonkeyPatch, image: Image) -> None:
        """An isobox-init holds it; where owners can't be shown as others, root's share their ids."""
        for name in lacks.split():
            monkeypatch.setattr(host.HostFeatures, name, False)

        def ids(box: Container) -> idmap.IdMap | None:
            assert box._programs is not None
            return box._programs.launched.id_map

        with nothing_left():
            for of in ("app:1", "host"):
                with Container(of) as box:
                    sh(box, "mkdir /new; echo 1 > /new/own; chown 3:4 /new/own || true")
                    taken, owners = box.snapshot(), sh(box, "stat -c %u:%g /new/own")
                    before = ids(box)
                with taken, Container(taken) as one, Container(taken) as two:
                    assert one.changes() == []
                    sh(one, "rm /new/own")
                    assert one.changes() == [Change("deleted", "/new/own")]
                    assert sh(two, "cat /new/own; stat -c %u:%g /new/own") == f"1\n{owners}"
                    sh(two, "echo 2 > /new/more")
                    with two.snapshot() as again, Container(again) as three:
                        assert three.changes() == [] and sh(three, "cat /new/*") == "2\n1\n"
                        if ROOT:
                            share = not host.features().idmapped_tmpfs
                            assert (before == ids(one) == ids(two) == ids(three)) == share
                    one.restore(taken)
                    assert sh(one, "stat -c %u:%g /new/own") == owners

    @pytest.mark.skipif(not ROOT, reason="only root's image of this machine shows all of it")
    def test_on_disk_in_a_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before Linux 6.6 memory is no place for what may note removed directories."""
        monkeypatch.setattr(host.HostFeatures, "tmpfs_xattrs", False)
        with Container(upper="disk") as box:
            with pytest.raises(UnsupportedError, match=r"would lie in a layer.*6\.6"):
                box.snapshot()
            box.write_text("/a", "1")
            assert box.read_text("/a") == "1"

    def test_one_on_another(self) -> None:
        """Snapshots of containers that began at snapshots: each has what all before it had."""
        with Container() as box:
            sh(box, "mkdir /all; echo 0 > /all/0; echo > /gone")
            kept = [box.snapshot()]
            for number in range(1, 5):
                box.restore(kept[-1])
                sh(
                    box,
                    f"echo {number} > /all/{number}; rm -fr /gone /new; mkdir /new; echo > /new/{number}",
                )
                kept.append(box.snapshot())
            for each in kept[:-1]:
                each.close()
        with Container(kept[-1]) as box:
            assert sh(box, "cat /all/*; ls /new; ls /gone 2>&1 | wc -l") == "0\n1\n2\n3\n4\n4\n1\n"

    def test_too_many_on_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("isobox.snapshots._MOST_BELOW", 2)
        with Container() as box:
            for _ in range(2):
                box.restore(box.snapshot())
            with pytest.raises(StateError, match="2 snapshots lie on one another"):
                box.snapshot()

    def test_states(self) -> None:
        box = Container()
        with pytest.raises(StateError, match="snapshot: the container is created"):
            box.snapshot()
        with box:
            taken = box.snapshot()
            for wrong in (None, "host", 3):
                with pytest.raises(SpecError, match="Snapshot"):
                    box.restore(wrong)  # type: ignore[arg-type]
            assert state(box) == "running"
        for verb in (box.snapshot, lambda: box.restore(taken)):
            with pytest.raises(StateError, match="the container is stopped"):
                verb()
        with pytest.raises(SpecError, match="Snapshot"):
            Container(3)  # type: ignore[arg-type]
        with pytest.raises(SpecError, match="userns"):
            Container(taken, userns="host")
        assert "host" in repr(taken) and taken.image == "host"
        assert "begun" in Container(taken).explain()
        taken.close()
        taken.close()
        assert taken.closed
        assert "closed" in repr(taken)
        assert isobox.Snapshot is Snapshot

    def test_without_a_freezer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where there is none, files that come and go meanwhile do no harm."""
        monkeypatch.setattr(isobox.cgroups.Group, "can_freeze", False)
        script = """
import os
os.makedirs("/busy/d"); open("/busy/stays", "w").write("here"); print("go", flush=True)
while True:
    for n in range(50): os.mkdir(f"/busy/d/{n}"); open(f"/busy/d/{n}/f", "w").write("x" * n * 100)
    os.rename("/busy/d", "/busy/e"); os.symlink("/", "/busy/d")
    os.unlink("/busy/d"); os.rename("/busy/e", "/busy/d")
    for n in range(50): os.unlink(f"/busy/d/{n}/f"); os.rmdir(f"/busy/d/{n}")
"""
        with Container() as box, running(box, python(script)) as program:
            for _ in range(20):
                with box.snapshot() as taken:
                    pass
            with box.snapshot() as taken, Container(taken) as other:
                assert other.read_text("/busy/stays") == "here"
                assert set(os.listdir("/")) & {"busy"} == set()
            assert program.poll() is None


def test_the_suite_of_the_page(tmp_path: Path) -> None:
    """The example of docs/howto/snapshots.md, as pytest runs it."""
    page = (Path(__file__).parents[2] / "docs/howto/snapshots.md").read_text()
    (tmp_path / "test_page.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=patient(60))
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


class TestNothingLeft:
    @pytest.mark.requires("tmpfs_xattrs")  # on disk, root's image of this machine needs them
    @WHERE
    def test_after_all(self, where: Any) -> None:
        with nothing_left():
            with Container(upper=where) as box:
                box.write_text("/a", "1")
                taken, forgotten = box.snapshot(), box.snapshot()
                with Container(taken, upper=where) as other:
                    other.write_text("/b", "2")
                box.restore(taken)
                box.restore(taken)
            taken.close()
            del forgotten
            with Container() as box:
                said(
                    box,
                    python("import os\nfor _ in range(1100): os.mkdir('d'); os.chdir('d')"),
                    workdir="/tmp",
                )
                with pytest.raises(SetupError):
                    box.snapshot()
            gc.collect()

    @WHERE
    def test_a_long_suite(self, where: Any) -> None:
        """However often it goes back, it costs no more: descriptors, mounts, files, threads, memory."""
        with Container(upper=where) as box:
            sh(box, "mkdir /data; echo prepared > /data/file")
            with box.snapshot() as taken:

                def tests(number: int) -> None:
                    for _ in range(number):
                        box.restore(taken)
                        sh(box, "echo own >> /data/file")
                    assert sh(box, "cat /data/file") == "prepared\nown\n"

                tests(20)
                before, memory = totals(), resident()
                tests(100)
                # What is kept ready, or is just being removed, is now more and now less.
                assert wait_until(
                    lambda: all(now < then + 60 for now, then in zip(totals(), before, strict=True))
                )
                assert resident() < memory + (4 << 20)

    def test_a_failed_restore(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The container is stopped then, and its name free."""
        with nothing_left(), Container(name=f"failing-{os.getpid()}") as box, box.snapshot() as taken:

            def refuse(*_: object, **__: object) -> None:
                raise OSError(24, "no descriptors")

            with monkeypatch.context() as patch:
                patch.setattr("isobox.start.setup_plan", refuse)
                with pytest.raises(SetupError, match="no descriptors"):
                    box.restore(taken)
            assert state(box) == "stopped"
            Container(name=box.name).start().remove()
            with Container(taken) as other:
                sh(other, "true")

    @WHERE
    def test_killed(self, where: str, data: Path) -> None:
        """SIGKILL of the process that holds them: memory and disk are free again, and nothing is frozen."""
        script = f"""
import isobox, os, sys
box = isobox.Container(upper={where!r}).start()
box.popen(["sleep", "1000"])
box.write_bytes("/big", b"x" * 1000000)
kept = [box.snapshot() for _ in range(3)]
print(box.pid, flush=True)
while True:
    kept.append(box.snapshot()); kept.pop(0).close()
"""
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            pid = int(victim.stdout.readline())
            below = [pid, *descendants(pid), *descendants(victim.pid)]
            victim.kill()
        deadline = patient(20)
        for one in below:
            _wait_gone(one, deadline)
        subprocess.run([sys.executable, "-c", "import isobox; isobox.run(['true'])"], check=True)
        left = [path for path in data.glob("owners/*/*") if path.name != "lock"]
        assert left == []


def totals() -> list[int]:
    """How much there is of each kind that a container could leave behind."""
    return [sum(found.values()) for found in attrs.astuple(count(), recurse=False)]


def _wait_gone(pid: int, seconds: float) -> None:
    assert wait_until(lambda: not os.path.exists(f"/proc/{pid}") or _zombie(pid), seconds), pid


def _zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
