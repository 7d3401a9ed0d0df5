"""The program that uses the library: its threads, signals, children and descriptors stay its own."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

import isobox
from isobox import PIPE, Container, StateError
from leftovers import nothing_left, wait_until
from patience import patient
from programs import alone, python, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

HOME = os.path.dirname(isobox.__file__)


def program(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program of its own, in which everything may be tried."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def empty_state() -> Iterator[str]:
    """A place for ISOBOX_STATE_DIR that the root of a container can reach."""
    with tempfile.TemporaryDirectory(prefix="isobox-test-", dir="/tmp") as folder:
        os.chmod(folder, 0o711)
        state = f"{folder}/state"
        yield state
        # Children that end by os._exit leave cgroups, which are found by their state only.
        clean = [sys.executable, "-m", "isobox.cli", "doctor", "--clean"]
        subprocess.run(
            clean, env={**os.environ, "ISOBOX_STATE_DIR": state}, stdout=subprocess.DEVNULL, check=True
        )


@contextmanager
def handling(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


class TestChildren:
    """The inits of containers are children of the program, as those of subprocess are."""

    def test_its_own_are_waited_for_by_their_pids(self) -> None:
        own = os.fork()
        if own == 0:
            os._exit(7)
        with Container() as container:
            assert container.exec(["sleep", "0.1"]).ok
        assert os.waitpid(own, 0) == (own, 7 << 8)
        assert subprocess.run(["sh", "-c", "exit 4"]).returncode == 4

    def test_a_program_that_waits_for_all_children(self) -> None:
        # Its thread takes the end of every child; what becomes of ours is told another way.
        code = """
import os, signal, threading, time, isobox
reaped = set()
def reap():
    while True:
        try:
            reaped.add(os.wait()[0])
        except ChildProcessError:
            time.sleep(0.0005)
threading.Thread(target=reap, daemon=True).start()
for _ in range(10):
    assert isobox.run(["sh", "-c", "exit 3"]).returncode == 3
    with isobox.Container() as c, c.popen(["sh", "-c", "kill -TERM $$"]) as p:
        assert p.wait(20) == -signal.SIGTERM
with isobox.Container() as c:
    init = c.pid
    with c.popen(["sleep", "60"]) as p:
        os.kill(init, signal.SIGKILL)
        assert p.wait(20) == -signal.SIGKILL
        assert p.result().reason == "killed"
    while init not in reaped:
        time.sleep(0.001)
    assert c.wait(20) and c.state == "stopped" and c.pid is None
    try:
        c.exec(["true"])
    except isobox.StateError:
        print("fine")
