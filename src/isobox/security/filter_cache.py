"""Compiled seccomp filters on disk.

An entry decides what a container may call, so it is believed only if nobody but this user (or
root) could have written it, and only if it says itself which profile it was made from. A cache
that can't be read or written costs time, never an error and never a weaker filter.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zlib

_HEADER = struct.Struct("=8sIII")  # magic, length of the key, length of the program, its crc
_MAGIC = b"isobpf1\n"
_MAX_ENTRY = 8 << 20


def load(folder: str, key: bytes) -> bytes | None:
    """The program kept for `key`, or None."""
    try:
        folder_fd = _open_folder(folder)
    except OSError:
        return None
    try:
        # O_NONBLOCK: a fifo in this place must not stop the caller
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(_name(key), flags, dir_fd=folder_fd)
    except OSError:
        return None
    finally:
        os.close(folder_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _only_ours(status) or status.st_size > _MAX_ENTRY:
            return None
        entry = os.read(fd, status.st_size)
    except OSError:
        return None
    finally:
        os.close(fd)
    return _decode(entry, key)


def store(folder: str, key: bytes, program: bytes) -> None:
    """Keeps `program`; whoever reads at the same time sees the whole entry or none."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        folder_fd = _open_folder(folder)
        try:
            _write(folder_fd, _name(key), key, program)
        finally:
            os.close(folder_fd)


def _write(folder_fd: int, name: str, key: bytes, program: bytes) -> None:
    temporary = f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=folder_fd)
    try:
        try:
            header = _HEADER.pack(_MAGIC, len(key), len(program), zlib.crc32(program))
            with open(fd, "wb", closefd=False) as file:
                file.write(header + key + program)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder_fd)
        raise


def _open_folder(folder: str) -> int:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not _only_ours(os.fstat(fd)):
        os.close(fd)
        raise PermissionError(folder)
    return fd


def _only_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _name(key: bytes) -> str:
    # Only to find the entry: what it holds is compared with the whole key.
    return f"{zlib.crc32(key):08x}{zlib.adler32(key):08x}.bpf"


def _decode(entry: bytes, key: bytes) -> bytes | None:
    if len(entry) < _HEADER.size:
        return None
    magic, key_length, length, crc = _HEADER.unpack_from(entry)
    program = entry[_HEADER.size + key_length :]
    if magic != _MAGIC or entry[_HEADER.size : _HEADER.size + key_length] != key:
        return None
    if len(program) != length or not length or length % 8 or zlib.crc32(program) != crc:
        return None
    return program
