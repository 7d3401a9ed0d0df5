"""A command whose long list of options is printed under headings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_COLUMN = 34

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class SectionOption(click.Option):
    """An option that knows its heading."""

    def __init__(self, *arguments: Any, section: str = "Options", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.section = section


class SectionedCommand(click.Command):
    """Prints its options section by section, in the order in which the sections first occur."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Called by click for ``--help``."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Help"), []).append(record)
        # one column for all the sections, but for the few names that are longer
        lengths = [len(name) for records in sections.values() for name, _ in records]
        column = max(length for length in lengths if length <= _COLUMN)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(column), text) for name, text in records], col_max=_COLUMN + 2
                )


def option(*names: str, section: str, **keywords: Any) -> Callable[[Decorated], Decorated]:
    """Like ``click.option``, with a heading."""
    return click.option(*names, cls=SectionOption, section=section, **keywords)


def together(*options: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    """Apply several option decorators, the first one listed first in the help."""

    def decorate(function: Decorated) -> Decorated:
        for one in reversed(options):
            function = one(function)
        return function

    return decorate
