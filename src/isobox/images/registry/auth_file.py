"""A file with logins for registries: JSON, read with bounds, replaced as a whole.

What is wrong with one is said by its path and the field: what stands there may be a secret.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

from isobox.errors import ImageError, printable

from ..documents.fields import MOST_BYTES, Fields

__all__ = ["AuthFile", "read_file"]

_NULL: Final = os.makedev(1, 3)  # /dev/null, for who wants none


class AuthFile:
    """The values of one file; none where it is missing."""

    def __init__(self, path: str, values: Mapping[str, Any]) -> None:
        self.path = path
        self._values = values

    @property
    def what(self) -> str:
        """Its name in messages."""
        return printable(self.path)

    @classmethod
    def read(cls, path: str, *, required: bool = True) -> Self:
        """Read it; raises `ImageError`. Not `required`: one that this user may not look at is missing."""
        try:
            data = read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return cls(path, {})
        except OSError as error:
            if isinstance(error, PermissionError) and not required:
                return cls(path, {})
            raise ImageError(f"logins in {path}: can't read them: {error.strerror}") from error
        if not data.strip():  # somebody has just made it
            return cls(path, {})
        if not data.lstrip().startswith(b"{"):
            raise ImageError(f"{path}: expected a JSON object")
        return cls(path, Fields.read(data, printable(path)).extra())

    @classmethod
    @contextlib.contextmanager
    def changing(cls, path: str) -> Iterator[Self]:
        """Read it to `replace` it: no other thread or process of isobox's does meanwhile.

        Its directory is made where it is missing. A link is followed, as it is by others.
        """
        path = os.path.realpath(path)
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(
                f"logins in {path}: {error.strerror}. Choose another place: DOCKER_CONFIG"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield cls.read(path)
        finally:
            os.close(lock)

    def text(self, name: str) -> str:
        """A string; empty where it is absent. Raises `ImageError`."""
        value = self._values.get(name)
        if not (value is None or isinstance(value, str)):
            raise ImageError(f"{self.what}: {name}: expected a string")
        return value or ""

    def texts(self, name: str) -> Mapping[str, str]:
        """An object of strings; empty where it is absent. Raises `ImageError`."""
        values = self._object(name)
        if not all(isinstance(value, str) for value in values.values()):
            raise ImageError(f"{self.what}: {name}: expected an object whose values are strings")
        return values

    def objects(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        """An object of objects; empty where it is absent. Raises `ImageError`."""
        values = self._object(name)
        if not all(isinstance(value, dict) for value in values.values()):
            raise ImageError(f"{self.what}: {name}: expected an object whose values are objects")
        return values

    def _object(self, name: str) -> Mapping[str, Any]:
        value = self._values.get(name)
        if not (value is None or isinstance(value, dict)):
            raise ImageError(f"{self.what}: {name}: expected an object")
        return value or {}

    def replace(self, auths: Mapping[str, Any]) -> None:
        """Write it with these entries of "auths" and all else as it was; inside `changing`.

        Readers see the old file or the new one. Only its owner may read it. Raises `ImageError`.
        """
        data = json.dumps(dict(self._values) | {"auths": auths}, indent="\t", ensure_ascii=False).encode()
        new = f"{self.path}.isobox"  # one name: what a killed process left is overwritten
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            try:
                self._write(new, data)
                os.rename(new, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new)
                raise
        except OSError as error:
            raise ImageError(
                f"logins in {self.path}: can't write them: {error.strerror}. Nothing that was there is lost"
            ) from error

    def _write(self, path: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            with contextlib.suppress(OSError):  # root, in somebody else's home
                before = os.stat(self.path)
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def read_file(path: str) -> bytes:
    """The content of a regular file, one byte more than it may have at most. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo must not hang us
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) and status.st_rdev != _NULL:
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read(MOST_BYTES + 1)
