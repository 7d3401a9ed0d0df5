"""Checks of single options: each returns the value in the one form that a spec keeps.

Each raises `SpecError` with the option's name and what would be right. No I/O.
"""

# ruff: noqa: D103  -- each is named for the option that it checks
from __future__ import annotations

import codecs
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from .errors import SpecError
from .units import parse_int, parse_size

Namespace: TypeAlias = Literal["private", "host"]

UNLIMITED: Final = -1
"""An rlimit without a bound, as in `resource.RLIM_INFINITY`."""

RLIMITS: Final = (
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
).split()
_RLIMITS_IN_BYTES: Final = frozenset({"as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"})
NAMESPACES: Final[dict[str, Namespace]] = {
    "pid": "private",
    "ipc": "private",
    "uts": "private",
    "cgroup": "private",
    "time": "host",
}

_MOST_PIDS: Final = 4_194_304  # the kernel's PID_MAX_LIMIT
_LEAST_HUGE_PAGE: Final = 8192  # twice the least page of any machine
_LARGEST_ID: Final = 2**32 - 2  # the last id is the kernel's "none"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_VOLUME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?", re.ASCII)
_USER: Final = re.compile(r"[^\s:\0/-][^\s:\0/]*(?::[^\s:\0/-][^\s:\0/]*)?")
_CAPABILITY: Final = re.compile(r"[A-Z][A-Z_]*[A-Z]", re.ASCII)
_ENCODING: Final = sys.getfilesystemencoding()
_ENCODING_ERRORS: Final = sys.getfilesystemencodeerrors()


def args(args: object) -> tuple[bytes, ...]:
    if type(args) is list or type(args) is tuple:
        # One join and one split for all of them: several times faster than os.fsencode on each.
        try:
            encoded = "\0".join(args).encode(_ENCODING, _ENCODING_ERRORS).split(b"\0")
        except (TypeError, UnicodeEncodeError):
            pass  # bytes, path-like, or wrong: one by one
        else:
            if len(encoded) == len(args) and encoded[0]:
                return tuple(encoded)
    expected = 'a program and its arguments, such as ["sh", "-c", "echo hello"]'
    if isinstance(args, str):
        raise SpecError("args", args, f"a list, not a string: {args.split() or ['sh', '-c', '...']!r}")
    if isinstance(args, (bytes, os.PathLike)) or not isinstance(args, Sequence):
        raise SpecError("args", args, expected)
    if not args:
        raise SpecError("args", args, f"{expected}; it is empty")
    result = []
    for index, arg in enumerate(args):
        field = f"args[{index}]"
        if not isinstance(arg, (str, bytes, os.PathLike)):
            raise SpecError(field, arg, f"str, bytes or path-like, such as {str(arg)!r}")
        try:
            data = os.fsencode(arg)
        except UnicodeEncodeError:
            raise SpecError(field, arg, f"text that can be encoded as {_ENCODING}") from None
        if b"\0" in data:
            raise SpecError(field, arg, "text without a NUL character: the kernel ends an argument there")
        result.append(data)
    if not result[0]:
        raise SpecError("args[0]", args[0], "the name or path of a program")
    return tuple(result)


