"""The files of a running container that show its limits: /proc/meminfo and the like, after an update."""

from __future__ import annotations

import contextlib
import os

from .control import Control
from .errors import SetupError, StateError
from .hints import hint
from .plan.ops import encode
from .plan.setup import view_plan
from .rootfs.views import VIEWED, host_view, views
from .spec import Limits
from .start import Launched


def show(launched: Launched, limits: Limits) -> None:
    """Have the files say `limits`, and the CPUs that the container is pinned to.

    Raises `StateError` where it has stopped, and `SetupError`.
    """
    try:
        _show(launched.control, limits, os.sched_getaffinity(launched.pid))
    except ProcessLookupError:
        raise StateError("update: the container has stopped") from None
    except OSError as error:
        number = error.errno or 0
        what = str(error.filename or "the files that show limits")
        raise SetupError(number, what, stage="update", hint=hint("host", number)) from error


def _show(control: Control, limits: Limits, cpus: set[int]) -> None:
    """Have the files say `limits` and `cpus`. Raises OSError.

    A limit that there was at the start has a file of its own, which is written anew. Another one gets
    its file now, bound over the kernel's.
    """
    shown = views(limits, sorted(cpus))
    for path in VIEWED:
        try:
            _write(control, path, os.O_TRUNC, shown[path] if path in shown else host_view(path))
        except OSError:  # the kernel's own file
            if path in shown:
                _cover(control, path, shown[path])


def _cover(control: Control, path: str, content: bytes) -> None:
    # The one place that is writable in every container; once it is bound it needs no name any more.
    source = f"/dev/shm/.isobox-{os.urandom(8).hex()}"
    try:
        _write(control, source, os.O_CREAT | os.O_EXCL, content)
        control.change(encode(view_plan(source, path)))
    finally:
        with contextlib.suppress(OSError):
            control.unlink(source)


def _write(control: Control, path: str, flags: int, content: bytes) -> None:
    fd = control.open(path, os.O_WRONLY | flags, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