"""
        done = program(code)
        assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr

    @pytest.mark.parametrize("handled", [True, False])
    def test_sigchld(self, handled: bool) -> None:
        seen: list[int] = []
        with handling(signal.SIGCHLD, (lambda n, _f: seen.append(n)) if handled else signal.SIG_IGN):
            for status in (0, 3):
                with Container() as container:
                    result = container.exec(["sh", "-c", f"sleep 0.01; exit {status}"])
                    assert (result.returncode, result.reason) == (status, "exited")
                    with container.popen(["sh", "-c", "exit 9"]) as process:
                        assert process.wait(20) == 9
            with pytest.raises(isobox.SetupError):
                Container(mounts=["/no/such:/x"]).start()
        assert bool(seen) == handled

    def test_a_handler_of_sigchld_that_takes_all_children(self) -> None:
        def handler(*_: object) -> None:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

        with handling(signal.SIGCHLD, handler):
            for status in (0, 3):
                assert isobox.run(["sh", "-c", f"exit {status}"]).returncode == status

    def test_no_zombies(self) -> None:
        with nothing_left():
            for _ in range(5):
                isobox.run(["true"])


class TestSignals:
    def test_a_handler_runs_while_a_program_is_waited_for(self) -> None:
        seen: list[float] = []
        with handling(signal.SIGALRM, lambda *_: seen.append(time.monotonic())), Container() as container:
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.05)
            try:
                result = container.exec(["sh", "-c", "sleep 0.5; echo end"])
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert (result.stdout, result.reason) == (b"end\n", "exited")
        assert len(seen) >= 5

    def test_a_storm_of_signals(self) -> None:
        count = 0

        def handler(*_: object) -> None:
            nonlocal count
            count += 1

        with handling(signal.SIGALRM, handler):
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            try:
                for turn in range(5):
                    with Container() as container:
                        result = container.exec(["sh", "-c", f"head -c 300000 /dev/zero; exit {turn}"])
                        assert (len(result.stdout), result.returncode) == (300_000, turn)
                        with container.popen(["cat"], stdin=PIPE) as process:
                            assert process.communicate(b"x" * 200_000)[0] == b"x" * 200_000
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert count > 20

    @pytest.mark.parametrize("delay", [0.0005, 0.002, 0.01, 0.1])
    @pytest.mark.parametrize("measure", [True, False])
    def test_keyboard_interrupt_during_exec(self, delay: float, measure: bool) -> None:
        # At any moment, from before the program has started.
        with Container() as container:
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt), interrupt_after(delay):
                    container.exec(["sh", "-c", "sleep 60 & setsid sleep 60 & sleep 60"], measure=measure)
                assert wait_until(lambda: alone(container), 5)
            assert container.exec(["true"]).ok
            assert container.state == "running"

    def test_keyboard_interrupt_leaves_no_descriptor(self) -> None:
        with nothing_left():
            container = Container().start()
            try:
                for delay in (0.001, 0.003, 0.02):
                    with pytest.raises(KeyboardInterrupt), interrupt_after(delay):
                        container.exec(["sleep", "60"], input=b"x" * 100_000)
            finally:
                container.remove()

    @pytest.mark.filterwarnings("ignore")
    def test_keyboard_interrupt_during_the_start(self) -> None:
        with nothing_left():
            for turn in range(20):
                container = Container()
                with contextlib.suppress(KeyboardInterrupt):  # it may come before the block begins
                    with interrupt_after(0.0003 * (turn + 1)) as sent:
                        container.start()
                        assert wait_until(lambda: sent)
                container.remove()

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("options", [{}, {"upper": "disk", "name": "isobox-test-interrupts"}])
    def test_an_interrupt_at_every_place_of_the_start(self, options: Any) -> None:
        with nothing_left():
            place, sent = 0, [0]
            while sent:
                place += 1 + place // 50  # the further on, the more alike they are
                container = Container(**options)
                with interrupt_at(place) as sent, contextlib.suppress(KeyboardInterrupt):
                    container.start()
                assert container.state in ("created", "running")
                container.remove()
        assert place > 100

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("waits", [True, False])
    def test_an_interrupt_at_every_place_of_an_exec(self, waits: bool) -> None:
        with nothing_left(), Container() as container:
            assert container.exec(["true"]).ok
            place, sent = 0, [0]
            while sent:
                place += 1
                with interrupt_at(place) as sent, contextlib.suppress(KeyboardInterrupt):
                    if waits:
                        container.exec(["true"])
                    else:
                        process = container.popen(["sleep", "60"])
                        sys.setprofile(None)
                        with process:
                            process.kill()
                assert alone(container) or wait_until(lambda: alone(container), 5)
            assert container.exec(["echo", "x"]).stdout == b"x\n"
        assert place > 100

    def test_keyboard_interrupt_while_waiting(self) -> None:
        with Container() as container, container.popen(["sleep", "60"]) as process:
            with pytest.raises(KeyboardInterrupt), interrupt_after(0.1):
                process.wait()
            assert process.poll() is None
            with pytest.raises(KeyboardInterrupt), interrupt_after(0.1):
                process.communicate()
            process.kill()

    def test_keyboard_interrupt_in_a_flood(self) -> None:
        """Where there is always more to read no wait is cut short; it doesn't come with the timeout only."""
        with Container() as container:
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt), interrupt_after(0.1):
                container.exec(["yes"], output_limit=None, timeout=patient(2))
            assert time.monotonic() - began < patient(1)

    def test_ctrl_c_ends_the_program_and_all_with_it(self) -> None:
        code = """
import isobox
with isobox.Container() as c:
    print(c.pid, flush=True)
    c.exec(["sh", "-c", "trap '' INT; sleep 60"])
"""
        with subprocess.Popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE) as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _out, err = process.communicate(timeout=20)
        assert process.returncode != 0 and b"KeyboardInterrupt" in err
        assert not os.path.exists(f"/proc/{pid}")

    def test_masks_and_handlers_stay(self) -> None:
        before = [signal.getsignal(number) for number in range(1, 65)]
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            isobox.run(["true"])
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR2}
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        assert [signal.getsignal(number) for number in range(1, 65)] == before


