"""Read a file as it is, or decompressed when its first bytes say gzip, zstd or xz."""

from __future__ import annotations

import gzip
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


class _Zstd:
    """zstd from the standard library (3.14) or the package zstandard; their errors made one."""

    def __init__(self, reader: Readable, errors: tuple[type[BaseException], ...]) -> None:
        self._reader = reader
        self._errors = errors

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._reader.read(size)
        except self._errors as error:
            raise UnpackError(f"damaged zstd stream: {error}") from error


def _open_zstd(file: IO[bytes]) -> Readable:
    try:
        with forks.whole:
            module: Any = import_module("compression.zstd")
    except ImportError:
        pass
    else:
        return _Zstd(module.ZstdFile(file), (module.ZstdError, EOFError))
    try:
        with forks.whole:
            module = import_module("zstandard")
    except ImportError:
        raise UnsupportedError(
            "zstd archives", "this Python has no decompressor for zstd", "pip install 'isobox[zstd]'"
        ) from None
    reader = module.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return _Zstd(reader, (module.ZstdError,))


def _open_gzip(file: IO[bytes]) -> Readable:
    return gzip.GzipFile(fileobj=file, mode="rb")


_KINDS: tuple[tuple[bytes, Callable[[IO[bytes]], Readable]], ...] = (
    (GZIP, _open_gzip),
    (ZSTD, _open_zstd),
    (XZ, _Xz),
)


def decompressed(file: IO[bytes]) -> Readable:
    """Give the decompressed stream of a seekable file that stands at its start.

    Raises `UnsupportedError` for zstd where nothing can read it. Reading from the result raises
    `UnpackError` or one of `DAMAGED` for a damaged stream.
    """
    start = file.read(8)
    file.seek(0)
    for magic, opener in _KINDS:
        if start.startswith(magic):
            return opener(file)
    return file
