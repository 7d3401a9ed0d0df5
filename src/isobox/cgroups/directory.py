"""One cgroup directory: its files written, read back, and read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from ..errors import CgroupError, UnsupportedError

GONE: Final = (errno.ENOENT, errno.ENODEV)
"""What the kernel says of a file that isn't there, or whose group was removed meanwhile."""

JOIN: Final = {1: "tasks", 2: "cgroup.procs"}
"""By version, the file of a group to which whoever joins writes ``0``."""


class Tree:
    """An owner's directory in one hierarchy, held open: everything below is named from it."""

    __slots__ = ("births", "controllers", "fd", "path", "version")

    def __init__(self, version: Literal[1, 2], controllers: tuple[str, ...], path: str) -> None:
        self.version = version
        self.controllers = controllers
        self.path = path
        self.births = version == 2
        """Whether processes can be born in its groups; else they write themselves into these."""
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close it; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Directory:
    """A group in one hierarchy: ``name`` below a `Tree`."""

    __slots__ = ("_kept", "_warm", "name", "tree")

    def __init__(self, tree: Tree, name: str) -> None:
        self.tree = tree
        self.name = name
        self._warm: dict[str, int] = {}
        self._kept: dict[str, int] = {}

    @property
    def path(self) -> str:
        """The absolute path, for messages."""
        return os.path.normpath(f"{self.tree.path}/{self.name}")

    def below(self, name: str) -> Directory:
        """Return the group ``name`` below this one."""
        return Directory(self.tree, f"{self.name}/{name}")

    def make(self) -> None:
        """Make the directory. Raises OSError."""
        os.mkdir(self.name, 0o755, dir_fd=self.tree.fd)
        if os.geteuid() == 0:
            return
        try:  # whatever the umask, which belongs to all threads and hinders its user, but not root
            os.chmod(self.name, 0o755, dir_fd=self.tree.fd)
        except OSError:
            os.rmdir(self.name, dir_fd=self.tree.fd)
            raise

    def open(self, file: str, flags: int) -> int:
        """Return an owned descriptor of a file of this group. Raises OSError."""
        return os.open(f"{self.name}/{file}", flags | os.O_CLOEXEC, dir_fd=self.tree.fd)

    def warm(self, files: Iterable[str]) -> None:
        """Open files of limits of a new group ahead, for `set`; those that are there."""
        for file in files:
            try:
                self._warm[file] = self.open(file, os.O_RDWR)
            except OSError:
                continue  # `set` will say what is wrong

    def is_warm(self, file: str) -> bool:
        """Return whether a file is there and its limit still as the kernel made it."""
        return file in self._warm

    def keep(self, file: str) -> None:
        """Open a file that is going to be read again and again, for `glance`."""
        if file not in self._kept:
            self._kept[file] = self.open(file, os.O_RDONLY)

    def glance(self, file: str) -> bytes:
        """Return the whole of a short file. Raises OSError."""
        fd = self._kept.get(file)
        return self.read(file) if fd is None else os.pread(fd, 4096, 0)

    def cool(self) -> None:
        """Close what `warm` opened and `set` has not used, and what `keep` opened."""
        for held in (self._warm, self._kept):
            while held:
                os.close(held.popitem()[1])

    def read(self, file: str) -> bytes:
        """Return the whole of a file. Raises OSError."""
        fd = os.open(f"{self.name}/{file}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.tree.fd)
        try:
            data = os.read(fd, 65536)
            # The kernel may hand out a long file a page at a time.
            if len(data) < 2048:
                return data
            parts = [data]
            while data:
                data = os.read(fd, 65536)
                parts.append(data)
            return b"".join(parts)
        finally:
            os.close(fd)

    def read_if_there(self, file: str) -> bytes | None:
        """Return the whole of a file, or None where the kernel has none, or can't tell."""
        try:
            return self.read(file)
        except OSError as error:
            if error.errno in (*GONE, errno.EOPNOTSUPP):
                return None
            raise CgroupError(error.errno or 0, f"can't read {self.path}/{file}", stage="cgroup") from error

    def give(self, file: str, uid: int) -> None:
        """Make a user the owner of a file of this group. Raises `CgroupError`."""
        try:
            os.chown(f"{self.name}/{file}", uid, -1, dir_fd=self.tree.fd)
        except OSError as error:
            message = f"can't give {self.path}/{file} to user {uid}"
            raise CgroupError(error.errno or 0, message, stage="cgroup", op="chown") from error

    def write(self, file: str, value: str, hint: str = "") -> None:
        """Write without reading back: for commands (freezing, killing). Raises `CgroupError`."""
        try:
            fd = self.open(file, os.O_WRONLY)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise self.refused(error, file, value, hint) from error

    def set(
        self, file: str, value: str, holds: Callable[[bytes], bool], feature: str, hint: str = ""
    ) -> None:
        """Write a limit, read it back, compare.

        Raises `UnsupportedError` where the kernel has no such file, `CgroupError` where it refuses
        the value or keeps another one.
        """
        try:
            fd = self._warm.pop(file, -1) if self._warm else -1
            if fd < 0:
                fd = self.open(file, os.O_RDWR)
        except OSError as error:
            if error.errno == errno.ENOENT:
                why = f"the kernel has no {file} in {self.path}"
                raise UnsupportedError(feature, why, "use a kernel that is built with it") from error
            raise self.refused(error, file, value, hint) from error
        try:
            os.write(fd, value.encode())
            kept = os.pread(fd, 65536, 0)
        except OSError as error:
            raise self.refused(error, file, value, hint) from error
        finally:
            os.close(fd)
        if not holds(kept):
            shown = kept[:200].decode(errors="replace").strip()
            message = f"wrote {value!r} to {self.path}/{file} but read {shown!r} back"
            raise CgroupError(0, message, stage="cgroup", op=file, hint=hint)

    def refused(self, error: OSError, file: str, value: str, hint: str) -> CgroupError:
        """Return the error that says which value was not taken by which file."""
        message = f"can't write {value!r} to {self.path}/{file}"
        return CgroupError(error.errno or 0, message, stage="cgroup", op=file, hint=hint)

    def processes(self) -> list[int]:
        """Return the processes of this group alone, by their ids here. Gone: none.

        Opened anew each time: v1 keeps the list of an open file for a second.
        """
        try:
            text = self.read("cgroup.procs")
        except OSError as error:
            if error.errno in (*GONE, errno.EOPNOTSUPP):
                return []
            raise CgroupError(
                error.errno or 0, f"can't read {self.path}/cgroup.procs", stage="cgroup"
            ) from error
        try:
            return [int(word) for word in text.split()]
        except ValueError:
            raise CgroupError(
                errno.EBADMSG, f"no processes in {self.path}/cgroup.procs", stage="cgroup"
            ) from None

    def groups(self) -> list[Directory]:
        """Return the groups directly below."""
        try:
            fd = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.tree.fd)
        except OSError as error:
            if error.errno in GONE:
                return []
            raise
        try:
            if os.fstat(fd).st_nlink == 2:  # the kernel counts groups there: none below
                return []
            with os.scandir(fd) as entries:
                return [self.below(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
        finally:
            os.close(fd)

    def walk(self) -> Iterator[Directory]:
        """Yield every group below and at last this one."""
        for group in self.groups():
            yield from group.walk()
        yield self

    def remove(self) -> bool:
        """Remove this group alone; True once it is gone, False while it is in use."""
        try:
            os.rmdir(self.name, dir_fd=self.tree.fd)
        except OSError as error:
            if error.errno in GONE:
                return True
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
        return True
