"""The JSON of images: what is read, and what is refused."""

from __future__ import annotations

import json
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import ImageError
from isobox.images.documents.fields import MOST_BYTES, Fields, encode

SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text() | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), VALUES, max_size=6))
def test_what_is_encoded_is_read_back(values: dict[str, Any]) -> None:
    data = encode(values)
    assert Fields.read(data, "it").extra() == values
    assert encode(dict(reversed(list(values.items())))) == data
    # And as others write it: with spaces, and with everything escaped.
    assert Fields.read(json.dumps(values, indent=2).encode(), "it").extra() == values


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"[]", "an array"),
        (b"null", "nothing"),
        (b'"x"', "'x'"),
        (b"{} {}", "not JSON"),
        (b"{", "brackets"),
        (b"}", "brackets"),
        (b'{"a"}', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ("{}".encode("utf-16"), "UTF-8|not JSON|brackets"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": "\x00"}', "not JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "Infinity is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 101 + b"}", "101 digits"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "1000000 digits"),
        (b'{"a": 0.' + b"9" * 1_000_000 + b"}", "1000002 digits"),
        (b'{"a": 1, "a": 1}', "'a' stands twice"),
        (b'{"b": {"a": 1, "c": 2, "a": 1}}', "'a' stands twice"),
        (b'{"a": 1, "\\u0061": 1}', "'a' stands twice"),
        (b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}", "more than 32"),
        (b'{"a": ' + b"[" * 100_000, "brackets"),
        (b'{"a":' * 800_000, "brackets|values"),
        (b"[" * MOST_BYTES, "values"),
        (b"[" * (MOST_BYTES // 2) + b"]" * (MOST_BYTES // 2), "values"),
        (b'{"a": [' + b"1," * 1_000_000 + b"1]}", "values"),
        (b'{"a": [' + b"[]," * 1_000_000 + b"[]]}", "values"),
        (b'{"' + b'\\"' * 1_000_000, "not JSON|brackets"),
        (b'"' * MOST_BYTES, "values"),
        (b"{}" + b" " * MOST_BYTES, f"at most {MOST_BYTES}"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        Fields.read(data, "manifest")
    assert str(caught.value).startswith("manifest: ")
    assert len(str(caught.value)) < 400


def test_brackets_and_quotes_in_texts_do_not_count() -> None:
    values = {"a": "[" * 1000 + '"\\"[{', '\\"{': "\\\\", "b": ["\\", '"', "]"]}
    assert Fields.read(json.dumps(values).encode(), "it").extra() == values
    assert Fields.read(b'{"a": ' + b"[" * 31 + b"]" * 31 + b"}", "it").extra()


def test_a_number_is_read_whatever_the_interpreter_allows() -> None:
    most = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(ImageError, match="digits"):
            Fields.read(b'{"a": ' + b"9" * 1_000_000 + b"}", "it")
    finally:
        sys.set_int_max_str_digits(most)


def test_a_hostile_document_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        for data in (
            b"[" * MOST_BYTES,
            b'"' * MOST_BYTES,
            b"[]," * (MOST_BYTES // 3),
            b'{"a":"' + b"\\" * 4_000_000,
        ):
            with pytest.raises(ImageError):
                Fields.read(data, "it")
        assert tracemalloc.get_traced_memory()[1] < 8 * MOST_BYTES
    finally:
        tracemalloc.stop()


@given(st.binary() | st.text('[]{}",:\\ua0d8 1e-.ntf', max_size=60).map(str.encode))
def test_any_bytes_are_fields_or_an_error(data: bytes) -> None:
    try:
        Fields.read(data, "it")
    except ImageError:
        return
    assert isinstance(json.loads(data), dict)


SAMPLE = {
    "text": "x",
    "number": 3,
    "flag": True,
    "texts": ["a", "b"],
    "map": {"k": "v"},
    "set": {"a": {}, "b": None},
    "object": {"x": 1},
    "objects": [{}, {"y": 1}],
    "null": None,
    "other": [1],
}


def test_fields_by_type() -> None:
    fields = Fields.read(encode(SAMPLE), "it")
    assert fields.text("text") == fields.optional_text("text") == fields.required_text("text") == "x"
    assert fields.number("number") == 3
    assert fields.flag("flag") is True
    assert fields.texts("texts") == ("a", "b")
    assert fields.text_map("map") == {"k": "v"}
    assert fields.names("set") == ("a", "b")
    assert fields.required_object("object").number("x") == 1
    assert [len(item.extra()) for item in fields.objects("objects", 2)] == [0, 1]
    assert fields.has("null") and not fields.has("nothing")
    assert fields.text("null") == "" and fields.optional_text("null") is None
    assert fields.texts("null") is None and fields.object("null") is None
    assert (fields.text_map("null"), fields.names("null"), fields.objects("null", 1)) == ({}, (), [])
    assert fields.flag("null") is False
    assert fields.extra() == {"other": [1]}


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("text", 3, "a string, got 3"),
        ("optional_text", [], "a string, got an array"),
        ("required_text", None, "a string, got nothing"),
        ("number", None, "a whole number, got nothing"),
        ("number", True, "a whole number, got True"),
        ("number", 3.0, "a whole number, got 3.0"),
        ("number", "3", "a whole number, got '3'"),
        ("flag", 1, "true or false, got 1"),
        ("texts", "x", "an array of strings, got 'x'"),
        ("texts", ["x", None], "an array of strings"),
        ("text_map", {"a": 1}, "an object whose values are strings"),
        ("text_map", {"a": None}, "an object whose values are strings"),
        ("text_map", [], "an object whose values are strings"),
        ("names", ["x"], "an object whose values"),
        ("names", {"x": {"y": 1}}, "an object whose values"),
        ("names", {"x": 0}, "an object whose values"),
        ("object", [], "an object, got an array"),
        ("required_object", None, "an object, got nothing"),
        ("objects", {}, "an array of objects, got an object"),
        ("objects", [{}, 1], "an array of objects"),
        ("objects", [{}, {}, {}], "at most 2, got 3"),
        ("text", 10**50, "a string, got 1000"),
    ],
)
def test_fields_of_a_wrong_type_are_named(method: str, value: Any, expected: str) -> None:
    for outer in (False, True):
        fields = Fields.read(encode({"a": {"b": value}} if outer else {"b": value}), "it")
        if outer:
            fields = fields.required_object("a")
        with pytest.raises(ImageError, match="^it: " + ("a\\." if outer else "") + "b: expected " + expected):
            getattr(fields, method)("b", *([2] if method == "objects" else []))


@pytest.mark.parametrize("name", ["Layers", "LAYERS", "layer\u017f"])
def test_a_name_that_go_would_read_as_another_is_refused(name: str) -> None:
    fields = Fields.read(encode({"layers": [], name: []}), "it")
    fields.objects("layers", 1)
    with pytest.raises(ImageError, match="expected it to be written layers"):
        fields.extra()


def test_what_cannot_be_written_is_an_error() -> None:
    for value in (float("nan"), {1}, b"x", "\ud800"):
        with pytest.raises(ImageError, match="can't be written"):
            encode({"a": value})
    with pytest.raises(ImageError, match="as registries take"):
        encode({"a": "x" * MOST_BYTES})


def test_an_array_of_objects() -> None:
    first, second = Fields.read_all(b'[{"a": 1}, {"a": "x"}]', "archive", "list.json", 2)
    assert first.number("a") == 1
    with pytest.raises(ImageError, match=r"^archive: list.json\[1\].a: expected a whole number, got 'x'$"):
        second.number("a")
    assert Fields.read_all(b"[]", "archive", "list.json", 2) == []
    for data in (b"null", b"{}", b"[1]", b"[{}, {}, {}]", b"[", b"x", b"\xff"):
        with pytest.raises(ImageError, match=r"^archive: list.json: "):
            Fields.read_all(data, "archive", "list.json", 2)
