"""Host ids for containers: which of them are whose, and the id maps made of them.

The state has a file for each chunk of ids that an owner has taken, ``ranges/<base>-<n>``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter, deque

from isobox import idmap
from isobox.errors import StateError, UnsupportedError
from isobox.idmap import COUNT, IdMap, IdRange
from isobox.owners import Owners

_CHUNK = 8  # ranges of ids that an owner takes at a time
_SPARE_CHUNKS = 4  # and how many of them it keeps that no container needs
_CAP_SETID = 0b11 << 6  # CAP_SETGID and CAP_SETUID


class Ranges:
    """An `Owner` with regard to the ids of its containers."""

    id: str
    state: str
    closed: bool
    _forked: bool
    _registry: Owners

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: deque[int] = deque()
        self._own_ranges: bool | None = None
        self._user_map: IdMap | None = None
        self._shared: Counter[int] = Counter()  # ranges that more than one has, and how many more
        self._sharing = threading.RLock()  # RLock: __del__ of a snapshot may give one back

    def _usable(self) -> None:
        if self._forked:
            raise StateError("this owner belongs to the process that forked; use isobox.runtime.current()")
        if self.closed:
            raise StateError("this owner is closed")

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
                for chunk in chunks([name]):
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
                taken = chunks(os.listdir(f"{self.state}/ranges"))
                chunk = gap(ranges, taken, _CHUNK)
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


def _may_set_ids() -> bool:
    for line in idmap.read_text("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & _CAP_SETID == _CAP_SETID
    return False


def chunks(names: list[str]) -> list[IdRange]:
    """The chunks that have these names; what is no name of one is passed over."""
    pairs = [name.split("-") for name in names]
    return [
        IdRange(int(pair[0]), int(pair[1])) for pair in pairs if len(pair) == 2 and "".join(pair).isdigit()
    ]


def gap(ranges: tuple[IdRange, ...], taken: list[IdRange], windows: int) -> IdRange | None:
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
