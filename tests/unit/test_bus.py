"""Asking systemd: what is sent, where to, and what becomes of answers that are late, wrong or missing."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import jeepney
import pytest

from isobox.cgroups import CgroupHost, Controller, scope
from isobox.cgroups.bus import BUS, BusError, Connection
from isobox.cgroups.scope import Door, doors, request, socket_paths
from patience import patient

MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
GREETING = b"OK 0123456789abcdef0123456789abcdef\r\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="isobox-test-") as made:
        yield Path(made)


@pytest.fixture
def bus(folder: Path) -> Iterator[str]:
    """A real bus of its own, on which there is no systemd."""
    program = shutil.which("dbus-daemon")
    if program is None:
        pytest.skip("no dbus-daemon here")
    config = folder / "config"
    config.write_text(
        f"<busconfig><type>session</type><listen>unix:path={folder}/bus</listen>"
        "<policy context='default'><allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/>"
        "<allow own='*'/></policy></busconfig>"
    )
    command = [program, f"--config-file={config}", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        assert daemon.stdout is not None
        try:
            assert daemon.stdout.readline().startswith(b"unix:")
            yield f"{folder}/bus"
        finally:
            daemon.kill()


@pytest.fixture
def peer(folder: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Something else behind the socket: what it does with a connection is given; the path is returned."""
    with ExitStack() as stack:

        def serve(answer: Callable[[socket.socket], None]) -> str:
            path = f"{folder}/peer"
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen()

            def work() -> None:
                connection, _ = listener.accept()
                with connection:
                    try:
                        answer(connection)
                    except OSError:
                        pass  # the other end had enough

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
            return path

        yield serve


def greet(connection: socket.socket) -> None:
    """As a slow systemd: what came after a BEGIN that it read with more, it would leave lying."""
    said = b""
    while not said.endswith(b"BEGIN\r\n"):
        said += connection.recv(1024)
    assert said.startswith(b"\0AUTH EXTERNAL ")
    connection.sendall(GREETING)


def test_a_bus_answers(bus: str) -> None:
    with Connection(bus, bus=True, seconds=10) as connection:
        (names,) = connection.call(BUS, "ListNames")
        assert isinstance(names, list) and "org.freedesktop.DBus" in names
        connection.call(BUS, "AddMatch", "s", ("type='signal',member='NameOwnerChanged'",))
        connection.call(BUS, "RequestName", "su", ("org.isobox.Test", 0))
        found = next(connection.signals(BUS[2], "NameOwnerChanged"))
        assert found[:2] == ("org.isobox.Test", "")


