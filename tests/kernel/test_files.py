"""Files of a real container, and programs inside that do not play along."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isobox import Container
from patience import patient

pytestmark = pytest.mark.requires("user_namespaces", "overlay")


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with Container("host", network="host") as running:
        yield running


def sh(container: Container, script: str, **options: str) -> bytes:
    result = container.exec(["sh", "-c", script], timeout=60, **options)
    assert result.ok, (result.reason, result.returncode, result.stderr)
    assert isinstance(result.stdout, bytes)
    return result.stdout


def test_bytes_and_text(container: Container) -> None:
    container.write_bytes("/tmp/b", b"\0\xff")
    assert container.read_bytes("/tmp/b") == b"\0\xff"
    assert sh(container, "od -An -tx1 /tmp/b").split() == [b"00", b"ff"]
    container.write_text("/tmp/t", "käse\n")
    assert container.read_text("/tmp/t") == "käse\n"
    assert sh(container, "stat -c %a:%u:%g /tmp/t") == b"644:0:0\n"
    container.write_text("/tmp/t", "")
    assert container.read_bytes("/tmp/t") == b""
    big = os.urandom(3 << 20)
    container.write_bytes("/tmp/big", big)
    assert container.read_bytes("/tmp/big") == big


def test_errors_name_the_path(container: Container) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        container.read_bytes("/tmp/nothing/here")
    assert caught.value.filename == "/tmp/nothing/here"
    with pytest.raises(IsADirectoryError):
        container.read_bytes("/tmp")
    if os.path.exists("/etc/shadow"):
        with pytest.raises(PermissionError):
            container.read_bytes("/etc/shadow")


def test_a_tree_in_and_out(container: Container, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "script").write_bytes(b"#!/bin/sh\necho it runs\n")
    (source / "sub" / "script").chmod(0o755)
    (source / "link").symlink_to("sub/script")
    (source / "sub").chmod(0o500)
    os.utime(source / "sub" / "script", ns=(5 * 10**17, 5 * 10**17 + 1))
    container.copy_in(source, "/tmp/tree")
    assert sh(container, "/tmp/tree/link; stat -c %u:%a /tmp/tree/sub") == b"it runs\n0:500\n"
    container.copy_out("/tmp/tree", tmp_path / "back")
    back = tmp_path / "back"
    assert os.readlink(back / "link") == "sub/script"
    status = (back / "sub" / "script").stat()
    assert stat.S_IMODE(status.st_mode) == 0o755
    assert status.st_mtime_ns == 5 * 10**17 + 1
    assert status.st_uid == os.geteuid()
    assert stat.S_IMODE((back / "sub").stat().st_mode) == 0o500
    for place in (source, back):
        (place / "sub").chmod(0o700)


def test_links_inside_stay_inside(container: Container, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"the host's")
    sh(
        container,
        f"ln -s {tmp_path}/secret /tmp/out; ln -s /../../..{tmp_path} /tmp/up; ln -s /proc/1/root /tmp/magic",
    )
    for path in ("/tmp/out", "/tmp/up/secret"):
        with pytest.raises(OSError, match="No such file"):
            container.read_bytes(path)
    with pytest.raises(OSError, match="symbolic links"):
        container.read_bytes(f"/tmp/magic{tmp_path}/secret")
    container.copy_out("/tmp/out", tmp_path / "copied")
    assert os.path.islink(tmp_path / "copied")
    with pytest.raises(OSError, match="No such file"):
        container.copy_in(tmp_path / "secret", "/tmp/up/in")
    assert sorted(os.listdir(tmp_path)) == ["copied", "secret"]


def test_nothing_inside_makes_us_wait(container: Container, tmp_path: Path) -> None:
    sh(container, "mkdir /tmp/odd; cd /tmp/odd; mkfifo fifo; ln -s fifo link; echo x > file")
    began = time.monotonic()
    for name in ("fifo", "link"):
        for action in (container.read_bytes, lambda path: container.write_bytes(path, b"x")):
            with pytest.raises(OSError, match="not a regular file"):
                action(f"/tmp/odd/{name}")
    container.copy_out("/tmp/odd", tmp_path / "odd")
    assert sorted(os.listdir(tmp_path / "odd")) == ["file", "link"]
    with pytest.raises(OSError, match="not a regular file"):
        container.read_bytes("/dev/zero")
    assert time.monotonic() - began < patient(10)


def test_a_tree_that_changes_under_our_hands(container: Container, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"safe")
    sh(container, "mkdir -p /tmp/race/d /tmp/race/e; echo evil > /tmp/race/d/f; echo evil > /tmp/race/e/f")
    flip = f"cd /tmp/race; while :; do mv d x; ln -s {outside} d; rm d; mkfifo d; rm d; mv x d; done"
    with container.popen(["sh", "-c", flip]) as process:
        target = tmp_path / "target"
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                container.copy_out("/tmp/race", target)
            except OSError:
                pass
        process.kill()
    assert (outside / "f").read_bytes() == b"safe"
    assert os.listdir(outside) == ["f"]


def test_setuid_does_not_leave_the_container(container: Container, tmp_path: Path) -> None:
    sh(container, "echo x > /tmp/su; chmod 6755 /tmp/su")
    container.copy_out("/tmp/su", tmp_path)
    assert stat.S_IMODE((tmp_path / "su").stat().st_mode) == 0o755


@pytest.mark.requires("id_ranges")
def test_files_of_other_users_inside(container: Container, tmp_path: Path) -> None:
    sh(container, "umask 077; mkdir /tmp/private; echo mine > /tmp/private/f", user="1234:1234")
    assert container.read_bytes("/tmp/private/f") == b"mine\n"
    container.copy_out("/tmp/private", tmp_path)
    assert (tmp_path / "private" / "f").read_bytes() == b"mine\n"
    container.copy_in(tmp_path / "private", "/tmp/private")
    assert sh(container, "cat /tmp/private/private/f") == b"mine\n"
    assert "/tmp/private/f" in {change.path for change in container.changes()}


def test_no_descriptor_is_left(container: Container, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    container.write_bytes("/tmp/x", b"x")
    container.copy_out("/tmp/x", tmp_path)
    container.copy_in(tmp_path, "/tmp/y")
    container.changes()
    for path in ("/nothing", "/dev/null", "/tmp"):
        with pytest.raises(OSError, match="file|directory"):
            container.read_bytes(path)
    assert len(os.listdir("/proc/self/fd")) == before
