"""Which ids of the host stand behind the ids of a container.

A container has a user namespace of its own; the kernel learns from ``uid_map`` and ``gid_map``
which host id each inside id is. Three shapes exist:

- root: inside 0..65535 is a range of host ids that no other container and no user has. It comes
  from the lines of root in ``/etc/subuid`` and ``/etc/subgid``, and past those from the range
  1879048192..2147483647 (just above the ids that systemd-nspawn takes).
- an ordinary user with lines in both files: inside 0 is the user, 1.. are the user's ranges. The
  setuid programs ``newuidmap`` and ``newgidmap`` write the maps.
- anyone else: inside 0 is the user and no other id exists.

Everything here but `write`, `of_user` and the ``read_*`` functions is pure.

>>> for_user(1000, 1000, (), (), newuidmap_available=True)
IdMap(uid_lines=((0, 1000, 1),), gid_lines=((0, 1000, 1),), needs_newuidmap=False, deny_setgroups=True)
>>> for_root(1_879_048_192).uid_text
b'0 1879048192 65536\\n'
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from attrs import frozen

from isobox import forks
from isobox.errors import SetupError

COUNT = 65536
"""How many ids a container of root has."""

RANGE_START = 1_879_048_192
"""First id of the built-in range; 0x70000000."""

RANGE_END = 2_147_483_648
"""One past the last id of the built-in range: 4096 containers fit."""

_ID_LIMIT = 0xFFFF_FFFF  # (uid_t)-1 means "no id" to the kernel: ids lie below it
_MAX_EXTENTS = 340  # the kernel's bound on lines of one map (user_namespaces(7))

Line = tuple[int, int, int]


class IdRange(NamedTuple):
    """`size` ids of the host, from `start` on."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """One past the last id."""
        return self.start + self.size

    def overlaps(self, other: IdRange) -> bool:
        """True if an id is in both."""
        return self.start < other.end and other.start < self.end


@frozen
class IdMap:
    """The lines of ``uid_map`` and ``gid_map``: (inside, outside, count) each.

    `needs_newuidmap` says that only ``newuidmap``/``newgidmap`` may write them; `deny_setgroups`
    that the kernel wants "deny" in ``/proc/PID/setgroups`` first (so setgroups fails inside).
    """

    uid_lines: tuple[Line, ...]
    gid_lines: tuple[Line, ...]
    needs_newuidmap: bool
    deny_setgroups: bool

    @property
    def uid_text(self) -> bytes:
        """What belongs in ``/proc/PID/uid_map``."""
        return _text(self.uid_lines)

    @property
    def gid_text(self) -> bytes:
        """What belongs in ``/proc/PID/gid_map``."""
        return _text(self.gid_lines)

    @property
    def root_uid(self) -> int:
        """The host's uid of the container's root."""
        return outside(self.uid_lines, 0)

    @property
    def root_gid(self) -> int:
        """The host's gid of the container's root group."""
        return outside(self.gid_lines, 0)

    @property
    def single(self) -> bool:
        """True if root is the only user that exists inside."""
        return sum(count for _, _, count in self.uid_lines) == 1


def outside(lines: Iterable[Line], inside: int) -> int:
    """The host's id of `inside`; LookupError if the map has none."""
    for first, host, count in lines:
        if first <= inside < first + count:
            return host + inside - first
    raise LookupError(inside)


def _text(lines: Iterable[Line]) -> bytes:
    return b"".join(b"%d %d %d\n" % line for line in lines)


