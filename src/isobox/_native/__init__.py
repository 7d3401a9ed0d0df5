"""The one seam to the compiled library: typed in front, cffi behind, errno turned into OSError.

Nothing else imports `isobox._native._isobox`; so `Any` ends here. Every call releases the GIL.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from ..errors import StateError

_compiled: Any = import_module("isobox._native._isobox")
_ffi: Any = _compiled.ffi
_lib: Any = _compiled.lib

INIT_PROGRAM: Final = os.path.join(os.path.dirname(__file__), "isobox-init")
"""The static program that is every container's PID 1."""

MESSAGE_MAX: Final[int] = _lib.ISOBOX_MESSAGE_MAX
PAYLOAD_MAX: Final[int] = _lib.ISOBOX_PAYLOAD_MAX
FDS_MAX: Final[int] = _lib.ISOBOX_FDS_MAX

# Kinds of requests and their flags: see isobox.h.
SETUP: Final[int] = _lib.ISOBOX_SETUP
PREPARE: Final[int] = _lib.ISOBOX_PREPARE
THAW: Final[int] = _lib.ISOBOX_THAW
EXEC: Final[int] = _lib.ISOBOX_EXEC
SIGNAL: Final[int] = _lib.ISOBOX_SIGNAL
OPEN: Final[int] = _lib.ISOBOX_OPEN
MKDIR: Final[int] = _lib.ISOBOX_MKDIR
SYMLINK: Final[int] = _lib.ISOBOX_SYMLINK
UNLINK: Final[int] = _lib.ISOBOX_UNLINK
CHANGE: Final[int] = _lib.ISOBOX_CHANGE
FILTER: Final[int] = _lib.ISOBOX_FILTER
LOCATE: Final[int] = _lib.ISOBOX_LOCATE
PAYLOAD_FD: Final[int] = _lib.ISOBOX_PAYLOAD_FD
WANT_START: Final[int] = _lib.ISOBOX_WANT_START
OWN_PIDNS: Final[int] = _lib.ISOBOX_OWN_PIDNS
HOLD: Final[int] = _lib.ISOBOX_HOLD
CGROUP_FD: Final[int] = _lib.ISOBOX_CGROUP_FD
FILTERED: Final[int] = _lib.ISOBOX_FILTERED
OWN_MEMORY: Final[int] = _lib.ISOBOX_OWN_MEMORY

# Kinds of replies.
READY: Final[int] = _lib.ISOBOX_READY
FAILED: Final[int] = _lib.ISOBOX_FAILED
STARTED: Final[int] = _lib.ISOBOX_STARTED
ENDED: Final[int] = _lib.ISOBOX_ENDED
DONE: Final[int] = _lib.ISOBOX_DONE

# What `Pump.run` returns.
PUMP_ENDED: Final[int] = _lib.ISOBOX_PUMP_ENDED
PUMP_DEADLINE: Final[int] = _lib.ISOBOX_PUMP_DEADLINE
PUMP_LIMIT: Final[int] = _lib.ISOBOX_PUMP_LIMIT
PUMP_WATCH: Final[int] = _lib.ISOBOX_PUMP_WATCH
PUMP_INTERRUPTED: Final[int] = _lib.ISOBOX_PUMP_INTERRUPTED
PUMP_LOST: Final[int] = _lib.ISOBOX_PUMP_LOST

OP_CODES: Final[dict[str, int]] = {
    name.removeprefix("ISOBOX_OP_"): getattr(_lib, name)
    for name in dir(_lib)
    if name.startswith("ISOBOX_OP_")
}

_SPAWN_STAGES: Final[dict[int, str]] = {
    _lib.ISOBOX_SPAWN_CLONE: "clone",
    _lib.ISOBOX_SPAWN_CAPABILITIES: "capset",
    _lib.ISOBOX_SPAWN_DESCRIPTORS: "dup3",
    _lib.ISOBOX_SPAWN_EXEC: "execveat",
}


NO_LIMIT: Final = (1 << 64) - 1


class Reply(NamedTuple):
    """One answer of isobox-init. It comes from inside: every number in it is untrusted."""

    kind: int
    op: int
    error: int
    status: int
    start_ns: int = 0
    end_ns: int = 0
    user_us: int = 0
    system_us: int = 0
    maxrss_kib: int = 0


class SpawnError(OSError):
    """`spawn` failed; `step` is the system call that did."""

    step: str = ""


def _check(result: int, path: str | bytes | None = None) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
    return result


def init_memfd(mode: int) -> int:
    """isobox-init in a sealed memfd with these permission bits; the caller owns the descriptor."""
    with open(INIT_PROGRAM, "rb") as file:
        program = file.read()
    return _check(_lib.isobox_init_memfd(_ffi.from_buffer(program), len(program), mode))


