"""One blob on its way into an image layout.

It is written beside the others, under no name that anybody reads, hashed on the way, synced and
then renamed: whoever sees it sees all of it, whatever was killed or pulled out meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from typing_extensions import Buffer

from isobox.errors import DigestMismatch, StateError

from ..documents.digest import Digest, Hasher
from .halves import PLACE, is_there, let_go, name_of_half, remove, take
from .layout import Layout, write_all
from .leases import Lease, Leases

__all__ = ["Writer"]

_CHUNK: Final = 1 << 20
_WORTH: Final = 1 << 20  # bytes that are worth to be kept for the next one


class Writer:
    """One blob on its way into the store: `write`, then `commit`; without that nothing is left.

    One that resumes leaves what it has, if that is a MiB at least, to the next one: for a day without any
    write, or until a prune. Not for several threads at once.

    >>> import tempfile
    >>> from isobox.images.layout.blobs import Blobs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     blobs = Blobs(folder)
    ...     with blobs.lease(), blobs.writer(size=10) as writer:
    ...         writer.write(b"hello")
    ...         writer.write(b"world")
    ...         print(writer.commit())
    sha256:936a185caaa266bb9cbe981e9e05cb78cd732b0b3280eb944412bb6f8f8f07af
    """

    def __init__(
        self,
        layout: Layout,
        leases: Leases,
        expected: Digest | None,
        size: int | None,
        *,
        resume: bool = False,
    ) -> None:
        self._layout = layout
        self._leases = leases
        self._expected = expected
        self._size = size
        self._resumes = resume and expected is not None and size is not None
        self._hasher: Hasher = (expected or Digest.of(b"")).hasher()
        self._lease: Lease | None = None
        self._fd = -1
        self._name = ""
        self._is_half = False
        self._committed: Digest | None = None
        self.written = 0
        """Bytes so far."""
        self.resumed = 0
        """Those of them that an earlier one had left."""

    def __enter__(self) -> Self:
        lease = self._leases.join()
        try:
            with self._layout.doing("make a file for a blob"):
                if not (self._resumes and self._take_half()):
                    self._fd, self._name = lease.new_file()
        except BaseException:
            self._discard(lease, keep=True)
            self._leases.leave(lease)
            raise
        self._lease = lease
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        self._discard(lease, keep=self.written >= _WORTH)
        if lease is not None:
            self._leases.leave(lease)

    def _take_half(self) -> bool:
        """Go on with what there is, all of which is hashed again; False where somebody else does."""
        assert self._expected is not None and self._size is not None
        fd = take(self._layout, self._expected)
        if fd is None:
            return False
        self._fd, self._name, self._is_half = fd, name_of_half(self._expected), True
        try:
            if os.fstat(fd).st_size <= self._size:
                while data := os.read(fd, _CHUNK):
                    self._hasher.update(data)
                    self.written += len(data)
        except OSError:  # a disk that can't be read there
            self._hasher, self.written = self._expected.hasher(), 0
        os.ftruncate(fd, self.written)
        os.lseek(fd, self.written, os.SEEK_SET)
        self.resumed = self.written
        return True

    def duplicate(self) -> int:
        """A descriptor of the caller's own, for pread(2): what it has so far, nothing of it verified."""
        self._open()
        return os.dup(self._fd)

    def drop(self) -> None:
        """Give the blob up, with what an earlier one had left of it."""
        self._discard(self._lease)

    def _discard(self, lease: Lease | None, *, keep: bool = False) -> None:
        """Close its file, and remove it; a half stays where somebody is to `keep` it."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._is_half:
            if not keep:
                remove(self._layout, fd, self._name)
            let_go(fd)
            return
        os.close(fd)
        if lease is not None and lease.pid == os.getpid():
            with contextlib.suppress(OSError):  # collected with the lease
                os.unlink(self._name, dir_fd=lease.fd)

    def _open(self) -> Lease:
        if self._lease is None or self._fd < 0 or self._lease.pid != os.getpid():
            raise StateError("this writer is not open: its blob is committed or given up")
        return self._lease

    def write(self, data: Buffer) -> None:
        """Take in more of the blob.

        Raises `DigestMismatch` as soon as it is longer than it may be, and ImageError where the
        machine refuses (a full disk, say); the blob is given up then.
        """
        lease = self._open()
        view = memoryview(data).cast("B")
        try:
            if self._size is not None and self.written + len(view) > self._size:
                raise DigestMismatch(self._what(), f"{self._size} bytes", "more")
            with self._layout.doing(f"write {self._what()}"):
                write_all(self._fd, view)
            self._hasher.update(view)
        except BaseException:
            self._discard(lease)
            raise
        self.written += len(view)

    def commit(self) -> Digest:
        """Publish the blob: it is there for good, even if the power fails, when this returns.

        Where the store has it already, this takes its place: so a damaged one is mended. Raises
        `DigestMismatch` where the digest or the size is not what was expected, ImageError where
        the machine refuses; nothing is published then. A second call returns the same.
        """
        if self._committed is not None:
            return self._committed
        lease = self._open()
        try:
            digest = self._checked()
            with self._layout.doing(f"write {self._what()}"):
                os.fsync(self._fd)
            with self._layout.locked(shared=True), self._layout.doing(f"add {digest}"):
                lease.keep(digest)
                with (
                    self._layout.directory("blobs", digest.algorithm, make=True) as directory,
                    self._place(lease) as place,
                ):
                    os.rename(self._name, digest.hex, src_dir_fd=place, dst_dir_fd=directory)
                    fd, self._fd = self._fd, -1
                    if self._is_half:
                        let_go(fd)
                    else:
                        os.close(fd)
                    os.fsync(directory)
        except BaseException:
            self._discard(lease)
            raise
        self._committed = digest
        return digest

    @contextlib.contextmanager
    def _place(self, lease: Lease) -> Iterator[int]:
        """The directory that its file is in."""
        if not self._is_half:
            yield lease.fd
            return
        with self._layout.directory(*PLACE) as halves:
            if not is_there(self._fd, self._name, halves):  # somebody has tidied up by hand
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            yield halves

    def _checked(self) -> Digest:
        if self._size is not None and self.written != self._size:
            raise DigestMismatch(self._what(), f"{self._size} bytes", f"{self.written} bytes")
        algorithm = self._expected.algorithm if self._expected else "sha256"
        found = Digest(algorithm, self._hasher.hexdigest())
        if self._expected is not None and found != self._expected:
            raise DigestMismatch(self._what(), self._expected, found)
        return found

    def _what(self) -> str:
        return f"blob {self._expected}" if self._expected is not None else "blob"
