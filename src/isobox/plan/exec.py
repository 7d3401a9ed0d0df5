"""The plan of one exec: a short list of ops that ends in the program's own execve.

All but the last op is the same for every exec of a container with the same options, so its bytes are
made once (`ExecTemplate`); what is left for each exec is packing its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from attrs import frozen

from ..security.paths import Covers
from .covers import cover_ops
from .ops import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    CLONE_NEWCGROUP,
    CLONE_NEWNS,
    HOST_PATH,
    Op,
    encode,
    encode_op,
    make,
)

STATUS_FD, STDIN_FD, STDOUT_FD, STDERR_FD, FIRST_JOIN_FD = range(5)
"""Places in the table of descriptors that travels with an exec."""

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@frozen
class User:
    """Who a program runs as, in the container's own numbers."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"


def exec_ops(
    *,
    joins: int,
    user: User,
    groups_allowed: bool,
    rlimits: Mapping[int, tuple[int, int]],
    filters: Sequence[bytes],
    workdir: str,
    tty: bool,
    landlock: bool = False,
    own_proc: Covers | None = None,
    own_cgroupns: bool = False,
) -> list[Op]:
    """Return the ops of an exec up to the execve. `joins`: descriptors of cgroups to join, v1.

    `landlock`: the setup made a ruleset; `filters`: seccomp's, in their order.
    `own_proc`: the exec has a PID namespace of its own, and /proc is to show its pids; what of it is covered.
    `own_cgroupns`: init has none, and the exec gets one whose root is its own group.
    """
    ops = [make("JOIN_CGROUP", FIRST_JOIN_FD + number) for number in range(joins)]
    if own_cgroupns:
        ops.append(make("UNSHARE", CLONE_NEWCGROUP, note="cgroup namespace"))
    if own_proc is not None:
        ops.append(make("UNSHARE", CLONE_NEWNS, note="mount namespace"))
        ops.append(make("FSOPEN", strings=(b"proc",)))
        ops.append(make("FSMOUNT", ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC))
        ops.append(make("ATTACH", HOST_PATH, strings=(b"/proc",), note="of its own PID namespace"))
        ops += cover_ops(own_proc, HOST_PATH, within="/proc")
    ops.append(make("STREAMS", STDIN_FD, STDOUT_FD, STDERR_FD, note="stdin, stdout, stderr"))
    ops.append(make("SESSION", note="of its own"))
    if tty:
        ops.append(make("TERMINAL", user.uid, note="controlling terminal"))
    ops += [
        make("RLIMIT", number, soft, hard)  # -1: none, as in the kernel
        for number, (soft, hard) in rlimits.items()
    ]
    # isobox-init is uid 0 without groups, in "/", with no_new_privs and a bounding set: what it hands on
    # as it is costs nothing here. A root program's capabilities are the bounding set (capabilities(7)).
    if user != User(user.uid, 0, (), user.home) and groups_allowed:
        packed = b"".join(group.to_bytes(4, "little") for group in user.groups)
        ops.append(make("GROUPS", len(user.groups), strings=(packed,), note=f"{list(user.groups)}"))
    if user.uid or user.gid:
        ops.append(make("IDS", user.uid, user.gid, note=f"uid {user.uid}, gid {user.gid}"))
    if user.uid:
        ops.append(make("CAPABILITIES", 0, note="none"))
    if workdir != "/":
        ops.append(make("CHDIR", strings=(workdir.encode("utf-8", "surrogateescape"),)))
    if landlock:
        ops.append(make("LANDLOCK_RESTRICT", 0, note="a domain of its own"))  # mounts nothing from here on
    return ops + [_seccomp(program) for program in filters]


def _seccomp(program: bytes) -> Op:
    return make("SECCOMP", strings=(program,), note=f"{len(program) // 8} instructions")


def filter_plan(filters: Sequence[bytes]) -> bytes:
    """Return the plan that puts a thread of isobox-init under the filters."""
    return encode([_seccomp(program) for program in filters])


def exec_op(args: Sequence[bytes], env: Mapping[str, str]) -> Op:
    """Return the op that becomes the program; a name without "/" is searched in the PATH of `env`."""
    packed_env, count = pack_env(env)
    return _exec(args, packed_env, count, env.get("PATH", SEARCH_PATH))


def pack_env(env: Mapping[str, str]) -> tuple[bytes, int]:
    """Return the environment as the kernel takes it, and the number of its variables."""
    text = "".join([f"{name}={value}\0" for name, value in env.items()])
    return text.encode("utf-8", "surrogateescape"), len(env)


def _exec(args: Sequence[bytes], packed_env: bytes, env_count: int, path: str) -> Op:
    room = bytes(8 * (len(args) + env_count + 2))
    argv = b"\0".join(args) + b"\0"
    search = path.encode("utf-8", "surrogateescape")
    return make("EXEC", len(args), env_count, strings=(args[0], search, room, argv, packed_env))


@lru_cache(maxsize=64)
def _encoded(ops: tuple[Op, ...]) -> bytes:
    """The bytes of ops that containers of one kind have in common."""
    return encode(ops)


@frozen(slots=False)
class ExecTemplate:
    """The bytes that all execs of one kind begin with, and their packed environment.

    `filtered`: the filter is not among the ops, but is that of isobox-init's thread (`filter_plan`).
    """

    ops: tuple[Op, ...]
    prefix: bytes
    env: bytes
    env_count: int
    path: str
    filtered: bool = False

    @classmethod
    def make(cls, ops: Sequence[Op], env: Mapping[str, str], *, filtered: bool = False) -> ExecTemplate:
        """Encode what does not change from exec to exec."""
        packed, count = pack_env(env)
        made = tuple(ops)
        return cls(made, _encoded(made), packed, count, env.get("PATH", SEARCH_PATH), filtered)

    def encode(self, args: Sequence[bytes]) -> bytes:
        """Return the whole plan of one exec."""
        return self.prefix + encode_op(_exec(args, self.env, self.env_count, self.path))
