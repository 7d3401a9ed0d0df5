"""Garbage on every socket and pipe: what isobox-init says is not trusted, so anything may be said here.

The other end is held by the test: answers of wrong sizes and kinds, with descriptors nobody asked for,
too late, never, or half of one before the end.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import isobox
from isobox import _native, control, ending
from isobox.control import Control
from leftovers import nothing_left
from patience import patient

REPLY = struct.Struct("=Iiii qqqqq")
"""struct isobox_reply: kind, op, error, status, start, end, user, system, maxrss."""

Answer = Callable[[socket.socket], None]


def record(kind: int, op: int = 0, error: int = 0, status: int = 0, *rest: int) -> bytes:
    return REPLY.pack(kind, op, error, status, *(*rest, 0, 0, 0, 0, 0)[:5])


def says(data: bytes, fds: int = 0) -> Answer:
    """Send this with copies of a descriptor."""

    def answer(end: socket.socket) -> None:
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(fds)]
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", held))] if fds else []
            end.sendmsg([data], ancillary)
        finally:
            for fd in held:
                os.close(fd)

    return answer


def ends(end: socket.socket) -> None:
    end.close()


def is_silent(end: socket.socket) -> None:
    pass


@pytest.fixture(autouse=True)
def everything_is_given_back() -> Iterator[None]:
    with nothing_left():
        yield


@contextlib.contextmanager
def served(*answers: Answer) -> Iterator[Control]:
    """A Control whose n-th request is met by the n-th answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def serve() -> None:
        with contextlib.suppress(OSError):
            for answer in answers:
                if not theirs.recv(1 << 17):
                    return
                answer(theirs)
            while theirs.fileno() >= 0 and theirs.recv(1 << 17):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    held = Control(ours.detach())
    try:
        yield held
    finally:
        held.close()
        thread.join(10)
        theirs.close()
        assert not thread.is_alive()


GARBAGE: dict[str, Answer] = {
    "nothing more": ends,
    "an empty message": says(b""),
    "an empty message with a descriptor": says(b"", 1),
    "one byte": says(b"x"),
    "a byte too few": says(record(_native.DONE)[:-1]),
    "a byte too many": says(record(_native.DONE) + b"x", 1),
    "two answers in one": says(record(_native.DONE) * 2, 1),
    "64 KiB": says(b"\xff" * 65536),
    "text": says(b"HTTP/1.1 200 OK\r\n", 3),
}
"""After these no answer can be told from the next."""

WRONG: dict[str, Answer] = {
    "an unknown kind": says(record(77), 1),
    "kind 0": says(record(0)),
    "all ones": says(b"\xff" * REPLY.size, 2),
    "READY": says(record(_native.READY), 1),
    "an exec's end": says(record(_native.ENDED, status=9)),
    "a failure without an errno": says(record(_native.FAILED)),
    "a failure with a negative errno": says(record(_native.FAILED, error=-5)),
    "a failure with a huge errno": says(record(_native.FAILED, error=2**31 - 1), 1),
}
"""These are answers, only not to what was asked."""


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_the_conversation(what: str) -> None:
    with served(GARBAGE[what], says(record(_native.DONE))) as held:
        with pytest.raises(isobox.StateError):
            held.mkdir("/tmp/x")
        if what != "nothing more" and "empty" not in what:
            assert held.fileno() == -1  # closed: what came next would be the answer to this
        with pytest.raises(isobox.StateError):
            held.mkdir("/tmp/y")


@pytest.mark.parametrize("what", WRONG)
def test_wrong_answers_are_errors(what: str) -> None:
    with served(WRONG[what], says(record(_native.DONE))) as held:
        with pytest.raises(OSError) as caught:
            held.mkdir("/tmp/x")
        assert caught.value.errno == errno.EPROTO
        held.mkdir("/tmp/y")


@pytest.mark.parametrize("fds", [0, 2, 10, 150, 253])
def test_an_open_gets_one_descriptor(fds: int) -> None:
    """None is an error; of more than one the rest is closed."""
    with served(says(record(_native.DONE), fds)) as held:
        if fds == 0:
            with pytest.raises(OSError) as caught:
                held.open("/etc/passwd", os.O_RDONLY)
            assert caught.value.errno == errno.EPROTO
        elif fds < 190:
            os.close(held.open("/etc/passwd", os.O_RDONLY))
        else:  # more than there is room for: the kernel says that some are missing
            with pytest.raises(isobox.StateError):
                held.open("/etc/passwd", os.O_RDONLY)


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REPLY_TIMEOUT_MS", 50)
    with served(is_silent) as held, pytest.raises(isobox.StateError):
        held.open("/etc/passwd", os.O_RDONLY)


