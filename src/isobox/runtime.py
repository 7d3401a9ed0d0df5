"""State on disk: who owns what, so that nothing outlives its owner for good.

A process that uses containers is an `Owner`. It has a directory with a lock that the kernel drops
when the process ends, however it ends; whoever starts next finds the directory without a holder
and collects what it names. Two places, both made on first use::

    <state>   /run/isobox (root), $XDG_RUNTIME_DIR/isobox, /tmp/isobox-<uid>; or ISOBOX_STATE_DIR
      lock                  held while anything below changes
      owners/<id>/lock      held by the owner for life; beside it what the owner keeps for itself
      owners/<id>/attended  the sockets on which an isobox run answers other commands about its container
      names/<name>          the id of the owner that has a container of this name
      ranges/<base>-<n>     the id of the owner that has these n host ids
    <data>    /var/lib/isobox (root), $XDG_DATA_HOME/isobox, ~/.local/share/isobox; or ISOBOX_DATA_DIR
      lock, owners/<id>/lock as above; owners/<id>/... the trees of containers, made if there are any

Every step leaves something that `Owner.collect` finds: an owner's directory is made first and
removed last.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import threading
import weakref
from collections.abc import Callable

from isobox import idmap
from isobox.collecting import Collected, collect_state
from isobox.discard import Trash, remove_tree, remove_tree_mapped
from isobox.errors import CleanupError, IsoboxError, SpecError, UnsupportedError
from isobox.owners import DATA, STATE, Owners, check_directory, data_dir, mine
from isobox.ranges import Ranges

_collecting = threading.Lock()
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_current: Owner | None = None
_current_lock = threading.Lock()


def state_dir() -> str:
    """Where the state goes for this user and environment; makes nothing."""
    if chosen := os.environ.get("ISOBOX_STATE_DIR"):
        return os.path.realpath(chosen)
    uid = os.geteuid()
    if uid == 0:
        return "/run/isobox"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    with contextlib.suppress(OSError):
        # sudo and su hand on another user's directory.
        if os.path.isabs(runtime) and os.stat(runtime).st_uid == uid and os.access(runtime, os.W_OK):
            return os.path.join(runtime, "isobox")
    return f"/tmp/isobox-{uid}"


def current() -> Owner:
    """The owner of this process, made at the first call; after a fork the child gets its own."""
    global _current
    owner = _current
    if owner is None:
        with _current_lock:
            owner = _current
            if owner is None:
                owner = _current = Owner()
    return owner


class Owner(Ranges):
    """This process's share of the state: names, ranges of ids, directories, and their end.

    Safe to use from any thread. A child made by fork must not use its parent's owner (StateError);
    `current` gives it one of its own. `id` is ``<pid>-<random>``, fit for a directory's name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     owner = Owner(f"{folder}/state", f"{folder}/data")
    ...     owner.name("web")
    ...     owner.close()
    """

    def __init__(self, state: str | None = None, data: str | None = None) -> None:
        self.pid = os.getpid()
        self.id = f"{self.pid}-{os.urandom(5).hex()}"
        self.state = state or state_dir()
        self.data = data or data_dir()
        super().__init__()
        self.closed = False
        self._forked = False
        self._collected = False
        self._names: set[str] = set()
        self._trash = Trash(self._remove)
        self._data_fd: int | None = None
        self._count = 0
        check_directory(self.state, STATE)
        self._registry = Owners(self.state)
        self._data = Owners(self.data)
        mine.add(self.id)
        try:
            self._state_fd = _register(self._registry, self.id, STATE, ("names", "ranges"))
        except BaseException:
            mine.discard(self.id)
            raise
        _owners.add(self)
        atexit.register(self._at_exit)

    # Names

    def name(self, name: str) -> None:
        """Claim a container name among all processes; SpecError if it is in use."""
        self._usable()
        if not name or "/" in name or "\0" in name or name.startswith(".") or len(name.encode()) > 200:
            raise SpecError("name", name, "a name without '/', not starting with '.'")
        path = f"{self.state}/names/{name}"
        with self._registry.exclusive():
            holder = self._registry.holder("names", name)
            if self._registry.alive(holder):
                where = "this process" if holder == self.id else f"process {holder.partition('-')[0]}"
                raise SpecError("name", name, f"a name that is free: it is in use by {where}")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, self.id.encode())
            finally:
                os.close(fd)
            self._names.add(name)

    def release_name(self, name: str) -> None:
        """Give back a name; nothing happens if this owner doesn't have it."""
        if self._forked or name not in self._names:
            return
        with self._registry.exclusive():
            self._names.discard(name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.state}/names/{name}")

    # Directories

    def directory(self, name: str) -> str:
        """A directory for small things of this owner, beside its lock; gone when the owner is.

        A container's root can reach it: UnsupportedError where the way there is closed.
        """
        self._usable()
        path = f"{self._registry.owner(self.id)}/{name}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o711)
        if os.geteuid() == 0:
            closed = _closed_to_others(path)
            if closed:
                raise UnsupportedError(
                    "state folder",
                    f"{closed} is closed to others, and to the root of a container, an ordinary user here",
                    f"chmod o+x {closed}, or set ISOBOX_STATE_DIR to another place",
                )
        return path

    def closed_directory(self, name: str) -> str:
        """As `directory`, but nobody else can reach it, no container's root either."""
        self._usable()
        path = f"{self._registry.owner(self.id)}/{name}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        return path

    def disk_dir(self) -> str:
        """A new directory (mode 0700) on a disk, for a container's layer or an unpacked image."""
        self._usable()
        with self._lock:
            if self._data_fd is None:
                check_directory(self.data, DATA)
                self._data_fd = _register(self._data, self.id, DATA)
                # What is in there may be setuid: nobody else may reach it by its path.
                os.chmod(self._data.owner(self.id), 0o700)
            self._count += 1
            path = f"{self._data.owner(self.id)}/{self._count}"
        os.mkdir(path, 0o700)
        return path

    def discard(self, path: str) -> None:
        """Delete a directory of `disk_dir` in the background; at once it is out of the way."""
        if self._forked:
            return
        with self._lock:
            self._count += 1
            trash = f"{self._data.owner(self.id)}/trash-{self._count}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, trash)
            self._trash.put(trash)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything discarded is deleted; False after `timeout` seconds."""
        return self._trash.flush(timeout)

    def _remove(self, path: str) -> None:
        try:
            remove_tree(path)
        except PermissionError:
            if os.geteuid() == 0:
                raise
            made = idmap.of_user()
            if made.single:
                raise
            remove_tree_mapped(path, lambda pid: idmap.write(pid, made))

    # The end

    def collect_once(self, cgroups: Callable[[str], object]) -> None:
        """`collect` at this owner's first call, nothing later; trees are deleted in the background.

        What can't be removed now is left for the next owner.
        """
        if not self._collected:
            self._collected = True
            with contextlib.suppress(IsoboxError, OSError):
                self.collect(cgroups, wait=False)

    def collect(self, cgroups: Callable[[str], object], *, wait: bool = True) -> Collected:
        """Remove what dead owners have left behind.

        `cgroups` is called with each dead owner's id and must end and remove its cgroups. An owner
        for which that fails stays as it is for the next time; the failure is in `Collected.errors`.
        """
        self._usable()
        with _collecting:
            errors: list[BaseException] = []
            done, names, ranges = collect_state(self._registry, cgroups, errors, thorough=wait)
            directories = self._collect_data(errors)
        if wait:
            self.flush()
            errors.extend(self._trash.errors)
            self._trash.errors.clear()
        return Collected(tuple(done), tuple(names), tuple(ranges), tuple(directories), tuple(errors))

    def _collect_data(self, errors: list[BaseException]) -> list[str]:
        # Data has locks of its own: the state may be on a file system that a reboot empties.
        registry = self._data
        if not registry.ids():
            return []
        moved: list[str] = []
        with registry.exclusive():
            dead = {
                owner_id: fd for owner_id in registry.ids() if (fd := registry.claim(owner_id)) is not None
            }
        try:
            for owner_id in dead:
                try:
                    place = self.disk_dir()
                    os.rename(registry.owner(owner_id), f"{place}/{owner_id}")
                    self.discard(place)
                    moved.append(registry.owner(owner_id))
                except OSError as error:
                    errors.append(error)
        finally:
            for fd in dead.values():
                os.close(fd)
        return moved

    def close(self) -> None:
        """Delete everything of this owner; idempotent. CleanupError names what could not be."""
        if self.closed or self._forked or os.getpid() != self.pid:
            return
        self.closed = True
        atexit.unregister(self._at_exit)
        self.flush()
        errors: list[BaseException] = []  # what the trash could not delete is tried once more
        try:
            for part in (self._close_data, self._close_state):
                try:
                    part()
                except OSError as error:
                    errors.append(error)
        finally:
            mine.discard(self.id)
            _owners.discard(self)
        if errors:
            raise CleanupError("what this process kept on disk", tuple(errors))

    def _close_data(self) -> None:
        if self._data_fd is None:
            return
        try:
            path = self._data.owner(self.id)
            for entry in os.listdir(path):
                if entry != "lock":
                    self._remove(f"{path}/{entry}")
            with self._data.exclusive():
                self._data.forget(self.id)
        finally:
            os.close(self._data_fd)

    def _close_state(self) -> None:
        try:
            with self._registry.exclusive():
                self._registry.release("names", {self.id})
                self._registry.release("ranges", {self.id})
                self._registry.forget(self.id)
        finally:
            os.close(self._state_fd)

    def _at_exit(self) -> None:
        # Nobody can handle an error now; what stays has no holder and is collected next time.
        with contextlib.suppress(CleanupError, OSError):
            self.close()


def _register(owners: Owners, owner_id: str, place: tuple[str, str], folders: tuple[str, ...] = ()) -> int:
    try:
        return owners.register(owner_id, folders)
    except OSError as error:
        feature, variable = place
        why = f"can't use {owners.path}: {error.strerror or error}"
        raise UnsupportedError(feature, why, f"set {variable} to another directory") from error


def _closed_to_others(path: str) -> str:
    """The topmost directory on the way to `path` that others may not pass; empty if there is none."""
    closed = ""
    while path != "/":
        if not os.stat(path).st_mode & stat.S_IXOTH:
            closed = path
        path = os.path.dirname(path)
    return closed


def _after_fork_in_child() -> None:
    global _collecting, _current, _current_lock
    for owner in list(_owners):
        # The locks stay the parent's: a child's close doesn't drop them.
        owner._forked = True
        for fd in (owner._state_fd, owner._data_fd):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        atexit.unregister(owner._at_exit)
    _owners.clear()
    _current = None
    _collecting = threading.Lock()
    _current_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
