"""A program swaps a directory with a symbolic link to the host's files while those outside work on it.

CVE-2018-15664 (https://nvd.nist.gov/vuln/detail/CVE-2018-15664): copying in and out looked at a path, and
then used it. CVE-2021-30465 (https://nvd.nist.gov/vuln/detail/CVE-2021-30465): the same with the target of
a mount in a volume that another container shares. Each race is won first against code that works so.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from isobox import DEVNULL, Container, SetupError
from patience import patient
from programs import python, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

SECONDS = 0.6
"""How long each race against isobox is run."""

SWAP = """
import ctypes, os, sys
place, target = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
number = 316 if os.uname().machine == "x86_64" else 276  # renameat2
os.makedirs(f"{place}/swapped", exist_ok=True)
with open(f"{place}/swapped/secret", "w") as file:
    file.write("inside")
os.symlink(target, f"{place}/link")
one, other = f"{place}/swapped".encode(), f"{place}/link".encode()
assert libc.syscall(number, -100, one, -100, other, 2) == 0, ctypes.get_errno()  # RENAME_EXCHANGE
os.write(1, b"swapping\\n")
while libc.syscall(number, -100, one, -100, other, 2) == 0:
    pass
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("of the host")
    return folder


@contextmanager
def swapping_on_the_host(place: Path, target: Path) -> Iterator[None]:
    with subprocess.Popen(python(SWAP, str(place), str(target)), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"swapping\n"
        try:
            yield
        finally:
            process.kill()


@contextmanager
def swapping_inside(container: Container, place: str, target: str) -> Iterator[None]:
    with container.popen(python(SWAP, place, target), stderr=DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"swapping\n"
        try:
            yield
            assert process.poll() is None
        finally:
            process.kill()


def repeated(step: Callable[[], object], seconds: float = SECONDS, until: Callable[[], object] = bool) -> int:
    """Do it again and again, whatever it says; how often it went well. Stops early once `until` holds."""
    deadline, well = time.monotonic() + seconds, 0
    while time.monotonic() < deadline and not until():
        with suppress(OSError, SetupError):
            step()
            well += 1
    return well


def naive(root: Path, path: str) -> str:
    """Find a file below `root` as the code of the CVE did: make sure that it is inside, then use the path."""
    if not os.path.realpath(f"{root}{path}").startswith(f"{root}/"):
        raise PermissionError(path)
    return f"{root}{path}"


class TestNaiveCode:
    """The walls taken down: who checks a path and then opens it loses these races."""

    def test_reads_a_file_of_the_host(self, tmp_path: Path, outside: Path) -> None:
        found = set()
        root = tmp_path / "root"

        def read() -> None:
            with open(naive(root, "/swapped/secret")) as file:
                found.add(file.read())

        with swapping_on_the_host(root, outside):
            repeated(read, patient(30), until=lambda: "of the host" in found)
        assert "of the host" in found

    def test_writes_a_file_of_the_host(self, tmp_path: Path, outside: Path) -> None:
        root = tmp_path / "root"

        def write() -> None:
            with open(naive(root, "/swapped/planted"), "w") as file:
                file.write("evil")

        with swapping_on_the_host(root, outside):
            repeated(write, patient(30), until=(outside / "planted").exists)
        assert (outside / "planted").exists()

    def test_makes_a_mount_point_on_the_host(self, tmp_path: Path, outside: Path) -> None:
        root = tmp_path / "root"
        with swapping_on_the_host(root, outside):
            repeated(
                lambda: os.makedirs(naive(root, "/swapped/deep")),
                patient(30),
                until=(outside / "deep").exists,
            )
        assert (outside / "deep").exists()

    def test_copies_through_a_link_that_it_made(self, tmp_path: Path, outside: Path) -> None:
        copied = tmp_path / "copied"
        copied.mkdir()
        (copied / "swapped").symlink_to(outside)  # what it found first
        (copied / "swapped").mkdir(exist_ok=True)  # what it found then
        (copied / "swapped" / "planted").write_text("evil")
        assert (outside / "planted").exists()


@pytest.fixture
def racing(outside: Path) -> Iterator[Container]:
    """A container where /race/swapped is now a directory, now a link to what is outside on the host."""
    with Container() as container:
        # What the link leads to in there.
        sh(container, f"mkdir -p {outside} && printf decoy > {outside}/secret")
        with swapping_inside(container, "/race", str(outside)):
            yield container
    assert sorted(os.listdir(outside)) == ["secret"]
    assert (outside / "secret").read_text() == "of the host"


class TestFiles:
    def test_read(self, racing: Container) -> None:
        found = set()
        for seconds in (SECONDS, patient(20)):  # until both were hit: so the race is there
            repeated(
                lambda: found.add(racing.read_bytes("/race/swapped/secret")),
                seconds,
                until=lambda seconds=seconds: seconds > SECONDS and len(found) == 2,
            )
        assert found == {b"inside", b"decoy"}

    def test_write(self, racing: Container, outside: Path) -> None:
        assert repeated(lambda: racing.write_bytes("/race/swapped/planted", b"evil"))
        sh(racing, f"cat {outside}/secret")

    def test_copy_in(self, racing: Container, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "deep").mkdir(parents=True)
        (tree / "deep" / "planted").write_text("evil")
        assert repeated(lambda: racing.copy_in(tree, "/race/swapped/"))
        assert repeated(lambda: racing.copy_in(tree / "deep" / "planted", "/race/swapped/planted"))
        assert repeated(lambda: racing.copy_in(f"{tree}/.", "/race/swapped"))

    def test_copy_out(self, racing: Container, tmp_path: Path) -> None:
        numbers = iter(range(1 << 30))

        def copy(source: str, target: str) -> None:
            racing.copy_out(source, tmp_path / "copied" / target)

        (tmp_path / "copied").mkdir()
        repeated(lambda: copy("/race", f"{next(numbers)}"))  # what it finds changes under its hands
        repeated(lambda: copy("/race/.", "again"))  # and so does what it copied before
        repeated(lambda: copy("/race/swapped/secret", f"{next(numbers)}"))
        assert next(numbers) > 10
        found = set()
        for path, _folders, names in os.walk(tmp_path / "copied"):
            for name in names:
                if not os.path.islink(f"{path}/{name}"):
                    with open(f"{path}/{name}") as file:
                        found.add(file.read())
        assert found and found <= {"inside", "decoy", ""}  # "": the copy was cut short

    def test_a_link_that_was_copied_is_not_followed(
        self, box: Container, tmp_path: Path, outside: Path
    ) -> None:
        copied = tmp_path / "copied"
        sh(box, f"mkdir -p /tmp/tree && ln -sfn {outside} /tmp/tree/swapped")
        box.copy_out("/tmp/tree", copied)
        assert os.readlink(copied / "swapped") == str(outside)
        sh(box, "cd /tmp/tree && rm swapped && mkdir swapped && echo evil > swapped/planted")
        with pytest.raises(OSError, match="swapped"):
            box.copy_out("/tmp/tree/.", copied)
        assert os.listdir(outside) == ["secret"]


@pytest.mark.requires("host_folders")
@pytest.mark.parametrize("climbs", [False, True])
def test_a_mount_s_target_in_a_shared_volume(tmp_path: Path, outside: Path, climbs: bool) -> None:
    """CVE-2021-30465: one container has another start with a mount below a directory that it swaps."""
    volume, payload = tmp_path / "volume", tmp_path / "payload"
    for folder in (volume, payload):
        folder.mkdir()
    (payload / "file").write_text("payload")
    target = "../" * 20 + str(outside).lstrip("/") if climbs else str(outside)
    mounts = [f"{volume}:/volume", f"{payload}:/volume/swapped/deep"]
    before = sorted(os.listdir("/etc"))

    def start() -> None:
        with Container(mounts=mounts) as container:
            sh(container, f"! test -e {outside}/secret")

    with Container(mounts=mounts[:1]) as attacker, swapping_inside(attacker, "/volume", target):
        assert repeated(start, 2.0)
    assert os.listdir(outside) == ["secret"]
    assert os.listdir(payload) == ["file"]
    assert sorted(os.listdir("/etc")) == before