def test_closing_interrupts_who_waits_for_an_answer() -> None:
    """A program that init's socket was passed to may keep it open: nobody waits for it then."""
    failures: list[BaseException] = []
    asked = threading.Event()

    def ask(held: Control) -> None:
        try:
            held.mkdir("/tmp/x")
        except BaseException as error:
            failures.append(error)

    def is_asked(end: socket.socket) -> None:
        asked.set()

    with served(is_asked) as held:
        waiting = threading.Thread(target=ask, args=(held,))
        waiting.start()
        assert asked.wait(patient(10))
        before = time.monotonic()
        held.close()
        assert time.monotonic() - before < control.REPLY_TIMEOUT_MS / 2000
        waiting.join(patient(10))
        assert [type(failure) for failure in failures] == [isobox.StateError]
        with pytest.raises(isobox.StateError):
            held.mkdir("/tmp/y")


def test_a_descriptor_in_use_is_not_closed() -> None:
    """Its number would be another file's the next moment, which then got the request."""
    with served(is_silent) as held:

        def send() -> None:
            with contextlib.suppress(isobox.StateError):
                held._send_message(b"x")

        sending = threading.Thread(target=send)
        with held._sending:
            closing = threading.Thread(target=held.close)
            closing.start()
            sending.start()
            closing.join(0.05)
            assert closing.is_alive() and held.fileno() >= 0
            os.fstat(held.fileno())
        closing.join(patient(10))
        sending.join(patient(10))
        assert held.fileno() == -1


def test_a_container_closed_by_a_handler_is_gone() -> None:
    """The handler runs in the thread that is about to ask."""
    with served(is_silent) as held:
        os.close(held._fd)
        try:
            assert not held.signal(1, signal.SIGKILL)
            assert held.locate(1) is None
            with pytest.raises(isobox.StateError):
                held.exec(b"", [], number=1, flags=0)
        finally:
            held._fd = -1


def test_a_late_answer_is_nobody_else_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REPLY_TIMEOUT_MS", 50)

    def late(end: socket.socket) -> None:
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            says(record(_native.DONE), 1)(end)

    with served(late, says(record(_native.DONE))) as held:
        with pytest.raises(isobox.StateError):
            held.open("/etc/shadow", os.O_RDONLY)
        with pytest.raises(isobox.StateError):
            held.open("/etc/passwd", os.O_RDONLY)


def test_signals_do_not_mix_up_answers() -> None:
    """A handler runs while an answer is awaited: it is still that request's answer."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))

    def slow(end: socket.socket) -> None:
        time.sleep(0.05)
        says(record(_native.FAILED, error=errno.ENOENT))(end)

    try:
        with served(slow, says(record(_native.DONE))) as held:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            with pytest.raises(FileNotFoundError):
                held.mkdir("/tmp/x")
            signal.setitimer(signal.ITIMER_REAL, 0)
            held.mkdir("/tmp/y")
        assert seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", [0, -1, 2**31 - 1])
def test_pids_are_not_invented(number: int) -> None:
    """The pid that counts is the kernel's, of the credentials; what the record says is not looked at."""
    with served(says(record(_native.DONE, status=number))) as held:
        # The kernel adds the sender's, which is this process.
        assert held.locate(1) in (None, os.getpid())


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_during_the_setup(what: str) -> None:
    with served(is_silent, GARBAGE[what]) as held:
        held.prepare(b"", [])
        try:
            reply = held.setup(b"", [])
        except OSError as error:
            assert error.errno == errno.EBADMSG
        else:
            assert reply.kind == _native.FAILED


def test_no_answer_to_the_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REPLY_TIMEOUT_MS", 10)
    with served(is_silent, is_silent) as held:
        held.prepare(b"", [])
        with pytest.raises(TimeoutError):
            held.setup(b"", [])


# The status pipe of an exec


@contextlib.contextmanager
def piped(said: bytes, *, more: bool = False) -> Iterator[_native.Pump]:
    """A pump whose status pipe says this; and then, without `more`, is closed."""
    status, theirs = os.pipe()
    os.write(theirs, said)
    if not more:
        os.close(theirs)
    pump = _native.Pump(status)
    try:
        yield pump
    finally:
        pump.close()
        os.close(status)
        if more:
            os.close(theirs)


def test_the_end_before_a_word() -> None:
    with piped(b"") as pump:
        assert pump.run() == _native.PUMP_LOST
        assert pump.reply() is None
    with piped(b"") as pump:
        assert pump.run_until_start() is None


@pytest.mark.parametrize("said", [b"x", b"\0" * (REPLY.size - 1), record(_native.ENDED)[:20]])
def test_half_a_record(said: bytes) -> None:
    for run in (_native.Pump.run, _native.Pump.run_until_start):
        with piped(said) as pump:
            with pytest.raises(isobox.StateError):
                run(pump)


@pytest.mark.parametrize("kind", [0, _native.READY, _native.DONE, 77, 2**32 - 1])
def test_records_of_no_exec(kind: int) -> None:
    for run in (_native.Pump.run, _native.Pump.run_until_start):
        with piped(record(kind)) as pump:
            with pytest.raises(isobox.StateError):
                run(pump)


