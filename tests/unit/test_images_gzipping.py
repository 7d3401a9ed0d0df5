"""Layers that are compressed: the same bytes however many threads there are, and any reader takes them."""

from __future__ import annotations

import gzip
import io
import random
import threading
import zlib

import pytest

from isobox.images.tar.compression import decompressed
from isobox.images.tar.gzipping import Gzipping

BLOCK = 1 << 18
TEXT = random.Random(2).randbytes(200_000) * 8  # repeats at a distance beyond deflate's window
SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, len(TEXT))


def gzipped(data: bytes, threads: int | None = None, step: int = 65_536) -> bytes:
    found: list[bytes] = []
    with Gzipping(found.append, threads) as packed:
        for at in range(0, len(data), step):
            packed.write(memoryview(data)[at : at + step])
        packed.finish()
    return b"".join(found)


@pytest.mark.parametrize("size", SIZES)
def test_every_reader(size: int) -> None:
    data = TEXT[:size]
    packed = gzipped(data)
    assert gzip.decompress(packed) == data
    # One member, to its last byte.
    decompressor = zlib.decompressobj(31)
    assert decompressor.decompress(packed) == data and decompressor.eof and not decompressor.unused_data
    igzip = pytest.importorskip("isal.igzip")
    assert igzip.decompress(packed) == data


def test_the_same_with_any_number_of_threads() -> None:
    expected = gzipped(TEXT, 1)
    assert all(gzipped(TEXT, threads, step) == expected for threads in (2, 3, 5) for step in (777, len(TEXT)))


def test_about_as_small_as_in_one_piece() -> None:
    """What a block repeats of the one before is found there."""
    data = b"".join(b"%d: a line of text, %x\n" % (number, number * 7919) for number in range(60_000))
    assert len(data) > 6 * BLOCK
    compressor = zlib.compressobj(4, zlib.DEFLATED, 31)
    whole = compressor.compress(data) + compressor.flush()
    assert len(gzipped(data)) < 1.01 * len(whole)
    repeated = random.Random(3).randbytes(20_000) * 50  # each time it is found before, all but the first
    assert len(gzipped(repeated)) < 40_000


def test_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gzipped(TEXT)
    original = threading.Thread.start
    for most in (0, 1):
        left = most

        def start(thread: threading.Thread) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise RuntimeError("can't start new thread")
            original(thread)

        with monkeypatch.context() as changed:
            changed.setattr(threading.Thread, "start", start)
            assert gzipped(TEXT, 3) == expected


def test_an_error_leaves_no_thread() -> None:
    threads = threading.active_count()

    def full(data: bytes) -> None:
        if len(data) > 100:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), Gzipping(full) as packed:
        packed.write(TEXT * 20)
    assert threading.active_count() == threads


def test_its_own_reader() -> None:
    stream = decompressed(io.BytesIO(gzipped(TEXT)))
    assert b"".join(iter(lambda: stream.read(100_000), b"")) == TEXT
