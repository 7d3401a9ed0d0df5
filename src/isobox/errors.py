"""Every exception that isobox raises.

All derive from `IsoboxError`, so one ``except`` catches them; each also derives from the
built-in that a caller would expect (``ValueError``, ``OSError``). All of them pickle.

>>> try:
...     raise SpecError("cpu", 0, "a number of cores greater than 0, such as 0.5")
... except ValueError as error:
...     print(error)
cpu=0: expected a number of cores greater than 0, such as 0.5
"""

from __future__ import annotations

import os
from typing import Any


class IsoboxError(Exception):
    """The root of every isobox exception."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ calls cls(*self.args), which fails for constructors of another
        # shape; the state is in __dict__, so rebuild without calling the constructor.
        return _rebuild, (type(self), self.args, dict(self.__dict__), *_os_state(self))


def _os_state(error: BaseException) -> tuple[Any, ...]:
    if isinstance(error, OSError):
        return ((error.errno, error.strerror, error.filename),)
    return ()


def _rebuild(
    cls: type[IsoboxError],
    args: tuple[Any, ...],
    state: dict[str, Any],
    os_state: tuple[int | None, str | None, Any] | None = None,
) -> IsoboxError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    if os_state is not None and isinstance(error, OSError):
        error.errno, error.strerror, error.filename = os_state
    return error


class SpecError(IsoboxError, ValueError):
    """The request makes no sense: `field` says which part, `expected` what would be right."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        text = repr(value)
        if len(text) > 120:
            text = text[:117] + "..."
        super().__init__(f"{field}={text}: expected {expected}")
        self.field = field
        self.expected = expected


class StateError(IsoboxError):
    """The container is not in a state for this call (exec in a stopped container, say)."""


class UnsupportedError(IsoboxError):
    """This host or user can't do what was asked.

    `feature` is what is missing, `remedy` the one command or setting that would help.
    """

    def __init__(self, feature: str, why: str, remedy: str) -> None:
        super().__init__(f"{feature}: {why}. Remedy: {remedy}")
        self.feature = feature
        self.why = why
        self.remedy = remedy


def printable(text: str) -> str:
    r"""Escape what a terminal would obey: names of files are made by programs inside.

    >>> print(printable("\x1b[2J.txt"))
    \x1b[2J.txt
    """
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])


def shown(value: object, most: int = 120) -> str:
    """Return what a message says of a value from outside: its repr, cut to `most` characters.

    >>> print(shown("x" * 1000, 12))
    'xxxxxxxx...
    """
    if isinstance(value, (str, bytes)):
        value = value[:most]  # a repr of megabytes takes its time
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


class _StageError(IsoboxError, OSError):
    def __init__(self, code: int, message: str, *, stage: str, op: str = "", hint: str = "") -> None:
        message = printable(message)
        text = f"{stage}: {message}: {os.strerror(code)}" if code else f"{stage}: {message}"
        if hint:
            text = f"{text}. {hint}"
        IsoboxError.__init__(self, text)
        self.errno = code
        self.strerror = os.strerror(code) if code else message
        self.stage = stage
        self.op = op
        self.hint = hint

    def __str__(self) -> str:
        return str(self.args[0])


class SetupError(_StageError):
    """Building the container failed: `stage`, `op` and `errno` say where, `hint` what to do."""


class ExecError(_StageError):
    """The program could not be started: not found, not executable, too many arguments."""


class CgroupError(_StageError):
    """A cgroup file refused what was written, or read back something else."""


class NetworkError(_StageError):
    """The network of a container could not be made."""


class ImageError(IsoboxError):
    """An image can't be found, read or unpacked."""

    def __init__(self, message: str) -> None:
        # Names and texts of images are made by strangers.
        super().__init__(printable(message))


class NotFound(ImageError):
    """There is no such image."""


class RegistryError(ImageError):
    """A registry can't be reached, refuses, or answers what makes no sense.

    `status` is that of its HTTP answer and `code` the registry's own word for what is wrong, such as
    "DENIED"; None and "" where there is none. `transient`: trying again later may help.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str = "", transient: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.transient = transient


class InvalidReference(ImageError, ValueError):
    """The name of an image is not well-formed."""


class DigestMismatch(ImageError):
    """Content is not what its digest or size says: damaged or forged; nothing of it was used.

    `expected` and `found` are both digests (``"sha256:..."``) or both sizes in bytes, as text.
    """

    def __init__(self, what: str, expected: object, found: object, hint: str = "") -> None:
        self.what = what
        self.expected = str(expected)
        self.found = str(found)
        self.hint = hint
        text = f"{what}: expected {self.expected}, found {self.found}"
        super().__init__(f"{text}. {hint}" if hint else text)


class UnpackError(ImageError):
    """A layer or archive is damaged or hostile; nothing of it was kept."""


class ProcessError(IsoboxError):
    """A program ended badly and ``check=True`` was given; `result` is the whole Result."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class NonZeroExit(ProcessError):
    """The program exited with a status other than 0, or a signal ended it."""


class TimedOut(ProcessError):
    """The wall-clock or CPU time limit passed."""


class OutOfMemory(ProcessError):
    """The kernel killed the program for its memory."""


class OutputLimitExceeded(ProcessError):
    """The program wrote more than ``output_limit``."""


class Killed(ProcessError):
    """The program was killed by the caller (`kill`, `stop`, or leaving the ``with`` block)."""


class CleanupError(IsoboxError):
    """Something could not be removed; `errors` has every failure, the first error included."""

    def __init__(self, message: str, errors: tuple[BaseException, ...]) -> None:
        super().__init__(f"{message}: " + "; ".join(f"{type(e).__name__}: {e}" for e in errors))
        self.errors = errors
