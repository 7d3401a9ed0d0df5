"""``isobox explain``: what ``isobox run`` with the same options would do, step by step."""

from __future__ import annotations

from typing import Any

import click

from isobox import Container
from isobox.cli.options import container_arguments, container_options
from isobox.cli.sections import SectionedCommand


@click.command(
    "explain",
    cls=SectionedCommand,
    context_settings={"max_content_width": 100},
    short_help="Print how a container would be built.",
)
@container_options
@click.argument("image")
def command(image: str, **given: Any) -> int:
    """Print the plan of a container on IMAGE, op by op, in the order in which it is carried out.

    Takes the options of a container that isobox run takes. Runs nothing in it.

    \b
      isobox explain --memory 256M --read-only host
    """
    click.echo(Container(image, **container_arguments(given)).explain())
    return 0
