"""Another program in the place of isobox-init: it ends at each moment, says nothing, garbage or too much."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import isobox
from isobox import _native, control, ending, process
from leftovers import close_shared, descendants, nothing_left
from patience import patient

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

WAYS_OF_STARTING = range(9)
WAYS_OF_RUNNING = range(9, 13)
SOURCE = Path(__file__).with_name("init.c")


@pytest.fixture(autouse=True)
def everything_is_given_back() -> Iterator[None]:
    with nothing_left():
        yield


def use(way: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "init"
    compiler = os.environ.get("CC", "gcc").split()
    command = [
        *compiler,
        "-O1",
        "-static",
        "-Wno-implicit-fallthrough",
        f"-DWAY={way}",
        "-o",
        program,
        SOURCE,
    ]
    subprocess.run(command, check=True, env={**os.environ, "LD_PRELOAD": ""})
    monkeypatch.setattr(_native, "INIT_PROGRAM", str(program))
    monkeypatch.setattr(control, "REPLY_TIMEOUT_MS", 50)
    monkeypatch.setattr(process, "_START_SECONDS", 0.2)
    monkeypatch.setattr(ending, "_END_SECONDS", 0.2)
    close_shared()


@pytest.mark.parametrize("way", [*WAYS_OF_STARTING, 13])
def test_it_never_gets_ready(way: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, tmp_path, monkeypatch)
    for _ in range(3):  # the third one takes a shell that was made ahead
        began = time.monotonic()
        with pytest.raises(isobox.IsoboxError):
            isobox.Container("host").start()
        assert time.monotonic() - began < patient(20)
    close_shared()
    assert not descendants(os.getpid())


@pytest.mark.parametrize("way", WAYS_OF_RUNNING)
def test_it_gets_ready_and_then_misbehaves(way: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, tmp_path, monkeypatch)
    calls: tuple[Callable[[isobox.Container], object], ...] = (
        lambda c: c.exec(["true"], timeout=0.2, check=True),
        lambda c: c.popen(["true"], timeout=0.2),
        lambda c: c.popen(["true"]),
        lambda c: c.read_bytes("/etc/passwd"),
        lambda c: c.write_bytes("/tmp/x", b"x"),
        lambda c: c.changes(),
    )
    for call in calls:
        c = isobox.Container("host").start()
        for _ in range(2):  # the second time, what there was to say has been said
            began = time.monotonic()
            with pytest.raises((isobox.IsoboxError, OSError)):
                call(c)
            assert time.monotonic() - began < patient(5)
        c.remove()
        assert c.state == "stopped"
