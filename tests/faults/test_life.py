"""The life of a container in any order, against a simple model: hypothesis chooses what happens next."""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

import isobox
from isobox import host as hosts
from leftovers import at_rest, close_shared, descendants, settled

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

FREEZES = hosts.features().cgroup_freezer
LIMITS = hosts.features().cgroup_memory and hosts.features().cgroup_pids
MOSTLY = st.sampled_from([True, True, True, False])


def going(life: Life) -> bool:
    return life.state != "stopped"


def over(life: Life) -> bool:
    return life.state == "stopped"


class Life(RuleBasedStateMachine):
    """The model: a state, the content of files, and the programs that run."""

    programs = Bundle("programs")
    allowed = 0
    """Calls that were in their state, in all the examples together."""

    @initialize(started=MOSTLY)
    def first(self, started: bool) -> None:
        self.before = at_rest()
        self.all: list[isobox.Process] = []
        self.make(started)

    def make(self, started: bool) -> None:
        options: dict[str, Any] = {"memory": "64M", "pids": 64} if LIMITS else {}
        self.c = isobox.Container("host", **options)
        self.state = "created"
        self.files: dict[str, bytes] = {}
        self.running: list[isobox.Process] = []
        self.dying: list[isobox.Process] = []
        if started:
            self.start()

    def attempt(self, call: Callable[[], Any], *states: str) -> Any:
        """Call it; a StateError unless the model is in one of these states."""
        if self.state in states:
            Life.allowed += 1
            return call()
        with pytest.raises(isobox.StateError):
            call()
        return None

    @precondition(going)
    @rule()
    def start(self) -> None:
        if self.attempt(self.c.start, "created") is not None:
            self.state = "running"

    @precondition(going)
    @rule(code=st.integers(0, 255), measure=st.booleans())
    def exec(self, code: int, measure: bool) -> None:
        result = self.attempt(lambda: self.c.exec(["sh", "-c", f"exit {code}"], measure=measure), "running")
        if result is not None:
            assert (result.returncode, result.reason) == (code, "exited")

    @precondition(going)
    @rule(data=st.binary(max_size=2000), copies=st.integers(1, 100))
    def exec_with_input(self, data: bytes, copies: int) -> None:
        result = self.attempt(lambda: self.c.exec(["cat"], input=data * copies), "running")
        if result is not None:
            assert result.stdout == data * copies

    @precondition(going)
    @rule()
    def exec_that_takes_too_long(self) -> None:
        call = lambda: self.c.exec(["sh", "-c", "sleep 100 & sleep 100"], timeout=0.02)  # noqa: E731
        result = self.attempt(call, "running")
        if result is not None:
            assert result.reason == "timeout"

    @precondition(going)
    @rule()
    def exec_of_nothing(self) -> None:
        if self.state == "running":
            with pytest.raises(isobox.ExecError):
                self.c.exec(["/no/such/program"])

    @precondition(going)
    @rule(target=programs)
    def popen(self) -> Any:
        process = self.attempt(lambda: self.c.popen(["cat"], stdin=isobox.PIPE), "running")
        if process is None:
            return multiple()
        self.running.append(process)
        self.all.append(process)
        return process

    @rule(process=programs)
    def finish_program(self, process: isobox.Process) -> None:
        """Its stdin ends, and so does it."""
        if self.state == "running" and process in self.running:
            assert process.communicate(b"hello")[0] == b"hello"
            assert process.returncode == 0 and process.result().reason == "exited"
            self.running.remove(process)

    @rule(process=programs)
    def kill_program(self, process: isobox.Process) -> None:
        """In a paused container it ends when that goes on."""
        if process in self.running:
            process.kill()
            self.running.remove(process)
            self.dying.append(process)
            self.bury()

    @precondition(going)
    @rule(signal=st.sampled_from([signals.SIGTERM, signals.SIGINT]))
    def signal_all(self, signal: signals.Signals) -> None:
        if self.state == "running":
            self.c.kill(signal)
            for process in self.running:
                assert process.wait(10) == -signal and process.result().reason == "signaled"
            self.running.clear()

    def bury(self) -> None:
        if self.state == "running":
            for process in self.dying:
                assert process.wait(10) == -9 and process.result().reason == "killed"
            self.dying.clear()

    @rule(process=programs)
    def wait(self, process: isobox.Process) -> None:
        """One that has ended says so again and again, whatever became of the container."""
        if process not in self.running + self.dying:
            assert process.wait(10) is not None
            assert process.poll() == process.returncode

    @precondition(going)
    @rule()
    def pause(self) -> None:
        if FREEZES:
            self.attempt(self.c.pause, "running")
            if self.state == "running":
                self.state = "paused"

    @precondition(going)
    @rule()
    def resume(self) -> None:
        self.attempt(self.c.resume, "paused")
        if self.state == "paused":
            self.state = "running"
            self.bury()

    @precondition(going)
    @rule(pids=st.integers(64, 2000), memory=st.integers(32, 512))
    def update(self, pids: int, memory: int) -> None:
        if LIMITS:
            self.attempt(lambda: self.c.update(pids=pids, memory=f"{memory}M"), "running", "paused")
            if self.state in ("running", "paused"):
                assert (self.c.spec.limits.pids, self.c.spec.limits.memory) == (pids, memory << 20)

    @precondition(going)
    @rule(name=st.sampled_from("abc"), data=st.binary(max_size=5000))
    def write(self, name: str, data: bytes) -> None:
        self.attempt(lambda: self.c.write_bytes(f"/tmp/{name}", data), "running")
        if self.state == "running":
            self.files[name] = data

    @precondition(going)
    @rule()
    def read(self) -> None:
        for name, data in self.files.items():
            found = self.attempt(lambda name=name: self.c.read_bytes(f"/tmp/{name}"), "running")
            assert found is None or found == data

    @precondition(going)
    @rule()
    def look(self) -> None:
        self.c.explain()
        changes = self.attempt(self.c.changes, "running")
        if changes is not None:
            assert {f"/tmp/{name}" for name in self.files} <= {change.path for change in changes}
        self.attempt(self.c.stats, "running", "paused")

    @precondition(going)
    @rule(how=st.sampled_from(["kill", "stop", "remove", "init is killed"]))
    def finish(self, how: str) -> None:
        """One rule for all: a container that lives for a few steps only shows little."""
        if how == "kill":
            self.attempt(self.c.kill, "running", "paused")
            if self.state == "created":
                return
        elif how == "stop":
            self.c.stop(timeout=0.05)
        elif how == "remove":
            self.c.remove()
        elif self.state != "running":
            return  # what is frozen does not die
        else:  # by somebody else on this machine, who has seen its pid there
            assert self.c.pid is not None
            os.kill(self.c.pid, signals.SIGKILL)
            assert self.c.wait(10)
        self.state = "stopped"
        self.running.clear()
        self.dying.clear()

    @precondition(over)
    @rule(removed=st.booleans())
    def refuse(self, removed: bool) -> None:
        """What has stopped never does anything again."""
        for call in (
            self.c.start,
            lambda: self.c.exec(["true"]),
            lambda: self.c.popen(["true"]),
            self.c.kill,
            self.c.pause,
            self.c.resume,
            lambda: self.c.update(pids=100),
            lambda: self.c.write_bytes("/tmp/a", b""),
            lambda: self.c.read_bytes("/tmp/a"),
            self.c.changes,
            self.c.stats,
        ):
            self.attempt(call)
        assert self.c.wait(0)
        if removed:
            self.c.stop()
            self.c.remove()

    @precondition(over)
    @rule(started=MOSTLY)
    def another(self, started: bool) -> None:
        self.c.remove()
        self.make(started)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "c"):
            assert self.c.state == self.state
            assert (self.c.pid is not None) == (self.state in ("running", "paused"))
            assert all(process.poll() is None for process in self.running)

    def teardown(self) -> None:
        if not hasattr(self, "c"):
            return
        self.c.remove()
        self.c.remove()
        for process in self.all:
            assert process.wait(10) is not None
            process.close()
        close_shared()
        left = settled(self.before, 5)
        assert not left, left
        assert not [name for name in descendants(os.getpid()).values() if "isobox" in name]


@pytest.mark.timeout(600)  # where it fails, hypothesis looks for the shortest way there
def test_life() -> None:
    Life.allowed = 0
    run_state_machine_as_test(Life, settings=settings(max_examples=100, stateful_step_count=40))
    assert Life.allowed > 500, "the examples hardly did anything"
