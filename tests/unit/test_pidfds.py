"""Processes by their descriptors: signals, waiting, and when the descriptor is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from isobox.pidfds import Pidfd
from patience import patient


@contextlib.contextmanager
def child() -> Iterator[tuple[int, Pidfd]]:
    """A process that sleeps: the number of its descriptor, and that."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        fd = os.pidfd_open(process.pid)
        pidfd = Pidfd(fd)
        try:
            yield fd, pidfd
        finally:
            pidfd.end()
            process.wait(patient(10))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_life() -> None:
    with child() as (fd, pidfd):
        assert not pidfd.ended() and not pidfd.ended(0.01)
        pidfd.signal(0)
        assert not pidfd.ended()
        pidfd.signal(signal.SIGTERM)
        assert pidfd.ended(patient(10)) and is_open(fd)
        pidfd.signal(signal.SIGTERM)
        pidfd.end()
        assert pidfd.ended() and not is_open(fd)
        pidfd.signal(signal.SIGTERM)
        pidfd.end()


def test_what_is_no_signal() -> None:
    with child() as (_fd, pidfd), pytest.raises(OSError, match="Invalid argument"):
        pidfd.signal(1000)


def test_who_waits_is_told_of_the_end() -> None:
    with child() as (fd, pidfd):
        found: list[bool] = []
        waiting = threading.Thread(target=lambda: found.append(pidfd.ended(None)))
        waiting.start()
        pidfd.end()
        waiting.join(patient(10))
        assert found == [True] and not is_open(fd)


def test_the_last_user_closes_it() -> None:
    with child() as (fd, pidfd):
        with pidfd._using() as first:
            with pidfd._using() as second:
                assert first == second == fd
                pidfd.end()
                assert is_open(fd)
                with pidfd._using() as late:
                    assert late == -1
            assert is_open(fd)
        assert not is_open(fd)


def test_a_handler_ends_it_while_its_own_thread_waits() -> None:
    """Nobody would go on where the end waited for who waits."""
    with child() as (fd, pidfd):
        before = signal.signal(signal.SIGALRM, lambda *_: pidfd.end())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert pidfd.ended(patient(30))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert not is_open(fd)


def test_many_at_once() -> None:
    """However they meet: the descriptor is closed once, and never while somebody uses it."""
    for _ in range(20):
        with child() as (fd, pidfd):
            go = threading.Barrier(5)
            failures: list[BaseException] = []

            def use(
                pidfd: Pidfd = pidfd, go: threading.Barrier = go, failures: list[BaseException] = failures
            ) -> None:
                try:
                    go.wait(patient(10))
                    while not pidfd.ended():
                        pidfd.signal(0)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=use) for _ in range(4)]
            for thread in threads:
                thread.start()
            go.wait(patient(10))
            pidfd.end()
            for thread in threads:
                thread.join(patient(10))
            assert not failures and not is_open(fd)
