"""Builds BPF with libseccomp, which is loaded only when a profile really has to be compiled.

The library is opened at run time (cffi, ABI mode), so installing isobox needs neither its headers
nor it. Loading it and parsing the declarations costs some 30 ms: `isobox.security.seccomp` keeps
the results so that this is paid once per profile and machine, not per process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import define, field

from isobox import forks
from isobox.errors import SpecError, UnsupportedError
from isobox.security.profile import ALLOW, ERRNO, KILL_PROCESS, LOG, TRACE, Comparison, Profile, Rule
from isobox.security.ranges import front

_DECLARATIONS = """
typedef void *scmp_filter_ctx;
struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a; uint64_t datum_b; };
scmp_filter_ctx seccomp_init(uint32_t def_action);
void seccomp_release(scmp_filter_ctx ctx);
uint32_t seccomp_arch_native(void);
uint32_t seccomp_arch_resolve_name(const char *arch_name);
int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
int seccomp_attr_set(scmp_filter_ctx ctx, int attr, uint32_t value);
int seccomp_syscall_resolve_name(const char *name);
int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall,
                           unsigned int arg_cnt, const struct scmp_arg_cmp *arg_array);
int seccomp_export_bpf(scmp_filter_ctx ctx, int fd);
"""
_ACT_BADARCH = 2
_CTL_OPTIMIZE = 8
_BINARY_TREE = 2

# Calls that the libraries in use may not know. Since Linux 5.1 a new call has the same number everywhere.
_NEWER = {
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "faccessat2": 439,
    "process_madvise": 440,
    "epoll_pwait2": 441,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "futex_waitv": 449,
    "set_mempolicy_home_node": 450,
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
    "listns": 470,
    "rseq_slice_yield": 471,
}
_NEWER_X86_64 = {"uretprobe": 335, "uprobe": 336}
_EEXIST = 17
_ENOSYS = 38
_X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64
_MAX_INSTRUCTIONS = 4096
_MOST_CONDITIONS = 256

_loaded: tuple[Any, Any] | None = None


def _library() -> tuple[Any, Any]:
    global _loaded
    if _loaded is None:
        from cffi import FFI

        ffi = FFI()
        ffi.cdef(_DECLARATIONS)
        try:
            _loaded = ffi, ffi.dlopen("libseccomp.so.2")
        except OSError as error:
            raise UnsupportedError(
                "seccomp",
                f"the profile has to be compiled and libseccomp can't be loaded ({error})",
                "apt-get install libseccomp2 (other distributions: libseccomp)",
            ) from None
    return _loaded


def build(profile: Profile) -> bytes:
    """The filter as an array of ``struct sock_filter``, 8 bytes each.

    Where several rules of one call hold, the strictest does, as among several filters in the kernel:
    an unconditional refusal beside any allowance, and a refusal with conditions beside an unconditional
    allowance. (Profiles in the wild do allow in a long list what they deny further down. libseccomp would
    let the first of two unconditional rules win, and would drop a condition beside one, in silence. Which
    of two rules with conditions wins is left to it.)
    """
    with forks.whole:  # libseccomp keeps state of its own: one thread at a time, and no fork meanwhile
        ffi, lib = _library()
        calls = _by_call(lib, profile)
        _check_size(calls.values(), 1 + len(profile.foreign))
        default = profile.default
        by_otherwise: dict[int, list[_Call]] = {default: []}
        for call in calls.values():
            if call.exceptions:
                by_otherwise.setdefault(call.otherwise(default), []).append(call)
        filters = {action: _filter(ffi, lib, action, group) for action, group in by_otherwise.items()}
        elsewhere = filters[default]
        if profile.foreign:
            elsewhere = _filter(ffi, lib, default, calls.values(), profile.foreign)
        ranges = list(_ranges(calls, default, filters))
        program = front(lib.seccomp_arch_native(), ranges, elsewhere)
    if len(program) // 8 > _MAX_INSTRUCTIONS:
        raise SpecError(
            "seccomp", f"{len(program) // 8} instructions", f"a profile of at most {_MAX_INSTRUCTIONS}"
        )
    return program


def _ranges(
    calls: dict[int, _Call], default: int, filters: dict[int, bytes]
) -> Iterator[tuple[int, int | bytes]]:
    """The native table: from which number on what holds."""
    highest = max((0, *calls))
    before: int | bytes | None = None
    for number in range(highest + 2):
        call = calls.get(number)
        verdict: int | bytes = default
        if number > highest:
            # A call newer than any that the profile names. Libraries fall back to the older call on ENOSYS,
            # but not on EPERM, so a profile written before a kernel would break programs built after it.
            verdict = ERRNO | _ENOSYS if _needs_enosys(default) else default
        elif call is not None:
            otherwise = call.otherwise(default)
            verdict = filters[otherwise] if call.exceptions else otherwise
        if verdict != before:
            yield number, verdict
        before = verdict


_UPGRADE = "install libseccomp 2.5 or newer"


def _filter(ffi: Any, lib: Any, otherwise: int, calls: Iterable[_Call], foreign: Iterable[str] = ()) -> bytes:
    """What decides `calls` by their arguments, and gives `otherwise` to all else."""
    context = lib.seccomp_init(otherwise)
    if context == ffi.NULL:
        raise UnsupportedError("seccomp", "libseccomp refuses the default action", _UPGRADE)
    try:
        # A call table that the profile doesn't open would go round every rule: end the process.
        _checked(
            lib.seccomp_attr_set(context, _ACT_BADARCH, KILL_PROCESS), "the action for other architectures"
        )
        _checked(lib.seccomp_attr_set(context, _CTL_OPTIMIZE, _BINARY_TREE), "filters as trees")
        for name in foreign:
            result = lib.seccomp_arch_add(context, lib.seccomp_arch_resolve_name(name.encode()))
            if result != -_EEXIST:
                _checked(result, f"the architecture {name}")
        for call in calls:
            for action, comparisons in _settled(call) if foreign else call.exceptions:
                if action != otherwise:  # libseccomp refuses what changes nothing
                    _add(ffi, lib, context, call, action, comparisons)
        return _export(lib, context)
    finally:
        lib.seccomp_release(context)


def _check_size(calls: Iterable[_Call], tables: int) -> None:
    """Raise SpecError for what libseccomp takes minutes over, or writes beyond its memory for."""
    conditions = [sum(len(comparisons) for _, comparisons in set(call.exceptions)) for call in calls]
    if max(conditions, default=0) > _MOST_CONDITIONS:
        raise SpecError(
            "seccomp", f"{max(conditions)} conditions", f"at most {_MOST_CONDITIONS} of one system call"
        )
    if sum(conditions) * tables > _MAX_INSTRUCTIONS:  # each is one at the least, in each table
        raise SpecError(
            "seccomp",
            f"{sum(conditions)} conditions",
            f"a profile of at most {_MAX_INSTRUCTIONS} instructions",
        )


@define
class _Call:
    name: str
    number: int
    always: int | None = None
    """The strictest action that some rule asks for without a condition."""
    sometimes: list[tuple[int, tuple[Comparison, ...]]] = field(factory=list)

    @property
    def exceptions(self) -> list[tuple[int, tuple[Comparison, ...]]]:
        """The rules with conditions, but for those that a rule without makes pointless."""
        always = self.always
        if always is None:
            return self.sometimes
        return [rule for rule in self.sometimes if _strictness(rule[0]) < _strictness(always)]

    def otherwise(self, default: int) -> int:
        """The action where no rule with conditions holds."""
        return default if self.always is None else self.always


def _by_call(lib: Any, profile: Profile) -> dict[int, _Call]:
    calls: dict[int, _Call] = {}
    for rule in profile.rules:
        for name in rule.names:
            number = _number(lib, name)
            if number is None:
                _skip_unknown(name, rule, profile.default)
                continue
            call = calls.setdefault(number, _Call(name, number))
            if rule.comparisons:
                call.sometimes.append((rule.action, rule.comparisons))
            elif call.always is None or _strictness(rule.action) < _strictness(call.always):
                call.always = rule.action
    return calls


def _number(lib: Any, name: str) -> int | None:
    try:
        encoded = name.encode("ascii")
    except UnicodeEncodeError:
        return None
    number: int = lib.seccomp_syscall_resolve_name(encoded)
    if number != -1:
        return number  # below -1: a call that only other architectures have; libseccomp leaves it out
    if lib.seccomp_arch_native() == _X86_64 and name in _NEWER_X86_64:
        return _NEWER_X86_64[name]
    return _NEWER.get(name)


def _skip_unknown(name: str, rule: Rule, default: int) -> None:
    # What is not known can't be allowed, which is safe; profiles list calls of kernels to come.
    # A denial that has no effect is a hole.
    if rule.action not in (ALLOW, LOG, default):
        raise SpecError("seccomp.syscalls.names", name, "a system call that this machine's libseccomp knows")


def _strictness(action: int) -> int:
    # The kernel's own order among several filters: as a signed number, the smallest wins.
    kind = action & 0xFFFF0000
    return kind - (1 << 32) if kind & KILL_PROCESS else kind


def _settled(call: _Call) -> list[tuple[int, tuple[Comparison, ...]]]:
    """The rules of a call in a filter for several tables, where it can't have an `otherwise` of its own."""
    if call.always is None:
        return call.sometimes
    if call.exceptions:
        raise SpecError(
            "seccomp.syscalls",
            call.name,
            "either a rule without args or rules with args for a system call, in a profile that opens other "
            "architectures: beside the former the latter would have no effect there",
        )
    return [(call.always, ())]


