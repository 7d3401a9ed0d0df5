"""Linux capabilities: their names, Docker's default set, and what a container gets.

>>> hex(effective(cap_add=(), cap_drop=("ALL",)))
'0x0'
>>> names(effective(cap_add=("CAP_NET_BIND_SERVICE",), cap_drop=("ALL",)))
('CAP_NET_BIND_SERVICE',)
"""

from __future__ import annotations

from collections.abc import Iterable

from isobox.errors import SpecError

_IN_ORDER = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

BITS: dict[str, int] = {name: bit for bit, name in enumerate(_IN_ORDER)}
"""Name to bit number, as in linux/capability.h."""

ALL: int = (1 << len(_IN_ORDER)) - 1
"""Every capability known here. A kernel that knows fewer ignores the rest."""

DEFAULT_NAMES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""What Docker gives a container, and so what programs in images expect to have."""

DEFAULT: int = sum(1 << BITS[name] for name in DEFAULT_NAMES)


def effective(cap_add: Iterable[str], cap_drop: Iterable[str]) -> int:
    """The container's bounding, permitted and effective set as a 64-bit mask.

    `cap_add` and `cap_drop` take names with or without ``CAP_``, in either case, and ``ALL``.
    It starts from Docker's default set (from nothing if ``ALL`` is dropped, from everything if
    ``ALL`` is added). Raises SpecError for a name that doesn't exist, and for a request that
    contradicts itself: one engine lets the addition win, another the removal, so neither is a
    safe guess.
    """
    add, add_all = _parse("cap_add", cap_add)
    drop, drop_all = _parse("cap_drop", cap_drop)
    if add_all and drop_all:
        raise SpecError("cap_add", "ALL", "'ALL' in cap_add or in cap_drop, not in both")
    both = add & drop
    if both:
        raise SpecError("cap_add", names(both)[0], "a capability that cap_drop does not name too")
    if drop_all:
        return add
    return ((ALL if add_all else DEFAULT) | add) & ~drop


def names(mask: int) -> tuple[str, ...]:
    """The capabilities in `mask`, by bit number. Bits that have no name yet are left out."""
    return tuple(name for bit, name in enumerate(_IN_ORDER) if mask >> bit & 1)


def _parse(field: str, given: Iterable[str]) -> tuple[int, bool]:
    if isinstance(given, str):
        raise SpecError(field, given, f"a sequence of names, such as {field}=[{given!r}]")
    mask = 0
    everything = False
    for item in given:
        if not isinstance(item, str):
            raise SpecError(field, item, "the name of a capability, such as 'NET_RAW'")
        name = item.strip().upper()
        if name in ("ALL", "CAP_ALL"):
            everything = True
            continue
        if not name.startswith("CAP_"):
            name = "CAP_" + name
        bit = BITS.get(name)
        if bit is None:
            raise SpecError(field, item, _did_you_mean(name))
        mask |= 1 << bit
    return mask, everything


def _did_you_mean(name: str) -> str:
    import difflib  # only on the way to an error

    short = [known.removeprefix("CAP_") for known in _IN_ORDER]
    close = difflib.get_close_matches(name.removeprefix("CAP_"), short, n=3, cutoff=0.5)
    if close:
        return "a capability such as " + " or ".join("CAP_" + known for known in close)
    return "a capability of capabilities(7) such as CAP_NET_RAW, or ALL"
