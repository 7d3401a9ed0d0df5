"""What a command and the ``isobox run`` that has a container say to each other, over a UNIX stream socket.

A connection is for one request and its answer. Each is 4 bytes, its size (big-endian), and so many of JSON::

    request   {"ask": "diff"}, {"ask": "commit", "name": "app:2", ...}: see attended.py
    answer    {"answer": {...}} or {"error": {"kind": "StateError", "text": "...", "fields": {...}}}

Neither side trusts what it reads: sizes are bounded, types are checked, and text is made printable.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, TypeVar

from isobox import errors
from isobox.errors import IsoboxError, StateError, printable, shown

MOST_REQUEST: Final = 1 << 20
MOST_ANSWER: Final = 1 << 27
"""Bytes: a million changes with long paths."""

_SIZE: Final = 4
_PEER: Final = "iII"  # struct ucred
_LONGEST_TEXT: Final = 1 << 16
_FIELD: Final = re.compile("[a-z][a-z_]*")

Document = dict[str, Any]
Kind = TypeVar("Kind")


def socket_name(container_id: str, name: str) -> str:
    """What the socket of a container is called; its name is the id where it was given none.

    >>> socket_name("0123456789ab", "web"), socket_name("0123456789ab", "0123456789ab")
    ('0123456789ab-web', '0123456789ab')
    """
    return container_id if name == container_id else f"{container_id}-{name}"


def parse_socket_name(entry: str) -> tuple[str, str] | None:
    """The id and the name of the container that a socket is of; None where it is no such socket.

    >>> parse_socket_name("0123456789ab-web"), parse_socket_name("0123456789ab"), parse_socket_name("lock")
    (('0123456789ab', 'web'), ('0123456789ab', '0123456789ab'), None)
    """
    found = re.fullmatch(r"([0-9a-f]{12})(?:-(.+))?", entry)
    return None if found is None else (found[1], found[2] or found[1])


def at(folder: int, entry: str) -> str:
    """A path for bind(2) and connect(2), which take 107 bytes and no directory's descriptor."""
    return f"/proc/{os.getpid()}/fd/{folder}/{entry}"


def peer(connection: socket.socket) -> tuple[int, int]:
    """The process and the user on the other side (SO_PEERCRED in unix(7))."""
    size = struct.calcsize(_PEER)
    pid, uid, _ = struct.unpack(_PEER, connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def encoded(document: Document, most: int) -> bytes:
    """Return a frame. Raises `StateError` where it would be larger than `most` bytes."""
    data = json.dumps(document).encode("ascii")
    if len(data) > most:
        raise StateError(f"a message of {len(data)} bytes: expected {most} at most")
    return len(data).to_bytes(_SIZE, "big") + data


def received(read: Callable[[int], bytes], most: int) -> Document | None:
    """Read one frame; None where the other side said nothing and is gone.

    `read` returns at most so many bytes, none at the end. Raises `EOFError` where the end comes in the
    middle, `StateError` for what is too large or no JSON object.
    """
    head = _exactly(read, _SIZE, may_end=True)
    if not head:
        return None
    size = int.from_bytes(head, "big")
    if size > most:
        raise StateError(f"a message of {size} bytes: expected {most} at most")
    try:
        document = json.loads(_exactly(read, size))
    except (ValueError, RecursionError):
        raise StateError("a message that is no JSON") from None
    if not isinstance(document, dict):
        raise StateError("a message that is no JSON object")
    return document


def _exactly(read: Callable[[int], bytes], size: int, *, may_end: bool = False) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = read(min(size - len(data), 1 << 18))
        if not piece:
            if may_end and not data:
                return b""
            raise EOFError("the connection ended in the middle of a message")
        data += piece
    return bytes(data)


def field(document: Document, name: str, kind: type[Kind]) -> Kind:
    """Return a field that must be there. Raises `StateError`."""
    value = document.get(name)
    if not isinstance(value, kind):
        raise StateError(f"a message whose {name} is {shown(value, 60)}: expected {kind.__name__}")
    return value


def texts(value: object, what: str) -> list[str]:
    """Check a list of strings. Raises `StateError`."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise StateError(f"a message whose {what} is {shown(value, 60)}: expected a list of strings")
    return value


def pairs(value: object, what: str) -> dict[str, str]:
    """Check an object of strings. Raises `StateError`."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise StateError(f"a message whose {what} is {shown(value, 60)}: expected an object of strings")
    return value


def of_error(error: BaseException) -> Document:
    """Return the answer that an error is."""
    if not isinstance(error, IsoboxError):
        what = f"{type(error).__name__}: {error}"
        error = StateError(f"the isobox run that has the container met an unexpected {what}")
    fields = {
        name: value
        for name, value in vars(error).items()
        if _FIELD.fullmatch(name) and isinstance(value, (str, int, type(None)))
    }
    kind = type(error).__name__
    return {"error": {"kind": kind, "text": str(error)[:_LONGEST_TEXT], "fields": fields}}


def answer_of(document: Document) -> Document:
    """Return what was answered, or raise the error that was, one of isobox.errors."""
    if "error" not in document:
        return field(document, "answer", dict)
    said = field(document, "error", dict)
    kind = getattr(errors, field(said, "kind", str), None)
    if not (isinstance(kind, type) and issubclass(kind, IsoboxError)):
        kind = StateError  # of a newer isobox
    error = kind.__new__(kind)
    error.args = (printable(field(said, "text", str)[:_LONGEST_TEXT]),)
    for name, value in field(said, "fields", dict).items():
        if _FIELD.fullmatch(name) and isinstance(value, (str, int, type(None))) and not hasattr(error, name):
            setattr(error, name, printable(value[:_LONGEST_TEXT]) if isinstance(value, str) else value)
    if isinstance(error, errors.SpecError) and not hasattr(error, "field"):
        error.field = error.expected = ""
    raise error
