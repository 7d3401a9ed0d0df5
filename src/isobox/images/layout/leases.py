"""Leases: what a living process has put into a store, or counts on there, and no image names yet.

`.isobox/leases/<id>/` belongs to one process. `lock` in it is held by that process for the life of
the lease, and dropped by the kernel when it ends, however it ends. The other files are blobs on
their way (`new-<n>`) and empty ones whose names say which blobs must stay (`sha256-<hex>`).

Why no prune takes a blob that somebody is about to name. A blob is published, or found to be there,
in two steps: (1) its name is put into the lease, (2) it is renamed into place, or looked for. Both
are done under the store's lock, shared. A prune holds that lock alone from its first look at the
leases to its last removal. So both steps come before it, and then it finds the name in a lease that
is alive; or both come after it, and then (2) finds what is really left. A lease ends after the
image was named, which needs the lock alone too and checks that all blobs are there. A lease whose
lock nobody holds belongs to a dead process, which names nothing any more.

A lease is made under the lock held alone, as leases of the dead are collected: nobody sees one
that is not locked yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
import weakref
from collections.abc import Iterator

from isobox.errors import ImageError, StateError

from ..documents.digest import Digest
from .halves import AGE, collect_halves
from .layout import OWN, Layout, create, held

__all__ = ["Lease", "Leases", "collect"]

_PLACE = (OWN, "leases")


class Lease:
    """A directory of one process for what it works on; `users` are those who need it."""

    def __init__(self, layout: Layout) -> None:
        self.pid = os.getpid()
        self.users = 0
        self.id = f"{self.pid}-{os.urandom(8).hex()}"
        self._layout = layout
        self._count = 0
        self._mutex = threading.Lock()
        self._kept: set[Digest] = set()
        self._lock = self.fd = -1
        try:
            with layout.locked(), layout.doing("make a lease"):
                collect(layout)
                with layout.directory(*_PLACE, make=True) as leases:
                    os.mkdir(self.id, 0o700, dir_fd=leases)
                with layout.directory(*_PLACE, self.id) as fd:
                    self._lock = create("lock", fd)
                    held.add(self._lock)
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self.fd = os.dup(fd)
                    held.add(self.fd)
        except BaseException:
            self._close()
            raise

    def keep(self, digest: Digest) -> None:
        """Have this blob stay while the lease lasts; the caller holds the store's lock, shared.

        Raises OSError.
        """
        if digest in self._kept:
            return
        with contextlib.suppress(FileExistsError):
            os.close(create(f"{digest.algorithm}-{digest.hex}", self.fd))
        self._kept.add(digest)

    def new_file(self) -> tuple[int, str]:
        """Make a file for a blob on its way: its descriptor and its name in `fd`. Raises OSError."""
        with self._mutex:
            self._count += 1
            name = f"new-{self._count}"
        return create(name, self.fd), name

    def end(self) -> None:
        """Remove it. What can't be removed is collected by the next one who can."""
        with contextlib.suppress(ImageError, OSError), self._layout.directory(*_PLACE) as leases:
            _remove(self.id, self.fd, leases)
        self._close()

    def _close(self) -> None:
        for fd in (self.fd, self._lock):
            if fd >= 0:
                held.discard(fd)
                os.close(fd)


class Leases:
    """The lease of one `Store` object: its threads share one, made when the first needs it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._mutex = threading.Lock()
        self._lease: Lease | None = None
        _all.add(self)

    @contextlib.contextmanager
    def using(self) -> Iterator[Lease]:
        """Have a lease; it ends when the last thread that uses it is done."""
        lease = self.enter()
        try:
            yield lease
        finally:
            self.leave(lease)

    def enter(self) -> Lease:
        """`using`, for those who call `leave` themselves."""
        with self._mutex:
            if self._lease is None:
                self._lease = Lease(self._layout)
            self._lease.users += 1
            return self._lease

    def leave(self, lease: Lease) -> None:
        """See `enter`; nothing happens in a child that was forked meanwhile."""
        if lease.pid != os.getpid():
            return
        with self._mutex:
            lease.users -= 1
            if not lease.users:
                self._lease = None
                lease.end()

    def join(self) -> Lease:
        """`enter` the lease that is there; StateError where none is."""
        with self._mutex:
            if self._lease is None:
                raise StateError(
                    "blobs are added inside 'with store.lease():', which keeps a prune from removing them "
                    "before an image names them"
                )
            self._lease.users += 1
            return self._lease

    @contextlib.contextmanager
    def joined(self) -> Iterator[Lease | None]:
        """Use the lease that is there; None where none is."""
        with self._mutex:
            lease = self._lease
            if lease is not None:
                lease.users += 1
        try:
            yield lease
        finally:
            if lease is not None:
                self.leave(lease)

    def after_fork(self) -> None:
        """In a forked child: the lease is the parent's."""
        self._mutex = threading.Lock()
        self._lease = None


def collect(layout: Layout, *, age: float = AGE) -> tuple[set[Digest], int]:
    """Remove what dead processes have left: what the living keep, and the bytes that were freed.

    `age`: seconds after which halves go too. The caller holds the lock alone. Raises OSError.
    """
    kept: set[Digest] = set()
    freed = collect_halves(layout, age)
    try:
        with layout.directory(*_PLACE) as leases:
            for lease_id in os.listdir(leases):
                try:
                    with layout.directory(*_PLACE, lease_id) as fd:
                        if _alive(fd):
                            kept |= _names(fd)
                        else:
                            freed += _remove(lease_id, fd, leases)
                except FileNotFoundError:
                    pass  # it has just ended
                except NotADirectoryError:
                    os.unlink(lease_id, dir_fd=leases)  # none of ours
    except FileNotFoundError:
        pass
    return kept, freed


def _alive(lease: int) -> bool:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open("lock", flags, dir_fd=lease)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _names(lease: int) -> set[Digest]:
    found = set()
    for name in os.listdir(lease):
        with contextlib.suppress(ImageError):  # another file
            found.add(Digest.parse(name.replace("-", ":", 1)))
    return found


def _remove(lease_id: str, lease: int, leases: int) -> int:
    """Empty and remove a lease's directory, its lock last; the bytes that were in it."""
    freed = 0
    names = os.listdir(lease)
    for name in sorted(names, key=lambda name: name == "lock"):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=lease, follow_symlinks=False)
            os.unlink(name, dir_fd=lease)
            if stat.S_ISREG(status.st_mode):
                freed += status.st_size
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(lease_id, dir_fd=leases)
    return freed


_all: weakref.WeakSet[Leases] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for leases in list(_all):
        leases.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
