"""Shells that are kept ready.

A program that starts containers of one kind now and again finds one ready: a thread makes the next while
the last runs. It keeps still until `QUIET_SECONDS` after the last start, since two starts at the same time
hinder each other in the kernel. The first two of a kind make their own; a shell that nobody takes goes
after `IDLE_SECONDS`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import Final

from .errors import IsoboxError
from .rootfs.layers import Rootfs
from .shared import Shared
from .shell import Shell, Wanted, make_shell
from .worker import take_no_signals

IDLE_SECONDS: Final = 1.0
QUIET_SECONDS: Final = 0.005

_pool: Shells | None = None


def shells(shared: Shared) -> Shells:
    """Those of this process."""
    global _pool
    found = _pool
    if found is None or found.shared is not shared:
        with shared.lock:
            found = _pool
            if found is None or found.shared is not shared:
                found = _pool = Shells(shared)
                shared.before_close.append(found.close)
    return found


class Shells:
    """Shells that wait: `take` gives one, ready where one of its kind is."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._ready: dict[Wanted, deque[Shell]] = {}
        self._starts: dict[Wanted, int] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._order: deque[Wanted] = deque()
        self._taken = 0.0
        self._asleep = False
        self._closed = False

    def take(self, wanted: Wanted) -> Shell:
        """Return a shell of this kind, the caller's. Raises `SetupError`."""
        one_off = wanted.disk is not None or wanted.devices or wanted.mounts
        if one_off or not self.shared.lasts(wanted.rootfs):
            return make_shell(wanted, self.shared)
        with self._changed:
            ready = self._ready.get(wanted)
            shell = ready.popleft() if ready else None
            count = self._starts[wanted] = self._starts.pop(wanted, 0) + 1
            if len(self._starts) > 16:
                del self._starts[next(iter(self._starts))]
            self._taken = time.monotonic()
            if count > 1 and not ready and wanted not in self._order and not self._closed:
                self._order.append(wanted)
                self._wake()
        return shell or make_shell(wanted, self.shared)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="isobox-shells", daemon=True)
            self._thread.start()
        elif self._asleep:
            self._changed.notify()

    def _work(self) -> None:
        take_no_signals()
        while True:
            with self._changed:
                if not self._await_order() or self._closed:
                    return
                wanted = self._order.popleft() if self._order else None
                old = self._outdated()
            for shell in old:
                with suppress(IsoboxError, OSError):
                    shell.close()
            if wanted is not None:
                self._make(wanted)

    def _await_order(self) -> bool:
        """Wait for something to do, then for quiet; False where the thread isn't needed any more."""
        if not self._order and not self._closed:
            self._asleep = True
            self._changed.wait(IDLE_SECONDS)
            self._asleep = False
            if not self._order and not any(self._ready.values()):
                self._thread = None
                return False
        while self._order and not self._closed:
            left = self._taken + QUIET_SECONDS - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)
        return True

    def _make(self, wanted: Wanted) -> None:
        with ExitStack() as held:
            try:
                if wanted.begun is not None:
                    wanted.begun.hold(held)
                shell = make_shell(wanted, self.shared)
            except (IsoboxError, OSError):
                return  # the next start's own attempt will say it
            with self._changed:
                ready = self._ready.setdefault(wanted, deque())
                if not self._closed and not ready:
                    ready.append(shell)
                    return
            shell.close()

    def forget(self, rootfs: Rootfs) -> None:
        """End those that wait with this root file system, which is about to go."""
        with self._changed:
            gone = [wanted for wanted in self._ready if wanted.rootfs is rootfs]
            shells = [shell for wanted in gone for shell in self._ready.pop(wanted)]
            for wanted in [wanted for wanted in self._starts if wanted.rootfs is rootfs]:
                del self._starts[wanted]
        for shell in shells:
            with suppress(IsoboxError, OSError):
                shell.close()

    def _outdated(self) -> list[Shell]:
        before = time.monotonic() - IDLE_SECONDS
        found = []
        for wanted in list(self._ready):
            ready = self._ready.get(wanted)  # `forget` may come from the garbage collector
            while ready and ready[0].born < before:
                found.append(ready.popleft())
            if not ready:
                self._ready.pop(wanted, None)
        return found

    def close(self) -> None:
        """End all that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            shells = [shell for ready in self._ready.values() for shell in ready]
            self._ready.clear()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
        for shell in shells:
            with suppress(IsoboxError, OSError):
                shell.close()
