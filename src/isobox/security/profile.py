"""Reads a seccomp profile of Docker's JSON format into the rules that hold for one container.

The format: moby's ``profiles/seccomp`` and, for the parts that it shares, OCI's runtime-spec
(``linux.seccomp``). A profile names what it allows or denies depending on capabilities, kernel
and architecture; here those conditions are decided and what is left is a flat list.
"""

from __future__ import annotations

import errno
import re
from typing import Any

from attrs import frozen

from isobox.errors import SpecError
from isobox.security import capabilities

ERRNO = 0x00050000
KILL_PROCESS = 0x80000000
TRACE = 0x7FF00000
ALLOW = 0x7FFF0000
LOG = 0x7FFC0000

# linux/seccomp.h. KILL ends one thread only, which leaves a program in a state that nobody
# planned for; it is kept since profiles that say so mean it.
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_ALLOW": ALLOW,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# Those that isobox may leave out: a program starts with one thread, and the other only takes a wall down.
_FLAGS = ("SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW")
# What Docker calls the machine (Go's names), and which other call tables it can run.
_MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64", frozenset({"x86", "x32"})),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64", frozenset({"arm"})),
}
_TOP_KEYS = frozenset(
    "defaultAction defaultErrnoRet defaultErrno archMap architectures syscalls flags comment "
    "listenerPath listenerMetadata".split()
)
_RULE_KEYS = frozenset("name names action errnoRet errno args comment includes excludes".split())
_EPERM = 1
_NUMBERS = {name: number for number, name in errno.errorcode.items()} | {"ENOTSUP": errno.ENOTSUP}
_U64 = 1 << 64


@frozen
class Comparison:
    """One condition on an argument; `operator` as libseccomp numbers them."""

    index: int
    operator: int
    value: int
    value_two: int


@frozen
class Rule:
    """`action` (kernel's value, errno included) for `names` when all of `comparisons` hold."""

    names: tuple[str, ...]
    action: int
    comparisons: tuple[Comparison, ...]


@frozen
class Profile:
    """What is left of a profile for one machine, kernel and set of capabilities."""

    default: int
    rules: tuple[Rule, ...]
    foreign: tuple[str, ...]
    """Other call tables that the profile opens, as libseccomp names them (``x86``, ``x32``)."""


def read(document: object, *, mask: int, machine: str, kernel: tuple[int, int]) -> Profile:
    """Decides every condition of a parsed profile. Raises SpecError that names what is wrong."""
    profile = _mapping(document, "seccomp")
    _known_keys(profile, _TOP_KEYS, "seccomp")
    if "defaultAction" not in profile:
        raise SpecError("seccomp.defaultAction", None, "an action such as 'SCMP_ACT_ERRNO'")
    default = _action(profile, "defaultAction", "defaultErrnoRet", "seccomp")
    if profile.get("listenerPath"):
        raise _no_notify("seccomp.listenerPath", profile["listenerPath"])
    for flag in _strings(profile.get("flags"), "seccomp.flags"):
        if flag not in _FLAGS:
            raise SpecError("seccomp.flags", flag, "none, or one of " + ", ".join(_FLAGS))
    rules = []
    held = frozenset(capabilities.names(mask))
    go_name = _MACHINES[machine][0] if machine in _MACHINES else machine
    for number, item in enumerate(_sequence(profile.get("syscalls"), "seccomp.syscalls")):
        where = f"seccomp.syscalls[{number}]"
        entry = _mapping(item, where)
        _known_keys(entry, _RULE_KEYS, where)
        rule = _rule(entry, where)
        if _applies(entry, where, held, go_name, kernel):
            rules.extend(_alternatives(rule))
    return Profile(default, tuple(rules), _foreign(profile, machine))


def _rule(entry: dict[str, Any], where: str) -> Rule:
    given = list(_strings(entry.get("names"), f"{where}.names"))
    if entry.get("name"):
        given.extend(_strings([entry["name"]], f"{where}.name"))
    if not given:
        raise SpecError(f"{where}.names", given, "at least one system call")
    action = _action(entry, "action", "errnoRet", where)
    comparisons = tuple(
        _comparison(item, f"{where}.args[{i}]")
        for i, item in enumerate(_sequence(entry.get("args"), f"{where}.args"))
    )
    return Rule(tuple(given), action, comparisons)


def _alternatives(rule: Rule) -> list[Rule]:
    # Two conditions on one argument can't be and-ed by libseccomp. The OCI runtimes then take
    # the conditions as alternatives, and profiles in the wild are written for that.
    indices = [c.index for c in rule.comparisons]
    if len(set(indices)) == len(indices):
        return [rule]
    return [Rule(rule.names, rule.action, (c,)) for c in rule.comparisons]


