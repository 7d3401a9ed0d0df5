"""Runs a seccomp filter as the kernel would, so that a test can ask about every call without making it."""

from __future__ import annotations

import os
import struct

ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NATIVE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]
_ARGUMENTS = 16  # their offset in struct seccomp_data


def run(
    program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = NATIVE
) -> tuple[int, bool]:
    """Return what the filter answers, and whether it looked at an argument."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    looked = False
    while True:
        operation, true, false, value = instructions[at]
        at += 1
        if operation == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            looked |= value >= _ARGUMENTS
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x54:  # BPF_ALU | BPF_AND
            accumulator &= value
        elif operation == 0x06:  # BPF_RET
            return value, looked
        elif operation == 0x05:  # BPF_JMP | BPF_JA
            at += value
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[operation]
            at += true if holds else false
