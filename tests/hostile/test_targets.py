"""Images that have links and files where the container's own file systems go."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import isobox
from isobox import Container, ExecError, Mount, SetupError
from isobox.plan import devices, setup
from isobox.plan.ops import BELOW_ROOT
from isobox.security import paths
from programs import ROOT, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

TYPES = {"/proc": "proc", "/sys": "sysfs", "/dev": "tmpfs"}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of the host's, the same afterwards as before."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("of the host")
    yield folder
    assert os.listdir(folder) == ["secret"]
    assert (folder / "secret").read_text() == "of the host"


def kind(container: Container, path: str) -> str:
    return sh(container, f"stat -f -c %T {path}").strip()


def test_followed_they_lead_the_kernel_s_files_elsewhere(
    image: Path, host_programs: list[Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall taken down: /proc is mounted where the image says. What is at /proc is then a program's to
    choose, and all that is to be hidden or protected below it is looked for in the wrong place.
    """
    for module in (setup, devices):
        monkeypatch.setattr(module, "NO_LINKS", BELOW_ROOT)
    (image / "real").mkdir()
    (image / "proc").symlink_to("/real")
    with Container(image, mounts=host_programs) as container:
        assert container.read_text("/real/version") == Path("/proc/version").read_text()


@pytest.mark.parametrize("link", ["/real", "{outside}", "{up}{outside}", "/proc/self/root", "/sys", "tmp"])
@pytest.mark.parametrize("place", TYPES)
def test_a_link_for_the_kernel_s_files(
    image: Path, host_programs: list[Mount], outside: Path, place: str, link: str
) -> None:
    """CVE-2019-16884 (https://nvd.nist.gov/vuln/detail/CVE-2019-16884), CVE-2023-27561
    (https://nvd.nist.gov/vuln/detail/CVE-2023-27561): /proc is a link in the image. Such images don't start.
    """
    (image / "real").mkdir()
    (image / place[1:]).symlink_to(link.format(outside=outside, up="../" * 20))
    with pytest.raises(SetupError) as caught:
        Container(image, mounts=host_programs).start()
    assert caught.value.errno == errno.ELOOP
    assert place in caught.value.hint and "directory" in caught.value.hint
    assert os.listdir(image / "real") == []


@pytest.mark.parametrize("place", TYPES)
def test_a_file_for_the_kernel_s_files(image: Path, host_programs: list[Mount], place: str) -> None:
    (image / place[1:]).write_text("")
    with pytest.raises(SetupError) as caught:
        Container(image, mounts=host_programs).start()
    assert caught.value.errno in (errno.EINVAL, errno.ENOTDIR)
    assert place in caught.value.hint and "directory" in caught.value.hint


@pytest.mark.parametrize("name", "null zero full random tty pts shm mqueue console ptmx fd stdin".split())
def test_what_the_image_has_in_dev(image: Path, host_programs: list[Mount], outside: Path, name: str) -> None:
    """CVE-2025-31133 (https://nvd.nist.gov/vuln/detail/CVE-2025-31133), CVE-2025-52565
    (https://nvd.nist.gov/vuln/detail/CVE-2025-52565): /dev/null, /dev/pts or /dev/console is a link, and the
    runtime mounts what it leads to, or on it. Code that uses the path of the image does reach the host's
    file; isobox's /dev is made anew, and what covers a path is the host's own /dev/null.
    """
    (image / "dev").mkdir()
    (image / "dev" / name).symlink_to(outside / "secret")
    assert (image / "dev" / name).read_text() == "of the host"
    for userns in ("auto", "host") if ROOT else ("auto",):
        with Container(image, mounts=host_programs, userns=userns) as container:
            assert sh(container, "cat /dev/null; head -c 2 /dev/zero | od -An -tx1").split() == ["00", "00"]
            assert kind(container, "/dev/pts") == "devpts"
            found = sh(container, f"timeout 0.2 head -c 64 /dev/{name} 2>/dev/null | od -c | head; true")
            assert "h   o   s   t" not in found
            if userns == "host":
                for path in paths.MASKED:
                    if os.path.isfile(path):
                        assert sh(container, f"stat -c %t:%T {path}; cat {path}") == "1:3\n", path


def test_what_the_image_has_in_proc(image: Path, host_programs: list[Mount]) -> None:
    """CVE-2025-52881 (https://nvd.nist.gov/vuln/detail/CVE-2025-52881): what the runtime writes to /proc is
    led to another file. isobox writes to nothing of the container's: id maps, groups and attributes are the
    host's to write. There is no wall to take down; the image's own files just stay as they are.
    """
    names = ["self/attr/exec", "self/uid_map", "1/attr/exec", "sys/kernel/core_pattern", "sysrq-trigger"]
    for name in (*names, "thread-self/attr/exec", "1/setgroups", "self/fd/0", "1/oom_score_adj"):
        (image / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (image / "proc" / name).write_text("untouched")
    with Container(image, mounts=host_programs) as container:
        sh(container, "true", user="1000" if isobox.host.features().id_ranges else None)
        container.write_text("/tmp/file", "x")
        assert kind(container, "/proc") == "proc"
    found = {path.read_text() for path in (image / "proc").rglob("*") if path.is_file()}
    assert found == {"untouched"}


# Mounts that were asked for over what is the container's own


@pytest.mark.parametrize(
    "target",
    ["/proc", "/proc/sys", "/proc/self", "/proc/1", "/proc/kcore", "/sys", "/sys/fs", "/dev", "/dev/pts"],
)
def test_mounts_over_proc_and_the_like(image: Path, host_programs: list[Mount], target: str) -> None:
    """CVE-2019-16884, CVE-2023-27561: a volume over /proc fooled the runtime, which wrote the security label
    there. Nothing is written here, so a mount over /proc only hides it from those inside.

    The caller alone says where to mount, no image can; so this is about what it opens: nothing.
    """
    folder = image / "fake"
    (folder / "self" / "attr").mkdir(parents=True)
    (folder / "self" / "attr" / "exec").write_text("untouched")
    try:
        with Container(image, mounts=[*host_programs, f"{folder}:{target}"]) as container:
            assert sh(container, "echo here") == "here\n"
            for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"):
                assert not container.exec(["sh", "-c", f"test -e {path} && : >> {path}"]).ok
            assert not container.exec(["umount", target]).ok
            assert not container.exec(["umount", "-l", target]).ok
    except (SetupError, ExecError) as error:
        assert target in str(error)
    assert (folder / "self" / "attr" / "exec").read_text() == "untouched"
    assert sorted(os.listdir(folder)) == ["self"]
