"""Root file systems as the kernel shows them inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import isobox
from isobox import Container, Mount
from isobox.rootfs.host_image import python_paths

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

ROOT = os.geteuid() == 0
UPPERS = pytest.mark.parametrize(
    "upper", [pytest.param("memory", marks=pytest.mark.requires("tmpfs_xattrs")), "disk"]
)
"""For what removes directories of the image."""


def sh(container: Container, script: str) -> str:
    result = container.exec(["sh", "-c", script], text=True, timeout=60)
    assert result.ok, (result.reason, result.returncode, result.stderr)
    assert isinstance(result.stdout, str)
    return result.stdout


def changed(container: Container) -> list[str]:
    return [f"{change.kind} {change.path}" for change in container.changes()]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder image whose programs are the host's, mounted at /usr by `mounts`."""
    folder = tmp_path / "image"
    folder.mkdir(mode=0o755)
    for name in ("usr", "etc", "data", "data/sub"):
        (folder / name).mkdir(mode=0o755)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            (folder / name).symlink_to(os.readlink(f"/{name}"))
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
    (folder / "etc" / "group").write_text("root:x:0:\napp:x:1000:\n")
    (folder / "data" / "a").write_bytes(b"a")
    (folder / "data" / "sub" / "b").write_bytes(b"b")
    return folder


MOUNTS = tuple(
    Mount.bind(path, path, read_only=True)
    for path in ("/usr", "/bin", "/lib", "/lib64")
    if os.path.isdir(path) and not os.path.islink(path)
)


def test_home_directories_and_the_like_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with Container("host") as container:
        listed = sh(container, "ls -A /home /mnt /media /srv /var/tmp; ls -d /boot 2>/dev/null || true")
        # The Python in use may lie below one of them.
        allowed = {part for path in python_paths() for part in Path(path).parts}
        assert {line for line in listed.splitlines() if line and not line.endswith(":")} <= allowed
        assert sh(container, f"ls -d {tmp_path}/secret 2>/dev/null || echo none") == "none\n"
        run = sh(container, "ls -A /run").split()
        assert set(run) <= {"lock"}


def test_fresh_directories() -> None:
    with Container("host") as container:
        sh(container, "for d in /tmp /var/tmp /run /run/lock /root /home; do echo x > $d/new; done")
        modes = sh(container, "stat -c %a:%u /tmp /var/tmp /run /run/lock").split()
        assert modes == ["1777:0", "1777:0", "755:0", "1777:0"]
        assert sorted(changed(container)) == sorted(
            f"added {d}/new" for d in ("/tmp", "/var/tmp", "/run", "/run/lock", "/root", "/home")
        )
    assert not os.path.exists("/var/tmp/new")


def test_what_others_may_not_read_stays_closed() -> None:
    with Container("host") as container:
        if os.path.exists("/etc/shadow"):
            result = container.exec(["cat", "/etc/shadow"])
            assert not result.ok
            assert result.stdout == b""
        result = container.exec(["sh", "-c", "echo x > /usr/bin/isobox-test || rm /usr/bin/env"])
        assert not result.ok
        assert changed(container) == []
    assert os.path.exists("/usr/bin/env")


def test_the_python_in_use_works_inside() -> None:
    code = "import sys, json, sqlite3, ctypes, attrs; print(sys.prefix, sys.base_prefix)"
    result = isobox.run([sys.executable, "-c", code], text=True)
    assert result.stdout == f"{sys.prefix} {sys.base_prefix}\n", result.stderr


