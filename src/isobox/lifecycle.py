"""How a container lives: it starts, is paused, goes on, begins anew, ends.

Every resource goes on an ExitStack in the line that makes it; `stop` unwinds the stack. No system calls
are made here: start.py, process.py and control.py do.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal as signals
import threading
import time
import warnings
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import evolve

from .errors import CgroupError, CleanupError, IsoboxError, SetupError, StateError
from .hints import hint
from .programs import Programs, check_owner
from .shared import shared
from .show import show
from .spawn import thaw_at_end
from .spec import ContainerSpec
from .start import claim_name, launch, make_id

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .snapshots import Snapshot, Uppers
    from .sources import Origin

State: TypeAlias = Literal["creating", "created", "running", "paused", "stopped"]

_live: weakref.WeakSet[Lifecycle] = weakref.WeakSet()


class Lifecycle:
    """The states of a `Container`, which adds what it is made from and what is done in it.

    `snapshot`: what it begins at, where that is no image alone.
    """

    def __init__(self, spec: ContainerSpec, snapshot: Snapshot | None) -> None:
        self._spec = spec
        self._snapshot = snapshot
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._state: State = "creating"
        self._stack = ExitStack()
        self._inner = ExitStack()  # what `restore` makes anew
        self._paused = ExitStack()  # what is there while it is paused
        self._uppers: Uppers | None = None  # while it is paused
        self._programs: Programs | None = None
        self._id = ""
        self._started = 0
        self._changed_while_paused = False
        self._state = "created"

    def __repr__(self) -> str:
        return f"<isobox.Container {self.name or 'not started'} {self._spec.image!r} {self.state}>"

    # What it is

    @property
    def id(self) -> str:
        """Twelve hex digits, given at the start; "" before."""
        return self._id

    @property
    def name(self) -> str:
        """The name that was given, else the id."""
        return self._spec.name or self._id

    @property
    def image(self) -> str:
        """The image that was given."""
        return self._spec.image

    @property
    def spec(self) -> ContainerSpec:
        """Everything that was asked for, checked and converted."""
        return self._spec

    @property
    def pid(self) -> int | None:
        """The pid of its init, as this process sees it; None unless it runs."""
        programs = self._programs
        if programs is None or self.state not in ("running", "paused"):
            return None
        return programs.launched.pid

    @property
    def state(self) -> State:
        """``created``, ``running``, ``paused`` or ``stopped``."""
        programs = self._programs
        if programs is not None and self._state in ("running", "paused") and programs.over():
            return "stopped"
        return self._state

    # Starting

    def start(self) -> Self:
        """Start it; the same as entering the ``with`` block."""
        self._own()
        with self._lock:
            if self._state != "created":
                raise StateError(f"start: the container is {self._state}; make a new one")
            self._id = make_id()
            try:
                origin = None if self._snapshot is None else self._snapshot.origin
                claim_name(self._spec, shared(), self._stack)
                self._stack.enter_context(self._inner)
                self._launch(origin)
                _live.add(self)
            except BaseException as error:
                self._programs, self._state = None, "created"
                self._stack.close()
                raise_as_setup_error(error)
                raise
        return self

    def __enter__(self) -> Self:
        return self.start()

    def _launch(self, origin: Origin | None) -> None:
        launched = launch(self._spec, shared(), self._id, self._inner, origin)
        self._programs = Programs(launched, self._spec)
        self._started = time.monotonic_ns()
        self._state = "running"

    def _begin_anew(self, programs: Programs, snapshot: Snapshot, origin: Origin) -> None:
        """End all that runs, start at a snapshot; stopped if that fails. The caller has the lock."""
        self._snapshot = snapshot
        try:
            self._end_programs(programs)
            self._inner.close()
            self._spec = evolve(self._spec, image=snapshot.image)
            self._changed_while_paused = False
            self._launch(origin)
        except BaseException as error:
            self._state, self._snapshot = "stopped", None
            _live.discard(self)
            self._stack.close()
            raise_as_setup_error(error)
            raise

    def _own(self) -> None:
        check_owner(self._pid)

    def _running(self, verb: str, *, paused: bool = False) -> Programs:
        self._own()
        state = self.state
        if state == "running" or (paused and state == "paused"):
            assert self._programs is not None
            return self._programs
        cure = {"created": "start it, or use it in a with block", "paused": "resume it first"}
        raise StateError(f"{verb}: the container is {state}; {cure.get(state, 'make a new one')}")

    # Pausing

    def pause(self) -> None:
        """Freeze every process of the container (the cgroup freezer)."""
        programs = self._running("pause")
        with self._lock:
            from .snapshots import Uppers

            try:
                self._uppers = Uppers(programs.control, programs.launched.rootfs)  # nobody answers later
                self._paused.callback(self._uppers.close)
                programs.control.pause(True)
                thaw_at_end(programs.launched.group, shared(), self._paused)
                programs.launched.group.freeze()
            except BaseException as error:
                self._paused.close()
                programs.control.pause(False)
                raise_as_setup_error(error)
                raise
            self._state = "paused"

    def resume(self) -> None:
        """Let a paused container go on."""
        self._own()
        if self.state != "paused" or self._programs is None:
            raise StateError(f"resume: the container is {self.state}, not paused")
        with self._lock:
            self._programs.launched.group.thaw()
            self._paused.close()
            self._programs.control.pause(False)
            self._state = "running"
        if self._changed_while_paused:
            self._changed_while_paused = False
            show(self._programs.launched, self._spec.limits)

    # Ending

    def stop(self, timeout: float = 10.0) -> None:
        """End it: SIGTERM (or what the image says) to the programs, SIGKILL to all after `timeout` seconds.

        Idempotent.
        """
        self._own()
        if self.state == "paused":
            self.resume()
        programs = self._programs
        running = list(programs.running.values()) if programs is not None else []
        if programs is not None and running and timeout > 0 and self.state == "running":
            deadline = time.monotonic() + timeout
            for process in running:
                process.send_signal(programs.launched.defaults.stop_signal)
            for process in running:
                with contextlib.suppress(Exception):
                    process.wait(max(0.0, deadline - time.monotonic()))
        self.remove()

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to every program that was exec'd; SIGKILL ends the whole container."""
        programs = self._running("kill", paused=True)
        number = int(signals.Signals(signal))
        if number == signals.SIGKILL:
            programs.killed = True
            self._thaw_for_the_end(programs)
            programs.launched.pidfd.signal(signals.SIGKILL)
            self.wait(10.0)
            return
        for process in list(programs.running.values()):
            process.send_signal(number)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the container has stopped; False after `timeout` seconds."""
        if self._state == "created":
            raise StateError("the container has not been started")
        if self._programs is None or self._state == "stopped":
            return True
        return self._programs.launched.pidfd.ended(timeout)

    def remove(self) -> None:
        """End it at once and give everything back. Idempotent. Raises `CleanupError`."""
        if self._pid != os.getpid():
            return  # a forked child leaves its parent's container alone
        with self._lock:
            if self._state == "stopped":
                return
            errors: list[BaseException] = []
            try:
                if self._programs is not None:
                    self._end_programs(self._programs)
                self._stack.close()
            except BaseException as error:  # noqa: BLE001 - told below, once the state is right
                errors.append(error)
            self._state, self._snapshot = "stopped", None
            _live.discard(self)
        if errors:
            if not isinstance(errors[0], Exception):
                raise errors[0]
            raise CleanupError(f"container {self.name}", tuple(errors)) from errors[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __del__(self) -> None:
        if getattr(self, "_state", "stopped") in ("running", "paused") and self._pid == os.getpid():
            warnings.warn(
                f"{self!r} was never removed: use it in a with block", ResourceWarning, stacklevel=2
            )
            with contextlib.suppress(Exception):
                self.remove()

    def _end_programs(self, programs: Programs) -> None:
        programs.ending = True
        self._thaw_for_the_end(programs)
        if not programs.running:
            return
        # Those that someone waits for end before the rest goes, so that their costs can be read.
        programs.killed = True
        with contextlib.suppress(OSError):
            programs.launched.pidfd.signal(signals.SIGKILL)
        for process in list(programs.running.values()):
            with contextlib.suppress(Exception):
                process.wait(2.0)

    def _thaw_for_the_end(self, programs: Programs) -> None:
        if self._state == "paused":
            with contextlib.suppress(CgroupError, OSError):
                programs.launched.group.thaw()
            self._paused.close()
            programs.control.pause(False)


def raise_as_setup_error(error: BaseException) -> None:
    """Raise what the kernel refused to this process as a `SetupError`."""
    if isinstance(error, IsoboxError) or not isinstance(error, OSError):
        return
    number = error.errno or 0  # what the kernel refused to this process
    what = str(error.filename or "starting a container")
    raise SetupError(number, what, stage="host", hint=hint("host", number)) from error


@atexit.register
def _remove_all() -> None:
    for container in list(_live):
        with contextlib.suppress(Exception):
            container.remove()