def test_more_records_than_one() -> None:
    """The first end counts; STARTED before it is no end."""
    with piped(record(_native.STARTED, status=3) + record(_native.ENDED, status=256) * 2) as pump:
        assert pump.run() == _native.PUMP_ENDED
        reply = pump.reply()
        assert reply is not None and reply.status == 256


def test_a_deadline_passes_while_nothing_is_said() -> None:
    with piped(b"", more=True) as pump:
        assert pump.run(time.monotonic_ns() + 10_000_000) == _native.PUMP_DEADLINE
        assert pump.run(0) == _native.PUMP_DEADLINE
        assert pump.reply() is None


WILD = {
    "all ones": b"\2\0\0\0" + b"\xff" * (REPLY.size - 4),
    "an op that there isn't": record(_native.FAILED, 9999, errno.ENOENT),
    "a negative op": record(_native.FAILED, -9999, errno.ENOENT),
    "a negative errno": record(_native.FAILED, 0, -1),
    "errno 0": record(_native.FAILED, 0, 0),
}


@pytest.mark.requires("user_namespaces", "overlay")
@pytest.mark.parametrize("what", WILD)
def test_wild_failures_of_an_exec(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with isobox.Container("host") as c:
        for start in (c.exec, c.popen):
            status_of_next_exec_says(WILD[what], monkeypatch)
            with pytest.raises(isobox.IsoboxError):
                start(["true"])
            monkeypatch.undo()
        assert c._programs is not None and not c._programs.running
        assert c.exec(["echo", "fine"]).stdout == b"fine\n"


ENDS = {
    "a negative time": (record(_native.ENDED, 0, 0, 256, 10, 5, -7, -7, -7), 1),
    "a time before the start of the world": (record(_native.ENDED, 0, 0, 0, -(2**63), 2**63 - 1, 0, 0), 0),
    "years": (record(_native.ENDED, 0, 0, 0, 0, 10**18, 10**17, 10**17, 2**62), 0),
    "a strange status": (record(_native.ENDED, 0, 0, -1), -127),
}


@pytest.mark.requires("user_namespaces", "overlay")
@pytest.mark.parametrize("what", ENDS)
def test_wild_ends_of_an_exec(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said, code = ENDS[what]
    with isobox.Container("host") as c:
        status_of_next_exec_says(said, monkeypatch)
        result = c.exec(["true"])
        monkeypatch.undo()
        assert result.returncode == code
        assert 0 <= result.usage.wall_time < 5  # type: ignore[operator]
        assert result.usage.cpu_time is None or result.usage.cpu_time >= 0
        assert c.exec(["echo", "fine"]).stdout == b"fine\n"


@pytest.mark.requires("user_namespaces", "overlay")
@pytest.mark.parametrize("said", [b"", b"x", record(77), record(_native.STARTED) + b"xx"])
def test_garbage_instead_of_the_end_of_an_exec(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours, or a program that was lost; whatever it is, nothing is left and others run."""
    with isobox.Container("host") as c:
        for start in (c.exec, c.popen):
            status_of_next_exec_says(said, monkeypatch)
            try:
                outcome = start(["true"])
            except isobox.IsoboxError:
                outcome = None
            monkeypatch.undo()
            if isinstance(outcome, isobox.Process):
                with contextlib.suppress(isobox.IsoboxError):
                    outcome.wait(5)
                outcome.close()
            elif outcome is not None:
                assert outcome.reason == "killed" and not outcome.ok
        assert c._programs is not None and not c._programs.running
        assert c.exec(["echo", "fine"]).stdout == b"fine\n"


def status_of_next_exec_says(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is not sent; its status pipe says this and is closed."""

    def exec_(self: Control, plan: bytes, fds: list[int], **options: int) -> None:
        if said:
            os.write(fds[0], said)

    monkeypatch.setattr(Control, "exec", exec_)
    monkeypatch.setattr(ending, "_GONE_SECONDS", 0.2)  # the container isn't going at all


def test_an_exec_starts_once() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, record(_native.STARTED) * 2)
        with pytest.raises(isobox.StateError, match="does not answer properly"):
            _native.Pump(reader).run(time.monotonic_ns() + 10**9)
    finally:
        os.close(reader)
        os.close(writer)


def test_what_others_write_after_the_end_is_not_waited_for() -> None:
    """A program can hand its stdout to one of another exec, which writes on; here a file without an end."""
    pump = _native.Pump(-1, stdout=os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC), limit=1 << 30)
    try:
        assert pump.drain() == _native.PUMP_ENDED
        assert 65536 <= len(pump.output(0)) <= 1 << 20
    finally:
        pump.close()


def test_all_that_a_pipe_holds_is_read() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    assert os.write(writer, bytes(1 << 20)) == 1 << 20
    pump = _native.Pump(-1, stdout=reader)
    try:
        assert pump.drain() == _native.PUMP_ENDED
        assert len(pump.output(0)) == 1 << 20
    finally:
        pump.close()
        os.close(writer)
