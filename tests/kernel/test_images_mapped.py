"""The process in a user namespace that unpacks an ordinary user's layers: its errors and its end."""

from __future__ import annotations

import io
import os
import signal
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archives import entry, folder, link, packed
from isobox import idmap
from isobox.errors import DigestMismatch, SetupError, UnpackError
from isobox.images.documents.digest import Digest
from isobox.images.layers.mapped import Mapped
from isobox.images.layers.unpacked import Layers
from patience import patient

pytestmark = pytest.mark.requires("ordinary_user", "newuidmap", "id_ranges", "overlay")

LAYER = packed(folder("d", 0o700), entry("d/f", b"1" * 1_000_000, uid=1000, gid=1000))


@pytest.fixture
def mapped() -> Iterator[Mapped]:
    with Mapped(idmap.of_user()) as made:
        yield made


def unpack(mapped: Mapped, place: Path, data: bytes, diff_id: Digest | None = None) -> Any:
    return mapped.unpack(io.BytesIO(data), str(place), diff_id=diff_id or Digest.of(data))


def host_id(inside: int) -> int:
    return idmap.outside(idmap.of_user().uid_lines, inside)


def test_one_layer_after_another(mapped: Mapped, tmp_path: Path) -> None:
    for number in range(3):
        made = unpack(mapped, tmp_path / str(number), LAYER + bytes(number << 18))
        assert made.entries == 2 and made.size == 1_000_000 and mapped.usable
        found = os.stat(tmp_path / str(number) / "d/f")
        assert found.st_uid == host_id(1000) and found.st_size == 1_000_000


@pytest.mark.parametrize(
    ("data", "diff_id", "error"),
    [
        (LAYER, Digest.of(b"another"), DigestMismatch),
        (LAYER[:-5000], Digest.of(LAYER[:-5000]), UnpackError),
        (packed(entry("../out", b"x")), None, UnpackError),
        (b"\x1f\x8b" + bytes(100), None, UnpackError),
        (packed(entry("x", b"x" * 3_000_000, uid=4_000_000_000)) * 4, None, UnpackError),
    ],
)
def test_a_bad_layer(
    data: bytes, diff_id: Digest | None, error: type[Exception], mapped: Mapped, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        unpack(mapped, tmp_path / "layer", data, diff_id)
    assert type(caught.value) is error and not mapped.usable and os.listdir(tmp_path) == []


def test_the_machine_s_errors(mapped: Mapped, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        unpack(mapped, tmp_path / "no/such/folder", LAYER)
    assert caught.value.strerror == "No such file or directory" and caught.value.stage == "layer"


def test_a_stream_that_fails(tmp_path: Path) -> None:
    """All of the layer has come, but for what says that it was the right one."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if data := super().read(size):
                return data
            raise DigestMismatch("blob", 1, 2)

    with Layers(tmp_path / "layers", id_map=idmap.of_user()) as layers:
        with pytest.raises(DigestMismatch, match="blob"):
            layers.ensure(None, Digest.of(LAYER), lambda: Failing(LAYER))
        assert os.listdir(tmp_path / "layers/layers") == []
        with layers.ensure(None, Digest.of(LAYER), lambda: io.BytesIO(LAYER)) as held:
            assert os.listdir(held.lowers[0]) == ["d"]
        layers.prune([])


def test_it_is_killed(mapped: Mapped, tmp_path: Path) -> None:
    class Killing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            os.kill(mapped._process.pid, signal.SIGKILL)
            return super().read(size)

    with pytest.raises(SetupError, match="signal 9"):
        mapped.unpack(Killing(LAYER * 10), str(tmp_path / "layer"), diff_id=Digest.of(LAYER))
    assert not mapped.usable


def test_ids_that_this_user_may_not_have() -> None:
    foreign = idmap.IdMap(((0, os.getuid(), 1), (1, 4_000_000, 10)), ((0, os.getgid(), 1),), True, False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SetupError, match="uid range"):
        Mapped(foreign)
    assert len(os.listdir("/proc/self/fd")) <= before  # what earlier tests kept for a while may go meanwhile


def test_it_ends_with_its_input(tmp_path: Path) -> None:
    mapped = Mapped(idmap.of_user())
    mapped._stdin.close()  # as when this process is killed
    assert mapped._process.wait(patient(30)) == 0
    mapped.close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        made = Mapped(idmap.of_user())
        pid = made._process.pid
        del made
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(os.listdir("/proc/self/fd")) <= before  # what earlier tests kept for a while may go meanwhile


def test_what_is_closed_to_this_user(mapped: Mapped, tmp_path: Path) -> None:
    members = [folder("./"), entry("c", type=tarfile.DIRTYPE, uid=999, gid=42, mode=0o700)]
    members += [entry("c/f", b"1", uid=5, gid=6, mode=0o640), link("c/l", "/etc/shadow"), entry("c/.wh.w")]
    unpack(mapped, tmp_path / "layer", packed(*members, entry("c/.wh..wh..opq")))
    place = str(tmp_path / "layer/c")
    with pytest.raises(PermissionError):
        os.listdir(place)
    found = mapped.look(place)
    assert found is not None and found[1] and sorted(found[2]) == ["f", "l", "w"]
    assert stat.filemode(found[0].st_mode) == "drwx------" and found[0].st_uid == host_id(999)
    found = mapped.look(f"{place}/f")
    assert found is not None and not found[1] and found[2] == []
    assert stat.filemode(found[0].st_mode) == "-rw-r-----" and found[0].st_uid == host_id(5)
    found = mapped.look(f"{place}/l")
    assert found is not None and stat.S_ISLNK(found[0].st_mode)
    found = mapped.look(f"{place}/w")
    assert found is not None and stat.S_ISCHR(found[0].st_mode) and found[0].st_rdev == 0
    for path in (f"{place}/none", f"{place}/f/below", "/proc/1/cwd/x", "/root/x"):
        assert mapped.look(path) is None
    assert mapped.usable
