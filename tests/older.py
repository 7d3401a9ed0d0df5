"""Run a command as on an older kernel: some system calls are not there, for it and for all that it starts.

``python tests/older.py LANE -- COMMAND...``, where LANE is one of `LANES`. A seccomp filter answers ENOSYS,
as a kernel without the call does, and as the profiles of container engines do. The version that uname(2)
tells stays. For root programs may still gain privileges; an ordinary user's filter needs no_new_privs, so
newuidmap can't work below it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple

# Since Linux 5.1 a new call has the same number on every machine.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LAST_CALL = 511  # x86-64 has some of its own above
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LD_WORD, JUMP_EQUAL, JUMP_GREATER, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
AT_NUMBER, AT_ARCH, AT_SECOND_ARGUMENT = 0, 4, 24  # in struct seccomp_data


class Missing(NamedTuple):
    """Calls that fail: those from `first` to `last`, if their second argument is at least `size`."""

    first: int
    last: int
    code: int = errno.ENOSYS
    size: int = 0


def call(number: int) -> tuple[Missing, ...]:
    return (Missing(number, number),)


LANES: dict[str, tuple[Missing, ...]] = {
    "pidfd_open": call(434),  # Linux 5.3
    "clone3": call(435),  # Linux 5.3
    # Linux 5.7. The flag is in memory, where no filter looks; its descriptor makes struct clone_args larger.
    # Older kernels take that size too and say E2BIG where the rest is not 0, which no filter can tell.
    # With ENOSYS the libc goes back to clone.
    "clone_into_cgroup": (Missing(435, 435, size=88),),
    "open_tree": call(428),  # Linux 5.2, these five
    "move_mount": call(429),
    "fsopen": call(430),
    "fsconfig": call(431),
    "fsmount": call(432),
    "openat2": call(437),  # Linux 5.6
    "close_range": call(436),  # Linux 5.9
    "mount_setattr": call(442),  # Linux 5.12
    "landlock": (Missing(444, 446),),  # Linux 5.13
    # All that came after process_madvise: epoll_pwait2, mount_setattr, quotactl_fd, Landlock, memfd_secret,
    # process_mrelease, futex_waitv, cachestat, fchmodat2, statmount ...
    "linux-5.10": (Missing(441, LAST_CALL),),
}


def program(lane: Sequence[Missing]) -> bytes:
    """The filter: an array of struct sock_filter."""
    steps = [(LD_WORD, 0, 0, AT_ARCH), (JUMP_EQUAL, 1, 0, AUDIT_ARCH[platform.machine()])]
    steps.append((RETURN, 0, 0, RET_ALLOW))
    for missing in lane:
        steps += [
            (LD_WORD, 0, 0, AT_NUMBER),
            (JUMP_AT_LEAST, 0, 4, missing.first),
            (JUMP_GREATER, 3, 0, missing.last),
            (LD_WORD, 0, 0, AT_SECOND_ARGUMENT),
            (JUMP_AT_LEAST, 0, 1, missing.size),
            (RETURN, 0, 0, RET_ERRNO | missing.code),
        ]
    steps.append((RETURN, 0, 0, RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def install(lane: Sequence[Missing]) -> None:
    """Put this process under the filter, for good. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = program(lane)
    buffer = ctypes.create_string_buffer(code, len(code))
    description = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    arguments = [ctypes.c_ulong(value) for value in (MODE_FILTER, ctypes.addressof(description), 0, 0)]
    if libc.prctl(PR_SET_SECCOMP, *arguments):
        libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)
        if libc.prctl(PR_SET_SECCOMP, *arguments):
            code = ctypes.get_errno()
            raise OSError(code, f"installing the filter: {os.strerror(code)}")


def main(arguments: list[str]) -> None:
    if len(arguments) < 3 or arguments[0] not in LANES or arguments[1] != "--":
        sys.exit(f"usage: python tests/older.py {'|'.join(LANES)} -- COMMAND...")
    install(LANES[arguments[0]])
    os.execvp(arguments[2], arguments[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
