"""The keyword options of `Container`, `exec` and `popen`, as types for editors and type checkers.

What they mean is in the docstrings of `isobox.Container` and `Container.exec`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import IO, Any, Literal, TypeAlias, TypedDict

from .checks import Namespace
from .landlock import Landlock
from .spec import IoLimit, Mount

Size: TypeAlias = "int | str"
Path: TypeAlias = "str | os.PathLike[str]"
Stream: TypeAlias = "int | IO[Any] | None"


class ConfigOptions(TypedDict, total=False):
    """What a new image has otherwise than the one that it is made from; None: as there."""

    env: Mapping[str, str | None] | None
    workdir: str | None
    user: str | int | None
    entrypoint: Iterable[str] | None
    cmd: Iterable[str] | None
    labels: Mapping[str, str | None] | None
    volumes: Iterable[str] | None
    stop_signal: str | None


class ContainerOptions(TypedDict, total=False):
    """Options of `Container`."""

    name: str | None
    hostname: str | None
    labels: Mapping[str, str] | None
    cpu: float | str | None
    cpu_weight: int | None
    cpuset: str | Iterable[int] | None
    memory: Size | None
    swap: Size
    pids: int | None
    io: Iterable[IoLimit]
    hugetlb: Mapping[Size, Size] | None
    disk: Size | None
    rlimits: Mapping[str, int | str | tuple[int | str, int | str]] | None
    network: Literal["none", "host"]
    mounts: Iterable[Mount | str]
    env: Mapping[str, str] | None
    workdir: Path | None
    user: str | int | None
    read_only: bool
    upper: Literal["memory", "disk"]
    userns: Literal["auto", "host"]
    cap_add: Iterable[str]
    cap_drop: Iterable[str]
    seccomp: Path | Mapping[str, Any] | None
    landlock: Landlock | Literal["default"] | None
    devices: Iterable[Path]
    namespaces: Mapping[str, Namespace] | None


class ProgramOptions(TypedDict, total=False):
    """Options that `exec` and `popen` share."""

    env: Mapping[str, str] | None
    workdir: Path | None
    user: str | int | None
    timeout: float | str | None
    cpu_time: float | str | None
    output_limit: Size | None
    memory: Size | None
    pids: int | None
    tty: bool
    measure: bool
    text: bool | None
    encoding: str | None
    errors: str | None
    stdin: Stream
    stdout: Stream
    stderr: Stream


class ExecOptions(ProgramOptions, total=False):
    """Options of `exec`."""

    input: bytes | str | None
    check: bool


PROGRAM_NAMES = frozenset(ExecOptions.__annotations__) | frozenset(ProgramOptions.__annotations__)
CONTAINER_NAMES = frozenset(ContainerOptions.__annotations__)


def known(options: Iterable[str], names: Collection[str]) -> None:
    """Raise TypeError for an option that is none of `names`."""
    for name in options:
        if name not in names:
            raise TypeError(f"unknown option {name!r}: choose from {', '.join(sorted(names))}")
