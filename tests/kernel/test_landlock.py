"""Landlock: each rule is seen to hold, and the same act to work without it."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isobox import Container, ExecError, Landlock, Mount, SetupError, UnsupportedError, start
from isobox.security import landlock
from leftovers import nothing_left
from programs import python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "landlock_paths", "host_folders")
ports = pytest.mark.requires("landlock_ports")
scopes = pytest.mark.requires("landlock_scopes")

SYSTEM = ["/usr", "/lib", "/etc", "/dev", sys.base_prefix]
"""What Python reads."""

names = (f"isobox-test-{os.getpid()}-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    # Not tmp_path: that is closed to others, and so to containers of root.
    with tempfile.TemporaryDirectory(prefix="isobox-test-") as folder:
        os.chmod(folder, 0o755)
        yield Mount.bind(folder, "/work")


def fill(mount: Mount) -> None:
    """/work: the folders open, other and shut, with a file each; and a program in one."""
    assert mount.source is not None
    for name in ("open", "other", "shut"):
        place = Path(mount.source, name)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "file").write_text("text")
    shutil.copy(shutil.which("true") or "/bin/true", f"{mount.source}/open/true")


@pytest.fixture(autouse=True)
def filled(mount: Mount) -> None:
    fill(mount)


def attempt(act: str) -> list[str]:
    """A program that tells what becomes of some Python: "done", or the name of an errno."""
    code = f"""
import ctypes, errno, fcntl, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
def ok(result):
    if result < 0: raise OSError(ctypes.get_errno(), "")