def _add(
    ffi: Any, lib: Any, context: Any, call: _Call, action: int, comparisons: tuple[Comparison, ...]
) -> None:
    conditions = ffi.new("struct scmp_arg_cmp[]", len(comparisons))
    for slot, given in zip(conditions, comparisons, strict=True):
        slot.arg, slot.op = given.index, given.operator
        slot.datum_a, slot.datum_b = given.value, given.value_two
    result = lib.seccomp_rule_add_array(context, action, call.number, len(comparisons), conditions)
    if result == -_EEXIST:
        return
    newer = call.name in _NEWER or call.name in _NEWER_X86_64
    if result < 0 and newer and action in (ALLOW, LOG):
        return  # can't be translated to a 32-bit table by a library that doesn't know it
    _checked(result, f"a rule for {call.name}")


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise UnsupportedError("seccomp", f"libseccomp refuses {what}: {os.strerror(-result)}", _UPGRADE)


def _export(lib: Any, context: Any) -> bytes:
    fd = os.memfd_create("isobox-seccomp", os.MFD_CLOEXEC)
    try:
        _checked(lib.seccomp_export_bpf(context, fd), "to write the filter")
        size = os.fstat(fd).st_size
        program = os.pread(fd, size, 0)
    finally:
        os.close(fd)
    if not program or len(program) % 8 or len(program) != size:
        raise UnsupportedError("seccomp", f"libseccomp wrote {size} bytes, not a filter", _UPGRADE)
    return program


def _needs_enosys(default: int) -> bool:
    return default not in (ALLOW, LOG, ERRNO | _ENOSYS) and default & 0xFFFF0000 != TRACE