@contextmanager
def interrupt_after(seconds: float) -> Iterator[list[int]]:
    """Ctrl-C after a while, on a slow machine before the block has begun, too; gives what was sent so far."""
    sent: list[int] = []

    def handler(number: int, _frame: object) -> None:
        sent.append(number)
        raise KeyboardInterrupt

    with handling(signal.SIGALRM, handler):
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield sent
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def interrupt_at(place: int) -> Iterator[list[int]]:
    """Ctrl-C at one of the places where Python runs handlers: calls in the library, and returns from C there.

    Gives what was sent so far.
    """
    left = place
    sent: list[int] = []

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    def count(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal left
        code = frame.f_code
        ours = code.co_filename.startswith(HOME) or "ExitStack" in code.co_qualname
        if ours and event in ("call", "c_return"):
            left -= 1
            if left == 0:
                sent.append(place)
                signal.raise_signal(signal.SIGALRM)

    with handling(signal.SIGALRM, handler):
        sys.setprofile(count)
        try:
            yield sent
        finally:
            sys.setprofile(None)


def test_a_program_that_closes_its_stdin_ends_nobody() -> None:
    """Many programs have SIGPIPE at its default, so that they end quietly in a pipeline."""
    code = """
import signal
from isobox import PIPE, Container
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
closes, much = ["sh", "-c", "exec 0<&-; sleep 0.1"], b"x" * (1 << 20)
with Container() as c:
    assert c.exec(closes, input=much).returncode == 0
    with c.popen(closes, stdin=PIPE) as p:
        assert p.communicate(much) == (b"", b"")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    assert c.exec(closes, input=much).returncode == 0
    assert signal.sigpending() == set()
    signal.raise_signal(signal.SIGPIPE)
    assert c.exec(closes, input=much).returncode == 0
    assert signal.sigpending() == {signal.SIGPIPE}, "its own"
"""
    done = program(code)
    assert (done.returncode, done.stderr) == (0, "")


class TestForks:
    def test_a_child_ends_nothing_of_its_parent_s(self) -> None:
        for leave in (os._exit, sys.exit):
            code = f"""
import os, sys, isobox
with isobox.Container() as c, c.popen(["sleep", "60"]) as p:
    pid = os.fork()
    if pid == 0:
        {"os._exit" if leave is os._exit else "sys.exit"}(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert c.exec(["echo", "alive"]).stdout == b"alive\\n"
    assert p.poll() is None
    print(c.state)
    p.kill()
"""
            done = program(code)
            assert (done.stdout, done.returncode) == ("running\n", 0), done.stderr

    def test_a_child_can_make_its_own(self) -> None:
        code = """
import os, isobox
with isobox.Container(name="isobox-test-parent") as c:
    pid = os.fork()
    if pid == 0:
        with isobox.Container() as mine:
            print(mine.exec(["echo", "child"], text=True).stdout, end="", flush=True)
            assert mine.id != c.id
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print(c.exec(["echo", "parent"], text=True).stdout, end="")
"""
        done = program(code)
        assert (done.stdout, done.returncode) == ("child\nparent\n", 0), done.stderr

    @pytest.mark.parametrize(
        "verb", ["exec(['true'])", "kill()", "stop()", "update(pids=5)", "stats()", "pause()"]
    )
    def test_a_child_must_not_use_its_parent_s(self, verb: str) -> None:
        code = f"""
import os, isobox
with isobox.Container() as c:
    pid = os.fork()
    if pid == 0:
        try:
            c.{verb}
        except isobox.StateError as error:
            os._exit(42 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert c.exec(["true"]).ok
"""
        done = program(code)
        assert done.returncode == 0, done.stderr

    def test_leaving_the_block_in_a_child(self) -> None:
        code = """
import os, isobox
c = isobox.Container()
with c:
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        assert c.exec(["true"]).ok
if not pid:
    del c
    os._exit(0)
"""
        done = program(code)
        assert done.returncode == 0, done.stderr

    def test_what_a_child_knows_of_its_parent_s_programs(self) -> None:
        code = """
import os, isobox
with isobox.Container() as c, c.popen(["sh", "-c", "exit 3"]) as over, c.popen(["sleep", "60"]) as p:
    assert over.wait() == 3
    pid = os.fork()
    if pid == 0:
        assert over.poll() == over.wait() == over.returncode == 3
        refused = 0
        for use in (p.poll, p.wait, p.communicate, p.kill, p.terminate, over.communicate, lambda: p.pid):
            try:
                use()
            except isobox.StateError as error:
                refused += "fork" in str(error)
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert p.poll() is None
    p.kill()
"""
        done = program(code)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("text", [True, False])
    def test_leaving_the_block_in_a_child_while_a_thread_reads(self, text: bool) -> None:
        # The lock of the file is held by a thread that the child does not have.
        code = f"""
import faulthandler, os, threading, time, isobox
with isobox.Container() as c:
    with c.popen(["cat"], stdin=isobox.PIPE, text={text}) as p:
        threading.Thread(target=p.stdout.read, daemon=True).start()
        time.sleep(0.05)
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(20, exit=True)
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
print("fine")
"""
        done = program(code)
        assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr

    @pytest.mark.skipif(
        os.environ.get("ISOBOX_SANITIZED") == "1",
        reason="AddressSanitizer's malloc has locks that a fork in another thread's malloc leaves locked",
    )
    @pytest.mark.parametrize("delay", [0, 0.02, 0.05])
    def test_the_child_of_a_fork_in_the_middle_of_starts(self, delay: float, empty_state: str) -> None:
        # Locks of threads that do not exist in the child must not stop it: where nothing is kept from
        # programs before, the first start imports and compiles too.
        code = f"""
import faulthandler, os, threading, time, isobox
stop = threading.Event()
def work():
    while not stop.is_set():
        isobox.run(["true"])
threads = [threading.Thread(target=work) for _ in range(3)]
for t in threads: t.start()
time.sleep({delay})
bad = 0
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(30, exit=True)
        result = isobox.run(["echo", "x"])
        os._exit(0 if result.stdout == b"x\\n" else 2)
    bad = bad or os.waitpid(pid, 0)[1]
stop.set()
for t in threads: t.join()
print(bad)
"""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True, text=True, timeout=300, env={**os.environ, "ISOBOX_STATE_DIR": empty_state},
        )  # fmt: skip
        assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr

    def test_a_fork_waits_for_what_it_must_not_cut_in_two(self) -> None:
        code = """
import faulthandler, os, threading, time
from isobox import forks
held, whole = threading.Event(), []
def work():
    with forks.whole:
        held.set()
        time.sleep(0.1)
        whole.append(True)
threading.Thread(target=work).start()
held.wait()
pid = os.fork()
if pid == 0:
    faulthandler.dump_traceback_later(20, exit=True)
    thread = threading.Thread(target=forks.whole.__enter__)  # nobody holds it here
    thread.start()
    thread.join()
    os._exit(42 if whole else 2)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
with forks.whole:
    pid = os.fork()  # by the one who holds it
    if pid == 0:
        os._exit(42)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
print("fine")
"""
        done = program(code)
        assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr

    def test_pools_of_processes(self) -> None:
        code = """
import concurrent.futures, multiprocessing, isobox
def work(number):
    return isobox.run(["echo", str(number)], text=True).stdout
if __name__ == "__main__":
    isobox.run(["true"])
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as pool:
        print("".join(pool.map(work, range(6))), end="")
"""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "0\n1\n2\n3\n4\n5\n", done.stderr


