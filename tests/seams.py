"""Failures of system calls, one after another: the n-th call that the library makes in this thread.

The kernel is real and does all the calls but one, which does not happen and raises OSError.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import isobox
from isobox import _native, idmap, spawn
from leftovers import at_rest, close_shared, settled

MOST = 2000

CALLS: dict[Any, str] = {
    _native: "spawn send receive clone_tree mount_setattr new_tmpfs init_memfd",
    os: "open mkdir write pread read pipe dup pidfd_open chmod chown fchmod mknod symlink "
    "memfd_create stat listdir",
    idmap: "write",
    spawn.socket: "socketpair",
}


class Faults:
    """Makes the n-th call of the seams fail in this thread; counts them all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        self.calls = 0
        self.fail_at = 0
        self.failed = ""
        self.code = code
        self.thread = threading.get_ident()
        for module, names in CALLS.items():
            for name in names.split():
                monkeypatch.setattr(module, name, self.wrap(getattr(module, name), name))

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            # subprocess reads from a pipe, which does not fail, and relies on that.
            own = name == "read" and arguments[1] in (32768, 50000)
            if self.fail_at and threading.get_ident() == self.thread and not own:
                self.calls += 1
                if self.calls == self.fail_at:
                    self.failed = f"{name}{arguments}"[:120]
                    if name == "spawn":
                        raise _native.SpawnError(self.code, os.strerror(self.code))
                    raise OSError(self.code, os.strerror(self.code))
            return function(*arguments, **named)

        return called

    def at(self, number: int) -> None:
        self.calls, self.fail_at, self.failed = 0, number, ""

    def off(self) -> None:
        self.fail_at = 0


def every_call(
    faults: Faults,
    step: Callable[[], object],
    after: Callable[[], object] | None = None,
    allowed: type[Exception] | tuple[type[Exception], ...] = isobox.IsoboxError,
) -> int:
    """Run `step` with its 1st, 2nd, ... call failing, until a run meets no failure. Returns how many did.

    Nothing is left each time; or, where `after` is given, that holds.
    """
    problems: list[str] = []
    for number in range(1, MOST):
        before = None if after else at_rest()
        faults.at(number)
        try:
            step()
        except allowed:
            pass
        except Exception as error:
            problems.append(f"{number} {faults.failed}: raised {error!r}")
        failed = faults.failed
        faults.off()
        if after is not None:
            try:
                after()
            except Exception as error:
                problems.append(f"{number} {failed}: then {error!r}")
        if not failed:
            assert not problems, "\n".join(problems)
            return number - 1
        if before is not None:
            gc.collect()
            close_shared()
            left = settled(before, 3)
            if left:
                problems.append(f"{number} {failed}: left {left}")
    raise AssertionError(f"more than {MOST} calls")
