"""What programs are to be held to by Landlock: a frozen value, checked once, without any I/O.

What it becomes for the kernel is in `isobox.security.landlock`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

from attrs import frozen

from . import checks
from .errors import SpecError
from .units import parse_int

Path: TypeAlias = "str | os.PathLike[str]"
Scope: TypeAlias = Literal["abstract-unix", "signal"]

SCOPES: Final = ("abstract-unix", "signal")
_LAST_PORT: Final = 65535


@frozen(init=False)
class Landlock:
    """Rules that each program of a container, and all that it starts, is held to by the kernel, for good.

    Every option stands alone: None, the default, restricts nothing; a list allows what is in it and
    nothing else, so an empty one allows nothing. Paths are the container's; all that lies beneath is
    meant too. They have to exist when the container starts.

    - `read`: where files may be read, and directories listed.
    - `write`: where files may be written, made, removed, renamed.
    - `execute`: where programs may be run from; they have to be readable too.
    - `ioctl_dev`: device nodes, or where those lie, that ioctl(2) may be called on.
    - `connect_tcp`, `bind_tcp`: TCP ports, 1 to 65535; for `bind_tcp` 0 too, a port of the kernel's choice.
    - `scope`: ``"abstract-unix"`` and ``"signal"``: abstract UNIX sockets, processes, that the program or
      its children did not make are out of reach. None: only the abstract sockets of the host are, with
      ``network="host"``; (): not even those.

    Paths need Linux 6.2, `ioctl_dev` 6.10, ports 6.7, `scope` 6.12: else the start raises `UnsupportedError`.
    Raises `SpecError`. See landlock(7), and Documentation/userspace-api/landlock.rst of the kernel.

    >>> Landlock(read=["/usr", "/etc/"], write=["/tmp"], connect_tcp=[443]).read
    ('/usr', '/etc')
    """

    read: tuple[str, ...] | None
    write: tuple[str, ...] | None
    execute: tuple[str, ...] | None
    ioctl_dev: tuple[str, ...] | None
    connect_tcp: tuple[int, ...] | None
    bind_tcp: tuple[int, ...] | None
    scope: tuple[Scope, ...] | None

    def __init__(
        self,
        *,
        read: Iterable[Path] | None = None,
        write: Iterable[Path] | None = None,
        execute: Iterable[Path] | None = None,
        ioctl_dev: Iterable[Path] | None = None,
        connect_tcp: Iterable[int] | None = None,
        bind_tcp: Iterable[int] | None = None,
        scope: Iterable[Scope] | None = None,
    ) -> None:
        self.__attrs_init__(
            _paths(read, "landlock.read"),
            _paths(write, "landlock.write"),
            _paths(execute, "landlock.execute"),
            _paths(ioctl_dev, "landlock.ioctl_dev"),
            _ports(connect_tcp, "landlock.connect_tcp", least=1),
            _ports(bind_tcp, "landlock.bind_tcp", least=0),
            _scope(scope),
        )


def _paths(value: object, field: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    expected = 'a list of paths in the container, such as ["/usr", "/tmp"]; None for no restriction'
    paths = checks.sequence(value, field, object, expected)
    return tuple(dict.fromkeys(checks.path_inside(path, field) for path in paths))


def _ports(value: object, field: str, *, least: int) -> tuple[int, ...] | None:
    if value is None:
        return None
    expected = f"a list of TCP ports from {least} to {_LAST_PORT}, such as [443]; None for no restriction"
    ports = checks.sequence(value, field, object, expected)
    return tuple(
        dict.fromkeys(
            parse_int(port, field=field, least=least, most=_LAST_PORT, expected=expected) for port in ports
        )
    )


def _scope(value: object) -> tuple[Any, ...] | None:
    if value is None:
        return None
    expected = 'a list of "abstract-unix" and "signal"; None for the default'
    names = checks.sequence(value, "landlock.scope", str, expected)
    for name in names:
        if name not in SCOPES:
            raise SpecError("landlock.scope", name, expected)
    return tuple(dict.fromkeys(names))


def check(value: object) -> Landlock | Literal["default"] | None:
    """Return the option `landlock` of a container in the one form that a spec keeps. Raises `SpecError`."""
    if value is None or isinstance(value, Landlock):
        return value
    if isinstance(value, str) and value == "default":
        return "default"
    raise SpecError("landlock", value, '"default", None, or rules such as Landlock(write=["/dev", "/tmp"])')