def _comparison(item: object, where: str) -> Comparison:
    entry = _mapping(item, where)
    _known_keys(entry, frozenset({"index", "value", "valueTwo", "op"}), where)
    operator = _OPERATORS.get(str(entry.get("op")))
    if operator is None:
        raise SpecError(f"{where}.op", entry.get("op"), "one of " + ", ".join(_OPERATORS))
    index = _integer(entry.get("index", 0), f"{where}.index", 6)
    value = _integer(entry.get("value", 0), f"{where}.value", _U64)
    return Comparison(index, operator, value, _integer(entry.get("valueTwo") or 0, f"{where}.valueTwo", _U64))


def _action(entry: dict[str, Any], key: str, errno_key: str, where: str) -> int:
    name = entry.get(key)
    if name == "SCMP_ACT_NOTIFY":
        raise _no_notify(f"{where}.{key}", name)
    action = _ACTIONS.get(name) if isinstance(name, str) else None
    if action is None:
        raise SpecError(f"{where}.{key}", name, "one of " + ", ".join(_ACTIONS))
    if action in (ERRNO, TRACE):
        value = entry.get(errno_key)
        named = entry.get(errno_key.removesuffix("Ret"))  # containers/common writes the errno's name as well
        if named:
            value = _NUMBERS.get(named) if isinstance(named, str) else None
            if value is None:
                raise SpecError(f"{where}.{errno_key.removesuffix('Ret')}", named, "a name such as 'ENOSYS'")
        # 4095 is the largest that the kernel takes for an errno; it would cut down anything larger.
        action |= _EPERM if value is None else _integer(value, f"{where}.{errno_key}", 4096)
    return action


def _no_notify(field: str, value: object) -> SpecError:
    return SpecError(
        field,
        value,
        "an action that the kernel decides alone: isobox has no agent that would answer "
        "notifications; SCMP_ACT_ERRNO refuses the call instead",
    )


def _applies(
    entry: dict[str, Any], where: str, held: frozenset[str], machine: str, kernel: tuple[int, int]
) -> bool:
    includes = _condition(entry, "includes", where)
    excludes = _condition(entry, "excludes", where)
    if includes[0] and not includes[0] <= held:
        return False
    if excludes[0] & held:
        return False
    if includes[1] and machine not in includes[1]:
        return False
    if machine in excludes[1]:
        return False
    if includes[2] is not None and kernel < includes[2]:
        return False
    return excludes[2] is None or kernel < excludes[2]


def _condition(
    entry: dict[str, Any], key: str, where: str
) -> tuple[frozenset[str], frozenset[str], tuple[int, int] | None]:
    where = f"{where}.{key}"
    value = entry.get(key)
    condition = {} if value is None else _mapping(value, where)
    _known_keys(condition, frozenset({"caps", "arches", "minKernel"}), where)
    caps = frozenset(_strings(condition.get("caps"), f"{where}.caps"))
    arches = frozenset(_strings(condition.get("arches"), f"{where}.arches"))
    minimum = condition.get("minKernel")
    if not minimum:
        return caps, arches, None
    match = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", minimum) if isinstance(minimum, str) else None
    if match is None:
        raise SpecError(f"{where}.minKernel", minimum, "a kernel's version such as '4.8'")
    return caps, arches, (int(match[1]), int(match[2]))


def _foreign(profile: dict[str, Any], machine: str) -> tuple[str, ...]:
    """Only what the profile names itself: 32-bit and x32 calls are closed otherwise."""
    if machine not in _MACHINES:
        return ()
    _, native, possible = _MACHINES[machine]
    opened = list(_strings(profile.get("architectures"), "seccomp.architectures"))
    for number, item in enumerate(_sequence(profile.get("archMap"), "seccomp.archMap")):
        where = f"seccomp.archMap[{number}]"
        entry = _mapping(item, where)
        below = _strings(entry.get("subArchitectures"), f"{where}.subArchitectures")
        if entry.get("architecture") == native:
            opened.extend(below)
    short = {name.removeprefix("SCMP_ARCH_").lower() for name in opened}
    return tuple(sorted(short & possible))


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(where, value, "a JSON object")
    return value


def _sequence(value: object, where: str) -> list[Any] | tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise SpecError(where, value, "a JSON array")
    return value


def _strings(value: object, where: str) -> tuple[str, ...]:
    items = _sequence(value, where)
    for item in items:
        if not isinstance(item, str) or not item or "\0" in item:
            raise SpecError(where, item, "names as strings")
    return tuple(items)


def _integer(value: object, where: str, bound: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < bound:
        raise SpecError(where, value, f"a whole number from 0 to {bound - 1}")
    return value


def _known_keys(entry: dict[str, Any], known: frozenset[str], where: str) -> None:
    # A misspelt key would weaken the filter in silence.
    for key in entry:
        if key not in known:
            raise SpecError(where, key, "only the keys " + ", ".join(sorted(known)))
