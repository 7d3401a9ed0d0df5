"""Locks that a forked child does not have."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from isobox import forks
from isobox.locks import Lock


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


def free(path: str) -> bool:
    with Lock(path) as lock:
        return lock.try_alone()


def in_child(run: Callable[[], bool]) -> tuple[int, int]:
    """Fork a child that asserts that `run` is true, and lives until `end` closes its pipe."""
    said, answer = os.pipe()
    ends, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)
            os.write(answer, b"y" if run() else b"n")
            os.read(ends, 1)
        finally:
            os._exit(0)
    os.close(answer)
    os.close(ends)
    assert os.read(said, 1) == b"y"
    os.close(said)
    return pid, go


def end(pid: int, go: int) -> None:
    os.close(go)
    assert os.waitpid(pid, 0) == (pid, 0)


def test_shared_and_alone(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        Lock(path)
    with Lock(path, make=True) as one, Lock(path) as other:
        one.take(shared=True)
        assert other.try_shared() and not other.try_alone()
        one.close()
        one.close()
        assert one.fileno() == -1 and other.try_alone() and not free(path)
    assert free(path)
    Lock(path).take()
    assert free(path)


def test_never_through_a_link(path: str, tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(OSError):
        Lock(path, make=True)
    assert not (tmp_path / "elsewhere").exists()


def test_a_child_has_none(path: str) -> None:
    """It lives on after its parent let go, and while that has it the child's end takes nothing away."""
    with Lock(path, make=True) as lock:
        lock.take()
        end(*in_child(lambda: lock.fileno() == -1 and not free(path)))
        assert not free(path)
        child = in_child(lambda: True)
    assert free(path)
    end(*child)


def test_no_fork_meanwhile(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is being opened by another thread is known to the child."""
    opened, forked = threading.Event(), threading.Event()
    opening = os.open

    def slowly(*args: int, **named: int) -> int:
        fd = opening(*args, **named)
        if args[0] == path:
            opened.set()
            forked.wait(0.2)
        return fd

    def make() -> None:
        with Lock(path, make=True) as lock:
            lock.take()
            forked.wait()

    monkeypatch.setattr(os, "open", slowly)
    thread = threading.Thread(target=make)
    thread.start()
    opened.wait()
    assert not forks.whole.acquire(blocking=False)
    child = in_child(lambda: True)
    forked.set()
    thread.join()
    assert free(path)
    end(*child)
