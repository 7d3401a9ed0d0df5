"""The life of a container: its states, its verbs in each of them, and what it is called."""

from __future__ import annotations

import os
import pickle
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import isobox
from isobox import PIPE, Container, SpecError, StateError, UnsupportedError
from leftovers import descendants, nothing_left, wait_until
from patience import patient
from programs import DAEMON, alone, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

VERBS: dict[str, Callable[[Container], Any]] = {
    "exec": lambda c: c.exec(["true"]),
    "popen": lambda c: c.popen(["true"]),
    "kill": lambda c: c.kill(),
    "pause": lambda c: c.pause(),
    "resume": lambda c: c.resume(),
    "update": lambda c: c.update(pids=100),
    "stats": lambda c: c.stats(),
    "changes": lambda c: c.changes(),
    "read_bytes": lambda c: c.read_bytes("/etc/passwd"),
    "write_text": lambda c: c.write_text("/tmp/x", "x"),
    "copy_in": lambda c: c.copy_in(sys.executable, "/tmp/x"),
    "copy_out": lambda c: c.copy_out("/etc/passwd", "/tmp/x"),
    "start": lambda c: c.start(),
}


class TestStates:
    def test_one_after_the_other(self) -> None:
        container = Container()
        assert (container.state, container.id, container.pid) == ("created", "", None)
        with container as entered:
            assert entered is container
            assert container.state == "running"
            assert re.fullmatch("[0-9a-f]{12}", container.id)
            assert container.pid is not None and container.pid in descendants(os.getpid())
        assert (container.state, container.pid) == ("stopped", None)

    def test_by_hand(self) -> None:
        container = Container()
        assert container.start() is container
        assert container.exec(["true"]).ok
        container.remove()
        container.remove()
        container.stop()
        assert container.state == "stopped"

    @pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "start"])
    def test_before_the_start(self, verb: str) -> None:
        container = Container()
        with pytest.raises(StateError, match="created|not been started"):
            VERBS[verb](container)
        with pytest.raises(StateError):
            container.wait()
        container.remove()

    @pytest.mark.parametrize("verb", list(VERBS))
    def test_after_the_end(self, verb: str) -> None:
        container = Container().start()
        container.remove()
        with pytest.raises(StateError, match="stopped"):
            VERBS[verb](container)
        assert container.wait(0) is True

    @pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("kill", "stats", "start")])
    def test_after_it_was_killed(self, verb: str) -> None:
        with Container() as container:
            container.kill()
            assert container.state == "stopped" and container.pid is None
            with pytest.raises(StateError, match="stopped"):
                VERBS[verb](container)

    @pytest.mark.parametrize("verb", ["kill", "wait"])
    def test_removed_by_another_thread_meanwhile(self, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The number of its init's descriptor is another process's the next moment, which is left alone."""
        send, poll = signal.pidfd_send_signal, select.poll
        caller = threading.get_ident()
        taken: list[int] = []

        def meanwhile() -> None:
            if taken or threading.get_ident() != caller:
                return
            removing = threading.Thread(target=container.remove)
            removing.start()
            removing.join(patient(30))
            taken.extend(os.pidfd_open(bystander.pid) for _ in range(64))

        def sent(fd: int, number: int) -> None:
            meanwhile()
            send(fd, number)

        def polled() -> Any:
            meanwhile()
            return poll()

        with subprocess.Popen(["sleep", "1000"]) as bystander, Container() as container:
            try:
                with monkeypatch.context() as patch:
                    if verb == "kill":
                        patch.setattr(signal, "pidfd_send_signal", sent)
                        container.kill()
                    else:
                        patch.setattr(select, "poll", polled)
                        assert container.wait(patient(5))
                assert taken and bystander.poll() is None
            finally:
                for fd in taken:
                    os.close(fd)
                bystander.kill()

    def test_twice(self) -> None:
        with Container() as container, pytest.raises(StateError, match="running"):
            container.start()

    def test_removed_without_a_start(self) -> None:
        with nothing_left():
            container = Container()
            container.remove()
            assert container.state == "stopped"

    def test_a_failed_start_leaves_it_created(self) -> None:
        container = Container(mounts=["/no/such/source:/data"])
        with pytest.raises(isobox.SetupError):
            container.start()
        assert container.state == "created" and container.pid is None

    def test_wait(self) -> None:
        with Container() as container:
            began = time.monotonic()
            assert container.wait(0) is False
            assert container.wait(0.1) is False
            threading.Timer(0.1, container.kill).start()
            assert container.wait(10) is True
            assert time.monotonic() - began < patient(5)

    def test_its_init_dies(self) -> None:
        with Container() as container, container.popen(["sleep", "60"]) as process:
            assert container.pid is not None
            os.kill(container.pid, signal.SIGKILL)
            assert process.wait(10) == -signal.SIGKILL
            assert process.result().reason == "killed"
            assert container.wait(10) and container.state == "stopped"

    def test_never_removed(self) -> None:
        container = Container().start()
        pid = container.pid
        with pytest.warns(ResourceWarning, match="never removed"):
            del container
        assert wait_until(lambda: not os.path.exists(f"/proc/{pid}"))

    def test_an_exception_in_the_block(self) -> None:
        container = Container()
        with nothing_left():
            with pytest.raises(KeyError):  # noqa: PT012 - which is to get out of the block
                with container:
                    container.popen(["sleep", "60"], stdout=None, stderr=None)
                    raise KeyError
            assert container.state == "stopped"


class TestEnds:
    def test_stop_lets_programs_end(self) -> None:
        with Container() as container:
            script = "trap 'sleep 0.1; echo clean; exit 5' TERM; echo; while :; do sleep 0.02; done"
            process = container.popen(["sh", "-c", script])
            assert process.stdout is not None
            process.stdout.readline()
            container.stop()
            assert process.stdout.read() == b"clean\n"
            assert process.wait(0) == 5
            assert process.result().reason == "exited"
            process.close()

    def test_stop_does_not_wait_for_ever(self) -> None:
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
        with Container() as container:
            process = container.popen(python(code))
            assert process.stdout is not None
            process.stdout.readline()
            began = time.monotonic()
            container.stop(timeout=0.3)
            assert 0.25 < time.monotonic() - began < patient(5)
            assert process.wait(5) == -signal.SIGKILL
            assert process.result().reason == "killed"
            process.close()

    def test_stop_with_nothing_running_is_quick(self) -> None:
        with Container() as container:
            began = time.monotonic()
            container.stop()
            assert time.monotonic() - began < patient(5)

    def test_a_signal_to_all_programs(self) -> None:
        with Container() as container:
            processes = [container.popen(["sleep", "60"]) for _ in range(3)]
            container.kill(signal.SIGTERM)
            assert [process.wait(10) for process in processes] == [-signal.SIGTERM] * 3
            assert [process.result().reason for process in processes] == ["signaled"] * 3
            assert container.state == "running" and container.exec(["true"]).ok
            for process in processes:
                process.close()

    def test_a_signal_that_is_none(self) -> None:
        with Container() as container, pytest.raises(ValueError):
            container.kill(4711)

    def test_everything_goes_with_it(self) -> None:
        with Container() as container:
            processes = [container.popen(python(DAEMON + "time.sleep(60)")) for _ in range(3)]
            processes += [
                container.popen(["sh", "-c", "sleep 60 & setsid sleep 60 & wait"]) for _ in range(3)
            ]
            assert container.pid is not None
            inside = descendants(container.pid)
            assert len(inside) >= 3
        for pid in inside:
            assert wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), 2), inside[pid]
        for process in processes:
            process.wait(0)
            process.close()

    def test_the_owner_ends_without_a_word(self) -> None:
        code = """
import os, signal, sys, isobox
c = isobox.Container().start()
p = c.popen(["sleep", "4711"], stdout=None)
print(p.pid, c.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == -signal.SIGKILL
        for pid in done.stdout.split():
            assert wait_until(lambda pid=pid: not _runs(int(pid)), 2)

    def test_the_owner_ends_in_order(self) -> None:
        code = """
import isobox
c = isobox.Container().start()
p = c.popen(["sleep", "4711"], stdout=None, stderr=None)
print(p.pid, c.pid, flush=True)
"""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert not any(_runs(int(pid)) for pid in done.stdout.split())


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestNames:
    def test_name_or_id(self) -> None:
        with Container() as container:
            assert container.name == container.id
        with Container(name="isobox-test-a") as container:
            assert container.name == "isobox-test-a" != container.id
            assert "isobox-test-a" in repr(container) and "running" in repr(container)

    def test_in_use(self) -> None:
        with Container(name="isobox-test-b"):
            other = Container(name="isobox-test-b")
            with pytest.raises(SpecError, match="isobox-test-b"):
                other.start()
            assert other.state == "created"
        with other:  # and now it is free
            assert other.exec(["true"]).ok

    def test_in_use_by_another_process(self) -> None:
        code = "import isobox\nwith isobox.Container(name='isobox-test-c'): print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == b"\n"
            with pytest.raises(SpecError, match="isobox-test-c"):
                Container(name="isobox-test-c").start()
            process.communicate(b"\n")
        with Container(name="isobox-test-c"):
            pass

    def test_ids_differ(self) -> None:
        with Container() as one, Container() as two:
            assert one.id != two.id

    def test_what_was_asked_for(self) -> None:
        container = Container("host", labels={"a": "b"}, env={"X": "y"}, pids=7)
        assert container.image == "host"
        assert (container.spec.labels, container.spec.env, container.spec.limits.pids) == (
            {"a": "b"},
            {"X": "y"},
            7,
        )
        assert "not started" in repr(container)


class TestSeveral:
    def test_each_has_its_own_files(self) -> None:
        with Container() as one, Container() as two:
            sh(one, "echo one > /tmp/file")
            assert not two.exec(["cat", "/tmp/file"]).ok
            assert sh(one, "cat /tmp/file") == "one\n"

    def test_in_threads(self) -> None:
        wrong: list[object] = []

        def work(number: int) -> None:
            try:
                for turn in range(3):
                    with Container(env={"N": f"{number}.{turn}"}) as container:
                        if sh(container, "echo $N; ls /tmp/mine || true") != f"{number}.{turn}\n":
                            wrong.append(number)
                        sh(container, "touch /tmp/mine")
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []

    def test_outlives_the_thread_that_started_it(self) -> None:
        # A container belongs to the process: the end of a thread is nothing to it.
        container = Container()
        thread = threading.Thread(target=container.start)
        thread.start()
        thread.join(20)
        time.sleep(0.1)
        assert container.state == "running"
        assert sh(container, "echo still here") == "still here\n"
        process: list[Any] = []
        thread = threading.Thread(target=lambda: process.append(container.popen(["sleep", "0.3"])))
        thread.start()
        thread.join(20)
        assert process[0].wait(10) == 0
        process[0].close()
        container.remove()

    def test_thirty_at_once(self) -> None:
        containers = [Container() for _ in range(30)]
        try:
            for container in containers:
                container.start()
            assert len({container.id for container in containers}) == 30
            assert all(container.exec(["true"], measure=False).ok for container in containers)
        finally:
            for container in containers:
                container.remove()

    def test_removed_while_another_thread_runs_something(self) -> None:
        container = Container().start()
        seen: list[Any] = []

        def work() -> None:
            try:
                while True:
                    seen.append(container.exec(["sleep", "0.005"]).reason)
            except StateError as error:
                seen.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: len(seen) > 20)
        container.remove()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert sum(isinstance(each, StateError) for each in seen) == 4
        assert {each for each in seen if isinstance(each, str)} <= {"exited", "killed"}

    def test_removed_by_two_threads(self) -> None:
        container = Container().start()
        threads = [threading.Thread(target=container.remove) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert container.state == "stopped"


class TestExplain:
    def test_before_and_after_the_start(self) -> None:
        container = Container(hostname="explained", mounts=["/usr/share:/mnt/share:ro"], read_only=True)
        with nothing_left():
            before = container.explain()
        with container:
            after = container.explain()
            assert f"pid         {container.pid}" in after and container.id in after
        for text in (before, after):
            for word in (
                "explained",
                "/usr/share",
                "/mnt/share",
                "overlay",
                "proc",
                "pivot",
                "read-only",
                "clone (",
            ):
                assert word in text, word
        ops = [
            re.sub(r"owners/\S+?/|descriptor \d+", "", line.split(maxsplit=1)[1])
            for line in _numbered(before)
        ]
        assert len(ops) > 20 and ops.index(next(op for op in ops if op.startswith("pivot"))) > len(ops) // 2

    def test_what_can_t_be_done_here(self) -> None:
        with pytest.raises(UnsupportedError):
            Container(namespaces={"pid": "host"}).start()


def _numbered(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r" *\d+  ", line)]


class TestErrors:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Container(cpu=0),
            lambda: Container().exec(["true"]),
            lambda: Container(namespaces={"pid": "host"}).start(),
            lambda: Container(mounts=["/no/such:/x"]).start(),
            lambda: isobox.run(["/no/such/program"]),
            lambda: isobox.run(["false"], check=True),
            lambda: Container("/no/such/image").start(),
        ],
        ids=["spec", "state", "unsupported", "setup", "exec", "process", "image"],
    )
    def test_pickle(self, make: Callable[[], Any]) -> None:
        with pytest.raises(isobox.IsoboxError) as caught:
            make()
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is type(caught.value)
        assert str(again) == str(caught.value)
        ours = {name: value for name, value in vars(caught.value).items() if not name.startswith("__")}
        assert {name: getattr(again, name) for name in ours} == ours
        if isinstance(caught.value, OSError):
            assert (again.errno, again.strerror) == (caught.value.errno, caught.value.strerror)

    def test_unknown_options(self) -> None:
        for call in (
            lambda: Container(memry="1G"),  # type: ignore[call-arg]
            lambda: isobox.run(["true"], nosuch=1),
        ):
            with pytest.raises(TypeError, match="unknown option"):
                call()
        with Container() as container:
            with pytest.raises(TypeError, match="unknown option"):
                container.exec(["true"], shell=True)  # type: ignore[call-arg]
            assert alone(container)

    def test_a_bare_string_says_how_to_write_it(self) -> None:
        with Container() as container, pytest.raises(SpecError, match=r"\['echo', 'hello'\]") as caught:
            container.exec("echo hello")
        assert caught.value.field == "args"


def test_the_programs_of_a_container_see_one_file_system() -> None:
    with Container() as container:
        sh(container, "echo shared > /tmp/file")
        assert said(container, ["cat", "/tmp/file"]) == "shared\n"
        assert container.read_text("/tmp/file") == "shared\n"
        container.write_text("/tmp/file", "outside\n")
        assert said(container, ["cat", "/tmp/file"]) == "outside\n"
