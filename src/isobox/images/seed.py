"""Copy what an image has at a path into a new directory, as the content that a volume begins with.

An ordinary user's files get their owners in a user namespace only, and there alone all of an image can be
read: a process of its own does it, which runs this file's `main`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from isobox import discard, idmap
from isobox.errors import SetupError

from .layers.attributes import CAPABILITY
from .layers.layer import REFUSED
from .layers.lowers import Lowers
from .layers.mapped import module_path
from .layers.unpacking import Place

__all__ = ["copy", "main", "seed"]

_CODE: Final = "import sys; sys.path[:] = sys.argv[1:]; from isobox.images.seed import main; main()"
_PIECE: Final = 1 << 30
_LONGEST: Final = 4096


def seed(lowers: Sequence[str], path: str, into: str) -> None:
    """Fill the empty directory `into` with what is seen at `path` through `lowers`, the topmost first.

    Nothing where no directory is there, or only through a link. Owners are those in a container of this
    user's. Raises `SetupError`; what was copied until then is there.
    """
    if os.geteuid() == 0:
        try:
            copy(lowers, path, into)
        except OSError as error:
            raise SetupError(error.errno or errno.EIO, f"copy {path} to {into}", stage="volume") from error
        return
    command = [sys.executable or "python3", "-I", "-S", "-B", "-c", _CODE, *module_path()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/") as child:
        assert child.stdout is not None
        try:
            if child.stdout.readline(_LONGEST):
                idmap.write(child.pid, idmap.of_user())
            said, problem = child.communicate(json.dumps([*lowers, path, into]).encode() + b"\n")
        except BaseException:
            child.kill()
            raise
    if child.returncode or said.strip() != b"0":
        number = int(said) if said.strip().isdigit() and len(said) < 8 else 0
        why = problem.decode(errors="replace").strip().rpartition("\n")[2]
        what = f"copy {path} to {into} in a user namespace" + (f": {why}" if why and not number else "")
        raise SetupError(number or errno.EIO, what, stage="volume")


def main() -> None:
    """Copy once; the request is on standard input, the answer an errno on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    discard.new_user_namespace()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    *lowers, path, into = json.loads(sys.stdin.buffer.readline())
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    try:
        copy(lowers, path, into)
    except OSError as error:
        sys.stdout.write(f"{error.errno or errno.EIO}\n")
    else:
        sys.stdout.write("0\n")


def copy(lowers: Sequence[str], path: str, into: str) -> None:
    """As `seed`, in this process, which may give files to any id that they have. Raises OSError.

    Extended attributes that `into` has no room for are left out, as layers leave them out.
    """
    seen = Lowers(lowers, ())
    start = tuple(os.fsencode(name) for name in path.split("/") if name)
    if seen.find(start) is None:
        return
    links: dict[tuple[int, int], bytes] = {}
    directories: list[tuple[bytes, bytes, os.stat_result]] = []
    pending: list[tuple[Place, bytes]] = [(start, os.fsencode(into))]
    while pending:
        place, target = pending.pop()
        merged = seen.merged(place)
        directories.append((merged[0][0], target, merged[0][1]))
        names: set[bytes] = set()
        for source, _ in merged:
            for name in os.listdir(source):
                if name in names:
                    continue
                names.add(name)
                status = os.stat(source + b"/" + name, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(target + b"/" + name, 0o700)
                    pending.append(((*place, name), target + b"/" + name))
                else:
                    _copy_one(source + b"/" + name, target + b"/" + name, status, links)
    # Last, since a mode may forbid to write, and writing sets times.
    for settled in reversed(directories):
        _settle(*settled)


def _copy_one(
    source: bytes, target: bytes, status: os.stat_result, links: dict[tuple[int, int], bytes]
) -> None:
    """Copy what is no directory. Whiteouts, devices and sockets are left out."""
    first = links.get((status.st_dev, status.st_ino))
    if first is not None:
        os.link(first, target, follow_symlinks=False)
        return
    if stat.S_ISREG(status.st_mode):
        _copy_file(source, target)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISFIFO(status.st_mode):
        os.mkfifo(target, 0o600)
    else:
        return
    if status.st_nlink > 1:
        links[status.st_dev, status.st_ino] = target
    _settle(source, target, status)


def _copy_file(source: bytes, target: bytes) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with (
        open(source, "rb", buffering=0, opener=lambda path, _: os.open(path, flags)) as old,
        open(target, "xb", buffering=0, opener=lambda path, how: os.open(path, how, 0o600)) as new,
    ):
        size = os.fstat(old.fileno()).st_size
        at = 0
        with contextlib.suppress(_NoMoreData):
            while at < size:
                at, end = _data(old.fileno(), at)
                _copy_range(old.fileno(), new.fileno(), at, end)
                at = end
        os.ftruncate(new.fileno(), size)


class _NoMoreData(Exception):
    """There is a hole up to the end."""


def _data(fd: int, at: int) -> tuple[int, int]:
    """Where what is no hole begins, from there on, and where it ends."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise _NoMoreData from None
    return start, os.lseek(fd, start, os.SEEK_HOLE)


def _copy_range(old: int, new: int, at: int, end: int) -> None:
    os.lseek(old, at, os.SEEK_SET)
    os.lseek(new, at, os.SEEK_SET)
    try:
        while at < end and (count := os.copy_file_range(old, new, min(end - at, _PIECE))):
            at += count
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        while at < end and (count := os.sendfile(new, old, None, min(end - at, _PIECE))):
            at += count  # from where both stand


def _settle(source: bytes, target: bytes, status: os.stat_result) -> None:
    try:
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EINVAL:  # nobody in this user namespace: then it is root's
            raise
    if not stat.S_ISLNK(status.st_mode):
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            _dress(source, target)  # a new owner takes capabilities away, and a mode may forbid to write
        os.chmod(target, stat.S_IMODE(status.st_mode))
    with contextlib.suppress(PermissionError):
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _dress(source: bytes, target: bytes) -> None:
    """Give it the extended attributes that layers have (layer.py), but for overlayfs' own."""
    try:
        names = [os.fsencode(name) for name in os.listxattr(source)]
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return
    for name in names:
        if name == CAPABILITY or (name.startswith(b"user.") and not name.startswith(b"user.overlay.")):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
