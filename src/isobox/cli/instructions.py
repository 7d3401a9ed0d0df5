"""``--change``: what Docker's commands take of a Dockerfile for the config of a new image."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

import click

from isobox.errors import printable

NAMES = ("CMD", "ENTRYPOINT", "ENV", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")

change_option = click.option(
    "-c",
    "--change",
    "changes",
    metavar="INSTRUCTION",
    multiple=True,
    help="A line of a Dockerfile for the new image's config, such as 'CMD [\"sh\"]' or 'ENV A=1'.",
)


def config_options(lines: Iterable[str]) -> dict[str, Any]:
    """The keyword arguments of `Image.from_dir` and `Container.commit` for such lines.

    >>> config_options(['ENV A=1 B="two words"', "WORKDIR /srv", 'CMD ["sh"]', "ENTRYPOINT exec run"])
    {'env': {'A': '1', 'B': 'two words'}, 'workdir': '/srv', 'cmd': ['sh'], 'entrypoint': ['/bin/sh', ...]}
    """
    found: dict[str, Any] = {}
    for line in lines:
        name, _, rest = line.strip().partition(" ")
        name, rest = name.upper(), rest.strip()
        if name not in NAMES or not rest:
            raise _refused(line, f"expected {', '.join(NAMES)} and what belongs to it")
        if name in ("ENV", "LABEL"):
            found.setdefault("env" if name == "ENV" else "labels", {}).update(_pairs(line, rest))
        elif name in ("CMD", "ENTRYPOINT"):
            found[name.lower()] = _list(line, rest) or ["/bin/sh", "-c", rest]
        elif name == "VOLUME":
            found.setdefault("volumes", []).extend(_list(line, rest) or _words(line, rest))
        else:
            found[{"STOPSIGNAL": "stop_signal"}.get(name, name.lower())] = rest
    return found


def _list(line: str, text: str) -> list[str] | None:
    """A JSON array of strings; None where it is none."""
    if not text.startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise _refused(line, "expected a JSON array of strings")
    return values


def _words(line: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        raise _refused(line, "a quotation mark is missing") from None


def _pairs(line: str, text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in _words(line, text)]
    if not pairs or not all(name and equals for name, equals, _ in pairs):
        raise _refused(line, "expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _refused(line: str, why: str) -> click.BadParameter:
    return click.BadParameter(f"{printable(line)!r}: {why}", param_hint="--change")