def parse_subids(text: str, names: Iterable[str] | None) -> tuple[IdRange, ...]:
    """The ranges that a subuid or subgid file gives to any of `names`, in the file's order.

    `names` are login names and numeric ids as text; None takes everyone's. Comments and lines
    that are not ``name:start:count`` are skipped, and so are ranges that contain id 0, that pass
    the kernel's largest id, or that overlap an earlier one (the kernel refuses such maps).

    >>> parse_subids("joe:100000:65536\\n# no\\n1000:300000:10\\njoe:x:y\\n", ("joe", "1000"))
    (IdRange(start=100000, size=65536), IdRange(start=300000, size=10))
    """
    wanted = None if names is None else frozenset(names)
    found: list[IdRange] = []
    for line in text.split("\n"):
        fields = line.strip().split(":")
        if len(fields) != 3 or not fields[0] or fields[0].startswith("#"):
            continue
        if wanted is not None and fields[0] not in wanted:
            continue
        start, count = _number(fields[1]), _number(fields[2])
        if not start or not count or start + count > _ID_LIMIT:
            continue
        entry = IdRange(start, count)
        if not any(entry.overlaps(other) for other in found):
            found.append(entry)
    return tuple(found)


def _number(field: str) -> int | None:
    # int() alone also takes "1_0", "+1" and other scripts' digits.
    return int(field) if field.isascii() and field.isdigit() and len(field) <= 10 else None


def parse_map(text: str) -> tuple[Line, ...]:
    """The lines of a ``/proc/PID/uid_map`` as the kernel prints it."""
    lines: list[Line] = []
    for line in text.splitlines():
        inside, host, count = line.split()
        lines.append((int(inside), int(host), int(count)))
    return tuple(lines)


def for_root(base: int, count: int = COUNT) -> IdMap:
    """Inside 0..count-1 is base..base+count-1 on the host."""
    lines = ((0, base, count),)
    return IdMap(lines, lines, needs_newuidmap=False, deny_setgroups=False)


def for_user(
    uid: int,
    gid: int,
    subuid: Sequence[IdRange],
    subgid: Sequence[IdRange],
    newuidmap_available: bool,
) -> IdMap:
    """Inside 0 is the user; 1.. are the ranges, if both files have one and newuidmap is there."""
    uid_lines = _user_lines(uid, subuid)
    gid_lines = _user_lines(gid, subgid)
    if newuidmap_available and len(uid_lines) > 1 and len(gid_lines) > 1:
        return IdMap(uid_lines, gid_lines, needs_newuidmap=True, deny_setgroups=False)
    return IdMap(uid_lines[:1], gid_lines[:1], needs_newuidmap=False, deny_setgroups=True)


def _user_lines(own: int, ranges: Iterable[IdRange]) -> tuple[Line, ...]:
    lines: list[Line] = [(0, own, 1)]
    following = 1
    for entry in ranges:
        # An outside id may occur once in a map, and the user is in it already.
        if entry.start <= own < entry.end or following + entry.size > _ID_LIMIT:
            continue
        lines.append((following, entry.start, entry.size))
        following += entry.size
    return tuple(lines[:_MAX_EXTENTS])


def for_nested(own_uids: Sequence[Line], own_gids: Sequence[Line]) -> IdMap:
    """The map for root of a user namespace that is too small for ranges (see `root_ranges`).

    Inside 0.. is 1.. of the namespace that we are in, as far as it goes; such containers share
    their ids. Where only id 0 exists, inside 0 is 0.
    """
    uid_lines = _nested_lines(own_uids)
    gid_lines = _nested_lines(own_gids)
    if uid_lines and gid_lines:
        return IdMap(uid_lines, gid_lines, needs_newuidmap=False, deny_setgroups=False)
    single = ((0, 0, 1),)
    return IdMap(single, single, needs_newuidmap=False, deny_setgroups=True)


def _nested_lines(own: Sequence[Line]) -> tuple[Line, ...]:
    lines: list[Line] = []
    following = 0
    for inside, _, count in sorted(own):
        first, size = (inside, count) if inside else (1, count - 1)
        size = min(size, COUNT - following)
        if size > 0:
            lines.append((following, first, size))
            following += size
    return tuple(lines[:_MAX_EXTENTS])


