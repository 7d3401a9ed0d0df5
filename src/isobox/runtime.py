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
from collections import Counter, deque
from collections.abc import Callable

from attrs import frozen

from isobox import idmap
from isobox.discard import Trash, remove_tree, remove_tree_mapped
from isobox.errors import CleanupError, IsoboxError, SpecError, StateError, UnsupportedError
from isobox.idmap import COUNT, IdMap, IdRange
from isobox.owners import DATA, STATE, Owners, check_directory, data_dir, mine

_CHUNK = 8  # ranges of ids that an owner takes at a time
_SPARE_CHUNKS = 4  # and how many of them it keeps that no container needs
_CAP_SETID = 0b11 << 6  # CAP_SETGID and CAP_SETUID

_collecting = threading.Lock()
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_current: Owner | None = None
_current_lock = threading.Lock()


@frozen
class Collected:
    """What `Owner.collect` found of dead owners.

    `owners` are their ids, `names` the container names and `ranges` the ids that were freed,
    `directories` the trees that were deleted, `errors` what could not be removed yet.
    """

    owners: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ranges: tuple[IdRange, ...] = ()
    directories: tuple[str, ...] = ()
    errors: tuple[BaseException, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.owners or self.names or self.ranges or self.directories or self.errors)


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


class Owner:
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
        self.closed = False
        self._forked = False
        self._collected = False
        self._lock = threading.Lock()
        self._free: deque[int] = deque()
        self._shared: Counter[int] = Counter()  # ranges that more than one has, and how many more
        self._sharing = threading.RLock()  # RLock: __del__ of a snapshot may give one back
        self._names: set[str] = set()
        self._own_ranges: bool | None = None
        self._user_map: IdMap | None = None
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

    def _usable(self) -> None:
        if self._forked:
            raise StateError("this owner belongs to the process that forked; use isobox.runtime.current()")
        if self.closed:
            raise StateError("this owner is closed")

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

    # Ids

    def uid_range(self) -> int:
        """The first of `idmap.COUNT` host ids that nobody else has, until `release_uid_range`.

        For root only. UnsupportedError in a user namespace that is too small, StateError when all
        ranges are taken. Ranges are taken from the state in chunks: most calls touch no file.
        """
        while True:
            self._usable()
            try:
                return self._free.popleft()
            except IndexError:
                self._take_ranges()

    def release_uid_range(self, base: int) -> None:
        """Give back what `uid_range` gave; last in the queue, so it isn't reused at once."""
        if not self._forked:
            with self._sharing:
                if self._shared[base]:
                    self._shared[base] -= 1
                    return
                del self._shared[base]
            self._free.append(base)
            if len(self._free) > _SPARE_CHUNKS * _CHUNK and len(self._free) % _CHUNK == 0:
                with contextlib.suppress(OSError):  # there is a next time
                    self.trim()

    def trim(self) -> None:
        """Give back the chunks of ids of which no container has any."""
        if self.closed or self._forked:
            return
        with self._lock, self._registry.exclusive():
            for name, holder in self._registry.holders("ranges").items():
                if holder != self.id:
                    continue
                for chunk in _chunks([name]):
                    if self._take_back(range(chunk.start, chunk.end, COUNT)):
                        os.unlink(f"{self.state}/ranges/{name}")

    def _take_back(self, bases: range) -> bool:
        """Take all of these out of the free ones, or none: other threads may be taking some."""
        taken: list[int] = []
        for base in bases:
            try:
                self._free.remove(base)
            except ValueError:
                self._free.extend(taken)
                return False
            taken.append(base)
        return True

    def _take_ranges(self) -> None:
        with self._lock:
            if self._free:
                return
            ranges = idmap.read_root_ranges()
            if not ranges:
                raise UnsupportedError(
                    "a range of ids for each container",
                    "the user namespace that this process runs in has too few ids",
                    "run isobox outside of that container, or give the container 2147483648 ids",
                )
            with self._registry.exclusive():
                taken = _chunks(os.listdir(f"{self.state}/ranges"))
                chunk = _gap(ranges, taken, _CHUNK)
                if chunk is None:
                    raise StateError(
                        f"all ranges of ids are taken by {len(taken)} processes with containers. Remedy: "
                        "'isobox doctor --clean', or give root more ids in /etc/subuid and /etc/subgid"
                    )
                path = f"{self.state}/ranges/{chunk.start}-{chunk.size}"
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.write(fd, self.id.encode())
                finally:
                    os.close(fd)
            self._free.extend(range(chunk.start, chunk.end, COUNT))

    def id_map(self) -> IdMap:
        """The id map for a new container of this user; give it back with `release_id_map`.

        root has a range of its own for each container, an ordinary user one map for all. root of a
        small user namespace gets the ids that are there, shared by its containers.
        """
        if self._user_map is not None:
            return self._user_map
        if self._own_ranges is None:
            self._own_ranges = os.geteuid() == 0 and _may_set_ids()
        if not self._own_ranges:
            self._user_map = idmap.of_user()
            return self._user_map
        try:
            return idmap.for_root(self.uid_range())
        except UnsupportedError:
            self._user_map = idmap.for_nested(*idmap.read_own_maps())
            return self._user_map

    def share_id_map(self, id_map: IdMap) -> IdMap:
        """The id map of a container that is there, for one more; give it back as often as it was given."""
        if id_map is not self._user_map:
            with self._sharing:
                self._shared[id_map.root_uid] += 1
        return id_map

    def release_id_map(self, id_map: IdMap) -> None:
        """Give back what `id_map` or `share_id_map` gave."""
        if id_map is not self._user_map:
            self.release_uid_range(id_map.root_uid)

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
            done, names, ranges = self._collect_state(cgroups, errors, thorough=wait)
            directories = self._collect_data(errors)
        if wait:
            self.flush()
            errors.extend(self._trash.errors)
            self._trash.errors.clear()
        return Collected(tuple(done), tuple(names), tuple(ranges), tuple(directories), tuple(errors))

    def _collect_state(
        self, cgroups: Callable[[str], object], errors: list[BaseException], *, thorough: bool
    ) -> tuple[list[str], list[str], list[IdRange]]:
        registry = self._registry
        claims: dict[str, int] = {}
        done: list[str] = []
        try:
            with registry.exclusive():
                for owner_id in registry.ids():
                    fd = registry.claim(owner_id)
                    if fd is not None:
                        claims[owner_id] = fd
            if not claims and not thorough:
                return [], [], []
            for owner_id in claims:
                # Outside of the lock: this ends processes and may take its time. Should we die,
                # our claim dies too.
                try:
                    cgroups(owner_id)
                    done.append(owner_id)
                except (IsoboxError, OSError) as error:
                    errors.append(error)
            with registry.exclusive():
                # Entries without an owner come from a death between two lines.
                known = set(registry.ids())
                orphans = {
                    holder
                    for folder in ("names", "ranges")
                    for holder in registry.holders(folder).values()
                    if holder not in known
                }
                gone = orphans | set(done)
                names = registry.release("names", gone)
                ranges = _chunks(registry.release("ranges", gone))
                for owner_id in done:
                    try:
                        registry.forget(owner_id)
                    except OSError as error:
                        errors.append(error)
        finally:
            for fd in claims.values():
                os.close(fd)
        return done, names, ranges

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


def _may_set_ids() -> bool:
    for line in idmap.read_text("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & _CAP_SETID == _CAP_SETID
    return False


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


def _chunks(names: list[str]) -> list[IdRange]:
    pairs = [name.split("-") for name in names]
    return [
        IdRange(int(pair[0]), int(pair[1])) for pair in pairs if len(pair) == 2 and "".join(pair).isdigit()
    ]


def _gap(ranges: tuple[IdRange, ...], taken: list[IdRange], windows: int) -> IdRange | None:
    """The first free place for up to `windows` containers."""
    for whole in ranges:
        at = whole.start
        for entry in (*sorted(taken), IdRange(whole.end, 0)):
            if entry.end < at or entry.start > whole.end:
                continue
            fitting = min((entry.start - at) // COUNT, windows)
            if fitting > 0:
                return IdRange(at, fitting * COUNT)
            at = entry.end
    return None


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
