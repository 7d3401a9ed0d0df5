"""Lines of a Dockerfile as options of the command line."""

from __future__ import annotations

from typing import Any

import click
import pytest

from isobox.cli.instructions import config_options


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("CMD echo $A", {"cmd": ["/bin/sh", "-c", "echo $A"]}),
        ('cmd ["sh", "-c", "x y"]', {"cmd": ["sh", "-c", "x y"]}),
        ('ENTRYPOINT  ["/init"] ', {"entrypoint": ["/init"]}),
        ("ENV A=1 B='two words' C=", {"env": {"A": "1", "B": "two words", "C": ""}}),
        ('LABEL "a.b"="c d"', {"labels": {"a.b": "c d"}}),
        ("USER 5:6", {"user": "5:6"}),
        ("WORKDIR /a b", {"workdir": "/a b"}),
        ("STOPSIGNAL SIGINT", {"stop_signal": "SIGINT"}),
        ("VOLUME /a /b", {"volumes": ["/a", "/b"]}),
        ('VOLUME ["/a b"]', {"volumes": ["/a b"]}),
    ],
)
def test_lines(line: str, expected: dict[str, Any]) -> None:
    assert config_options([line]) == expected


def test_several() -> None:
    lines = ["ENV A=1", "ENV B=2", "ENV A=3", "VOLUME /a", "VOLUME /b", "USER a", "USER b"]
    assert config_options(lines) == {"env": {"A": "3", "B": "2"}, "volumes": ["/a", "/b"], "user": "b"}
    assert config_options([]) == {}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "CMD",
        "RUN x",
        "ENV A",
        "ENV =1",
        "ENV 'A=1",
        "CMD [sh]",
        "CMD []",
        'CMD ["a", 1]',
        "CMD " + "[" * 9999,
    ],
)
def test_refused(line: str) -> None:
    with pytest.raises(click.BadParameter):
        config_options([line])
