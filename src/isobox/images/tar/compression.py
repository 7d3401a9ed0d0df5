"""Read a file as it is, or decompressed when its first bytes say gzip, zstd or xz."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import IO, Any, Protocol

from isobox import forks
from isobox.errors import UnpackError, UnsupportedError

__all__ = ["DAMAGED", "Readable", "decompressed"]

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
XZ = b"\xfd7zXZ\x00"

DAMAGED: tuple[type[BaseException], ...] = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
"""What the decompressors of the standard library raise for a damaged stream."""

_XZ_MEMORY = 256 << 20  # enough for xz -9, which takes 65 MiB; a header may claim 4 GiB
_PIECE = 1 << 18
_MAGIC = 8


class Readable(Protocol):
    """Anything with ``read(size)``."""

    def read(self, size: int = ..., /) -> bytes:
        """Return at most `size` bytes; none at the end."""


class _Xz:
    """xz with a bound on memory, which lzma.LZMAFile has no parameter for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int = -1, /) -> bytes:
        while not self._decompressor.eof:
            data = b""
            if self._decompressor.needs_input:
                data = self._file.read(_PIECE)
                if not data:
                    raise EOFError("the xz stream ends early")
            found = self._decompressor.decompress(data, size)
            if found:
                return found
        return b""


class _Reader:
    """The stream of a library with errors of its own; they become UnpackError."""

    def __init__(self, what: str, reader: Readable, errors: tuple[type[BaseException], ...]) -> None:
        self._what = what
        self._reader = reader
        self._errors = errors

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._reader.read(size)
        except self._errors as error:
            raise UnpackError(f"damaged {self._what} stream: {error}") from error


class _Whole(io.RawIOBase):
    """A stream together with what was read of it already."""

    def __init__(self, start: bytes, rest: Readable) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._start or self._rest.read(len(buffer))
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        self._start = data[size:]
        return size


def _open_zstd(file: IO[bytes]) -> Readable:
    try:
        with forks.whole:
            module: Any = import_module("compression.zstd")
    except ImportError:
        pass
    else:
        return _Reader("zstd", module.ZstdFile(file), (module.ZstdError, EOFError))
    try:
        with forks.whole:
            module = import_module("zstandard")
    except ImportError:
        raise UnsupportedError(
            "zstd archives", "this Python has no decompressor for zstd", "pip install 'isobox[zstd]'"
        ) from None
    reader = module.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return _Reader("zstd", reader, (module.ZstdError,))


def _open_gzip(file: IO[bytes]) -> Readable:
    """By isal, which takes 0.4 of the time, where it is installed: ``pip install 'isobox[isal]'``."""
    try:
        with forks.whole:
            module: Any = import_module("isal.igzip")
            errors: Any = import_module("isal.isal_zlib")
    except ImportError:
        return gzip.GzipFile(fileobj=file, mode="rb")
    return _Reader("gzip", module.IGzipFile(fileobj=file, mode="rb"), (errors.error,))


_KINDS: tuple[tuple[bytes, Callable[[IO[bytes]], Readable]], ...] = (
    (GZIP, _open_gzip),
    (ZSTD, _open_zstd),
    (XZ, _Xz),
)


def decompressed(stream: Readable) -> Readable:
    """Give the decompressed stream of one that is at its start; it need not be able to seek.

    Raises `UnsupportedError` for zstd where nothing can read it. Reading from the result raises
    `UnpackError` or one of `DAMAGED` for a damaged stream.
    """
    start = b""
    while len(start) < _MAGIC and (piece := stream.read(_MAGIC - len(start))):
        start += piece
    file = io.BufferedReader(_Whole(start, stream), _PIECE)
    for magic, opener in _KINDS:
        if start.startswith(magic):
            return opener(file)
    return file
