"""Landlock's rules as the kernel takes them: masks and numbers, made from what was asked.

Many kernels' Landlock does not see TCP connections that are made with MSG_FASTOPEN, by Multipath TCP or by
SMC. So where ports are restricted, a small seccomp filter (`port_filter`) refuses these ways.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from functools import cache
from typing import Final, Literal, NamedTuple, TypeVar

from isobox.errors import UnsupportedError
from isobox.landlock import Landlock

# include/uapi/linux/landlock.h
EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_AND_MAKE: Final = 0x1FF << 4  # REMOVE_DIR and _FILE; MAKE_CHAR, _DIR, _REG, _SOCK, _FIFO, _BLOCK, _SYM
REFER: Final = 1 << 13
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15
BIND_TCP: Final = 1 << 0
CONNECT_TCP: Final = 1 << 1
SCOPES: Final = {"abstract-unix": 1 << 0, "signal": 1 << 1}

_PATHS: Final = {
    "read": READ_FILE | READ_DIR,
    "write": WRITE_FILE | REMOVE_AND_MAKE | REFER | TRUNCATE,
    "execute": EXECUTE,
    "ioctl_dev": IOCTL_DEV,
}
_PORTS: Final = {"connect_tcp": CONNECT_TCP, "bind_tcp": BIND_TCP}

# The ABI that has all of it, since which Linux, and what it is. Paths: with TRUNCATE, for want of which a
# file that may not be written could be emptied.
_NEEDS: Final = {
    **dict.fromkeys(("read", "write", "execute"), (3, "6.2", "rules for paths")),
    **dict.fromkeys(_PORTS, (4, "6.7", "rules for TCP ports")),
    "ioctl_dev": (5, "6.10", "rules for ioctl on devices"),
    "scope": (6, "6.12", "scopes"),
}
ABI_OF_SCOPES: Final = 6

_Listed = TypeVar("_Listed", str, int)


class Ruleset(NamedTuple):
    """What landlock_create_ruleset and landlock_add_rule take. `paths` and `ports`: with what is allowed."""

    fs: int
    net: int
    scoped: int
    paths: tuple[tuple[str, int], ...]
    ports: tuple[tuple[int, int], ...]


def ruleset(landlock: Landlock | Literal["default"] | None, abi: int) -> Ruleset | None:
    """Return the rules of each program; None where there are none. `abi`: the kernel's, 0 without Landlock.

    Raises `UnsupportedError` for what this kernel can't enforce.

    >>> ruleset(Landlock(connect_tcp=[443]), 7).ports
    ((443, 2),)
    """
    if not isinstance(landlock, Landlock):
        return None
    _check(landlock, abi)
    paths: dict[str, int]
    fs, paths = _gather((access, getattr(landlock, name)) for name, access in _PATHS.items())
    if fs and not fs & REFER:
        # Wherever paths are restricted at all, renaming to another directory has to be allowed expressly.
        fs |= REFER
        paths["/"] = paths.get("/", 0) | REFER
    ports: dict[int, int]
    net, ports = _gather((access, getattr(landlock, name)) for name, access in _PORTS.items())
    scoped = sum(SCOPES[name] for name in landlock.scope or ())
    if not fs | net | scoped:
        return None
    return Ruleset(fs, net, scoped, tuple(paths.items()), tuple(ports.items()))


def _gather(given: Iterable[tuple[int, Iterable[_Listed] | None]]) -> tuple[int, dict[_Listed, int]]:
    """From the rights and the list of each option: what is restricted, and what is allowed where."""
    restricted = 0
    rights: dict[_Listed, int] = {}
    for access, listed in given:
        if listed is not None:
            restricted |= access
            for one in listed:
                rights[one] = rights.get(one, 0) | access
    return restricted, rights


def refuse_proc(landlock: Landlock | Literal["default"] | None) -> None:
    """Raise `UnsupportedError` for paths in /proc, where each program has one of its own: without cgroups.

    It is mounted when the program starts, and a rule is for what was there when it was made.
    """
    for name in _PATHS if isinstance(landlock, Landlock) else ():
        given = getattr(landlock, name) or ()
        if "/" not in given and any(f"{path}/".startswith("/proc/") for path in given):
            raise UnsupportedError(
                f"landlock.{name} with paths in /proc",
                "without cgroups each program has a /proc of its own, which no rule knows beforehand",
                "let this user have cgroups ('isobox doctor' says how), or list \"/\"",
            )


def container_scope(landlock: Landlock | Literal["default"] | None, network: str, abi: int) -> int:
    """Return LANDLOCK_SCOPE_* for all of a container together: the host's abstract sockets are out of reach.

    Where the kernel has it, and unless it is switched off; without the host's network there are none.
    """
    off = landlock is None or (isinstance(landlock, Landlock) and landlock.scope is not None)
    return 0 if off or network != "host" or abi < ABI_OF_SCOPES else SCOPES["abstract-unix"]


def allowed(access: int) -> str:
    """Return the options, of those for paths, that give these rights.

    >>> allowed(READ_FILE | READ_DIR | EXECUTE)
    'read, execute'
    """
    return ", ".join(name for name, mask in _PATHS.items() if access & mask == mask) or "refer"


def _check(landlock: Landlock, abi: int) -> None:
    asked = [name for name in _NEEDS if getattr(landlock, name) is not None]
    if landlock.scope == ():
        asked.remove("scope")
    name = max(asked, key=lambda name: _NEEDS[name][0], default="")
    if not name or abi >= _NEEDS[name][0]:
        return
    needed, version, what = _NEEDS[name]
    release = os.uname().release
    if abi:
        why = f"{what} need Linux {version} (Landlock ABI {needed}); this is {release}, with ABI {abi}"
    else:
        why = (
            f"{what} need Linux {version}, and this kernel, {release}, does not offer Landlock: it is "
            "too old, built or started without it, or a seccomp filter around this program forbids it"
        )
    remedy = (
        f"boot Linux {version} or newer with landlock among the modules of its option lsm=, "
        f"or leave out landlock.{name}"
    )
    raise UnsupportedError(f"landlock.{name}", why, remedy)


# include/uapi/linux/bpf_common.h, seccomp.h and audit.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_AT_NUMBER, _AT_ARCH = 0, 4  # in struct seccomp_data; then the low half of argument n:
_AT_ARGUMENT = tuple(range(16, 64, 8))
_X32: Final = 0x40000000
# include/linux/socket.h, include/uapi/linux/in.h
_AF_SMC, _IPPROTO_SMC, _IPPROTO_MPTCP, _MSG_FASTOPEN = 43, 256, 262, 0x20000000
_IO_URING_SETUP: Final = 425
# The machine's number for audit; those of socket, sendto, sendmsg, sendmmsg.
_MACHINES: Final = {
    "x86_64": (0xC000003E, 41, 44, 46, 307),
    "aarch64": (0xC00000B7, 198, 206, 211, 269),
}


@cache
def port_filter(machine: str) -> bytes:
    """Return the ``struct sock_filter[]`` that refuses the ways to TCP which Landlock does not see.

    io_uring makes calls that no filter sees, and the arguments of 32-bit programs can't be looked at: both
    get ENOSYS. The others are refused as by a kernel that is built without them.

    >>> len(port_filter("x86_64")) % 8
    0
    """
    arch, socket, sendto, sendmsg, sendmmsg = _MACHINES[machine]
    # (code, number, where to go if so, where if not); "" is the next one, and labels are lines of their own.
    lines: list[str | tuple[int, int, str, str]] = [
        (_LOAD, _AT_ARCH, "", ""),
        (_EQUAL, arch, "", "unseen"),
        (_LOAD, _AT_NUMBER, "", ""),
        (_AT_LEAST, _X32, "unseen", ""),
        (_EQUAL, _IO_URING_SETUP, "unseen", ""),
        (_EQUAL, socket, "socket", ""),
        (_EQUAL, sendto, "flags third", ""),
        (_EQUAL, sendmmsg, "flags third", ""),
        (_EQUAL, sendmsg, "", "allow"),
        (_LOAD, _AT_ARGUMENT[2], "", ""),
        (_ANY_BIT, _MSG_FASTOPEN, "no flag", "allow"),
        "flags third",
        (_LOAD, _AT_ARGUMENT[3], "", ""),
        (_ANY_BIT, _MSG_FASTOPEN, "no flag", "allow"),
        "socket",
        (_LOAD, _AT_ARGUMENT[0], "", ""),
        (_EQUAL, _AF_SMC, "no protocol", ""),
        (_LOAD, _AT_ARGUMENT[2], "", ""),
        (_EQUAL, _IPPROTO_MPTCP, "no protocol", ""),
        (_EQUAL, _IPPROTO_SMC, "no protocol", "allow"),
        "allow",
        (_RETURN, _ALLOW, "", ""),
        "no protocol",
        (_RETURN, _ERRNO | errno.EPROTONOSUPPORT, "", ""),
        "no flag",
        (_RETURN, _ERRNO | errno.EOPNOTSUPP, "", ""),
        "unseen",
        (_RETURN, _ERRNO | errno.ENOSYS, "", ""),
    ]
    places: dict[str, int] = {}
    steps: list[tuple[int, int, str, str]] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(steps)
        else:
            steps.append(line)
    code = b""
    for number, (operation, value, yes, no) in enumerate(steps, 1):
        jumps = [places[label] - number if label else 0 for label in (yes, no)]
        code += struct.pack("=HBBI", operation, *jumps, value)
    return code