try:
    {act}
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("done")
"""
    return python(code)


def outcome(box: Container, act: str) -> str:
    return said(box, attempt(act)).strip()


def held(act: str, rules: Landlock | None, mount: Mount, **options: Any) -> str:
    """The outcome, the same for the first program and for later ones, which another thread may start."""
    assert mount.source is not None
    found = set()
    with Container(mounts=[mount], landlock=rules, **options) as box:
        for _ in range(3):
            found.add(outcome(box, act))
            for made in ("shut/new", "open/new", "other/new", "open/link"):
                place = Path(mount.source, made)
                if place.is_dir():
                    place.rmdir()
                place.unlink(missing_ok=True)
            for name in ("open", "other", "shut"):
                Path(mount.source, name, "file").write_text("text")
    assert len(found) == 1, found
    return found.pop()


class TestPaths:
    @pytest.mark.parametrize(
        "act",
        [
            "open('/work/shut/file').read()",
            "os.listdir('/work/shut')",
            "open('/work/open/../shut/file').read()",
            "open('/proc/self/root/work/shut/file').read()",
            "os.chroot('/work'); open('/shut/file').read()",
            "os.symlink('/work/shut/file', '/work/open/link'); open('/work/open/link').read()",
            "os.chdir('/work/shut'); open('file').read()",
        ],
    )
    def test_reading(self, act: str, mount: Mount) -> None:
        rules = Landlock(read=[*SYSTEM, "/work/open", "/work/other"])
        assert held(act, rules, mount) == "EACCES"
        assert held(act, None, mount) == held(act, Landlock(read=["/"]), mount) == "done"
        assert held("open('/work/open/file').read(); os.listdir('/work/open')", rules, mount) == "done"

    @pytest.mark.parametrize(
        "act",
        [
            "open('/work/shut/file', 'w')",
            "open('/work/shut/file', 'a')",
            "os.truncate('/work/shut/file', 0)",
            "open('/work/shut/new', 'x')",
            "os.unlink('/work/shut/file')",
            "os.mkdir('/work/shut/new')",
            "os.symlink('file', '/work/shut/new')",
            "os.mkfifo('/work/shut/new')",
            "os.rename('/work/shut/file', '/work/shut/new')",
            "os.link('/work/open/file', '/work/shut/new')",
            "os.rename('/work/open/file', '/work/shut/new')",
            "os.rename('/work/shut/file', '/work/open/new')",
            "socket.socket(socket.AF_UNIX).bind('/work/shut/new')",
        ],
    )
    def test_writing(self, act: str, mount: Mount) -> None:
        rules = Landlock(write=["/dev", "/work/open", "/work/other"])
        assert held(act, rules, mount) == "EACCES"
        assert held(act.replace("/shut/", "/other/"), rules, mount) == "done"

    @pytest.mark.parametrize(
        "act",
        ["open('/work/shut/file', 'w')", "os.truncate('/work/shut/file', 0)", "os.mkdir('/work/shut/new')"],
    )
    def test_writing_works_without(self, act: str, mount: Mount) -> None:
        assert held(act, Landlock(read=["/"]), mount) == "done"

    def test_nothing_gets_more_rights_by_a_new_name(self, mount: Mount) -> None:
        rules = Landlock(read=[*SYSTEM, "/work/open"], write=["/work"])
        for act in (
            "os.rename('/work/shut/file', '/work/open/new')",
            "os.link('/work/shut/file', '/work/open/new')",
        ):
            assert held(act, rules, mount) == "EXDEV"
        act = "os.rename('/work/shut/file', '/work/open/new'); open('/work/open/new').read()"
        assert held(act, Landlock(read=["/"], write=["/work"]), mount) == "done"

    def test_rules_for_reading_leave_names_alone(self, mount: Mount) -> None:
        """Landlock denies renaming across directories unless it is allowed."""
        assert held("os.rename('/work/shut/file', '/work/other/new')", Landlock(read=SYSTEM), mount) == "done"

    def test_running(self, mount: Mount) -> None:
        with Container(mounts=[mount], landlock=Landlock(execute=["/usr", sys.base_prefix])) as box:
            assert outcome(box, "os.execv('/work/open/true', ['true'])") == "EACCES"
            with pytest.raises(ExecError) as caught:
                box.exec(["/work/open/true"])
            assert caught.value.errno == errno.EACCES and "landlock" in caught.value.hint
            assert box.exec(["true"]).ok
        with Container(mounts=[mount], landlock=Landlock(execute=["/usr", "/work/open"])) as box:
            assert box.exec(["/work/open/true"]).ok

    @pytest.mark.requires("landlock_scopes")
    def test_ioctl_on_devices(self, mount: Mount) -> None:
        act = "fcntl.ioctl(open('/dev/null'), 0x5413, bytes(8))"  # TIOCGWINSZ
        assert held(act, Landlock(ioctl_dev=[]), mount) == "EACCES"
        for rules in (None, Landlock(ioctl_dev=["/dev/null"]), Landlock(ioctl_dev=["/dev"])):
            assert held(act, rules, mount) == "ENOTTY"

    def test_a_file_is_a_path_too(self, mount: Mount) -> None:
        rules = Landlock(write=["/work/shut/file"])
        assert held("open('/work/shut/file', 'w')", rules, mount) == "done"
        assert held("open('/work/open/file', 'w')", rules, mount) == "EACCES"

    def test_a_link_means_what_it_leads_to(self, mount: Mount) -> None:
        with Container(mounts=[mount], landlock=Landlock(read=["/lib", "/usr/bin", "/work/open"])) as box:
            if os.path.islink("/lib"):
                assert box.exec(["ls", "/work/open", "/usr/lib"]).ok

    @pytest.mark.parametrize("path", ["/work/nowhere", "/dev/fd/3"])
    def test_a_path_that_cannot_be_had(self, path: str, mount: Mount) -> None:
        with nothing_left(), pytest.raises(SetupError, match="landlock=") as caught:
            Container(mounts=[mount], landlock=Landlock(read=[path])).start()
        assert path in str(caught.value)

    def test_the_owner_reads_and_writes_as_before(self, mount: Mount) -> None:
        with Container(mounts=[mount], landlock=Landlock(read=SYSTEM, write=[])) as box:
            assert box.read_text("/work/shut/file") == "text"
            box.write_text("/work/shut/file", "new")
            box.write_text("/tmp/new", "new")
            assert "/tmp/new" in {change.path for change in box.changes()}
            assert outcome(box, "open('/tmp/new')") == "EACCES"


class TestNoWayBack:
    RULES = Landlock(read=SYSTEM, write=["/work/open"])
    STEAL = "open('/work/shut/file').read()"

    def test_children_are_held_too(self, mount: Mount) -> None:
        script = "sh -c 'setsid cat /work/shut/file' & wait"
        with Container(mounts=[mount], landlock=self.RULES) as box:
            assert "Permission denied" in box.exec(["sh", "-c", script], text=True).stderr
        with Container(mounts=[mount]) as box:
            assert sh(box, script) == "text"

    def test_a_ruleset_of_its_own_gives_nothing_back(self, mount: Mount) -> None:
        make = (
            "fd = libc.syscall(444, ctypes.byref(ctypes.c_uint64(4)), 8, 0); ok(fd); "
            "rule = (4).to_bytes(8, 'little') + os.open('/', os.O_PATH).to_bytes(4, 'little'); "
            "ok(libc.syscall(445, fd, 1, rule, 0)); ok(libc.syscall(446, fd, 0)); "
        )
        assert held(make + self.STEAL, self.RULES, mount) == "EACCES"
        assert held(make + self.STEAL, None, mount) == "done"

    def test_mounts(self, mount: Mount) -> None:
        act = "ok(libc.mount(b'/work/shut', b'/work/open', None, 4096, None)); open('/work/open/file').read()"
        assert held(act, self.RULES, mount, cap_add=["SYS_ADMIN"]) == "EPERM"
        assert held(act, None, mount, cap_add=["SYS_ADMIN"]) == "done"

    @pytest.mark.requires("cgroups")  # else each program has a PID namespace of its own
    def test_another_program_cannot_be_taken_over(self, mount: Mount) -> None:
        """Not even one that is held to the same."""
        for rules, expected in ((self.RULES, "EPERM"), (None, "done")):
            with Container(mounts=[mount], landlock=rules, pids=None) as box:
                with box.popen(
                    python("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
                ) as other:
                    assert other.stdout is not None
                    pid = int(other.stdout.readline())
                    assert outcome(box, f"ok(libc.ptrace(16, {pid}, 0, 0))") == expected
                    other.kill()

    def test_proc(self, mount: Mount) -> None:
        """Without cgroups each program has a PID namespace, and a /proc that shows it, of its own."""
        act = "assert os.readlink('/proc/self') == str(os.getpid()); open('/proc/self/status').read()"
        with Container() as box:
            assert box._programs is not None
            groups = box._programs.launched.group.present
        if groups:
            assert held(act, Landlock(read=[*SYSTEM, "/proc"]), mount) == "done"
        else:
            with nothing_left(), pytest.raises(UnsupportedError, match="cgroups") as caught:
                Container(landlock=Landlock(read=[*SYSTEM, "/proc/self"])).start()
            assert "landlock.read" in caught.value.feature and caught.value.remedy
        assert held(act, Landlock(read=["/", "/proc"], write=[]), mount) == "done"
        assert held("open('/proc/self/status')", Landlock(read=SYSTEM), mount) == "EACCES"

    def test_in_a_terminal(self, mount: Mount) -> None:
        with Container(mounts=[mount], landlock=Landlock(read=SYSTEM)) as box:
            with box.popen(["sh", "-c", "tty; cat /work/shut/file"], tty=True, text=True) as process:
                said = process.communicate(timeout=60)[0]
        assert "/dev/pts/" in said and "Permission denied" in said

    @pytest.mark.requires("id_ranges")
    def test_as_another_user(self, mount: Mount) -> None:
        with Container(mounts=[mount], landlock=Landlock(read=SYSTEM), user="1") as box:
            assert outcome(box, self.STEAL) == "EACCES"
        with Container(mounts=[mount], user="1") as box:
            assert outcome(box, self.STEAL) == "done"

    @pytest.mark.parametrize("seccomp", [None, "default"])
    def test_with_and_without_the_filter(self, seccomp: str | None, mount: Mount) -> None:
        assert held(self.STEAL, self.RULES, mount, seccomp=seccomp) == "EACCES"


LISTEN = "import socket; s = socket.create_server(('127.0.0.1', 8080)); print(flush=True); s.accept(); "


@ports
class TestPorts:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    @pytest.mark.parametrize("port", [8081, 0])
    def test_bind(self, host: str, port: int, mount: Mount) -> None:
        act = f"socket.socket({'socket.AF_INET6' if ':' in host else ''}).bind(({host!r}, %d))"
        assert held(act % port, Landlock(bind_tcp=[8080]), mount) == "EACCES"
        assert held(act % port, Landlock(bind_tcp=[]), mount) == "EACCES"
        assert held(act % port, Landlock(bind_tcp=[port]), mount) == "done"
        assert held(act % port, Landlock(connect_tcp=[]), mount) == held(act % port, None, mount) == "done"

    def test_connect(self, mount: Mount) -> None:
        act = "socket.create_connection(('127.0.0.1', %d))"
        with Container(landlock=Landlock(connect_tcp=[8080])) as box:
            with box.popen(python(LISTEN + "s.accept()")) as server:
                assert server.stdout is not None and server.stdout.readline()
                assert outcome(box, act % 8080) == "done"
                assert outcome(box, act % 8081) == "EACCES"
                server.kill()
        assert held(act % 8081, None, mount) == "ECONNREFUSED"
        assert held(act % 8081, Landlock(bind_tcp=[]), mount) == "ECONNREFUSED"

    FAST = "socket.socket().sendto(b'x', 0x20000000, ('127.0.0.1', 8080))"
    MESSAGE = "socket.socket().sendmsg([b'x'], [], 0x20000000, ('127.0.0.1', 8080))"
    MULTIPATH = "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(('127.0.0.1', 8080))"

    @pytest.mark.parametrize(
        ("act", "expected"), [(FAST, "ENOTSUP"), (MESSAGE, "ENOTSUP"), (MULTIPATH, "EPROTONOSUPPORT")]
    )
    @pytest.mark.parametrize("seccomp", [None, "default"])
    def test_the_ways_around_it(
        self, act: str, expected: str, seccomp: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Kernels differ in what Landlock itself sees of them: some have that mended."""

        def outcomes(rules: Landlock | None) -> set[str]:
            found = set()
            with Container(landlock=rules, seccomp=seccomp) as box:
                for _ in range(3):
                    with box.popen(python(LISTEN)) as server:
                        assert server.stdout is not None and server.stdout.readline()
                        found.add(outcome(box, act))
                        server.kill()
            return found

        assert outcomes(Landlock(connect_tcp=[])) == {expected}
        if act == self.MULTIPATH:
            try:
                socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
            except OSError:
                return  # this kernel has none
        assert outcomes(None) == {"done"}
        monkeypatch.setattr(start, "_filters", lambda rules, program: () if program is None else (program,))
        assert outcomes(Landlock(connect_tcp=[])) in ({"done"}, {"EACCES"})

    def test_io_uring_and_other_machines_calls(self) -> None:
        act = "ok(libc.syscall(425, 1, bytes(120)))"
        with Container(landlock=Landlock(bind_tcp=[]), seccomp=None) as box:
            assert outcome(box, act) == "ENOSYS"
        with Container(seccomp=None) as box:
            assert outcome(box, act) in ("done", "EPERM")

    def test_datagrams_and_unix_sockets_go_on(self, mount: Mount) -> None:
        act = (
            "a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(('127.0.0.1', 5000)); "
            "a.sendto(b'x', ('127.0.0.1', 5000)); a, b = socket.socketpair(); a.sendmsg([b'x']); b.recv(1)"
        )
        assert held(act, Landlock(bind_tcp=[], connect_tcp=[]), mount) == "done"


SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
WAIT = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0{0}'); s.listen(); "
    "print(flush=True); s.accept()"
)
CONNECT = "socket.socket(socket.AF_UNIX).connect('\\0{0}')"
SEND = "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '\\0{0}')"


@scopes
class TestScopes:
    @pytest.mark.requires("cgroups")
    def test_signals(self) -> None:
        for rules, expected in ((Landlock(scope=["signal"]), "EPERM"), (Landlock(scope=[]), "done")):
            with Container(landlock=rules) as box:
                for _ in range(3):
                    with box.popen(python(SLEEP)) as other:
                        assert other.stdout is not None
                        pid = int(other.stdout.readline())
                        assert outcome(box, f"os.kill({pid}, 0)") == expected
                        assert outcome(box, "os.kill(1, 0)") == expected
                        if expected == "done":
                            assert outcome(box, f"os.kill({pid}, signal.SIGTERM)") == "done"
                        else:
                            other.terminate()  # the owner may, as before
                        assert other.wait(timeout=60) == -15
                own = "sleep 60 & kill $! && wait $!; test $? = 143"
                assert box.exec(["sh", "-c", own]).ok

    def test_abstract_sockets_of_other_programs(self) -> None:
        for rules, expected in ((Landlock(scope=["abstract-unix"]), "EPERM"), (Landlock(scope=[]), "done")):
            name = next(names)
            with Container(landlock=rules) as box:
                with box.popen(python(WAIT.format(name))) as server:
                    assert server.stdout is not None and server.stdout.readline()
                    assert outcome(box, CONNECT.format(name)) == expected
                    server.kill()
                both = f"s = socket.socket(socket.AF_UNIX); s.bind('\\0{name}'); s.listen(); "
                assert outcome(box, both + CONNECT.format(name)) == "done"


