"""The socket to a container's isobox-init: requests out, untrusted replies back.

A request is one message; its answer is one fixed record (isobox.h), with at most one descriptor. An
exec's own story goes over a pipe of its own, so any number of threads may exec at once; the other
requests take turns under a lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from . import _native
from .errors import ExecError, StateError
from .hints import hint
from .plan.ops import encode_request

REPLY_TIMEOUT_MS = 10_000
"""isobox-init answers in microseconds; after this long something inside holds it up."""

_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)
"""How a socket says that init has ended, or that a signal's handler has closed it."""


def too_long(size: int) -> ExecError:
    """The error for more arguments and environment than one message may bring."""
    what = f"{size} bytes of arguments and environment"
    return ExecError(errno.E2BIG, what, stage="exec", op="execve", hint=hint("EXEC", errno.E2BIG))


class Control:
    """Owns the socket. `Inside` of `isobox.files` in the flesh: paths are resolved by the container."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # A signal's handler may close the container while its own thread asks or sends: hence RLock.
        self._lock = threading.RLock()  # who waits for an answer
        self._sending = threading.RLock()
        self._owed = 0  # answers on their way
        self.paused = False
        """Whether nobody in there can answer."""

    def fileno(self) -> int:
        """The socket; -1 after close."""
        return self._fd

    def close(self) -> None:
        """Close the socket, which ends the container; idempotent.

        Not under the feet of other threads: the descriptor may be another file's the moment it is free.
        """
        if not self._lock.acquire(blocking=False):
            self._interrupt()
            self._lock.acquire()
        try:
            with self._sending:
                fd, self._fd = self._fd, -1
                if fd >= 0:
                    os.close(fd)
        finally:
            self._lock.release()

    def _interrupt(self) -> None:
        """Let the thread go on that waits for an answer: a program may keep the other end open."""
        with self._sending, contextlib.suppress(OSError):
            if self._fd >= 0:
                with socket.socket(fileno=os.dup(self._fd)) as copy:
                    copy.shutdown(socket.SHUT_RDWR)

    def pause(self, on: bool) -> None:
        """Say that the container is about to be frozen; waits for the answer that someone waits for."""
        with self._lock:
            self.paused = on

    def _awake(self) -> None:
        if self.paused:
            raise StateError("the container is paused; resume it first")

    def _check_open(self) -> None:
        if self._fd < 0:
            raise StateError("the container has stopped")

    def _gone(self, error: OSError) -> StateError:
        return StateError(f"the container has stopped ({error.strerror})")

    def prepare(self, plan: bytes, fds: Sequence[int]) -> None:
        """Send the first part of the plan; a failure of it is `setup`'s to tell."""
        self._send(_native.PREPARE, plan, fds)

    def setup(self, plan: bytes, fds: Sequence[int]) -> _native.Reply:
        """Send the rest of the plan and wait for READY or FAILED."""
        self._send_setup(plan, fds)
        reply, fd = self._answer(self._await_ready)
        if fd >= 0:
            os.close(fd)
        return reply

    def copy(self, plan: bytes, fds: Sequence[int]) -> None:
        """Send a plan that copies, and wait until that is done, however long it takes: see `copied`."""
        self._send_setup(plan, fds)
        answers = select.poll()
        answers.register(self._fd, select.POLLIN)
        while not answers.poll(1000):
            pass

    def copied(self) -> tuple[_native.Reply, int]:
        """What became of `copy`: with READY comes the mount that was copied to, the caller's."""
        reply, fd = self._answer(lambda: _native.receive(self._fd, REPLY_TIMEOUT_MS))
        if fd >= 0 and reply.kind != _native.READY:
            os.close(fd)
        elif fd < 0 and reply.kind == _native.READY:
            reply = _native.Reply(_native.FAILED, -1, errno.EPROTO, 0)
        return reply, fd

    def _send_setup(self, plan: bytes, fds: Sequence[int]) -> None:
        try:
            self._send(_native.SETUP, plan, fds)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise  # else it has ended, and what it said last can still be read

    def _answer(self, receive: Callable[[], tuple[_native.Reply, int, int]]) -> tuple[_native.Reply, int]:
        try:
            reply, fd, _pid = receive()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                return _native.Reply(_native.FAILED, -1, errno.EPIPE, 0), -1
            raise
        return reply, fd

    def _await_ready(self) -> tuple[_native.Reply, int, int]:
        """Wait for a minute, in pieces: a setup may hang, and between them the signals of Python run."""
        for _ in range(59):
            try:
                return _native.receive(self._fd, REPLY_TIMEOUT_MS // 10)
            except TimeoutError:
                continue
        return _native.receive(self._fd, REPLY_TIMEOUT_MS // 10)

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Have the other requests wait: nobody in there answers for a moment."""
        with self._lock:
            yield

    def thaw_at_end(self, fd: int, text: bytes) -> None:
        """Have it write `text` to `fd` once this process ends; returns when it is on the watch."""
        self._send(_native.THAW, text, [fd])
        _reply, unasked, _pid = _native.receive(self._fd, REPLY_TIMEOUT_MS)
        if unasked >= 0:
            os.close(unasked)

    def exec(self, plan: bytes, fds: Sequence[int], *, number: int, flags: int, cgroup: int = -1) -> None:
        """Ask for an exec, born in the cgroup fds[cgroup]; what becomes of it comes through fds[0]."""
        if cgroup >= 0:
            flags |= _native.CGROUP_FD
        try:
            self._send(_native.EXEC, plan, fds, number=number, flags=flags, args=(0, cgroup, 0))
        except OSError as error:
            if error.errno in _GONE:
                raise self._gone(error) from None
            raise

    def _send(
        self,
        kind: int,
        payload: bytes,
        fds: Sequence[int],
        *,
        number: int = 0,
        flags: int = 0,
        args: tuple[int, ...] = (),
    ) -> None:
        size = len(payload)
        if size <= _native.MESSAGE_MAX:
            head = encode_request(kind, flags=flags, size=size, nfds=len(fds), number=number, args=args)
            self._send_message(head + payload, fds)
            return
        if size > _native.PAYLOAD_MAX:
            raise too_long(size)
        memfd = os.memfd_create("isobox-plan")
        try:
            view = memoryview(payload)
            while view:
                view = view[os.write(memfd, view) :]
            flags |= _native.PAYLOAD_FD
            head = encode_request(kind, flags=flags, size=size, nfds=len(fds) + 1, number=number, args=args)
            self._send_message(head, [*fds, memfd])
        finally:
            os.close(memfd)

    def _send_message(self, message: bytes, fds: Sequence[int] = ()) -> None:
        with self._sending:
            self._check_open()
            _native.send(self._fd, message, fds)

    def _ask(
        self, kind: int, payload: bytes, args: tuple[int, ...], *, opens: bool = False
    ) -> tuple[int, int]:
        """Send and wait: (descriptor, pid), -1 where there is none. OSError as isobox-init met it.

        A descriptor is the caller's where the request `opens` one; any other that comes is closed.
        """
        head = encode_request(kind, size=len(payload), args=args)
        with self._lock:
            self._check_open()
            self._awake()
            try:
                self._skip_answers()
                self._send_message(head + payload)
                self._owed += 1
                reply, fd, pid = _native.receive(self._fd, REPLY_TIMEOUT_MS)
                self._owed -= 1
            except OSError as error:
                if error.errno in _GONE:
                    raise self._gone(error) from None
                if error.errno in (errno.ETIMEDOUT, errno.EBADMSG):
                    # The answer may still come and would be taken for the next one's: give up on it.
                    self.close()
                    raise StateError(f"the container's init does not answer properly: {error}") from None
                raise
        if fd >= 0 and not (opens and reply.kind == _native.DONE):
            os.close(fd)
            fd = -1
        if reply.kind != _native.DONE:
            number = reply.error if 0 < reply.error < 4096 else errno.EPROTO
            raise OSError(number, os.strerror(number))
        return fd, pid

    def _skip_answers(self) -> None:
        """Take the answers that nobody came to wait for: each request has one, in order."""
        while self._owed:
            _reply, fd, _pid = _native.receive(self._fd, REPLY_TIMEOUT_MS)
            self._owed -= 1
            if fd >= 0:
                os.close(fd)

    def _ask_path(self, kind: int, path: str, *more: str, args: tuple[int, ...]) -> int:
        texts = [os.fsencode(text) for text in (path, *more)]
        if any(b"\0" in text for text in texts):
            raise ValueError("embedded null byte in a path")
        if sum(map(len, texts)) > 16384:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        try:
            data = b"".join(text + b"\0" for text in texts)
            fd, _pid = self._ask(kind, data, args, opens=kind == _native.OPEN)
        except OSError as error:
            error.filename = path
            raise
        return fd

    def open(self, path: str, flags: int, mode: int = 0o666, *, base: int = 0) -> int:
        """Open as the container's root does; the caller owns the descriptor. Never blocks on a FIFO."""
        creates = flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE
        fd = self._ask_path(_native.OPEN, path, args=(flags, mode if creates else 0, base))
        if fd < 0:
            raise OSError(errno.EPROTO, "no descriptor came back", path)
        return fd

    def mkdir(self, path: str, mode: int = 0o777, *, base: int = 0) -> None:
        """Make a directory."""
        self._ask_path(_native.MKDIR, path, args=(0, mode, base))

    def symlink(self, target: str, path: str, *, base: int = 0) -> None:
        """Make a symbolic link at `path`."""
        self._ask_path(_native.SYMLINK, path, target, args=(0, 0, base))

    def unlink(self, path: str, *, base: int = 0) -> None:
        """Remove a name that is not a directory."""
        self._ask_path(_native.UNLINK, path, args=(0, 0, base))

    def rmdir(self, path: str, *, base: int = 0) -> None:
        """Remove an empty directory."""
        self._ask_path(_native.UNLINK, path, args=(0x200, 0, base))  # AT_REMOVEDIR

    def change(self, plan: bytes) -> None:
        """Have init carry out more ops, on the root file system that is there."""
        self._ask(_native.CHANGE, plan, ())

    def keep(self, plan: bytes) -> int:
        """Have init carry out ops of which the last is KEEP: the mount, the caller's."""
        fd, _pid = self._ask(_native.CHANGE, plan, (), opens=True)
        if fd < 0:
            raise OSError(errno.EPROTO, "no mount came back")
        return fd

    def filter(self, plan: bytes) -> None:
        """Have a thread of init's install a seccomp filter, for the execs with ``_native.FILTERED``."""
        self._ask(_native.FILTER, plan, ())

    def signal(self, number: int, signal: int) -> bool:
        """Send a signal to the program of an exec; False if it has ended."""
        self._awake()
        with contextlib.suppress(ProcessLookupError, StateError):
            self._ask(_native.SIGNAL, b"", (number, signal))
            return True
        return False

    def locate(self, number: int) -> int | None:
        """The pid of an exec's program as this process sees it; None if it has ended."""
        self._awake()
        with contextlib.suppress(ProcessLookupError, StateError):
            _fd, pid = self._ask(_native.LOCATE, b"", (number,))
            return pid if pid > 0 else None
        return None