def text(value: object, field: str, expected: str) -> str:
    """Return text of a str or path-like that is neither empty nor unfit for the kernel."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value:
        raise SpecError(field, value, expected)
    encodable(value, field)
    return value


def image(value: object) -> str:
    """Return the name of an image, or a path that `is_path` knows: a path-like is never a name."""
    expected = 'an image such as "debian:12", the path of a root folder or tar such as "./rootfs", or "host"'
    found = text(value, "image", expected)
    return f"./{found}" if isinstance(value, os.PathLike) and not is_path(found) else found


def is_path(image: str) -> bool:
    """Whether this is written as a path; else it is "host" or the name of an image.

    >>> is_path("./rootfs"), is_path("debian:12")
    (True, False)
    """
    return image.startswith(("/", "./", "../")) or image in (".", "..")


def encodable(value: str, field: str) -> None:
    if "\0" in value:
        raise SpecError(field, value, "text without a NUL character")
    try:
        value.encode(_ENCODING, _ENCODING_ERRORS)
    except UnicodeEncodeError:
        raise SpecError(field, value, f"text that can be encoded as {_ENCODING}") from None


def flag(value: object, field: str) -> bool:
    if isinstance(value, bool):
        return value
    raise SpecError(field, value, "True or False")


def choice(value: Any, field: str, choices: tuple[str, ...]) -> Any:
    if isinstance(value, str) and value in choices:
        return value
    raise SpecError(field, value, " or ".join(repr(choice) for choice in choices))


def sequence(value: object, field: str, kind: type, expected: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, os.PathLike, Mapping)) or not isinstance(value, Iterable):
        raise SpecError(field, value, expected)
    items = tuple(value)
    for item in items:
        if not isinstance(item, kind):
            raise SpecError(field, item, expected)
    return items


def strings(value: object, field: str) -> dict[str, str]:
    expected = 'a mapping of str to str, such as {"NAME": "value"}'
    if not isinstance(value, Mapping):
        raise SpecError(field, value, expected)
    result: dict[str, str] = {}
    for key, item in value.items():
        if not isinstance(key, str) or not key:
            raise SpecError(field, key, expected)
        if not isinstance(item, str):
            raise SpecError(f"{field}[{key!r}]", item, f"a str, such as {str(item)!r}")
        encodable(key, field)
        encodable(item, f"{field}[{key!r}]")
        result[key] = item
    return result


def env(value: object) -> dict[str, str]:
    env = strings(value, "env")
    for key in env:
        if "=" in key:
            raise SpecError("env", key, "a name without '='")
    return env


def path_inside(value: object, field: str) -> str:
    path = text(value, field, 'an absolute path in the container, such as "/data"')
    if not path.startswith("/") or ".." in path.split("/"):
        raise SpecError(field, path, 'an absolute path in the container without "..", such as "/data"')
    return "/" + posixpath.normpath(path).lstrip("/")  # normpath keeps a leading "//"


def workdir(value: object) -> str:
    path = text(value, "workdir", 'an absolute path in the container, such as "/work"')
    if not path.startswith("/"):
        raise SpecError("workdir", path, 'an absolute path in the container, such as "/work"')
    return path


def target(value: object) -> str:
    target = path_inside(value, "mounts.target")
    if target == "/":
        raise SpecError("mounts.target", target, 'a path below "/"; for the root itself, give it as image')
    return target


def pids(value: object) -> int | None:
    if value is None:
        return None
    expected = f"a number of processes from 1 to {_MOST_PIDS}; None for no limit"
    return parse_int(value, field="pids", least=1, most=_MOST_PIDS, expected=expected)


def name(value: object) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise SpecError("name", value, "up to 63 letters, digits, '_', '.', '-', a letter or digit first")


def volume(value: object, field: str = "name") -> str:
    if isinstance(value, str) and _VOLUME.fullmatch(value):
        return value
    path = ", or a path that begins with / or ./" if field == "mounts.source" else ""
    expected = f"the name of a volume (letters, digits, '_', '.', '-', a letter or digit first){path}"
    raise SpecError(field, value, expected)


def hostname(value: object) -> str:
    if isinstance(value, str) and _HOSTNAME.fullmatch(value):
        return value
    raise SpecError("hostname", value, "up to 64 letters, digits, '.' and '-'")


def user(value: object) -> str:
    expected = '"name", "uid", "uid:gid" or an int, such as "nobody", "1000:1000" or 1000'
    if isinstance(value, str):
        if not _USER.fullmatch(value):
            raise SpecError("user", value, expected)
        encodable(value, "user")
        for part in value.split(":"):
            if part.isascii() and part.isdigit() and not (len(part) < 11 and int(part) <= _LARGEST_ID):
                raise SpecError("user", value, f"an id of at most {_LARGEST_ID}")
        return value
    return str(parse_int(value, field="user", least=0, most=_LARGEST_ID, expected=expected))


def hugetlb(value: object) -> dict[int, int]:
    expected = 'a mapping of page sizes to bytes, such as {"2M": "64M"}'
    if not isinstance(value, Mapping):
        raise SpecError("hugetlb", value, expected)
    result: dict[int, int] = {}
    for page, limit in value.items():
        size = parse_size(page, field="hugetlb")
        if size & (size - 1) or size < _LEAST_HUGE_PAGE:
            raise SpecError("hugetlb", page, 'the size of a huge page, such as "2M" or "1G"')
        if size in result:
            raise SpecError("hugetlb", page, "each size once")
        result[size] = parse_size(limit, field=f"hugetlb[{page!r}]", least=0)
    return result


def rlimits(value: object) -> dict[str, tuple[int, int]]:
    if not isinstance(value, Mapping):
        raise SpecError("rlimits", value, 'a mapping such as {"nofile": 1024, "core": (0, 0)}')
    result: dict[str, tuple[int, int]] = {}
    for name, limit in value.items():
        if name not in RLIMITS:
            raise SpecError("rlimits", name, f"one of {', '.join(RLIMITS)}")
        field = f"rlimits[{name!r}]"
        pair = tuple(limit) if isinstance(limit, (tuple, list)) else (limit, limit)
        if len(pair) != 2:
            raise SpecError(field, limit, "a number or (soft, hard)")
        soft, hard = (rlimit(part, name, field) for part in pair)
        if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
            raise SpecError(field, limit, "(soft, hard) with soft not above hard")
        result[name] = (soft, hard)
    return result


def rlimit(value: object, name: str, field: str) -> int:
    if value == "unlimited" or (value == UNLIMITED and type(value) is int):
        return UNLIMITED
    if isinstance(value, str) and name in _RLIMITS_IN_BYTES:
        return parse_size(value, field=field, least=0)
    expected = 'a number from 0 upwards, (soft, hard) or "unlimited"'
    return parse_int(value, field=field, least=0, most=2**63 - 1, expected=expected)


def capabilities(value: object, field: str) -> frozenset[str]:
    """Return names in one form; whether the kernel knows them is for `security` to say."""
    expected = 'a list of capabilities, such as ["NET_ADMIN", "CAP_SYS_PTRACE"] or ["ALL"]'
    names = set()
    for item in sequence(value, field, str, expected):
        name = item.upper().removeprefix("CAP_")
        if not _CAPABILITY.fullmatch(name):
            raise SpecError(field, item, expected)
        names.add(name if name == "ALL" else f"CAP_{name}")
    return frozenset(names)


def seccomp(value: object) -> str | dict[str, Any]:
    expected = '"default", None for no filter, the path of a JSON profile, or such a profile as a dict'
    if isinstance(value, Mapping):
        return dict(value)
    if value == "unconfined":
        raise SpecError("seccomp", value, expected)
    return text(value, "seccomp", expected)


def devices(value: object) -> tuple[str, ...]:
    expected = 'a list of device nodes below /dev, such as ["/dev/fuse"]'
    devices = []
    for item in sequence(value, "devices", object, expected):
        path = path_inside(item, "devices")
        if not path.startswith("/dev/"):
            raise SpecError("devices", item, expected)
        devices.append(path)
    return tuple(dict.fromkeys(devices))


def namespaces(value: object) -> dict[str, Namespace]:
    if not isinstance(value, Mapping):
        raise SpecError("namespaces", value, 'a mapping such as {"ipc": "host"}')
    result = NAMESPACES.copy()
    for name, kind in value.items():
        if name not in NAMESPACES:
            raise SpecError(
                "namespaces",
                name,
                f"one of {', '.join(NAMESPACES)}; the network has its own option, and so has userns",
            )
        result[name] = choice(kind, f"namespaces[{name!r}]", ("private", "host"))
    return result


def text_mode(text: object, encoding: object, errors: object) -> bool:
    """Check the three options about text; as in `subprocess`, an encoding alone means text."""
    wanted = False if text is None else flag(text, "text")
    _codec(encoding, "encoding", codecs.lookup, 'a text encoding, such as "utf-8"')
    _codec(errors, "errors", codecs.lookup_error, 'an error handler, such as "replace"')
    return wanted or encoding is not None or errors is not None


def _codec(value: object, field: str, lookup: Callable[[str], object], expected: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise SpecError(field, value, expected)
    try:
        found = lookup(value)
    except (LookupError, ValueError):
        raise SpecError(field, value, expected) from None
    if field == "encoding" and not getattr(found, "_is_text_encoding", True):
        raise SpecError(field, value, expected)