def spawn(
    flags: int, *, init_fd: int, control_fd: int, owner_fd: int, cgroup_fd: int = -1
) -> tuple[int, int]:
    """Start isobox-init in the namespaces that `flags` names (CLONE_NEW*). Returns (pid, pidfd).

    `cgroup_fd`: the directory of a cgroup of v2 to be born in, "CLONE_INTO_CGROUP" in clone(2).
    Raises `SpawnError`. See clone(2), "CLONE_VFORK": costs the same at any size of this process.
    """
    request = _ffi.new(
        "struct isobox_spawn *",
        {
            "flags": flags,
            "init_fd": init_fd,
            "control_fd": control_fd,
            "owner_fd": owner_fd,
            "cgroup_fd": cgroup_fd,
        },
    )
    result = _lib.isobox_spawn_init(request)
    if result < 0:
        error = SpawnError(-result, os.strerror(-result))
        error.step = _SPAWN_STAGES.get(request.stage, "clone")
        raise error
    return request.pid, request.pidfd


def block_signals(more: int) -> int:
    """Block signals in this thread too, signal n as bit n - 1; returns those that were blocked before.

    As `signal.pthread_sigmask` does, in a fifth of its time.
    """
    before: int = _lib.isobox_block_signals(more)
    return before


def set_signals(blocked: int) -> None:
    """Have just these signals blocked in this thread."""
    _lib.isobox_set_signals(blocked)


