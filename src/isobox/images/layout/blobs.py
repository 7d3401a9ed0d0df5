"""The blobs of an image layout: files named by their content, which never change.

How one gets there is in writer.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import Final

from typing_extensions import Buffer

from isobox.errors import DigestMismatch, ImageError, NotFound

from ..documents.digest import Digest
from .layout import Layout, open_file
from .leases import Leases
from .writer import Writer

__all__ = ["Blobs"]

MOST: Final = 4 << 20  # bytes of a manifest, an index or a config: what registries take at most
_CHUNK: Final = 1 << 20


class Blobs:
    """The blobs below `path`; what `Store` does with them. Safe to use from any thread."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._layout = Layout(path)
        self._leases = Leases(self._layout)

    @property
    def path(self) -> str:
        """The directory, an absolute path."""
        return self._layout.path

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Keep what `has`, `add` and `writer` meet inside from every prune, until it is named.

        An image is put into a store like this: its blobs and then its name inside one lease. The
        lease is that of all threads which use this object, and ends with the last of them; when
        the process is killed it ends too, and what it left is collected later.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     blobs = Blobs(folder)
        ...     with blobs.lease():
        ...         digest, size = blobs.add(b"hello")
        ...     blobs.read(digest), size
        (b'hello', 5)
        """
        with self._leases.using():
            yield

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Whether the blob is there (and has `size` bytes); inside a lease, it then stays there.

        Its content is not looked at: `read` and `open` do that.
        """
        with self._layout.doing(f"look for {digest}"), self._leases.joined() as lease:
            if lease is None:
                return self.there(digest, size)
            with self._layout.locked(shared=True):
                lease.keep(digest)
                return self.there(digest, size)

    def there(self, digest: Digest, size: int | None = None) -> bool:
        """As `has`, but it promises nothing for the next moment, in a lease or not."""
        found = self.size(digest)
        return found is not None and (size is None or size == found)

    def size(self, digest: Digest) -> int | None:
        """The bytes of a blob's file; None where there is none, or something else in its place.

        Raises OSError.
        """
        try:
            with self._layout.directory("blobs", digest.algorithm) as directory:
                status = os.stat(digest.hex, dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, digest: Digest) -> io.BufferedReader:
        """Open a blob to read from its beginning to its end, verified on the way.

        The last bytes come only if all of them have the digest: otherwise `DigestMismatch` is
        raised in their place. So a reader that stops early has verified nothing. It can't seek.
        Raises `NotFound` and `ImageError`.
        """
        with self._layout.doing(f"open {digest}"):
            try:
                with self._layout.directory("blobs", digest.algorithm) as directory:
                    fd = open_file(digest.hex, directory)
            except FileNotFoundError:
                raise NotFound(
                    f"store {self._layout.where()}: no blob {digest}. Pull or load its image again"
                ) from None
        return io.BufferedReader(_Verified(fd, digest, self._layout), _CHUNK)

    def read(self, digest: Digest, most: int = MOST) -> bytes:
        """Return a whole blob of up to `most` bytes, verified.

        Raises `NotFound`, `DigestMismatch` where it was damaged on disk, `ImageError` where it is
        larger.
        """
        with self.open(digest) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise ImageError(
                    f"store {self._layout.where()}: {digest} has {size} bytes: expected {most} at most"
                )
            return file.read()

    def add(self, data: bytes) -> tuple[Digest, int]:
        """Add a small blob: its digest and its size, as a descriptor wants them. Inside a lease."""
        with self.writer(size=len(data)) as writer:
            writer.write(data)
            return writer.commit(), len(data)

    def writer(
        self, expected: Digest | None = None, size: int | None = None, *, resume: bool = False
    ) -> Writer:
        """Return a context manager that takes a blob in pieces; see `Writer`. Inside a lease.

        `expected` and `size` are what it must turn out to be; without `expected`, its digest is
        SHA-256. `resume`, with both: it goes on where an earlier one was cut off or killed, at
        `Writer.written`. StateError outside of a lease.
        """
        return Writer(self._layout, self._leases, expected, size, resume=resume)


class _Verified(io.RawIOBase):
    """Reads a file once, and raises instead of handing out its last bytes where the digest is wrong."""

    def __init__(self, fd: int, digest: Digest, layout: Layout) -> None:
        self._fd = fd
        self._digest = digest
        self._layout = layout
        self._hasher = digest.hasher()
        self._left = os.fstat(fd).st_size
        self._error = None if self._left else self._check()

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        super().close()

    def readinto(self, buffer: Buffer, /) -> int:
        if self._fd < 0:
            raise ValueError("read of a closed blob")
        if self._error is not None:
            raise self._error
        if not self._left:
            return 0
        view = memoryview(buffer).cast("B")[: self._left]
        with self._layout.doing(f"read {self._digest}"):
            count = os.readv(self._fd, [view])
        self._hasher.update(view[:count])
        self._left -= count
        if not count:  # cut off since it was opened
            self._left = 0
        if not self._left:
            self._error = self._check()
            if self._error is not None:
                view[:] = bytes(len(view))
                raise self._error
        return count

    def _check(self) -> DigestMismatch | None:
        found = self._hasher.hexdigest()
        if found == self._digest.hex:
            return None
        place = self._layout.where("blobs", self._digest.algorithm, self._digest.hex)
        return DigestMismatch(
            f"blob {self._digest} in {self._layout.where()}",
            self._digest,
            f"{self._digest.algorithm}:{found}",
            f"It was damaged on disk: remove {place}, then pull or load its image again",
        )
