"""The ``isobox run`` that has a container answers other commands about it: there is no daemon that could.

A socket lies beside the lock of this process's owner, in a folder that is closed to others (see runtime.py);
with the owner it goes, or is collected where that was killed.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from isobox import Container, runtime
from isobox.cli import protocol
from isobox.cli.protocol import Document, field
from isobox.errors import IsoboxError, StateError
from isobox.worker import take_no_signals

FOLDER: Final = "attended"

_SECONDS: Final = 10.0
"""How long whoever asks may take for a part of the request or of the answer: others wait behind."""

_EPOCH: Final = "SOURCE_DATE_EPOCH"


@contextmanager
def attending(container: Container) -> Iterator[None]:
    """Answer for a started container inside the block; what is being answered at its end is finished.

    Where no socket or thread can be had, the container runs all the same, and nobody finds it.
    """
    with ExitStack() as stack:
        with suppress(OSError, RuntimeError, IsoboxError):
            _open(container, stack)
        yield


def _open(container: Container, stack: ExitStack) -> None:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    folder = os.open(runtime.current().closed_directory(FOLDER), flags)
    stack.callback(os.close, folder)
    entry = protocol.socket_name(container.id, container.name)
    over, closed = socket.socketpair()
    with ExitStack() as threads:  # it may outlast an interrupted end of the block, and closes them itself
        threads.enter_context(closed)
        stack.enter_context(over)
        listener = threads.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        stack.callback(_unlink, folder, f".{entry}")
        listener.bind(protocol.at(folder, f".{entry}"))
        listener.listen(16)
        listener.setblocking(False)
        attendant = _Attendant(container, listener, closed)
        thread = threading.Thread(target=attendant.run, name="isobox-attend", daemon=True)
        thread.start()
        threads.pop_all()
    stack.callback(thread.join)
    stack.callback(over.close)
    stack.callback(_unlink, folder, entry)
    os.rename(f".{entry}", entry, src_dir_fd=folder, dst_dir_fd=folder)  # nobody finds it unready


def _unlink(folder: int, entry: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(entry, dir_fd=folder)


class _Over(Exception):
    """The container's end has come."""


class _Attendant:
    """Answers one request after the other, in a thread of its own."""

    def __init__(self, container: Container, listener: socket.socket, closed: socket.socket) -> None:
        self._container = container
        self._listener = listener
        self._closed = closed
        self._asks: dict[str, Callable[[Document], Document]] = {"commit": self._commit, "diff": self._diff}

    def run(self) -> None:
        take_no_signals()
        with self._listener, self._closed, suppress(_Over):
            while True:
                self._wait(self._listener, select.POLLIN, None)
                try:
                    connection, _ = self._listener.accept()
                except OSError:  # gone again, or no descriptors left
                    with suppress(TimeoutError):
                        self._wait(None, 0, 0.1)
                    continue
                with connection, suppress(OSError):
                    connection.setblocking(False)
                    self._attend(connection)

    def _wait(self, other: socket.socket | None, events: int, seconds: float | None) -> None:
        """Wait for one of these events; raises `TimeoutError`, and `_Over` where the end has come."""
        watched = select.poll()
        watched.register(self._closed, select.POLLIN)
        if other is not None:
            watched.register(other, events)
        ready = {fd for fd, _ in watched.poll(None if seconds is None else seconds * 1000)}
        if self._closed.fileno() in ready:
            raise _Over
        if not ready:
            raise TimeoutError

    def _attend(self, connection: socket.socket) -> None:
        try:
            _check_peer(connection)
            request = protocol.received(lambda size: self._read(connection, size), protocol.MOST_REQUEST)
            if request is None:
                return
            answer = protocol.encoded({"answer": self._answer(request)}, protocol.MOST_ANSWER)
        except (EOFError, OSError) as error:
            if not isinstance(error, IsoboxError):
                return  # there is nobody to be told
            answer = protocol.encoded(protocol.of_error(error), protocol.MOST_ANSWER)
        except _Over:
            raise
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            answer = protocol.encoded(protocol.of_error(error), protocol.MOST_ANSWER)
        _send(connection, answer)

    def _read(self, connection: socket.socket, size: int) -> bytes:
        self._wait(connection, select.POLLIN, _SECONDS)
        return connection.recv(size)

    def _answer(self, request: Document) -> Document:
        ask = field(request, "ask", str)
        if ask not in self._asks:
            raise StateError("the isobox run that has the container is another version, which can't do this")
        try:
            return self._asks[ask](request)
        except OSError as error:
            if isinstance(error, IsoboxError):
                raise
            raise StateError(f"{ask}: {error}") from error

    # What it can do

    def _diff(self, request: Document) -> Document:
        return {"changes": [[change.kind, change.path] for change in self._container.changes()]}

    def _commit(self, request: Document) -> Document:
        from isobox import Store  # with all of images, which most runs don't need

        options: dict[str, Any] = {}
        for name, value in field(request, "changes", dict).items():
            if name in ("env", "labels"):
                options[name] = protocol.pairs(value, name)
            elif name in ("cmd", "entrypoint", "volumes"):
                options[name] = protocol.texts(value, name)
            else:
                options[name] = field(request["changes"], name, str)
        with _environment(request.get("epoch")):
            image = self._container.commit(
                field(request, "name", str),
                author=field(request, "author", str),
                message=field(request, "message", str),
                **options,
            )
        return {"id": image.id, "digest": image.digest, "store": Store.default().path}


@contextmanager
def _environment(epoch: object) -> Iterator[None]:
    """That of whoever asks says which time it is; nothing else in this process looks at it meanwhile."""
    before = os.environ.pop(_EPOCH, None)
    try:
        if isinstance(epoch, str) and epoch:
            os.environ[_EPOCH] = epoch
        yield
    finally:
        os.environ.pop(_EPOCH, None)
        if before is not None:
            os.environ[_EPOCH] = before


def _check_peer(connection: socket.socket) -> None:
    """Refuse everybody but this user and root; and a container that was given the folder with the socket.

    Its root may be this very user. But no container has this PID namespace.
    """
    pid, uid = protocol.peer(connection)
    own = os.geteuid()
    if uid == own:
        theirs = None
        with suppress(OSError):
            theirs = os.stat(f"/proc/{pid}/ns/pid")
        if theirs is None or not os.path.samestat(theirs, os.stat("/proc/self/ns/pid")):
            raise StateError("who asks is in another PID namespace: ask from where the container was started")
    elif uid != 0:
        raise StateError(f"the container belongs to the user {own}: only that one and root may ask")


def _send(connection: socket.socket, data: bytes) -> None:
    """Also at the container's end: the work is done."""
    connection.settimeout(_SECONDS)
    view = memoryview(data)
    while view:
        view = view[connection.send(view[: 1 << 18]) :]
