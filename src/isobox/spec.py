"""What a container, and a program in it, is to be: frozen values, checked once, without any I/O.

`ContainerSpec.make` and `ExecSpec.make` take what users type and raise `SpecError`, which names
the option and what would be right. Whether this host can do what a spec asks is not decided here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from attrs import Factory, evolve, frozen

from . import checks
from .checks import NAMESPACES, RLIMITS, UNLIMITED, Namespace
from .errors import SpecError
from .landlock import Landlock
from .landlock import check as check_landlock
from .units import (
    format_cpuset,
    parse_cpu,
    parse_cpuset,
    parse_duration,
    parse_int,
    parse_size,
)

__all__ = [
    "NAMESPACES",
    "RLIMITS",
    "UNLIMITED",
    "ContainerSpec",
    "ExecSpec",
    "IoLimit",
    "Limits",
    "Mount",
    "format_cpuset",
    "parse_cpu",
    "parse_cpuset",
    "parse_duration",
    "parse_int",
    "parse_size",
]

Size: TypeAlias = "int | str"
Duration: TypeAlias = "float | str"
Path: TypeAlias = "str | os.PathLike[str]"
Args: TypeAlias = "Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]]"

DEFAULT_OUTPUT_LIMIT: Final = "16M"
_LEAST_MEMORY: Final = 4096  # one page: the kernel counts in those
_LIMIT_NAMES: Final = ("cpu", "cpu_weight", "cpuset", "memory", "swap", "pids", "io", "hugetlb")
_NOTHING: Final[tuple[Any, ...]] = ()


@frozen
class IoLimit:
    """A bound on block I/O of one device: bytes and operations a second.

    `device` is a device node (``"/dev/vda"``), its numbers (``"254:0"``) or any path, which means
    the device below the file system that the path is on.

    >>> IoLimit("/dev/vda", write_bps="10M").write_bps
    10485760
    """

    device: str
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None

    def __init__(
        self,
        device: Path,
        *,
        read_bps: Size | None = None,
        write_bps: Size | None = None,
        read_iops: int | None = None,
        write_iops: int | None = None,
    ) -> None:
        name = checks.text(device, "io.device", 'a device or a path, such as "/dev/vda" or "254:0"')
        given = (read_bps, write_bps, read_iops, write_iops)
        if given == (None, None, None, None):
            raise SpecError("io", name, "at least one of read_bps, write_bps, read_iops, write_iops")
        most = 2**63 - 1
        self.__attrs_init__(  # type: ignore[attr-defined]
            name,
            None if read_bps is None else parse_size(read_bps, field="io.read_bps"),
            None if write_bps is None else parse_size(write_bps, field="io.write_bps"),
            None if read_iops is None else parse_int(read_iops, field="io.read_iops", least=1, most=most),
            None if write_iops is None else parse_int(write_iops, field="io.write_iops", least=1, most=most),
        )


@frozen(slots=False)
class Limits:
    """What a container may use. None: no limit. Sizes are bytes, `cpu` is in cores."""

    cpu: float | None = None
    cpu_weight: int | None = None
    cpuset: frozenset[int] | None = None
    memory: int | None = None
    swap: int = 0
    pids: int | None = 1024
    io: tuple[IoLimit, ...] = ()
    hugetlb: dict[int, int] = Factory(dict)
    """Bytes of huge pages, by the size of such a page in bytes."""

    @classmethod
    def make(
        cls,
        *,
        cpu: float | str | None = None,
        cpu_weight: int | None = None,
        cpuset: str | Iterable[int] | None = None,
        memory: Size | None = None,
        swap: Size = 0,
        pids: int | None = 1024,
        io: Iterable[IoLimit] = (),
        hugetlb: Mapping[Size, Size] | None = None,
    ) -> Limits:
        """Check and convert the options of the same names. Raises `SpecError`.

        >>> Limits.make(cpu=0.5, memory="256M").memory
        268435456
        """
        limits = cls(
            None if cpu is None else parse_cpu(cpu),
            None if cpu_weight is None else parse_int(cpu_weight, field="cpu_weight", least=1, most=10000),
            None if cpuset is None else parse_cpuset(cpuset),
            None if memory is None else parse_size(memory, field="memory", least=_LEAST_MEMORY),
            parse_size(swap, field="swap", least=0),
            pids if pids == 1024 and type(pids) is int else checks.pids(pids),
            ()
            if io is _NOTHING
            else checks.sequence(io, "io", IoLimit, 'a list of IoLimit("/dev/vda", ...)'),
            {} if hugetlb is None else checks.hugetlb(hugetlb),
        )
        if limits.swap and limits.memory is None:
            raise SpecError("swap", swap, "0 where no memory limit is given: swap comes on top of memory")
        return limits

    def changed(self, **changes: Any) -> Limits:
        """Return these limits with some replaced, given as to `make`. Raises `SpecError`.

        >>> Limits(cpu=1.0).changed(memory="1G").cpu
        1.0
        """
        unknown = changes.keys() - set(_LIMIT_NAMES)
        if unknown:
            raise SpecError("update", min(unknown), f"one of {', '.join(_LIMIT_NAMES)}")
        merged: dict[str, Any] = {name: changes.get(name, getattr(self, name)) for name in _LIMIT_NAMES}
        return Limits.make(**merged)


@frozen
class Mount:
    """Something that appears at `target` in a container. Made with `bind`, `volume`, `tmpfs` or `parse`."""

    kind: Literal["bind", "tmpfs", "volume"]
    source: str | None
    target: str
    read_only: bool = False
    size: int | None = None

    @classmethod
    def bind(cls, source: Path, target: Path, read_only: bool = False) -> Mount:
        """Show a file or directory of the host in the container.

        A relative ``source`` is taken from the current directory; ``target`` is absolute.

        >>> Mount.bind("/srv/data", "/data", read_only=True).target
        '/data'
        """
        path = checks.text(source, "mounts.source", "a path on the host, such as Path('data')")
        checks.flag(read_only, "mounts.read_only")
        return cls("bind", os.path.abspath(path), checks.target(target), read_only)

    @classmethod
    def volume(cls, name: str | None, target: Path, read_only: bool = False) -> Mount:
        """Show the volume ``name`` of this user (see `isobox.Volume`), which is made where it is missing.

        It outlives the container, and several may use it at once. An empty one that nobody uses gets what
        the image has at ``target``. None: a place of the container's own, with the image's content, which
        is writable even where the root file system is not, and gone with the container.

        >>> Mount.volume("web-data", "/data").source
        'web-data'
        """
        checks.flag(read_only, "mounts.read_only")
        if name is None and read_only:
            raise SpecError(
                "mounts.read_only", read_only, "False where the volume has no name: nobody fills it"
            )
        source = None if name is None else checks.volume(name, "mounts.source")
        return cls("volume", source, checks.target(target), read_only)

    @classmethod
    def tmpfs(cls, target: Path, size: Size | None = None) -> Mount:
        """Put an empty file system in memory at ``target``, of at most ``size`` bytes.

        And of one file for each 4 KiB of them, at least 1024. Without ``size``: half the machine's memory.

        >>> Mount.tmpfs("/scratch", "64M").size
        67108864
        """
        limit = None if size is None else parse_size(size, field="mounts.size", least=_LEAST_MEMORY)
        return cls("tmpfs", None, checks.target(target), False, limit)

    @classmethod
    def parse(cls, text: str) -> Mount:
        """Read ``"source:target"``, ``"source:target:ro"``, ``"source:target:rw"`` or ``"/target"``.

        A source that begins with ``/``, ``./`` or ``../`` is a path, any other the name of a volume, and
        without a source it is a volume of the container's own.

        >>> Mount.parse("/srv/data:/data:ro").read_only
        True
        >>> Mount.parse("web-data:/data").kind
        'volume'
        """
        expected = 'text such as "/srv/data:/data", "./data:/data:ro" or "volume:/data"'
        if not isinstance(text, str):
            raise SpecError("mounts", text, expected)
        parts = text.split(":")
        if len(parts) == 1 and text.startswith("/"):
            return cls.volume(None, text)
        if len(parts) not in (2, 3) or parts[2:] not in ([], ["ro"], ["rw"]):
            raise SpecError("mounts", text, expected)
        source, target = parts[:2]
        if not source:
            raise SpecError("mounts", text, expected)
        if source not in (".", "..") and not source.startswith(("/", "./", "../")):
            return cls.volume(source, target, parts[2:] == ["ro"])
        return cls.bind(source, target, parts[2:] == ["ro"])


@frozen(slots=False)
class ContainerSpec:
    """What a container is to be. Made with `make`, which checks everything."""

    image: str = "host"
    name: str | None = None
    hostname: str | None = None
    labels: dict[str, str] = Factory(dict)
    limits: Limits = Limits()
    disk: int | None = None
    rlimits: dict[str, tuple[int, int]] = Factory(dict)
    network: Literal["none", "host"] = "none"
    mounts: tuple[Mount, ...] = ()
    env: dict[str, str] = Factory(dict)
    workdir: str | None = None
    user: str | None = None
    read_only: bool = False
    upper: Literal["memory", "disk"] = "memory"
    userns: Literal["auto", "host"] = "auto"
    cap_add: frozenset[str] = frozenset()
    cap_drop: frozenset[str] = frozenset()
    seccomp: str | dict[str, Any] | None = "default"
    landlock: Landlock | Literal["default"] | None = "default"
    devices: tuple[str, ...] = ()
    namespaces: dict[str, Namespace] = Factory(NAMESPACES.copy)

    @classmethod
    def make(
        cls,
        image: Path = "host",
        *,
        name: str | None = None,
        hostname: str | None = None,
        labels: Mapping[str, str] | None = None,
        cpu: float | str | None = None,
        cpu_weight: int | None = None,
        cpuset: str | Iterable[int] | None = None,
        memory: Size | None = None,
        swap: Size = 0,
        pids: int | None = 1024,
        io: Iterable[IoLimit] = (),
        hugetlb: Mapping[Size, Size] | None = None,
        disk: Size | None = None,
        rlimits: Mapping[str, int | str | tuple[int | str, int | str]] | None = None,
        network: Literal["none", "host"] = "none",
        mounts: Iterable[Mount | str] = (),
        env: Mapping[str, str] | None = None,
        workdir: Path | None = None,
        user: str | int | None = None,
        read_only: bool = False,
        upper: Literal["memory", "disk"] = "memory",
        userns: Literal["auto", "host"] = "auto",
        cap_add: Iterable[str] = (),
        cap_drop: Iterable[str] = (),
        seccomp: Path | Mapping[str, Any] | None = "default",
        landlock: Landlock | Literal["default"] | None = "default",
        devices: Iterable[Path] = (),
        namespaces: Mapping[str, Namespace] | None = None,
    ) -> ContainerSpec:
        """Check and convert the options of a container. Raises `SpecError`.

        >>> spec = ContainerSpec.make("host", cpu=0.5, memory="256M", mounts=["/srv/data:/data:ro"])
        >>> spec.mounts[0].read_only
        True
        """
        return cls(
            image if image == "host" else checks.image(image),
            None if name is None else checks.name(name),
            None if hostname is None else checks.hostname(hostname),
            {} if labels is None else checks.strings(labels, "labels"),
            Limits.make(
                cpu=cpu,
                cpu_weight=cpu_weight,
                cpuset=cpuset,
                memory=memory,
                swap=swap,
                pids=pids,
                io=io,
                hugetlb=hugetlb,
            ),
            None if disk is None else parse_size(disk, field="disk", least=_LEAST_MEMORY),
            {} if rlimits is None else checks.rlimits(rlimits),
            checks.choice(network, "network", ("none", "host")),
            () if mounts is _NOTHING else _mounts(mounts),
            {} if env is None else checks.env(env),
            None if workdir is None else checks.workdir(workdir),
            None if user is None else checks.user(user),
            checks.flag(read_only, "read_only"),
            checks.choice(upper, "upper", ("memory", "disk")),
            checks.choice(userns, "userns", ("auto", "host")),
            frozenset() if cap_add is _NOTHING else checks.capabilities(cap_add, "cap_add"),
            frozenset() if cap_drop is _NOTHING else checks.capabilities(cap_drop, "cap_drop"),
            seccomp if seccomp is None or seccomp == "default" else checks.seccomp(seccomp),
            check_landlock(landlock),
            () if devices is _NOTHING else checks.devices(devices),
            NAMESPACES.copy() if namespaces is None else checks.namespaces(namespaces),
        )

    def with_limits(self, **changes: Any) -> ContainerSpec:
        """Return this spec with some of its `limits` replaced, as `Limits.changed` takes them."""
        return evolve(self, limits=self.limits.changed(**changes))


@frozen(slots=False)  # one for every exec: half the time of a class with slots
class ExecSpec:
    """One program to run in a container. Made with `make`, which checks everything."""

    args: tuple[bytes, ...]
    env: dict[str, str] | None = None
    workdir: str | None = None
    user: str | None = None
    timeout: float | None = None
    cpu_time: float | None = None
    output_limit: int | None = 16 << 20
    memory: int | None = None
    pids: int | None = None
    tty: bool = False
    measure: bool = True
    text: bool = False
    encoding: str | None = None
    errors: str | None = None

    @classmethod
    def make(
        cls,
        args: Args,
        *,
        env: Mapping[str, str] | None = None,
        workdir: Path | None = None,
        user: str | int | None = None,
        timeout: Duration | None = None,
        cpu_time: Duration | None = None,
        output_limit: Size | None = DEFAULT_OUTPUT_LIMIT,
        memory: Size | None = None,
        pids: int | None = None,
        tty: bool = False,
        measure: bool = True,
        text: bool | None = False,
        encoding: str | None = None,
        errors: str | None = None,
    ) -> ExecSpec:
        """Check and convert the options of an exec. Raises `SpecError`.

        >>> ExecSpec.make(["echo", "hello"], timeout="30s").timeout
        30.0
        """
        # Each test below is for the ordinary case, which calls nothing: this runs for every exec.
        return cls(
            checks.args(args),
            None if env is None else checks.env(env),
            None if workdir is None else checks.workdir(workdir),
            None if user is None else checks.user(user),
            None if timeout is None else parse_duration(timeout, field="timeout"),
            None if cpu_time is None else parse_duration(cpu_time, field="cpu_time"),
            16 << 20
            if output_limit is DEFAULT_OUTPUT_LIMIT
            else (None if output_limit is None else parse_size(output_limit, field="output_limit", least=0)),
            None if memory is None else parse_size(memory, field="memory", least=_LEAST_MEMORY),
            None if pids is None else checks.pids(pids),
            tty if tty is False or tty is True else checks.flag(tty, "tty"),
            measure if measure is True or measure is False else checks.flag(measure, "measure"),
            text is True
            if encoding is None and errors is None and (text is False or text is True or text is None)
            else checks.text_mode(text, encoding, errors),
            encoding,
            errors,
        )


def _mounts(value: object) -> tuple[Mount, ...]:
    expected = 'a list such as ["/srv/data:/data:ro", Mount.tmpfs("/scratch")]'
    given = checks.sequence(value, "mounts", object, expected)
    mounts = []
    for item in given:
        if isinstance(item, str):
            mounts.append(Mount.parse(item))
        elif isinstance(item, Mount):
            mounts.append(item)
        else:
            raise SpecError("mounts", item, expected)
    targets = [mount.target for mount in mounts]
    for target in targets:
        if targets.count(target) > 1:
            raise SpecError("mounts", target, "each target once")
    return tuple(mounts)