def root_ranges(
    subuid: str, subgid: str, own_uids: Sequence[Line], own_gids: Sequence[Line]
) -> tuple[IdRange, ...]:
    """Where root may take the ids of containers from, best first; each holds at least `COUNT`.

    `subuid` and `subgid` are the texts of the two files, `own_uids` and `own_gids` the maps of
    the namespace that we are in. First come the ranges that both files give to root, then the
    built-in range without what the files give to anyone. Empty in a small user namespace.
    """
    root = ("root", "0")
    listed = _both(parse_subids(subuid, root), parse_subids(subgid, root))
    builtin: Sequence[IdRange] = (IdRange(RANGE_START, RANGE_END - RANGE_START),)
    for other in (*parse_subids(subuid, None), *parse_subids(subgid, None)):
        builtin = [part for whole in builtin for part in _without(whole, other)]
    here = _both(
        [IdRange(inside, count) for inside, _, count in own_uids],
        [IdRange(inside, count) for inside, _, count in own_gids],
    )
    return tuple(part for part in _both([*listed, *builtin], here) if part.size >= COUNT)


def _both(left: Iterable[IdRange], right: Sequence[IdRange]) -> list[IdRange]:
    parts: list[IdRange] = []
    for one in left:
        for other in right:
            start, end = max(one.start, other.start), min(one.end, other.end)
            if start < end:
                parts.append(IdRange(start, end - start))
    return parts


def _without(whole: IdRange, hole: IdRange) -> list[IdRange]:
    if not whole.overlaps(hole):
        return [whole]
    parts = [IdRange(whole.start, hole.start - whole.start), IdRange(hole.end, whole.end - hole.end)]
    return [part for part in parts if part.size > 0]


def read_text(path: str) -> str:
    """The text of a small file; empty where it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def read_root_ranges() -> tuple[IdRange, ...]:
    """`root_ranges` of this machine, as it is now."""
    return root_ranges(read_text("/etc/subuid"), read_text("/etc/subgid"), *read_own_maps())


def read_own_maps() -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """The uid and the gid map of the namespace that this process is in."""
    return parse_map(read_text("/proc/self/uid_map")), parse_map(read_text("/proc/self/gid_map"))


def read_user_ranges(uid: int) -> tuple[tuple[IdRange, ...], tuple[IdRange, ...]]:
    """What ``/etc/subuid`` and ``/etc/subgid`` give to the user `uid`, by name or by number."""
    names = [str(uid)]
    subuid, subgid = read_text("/etc/subuid"), read_text("/etc/subgid")
    if subuid and subgid:
        with forks.whole:
            import pwd  # here: a user database on the network can take its time

        with contextlib.suppress(KeyError):
            names.append(pwd.getpwuid(uid).pw_name)
    return parse_subids(subuid, names), parse_subids(subgid, names)


def of_user() -> IdMap:
    """The id map of this ordinary user's containers; the same as long as this process lives."""
    return _of_user(os.geteuid(), os.getegid())


@lru_cache(maxsize=4)
def _of_user(uid: int, gid: int) -> IdMap:
    return for_user(uid, gid, *read_user_ranges(uid), newuidmap_available=newuidmap_programs() is not None)


@lru_cache(maxsize=1)
def newuidmap_programs() -> tuple[str, str] | None:
    """The paths of ``newuidmap`` and ``newgidmap``, if both are there and may do their work.

    They must be setuid root or carry file capabilities, and this process must be allowed to
    gain privileges by exec. Looked up once.
    """
    with forks.whole:
        import shutil  # not before it is needed: it brings much along

    paths = (shutil.which("newuidmap"), shutil.which("newgidmap"))
    if not paths[0] or not paths[1] or not all(_privileged(path) for path in paths if path):
        return None
    if "\nNoNewPrivs:\t1" in read_text("/proc/self/status"):
        return None
    return paths[0], paths[1]


def _privileged(path: str) -> bool:
    try:
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            return False
        found = os.stat(path)
        if found.st_mode & 0o4000:
            return found.st_uid == 0  # in a user namespace it may be somebody who does not exist there
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def write(pid: int, idmap: IdMap) -> None:
    """Give the user namespace of process `pid` its ids; once, from the parent's side.

    Raises SetupError (stage "user namespace") with a hint where the kernel or ``newuidmap``
    refuses.
    """
    if idmap.needs_newuidmap:
        _write_by_program(pid, idmap)
        return
    if idmap.deny_setgroups:
        _write_file(f"/proc/{pid}/setgroups", b"deny")
    _write_file(f"/proc/{pid}/gid_map", idmap.gid_text)
    _write_file(f"/proc/{pid}/uid_map", idmap.uid_text)


