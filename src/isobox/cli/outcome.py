"""``isobox run --commit`` and ``--diff``: what becomes of what a program changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from isobox import Container
from isobox.cli.instructions import config_options
from isobox.errors import printable

LETTERS = {"added": "A", "modified": "C", "deleted": "D"}


def committing(image: str, given: Mapping[str, Any]) -> Callable[[Container], None] | None:
    """What makes the image in the end; what is wrong with it is said before anything runs."""
    name = given["commit"]
    if name is None:
        for option in ("change", "author", "message"):
            if given[option]:
                raise click.UsageError(f"--{option} is for --commit")
        return None
    if image == "host":
        raise click.UsageError("host can't be committed: begin with an image, a folder or a tar")
    from isobox.images.making import named

    named(name)
    options = config_options(given["change"])

    def commit(container: Container) -> None:
        container.commit(name, author=given["author"], message=given["message"], **options)

    return commit


def show_changes(container: Container) -> None:
    """Print what it changed as ``docker diff`` does: A for added, C for changed, D for deleted."""
    for change in container.changes():
        print(LETTERS[change.kind], printable(change.path), file=sys.stderr)