def test_a_virtual_environment_in_a_hidden_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    venv = tmp_path / "v env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (tmp_path / "beside").write_bytes(b"not for the container")
    script = (
        "import isobox, sys, os\n"
        "r = isobox.run([sys.executable, '-c', 'import sys; print(sys.prefix, sys.executable)'], text=True)\n"
        "print(r.stdout, r.stderr)\n"
        "print(isobox.run(['ls', os.path.dirname(sys.prefix)], text=True).stdout)\n"
    )
    library = os.pathsep.join(path for path in sys.path if path.endswith(("site-packages", "src")))
    done = subprocess.run(
        [venv / "bin" / "python", "-c", script],
        env={**os.environ, "PYTHONPATH": library},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert done.stdout.split("\n")[0] == f"{venv} {venv}/bin/python", done.stderr
    assert "v env" in done.stdout
    assert "beside" not in done.stdout


@pytest.mark.requires("host_folders")
@UPPERS
def test_a_folder_is_copied_on_write(image: Path, upper: str) -> None:
    with Container(image, mounts=MOUNTS, upper=upper) as container:
        assert sh(container, "stat -c %u:%g /data/a; cat /data/a") == "0:0\na"
        sh(container, "echo more >> /data/a; rm -r /data/sub; mkdir -p /new/dir; chmod 700 /etc")
        assert changed(container) == [
            "modified /data/a",
            "deleted /data/sub",
            "modified /etc",
            "added /new",
            "added /new/dir",
        ]
    assert (image / "data" / "a").read_bytes() == b"a"
    assert (image / "data" / "sub" / "b").read_bytes() == b"b"
    assert sorted(os.listdir(image / "data")) == ["a", "sub"]


@pytest.mark.requires("host_folders")
@UPPERS
def test_a_directory_made_anew_hides_the_old(image: Path, upper: str) -> None:
    with Container(image, mounts=MOUNTS, upper=upper) as container:
        sh(container, "rm -r /data; mkdir /data; echo c > /data/c")
        assert sh(container, "ls /data") == "c\n"
        assert changed(container) == [
            "modified /data",
            "deleted /data/a",
            "added /data/c",
            "deleted /data/sub",
        ]


@pytest.mark.requires("host_folders")
@pytest.mark.parametrize("upper", ["memory", "disk"])
def test_an_unchanged_container_has_no_changes(image: Path, upper: str) -> None:
    with Container(image, mounts=(*MOUNTS, Mount.tmpfs("/deep/er/mount")), upper=upper) as container:
        sh(container, "ls /data /deep/er/mount /proc /dev; cat /data/a")
        container.exec(["sh", "-c", "echo x > /dev/shm/x; echo y > /deep/er/mount/y"], check=True)
        assert changed(container) == []
        sh(container, "echo z > /data/z")
        assert changed(container) == ["added /data/z"]


@pytest.mark.requires("host_folders")
def test_a_link_in_the_image_does_not_lead_a_mount_out(image: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (image / "escape").symlink_to(outside)
    with pytest.raises(isobox.SetupError, match="/escape/in"):
        Container(image, mounts=(*MOUNTS, Mount.tmpfs("/escape/in"))).start()
    assert os.listdir(outside) == []
    (image / str(outside).lstrip("/")).mkdir(parents=True)
    (image / "up").symlink_to("../../../../../../..")
    mounts = (*MOUNTS, Mount.tmpfs("/escape/in"), Mount.tmpfs("/up/in"))
    with Container(image, mounts=mounts) as container:
        sh(container, "echo x > /escape/in/x; echo y > /in/y; cat /in/y")
    assert os.listdir(outside) == []


@pytest.mark.requires("host_folders")
@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_tar_archive_is_an_image(image: Path, tmp_path: Path, compression: str) -> None:
    archive = tmp_path / f"image.tar{compression and '.' + compression}"
    with tarfile.open(archive, f"w:{compression}") as tar:  # type: ignore[call-overload]
        tar.add(image, ".")
    with Container(archive, mounts=MOUNTS) as container:
        assert sh(container, "cat /data/a; stat -c %u /data/a") == "a0\n"
        sh(container, "rm /data/a")
        assert changed(container) == ["deleted /data/a"]


@pytest.mark.requires("host_folders")
def test_a_damaged_archive_leaves_nothing(image: Path, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(image, ".")
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(isobox.UnpackError):
        Container(archive, mounts=MOUNTS).start()


@pytest.mark.requires("host_folders")
def test_a_read_only_root(image: Path) -> None:
    with Container(image, mounts=MOUNTS, read_only=True) as container:
        result = container.exec(["sh", "-c", "echo x > /data/a"])
        assert not result.ok
        assert b"Read-only" in result.stderr


@pytest.mark.requires("root", "cgroups")
def test_a_container_sees_its_own_limits() -> None:
    code = "import os; print(os.cpu_count(), len(os.sched_getaffinity(0)))"
    with Container("host", cpu=0.5, memory="64M") as container:
        assert container.exec([sys.executable, "-c", code]).stdout == b"1 1\n"
        assert sh(container, "head -1 /proc/meminfo").split() == ["MemTotal:", "65536", "kB"]
        cpus = sh(container, "cat /sys/devices/system/cpu/online; grep -c ^processor /proc/cpuinfo")
        assert cpus.split()[1] == "1"
        assert sh(container, "grep -c '^cpu[0-9]' /proc/stat") == "1\n"


@pytest.mark.requires("root")
def test_submounts_of_the_host_are_shown_too(tmp_path: Path) -> None:
    """In a mount namespace of its own: a file system and a single file mounted below the image's folders."""
    used = (os.path.realpath(sys.executable), sys.executable, os.path.realpath(isobox.__file__))
    places = [p for p in ("/opt", "/usr/src", "/usr/games") if os.path.isdir(p)]
    place = next((p for p in places if not any(path.startswith(f"{p}/") for path in used)), None)
    if not shutil.which("unshare") or place is None:
        pytest.skip("no unshare(1), or no folder to mount on")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 from-a-mount\n")
    hosts.chmod(0o644)
    script = (
        "import isobox\n"
        "with isobox.Container('host') as c:\n"
        f"    print(c.exec(['cat', '{place}/mounted', '/etc/passwd'], text=True))\n"
        f"    print(c.exec(['sh', '-c', 'cat {place}/dir/f; echo x > {place}/dir/f'], text=True))\n"
        "    print(c.changes())\n"
    )
    library = os.pathsep.join(path for path in sys.path if path.endswith(("site-packages", "src")))
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-ec"),
            f"mount -t tmpfs -o mode=755 x {place}; echo shown > {place}/mounted; mkdir -m 777 {place}/dir; "
            f'mount --bind {hosts} /etc/passwd; exec "$0" -c "$1"',
            *(sys.executable, script),
        ],
        env={**os.environ, "PYTHONPATH": library},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert "shown\\n127.0.0.1 from-a-mount" in done.stdout