def _write_file(path: str, text: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)
    except OSError as error:
        code = error.errno or 0
        raise SetupError(code, f"writing {path}", stage="user namespace", op=path, hint=hint(code)) from error


class _Killed(subprocess.Popen[bytes]):
    """One that does not outlive its ``with`` block."""

    def __exit__(self, *exception: Any) -> None:
        if self.returncode is None:
            self.kill()
        super().__exit__(*exception)


def _write_by_program(pid: int, idmap: IdMap) -> None:
    programs = newuidmap_programs()
    if programs is None:
        raise SetupError(
            errno.ENOENT,
            "looking for newuidmap and newgidmap",
            stage="user namespace",
            op="newuidmap",
            hint="Install the package uidmap (shadow-utils), whose two programs are setuid root",
        )
    commands = [
        [program, str(pid), *(str(number) for line in lines for number in line)]
        for program, lines in zip(programs, (idmap.uid_lines, idmap.gid_lines), strict=True)
    ]
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
    }
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        # Where the second can't be started the first is still waited for.
        running = [
            stack.enter_context(_Killed(command, env={"LC_ALL": "C"}, **pipes)) for command in commands
        ]
        for process in running:
            try:
                message = process.communicate(timeout=10)[1].decode(errors="replace").strip()
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                message = "newuidmap gave no answer within 10 s"
            if process.returncode:
                failures.append(message)
    if failures:
        raise SetupError(
            errno.EPERM,
            "; ".join(failures),
            stage="user namespace",
            op="newuidmap",
            hint="Check the lines of this user in /etc/subuid and /etc/subgid",
        )


def hint(code: int) -> str:
    """What to do about errno `code` from making or using a user namespace; empty if unknown.

    Looks at what blocks user namespaces for ordinary users on common systems.
    """
    if code in (errno.ENOSPC, errno.EUSERS) or sysctl("user/max_user_namespaces") == "0":
        return (
            "The number of user namespaces is limited: raise it with "
            "'sysctl -w user.max_user_namespaces=65536' (they nest 32 deep at most)"
        )
    if code == errno.ENOSYS:
        return (
            "A seccomp filter hides a system call: inside Docker, run with '--security-opt "
            "seccomp=unconfined'; inside isobox, with seccomp=None and cap_add=['ALL']"
        )
    if code not in (errno.EPERM, errno.EACCES):
        return ""
    if _chrooted():
        return "The kernel refuses user namespaces inside a chroot: enter it with pivot_root, or run outside"
    if os.geteuid() != 0:
        if sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
            return (
                "AppArmor keeps ordinary users from user namespaces here: allow them with "
                "'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0', or give this program an "
                "AppArmor profile with the rule 'userns,'"
            )
        if sysctl("kernel/unprivileged_userns_clone") == "0":
            return (
                "User namespaces are for root only here: allow them with "
                "'sysctl -w kernel.unprivileged_userns_clone=1'"
            )
    return (
        "A seccomp filter, a security module or a chroot forbids user namespaces here; inside Docker, run "
        "with '--security-opt seccomp=unconfined --security-opt apparmor=unconfined' or '--privileged'; "
        "inside isobox, with seccomp=None and cap_add=['ALL']"
    )


def _chrooted() -> bool:
    """The root of this process is not its mount namespace's, as far as that shows: it is no mount."""
    mounts = read_text("/proc/self/mountinfo").splitlines()
    return bool(mounts) and not any(line.split()[4:5] == ["/"] for line in mounts)


def sysctl(name: str) -> str:
    """The value of a kernel setting, named with slashes; empty where there is none."""
    return read_text(f"/proc/sys/{name}").strip()
