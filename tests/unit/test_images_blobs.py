"""Blobs on disk: whole or not there, verified, kept while somebody counts on them."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import DigestMismatch, ImageError, NotFound, StateError
from isobox.images.documents.digest import Digest
from isobox.images.layout.blobs import Blobs
from isobox.images.layout.leases import collect

HELLO = Digest.of(b"hello")


def files(path: Path) -> set[str]:
    """All files below, but the lock and the spare."""
    found = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    return found - {".isobox/lock", ".isobox/spare"}


def place(path: Path, digest: Digest) -> Path:
    return path / "blobs" / digest.algorithm / digest.hex


def put(path: Path, data: bytes) -> Digest:
    blobs = Blobs(path)
    with blobs.lease():
        return blobs.add(data)[0]


def write(blobs: Blobs, data: bytes, expected: Digest | None, size: int | None) -> None:
    with blobs.writer(expected, size) as writer:
        writer.write(data)
        writer.commit()


@pytest.fixture
def descriptors() -> Callable[[], None]:
    before = os.listdir("/proc/self/fd")

    def check() -> None:
        assert len(os.listdir("/proc/self/fd")) == len(before)

    return check


class TestWriting:
    def test_a_blob_is_there_and_nothing_else(self, tmp_path: Path, descriptors: Callable[[], None]) -> None:
        blobs = Blobs(tmp_path / "a" / "store")
        assert not blobs.has(HELLO)
        assert not (tmp_path / "a").exists()
        with blobs.lease():
            assert blobs.add(b"hello") == (HELLO, 5)
            assert blobs.has(HELLO) and blobs.has(HELLO, 5) and not blobs.has(HELLO, 6)
        assert blobs.read(HELLO) == b"hello"
        assert files(Path(blobs.path)) == {"oci-layout", "index.json", f"blobs/sha256/{HELLO.hex}"}
        assert (Path(blobs.path) / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'
        descriptors()

    def test_in_pieces(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        expected = Digest("sha512", hashlib.sha512(b"hello").hexdigest())
        with blobs.lease(), blobs.writer(expected, 5) as writer:
            for piece in (b"he", bytearray(b"ll"), memoryview(b"o"), b""):
                writer.write(piece)
            assert not blobs.has(expected)
            assert writer.commit() == writer.commit() == expected
            with pytest.raises(StateError):
                writer.write(b"more")
        assert blobs.read(expected) == b"hello"
        assert place(tmp_path, expected).read_bytes() == b"hello"

    @pytest.mark.parametrize(
        ("data", "expected", "size"),
        [
            (b"hellp", HELLO, None),
            (b"hellp", HELLO, 5),
            (b"hell", HELLO, 5),
            (b"hello!", HELLO, 5),
            (b"hello!", None, 5),
            (b"", None, 1),
        ],
    )
    def test_what_is_not_as_expected_is_not_published(
        self, tmp_path: Path, data: bytes, expected: Digest | None, size: int | None
    ) -> None:
        blobs = Blobs(tmp_path)
        with blobs.lease():
            with pytest.raises(DigestMismatch) as caught:
                write(blobs, data, expected, size)
            assert caught.value.expected != caught.value.found
            assert not [name for name in files(tmp_path) if "blobs/" in name or "new-" in name]

    def test_an_endless_blob_ends_at_once(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        with blobs.lease(), blobs.writer(HELLO, 5) as writer:
            writer.write(b"hel")
            with pytest.raises(DigestMismatch):
                writer.write(b"hel")
            with pytest.raises(StateError):
                writer.commit()
            assert writer.written == 3

    def test_what_is_given_up_is_gone(self, tmp_path: Path, descriptors: Callable[[], None]) -> None:
        blobs = Blobs(tmp_path)
        with blobs.lease(), blobs.writer() as writer:
            writer.write(b"hello")
            assert [name for name in files(tmp_path) if "new-" in name]
        assert files(tmp_path) == {"oci-layout", "index.json"}
        assert os.listdir(tmp_path / ".isobox" / "leases") == []
        descriptors()

    def test_needs_a_lease(self, tmp_path: Path) -> None:
        with pytest.raises(StateError, match="with store.lease"):
            Blobs(tmp_path).add(b"hello")

    def test_a_damaged_blob_is_mended_by_adding_it_again(self, tmp_path: Path) -> None:
        put(tmp_path, b"hello")
        place(tmp_path, HELLO).write_bytes(b"hellp")
        put(tmp_path, b"hello")
        assert Blobs(tmp_path).read(HELLO) == b"hello"

    def test_a_directory_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").touch()
        with pytest.raises(ImageError, match="no OCI image layout"):
            put(tmp_path, b"hello")
        assert files(tmp_path) == {"letter.txt"}

    @given(pieces=st.lists(st.binary(max_size=40), max_size=8))
    def test_any_pieces(self, tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
        blobs = Blobs(tmp_path_factory.getbasetemp() / "any")
        data = b"".join(pieces)
        with blobs.lease(), blobs.writer(Digest.of(data), len(data)) as writer:
            for piece in pieces:
                writer.write(piece)
            digest = writer.commit()
        assert blobs.read(digest) == data


class TestReading:
    def test_nothing_there(self, tmp_path: Path) -> None:
        for blobs in (Blobs(tmp_path / "no"), Blobs(tmp_path)):
            with pytest.raises(NotFound, match=str(HELLO)):
                blobs.read(HELLO)
            assert not blobs.has(HELLO)

    def test_too_large(self, tmp_path: Path) -> None:
        put(tmp_path, b"hello")
        assert Blobs(tmp_path).read(HELLO, 5) == b"hello"
        with pytest.raises(ImageError, match="5 bytes: expected 4 at most"):
            Blobs(tmp_path).read(HELLO, 4)

    @pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
    def test_verified_to_the_last_byte(
        self, tmp_path: Path, size: int, descriptors: Callable[[], None]
    ) -> None:
        data = os.urandom(size)
        digest = put(tmp_path, data)
        blobs = Blobs(tmp_path)
        with blobs.open(digest) as file:
            assert file.read() == data and file.read() == b""
        damaged = bytearray(data or b"x")
        damaged[0] ^= 1
        for wrong in (bytes(damaged), data[:-1] if data else b"y", data + b"x"):
            place(tmp_path, digest).write_bytes(wrong)
            with pytest.raises(DigestMismatch, match="remove .*, then pull or load"):
                blobs.read(digest)
            got: list[bytes] = []
            with blobs.open(digest) as file, pytest.raises(DigestMismatch):
                got.extend(iter(lambda file=file: file.read(4096), b""))
            assert sum(map(len, got)) < max(1, len(wrong))
        descriptors()

    def test_a_reader_that_knows_the_size_is_told_too(self, tmp_path: Path) -> None:
        put(tmp_path, b"hello")
        place(tmp_path, HELLO).write_bytes(b"hellp")
        with Blobs(tmp_path).open(HELLO) as file:
            for _ in range(2):
                with pytest.raises(DigestMismatch):
                    file.read(5)

    @pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
    def test_something_else_in_its_place(
        self, tmp_path: Path, kind: str, descriptors: Callable[[], None]
    ) -> None:
        put(tmp_path, b"hello")
        secret = tmp_path.parent / "secret"
        secret.write_bytes(b"hello")
        planted = place(tmp_path, HELLO)
        planted.unlink()
        {
            "link": lambda: planted.symlink_to(secret),
            "fifo": lambda: os.mkfifo(planted),
            "directory": planted.mkdir,
        }[kind]()
        blobs = Blobs(tmp_path)
        assert not blobs.has(HELLO)
        with pytest.raises(ImageError):
            blobs.read(HELLO)
        descriptors()

    @pytest.mark.parametrize("where", ["blobs", "blobs/sha256", ".isobox", ".isobox/leases", ".isobox/lock"])
    def test_links_on_the_way_are_not_followed(self, tmp_path: Path, where: str) -> None:
        store = tmp_path / "store"
        put(store, b"hello")
        (store / where).rename(tmp_path / "elsewhere")
        (store / where).symlink_to(tmp_path / "elsewhere")
        before = files(tmp_path / "elsewhere")
        with pytest.raises(ImageError, match="link"):
            put(store, b"other")
        if where.startswith("blobs"):
            assert not Blobs(store).has(HELLO)
            with pytest.raises(ImageError):
                Blobs(store).read(HELLO)
        assert files(tmp_path / "elsewhere") == before

    def test_a_link_to_the_store_itself_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "store").symlink_to(tmp_path / "there")
        put(tmp_path / "store", b"hello")
        assert Blobs(tmp_path / "there").read(HELLO) == b"hello"


def leases(path: Path) -> list[str]:
    return os.listdir(path / ".isobox" / "leases")


def collected(path: Path) -> tuple[set[Digest], int]:
    layout = Blobs(path)._layout
    with layout.locked():
        return collect(layout)


class TestLeases:
    def test_the_living_keep_what_they_met(self, tmp_path: Path) -> None:
        put(tmp_path, b"hello")
        blobs = Blobs(tmp_path)
        assert collected(tmp_path) == (set(), 0)
        with blobs.lease():
            assert blobs.has(HELLO)
            other = blobs.add(b"other")[0]
            absent = Digest.of(b"absent")
            assert not blobs.has(absent)
            assert collected(tmp_path) == ({HELLO, other, absent}, 0)
        assert collected(tmp_path) == (set(), 0)

    def test_shared_by_threads_until_the_last_is_done(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        with blobs.lease():
            with blobs.lease():
                blobs.add(b"hello")
            assert len(leases(tmp_path)) == 1
            assert collected(tmp_path)[0] == {HELLO}
            with Blobs(tmp_path).lease():
                assert len(leases(tmp_path)) == 2
        assert leases(tmp_path) == []

    def test_a_writer_outlives_the_lease(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        with blobs.lease():
            writer = blobs.writer().__enter__()
        writer.write(b"hello")
        assert writer.commit() == HELLO
        assert collected(tmp_path)[0] == {HELLO}
        writer.__exit__(None, None, None)
        assert leases(tmp_path) == []

    def test_the_dead_are_collected(self, tmp_path: Path) -> None:
        code = f"""
