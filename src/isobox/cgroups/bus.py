"""Calls to a manager of systemd: D-Bus over a UNIX socket, and an end to all waiting.

jeepney, from the extra "systemd", writes and reads the messages; nothing else of isobox imports it. Its own
connections are not used: they wait for the first answer of a bus without a limit in time.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections import deque
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Final, Self

from .. import forks

_MOST_BYTES: Final = 1 << 20
"""Of all answers on one connection: some hundred bytes each are to be expected."""

Address = tuple[str, str, str]
"""Whom a call is for: the name on the bus, the path of the object, the interface."""

BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class BusError(Exception):
    """No answer that can be used; the text says why."""


def installed() -> bool:
    """Return whether the library is there."""
    return find_spec("jeepney") is not None


class Connection:
    """A connection to the socket ``path`` (``"\\0name"``: an abstract one), for ``seconds`` altogether.

    With ``bus`` there is a message bus behind it, else the manager itself. Raises `BusError`, as every
    method does.
    """

    def __init__(self, path: str, *, bus: bool, seconds: float) -> None:
        with forks.whole:
            self._jeepney: Any = import_module("jeepney")
            authenticator: Any = import_module("jeepney.auth").Authenticator
        self._deadline = time.monotonic() + seconds
        self._parser = self._jeepney.Parser()
        self._received = 0
        self._serials = itertools.count(1)
        self._signals: deque[Any] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as stack:
            stack.callback(self._socket.close)
            with self._patience():
                self._socket.connect(path)
            self._authenticate(authenticator())
            if bus:
                self.call(BUS, "Hello")
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(
        self, address: Address, member: str, signature: str = "", body: tuple[object, ...] = ()
    ) -> tuple[object, ...]:
        """Call a method and return what it answers."""
        name, path, interface = address
        message = self._jeepney.new_method_call(
            self._jeepney.DBusAddress(path, bus_name=name, interface=interface),
            member,
            signature or None,
            body,
        )
        message.header.flags |= self._jeepney.MessageFlag.no_auto_start
        serial = next(self._serials)
        with self._patience():
            self._socket.sendall(message.serialise(serial=serial))
        fields = self._jeepney.HeaderFields
        while True:
            found = self._next()
            if found.header.fields.get(fields.reply_serial) != serial:
                self._signals.append(found)
                continue
            if found.header.message_type is self._jeepney.MessageType.error:
                error = found.header.fields.get(fields.error_name, "an error")
                raise BusError(": ".join(str(part) for part in (error, *found.body[:1])))
            return tuple(found.body)

    def signals(self, interface: str, member: str) -> Iterator[tuple[object, ...]]:
        """Yield what signals of this name say, those first that came during the calls; without an end."""
        fields = self._jeepney.HeaderFields
        while True:
            found = self._signals.popleft() if self._signals else self._next()
            said = found.header.fields
            if (said.get(fields.interface), said.get(fields.member)) == (interface, member):
                yield tuple(found.body)

    def _authenticate(self, authenticator: Any) -> None:
        """Send everything at once, as libsystemd's own clients do, and then look whether it was taken.

        Where systemd reads BEGIN and the first message together, it looks at that message only once
        another one comes: a BEGIN that is sent alone may wait long enough for that.
        """
        begin = next(iter(authenticator)) + b"BEGIN\r\n"  # the line has the zero byte that a bus expects
        with self._patience():
            self._socket.sendall(begin)
        while not authenticator.authenticated:
            with _read():
                authenticator.feed(self._receive(1))  # not one byte of what follows the line

    def _next(self) -> Any:
        while True:
            with _read():
                message = self._parser.get_next_message()
            if message is not None:
                return message
            self._parser.add_data(self._receive(4096))

    def _receive(self, most: int) -> bytes:
        with self._patience():
            data = self._socket.recv(most)
        self._received += len(data)
        if not data:
            raise BusError("the connection was closed")
        if self._received > _MOST_BYTES:
            raise BusError("it says too much")
        return data

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Give one call of the socket the time that is left."""
        left = self._deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            yield
        except TimeoutError:
            raise BusError("no answer in time") from None
        except OSError as error:
            raise BusError(error.strerror or str(error)) from error


@contextlib.contextmanager
def _read() -> Iterator[None]:
    """Have whatever the library makes of bytes that are no D-Bus end as one error."""
    try:
        yield
    except BusError:
        raise
    except Exception as error:
        raise BusError(f"the answer is not D-Bus: {error!r}") from error
