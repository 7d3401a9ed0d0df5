"""Mounts that were asked for, what the root file system is made of, and that nothing leads out of it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isobox import Container, Mount, SetupError, SpecError, UnsupportedError
from programs import python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container() as container:
        yield container


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("from the host\n")
    (folder / "sub" / "deep").write_text("deep\n")
    return folder


HOST = [
    Mount.bind(path, path, read_only=True)
    for path in ("/usr", "/bin", "/lib", "/lib64")
    if os.path.isdir(path) and not os.path.islink(path)
]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder image that has nothing of its own but links and a few files; its programs are mounted."""
    folder = tmp_path / "image"
    for name in ("usr", "etc", "real/inner"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            (folder / name).symlink_to(os.readlink(f"/{name}"))
    (folder / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
    (folder / "real" / "file").write_text("image\n")
    return folder


class TestBind:
    @pytest.mark.requires("host_folders")
    def test_read_and_write(self, source: Path) -> None:
        with Container(mounts=[Mount.bind(source, "/data")]) as container:
            assert sh(container, "cat /data/file /data/sub/deep") == "from the host\ndeep\n"
            assert sh(container, "stat -c %u:%g /data/file") == "0:0\n"
            sh(
                container,
                "echo from inside > /data/new; echo more >> /data/file; mkdir /data/made; rm /data/sub/deep",
            )
        assert (source / "new").read_text() == "from inside\n"
        assert (source / "file").read_text() == "from the host\nmore\n"
        assert not (source / "sub" / "deep").exists()
        for name in ("new", "made"):
            assert (source / name).stat().st_uid == os.getuid()

    @pytest.mark.parametrize("mount", ["/data:ro", Mount.bind("/nosuch", "/data", read_only=True)])
    def test_read_only(self, source: Path, mount: Any) -> None:
        asked = (
            f"{source}:{mount[:-3]}:ro"
            if isinstance(mount, str)
            else Mount.bind(source, "/data", read_only=True)
        )
        with Container(mounts=[asked]) as container:
            assert sh(container, "cat /data/file") == "from the host\n"
            for script in (
                "echo x > /data/file",
                "touch /data/new",
                "rm /data/file",
                "mount -o remount,rw /data",
            ):
                result = container.exec(["sh", "-c", script], text=True)
                assert not result.ok
        assert sorted(os.listdir(source)) == ["file", "sub"]
        assert (source / "file").read_text() == "from the host\n"

    def test_read_only_reaches_the_mounts_below(self, source: Path) -> None:
        # All that a mount of the host's shows at /proc, say, is below it.
        with Container(mounts=["/sys:/host-sys:ro"]) as container:
            options = [line.split() for line in sh(container, "cat /proc/self/mounts").splitlines()]
            below = [fields for fields in options if fields[1].startswith("/host-sys")]
            assert len(below) >= 1
            assert all("ro" in fields[3].split(",") for fields in below), below

    @pytest.mark.requires("host_folders")
    def test_a_file(self, source: Path) -> None:
        with Container(mounts=[f"{source}/file:/tmp/one", f"{source}/file:/a/b/two:ro"]) as container:
            assert sh(container, "cat /tmp/one /a/b/two") == "from the host\n" * 2
            sh(container, "echo changed > /tmp/one")
            assert sh(container, "cat /a/b/two") == "changed\n"
            assert not container.exec(["sh", "-c", "echo x > /a/b/two"]).ok
        assert (source / "file").read_text() == "changed\n"

    @pytest.mark.requires("host_folders")
    def test_over_something_that_is_there(self, source: Path) -> None:
        with Container(mounts=[f"{source}/file:/etc/passwd:ro", f"{source}:/usr/share"]) as container:
            assert sh(container, "cat /etc/passwd; ls /usr/share") == "from the host\nfile\nsub\n"
            assert container.changes() == []

    @pytest.mark.requires("host_folders")
    def test_relative_sources(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(source)
        with Container(mounts=["./file:/tmp/one", Mount.bind("sub", "/tmp/two")]) as container:
            assert sh(container, "cat /tmp/one /tmp/two/deep") == "from the host\ndeep\n"

    @pytest.mark.requires("host_folders")
    def test_one_in_another(self, source: Path) -> None:
        mounts = [Mount.tmpfs("/a/b/c"), f"{source}:/a", f"{source}/sub:/a/b:ro"]
        (source / "b" / "c").mkdir(parents=True)
        (source / "sub" / "c").mkdir()
        with Container(mounts=mounts) as container:
            assert (
                sh(container, "cat /a/file /a/b/deep; touch /a/b/c/x; ls /a/b/c")
                == "from the host\ndeep\nx\n"
            )
        assert os.listdir(source / "sub" / "c") == []

    @pytest.mark.requires("host_folders")
    def test_a_link_as_source_is_followed(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(source)
        with Container(mounts=[f"{tmp_path}/link:/data"]) as container:
            assert sh(container, "cat /data/file") == "from the host\n"

    @pytest.mark.requires("host_folders")
    def test_links_in_it_lead_nowhere_on_the_host(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        (source / "absolute").symlink_to(tmp_path / "secret")
        (source / "relative").symlink_to("../secret")
        with Container(mounts=[f"{source}:/data"]) as container:
            for name in ("absolute", "relative"):
                assert not container.exec(["cat", f"/data/{name}"]).ok

    @pytest.mark.requires("host_folders")
    def test_no_devices_and_no_setuid(self, source: Path) -> None:
        with Container(mounts=[f"{source}:/data"]) as container:
            (line,) = [
                line for line in sh(container, "cat /proc/self/mounts").splitlines() if " /data " in line
            ]
            assert {"nosuid", "nodev"} <= set(line.split()[3].split(","))

    @pytest.mark.requires("host_folders")
    def test_a_socket_of_the_host(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
            code = "import socket as s; c = s.socket(s.AF_UNIX); c.connect('/tmp/socket'); c.send(b'hello')"
            with Container(mounts=[f"{tmp_path}/socket:/tmp/socket"]) as container:
                said(container, python(code))
            listener.settimeout(5)
            connection, _address = listener.accept()
            with connection:
                assert connection.recv(10) == b"hello"

    @pytest.mark.requires("host_folders", "root")
    def test_owners_are_kept(self, source: Path) -> None:
        os.chown(source / "file", 1000, 1001)
        with Container(mounts=[f"{source}:/data"]) as container:
            assert sh(container, "stat -c %u:%g /data/file /data/sub") == "1000:1001\n0:0\n"
            sh(container, "touch /data/new; chown 12:34 /data/new")
        found = (source / "new").stat()
        assert (found.st_uid, found.st_gid) == (12, 34)

    @pytest.mark.requires("host_folders")
    def test_our_mounts_stay_as_they_were(self, source: Path) -> None:
        with open("/proc/self/mountinfo") as file:
            before = file.read()
        with Container(mounts=[f"{source}:/data", Mount.tmpfs("/scratch")]) as container:
            sh(container, "mkdir /tmp/x")
            with open("/proc/self/mountinfo") as file:
                assert file.read() == before


class TestTmpfs:
    def test_empty_and_writable_by_all(self, box: Container) -> None:
        with Container(mounts=[Mount.tmpfs("/scratch")]) as container:
            assert (
                sh(container, "ls -A /scratch; stat -c %a /scratch; stat -f -c %T /scratch")
                == "1777\ntmpfs\n"
            )
            sh(container, "echo x > /scratch/file")

    def test_size(self) -> None:
        with Container(mounts=[Mount.tmpfs("/scratch", "1M")]) as container:
            result = container.exec(["sh", "-c", "head -c 3M /dev/zero > /scratch/file"], text=True)
            assert "No space left" in result.stderr
            assert sh(container, "stat -c %s /scratch/file") == f"{1 << 20}\n"
            sh(container, "head -c 3M /dev/zero > /tmp/file")

    def test_hides_what_was_there(self) -> None:
        with Container(mounts=[Mount.tmpfs("/usr/share")]) as container:
            assert sh(container, "ls -A /usr/share") == ""

    def test_is_no_change(self) -> None:
        with Container(mounts=[Mount.tmpfs("/made/for/it")]) as container:
            sh(container, "touch /made/for/it/file")
            assert container.changes() == []


class TestTargets:
    @pytest.mark.requires("host_folders")
    def test_made_where_it_is_missing(self, source: Path) -> None:
        with Container(mounts=[f"{source}:/new/place/of/ours", Mount.tmpfs("/srv/x")]) as container:
            assert sh(container, "cat /new/place/of/ours/file; stat -c %a /new/place /srv/x") == (
                "from the host\n755\n1777\n"
            )
        assert not os.path.exists("/new")

    @pytest.mark.requires("host_folders")
    @pytest.mark.parametrize(
        "link",
        [
            "/etc",
            "../../../../../../etc",
            "/../../etc",
            "/proc/1/root/etc",
            "/proc/self/cwd/etc",
            "{outside}",
        ],
    )
    def test_a_link_in_the_image_does_not_lead_out(
        self, image: Path, source: Path, tmp_path: Path, link: str
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (image / "link").symlink_to(link.format(outside=outside))
        before = sorted(os.listdir("/etc"))
        for target in ("/link", "/link/below"):
            try:
                with Container(image, mounts=[*HOST, f"{source}:{target}"]) as container:
                    assert sh(container, f"cat {target}/file") == "from the host\n"
            except SetupError as error:
                assert error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.EEXIST)
        assert sorted(os.listdir("/etc")) == before
        assert os.listdir(outside) == []
        assert sorted(os.listdir(source)) == ["file", "sub"]

    @pytest.mark.requires("host_folders")
    def test_a_link_to_the_inside_is_followed(self, image: Path, source: Path) -> None:
        (image / "link").symlink_to("/real/inner")
        with Container(image, mounts=[*HOST, f"{source}:/link"]) as container:
            assert sh(container, "cat /real/inner/file") == "from the host\n"
        assert os.listdir(image / "real" / "inner") == []

    @pytest.mark.requires("host_folders")
    @pytest.mark.parametrize(
        ("what", "target"), [("", "/real/file"), ("/file", "/real"), ("", "/real/file/below")]
    )
    def test_a_file_on_a_directory_and_the_other_way(
        self, image: Path, source: Path, what: str, target: str
    ) -> None:
        with pytest.raises(SetupError) as caught:
            Container(image, mounts=[*HOST, f"{source}{what}:{target}"]).start()
        assert caught.value.errno in (errno.ENOTDIR, errno.EINVAL)
        assert target in str(caught.value)
        assert "a directory on a directory" in caught.value.hint
        assert caught.value.stage == "setup"

    def test_a_source_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(SetupError) as caught:
            Container(mounts=[f"{tmp_path}/nosuch:/data"]).start()
        assert caught.value.errno == errno.ENOENT
        assert f"{tmp_path}/nosuch" in str(caught.value) and caught.value.hint

    @pytest.mark.requires("ordinary_user")
    def test_a_source_that_is_closed(self) -> None:
        with pytest.raises(SetupError) as caught:
            Container(mounts=["/root/x:/data"]).start()
        assert caught.value.errno in (errno.EACCES, errno.ENOENT)

    def test_the_same_twice(self, source: Path) -> None:
        with pytest.raises(SpecError) as caught:
            Container(mounts=[f"{source}:/data", Mount.tmpfs("/data/")])
        assert caught.value.field == "mounts"


class TestReadOnlyRoot:
    def test_nothing_can_be_written(self) -> None:
        with Container(read_only=True) as container:
            for path in (
                "/file",
                "/tmp/file",
                "/root/file",
                "/usr/file",
                "/etc/file",
                "/run/file",
                "/var/tmp/file",
            ):
                result = container.exec(["sh", "-c", f"echo x > {path}"], text=True)
                assert "Read-only file system" in result.stderr or "Permission denied" in result.stderr, path
            assert "Read-only" in container.exec(["touch", "/tmp/file"], text=True).stderr
            assert not container.exec(["mount", "-o", "remount,rw", "/"]).ok
            with pytest.raises(OSError, match="Read-only"):
                container.write_bytes("/tmp/file", b"x")

    @pytest.mark.requires("host_folders")
    def test_mounts_and_devices_can(self, source: Path) -> None:
        mounts = [f"{source}:/data", Mount.tmpfs("/tmp")]
        with Container(read_only=True, mounts=mounts) as container:
            sh(
                container,
                "echo x > /data/new; echo x > /tmp/file; echo x > /dev/shm/file; echo x > /dev/null",
            )
            assert container.exec(["tty"], tty=True).ok
        assert (source / "new").exists()

    @pytest.mark.requires("host_folders")
    def test_a_mount_over_a_part_of_the_root_stays_writable(self, source: Path) -> None:
        # For an ordinary user each directory of the host's is a mount of its own.
        with Container(read_only=True, mounts=[f"{source}:/usr/share", f"{source}/sub:/opt"]) as container:
            sh(container, "echo x > /usr/share/new; echo x > /opt/new")
            assert "Read-only" in container.exec(["touch", "/var/tmp/file"], text=True).stderr

    @pytest.mark.requires("host_folders")
    def test_a_mount_s_target_is_made(self, image: Path, source: Path) -> None:
        # It is made before the root becomes read-only.
        with Container(image, read_only=True, mounts=[*HOST, f"{source}:/made"]) as container:
            assert sh(container, "cat /made/file") == "from the host\n"


class TestDevices:
    def test_the_usual_ones(self, box: Container) -> None:
        script = """
        head -c 3 /dev/zero | od -An -tx1; echo x > /dev/null; head -c 8 /dev/urandom | wc -c
        head -c 8 /dev/random | wc -c; echo x > /dev/full || echo full
        echo a > /dev/stdout; readlink /dev/fd /dev/ptmx; stat -c %a /dev/shm
        """
        assert sh(box, script).split() == [
            "00",
            "00",
            "00",
            "8",
            "8",
            "full",
            "a",
            "/proc/self/fd",
            "pts/ptmx",
            "1777",
        ]
        names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
        assert sh(box, "ls /dev").split() == names.split()

    def test_no_others(self, box: Container) -> None:
        assert not box.exec(["mknod", "/tmp/null", "c", "1", "3"]).ok
        assert not box.exec(["mknod", "/dev/mine", "c", "1", "3"]).ok
        # A node that is made anyway is none: there are no devices on what is writable.
        with Container(cap_add=["ALL"], seccomp=None) as container:
            result = container.exec(["sh", "-c", "mknod /tmp/zero c 1 5 && head -c 1 /tmp/zero"])
            assert not result.ok

    @pytest.mark.parametrize("user", [None, pytest.param("1000", marks=pytest.mark.requires("id_ranges"))])
    def test_terminals(self, box: Container, user: str | None) -> None:
        code = "import pty, os; master, slave = pty.openpty(); print(os.ttyname(slave), os.isatty(slave))"
        assert said(box, python(code), user=user).split()[0].startswith("/dev/pts/")

    def test_message_queues_and_shared_memory(self, box: Container) -> None:
        sh(box, "echo x > /dev/shm/file; ls /dev/mqueue")
        with Container() as other:
            assert sh(other, "ls /dev/shm") == ""

    def test_one_more(self) -> None:
        path = next(
            (each for each in ("/dev/fuse", "/dev/net/tun", "/dev/kmsg") if os.path.exists(each)), None
        )
        if path is None:
            pytest.skip("no device to try it with")
        with Container(devices=[path]) as container:
            inside = sh(container, f"stat -c '%t %T %F' {path}").split()
        number = os.stat(path).st_rdev
        assert inside[:2] == [f"{os.major(number):x}", f"{os.minor(number):x}"]

    @pytest.mark.parametrize("path", ["/dev/nosuch", "/dev/nosuch/deeper"])
    def test_that_are_not_there(self, path: str) -> None:
        with pytest.raises((SetupError, SpecError, UnsupportedError)) as caught:
            Container(devices=[path]).start()
        assert path in str(caught.value)


class TestProcAndSys:
    def test_read_only_where_it_matters(self, box: Container) -> None:
        mounts = {line.split()[1]: line.split() for line in sh(box, "cat /proc/self/mounts").splitlines()}
        assert "ro" in mounts["/sys"][3].split(",")
        for path in ("/proc", "/sys"):
            assert {"nosuid", "nodev", "noexec"} <= set(mounts[path][3].split(","))

    def test_no_mount_of_the_host_is_seen(self, box: Container, tmp_path: Path) -> None:
        listed = sh(box, "cat /proc/self/mountinfo")
        roots = {line.split()[4].replace("\\040", " ") for line in listed.splitlines()}
        # The image shows file systems of the host, such as one with this checkout or with layers on disk.
        own = (str(Path(__file__).parents[2]), "/var/lib/isobox")
        names = [root for root in roots if not root.startswith(own)]
        assert "/" in roots and not any("isobox" in name or "stage" in name for name in names)

    def test_the_host_s_root_cannot_be_reached(self, box: Container) -> None:
        for path in ("/proc/1/root", "/proc/1/cwd"):
            listed = box.exec(["ls", "-A", f"{path}/"], text=True)
            if listed.ok:  # then it is the container's own
                assert sh(box, "ls -A /") == listed.stdout


class TestFolders:
    @pytest.mark.requires("host_folders")
    def test_owners_inside(self, image: Path) -> None:
        with Container(image, mounts=HOST) as container:
            assert sh(container, "stat -c %u:%g /real/file /etc /") == "0:0\n" * 3
            sh(container, "echo changed > /real/file; rm /etc/passwd; mkdir /real/new")
            assert sh(container, "cat /real/file") == "changed\n"
        assert (image / "real" / "file").read_text() == "image\n"
        assert (image / "etc" / "passwd").exists() and not (image / "real" / "new").exists()

    @pytest.mark.requires("host_folders", "root")
    def test_other_owners_inside(self, image: Path) -> None:
        os.chown(image / "real" / "file", 1000, 1000)
        os.chmod(image / "real" / "file", 0o600)
        with Container(image, mounts=HOST) as container:
            assert sh(container, "stat -c %u:%g /real/file") == "1000:1000\n"
            assert sh(container, "cat /real/file", user="app") == "image\n"
            assert not container.exec(["cat", "/real/file"], user="1001").ok

    @pytest.mark.requires("host_folders")
    def test_two_from_one(self, image: Path) -> None:
        with (
            Container(image, mounts=HOST) as one,
            Container(image, mounts=HOST) as two,
        ):
            sh(one, "echo one > /real/file")
            assert sh(two, "cat /real/file") == "image\n"

    @pytest.mark.requires("host_folders")
    def test_the_whole_system_of_the_host_is_not_one(self) -> None:
        with pytest.raises(SpecError) as caught:
            Container("/").start()
        assert caught.value.field == "image"

    @pytest.mark.requires("host_folders")
    @pytest.mark.parametrize("compression", ["", "gz", "zst"])
    def test_archives(self, image: Path, tmp_path: Path, compression: str) -> None:
        plain = tmp_path / "image.tar"
        with tarfile.open(plain, "w") as archive:
            archive.add(image, ".")
        path = plain
        if compression == "gz":
            subprocess.run(["gzip", plain], check=True)
            path = tmp_path / "image.tar.gz"
        elif compression == "zst":
            zstandard = pytest.importorskip("zstandard")
            path = tmp_path / "image.tar.zst"
            path.write_bytes(zstandard.compress(plain.read_bytes()))
        with Container(path, mounts=HOST) as container:
            assert sh(container, "cat /real/file; stat -c %u /real/file") == "image\n0\n"
            sh(container, "echo changed > /real/file")
        with Container(path, mounts=HOST) as container:
            assert sh(container, "cat /real/file") == "image\n"


class TestHostImage:
    def test_what_a_program_changes_stays_inside(self, box: Container, tmp_path: Path) -> None:
        with Container() as container:
            sh(container, "echo x > /tmp/isobox-test-inside; mkdir -p /root/a /run/b; echo y > /var/tmp/z")
            assert sh(box, "ls -A /tmp /root/a /run/b 2>/dev/null | grep isobox-test-inside || true") == ""
        assert not os.path.exists("/tmp/isobox-test-inside")

    def test_an_unprivileged_user_s_view(self, box: Container) -> None:
        # Root inside is nobody to the host's files, whoever we are.
        assert not box.exec(["cat", "/etc/shadow"]).ok
        assert not box.exec(["sh", "-c", "echo x >> /etc/passwd"]).ok
        assert not box.exec(["rm", "/usr/bin/env"]).ok
        assert os.path.exists("/usr/bin/env")
        assert "root" in sh(box, "cat /etc/passwd")
