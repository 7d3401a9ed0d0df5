"""Where a path really leads, link by link, and which directories are somebody's home."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import frozen

from .layers import Link

_MOST_LINKS = 40  # the kernel's own bound


@frozen
class Trace:
    """`real` is where a path leads; `links` the symbolic links on the way, each where it lies."""

    path: str
    real: str
    links: tuple[Link, ...]

    def real_is_shown(self, visible: Callable[[str], bool]) -> bool:
        """Whether following the links inside would arrive at something."""
        return visible(self.real)


def trace(path: str) -> Trace:
    """Follow `path` as the kernel does and note every link; a missing rest is kept as it is."""
    todo = [name for name in reversed(os.path.abspath(path).split("/")) if name]
    real = "/"
    links: list[Link] = []
    while todo:
        name = todo.pop()
        if name == ".":
            continue
        if name == "..":
            real = os.path.dirname(real)
            continue
        place = os.path.join(real, name)
        try:
            target = os.readlink(place)
        except OSError:
            real = place
            continue
        links.append(Link(place, target))
        if len(links) > _MOST_LINKS:
            break
        if target.startswith("/"):
            real = "/"
        todo.extend(part for part in reversed(target.split("/")) if part)
    return Trace(path, real, tuple(dict.fromkeys(links)))


# Accounts of services and images name these as their home; hiding them would hide the system.
_SYSTEM = frozenset(
    {
        "/",
        "/bin",
        "/dev",
        "/etc",
        "/lib",
        "/lib32",
        "/lib64",
        "/libx32",
        "/nix",
        "/nonexistent",
        "/opt",
        "/proc",
        "/sbin",
        "/sys",
        "/usr",
        "/usr/bin",
        "/usr/games",
        "/usr/lib",
        "/usr/local",
        "/usr/local/bin",
        "/usr/local/lib",
        "/usr/sbin",
        "/usr/share",
        "/var",
        "/var/cache",
        "/var/empty",
        "/var/lib",
        "/var/log",
        "/var/spool",
        "/var/www",
    }
)


@frozen
class Homes:
    """The home directories of people on this machine."""

    paths: tuple[str, ...]

    @classmethod
    def read(cls, passwd: str = "/etc/passwd") -> Homes:
        """Those of the accounts of people (uid 1000 and up), of root and of this user.

        The file is read directly: asking for every account of a directory service could take
        minutes, and those accounts' homes are below /home or are found as this user's own.
        """
        found = {os.path.normpath(os.path.expanduser("~"))}
        try:
            with open(passwd, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError:
            lines = []
        for line in lines:
            fields = line.split(":")
            if len(fields) < 7 or not fields[2].isdecimal():
                continue
            uid = int(fields[2])
            if uid == 0 or uid == os.getuid() or 1000 <= uid != 65534:
                found.add(os.path.normpath(fields[5]))
        found = {path for path in found if path.startswith("/") and os.path.isdir(path)}
        return cls(tuple(sorted(found - _SYSTEM)))

    @staticmethod
    def is_system(path: str) -> bool:
        """Whether this is a part of the system that is never taken for a home."""
        return path in _SYSTEM

    def is_home(self, path: str) -> bool:
        """Whether `path` itself is somebody's home directory (not something in it)."""
        if os.path.dirname(path) in {"/home", os.path.realpath("/home")}:
            return True
        return any(path in (home, os.path.realpath(home)) for home in self.paths)