class TestSurroundings:
    def test_closed_standard_streams(self) -> None:
        # A daemon may have none: descriptors 0 to 2 are then what the library opens first.
        code = """
import os, sys
out = os.dup(1)
os.set_inheritable(out, False)
for fd in (0, 1, 2): os.close(fd)
import isobox
with isobox.Container() as c:
    r = c.exec(["sh", "-c", "cat; echo out; echo err >&2; ls /proc/self/fd"], input=b"in\\n")
    with c.popen(["cat"], stdin=isobox.PIPE) as p:
        communicated = p.communicate(b"x")
os.write(out, repr((r.stdout, r.stderr, communicated)).encode())
"""
        done = program(code)
        assert done.stdout == repr((b"in\nout\n0\n1\n2\n3\n", b"err\n", (b"x", b""))), done.stderr

    def test_many_descriptors(self) -> None:
        # Beyond what select() takes.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 3000:
            pytest.skip("not enough descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3000, hard))
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(1500)]
        try:
            with Container() as container:
                assert container.exec(["cat"], input=b"x").stdout == b"x"
                assert container.wait(0) is False and container.state == "running"
                with container.popen(["cat"], stdin=PIPE) as process:
                    assert process.poll() is None
                    assert process.communicate(b"x", timeout=20) == (b"x", b"")
        finally:
            for fd in fds:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_no_descriptors_left(self) -> None:
        # Says so, keeps nothing, and works again once there are some.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Container() as container:
            assert container.exec(["true"]).ok
            taken: list[int] = []
            refused = 0
            try:
                resource.setrlimit(
                    resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 40, hard)
                )
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                for _ in range(13):
                    for call in (lambda: container.exec(["true"]), lambda: isobox.run(["true"])):
                        try:
                            assert call().ok
                        except (OSError, isobox.IsoboxError):
                            refused += 1
                    for _ in range(3):
                        os.close(taken.pop())
            finally:
                for fd in taken:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            # How often depends on what is kept ready, and given back in these very moments.
            assert refused
            assert container.exec(["echo", "x"]).stdout == b"x\n"
            assert alone(container)

    def test_another_working_directory_and_umask(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        before = os.umask(0o777)
        try:
            with Container() as container:
                assert sh(container, "pwd; umask; touch /tmp/f; stat -c %a /tmp/f") == "/\n0022\n644\n"
        finally:
            os.umask(before)

    def test_a_program_without_an_environment(self) -> None:
        code = "import isobox; print(isobox.run(['env'], text=True).stdout, end='')"
        done = program(code, env={})
        assert "PATH=/usr/local/sbin:" in done.stdout, done.stderr

    def test_nothing_is_printed(self) -> None:
        done = program("import isobox; isobox.run(['sh', '-c', 'echo x; echo y >&2'], timeout=1)")
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)

    def test_from_a_thread_at_the_end_of_the_program(self) -> None:
        code = """
import threading, isobox
c = isobox.Container().start()
print(c.pid)
threading.Thread(target=lambda: print(c.exec(["sh", "-c", "sleep 0.3; exit 5"]).returncode)).start()
"""
        done = program(code)
        pid, status = done.stdout.split()
        assert (status, done.stderr, done.returncode) == ("5", "", 0)
        assert not os.path.exists(f"/proc/{pid}")

    def test_what_is_resident_costs_nothing(self) -> None:
        # A fork of this program would have the kernel look at every page when it is written again.
        code = """
import mmap, os, resource, isobox
kept = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
if os.path.exists("/sys/kernel/mm/transparent_hugepage"): kept.madvise(mmap.MADV_NOHUGEPAGE)
for i in range(0, len(kept), 4096): kept[i] = 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    isobox.run(["true"])
FORK
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20000)
for i in range(0, len(kept), 4096): kept[i] = 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20000)
"""
        done = program(code.replace("FORK", ""))
        assert done.stdout == "True\nTrue\n", done.stderr
        fork = "import os; pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0)"
        done = program(code.replace("FORK", fork))
        assert done.stdout == "True\nFalse\n", done.stderr


