"""The containers of other ``isobox run`` processes: found by id or name, and asked (see protocol.py)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final

import click
from attrs import frozen

from isobox.cli import protocol
from isobox.cli.attended import FOLDER
from isobox.cli.protocol import Document
from isobox.errors import StateError, printable, shown
from isobox.runtime import state_dir

_SHOWN: Final = 20


@frozen
class Running:
    """A container that another process has; `name` is the id where it was given none."""

    id: str
    name: str
    _folder: str
    _entry: str

    def __str__(self) -> str:
        return self.id if self.name == self.id else f"{self.id} ({printable(self.name)})"

    def ask(self, request: Document) -> Document:
        """Return the answer. Raises the error that is answered; `StateError` where none comes."""
        data = protocol.encoded(request, protocol.MOST_REQUEST)
        connection = self._connect(wait=True)
        if connection is None:
            raise self._ended()
        with connection:
            try:
                with suppress(BrokenPipeError, ConnectionResetError):  # it has said why
                    connection.sendall(data)
                document = protocol.received(connection.recv, protocol.MOST_ANSWER)
            except (EOFError, ConnectionError):
                raise self._ended() from None
        if document is None:
            raise self._ended()
        return protocol.answer_of(document)

    def alive(self) -> bool:
        """Whether its process lives; of a killed one the socket stays until somebody cleans up."""
        try:
            connection = self._connect(wait=False)
        except BlockingIOError:  # many ask
            return True
        if connection is not None:
            connection.close()
        return connection is not None

    def _connect(self, *, wait: bool) -> socket.socket | None:
        """None where nobody listens any more; BlockingIOError where one would have to wait."""
        try:
            folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(wait)
            connection.connect(protocol.at(folder, self._entry))
            _, uid = protocol.peer(connection)
            if os.geteuid() in (0, uid):
                return connection
        except (ConnectionRefusedError, FileNotFoundError, PermissionError):
            pass
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(folder)
        connection.close()
        return None

    def _ended(self) -> StateError:
        return StateError(f"container {self}: its isobox run ended before it had answered")


def find(text: str) -> Running | None:
    """The running container of that id or name, or whose id alone begins like that; None if there is none.

    An exact id goes before a name, and a name before the beginning of an id. Raises `click.ClickException`
    where several are meant.
    """
    known = _known()
    for same in (
        [one for one in known if one.id == text],
        [one for one in known if one.name == text],
        [one for one in known if text and one.id.startswith(text)],
    ):
        found = [one for one in same if one.alive()]
        if len(found) > 1:
            listed = ", ".join(map(str, found[:_SHOWN]))
            raise click.ClickException(f"{shown(text)} may be any of these containers: {listed}. Say its id")
        if found:
            return found[0]
    return None


def what_runs() -> str:
    """Say which containers run, for an error."""
    found = [one for one in _known() if one.alive()]
    if not found:
        return "No container of yours runs: isobox run starts one"
    return "Running: " + ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")


def get(text: str) -> Running:
    """As `find`; raises `click.ClickException` where there is none."""
    found = find(text)
    if found is None:
        raise click.ClickException(f"no container {shown(text)} runs. {what_runs()}")
    return found


def _known() -> list[Running]:
    """All that have a socket, the dead among them."""
    found = []
    owners = f"{state_dir()}/owners"
    for owner in _names(owners):
        folder = f"{owners}/{owner}/{FOLDER}"
        for entry in _names(folder):
            parsed = protocol.parse_socket_name(entry)
            if parsed is not None:
                found.append(Running(*parsed, folder, entry))
    return sorted(found, key=lambda one: (one.name, one.id))


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:  # gone, or another user's
        return []
