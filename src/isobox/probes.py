"""Small experiments: a few ops of a plan in fresh namespaces, to see whether the kernel lets us.

Each costs about a millisecond and leaves nothing: what it mounts is gone with its namespaces.

>>> from isobox.plan.ops import CLONE_NEWUTS
>>> with Probes("/tmp", for_host()) as probes:
...     refused = probes.run(CLONE_NEWUSER | CLONE_NEWUTS, [make("HOSTNAME", strings=(b"box",))])
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import frozen

from isobox import _native, idmap
from isobox.control import Control
from isobox.errors import SetupError
from isobox.host import features
from isobox.idmap import COUNT, RANGE_END, IdMap
from isobox.pidfds import WALL
from isobox.plan.ops import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    HOST_PATH,
    Op,
    describe,
    encode,
    filesystem,
    make,
)

# include/uapi/linux/mount.h
MS_REC_PRIVATE: Final = 0x4000 | 1 << 18
ATTR_QUIET: Final = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC


@frozen
class Refusal:
    """The kernel said no: at which op, and with what errno; `where` and `what` as `isobox.hints` has them."""

    op: str
    errno: int
    where: str = ""
    what: str = ""

    def __str__(self) -> str:
        return f"{self.op}: {os.strerror(self.errno)}"


class Probes:
    """Runs experiments. `stage` is an existing directory to mount on, `id_map` for user namespaces."""

    def __init__(self, stage: str, id_map: IdMap) -> None:
        self.stage = stage
        self.id_map = id_map
        self._owner_fd = os.pidfd_open(os.getpid())
        # See isobox.shared: readable for an ordinary user only, who has to reach /proc/PID.
        try:
            self._init_fd = _native.init_memfd(0o100 if os.geteuid() == 0 else 0o500)
        except BaseException:
            os.close(self._owner_fd)
            raise

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._init_fd)
        os.close(self._owner_fd)

    @contextlib.contextmanager
    def process(self, flags: int, *, owner_fd: int | None = None) -> Iterator[tuple[Control, int, int]]:
        """isobox-init in new namespaces, its ids mapped: (its socket, pid, pidfd). OSError if refused."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            pid, pidfd = _native.spawn(
                flags,
                init_fd=self._init_fd,
                control_fd=theirs.fileno(),
                owner_fd=self._owner_fd if owner_fd is None else owner_fd,
            )
            control = Control(os.dup(ours.fileno()))
        try:
            if flags & CLONE_NEWUSER:
                idmap.write(pid, self.id_map)
            yield control, pid, pidfd
        finally:
            control.close()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | WALL)
            os.close(pidfd)

    def run(self, flags: int, ops: Sequence[Op], fds: Sequence[int] = ()) -> Refusal | None:
        """Carry out `ops` as root of new namespaces (CLONE_NEW*); None if the kernel let it."""
        if flags & CLONE_NEWUSER:
            ops = [make("IDS", 0, 0, note="root of the user namespace"), *ops]
        try:
            with self.process(flags) as (control, _pid, _pidfd):
                reply = control.setup(encode(ops), fds)
        except _native.SpawnError as error:
            return Refusal(error.step, error.errno or errno.EIO, error.step)
        except SetupError as error:
            said = str(error).removesuffix(f". {error.hint}")
            return Refusal(error.op, error.errno or errno.EIO, os.path.basename(error.op), said)
        if reply.kind == _native.READY:
            return None
        number = reply.error if 0 < reply.error < 4096 else errno.EPROTO
        if not 0 <= reply.op < len(ops):
            return Refusal("isobox-init", number)
        op = ops[reply.op]
        return Refusal(" ".join(describe(op).split()), number, op.name, filesystem(op))

    def mount(self, kind: str, options: dict[str, str | None], target: str, attributes: int = 0) -> list[Op]:
        """The ops that make a file system and attach it at a host path."""
        ops = [make("FSOPEN", strings=(kind.encode(),))]
        for key, value in options.items():
            if value is None:
                ops.append(make("FSCONFIG_FLAG", strings=(key.encode(),)))
            else:
                ops.append(make("FSCONFIG_STRING", strings=(key.encode(), value.encode())))
        ops.append(make("FSMOUNT", attributes, note=kind))
        ops.append(make("ATTACH", HOST_PATH, strings=(target.encode(),), note=kind))
        return ops

    def scratch(self, size: int = 1 << 20, folders: Sequence[str] = ()) -> list[Op]:
        """The ops that put a tmpfs on the stage, with directories in it."""
        ops = [make("PROPAGATION", MS_REC_PRIVATE, note="private, recursively")]
        ops += self.mount("tmpfs", {"size": str(size), "mode": "0755"}, self.stage)
        ops += [
            make("MKDIR", 0o755, HOST_PATH, 1, strings=(f"{self.stage}/{name}".encode(),)) for name in folders
        ]
        return ops

    def file(self, name: str, content: bytes) -> Op:
        """The op that makes a file on the stage."""
        return make("FILE", 0o644, HOST_PATH, strings=(f"{self.stage}/{name}".encode(), content))

    def ends_with_its_owner(self, seconds: float = 2.0) -> bool:
        """True if isobox-init ends once the process that owns it does."""
        with self.process(CLONE_NEWUSER | CLONE_NEWPID) as (_, _, owner):
            with self.process(CLONE_NEWUSER | CLONE_NEWPID, owner_fd=owner) as (_, _, owned):
                signal.pidfd_send_signal(owner, signal.SIGKILL)
                return bool(select.select([owned], [], [], seconds)[0])


def for_host() -> IdMap:
    """An id map that this user may use, without a claim on it; for experiments only."""
    facts = features()
    if facts.uid != 0:
        return idmap.for_user(facts.uid, facts.gid, facts.subuids, facts.subgids, facts.newuidmap)
    if idmap.read_root_ranges():
        return idmap.for_root(RANGE_END - COUNT)
    return idmap.for_nested(*idmap.read_own_maps())