class TestGarbage:
    def test_containers_in_cycles(self) -> None:
        container = Container().start()
        holder: list[Any] = [container]
        holder.append(holder)
        pid = container.pid
        del container, holder
        with pytest.warns(ResourceWarning):
            gc.collect()
        assert wait_until(lambda: not os.path.exists(f"/proc/{pid}"))

    def test_a_process_outlives_its_container_s_name(self) -> None:
        def start() -> tuple[Container, Any]:
            container = Container().start()
            return container, container.popen(["sh", "-c", "sleep 0.1; echo done"])

        container, process = start()
        assert process.communicate() == (b"done\n", b"")
        container.remove()


def test_threads_start_and_end_containers_while_others_exec() -> None:
    wrong: list[BaseException] = []
    with Container() as shared:

        def guarded(work: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                try:
                    for _ in range(5):
                        work()
                except BaseException as error:
                    wrong.append(error)

            return run

        def starts() -> None:
            with Container() as own:
                assert own.exec(["echo", "own"]).stdout == b"own\n"

        def execs() -> None:
            assert shared.exec(python("print('shared')")).stdout == b"shared\n"

        def fails() -> None:
            with pytest.raises(isobox.ExecError):
                shared.exec(["/no/such"])
            with pytest.raises(isobox.SetupError):
                Container(mounts=["/no/such:/x"]).start()
            with pytest.raises(StateError):
                Container().exec(["true"])

        threads = [threading.Thread(target=guarded(work)) for work in (starts, execs, fails) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert alone(shared)
