"""Named volumes: directories that outlive containers, of one user, in the data folder.

    <data>/volumes/.lock          held for a moment by whoever makes or removes one
    <data>/volumes/<name>/lock    shared by who uses it, alone by who fills or removes it
    <data>/volumes/<name>/data    what containers see; for root with the owners that it has inside
    <data>/volumes/<name>/.new-*  being filled, or left by one who was killed
    <data>/volumes/.gone-*        being removed, or left by one who was killed

All locks (locks.py) go with their process. A volume goes by one rename, and gets its
first content by one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final

from attrs import evolve, frozen

from . import checks, forks, idmap
from .discard import remove_tree, remove_tree_mapped
from .errors import NotFound, SetupError, StateError, shown
from .locks import Lock
from .owners import DATA, check_directory, data_dir
from .spec import Mount

__all__ = ["Volume", "located", "use"]

_GONE: Final = ".gone-"
_NEW: Final = ".new-"


@frozen
class Volume:
    """A directory that containers share and that outlives them: ``mounts=["web-data:/data"]``.

    The first container that names it makes it; `create` does so too. `path` is where its content lies on the
    host: root's have the owners that they have in containers. `created`: RFC 3339.

    >>> import isobox
    >>> volume = isobox.Volume.create("example")
    >>> isobox.run(["sh", "-c", "echo kept > /data/file"], mounts=["example:/data"]).ok
    True
    >>> isobox.run(["cat", "/data/file"], mounts=["example:/data"]).stdout
    b'kept\\n'
    >>> volume.remove()
    """

    name: str
    path: str
    created: str

    @classmethod
    def create(cls, name: str) -> Volume:
        """Make one, empty, or return the one that is there. Raises `SpecError`, `SetupError`."""
        checks.volume(name)
        with _locked():
            _made(name).close()
        return cls.get(name)

    @classmethod
    def get(cls, name: str) -> Volume:
        """Return the one of this name; raises `NotFound`."""
        checks.volume(name)
        place = f"{_top()}/{name}"
        try:
            made = os.stat(f"{place}/lock").st_mtime
        except FileNotFoundError:
            raise NotFound(f"no volume {name}. Make it: isobox volume create {name}") from None
        except OSError as error:
            raise SetupError(error.errno or errno.EIO, f"volume {place}", stage="volume") from error
        when = datetime.fromtimestamp(int(made), UTC)
        return cls(name, f"{place}/data", when.isoformat().replace("+00:00", "Z"))

    @classmethod
    def all(cls) -> list[Volume]:
        """Return every volume of this user, sorted by name."""
        try:
            names = sorted(name for name in os.listdir(_top()) if not name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SetupError(error.errno or errno.EIO, f"the volumes in {_top()}", stage="volume") from error
        volumes = []
        for name in names:
            with contextlib.suppress(NotFound):  # gone by now
                volumes.append(cls.get(name))
        return volumes

    @classmethod
    def prune(cls) -> list[Volume]:
        """Remove all that no container uses; return them. What killed processes left goes too."""
        removed = []
        for volume in cls.all():
            with contextlib.suppress(NotFound, StateError):
                volume.remove()
                removed.append(volume)
        _collect()
        return removed

    @property
    def in_use(self) -> bool:
        """Whether a container uses it now, in whatever process."""
        with _locked():  # who starts just now must not find it taken by this look
            try:
                lock = Lock(f"{_top()}/{self.name}/lock")
            except FileNotFoundError:
                return False
            with lock:
                return not lock.try_alone()

    def remove(self) -> None:
        """Delete it with all that is in it. `NotFound`; `StateError` while a container uses it."""
        place = f"{_top()}/{self.name}"
        gone = f"{_top()}/{_GONE}{os.urandom(8).hex()}"
        with _locked():
            try:
                lock = Lock(f"{place}/lock")
            except FileNotFoundError:
                raise NotFound(f"no volume {self.name}") from None
            with lock:
                if not lock.try_alone():
                    raise StateError(f"volume {self.name}: a container uses it. Stop that first")
                os.rename(place, gone)
        _remove(gone)


def use(mounts: Sequence[Mount], lowers: Sequence[str], stack: ExitStack) -> tuple[Mount, ...]:
    """Return the mounts with the paths of named volumes, which stay until the stack is closed.

    Those that are missing are made. `lowers`: the layers of the image, whose content an empty volume gets
    that nobody uses. Raises `SetupError`.
    """
    for mount in mounts:
        if mount.kind == "volume" and mount.source is not None:
            stack.enter_context(_hold(mount.source, lowers, mount.target))
    return located(mounts)


def located(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """The same mounts with paths for names, whether or not there is anything."""
    return tuple(
        evolve(mount, source=f"{_top()}/{mount.source}/data")
        if mount.kind == "volume" and mount.source is not None
        else mount
        for mount in mounts
    )


def _hold(name: str, lowers: Sequence[str], target: str) -> Lock:
    """The lock of a volume, shared; the volume is made and filled before."""
    place = f"{_top()}/{name}"
    while True:
        with ExitStack() as failed:
            with _locked():
                lock = failed.enter_context(_made(name))
                alone = lock.try_alone()
            with _doing(place):
                if alone and lowers and _empty(f"{place}/data"):
                    _fill(place, lowers, target)
                waited = not alone and not lock.try_shared()
                lock.take(shared=True)  # waits for who fills it; who removes it may come first
                same = _is(lock.fileno(), f"{place}/lock")
                failed_there = same and waited and bool(lowers) and _empty(f"{place}/data")
            if same and not failed_there:
                failed.pop_all()
                return lock


def _empty(path: str) -> bool:
    try:
        return not os.listdir(path)
    except PermissionError:  # it belongs to an id of this user's containers: they have had it
        return False


def _fill(place: str, lowers: Sequence[str], target: str) -> None:
    """Give an empty volume what the image has at `target`; the caller holds its lock alone."""
    with forks.whole:
        from .images.seed import seed
    for name in os.listdir(place):
        if name.startswith(_NEW):
            _remove(f"{place}/{name}")
    new = f"{place}/{_NEW}{os.urandom(8).hex()}"
    os.mkdir(new, 0o755)
    try:
        os.chmod(new, 0o755)
        seed(lowers, target, new)
        os.rename(new, f"{place}/data")
    except BaseException:
        with contextlib.suppress(OSError, SetupError):
            _remove(new)
        raise


def _made(name: str) -> Lock:
    """Make what is missing of a volume, the lock of all in hand; its own lock, which nobody has taken."""
    place = f"{_top()}/{name}"
    with _doing(place):
        with contextlib.suppress(FileExistsError):
            os.mkdir(place, 0o700)
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{place}/data", 0o755)
            os.chmod(f"{place}/data", 0o755)  # whatever the umask
        return Lock(f"{place}/lock", make=True)


def _is(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _top() -> str:
    return f"{data_dir()}/volumes"


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Nobody else makes or removes a volume meanwhile."""
    top = _top()
    check_directory(data_dir(), DATA)
    check_directory(top, DATA)
    with _doing(top):
        os.chmod(top, 0o700)  # programs in there may be setuid
        with Lock(f"{top}/.lock", make=True) as lock:
            lock.take()
            yield


def _collect() -> None:
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(_top()):
            if name.startswith(_GONE):
                with contextlib.suppress(FileNotFoundError, SetupError):
                    _remove(f"{_top()}/{name}")


def _remove(path: str) -> None:
    with _doing(path):
        try:
            remove_tree(path)
        except PermissionError:
            if os.geteuid() == 0:
                raise
            remove_tree_mapped(path, lambda pid: idmap.write(pid, idmap.of_user()))


@contextlib.contextmanager
def _doing(path: str) -> Iterator[None]:
    try:
        yield
    except SetupError:
        raise
    except OSError as error:
        raise SetupError(error.errno or errno.EIO, f"volume {shown(path)}", stage="volume") from error
