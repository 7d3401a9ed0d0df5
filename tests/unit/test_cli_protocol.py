"""What a command and the `isobox run` that has a container say to each other, and any nonsense."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox import errors
from isobox.cli import protocol
from isobox.cli.protocol import answer_of, encoded, field, of_error, received
from isobox.errors import IsoboxError, SpecError, StateError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def read_back(data: bytes, most: int = 1000, piece: int = 3) -> Any:
    file = io.BytesIO(data)
    return received(lambda size: file.read(min(size, piece)), most)


@given(st.dictionaries(st.text(), JSON.filter(lambda value: value == value), max_size=3))
def test_there_and_back(document: dict[str, Any]) -> None:
    data = encoded(document, 1 << 20)
    assert repr(read_back(data, 1 << 20)) == repr(document)


def test_names_of_files_that_are_no_text() -> None:
    document = {"path": "/caf\udce9\n\x1b"}
    assert read_back(encoded(document, 1000)) == document


@given(st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    try:
        found = read_back(data)
    except (EOFError, StateError):
        return
    assert found is None or isinstance(found, dict)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"\0\0", EOFError, "in the middle"),
        (b"\0\0\0\5{", EOFError, "in the middle"),
        (b"\xff\xff\xff\xff", StateError, "expected 1000 at most"),
        (b"\0\0\0\1{", StateError, "no JSON"),
        (b"\0\0\0\2[]", StateError, "no JSON object"),
        (b"\0\0\3\xe8" + b"[" * 1000, StateError, "no JSON"),
        (b"\0\0\0\3\xff{}", StateError, "no JSON"),
    ],
)
def test_what_is_no_message(data: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        read_back(data)
    assert read_back(b"") is None


def test_no_message_beyond_the_bound() -> None:
    with pytest.raises(StateError, match="expected 100 at most"):
        encoded({"changes": ["x" * 100]}, 100)


def raised() -> list[IsoboxError]:
    return [
        StateError("commit: the container is stopped"),
        SpecError("cmd", 7, "a list of strings"),
        errors.UnsupportedError('commit of image="host"', "it is none", "start one"),
        errors.SetupError(28, "copy /etc", stage="commit"),
        errors.NotFound("no image"),
        errors.RegistryError("no", status=404),
        errors.DigestMismatch("blob", "sha256:a", "sha256:b"),
        errors.CleanupError("it", (OSError(1, "x"),)),
        errors.ProcessError("ended", object()),
    ]


@pytest.mark.parametrize("error", raised(), ids=lambda error: type(error).__name__)
def test_an_error_comes_back_as_it_was(error: IsoboxError) -> None:
    said = read_back(encoded(of_error(error), 100_000), 100_000)
    with pytest.raises(IsoboxError) as found:
        answer_of(said)
    assert type(found.value) is type(error) and str(found.value) == str(error)
    for name in ("field", "expected", "remedy", "stage", "code"):
        assert getattr(found.value, name, None) == getattr(error, name, None)


def test_an_error_of_another_kind() -> None:
    with pytest.raises(StateError, match="unexpected ZeroDivisionError: 7"):
        answer_of(of_error(ZeroDivisionError(7)))


@pytest.mark.parametrize("kind", ["printable", "os", "Any", "KeyboardInterrupt", "New", "__doc__"])
def test_an_error_that_is_none_of_ours(kind: str) -> None:
    error = {
        "kind": kind,
        "text": "\x1b]0;x\x07",
        "fields": {"__class__": "x", "args": "x", "add_note": 1, "hint": "\x1b[2J"},
    }
    with pytest.raises(StateError, match=r"\\x1b\]0;x\\x07") as found:
        answer_of({"error": error})
    assert vars(found.value) == {"hint": "\\x1b[2J"} and len(found.value.args) == 1


ANSWERS = st.dictionaries(
    st.sampled_from(["answer", "error"]),
    JSON
    | st.fixed_dictionaries({"kind": st.sampled_from(sorted(vars(errors))), "text": JSON, "fields": JSON}),
)


@given(ANSWERS)
def test_any_answer(document: dict[str, Any]) -> None:
    document = json.loads(json.dumps(document))
    try:
        assert isinstance(answer_of(document), dict)
    except IsoboxError as error:
        assert str(error).isprintable() and repr(error)


def test_fields_have_their_types() -> None:
    assert field({"name": "x"}, "name", str) == "x"
    assert protocol.texts(["a"], "cmd") == ["a"] and protocol.pairs({"A": "1"}, "env") == {"A": "1"}
    for wrong in (lambda: field({}, "name", str), lambda: protocol.texts(["a", 1], "cmd"),
                  lambda: protocol.texts("ab", "cmd"), lambda: protocol.pairs({"A": None}, "env"),
                  lambda: protocol.pairs([], "env")):  # fmt: skip
        with pytest.raises(StateError, match="expected"):
            wrong()
