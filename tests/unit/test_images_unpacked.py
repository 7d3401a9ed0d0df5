"""Unpacked layers that are shared: made once, held while used, removed when nobody names them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from archives import entry, folder, packed
from isobox import _native, idmap
from isobox.errors import DigestMismatch, ImageError, SetupError, UnpackError, UnsupportedError
from isobox.images.documents.config import chain_ids
from isobox.images.documents.digest import Digest
from isobox.images.layers.mounted import possible
from isobox.images.layers.unpacked import Held, Layers
from patience import patient
from programs import ROOT

BASE = packed(folder("d", 0o700), entry("d/f", b"1"))
NEXT = packed(entry("d/g", b"2"))
TOP = packed(entry("h", b"3"))


class Source:
    """A layer's stream, and how often it was asked for."""

    def __init__(self, data: bytes, wait: float = 0) -> None:
        self.data = data
        self.diff_id = Digest.of(data)
        self.opened = 0
        self._wait = wait

    @contextlib.contextmanager
    def __call__(self) -> Iterator[io.BytesIO]:
        self.opened += 1
        time.sleep(self._wait)
        yield io.BytesIO(self.data)


MAPPED = pytest.param("mapped", marks=pytest.mark.requires("ordinary_user", "newuidmap", "id_ranges"))


@pytest.fixture(params=["here", "file", MAPPED])
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Layers]:
    """Layers that this process unpacks, writes to files, and those that one in a user namespace unpacks."""
    id_map = idmap.of_user() if request.param == "mapped" else None
    files = request.param == "file"
    if files and not (ROOT and possible(str(tmp_path))):
        pytest.skip("nothing mounts a file here")
    with Layers(tmp_path / "layers", keep_owners=ROOT, id_map=id_map, files=files) as made:
        yield made
        made.prune([])  # what belongs to others here


def stacked(layers: Layers, *sources: Source) -> Held:
    """Hold the topmost of these layers."""
    held: Held | None = None
    for source in sources:
        above = layers.ensure(held, source.diff_id, source)
        if held is not None:
            held.close()
        held = above
    assert held is not None
    return held


def temporary(layers: Layers) -> list[str]:
    return [name for name in os.listdir(f"{layers.path}/layers") if name.startswith(".")]


def test_each_layer_is_made_once(layers: Layers) -> None:
    sources = [Source(BASE), Source(NEXT), Source(TOP)]
    with stacked(layers, *sources) as first, stacked(layers, *sources) as second:
        assert first.lowers == second.lowers and len(first.lowers) == 3
        assert [os.listdir(lower) for lower in first.lowers] == [["h"], ["d"], ["d"]]
        assert os.stat(f"{first.lowers[1]}/d").st_mode & 0o777 == 0o700  # as the layer below has it
        expected = chain_ids([source.diff_id for source in sources])
        assert sorted(layers.chain_ids()) == sorted(expected) and first.chain_id == expected[-1]
    assert [source.opened for source in sources] == [1, 1, 1]


def test_the_same_layer_on_others_is_another(layers: Layers) -> None:
    """Its directories inherit from what lies below."""
    with stacked(layers, Source(NEXT)) as alone, stacked(layers, Source(BASE), Source(NEXT)) as above:
        modes = [os.stat(f"{held.lowers[0]}/d").st_mode & 0o777 for held in (alone, above)]
    assert modes == [0o755, 0o700]


def test_what_hides_all_ends_the_list(layers: Layers) -> None:
    try:
        held = stacked(layers, Source(BASE), Source(packed(entry(".wh..wh..opq"), entry("x"))), Source(TOP))
    except UnsupportedError as error:
        pytest.skip(str(error))
    with held:
        assert [sorted(os.listdir(lower)) for lower in held.lowers] == [["h"], ["x"]]
        assert layers.prune([]) == []  # the one below is still a part of it