import os, sys
sys.path[:] = {sys.path!r}
from isobox.images.layout.blobs import Blobs
blobs = Blobs({str(tmp_path)!r})
with blobs.lease():
    blobs.add(b"hello")
    with blobs.writer() as writer:
        writer.write(b"x" * 1000)
        os.kill(os.getpid(), 9)
"""
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        assert len(leases(tmp_path)) == 1
        assert collected(tmp_path) == (set(), 1000)
        assert leases(tmp_path) == []
        assert Blobs(tmp_path).read(HELLO) == b"hello"

    def test_half_made_or_half_removed(self, tmp_path: Path) -> None:
        put(tmp_path, b"hello")
        dead = tmp_path / ".isobox" / "leases" / "1-dead"
        dead.mkdir()
        (dead / f"sha256-{HELLO.hex}").touch()
        (dead.parent / "stray").touch()
        (dead.parent / "link").symlink_to("/nonexistent")
        assert collected(tmp_path) == (set(), 0)
        assert leases(tmp_path) == []

    def test_a_forked_child_leaves_it_alone(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        lease = blobs.lease()
        lease.__enter__()
        with blobs.writer() as file:
            file.write(b"hello")
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    with pytest.raises(StateError):
                        file.write(b"x")
                    with pytest.raises(StateError):
                        blobs.add(b"x")
                    with blobs.lease():
                        blobs.add(b"child's")
                    file.__exit__(None, None, None)
                    lease.__exit__(None, None, None)
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
            assert file.commit() == HELLO
            assert collected(tmp_path)[0] == {HELLO}
        lease.__exit__(None, None, None)
        assert blobs.read(Digest.of(b"child's")) == b"child's"
        assert leases(tmp_path) == []

    def test_a_child_does_not_hold_the_locks_of_a_dead_parent(self, tmp_path: Path) -> None:
        code = f"""
