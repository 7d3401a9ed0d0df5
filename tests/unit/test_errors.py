"""Every exception pickles, prints, and is what a caller would catch."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
from typing import Any

import pytest

from isobox import errors
from isobox.errors import CleanupError, DigestMismatch, IsoboxError, ProcessError, SpecError, UnsupportedError

CLASSES = [
    value
    for _, value in sorted(vars(errors).items())
    if inspect.isclass(value) and issubclass(value, IsoboxError) and not value.__name__.startswith("_")
]


def example(cls: type[IsoboxError]) -> IsoboxError:
    """One of this class, with something in everything that it carries."""
    arguments: dict[type[IsoboxError], tuple[Any, ...]] = {
        SpecError: ("cpu", 0, "a number of cores"),
        UnsupportedError: ("memory limit", "no memory controller", "mount one"),
        DigestMismatch: ("layer 2", "sha256:aa", "sha256:bb", "pull again"),
        CleanupError: ("left behind", (OSError(errno.EBUSY, "busy"), ValueError("x"))),
    }
    for base, given in arguments.items():
        if issubclass(cls, base):
            return cls(*given)
    if issubclass(cls, ProcessError):
        return cls("it exited with status 3", {"returncode": 3})
    if issubclass(cls, OSError):
        return cls(errno.EPERM, "mount /proc", stage="root file system", op="mount", hint="try root")
    return cls("what went wrong")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_exception_pickles(cls: type[IsoboxError], protocol: int) -> None:
    error = example(cls)
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is cls
    assert str(again) == str(error)
    assert str(again)
    assert again.args == error.args or isinstance(error, CleanupError)
    for name, value in vars(error).items():
        assert repr(getattr(again, name)) == repr(value), name
    if isinstance(error, OSError):
        assert (again.errno, again.strerror) == (error.errno, error.strerror)
    assert str(copy.copy(error)) == str(error)


def test_they_are_what_a_caller_would_catch() -> None:
    assert issubclass(SpecError, ValueError)
    for cls in (errors.SetupError, errors.ExecError, errors.CgroupError, errors.NetworkError):
        assert issubclass(cls, OSError)
    error = errors.ExecError(errno.ENOENT, "nosuch", stage="exec")
    assert error.errno == errno.ENOENT
    assert "nosuch" in str(error)


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(str(SpecError("memory", "9" * 10_000, "bytes"))) < 200


def test_what_strangers_wrote_does_not_reach_a_terminal() -> None:
    for cls in (errors.ImageError, errors.NotFound, errors.UnpackError, errors.InvalidReference):
        assert str(cls("\x1b[2J\udcff")) == r"\x1b[2J\udcff"
    error = DigestMismatch("\x1b[2J", "1", "\n2")
    assert str(error) == r"\x1b[2J: expected 1, found \n2"
    assert (error.expected, error.found) == ("1", "\n2")
