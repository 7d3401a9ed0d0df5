"""Device control: which device nodes the processes of a group may make and open.

cgroup v1 has a hierarchy for it (Documentation/admin-guide/cgroup-v1/devices.rst). On v2 a program of
type BPF_PROG_TYPE_CGROUP_DEVICE decides, attached to the group (bpf(2); "Device controller" in
Documentation/admin-guide/cgroup-v2.rst). Either way the kernel asks when a node is made or opened,
whoever made it and wherever it lies.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import struct
import threading
from collections.abc import Iterable
from typing import Final, Literal

from attrs import frozen

from .. import _native
from ..errors import UnsupportedError
from .directory import Directory, Tree
from .ending import remove_all

FEATURE: Final = "device control"
ELSEWHERE: Final = 'use userns="auto" without SYS_ADMIN: there the kernel lets nobody make a device node'

_MOST_SETS: Final = 16

# include/uapi/linux/bpf_common.h and bpf.h: instructions as opcode, registers, offset, number
_INSTRUCTION: Final = struct.Struct("=BBhi")
_LOAD_WORD: Final = 0x61
_AND: Final = 0x57
_JUMP_IF_NOT: Final = 0x55
_MOVE: Final = 0xB7
_EXIT: Final = 0x95
_CONTEXT_TYPE, _CONTEXT_MAJOR, _CONTEXT_MINOR = 0, 4, 8  # struct bpf_cgroup_dev_ctx
_KINDS: Final = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_DEV_CHAR


@frozen(order=True)
class Device:
    """A device by its numbers, or by a `minor` of -1 all with this major: ``c 136:*`` are the terminals."""

    kind: Literal["b", "c"]
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.kind} {self.major}:{'*' if self.minor < 0 else self.minor}"


def program(devices: Iterable[Device]) -> bytes:
    """Return the BPF program that lets these devices be made, read and written, and no others.

    >>> len(program([Device("c", 1, 3)])) // 8  # instructions
    11
    """
    code = [
        (_LOAD_WORD, 1 << 4 | 2, _CONTEXT_TYPE, 0),
        (_AND, 2, 0, 0xFFFF),  # above it: whether to make, read or write
        (_LOAD_WORD, 1 << 4 | 3, _CONTEXT_MAJOR, 0),
        (_LOAD_WORD, 1 << 4 | 4, _CONTEXT_MINOR, 0),
    ]
    for device in sorted(devices):
        tests = [(2, _KINDS[device.kind]), (3, device.major)]
        if device.minor >= 0:
            tests.append((4, device.minor))
        for number, (register, wanted) in enumerate(tests):
            # To the next device: over the other tests, and over the two that allow it.
            code.append((_JUMP_IF_NOT, register, len(tests) - number + 1, wanted))
        code += [(_MOVE, 0, 0, 1), (_EXIT, 0, 0, 0)]
    code += [(_MOVE, 0, 0, 0), (_EXIT, 0, 0, 0)]
    return b"".join(_INSTRUCTION.pack(*each) for each in code)


def set_rules(group: Directory, devices: frozenset[Device]) -> None:
    """On v1, allow a group without any below it these devices only; read back and compared."""
    group.write("devices.deny", "a")
    for device in sorted(devices):
        hint = "A group that this process is in does not allow it"
        group.write("devices.allow", f"{device} rwm", hint)
    kept = group.read("devices.list").decode().splitlines()
    if set(kept) != {f"{device} rwm" for device in devices}:
        why = f"{group.path}/devices.list keeps {kept}"
        raise UnsupportedError(FEATURE, why, ELSEWHERE)


class Walls:
    """What one owner's containers with the same devices share, made once: v1 a group, v2 a loaded program."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = itertools.count(1)
        self._groups: dict[frozenset[Device], Directory] = {}
        self._programs: dict[frozenset[Device], int] = {}

    def group(self, tree: Tree, devices: frozenset[Device]) -> Directory:
        """Return the v1 group to join."""
        with self._lock:
            found = self._groups.get(devices)
            if found is None:
                if len(self._groups) >= _MOST_SETS:
                    for each in self._groups.values():
                        remove_all(each)  # one that is in use goes with the owner's directory
                    self._groups.clear()
                found = Directory(tree, f"devices-{next(self._count)}")
                found.make()
                try:
                    set_rules(found, devices)
                    # Joined is one below: its rules can't become wider than those above it, which are
                    # out of sight in a cgroup namespace.
                    found.below("init").make()
                except BaseException:
                    remove_all(found)
                    raise
                self._groups[devices] = found
        return found.below("init")

    def attach(self, group: Directory, devices: frozenset[Device]) -> None:
        """On v2, hold a group and all below it to these devices. Raises `UnsupportedError`."""
        try:
            fd = group.open(".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                with self._lock:
                    _native.attach_device_program(fd, self._program(devices))
            finally:
                os.close(fd)
        except OSError as error:
            why = f"the kernel takes no BPF program for devices: {error.strerror}"
            remedy = ELSEWHERE
            if error.errno == errno.EPERM:
                why += "; this process lacks CAP_BPF and CAP_NET_ADMIN, or a group above it forbids it"
            else:
                remedy = f"{ELSEWHERE}; or use a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
            raise UnsupportedError(FEATURE, why, remedy) from error

    def _program(self, devices: frozenset[Device]) -> int:
        fd = self._programs.get(devices)
        if fd is None:
            if len(self._programs) >= _MOST_SETS:
                self._close()  # what they are attached to keeps them
            fd = self._programs[devices] = _native.load_device_program(program(devices))
        return fd

    def _close(self) -> None:
        while self._programs:
            os.close(self._programs.popitem()[1])

    def close(self) -> None:
        """Close the programs; groups go with the owner's directory. Idempotent."""
        with self._lock:
            self._close()

    def after_fork(self) -> None:
        """In a forked child: close the copies, whatever locks were held."""
        self._lock = threading.Lock()
        with contextlib.suppress(OSError):
            self._close()
