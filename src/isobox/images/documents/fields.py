"""Read and write the JSON of images: bounded, typed, and nothing that two readers could read differently.

The specification asks for I-JSON (considerations.md, RFC 7493): UTF-8, no name twice in an object,
no halves of surrogate pairs. Go's reader, which most other programs use, also takes a field's name
in any case; so a name that differs from a known one in case alone is refused.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

from isobox.errors import ImageError, shown

__all__ = ["MOST_BYTES", "Fields", "encode"]

MOST_BYTES: Final = 4 << 20  # what registries take at least (distribution-spec, "Pushing Manifests")
_MOST_VALUES: Final = 200_000
_DEEPEST: Final = 32  # objects and arrays in each other; what the specification defines has 4
_LONGEST_NUMBER: Final = 100  # digits
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


class Fields:
    """The fields of one JSON object, asked for by name and type; what nobody asked for is `extra`.

    `what` names the document in messages and `path` the place in it. A field that is null is as
    one that is absent (config.md, "Properties"). Every method raises `ImageError`.

    >>> fields = Fields.read(b'{"size": 3, "os": "linux"}', "manifest")
    >>> fields.number("size")
    3
    >>> fields.extra()
    {'os': 'linux'}
    """

    def __init__(self, values: dict[str, Any], what: str, path: str = "") -> None:
        self._values = values
        self._what = what
        self._path = path
        self._known: set[str] = set()

    @classmethod
    def read(cls, data: bytes, what: str) -> Fields:
        """Parse `data`, which must be one JSON object of at most `MOST_BYTES`."""
        value = _parse(data, what)
        if not isinstance(value, dict):
            raise ImageError(f"{what}: expected a JSON object, got {_kind(value)}")
        return cls(value, what)

    @classmethod
    def read_all(cls, data: bytes, what: str, name: str, most: int) -> list[Fields]:
        """Parse `data`, the file `name`, which must be one JSON array of at most `most` objects."""
        outer = cls({name: _parse(data, f"{what}: {name}")}, what)
        if outer._get(name) is None:
            outer.fail(name, "an array of objects")
        return outer.objects(name, most)

    def optional_text(self, name: str) -> str | None:
        """A string, or None where it is absent."""
        value = self._get(name)
        if not (value is None or isinstance(value, str)):
            self.fail(name, "a string")
        return value

    def text(self, name: str) -> str:
        """A string; empty where it is absent."""
        return self.optional_text(name) or ""

    def required_text(self, name: str) -> str:
        """A string that must be there."""
        value = self.optional_text(name)
        if value is None:
            self.fail(name, "a string")
        return value

    def number(self, name: str) -> int:
        """A whole number that must be there; 3.0 and true are none."""
        value = self._get(name)
        if type(value) is not int:
            self.fail(name, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where it is absent."""
        value = self._get(name)
        if not (value is None or isinstance(value, bool)):
            self.fail(name, "true or false")
        return bool(value)

    def texts(self, name: str) -> tuple[str, ...] | None:
        """An array of strings, or None where it is absent."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(name, "an array of strings")
        return tuple(value)

    def text_map(self, name: str) -> dict[str, str]:
        """An object whose values are strings; empty where it is absent."""
        value = self._get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            self.fail(name, "an object whose values are strings")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """The names of an object that stands for a set, sorted: each has ``{}`` for its value."""
        value = self._get(name)
        if value is None:
            return ()
        if not isinstance(value, dict) or any(item is not None and item != {} for item in value.values()):
            self.fail(name, "an object whose values are {}")
        return tuple(sorted(value))

    def object(self, name: str) -> Fields | None:
        """An object, or None where it is absent."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, "an object")
        return Fields(value, self._what, f"{self._path}{name}.")

    def required_object(self, name: str) -> Fields:
        """An object that must be there."""
        found = self.object(name)
        if found is None:
            self.fail(name, "an object")
        return found

    def objects(self, name: str, most: int) -> list[Fields]:
        """An array of at most `most` objects; empty where it is absent."""
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.fail(name, "an array of objects")
        if len(value) > most:
            raise ImageError(f"{self._what}: {self._path}{name}: expected at most {most}, got {len(value)}")
        return [Fields(item, self._what, f"{self._path}{name}[{i}].") for i, item in enumerate(value)]

    def has(self, name: str) -> bool:
        """Whether it is there, be it null."""
        self._known.add(name)
        return name in self._values

    @property
    def place(self) -> str:
        """The document and the place in it, for messages."""
        return f"{self._what}: {self._path}".rstrip(".: ")

    def extra(self) -> dict[str, Any]:
        """Every field that nobody asked for."""
        extra = {name: value for name, value in self._values.items() if name not in self._known}
        if not extra:
            return extra
        known = {name.casefold(): name for name in self._known}
        for name in extra:
            if (meant := known.get(name.casefold())) is not None:
                raise ImageError(
                    f"{self._what}: {self._path}{shown(name)}: expected it to be written {meant}; "
                    "some programs would read it so, and others would not"
                )
        return extra

    def fail(self, name: str, expected: str) -> NoReturn:
        """Raise the `ImageError` that says that `name` is not as `expected`."""
        raise ImageError(
            f"{self._what}: {self._path}{name}: expected {expected}, got {_kind(self._values.get(name))}"
        )

    def within(self, error: ImageError) -> NoReturn:
        """Raise `error`, which the value that was read brought up, with the place in front of it."""
        raise ImageError(f"{self.place}: {error}") from None

    def _get(self, name: str) -> Any:
        self._known.add(name)
        return self._values.get(name)


def encode(values: dict[str, Any] | list[Any]) -> bytes:
    """Return JSON in one form for equal values: names sorted, no spaces, UTF-8; raises `ImageError`.

    >>> encode({"b": [1, 2], "a": "é"}).decode()
    '{"a":"é","b":[1,2]}'
    """
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        data = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ImageError(f"these values can't be written as JSON: {error}") from error
    if len(data) > MOST_BYTES:
        raise ImageError(
            f"a document of {len(data)} bytes: expected at most {MOST_BYTES}, as registries take"
        )
    return data


def _parse(data: bytes, what: str) -> Any:
    if len(data) > MOST_BYTES:
        raise ImageError(f"{what}: expected at most {MOST_BYTES} bytes, got {len(data)}")
    _check_shape(data, what)
    try:
        text = data.decode()
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_refuse,
        )
        if "\\u" in text:
            # Only an escape can bring half of a surrogate pair.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ImageError(f"{what}: not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise ImageError(f"{what}: half of a surrogate pair is no text") from None
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what}: not JSON as the specification has it: {error}") from None
    return value


def _check_shape(data: bytes, what: str) -> None:
    """Bound depth and number of values before a parser recurses or allocates for them."""
    # Escapes taken out, a quotation mark begins or ends a string: every other part is outside.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * _MOST_VALUES:
        raise ImageError(f"{what}: more than {_MOST_VALUES} values")
    bare = b"".join(plain.split(b'"')[::2])
    brackets = bare.translate(_ONE_KIND, _NOT_BRACKETS)
    if bare.count(b",") + len(brackets) // 2 > _MOST_VALUES:
        raise ImageError(f"{what}: more than {_MOST_VALUES} values")
    for _ in range(_DEEPEST):
        if not brackets:
            return
        # Each round takes away one level, the innermost; whether kinds match is for the parser to say.
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise ImageError(
            f"{what}: brackets that don't match, or more than {_DEEPEST} objects and arrays in each other"
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{shown(name)} stands twice in an object")
            seen.add(name)
    return values


def _whole(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is too large for a number")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return shown(value)
