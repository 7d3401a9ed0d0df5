"""A run that answers other commands, asked by those, by nobody, and by what talks nonsense."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from attrs import define, field

from isobox import runtime
from isobox.cli import protocol
from isobox.cli.attended import FOLDER, attending
from isobox.cli.running import Running, find, get, what_runs
from isobox.errors import SpecError, StateError
from isobox.rootfs.changes import Change
from isobox.runtime import Owner
from leftovers import descriptors
from patience import patient

ID = "0123456789ab"


@define
class Box:
    """As much of a container as is asked for."""

    id: str = ID
    name: str = "web"
    found: list[Change] = field(factory=list)
    fails: Exception | None = None
    go_on: threading.Event = field(factory=threading.Event)
    asked: threading.Event = field(factory=threading.Event)

    def changes(self) -> list[Change]:
        self.asked.set()
        if self.fails is not None:
            raise self.fails
        return self.found

    def commit(self, name: str, **options: Any) -> Any:
        self.asked.set()
        assert self.go_on.wait(patient(60))
        raise SpecError("name", (name, options, os.environ.get("SOURCE_DATE_EPOCH")), "another")


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="isobox-test-") as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("ISOBOX_STATE_DIR", f"{folder}/" + "long" * 20)
        monkeypatch.setenv("ISOBOX_DATA_DIR", f"{folder}/data")
        owner = Owner()
        monkeypatch.setattr(runtime, "_current", owner)
        before = descriptors()
        yield Path(owner.state)
        assert descriptors() == before
        owner.close()


@contextmanager
def attended(box: Box) -> Iterator[Running]:
    with attending(box):  # type: ignore[arg-type]
        yield get(box.id)


def sockets(state: Path) -> list[Path]:
    return list(state.glob(f"owners/*/{FOLDER}/*"))


def talk(state: Path, *parts: bytes, end: bool = True) -> Any:
    """What is answered to these bytes."""
    (path,) = sockets(state)
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(patient(60))
            connection.connect(protocol.at(folder, path.name))
            for part in parts:
                connection.sendall(part)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return protocol.received(connection.recv, 1 << 20)
    finally:
        os.close(folder)


def test_changes(state: Path) -> None:
    box = Box(found=[Change("added", "/caf\udce9"), Change("deleted", "/x")])
    with attended(box) as running:
        assert (running.id, running.name, str(running)) == (ID, "web", f"{ID} (web)")
        for _ in range(2):
            assert running.ask({"ask": "diff"}) == {"changes": [["added", "/caf\udce9"], ["deleted", "/x"]]}
        (path,) = sockets(state)
        assert path.name == f"{ID}-web" and path.parent.stat().st_mode & 0o777 == 0o700
    assert sockets(state) == [] and not running.alive() and find("web") is None
    with pytest.raises(StateError, match=r"web\): its isobox run ended"):
        running.ask({"ask": "diff"})


@pytest.mark.parametrize("error", [StateError("no more"), OSError(28, "No space"), ZeroDivisionError("0")])
def test_errors(state: Path, error: Exception) -> None:
    with attended(Box(fails=error)) as running:
        for _ in range(2):
            with pytest.raises(StateError, match="no more|diff: .*No space|unexpected ZeroDivisionError"):
                running.ask({"ask": "diff"})


def commit(**changes: Any) -> dict[str, Any]:
    return {"ask": "commit", "name": "a:1", "author": "", "message": "", "changes": {}, "epoch": ""} | changes


def test_the_time_that_whoever_asks_has(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    box = Box()
    box.go_on.set()
    with attended(box) as running:
        with pytest.raises(SpecError, match=r"'1700000000'\)"):
            running.ask(commit(epoch="1700000000"))
        with pytest.raises(SpecError, match=r"None\)"):
            running.ask(commit())
    assert os.environ["SOURCE_DATE_EPOCH"] == "7"


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"ask": 7},
        {"ask": "exec"},
        {"ask": "commit"},
        commit(name=None),
        commit(author=1),
        commit(changes=[]),
        commit(changes={"env": ["A=1"]}),
        commit(changes={"cmd": "sh"}),
        commit(changes={"workdir": {}}),
        commit(changes={"labels": {"a": 1}}),
    ],
)
def test_requests_that_make_no_sense(state: Path, request_: dict[str, Any]) -> None:
    box = Box()
    with attended(box) as running:
        with pytest.raises(StateError, match="expected|another version"):
            running.ask(request_)
        assert not box.asked.is_set() and running.ask({"ask": "diff"}) == {"changes": []}


def test_bytes_that_make_no_sense(state: Path) -> None:
    with attended(Box()) as running:
        assert talk(state) is None
        assert talk(state, b"\0\0") is None
        assert talk(state, b"\0\0\0\x09{}") is None
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 9, b"\0\0\0\2[]", b"\0\0\0\1x"):
            assert talk(state, data, end=False)["error"]["kind"] == "StateError"
        whole = protocol.encoded({"ask": "diff"}, 100)
        assert talk(state, *[bytes([byte]) for byte in whole]) == {"answer": {"changes": []}}
        assert running.ask({"ask": "diff"}) == {"changes": []}


def test_nobody_holds_up_the_end(state: Path) -> None:
    """Neither who says nothing, nor who hangs up, nor who doesn't read the answer."""
    with ExitStack() as stack:
        with attended(Box()):
            (path,) = sockets(state)
            folder = os.open(path.parent, os.O_PATH)
            stack.callback(os.close, folder)
            for data in (protocol.encoded({"ask": "diff"}, 100), b"", b"\0"):
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(protocol.at(folder, path.name))
                connection.sendall(data)
        assert sockets(state) == []
        assert "isobox-attend" not in [thread.name for thread in threading.enumerate()]


