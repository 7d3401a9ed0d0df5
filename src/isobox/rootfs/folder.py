"""A folder on this machine as the root of a container."""

from __future__ import annotations

import os
import stat

from isobox.errors import NotFound, SpecError

from .etc import etc_of
from .layers import Directory, Etc, Layer, Rootfs, Tree

__all__ = ["folder_image"]

# What every container needs to have something mounted on, and programs expect.
NEEDED = (
    Directory("/dev", 0o755),
    Directory("/proc", 0o555),
    Directory("/sys", 0o555),
    Directory("/tmp", 0o1777),
)


def folder_image(path: str | os.PathLike[str], *, root: bool) -> Rootfs:
    """Describe a container whose system is the folder `path`, copy-on-write.

    `root`: the container is made with the host's root privileges; then the folder's files keep
    their owners inside (uid 0 is the container's root). Raises `NotFound`, or `SpecError` when it
    is not a folder or is the machine's own root.
    """
    name = os.fspath(path)
    try:
        status = os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no such folder: {name}") from None
    except OSError as error:
        raise SpecError("image", name, f"a folder that can be read ({error.strerror})") from None
    if not stat.S_ISDIR(status.st_mode):
        raise SpecError("image", name, "a folder")
    if os.path.samestat(status, os.stat("/")):
        raise SpecError("image", name, 'a folder other than "/"; this machine\'s system is image="host"')
    real = os.path.realpath(name)
    missing = tuple(d for d in NEEDED if not os.path.lexists(real + d.path))
    tree = Tree("/", (Layer(real, idmap=root),), mode=stat.S_IMODE(status.st_mode) & 0o1777)
    return Rootfs((tree,), missing, etc=_etc(f"{real}/etc", root))


def _etc(path: str, root: bool) -> Etc | None:
    try:
        found = os.lstat(path)
    except OSError:
        return etc_of(None, 0, None)
    return etc_of(found, 0, (0, 0) if root else None) if stat.S_ISDIR(found.st_mode) else None