@scopes
class TestAbstractSocketsOfTheHost:
    """With the host's network a container is in the namespace that those live in: CVE-2020-15257."""

    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            ("default", "EPERM"),
            (Landlock(write=["/tmp"]), "EPERM"),
            (Landlock(scope=["abstract-unix"]), "EPERM"),
            (None, "done"),
            (Landlock(scope=[]), "done"),
            (Landlock(write=["/tmp"], scope=["signal"]), "done"),
        ],
    )
    @pytest.mark.parametrize("userns", ["auto", "host"])
    def test_are_out_of_reach(self, rules: Any, expected: str, userns: Any) -> None:
        if userns == "host" and os.geteuid() != 0:
            pytest.skip("for root only")
        stream, datagrams = next(names), next(names)
        with socket.socket(socket.AF_UNIX) as s, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as d:
            s.bind(f"\0{stream}")
            s.listen()
            d.bind(f"\0{datagrams}")
            with Container(network="host", landlock=rules, userns=userns) as box:
                for _ in range(3):
                    assert outcome(box, CONNECT.format(stream)) == expected
                    assert outcome(box, SEND.format(datagrams)) == expected

    def test_those_of_the_container_are_not(self) -> None:
        name = next(names)
        with Container(network="host") as box, box.popen(python(WAIT.format(name))) as server:
            assert server.stdout is not None and server.stdout.readline()
            assert outcome(box, CONNECT.format(name)) == "done"
            server.wait(timeout=60)

    def test_nor_those_of_another_container_to_the_first(self) -> None:
        name = next(names)
        with Container(network="host") as one, Container(network="host") as two:
            with one.popen(python(WAIT.format(name))) as server:
                assert server.stdout is not None and server.stdout.readline()
                assert outcome(two, CONNECT.format(name)) == "EPERM"
                server.kill()

    @pytest.mark.requires("cgroup_memory")
    def test_init_mounts_all_the_same(self) -> None:
        """What shows the container's limits is mounted anew when they change."""
        with Container(network="host", memory="256M") as box:
            box.update(memory="128M")
            assert "131072 kB" in sh(box, "grep MemTotal /proc/meminfo")

    def test_is_shown_and_costs_the_others_nothing(self) -> None:
        with Container(network="host") as box:
            assert "landlock-restrict the container as a whole" in box.explain()
        assert "landlock-ruleset" not in Container().explain()
        assert landlock.container_scope("default", "host", 5) == 0
