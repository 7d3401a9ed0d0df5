"""Unpack layers as root of a user namespace, so that an ordinary user's files get the owners of their layer.

Only there may such a user give files to the ids of ``/etc/subuid``, and outside these are the very ids that a
container with the same map needs. A process can enter a new user namespace alone only (unshare(2)): one is
started that runs this file's `main`. It reads requests and layers from its standard input, and answers each
with a line.

    request:  4 bytes, its size (big-endian); JSON: a layer to unpack, or a path to look at
    layer:    after its request: pieces, each with 4 bytes in front as above; at last 4 bytes of 0
    answer:   JSON and a newline; the first comes when it is root there

It ends after an error, and with its standard input: so with the process that started it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import IO, Any, Final

from attrs import asdict

from isobox import discard, idmap
from isobox.errors import DigestMismatch, IsoboxError, SetupError, UnpackError, UnsupportedError
from isobox.idmap import IdMap, Line

from ..documents.digest import Digest
from ..tar.compression import Readable
from .layer import LayerUnpacked, unpack_layer
from .lowers import is_opaque

__all__ = ["Mapped", "main", "module_path"]

_CODE: Final = "import sys; sys.path[:] = sys.argv[1:]; from isobox.images.layers.mapped import main; main()"
_PIECE: Final = 1 << 18
_PIPE: Final = 1 << 20  # what every user may have: /proc/sys/fs/pipe-max-size
_SIZE: Final = 4
_LONGEST: Final = 1 << 28  # bytes of an answer: the names in a directory


class Mapped:
    """A process that is root of a new user namespace with the ids of `id_map`.

    Costs the start of a Python interpreter, 0.15 s. Not for several threads at once. Raises `SetupError`
    where there is no such namespace to be had.
    """

    def __init__(self, id_map: IdMap) -> None:
        self._owner = os.getpid()
        self._usable = False
        self._id_map = id_map
        command = [sys.executable or "python3", "-I", "-S", "-B", "-c", _CODE, *module_path()]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/")
        try:
            with contextlib.suppress(OSError):  # more than a user may have
                fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, _PIPE)
            if self._answer() != {"ready": True}:
                raise self._lost()
            idmap.write(self._process.pid, id_map)
            self._request({})
            if self._answer() != {"root": True}:
                raise self._lost()
            self._usable = True
        except BaseException:
            self.close()
            raise

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def usable(self) -> bool:
        """Whether it can take one more layer: not after an error."""
        return self._usable

    def unpack(
        self, stream: Readable, into: str, *, diff_id: Digest, lowers: Sequence[str] = ()
    ) -> LayerUnpacked:
        """As `unpack_layer` does it with ``keep_owners``, and with its errors.

        The directory above `into` must belong to this user. An owner that the map has no id for is an
        `UnpackError`.
        """
        self._usable = False
        with contextlib.suppress(BrokenPipeError):  # it has said why
            self._request({"into": into, "diff_id": str(diff_id), "lowers": list(lowers)})
            while piece := stream.read(_PIECE):
                self._send(piece)
            self._stdin.write(bytes(_SIZE))
            self._stdin.flush()
        answer = self._answer()
        try:
            made = LayerUnpacked(**answer["made"], diff_id=diff_id) if "made" in answer else None
        except TypeError:
            raise self._lost() from None
        if made is None:
            raise _error(answer, into) or self._lost()
        self._usable = True
        return made

    def look(self, path: str) -> tuple[os.stat_result, bool, list[str]] | None:
        """Return what lies at a path that may be closed to this user; None: nothing. Owners are the host's.

        Also whether it is an opaque directory of an overlay, and the names in it. No link is followed at its
        end. Raises `SetupError`.
        """
        self._usable = False
        with contextlib.suppress(BrokenPipeError):
            self._request({"look": path})
        answer = self._answer()
        try:
            if answer["seen"] is None:
                seen = None
            else:
                mode, uid, gid, device, opaque = map(int, answer["seen"])
                owner = _host_id(self._id_map.uid_lines, uid), _host_id(self._id_map.gid_lines, gid)
                status = os.stat_result((mode, 0, 0, 1, *owner, 0, 0, 0, 0), {"st_rdev": device})
                seen = status, bool(opaque), [str(name) for name in answer["names"]]
        except (KeyError, TypeError, ValueError):
            raise self._lost() from None
        self._usable = True
        return seen

    def _request(self, request: dict[str, Any]) -> None:
        self._send(json.dumps(request).encode())
        self._stdin.flush()

    def _send(self, data: bytes) -> None:
        self._stdin.write(len(data).to_bytes(_SIZE, "big"))
        self._stdin.write(data)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            found = json.loads(self._process.stdout.readline(_LONGEST))
        except ValueError:
            raise self._lost() from None
        return found if isinstance(found, dict) else {}

    def _lost(self) -> SetupError:
        """Say what is known of a process that doesn't answer."""
        assert self._process.stderr is not None
        self._process.kill()
        said = self._process.stderr.read(_LONGEST).decode(errors="replace").strip().rpartition("\n")[2]
        status = self._process.wait()
        what = said or (f"ended by signal {-status}" if status < 0 else f"exit status {status}")
        return SetupError(
            0,
            f"the process that unpacks in a user namespace: {what}",
            stage="layer",
            hint=idmap.hint(errno.EPERM) if "unshare" in said else "",
        )

    def close(self) -> None:
        """End the process, whatever it does; idempotent."""
        self._usable = False
        process = self._process
        if self._owner == os.getpid() and process.returncode is None:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was to be flushed to it
                    stream.close()

    def __enter__(self) -> Mapped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()