def test_what_is_being_answered_is_finished(state: Path) -> None:
    box, said = Box(), []

    def ask() -> None:
        with pytest.raises(SpecError) as error:
            running.ask(commit())
        said.append(error.value.field)

    with attended(box) as running:
        asking = threading.Thread(target=ask)
        asking.start()
        assert box.asked.wait(patient(60))
        threading.Timer(0.1, box.go_on.set).start()
    asking.join(patient(60))
    assert said == ["name"]


def test_an_end_in_the_middle_is_told(state: Path) -> None:
    """The other process was killed, say."""
    folder = Path(runtime.current().closed_directory(FOLDER))
    with socket.socket(socket.AF_UNIX) as listener:
        fd = os.open(folder, os.O_PATH)
        listener.bind(protocol.at(fd, f"{ID}-web"))
        os.close(fd)
        listener.listen()
        for answer in (b"", b"\0\0\0\x09{"):
            running = get("web")
            asking = threading.Thread(target=_one_answer, args=(listener, answer))
            asking.start()
            with pytest.raises(StateError, match="ended before it had answered"):
                running.ask({"ask": "diff"})
            asking.join()
    assert find("web") is None  # the socket is there, and nobody listens
    assert len(sockets(state)) == 1


def _one_answer(listener: socket.socket, answer: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(100):  # else it was only looked whether somebody listens
                connection.sendall(answer)
                return


def test_found_by_what_it_is_called(state: Path) -> None:
    assert "isobox run starts one" in what_runs()
    with attended(Box()), attended(Box("0123ffffffff", "0123ffffffff")), attended(Box("f" * 12, "0123")):
        for text, found in (
            ("web", ID),
            (ID, ID),
            ("01234", ID),
            ("0123f", "0123ffffffff"),
            ("0123", "f" * 12),
        ):
            assert get(text).id == found
        with pytest.raises(
            click.ClickException, match=rf"any of these containers: 0123ffffffff, {ID} \(web\)"
        ):
            get("012")
        for text in ("", "we", "webs", "../lock", "\x1b"):
            with pytest.raises(click.ClickException, match=rf"runs\. Running: .*{ID} \(web\)"):
                get(text)


def test_two_of_one_name(state: Path) -> None:
    with attended(Box()), attended(Box("f" * 12)):
        with pytest.raises(click.ClickException, match=rf"{ID} \(web\), {'f' * 12} \(web\). Say its id"):
            get("web")
        assert get("f").id == "f" * 12


def test_a_name_that_is_another_s_id(state: Path) -> None:
    with attended(Box()), attended(Box("f" * 12, ID)):
        assert get(ID).id == ID


def test_it_runs_all_the_same(state: Path) -> None:
    """Where a socket can't be made, nobody finds the container."""
    path = Path(runtime.current().state) / "owners" / runtime.current().id / FOLDER
    path.write_bytes(b"")
    with attending(Box()):  # type: ignore[arg-type]
        assert find("web") is None


def test_a_run_imports_nothing_of_images() -> None:
    code = (
        "import sys, isobox.cli.run; sys.exit(str([name for name in sys.modules if 'isobox.images' in name]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=patient(60)
    )
    assert done.stderr == "[]\n"