def test_many_at_once_make_it_once(layers: Layers) -> None:
    source = Source(BASE, wait=0.2)
    found: list[Held] = []
    threads = [
        threading.Thread(target=lambda: found.append(layers.ensure(None, source.diff_id, source)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patient(30))
    assert len(found) == 6 and source.opened == 1 and len({held.lowers for held in found}) == 1
    for held in found:
        held.close()


def test_after_a_failure_the_next_one_tries(layers: Layers) -> None:
    right = Source(BASE)
    for wrong in (Source(TOP), Source(BASE[:700])):
        with pytest.raises((DigestMismatch, UnpackError)):
            layers.ensure(None, right.diff_id, wrong)
        assert layers.find(right.diff_id) is None
        assert layers.chain_ids() == [] and temporary(layers) == []
    layers.ensure(None, right.diff_id, right).close()
    assert right.opened == 1


def test_prune(layers: Layers) -> None:
    base, next_, top = Source(BASE), Source(NEXT), Source(TOP)
    one, two = chain_ids([base.diff_id, next_.diff_id]), chain_ids([base.diff_id, top.diff_id])
    stacked(layers, base, next_).close()
    stacked(layers, base, top).close()
    assert layers.prune([one[-1], two[-1]]) == []
    assert layers.prune([one[-1]]) == [two[-1]]
    with stacked(layers, base, top):
        assert layers.prune([]) == [one[-1]]
    assert sorted(layers.prune([])) == sorted(two)
    assert layers.chain_ids() == [] and os.listdir(f"{layers.path}/locks") == temporary(layers) == []
    stacked(layers, base, top).close()


def test_prune_goes_from_the_top(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any moment, no layer stays whose lower one is gone: it could never be taken again."""
    sources = [Source(packed(entry(f"f{number}"))) for number in range(6)]
    ids = chain_ids([source.diff_id for source in sources])
    rename, delete = os.rename, layers._delete
    deleted: list[str] = []

    def killed(old: str, new: str) -> None:
        rename(old, new)
        if "/.layer-" in new:
            raise KeyboardInterrupt

    monkeypatch.setattr(layers, "_delete", lambda path: deleted.append(path) or delete(path))
    stacked(layers, *sources).close()
    for number in range(5, 0, -1):
        with monkeypatch.context() as changed:
            changed.setattr(os, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                layers.prune([])
        assert sorted(layers.chain_ids()) == sorted(ids[:number])
    stacked(layers, *sources).close()
    deleted.clear()
    assert sorted(layers.prune([])) == sorted(ids) and temporary(layers) == []
    assert len(deleted) <= 2, "one process for all, and one for what was left before"


def test_nothing_is_open_in_the_end(layers: Layers) -> None:
    stacked(layers, Source(BASE)).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        held = stacked(layers, Source(BASE), Source(NEXT))
        held.close()
        held.close()
        assert layers.find(Digest.of(b"")) is None
        layers.prune([held.chain_id])
    assert len(os.listdir("/proc/self/fd")) == before


MAKER = """
import contextlib, io, sys, time
from isobox import idmap
from isobox.images.documents.digest import Digest
from isobox.images.layers.unpacked import Layers
data = sys.stdin.buffer.read()
@contextlib.contextmanager
def source():
    print("making", flush=True)
    yield io.BytesIO(data)
    time.sleep(float(sys.argv[2]))
id_map = idmap.of_user() if sys.argv[3] == "mapped" else None
held = Layers(sys.argv[1], id_map=id_map).ensure(None, Digest.of(data), source)
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def maker(layers: Layers, data: bytes, wait: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process that makes the layer and holds it."""
    command = [sys.executable, "-c", MAKER, layers.path, str(wait), "mapped" if layers.id_map else ""]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(data)
            process.stdin.close()
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_whoever_is_killed_is_followed_by_another(layers: Layers) -> None:
    source = Source(BASE)
    with maker(layers, BASE, 600) as process:
        assert said(process) == b"making"
        assert layers.find(source.diff_id) is None
        threading.Timer(0.3, process.send_signal, [signal.SIGKILL]).start()
        with layers.ensure(None, source.diff_id, source) as held:  # waits for it
            assert process.wait(patient(30)) == -signal.SIGKILL
            assert os.listdir(held.lowers[0]) == ["d"] and source.opened == 1
    assert temporary(layers) == []


def test_what_another_process_holds_stays(layers: Layers) -> None:
    source = Source(BASE)
    with maker(layers, BASE, 0) as process:
        assert said(process) == b"making" and said(process) == b"held"
        assert layers.prune([]) == []
        layers.ensure(None, source.diff_id, source).close()
        assert source.opened == 0
        process.kill()
    assert layers.prune([]) == [source.diff_id]


def test_what_is_on_disk_is_not_trusted(layers: Layers) -> None:
    held = stacked(layers, Source(BASE), Source(NEXT))
    held.close()
    parent = Path(layers.path, "layers", str(held.chain_id), "parent")
    for text in ("sha256:xyz", "../../etc", "\xff", str(held.chain_id), str(Digest.of(b"another"))):
        parent.write_text(text)
        with pytest.raises(ImageError):
            layers.find(held.chain_id)
        assert layers.prune([held.chain_id, Digest.of(BASE)]) == []


def test_a_place_that_others_can_write_to(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UnsupportedError):
        Layers(tmp_path / "open", keep_owners=False)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((UnsupportedError, SetupError)):
        Layers(tmp_path / "file", keep_owners=False)


def test_nothing_is_published_before_it_is_on_disk(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a loss of power could leave a layer with empty files."""
    source = Source(packed(entry(".wh..wh..opq"), entry("f", b"1")))
    sync = _native.sync_file_system
    synced: list[list[str]] = []

    def seen(fd: int) -> None:
        assert layers.chain_ids() == []
        synced.append(sorted(os.listdir(fd)))
        sync(fd)

    def failed(fd: int) -> None:
        sync(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(_native, "sync_file_system", failed)
    with pytest.raises(SetupError, match="Input/output error"):
        layers.ensure(None, source.diff_id, source)
    assert layers.find(source.diff_id) is None and temporary(layers) == []
    monkeypatch.setattr(_native, "sync_file_system", seen)
    layers.ensure(None, source.diff_id, source).close()
    layers.ensure(None, source.diff_id, source).close()
    (names,) = synced  # all of it, and once
    assert names in (["hides-all", "parent", "root"], ["hides-all", "layer.erofs", "parent"])


def forms(layers: Layers) -> dict[str, list[str]]:
    """The forms in which each layer is there."""
    place = Path(layers.path, "layers")
    beside = {"parent", "hides-all"}
    return {name: sorted(set(os.listdir(place / name)) - beside) for name in os.listdir(place)}


@pytest.fixture
def filed(tmp_path: Path) -> Layers:
    if not ROOT or not possible(str(tmp_path)):
        pytest.skip("nothing mounts a file here")
    return Layers(tmp_path / "layers", keep_owners=True)


def test_a_file_that_is_damaged_is_replaced_by_a_directory(filed: Layers) -> None:
    base, next_ = Source(BASE), Source(NEXT)
    stacked(filed, base, next_).close()
    assert set(map(tuple, forms(filed).values())) == {("layer.erofs",)}
    for size in (0, 1000, 3000):
        os.truncate(f"{filed.path}/layers/{base.diff_id}/layer.erofs", size)
        assert filed.find(base.diff_id) is None
    top = chain_ids([base.diff_id, next_.diff_id])[-1]
    assert filed.find(top) is None
    with stacked(filed, base, next_) as held:
        assert (base.opened, next_.opened) == (2, 1) and held.chain_id == top
        assert [os.listdir(lower) for lower in held.lowers] == [["d"], ["d"]]
        assert forms(filed)[str(base.diff_id)] == ["layer.erofs", "root"] and temporary(filed) == []
    assert sorted(filed.prune([])) == sorted([base.diff_id, top])


ELSEWHERE = """
import contextlib, io, os, sys
from isobox.images.documents.digest import Digest
from isobox.images.layers.unpacked import Layers
data = sys.stdin.buffer.read()
held = Layers(sys.argv[1], keep_owners=True).ensure(
    None, Digest.of(data), lambda: contextlib.nullcontext(io.BytesIO(data))
)
print(held.lowers[0], os.listdir(held.lowers[0]))
"""


@pytest.mark.requires("user_namespaces")
def test_both_forms_lie_side_by_side(filed: Layers) -> None:
    """Root of a user namespace mounts no files, and finds one there."""
    source = Source(BASE)
    stacked(filed, source).close()
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", ELSEWHERE, filed.path]
    for _ in range(2):
        done = subprocess.run(command, input=BASE, stdout=subprocess.PIPE, check=True)
        assert done.stdout.decode().strip() == f"{filed.path}/layers/{source.diff_id}/root ['d']"
        assert forms(filed) == {str(source.diff_id): ["layer.erofs", "root"]}
    with stacked(filed, source) as held:
        assert held.lowers[0].startswith("/proc/self/fd/") and os.listdir(held.lowers[0]) == ["d"]
    assert source.opened == 1 and filed.prune([]) == [source.diff_id]
    assert os.listdir(f"{filed.path}/layers") == []


def test_all_of_a_process_share_one_mount(filed: Layers) -> None:
    source = Source(BASE)
    before = len(os.listdir("/proc/self/fd"))
    with stacked(filed, source) as one, stacked(Layers(filed.path, keep_owners=True), source) as two:
        assert one.lowers == two.lowers and len(os.listdir("/proc/self/fd")) == before + 3  # and two locks
        one.close()
        assert os.listdir(two.lowers[0]) == ["d"]
        with open("/proc/self/mountinfo") as mounts:
            assert "erofs" not in mounts.read()
    assert len(os.listdir("/proc/self/fd")) == before


def test_layers_of_many_are_directories(filed: Layers) -> None:
    """One mount shows them all; a file that is there stays for others."""
    sources = [Source(packed(entry(f"f{number}"))) for number in range(9)]
    stacked(filed, *sources[:2]).close()
    filed.expect(9)
    with stacked(filed, *sources) as held:
        assert {os.path.basename(lower) for lower in held.lowers} == {"root"} and len(held.lowers) == 9
    assert sorted(forms(filed).values()) == [["layer.erofs", "root"]] * 2 + [["root"]] * 7
    filed.expect(8)
    with stacked(filed, *sources[:3]) as held:
        assert [lower.startswith("/proc/") for lower in held.lowers] == [False, True, True]
        assert [os.listdir(lower) for lower in held.lowers] == [["f2"], ["f1"], ["f0"]]
    assert len(filed.prune([])) == 9


def test_a_mount_that_goes_is_not_taken(filed: Layers) -> None:
    """However many threads take the layer and let go of it at once."""
    source = Source(BASE)
    stacked(filed, source).close()
    wrong: list[object] = []

    def take() -> None:
        for _ in range(60):
            with stacked(filed, source) as held:
                try:
                    assert os.listdir(held.lowers[0]) == ["d"]
                except (OSError, AssertionError) as error:
                    wrong.append(error)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patient(30))
    assert not wrong


def test_a_file_system_that_nothing_mounts_from() -> None:
    """The kernel reads no EROFS from a file on a tmpfs."""
    if not ROOT:
        pytest.skip("for root only")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        layers = Layers(f"{place}/layers", keep_owners=True)
        source = Source(BASE)
        with stacked(layers, source) as held:
            assert os.listdir(held.lowers[0]) == ["d"]
            expected = "layer.erofs" if possible(place) else "root"
            assert forms(layers) == {str(source.diff_id): [expected]}
            assert os.listdir(place) == ["layers"]