def _host_id(lines: Iterable[Line], inside: int) -> int:
    """Of one that the map doesn't have, what the kernel shows."""
    try:
        return idmap.outside(lines, inside)
    except LookupError:
        return 65534


def module_path() -> list[str]:
    """Where this process has its modules from; isobox too, which something else than the path may find."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [*(os.path.abspath(entry) for entry in sys.path if entry), here]


def _error(answer: dict[str, Any], into: str) -> IsoboxError | None:
    """Make the exception again that ended the other process's work; None for an answer that is none."""
    kind, values = answer.get("error"), answer.get("values")
    if not isinstance(values, list) or not all(isinstance(value, (str, int)) for value in values):
        return None
    if kind == "UnpackError" and len(values) == 1:
        return UnpackError(str(values[0]))
    if kind == "DigestMismatch" and len(values) == 3:
        return DigestMismatch(*map(str, values))
    if kind == "UnsupportedError" and len(values) == 3:
        return UnsupportedError(*map(str, values))
    if kind == "OSError" and len(values) == 1 and isinstance(values[0], int):
        return SetupError(values[0] or errno.EIO, f"unpack into {into}", stage="layer")
    return None


class _Pieces:
    """The layer that comes next on a stream, up to its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = 0
        self._ended = False

    def read(self, size: int = -1, /) -> bytes:
        if not self._left and not self._ended:
            self._left = _read_size(self._file)
            self._ended = not self._left
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        if not data and not self._ended:
            raise EOFError("the stream ends early")
        return data


def _read_size(file: IO[bytes]) -> int:
    data = file.read(_SIZE)
    if len(data) < _SIZE:
        raise EOFError("the stream ends early")
    return int.from_bytes(data, "big")


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve one `Mapped`, on standard input and output."""
    # Ctrl-C is for the process that started this one, which ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    discard.new_user_namespace()
    _say({"ready": True})
    requests = sys.stdin.buffer
    with contextlib.suppress(EOFError):
        requests.read(_read_size(requests))
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _say({"root": True})
        while _serve(requests):
            pass


def _seen(path: str) -> dict[str, Any]:
    try:
        found = os.lstat(path)
        names = os.listdir(path) if stat.S_ISDIR(found.st_mode) else []
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # the container has no more rights
        return {"seen": None}
    seen = [found.st_mode, found.st_uid, found.st_gid, found.st_rdev, is_opaque(os.fsencode(path))]
    return {"seen": seen, "names": names}


def _serve(requests: IO[bytes]) -> bool:
    request = json.loads(requests.read(_read_size(requests)))
    if "look" in request:
        _say(_seen(request["look"]))
        return True
    pieces = _Pieces(requests)
    try:
        made = unpack_layer(
            pieces,
            request["into"],
            keep_owners=True,
            diff_id=Digest.parse(request["diff_id"]),
            lowers=request["lowers"],
        )
        while pieces.read(_PIECE):  # what follows the end of a compressed stream
            pass
    except DigestMismatch as error:
        _say({"error": "DigestMismatch", "values": [error.what, error.expected, error.found]})
    except UnpackError as error:
        _say({"error": "UnpackError", "values": [str(error)]})
    except UnsupportedError as error:
        _say({"error": "UnsupportedError", "values": [error.feature, error.why, error.remedy]})
    except OSError as error:
        _say({"error": "OSError", "values": [error.errno or 0]})
    else:
        answer = asdict(made, filter=lambda attribute, _: attribute.name != "diff_id")
        _say({"made": answer})
        return True
    return False
