"""``isobox diff``: what a container changed, or what one image has otherwise than another."""

from __future__ import annotations

import click

from isobox import Image, NotFound
from isobox.cli.outcome import LETTERS
from isobox.cli.protocol import field
from isobox.cli.running import Running, find, what_runs
from isobox.cli.stored import echo_json, get
from isobox.errors import InvalidReference, StateError, printable, shown


@click.command("diff", short_help="List what a container or an image changed.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.argument("subject", metavar="CONTAINER|IMAGE")
@click.argument("other", metavar="[IMAGE]", required=False)
def command(as_json: bool, subject: str, other: str | None) -> int:
    """List the files that CONTAINER changed: A for added, C for changed, D for deleted.

    CONTAINER is one that isobox run has in another terminal: what --name called it, its id, or the beginning
    of that. Of one IMAGE it is what its topmost layer changes; of two, what the second has otherwise than the
    first. Times are not compared in images.

    \b
      isobox diff web
      isobox diff debian:12 app:1
    """
    changes = _of_one(subject) if other is None else _between(get(subject), get(other))
    if as_json:
        echo_json([{"kind": kind, "path": path} for kind, path in changes])
    else:
        for kind, path in changes:
            click.echo(f"{LETTERS[kind]} {printable(path)}")
    return 0


def _of_one(subject: str) -> list[tuple[str, str]]:
    running = find(subject)
    if running is not None and subject in (running.id, running.name):
        return _of_container(running)
    image = _image(subject)
    if running is not None and image is not None:  # a short name may be the beginning of an id by chance
        what = f"{shown(subject)} may be the container {running} or an image"
        raise click.ClickException(f"{what}. Say the container's id, or the image's name with its tag")
    if running is not None:
        return _of_container(running)
    if image is None:
        what = f"no container {shown(subject)} runs, and the store has no such image"
        raise click.ClickException(f"{what}. {what_runs()}")
    return _of_last(image)


def _of_container(running: Running) -> list[tuple[str, str]]:
    found = []
    for change in field(running.ask({"ask": "diff"}), "changes", list):
        match change:
            case [str(kind), str(path)] if kind in LETTERS:
                found.append((kind, path))
            case _:
                raise StateError(f"container {running}: its isobox run answered what makes no sense")
    return found


def _image(name: str) -> Image | None:
    try:
        return Image.get(name)
    except (NotFound, InvalidReference):
        return None


def _of_last(image: Image) -> list[tuple[str, str]]:
    from isobox.images.compare import of_the_last

    return of_the_last(image._store, image._chosen)


def _between(first: Image, second: Image) -> list[tuple[str, str]]:
    from isobox.images.compare import between

    return between(first._store, first._chosen, second._chosen)