import os, sys
sys.path[:] = {sys.path!r}
from isobox.images.layout.blobs import Blobs
blobs = Blobs({str(tmp_path)!r})
with blobs.lease(), blobs._layout.locked():
    if os.fork() == 0:
        os.write(1, b"up")
        os.read(0, 1)
        os._exit(0)
    os.kill(os.getpid(), 9)
"""
        child = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1)
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.read(2) == b"up"
        assert child.wait() == -9
        assert collected(tmp_path) == (set(), 0)
        assert leases(tmp_path) == []
        child.stdin.close()
        child.stdout.read()
        child.stdout.close()

    @pytest.mark.parametrize("what", ["has", "commit", "lease"])
    def test_what_relies_on_it_waits_for_a_prune(self, tmp_path: Path, what: str) -> None:
        put(tmp_path, b"hello")
        blobs, other = Blobs(tmp_path), Blobs(tmp_path)
        with blobs.lease(), blobs.writer() as writer:
            writer.write(b"other")
            steps: dict[str, Callable[[], object]] = {
                "has": lambda: blobs.has(HELLO),
                "commit": writer.commit,
                "lease": lambda: other.lease().__enter__(),
            }
            thread = threading.Thread(target=steps[what])
            with other._layout.locked():
                kept = collect(other._layout)[0]
                thread.start()
                thread.join(0.05)
                assert thread.is_alive()
                assert kept == collect(other._layout)[0] == set()
            thread.join()

    def test_many_threads_add_the_same(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        data = [os.urandom(1000) for _ in range(8)]
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with blobs.lease():
                    for piece in data:
                        blobs.add(piece)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert [blobs.read(Digest.of(piece)) for piece in data] == data
        assert leases(tmp_path) == []


# The calls that a blob on its way makes; each time one of them fails.
CALLS = ("open", "mkdir", "write", "fsync", "rename", "listdir", "makedirs")


class TestFullDisk:
    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("fresh", [True, False])
    def test_at_each_step(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        call: str,
        fresh: bool,
        descriptors: Callable[[], None],
    ) -> None:
        old = None if fresh else put(tmp_path, b"old")
        real = getattr(os, call)
        state = {"left": 0, "failed": False}

        def fails(*arguments: object, **named: object) -> object:
            if state["left"] == 0:
                state["failed"] = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            state["left"] -= 1
            return real(*arguments, **named)

        for number in range(200):
            state.update(left=number, failed=False)
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fails)
                try:
                    put(tmp_path, b"hello")
                    done = True
                except ImageError as error:
                    done = False
                    assert "No space left on device" in str(error) and "Free some space" in str(error)
            if old is not None:
                assert Blobs(tmp_path).read(old) == b"old"
            blob = place(tmp_path, HELLO)
            assert not blob.exists() or blob.read_bytes() == b"hello"
            descriptors()
            if not state["failed"]:
                break
        assert done and number
        put(tmp_path, b"next")
        assert not [name for name in files(tmp_path) if name.startswith(".isobox")]

    def test_a_limit_on_the_size_of_files(self, tmp_path: Path) -> None:
        put(tmp_path, b"hello")
        blobs = Blobs(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with blobs.lease():
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
                with pytest.raises(ImageError, match="ulimit -f"):
                    blobs.add(b"x" * 10_001)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert blobs.add(b"x" * 10_001)
        assert blobs.read(HELLO) == b"hello"