def send(sock: int, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message, with descriptors, on a SOCK_SEQPACKET socket."""
    _check(_lib.isobox_send(sock, _ffi.from_buffer(data), len(data), fds, len(fds)))


def receive(sock: int, timeout_ms: int) -> tuple[Reply, int, int]:
    """Wait for one reply. Returns it, a descriptor that came along, and a pid as this process sees it.

    The latter two are -1 where none came. Raises OSError: ETIMEDOUT, EPIPE where the other end is
    gone, EBADMSG for anything that is not a reply.
    """
    reply = _ffi.new("struct isobox_reply *")
    fd = _ffi.new("int *")
    pid = _ffi.new("int *")
    _check(_lib.isobox_receive(sock, reply, fd, pid, timeout_ms))
    return Reply(reply.kind, reply.op, reply.error, reply.status), fd[0], pid[0]


class Pump:
    """Waits for one exec in C: reads what it writes, feeds its stdin, notices its end.

    Takes over `stdin`, `stdout` and `stderr` (closed with `close`, at EOF or when fed); `status` and
    `watch` stay the caller's. -1 stands for none. Not for two threads at once.
    """

    __slots__ = ("_input", "_pump")

    def __init__(
        self,
        status: int,
        *,
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        watch: int = -1,
        watch_events: int = 1,
        data: bytes = b"",
        limit: int | None = None,
    ) -> None:
        pump = _ffi.new("struct isobox_pump *")
        pump.status_fd = status
        pump.stdin_fd = stdin
        pump.watch_fd = watch
        pump.watch_events = watch_events
        pump.stream[0].fd = stdout
        pump.stream[1].fd = stderr
        pump.limit = NO_LIMIT if limit is None else limit
        if data:
            self._input = _ffi.from_buffer(data)  # held: the pump has only its address
            pump.input = self._input
            pump.input_size = len(data)
        self._pump = pump

    def run(self, deadline_ns: int = -1) -> int:
        """Go on until something happens (PUMP_*); `deadline_ns` is of CLOCK_MONOTONIC, -1: none.

        Raises `StateError` for what is no record of an exec, OSError.
        """
        event: int = _lib.isobox_pump_run(self._pump, deadline_ns)
        if event > PUMP_LOST:
            self._failed()
        return event

    def run_until_start(self, deadline_ns: int = -1) -> Reply | None:
        """Wait for an exec's first record, STARTED or FAILED; None if isobox-init went away.

        Raises `TimeoutError` when the deadline (CLOCK_MONOTONIC, -1: none) passes, `StateError` for garbage.
        """
        while True:
            event = _lib.isobox_pump_first(self._pump, deadline_ns)
            if event != PUMP_INTERRUPTED:
                break
        if event == PUMP_DEADLINE:
            raise TimeoutError
        if event == PUMP_LOST:
            return None
        if event > PUMP_LOST:
            self._failed()
        r = self._pump.reply
        return Reply(r.kind, r.op, r.error, r.status)

    def _failed(self) -> None:
        if self._pump.error == errno.EBADMSG:
            raise StateError("the container's init does not answer properly")
        _check(-(self._pump.error or errno.EIO))

    def watch(self, fd: int, events: int = 1) -> None:
        """Report PUMP_WATCH when `fd` has one of `events` (poll(2); 1 is POLLIN)."""
        self._pump.watch_fd = fd
        self._pump.watch_events = events

    def unwatch(self) -> None:
        """Don't look at the watched descriptor any more."""
        self._pump.watch_fd = -1

    def stop_reading(self) -> None:
        """Close the streams, keep what was read."""
        _lib.isobox_pump_stop_reading(self._pump)

    def drain(self) -> int:
        """Read what is in the pipes now, without waiting for more. Returns PUMP_ENDED or PUMP_LIMIT."""
        self._pump.have_status = 1
        return self.run()

    def reply(self) -> Reply | None:
        """The exec's record, if it has arrived."""
        if not self._pump.have_status:
            return None
        r = self._pump.reply
        return Reply(
            r.kind, r.op, r.error, r.status, r.start_ns, r.end_ns, r.user_us, r.system_us, r.maxrss_kib
        )

    def output(self, stream: int) -> bytes:
        """What was read: stream 0 is stdout, 1 is stderr."""
        held = self._pump.stream[stream]
        if not held.size:
            return b""
        data: bytes = _ffi.buffer(held.data, held.size)[:]
        return data

    @property
    def room(self) -> int:
        """Bytes that may still be read before PUMP_LIMIT; only meaningful with a limit."""
        used: int = self._pump.stream[0].size + self._pump.stream[1].size
        return int(self._pump.limit) - used

    def close(self) -> None:
        """Free the buffers and close the streams; idempotent."""
        _lib.isobox_pump_close(self._pump)


def clone_tree(path: str | bytes, *, dir_fd: int = -100, recursive: bool = False) -> int:
    """Return a detached copy of the mount at `path`: open_tree(2) with OPEN_TREE_CLONE."""
    encoded = os.fsencode(path)
    return _check(_lib.isobox_clone_tree(dir_fd, encoded, recursive), path)


def mount_setattr(fd: int, attributes: int, *, recursive: bool = False, userns_fd: int = -1) -> None:
    """Set MOUNT_ATTR_* on a detached mount; with `userns_fd`, make it an idmapped mount."""
    _check(_lib.isobox_mount_setattr(fd, attributes, recursive, userns_fd))


def new_tmpfs(size: int, mode: int) -> int:
    """Return a detached tmpfs of at most `size` bytes; its root directory has `mode`."""
    return _check(_lib.isobox_new_tmpfs(b"%d" % size, b"%o" % mode))


def mount_file(filesystem: str, path: str | bytes) -> int:
    """Return a detached, read-only mount of the file system of this type that the file has: fsopen(2)."""
    return _check(_lib.isobox_mount_file(filesystem.encode(), os.fsencode(path)), path)


def load_device_program(code: bytes) -> int:
    """Load a BPF_PROG_TYPE_CGROUP_DEVICE program, given as `struct bpf_insn`; the caller owns it: bpf(2)."""
    return _check(_lib.isobox_load_device_program(_ffi.from_buffer(code), len(code)))


def attach_device_program(group_fd: int, program_fd: int) -> None:
    """Attach it to a v2 group, for as long as that lives: BPF_PROG_ATTACH with BPF_F_ALLOW_MULTI."""
    _check(_lib.isobox_attach_device_program(group_fd, program_fd))


def sync_file_system(fd: int) -> None:
    """Wait until all that was written to the file system that `fd` is open on is on its disk: syncfs(2).

    Since Linux 5.8 it raises OSError where anything written since `fd` was opened could not be.
    """
    _check(_lib.isobox_sync_file_system(fd))


class Files(NamedTuple):
    """What `make_files` made: how many files, their bytes, and the bytes of the archive that they were."""

    files: int
    size: int
    used: int


def make_files(
    root_fd: int,
    place: bytes,
    above: bytes,
    archive: bytes,
    at: int,
    *,
    most: int,
    keep_owners: bool,
    modes: int,
) -> Files:
    """Make up to `most` files of a tar archive, whose entries begin at `archive[at]`.

    Those that are whole there, with plain headers, in the directory `above` of the archive, which is `place`
    below `root_fd`: a path without links, not empty. Stops before whatever is anything else or fails; nothing
    is followed or replaced. `modes`: the bits that they may have.
    """
    files = _ffi.new("struct isobox_files *")
    files.root_fd, files.keep_owners, files.modes, files.most = root_fd, keep_owners, modes, most
    held = _ffi.from_buffer(place), _ffi.from_buffer(above), _ffi.from_buffer(archive)
    files.place, files.place_size = held[0], len(place)
    files.above, files.above_size = held[1], len(above)
    count: int = _lib.isobox_make_files(files, held[2] + at, len(archive) - at)
    return Files(count, files.bytes, files.used)


def try_call(number: int) -> int:
    """Return the errno of a system call that takes flags, called so that it can do nothing: ENOSYS, say."""
    return -int(_lib.isobox_try_call(number))


def landlock_abi() -> int:
    """The version of the kernel's Landlock. Raises OSError: ENOSYS without it, EOPNOTSUPP where it is off."""
    return _check(_lib.isobox_landlock_abi())
