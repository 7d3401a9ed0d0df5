"""What tests of leaks and faults count before and after: everything that a container could leave behind.

`count` looks at this process, at its descendants and at what its owner of `isobox.runtime` has on
this machine; what other programs do meanwhile does not matter. Numbers in names are blanked: a new
cgroup in the place of an old one is no leak. Processes that are dead but not reaped count.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from attrs import fields, frozen

import isobox
from isobox import cgroups, runtime, shared
from isobox.cgroups.collection import find
from patience import patient

_NUMBER = re.compile(r"\d+")
_SETTLE_SECONDS = 15.0


@frozen
class Counts:
    descriptors: Counter[str]
    mounts: Counter[str]
    cgroups: Counter[str]
    processes: Counter[str]
    interfaces: Counter[str]
    files: Counter[str]
    threads: Counter[str]

    def changes(self, after: Counts) -> list[str]:
        """What is there in one of both only, as "+2 descriptors: socket:[N]"."""
        found = []
        for kind in fields(Counts):
            one, other = getattr(self, kind.name), getattr(after, kind.name)
            for sign, left in (("+", other - one), ("-", one - other)):
                found += [f"{sign}{count} {kind.name}: {name}" for name, count in sorted(left.items())]
        return found


def _blank(text: str) -> str:
    return _NUMBER.sub("N", text)


def descriptors(pid: int | str = "self") -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[_blank(os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    """Every process: (pid, parent, name and state)."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    head, _, tail = file.read().rpartition(")")
                state, parent = tail.split()[:2]
                yield int(name), int(parent), f"{head.partition('(')[2]} {state}"


def descendants(top: int) -> dict[int, str]:
    """The processes below `top` by pid: "name state", the dead (Z) included."""
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, parent, name in _processes():
        children.setdefault(parent, []).append((pid, name))
    found: dict[int, str] = {}
    pending = [top]
    while pending:
        for pid, name in children.get(pending.pop(), ()):
            found[pid] = name
            pending.append(pid)
    return found


def cgroup_directories(owner_ids: Iterable[str]) -> list[str]:
    """The cgroups of these owners in every hierarchy, wherever below the mount point they are."""
    host = cgroups.discover()
    found: list[str] = []
    for owner_id in owner_ids:
        for top in find(host, owner_id):
            found += [path for path, _, _ in os.walk(top)]
    return found


def files(owner_ids: Iterable[str], state: str, data: str) -> list[str]:
    """What these owners have in the state and the data directory, their names and ranges too."""
    wanted = set(owner_ids)
    found: list[str] = []
    for top in (state, data):
        for owner_id in wanted:
            for path, _, names in os.walk(f"{top}/owners/{owner_id}"):
                found += [path, *(f"{path}/{name}" for name in names)]
    for folder in ("names", "ranges"):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(f"{state}/{folder}"):
                with contextlib.suppress(FileNotFoundError), open(f"{state}/{folder}/{name}") as file:
                    if file.read() in wanted:
                        found.append(f"{state}/{folder}/{name}")
    return found


def count() -> Counts:
    """Count now."""
    owner = runtime._current
    mine = [] if owner is None else [owner.id]
    with open("/proc/self/mountinfo") as file:
        mounts = Counter(line.split(" ", 1)[1] for line in file)
    return Counts(
        descriptors=descriptors(),
        mounts=mounts,
        cgroups=Counter(map(_blank, cgroup_directories(mine))),
        processes=Counter(_blank(text) for text in descendants(os.getpid()).values()),
        interfaces=Counter(name for _, name in socket.if_nameindex()),
        files=Counter(map(_blank, files(mine, runtime.state_dir(), runtime.data_dir()))),
        threads=Counter(_blank(thread.name) for thread in threading.enumerate()),
    )


def settled(before: Counts, seconds: float = _SETTLE_SECONDS) -> list[str]:
    """Wait until nothing differs from `before` (cgroups and trees go in the background); what still does."""
    found: list[str] = []

    def same() -> bool:
        nonlocal found
        found = before.changes(count())
        return not found

    wait_until(same, seconds)
    return found


def wait_until(holds: Callable[[], object], seconds: float = 10.0) -> bool:
    """Look again and again; False if it did not come true."""
    deadline = time.monotonic() + patient(seconds)
    pause = 0.001
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return True


def close_shared() -> None:
    """Give back what containers share and keep ready, as the interpreter's end does."""
    if shared._current is not None:
        shared._current.close()
    if runtime._current is not None:
        runtime._current.flush()


_warm = False


def at_rest() -> Counts:
    """Count where nothing is kept ready. No container may be running."""
    global _warm
    if not _warm:  # what is made once in a process and kept: the owner's places, /dev/null
        isobox.run(["true"], upper="disk")
        _warm = True
    close_shared()
    return count()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Everything of the block is gone once what containers share is closed."""
    before = at_rest()
    yield
    gc.collect()
    close_shared()
    left = settled(before)
    assert not left, "left behind: " + "; ".join(left)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
