"""isobox: real Linux containers from Python, without a daemon.

>>> import isobox
>>> with isobox.Container("host", cpu=0.5, memory="256M") as c:
...     c.exec(["echo", "hello"], text=True).stdout
'hello\\n'
"""

from __future__ import annotations

from subprocess import DEVNULL, PIPE, STDOUT
from typing import TYPE_CHECKING

from . import host
from .container import Container, run
from .doctor import Report, doctor
from .errors import (
    CgroupError,
    CleanupError,
    DigestMismatch,
    ExecError,
    ImageError,
    InvalidReference,
    IsoboxError,
    Killed,
    NetworkError,
    NonZeroExit,
    NotFound,
    OutOfMemory,
    OutputLimitExceeded,
    ProcessError,
    RegistryError,
    SetupError,
    SpecError,
    StateError,
    TimedOut,
    UnpackError,
    UnsupportedError,
)
from .landlock import Landlock
from .process import Process
from .result import Reason, Result
from .rootfs.changes import Change
from .spec import IoLimit, Mount
from .usage import Usage

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CgroupError",
    "Change",
    "CleanupError",
    "Container",
    "DigestMismatch",
    "ExecError",
    "Image",
    "ImageError",
    "InvalidReference",
    "IoLimit",
    "IsoboxError",
    "Killed",
    "Landlock",
    "Mount",
    "NetworkError",
    "NonZeroExit",
    "NotFound",
    "OutOfMemory",
    "OutputLimitExceeded",
    "Process",
    "ProcessError",
    "Progress",
    "Reason",
    "RegistryError",
    "Report",
    "Result",
    "SetupError",
    "Snapshot",
    "SpecError",
    "StateError",
    "Store",
    "TimedOut",
    "UnpackError",
    "UnsupportedError",
    "Usage",
    "Volume",
    "doctor",
    "host",
    "run",
]


if TYPE_CHECKING:
    from .images.image import Image
    from .images.registry.progress import Progress
    from .images.store import Store
    from .snapshots import Snapshot
    from .volumes import Volume


def __getattr__(name: str) -> object:
    if name == "Image":  # most programs use the host image alone
        from .images.image import Image

        return Image
    if name == "Progress":
        from .images.registry.progress import Progress

        return Progress
    if name == "Store":
        from .images.store import Store

        return Store
    if name == "Snapshot":
        from .snapshots import Snapshot

        return Snapshot
    if name == "Volume":
        from .volumes import Volume

        return Volume
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