def test_a_bus_without_systemd(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Connection(bus, bus=True, seconds=10) as connection:
        with pytest.raises(BusError, match="NameHasNoOwner.*systemd1"):
            connection.call(MANAGER, "Subscribe")
    monkeypatch.setattr(scope, "doors", lambda *_: (Door("/nonexistent", bus=False), Door(bus, bus=True)))
    refusal = scope._ask()
    assert refusal is not None and "systemd-run" in refusal.remedy
    assert "/nonexistent: No such file" in refusal.why and "NameHasNoOwner" in refusal.why


def test_no_answer(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/silent")
        listener.listen()
        started = time.monotonic()
        with pytest.raises(BusError, match="no answer in time"):
            Connection(f"{folder}/silent", bus=False, seconds=0.3)
        assert 0.2 < time.monotonic() - started < patient(5)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_answer_after_the_greeting(peer: Callable[[Callable[[socket.socket], None]], str]) -> None:
    def mute(connection: socket.socket) -> None:
        greet(connection)
        while connection.recv(4096):
            pass

    with Connection(peer(mute), bus=False, seconds=1) as connection:
        with pytest.raises(BusError, match="no answer in time"):
            connection.call(MANAGER, "Subscribe")
        with pytest.raises(BusError, match="no answer in time"):
            next(connection.signals(MANAGER[2], "JobRemoved"))


@pytest.mark.parametrize("seed", range(30))
def test_garbage(seed: int, peer: Callable[[Callable[[socket.socket], None]], str]) -> None:
    chance = random.Random(seed)
    before = len(os.listdir("/proc/self/fd"))

    def babble(connection: socket.socket) -> None:
        if seed % 3 != 0:
            greet(connection)
            connection.recv(4096)
        head = b"l\2\0\1" if seed % 3 == 2 else b""
        connection.sendall(head + chance.randbytes(chance.randrange(1, 600)))

    path = peer(babble)
    with pytest.raises(BusError):
        with Connection(path, bus=False, seconds=2) as connection:
            connection.call(MANAGER, "Subscribe")
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # those of the other end


def test_an_answer_without_an_end(peer: Callable[[Callable[[socket.socket], None]], str]) -> None:
    def flood(connection: socket.socket) -> None:
        greet(connection)
        connection.sendall(b"l\2\0\1\0\0\0\x40" + bytes(8))  # a message of a gigabyte
        while True:
            connection.sendall(bytes(65536))

    with Connection(peer(flood), bus=False, seconds=30) as connection:
        with pytest.raises(BusError, match="too much"):
            connection.call(MANAGER, "Subscribe")


def test_an_end_without_an_answer(peer: Callable[[Callable[[socket.socket], None]], str]) -> None:
    with pytest.raises(BusError, match=r"closed|reset|Broken pipe"):
        with Connection(peer(greet), bus=False, seconds=10) as connection:
            connection.call(MANAGER, "Subscribe")


def test_the_request_is_what_systemd_reads() -> None:
    unit = "isobox-1-0123abcd.scope"
    message = jeepney.new_method_call(
        jeepney.DBusAddress(MANAGER[1], bus_name=MANAGER[0], interface=MANAGER[2]),
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        request(unit),
    )
    name, mode, properties, more = jeepney.Parser().feed(message.serialise(serial=1))[0].body
    assert (name, mode, more) == (unit, "fail", [])
    found = dict(properties)
    assert found["PIDs"] == ("au", [0]) and found["Delegate"] == ("b", True)
    assert found["CollectMode"] == ("s", "inactive-or-failed") and found["TasksMax"] == ("t", 2**64 - 1)
    assert found["Description"][1].endswith("(isobox)")


def test_doors(folder: Path) -> None:
    uid = os.geteuid()
    named = {"XDG_RUNTIME_DIR": str(folder), "DBUS_SESSION_BUS_ADDRESS": "unix:abstract=/x,guid=1"}
    if uid == 0:
        usual = "/run/dbus/system_bus_socket"
        assert doors(named, uid) == (Door(usual, bus=True), Door("/run/systemd/private", bus=False))
        other = doors({"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/b"}, uid)
        assert [door.path for door in other] == ["/b", usual, "/run/systemd/private"]
        return
    private = Door(f"{folder}/systemd/private", bus=False)
    assert doors(named, uid) == (Door("\0/x", bus=True), Door(f"{folder}/bus", bus=True), private)
    del named["DBUS_SESSION_BUS_ADDRESS"]
    assert doors(named, uid) == (Door(f"{folder}/bus", bus=True), private)
    if not os.path.exists(f"/run/user/{uid}"):
        assert doors({"XDG_RUNTIME_DIR": "/etc"}, uid) == ()  # another user's


@pytest.mark.parametrize(
    ("address", "paths"),
    [
        ("", []),
        ("nonsense", []),
        ("unix:", []),
        ("unix:runtime=yes", []),
        ("unix:path=/a%2cb%zz,guid=0;unix:path=/c", ["/a,b%zz", "/c"]),
        ("autolaunch:;unix:abstract=d", ["\0d"]),
    ],
)
def test_addresses(address: str, paths: list[str]) -> None:
    assert list(socket_paths(address)) == paths


def test_who_wants_a_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    def host(writable: bool, *, borrowed: bool = False, layout: str = "v2") -> CgroupHost:
        cpu = Controller("cpu", 2, "/g", writable, borrowed=borrowed)
        return CgroupHost(layout, {"cpu": cpu}, swap=False)  # type: ignore[arg-type]

    monkeypatch.setattr(scope, "booted", lambda: True)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert scope.wanted(host(False)) and not scope.wanted(host(True))
    assert not scope.wanted(host(False, layout="hybrid")) and not scope.wanted(host(False, layout="v1"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert scope.wanted(host(True, borrowed=True)) and not scope.wanted(host(True))
    monkeypatch.setattr(scope, "booted", lambda: False)
    assert not scope.wanted(host(False)) and not scope.wanted(host(True, borrowed=True))


def test_what_keeps_from_asking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "booted", lambda: True)
    monkeypatch.setattr(scope, "_runtime", lambda _: str(folder))
    refusal = scope.obstacle()
    assert refusal is not None and "no manager" in refusal.why
    (folder / "systemd").mkdir()
    (folder / "systemd/private").touch()
    assert scope.obstacle() is None
    monkeypatch.setitem(sys.modules, "jeepney", None)
    refusal = scope.obstacle()
    assert refusal is not None and refusal.remedy == "pip install 'isobox[systemd]'"
    monkeypatch.setenv(scope.SWITCH, "0")
    refusal = scope.obstacle()
    assert refusal is not None and f"unset {scope.SWITCH}" in refusal.remedy
