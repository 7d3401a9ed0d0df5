"""One step of a plan as data: what isobox-init is to do, in the order of the list.

An `Op` has a code, up to four numbers, strings, and a note for people. `encode` makes the bytes of
``struct isobox_op`` (isobox.h) from it. Nothing here looks at the host.

>>> op = make("HOSTNAME", strings=(b"box",))
>>> print(describe(op))
hostname       box
>>> len(encode([op]))
48
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Final

from attrs import frozen

from .. import _native

_HEAD: Final = struct.Struct("=HHIqqqq")
_REQUEST: Final = struct.Struct("=IIIIqqqq")
_LENGTH: Final = struct.Struct("=I")

# Arguments of ops, and kinds of namespaces: include/uapi/linux/sched.h,
CLONE_NEWTIME: Final = 0x00000080
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
# include/uapi/linux/mount.h and fcntl.h,
OPEN_TREE_CLONE: Final = 0x1
AT_RECURSIVE: Final = 0x8000
MS_REC_PRIVATE: Final = 0x4000 | 1 << 18
ATTR_RDONLY: Final = 0x1
ATTR_NOSUID: Final = 0x2
ATTR_NODEV: Final = 0x4
ATTR_NOEXEC: Final = 0x8
# and where a path is, as isobox.h has it:
HOST_PATH: Final = 0
BELOW_ROOT: Final = 1
NO_LINKS: Final = 2  # below the root, where no link leads elsewhere
IF_POSSIBLE: Final = 2  # of MKDIR: whatever fails is left


@frozen(slots=False)
class Op:
    """One step. `note` says for people what the numbers mean and where an error would come from."""

    name: str
    args: tuple[int, ...] = ()
    strings: tuple[bytes, ...] = ()
    note: str = ""


def make(name: str, *args: int, strings: tuple[bytes, ...] = (), note: str = "") -> Op:
    """Make an op by the name that it has in isobox.h, without the prefix."""
    return Op(name, args, strings, note)


def encode_op(op: Op) -> bytes:
    """Return the bytes of one op."""
    body = b"".join([_LENGTH.pack(len(text)) + text + b"\0" for text in op.strings])
    args = (*op.args, 0, 0, 0, 0)[:4]
    return _HEAD.pack(_native.OP_CODES[op.name], len(op.strings), _HEAD.size + len(body), *args) + body


def encode(ops: Iterable[Op]) -> bytes:
    """Return the bytes of a plan."""
    return b"".join([encode_op(op) for op in ops])


def encode_request(
    kind: int, *, flags: int = 0, size: int = 0, nfds: int = 0, number: int = 0, args: tuple[int, ...] = ()
) -> bytes:
    """Return the head of a message: ``struct isobox_request``."""
    return _REQUEST.pack(kind, flags, size, nfds, number, *(*args, 0, 0, 0)[:3])


def filesystem(op: Op) -> str:
    """The kind of file system that an op makes; empty for other ops."""
    if op.name == "FSOPEN":
        return os.fsdecode(op.strings[0])
    return op.note if op.name in ("FSMOUNT", "MOUNT") else ""


def describe(op: Op, width: int = 14) -> str:
    """Return one line of ``explain``: the op, its strings where they are text, its note."""
    words = [_shown(text) for text in op.strings]
    if op.note:
        words.append(f"({op.note})" if words else op.note)
    return f"{op.name.lower().replace('_', '-'):<{width}} {' '.join(words)}".rstrip()


def _shown(text: bytes) -> str:
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return f"<{len(text)} bytes>"
    if not decoded.isprintable():
        return f"<{len(text)} bytes>"
    return decoded if len(decoded) <= 120 else decoded[:117] + "..."
