"""Unpack a tar archive as the root of a container, safely: nothing of it is trusted."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

from isobox.errors import NotFound, SetupError

from ..tar.compression import decompressed
from ..tar.stream import TarStream
from .unpacking import MOST_BYTES, MOST_ENTRIES, Unpacked, Unpacking

__all__ = ["MOST_BYTES", "MOST_ENTRIES", "Unpacked", "unpack"]


def unpack(
    path: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    keep_owners: bool,
    most_bytes: int = MOST_BYTES,
    most_entries: int = MOST_ENTRIES,
) -> Unpacked:
    """Unpack the archive at `path` (plain, gzip, zstd or xz) as the directory `into`.

    `into` must not exist, its parent must; it appears whole or not at all. `keep_owners` (root
    only): numeric owners and setuid bits as the archive has them, so the parent should be closed
    to other users of the host; otherwise everything belongs to the caller, setuid and setgid bits
    are dropped and directories stay writable to the caller. `most_bytes` bounds the decompressed
    stream and the holes of sparse files, `most_entries` the number of entries.

    Device nodes are left out (a container has its own /dev), and so are extended attributes.
    Raises `NotFound`, `UnpackError` for a damaged or hostile archive, `UnsupportedError` for zstd
    where nothing can read it, `SetupError` when the machine fails (no space, say).
    """
    into = os.fspath(into)
    try:
        # O_NONBLOCK: a fifo put there must not hang us.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except FileNotFoundError:
        raise NotFound(f"no such archive: {os.fspath(path)}") from None
    except OSError as error:
        raise SetupError(error.errno or errno.EIO, f"open {os.fspath(path)}", stage="rootfs") from error
    with file:
        parent = os.path.dirname(os.path.abspath(into))
        try:
            work = tempfile.mkdtemp(prefix=".unpack-", dir=parent)
        except OSError as error:
            raise SetupError(
                error.errno or errno.EIO, f"make a directory in {parent}", stage="rootfs"
            ) from error
        try:
            made = Unpacking(work, keep_owners, most_entries).run(TarStream(decompressed(file), most_bytes))
            if os.path.lexists(into):
                raise SetupError(errno.EEXIST, f"unpack into {into}", stage="rootfs")
            os.rename(work, into)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, SetupError):
                raise SetupError(
                    error.errno or errno.EIO, f"unpack {os.fspath(path)}", stage="rootfs"
                ) from error
            raise
    return made
