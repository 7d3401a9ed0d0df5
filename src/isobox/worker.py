"""Work that need not be waited for: one thread, made when there is something to do."""

from __future__ import annotations

import errno
import heapq
import itertools
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

Job = Callable[[], "float | None"]
"""Does something; returns None when it is done, else the seconds after which to call it again."""

_GATHER: Final = 0.003
"""Seconds from the first job to its start: the caller is on its way to something that matters more."""
_OFTEN: Final = 0.05
"""Seconds between two looks for new jobs where another one is due soon: then nobody has to wake it."""
_PASSING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_AGAIN: Final = 0.1
"""Seconds until a job gets another try that had no descriptors or memory left for it."""


def take_no_signals() -> None:
    """In a thread of the library's own: leave all signals to the program's threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Worker:
    """Runs jobs later, in a daemon thread. `close` runs what is left in the caller's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._new: deque[tuple[float, Job]] = deque()
        self._later: list[tuple[float, int, Job]] = []
        self._count = itertools.count()
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._idle = False
        self._closed = False
        self.failures: list[BaseException] = []

    def submit(self, job: Job, delay: float = 0.0) -> None:
        """Have ``job`` run, no earlier than ``delay`` seconds from now; once it is closed, here and once."""
        if self._closed:
            job()
            return
        self._new.append((time.monotonic() + delay, job))
        if self._thread is None:
            self._start()
        elif self._idle:
            self._idle = False
            self._wake.put(True)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return  # the interpreter is ending: close() will do the work
                self._thread = thread

    def _run(self) -> None:
        take_no_signals()
        while not self._closed:
            self._take()
            if not self._later:
                self._idle = True
                if not self._new and self._wake.get():  # idle is set first, so no job is missed
                    self._idle = False
                    if self._closed or self._pause(_GATHER):
                        return
                self._idle = False
                continue
            wait = self._later[0][0] - time.monotonic()
            if wait > 0:
                if self._await(wait):
                    return
                continue
            self._step()

    def _await(self, seconds: float) -> bool:
        """Sleep until a job is due that is known, or a new one comes; True when it is time to stop."""
        if seconds <= _OFTEN:
            return self._pause(seconds)
        self._idle = True
        closed = not self._new and self._pause(seconds)  # idle is set first, so no job is missed
        self._idle = False
        return closed or self._pause(_GATHER)

    def _pause(self, seconds: float) -> bool:
        """Sleep; True when it is time to stop."""
        try:
            return not self._wake.get(timeout=max(seconds, 0.0005))
        except queue.Empty:
            return False

    def _take(self) -> None:
        while self._new:
            due, job = self._new.popleft()
            heapq.heappush(self._later, (due, next(self._count), job))

    def _step(self) -> None:
        _, _, job = heapq.heappop(self._later)
        try:
            again = job()
        except OSError as error:
            if error.errno not in _PASSING or self._closed:
                self.failures.append(error)
                return
            again = _AGAIN
        except Exception as error:  # noqa: BLE001 - kept for close(): there is nobody here to tell
            self.failures.append(error)
            return
        if again is not None:
            heapq.heappush(self._later, (time.monotonic() + again, next(self._count), job))

    def close(self, timeout: float) -> int:
        """Stop the thread and do what is left here, at most ``timeout`` seconds; return how much remains."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wake.put(False)
            thread.join()
        deadline = time.monotonic() + timeout
        while True:
            self._take()
            if not self._later:
                return 0
            now = time.monotonic()
            if now > deadline:
                return len(self._later)
            wait = self._later[0][0] - now
            if wait > 0:
                # What waits its turn is most often ready: try at once, then as it asks.
                time.sleep(min(wait, 0.002))
            self._step()
