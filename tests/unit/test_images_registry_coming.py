"""Blobs that are read while they are fetched."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isobox.errors import RegistryError
from isobox.images.documents.digest import Digest
from isobox.images.registry.coming import BegunAnew, Coming
from isobox.images.store import Store
from isobox.images.tar.ahead import Ahead
from patience import patient

DATA = bytes(range(256)) * 8
HALF = len(DATA) // 2


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    with store.lease():
        yield store


@pytest.fixture
def coming(store: Store) -> Iterator[Coming]:
    coming = Coming(store, Digest.of(DATA))
    yield coming
    coming.close()


def nothing() -> None:
    pass


def later(run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_bytes_come_before_the_blob_is_whole_and_its_end_after(store: Store, coming: Coming) -> None:
    told: list[str] = []
    with store.writer(Digest.of(DATA), len(DATA)) as writer:
        coming.began(writer)
        with coming.open(lambda: told.append("whole")) as file:
            writer.write(DATA[:HALF])
            coming.grew(HALF)
            assert file.read(10_000) == DATA[:HALF] and not told

            def finish() -> None:
                writer.write(DATA[HALF:])
                coming.grew(len(DATA))
                writer.commit()
                told.append("committed")
                coming.ended()

            thread = later(finish)
            assert file.read(10_000) == DATA[HALF:]
            assert file.read(10_000) == b"" and told == ["committed", "whole"]
            thread.join()
    assert not coming.doubtful
    with coming.open(nothing) as file:
        assert file.read(10_000) == DATA


def test_what_is_in_the_store_is_read_from_there(store: Store, coming: Coming) -> None:
    store.add(DATA)
    coming.ended()
    with coming.open(nothing) as file:
        assert file.read() == DATA


def test_a_failure_is_that_of_the_reader_too(store: Store, coming: Coming) -> None:
    with store.writer(Digest.of(DATA), len(DATA)) as writer:
        coming.began(writer)
        with coming.open(nothing) as file:
            thread = later(lambda: coming.ended(RegistryError("it is gone")))
            with pytest.raises(RegistryError, match="it is gone"):
                file.read(10)
            thread.join()
        with pytest.raises(RegistryError), coming.open(nothing):
            pass


def test_a_reader_of_what_is_fetched_anew_is_told(store: Store, coming: Coming) -> None:
    with store.writer(Digest.of(DATA), len(DATA)) as writer:
        coming.began(writer)
        writer.write(b"wrong")
        coming.grew(5)
        with coming.open(nothing) as file:
            assert file.read(10) == b"wrong"
            with store.writer(Digest.of(DATA), len(DATA)) as other:
                coming.began(other)
                other.write(DATA)
                coming.grew(len(DATA))
                with pytest.raises(BegunAnew):
                    file.read(10)
                with coming.open(nothing) as again:
                    assert again.read(10) == DATA[:10]
    assert coming.doubtful


def test_who_unpacks_can_give_up_while_nothing_comes(store: Store, coming: Coming) -> None:
    with store.writer(Digest.of(DATA), len(DATA)) as writer:
        coming.began(writer)
        with coming.open(nothing) as file:
            left = threading.Event()

            def unpack() -> None:
                give_up = file.give_up  # type: ignore[attr-defined]
                with pytest.raises(KeyError), Ahead(file, hashlib.sha256(), give_up):
                    raise KeyError
                left.set()

            later(unpack)
            assert left.wait(patient(10))
