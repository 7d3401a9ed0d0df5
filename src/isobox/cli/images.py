"""``isobox images``: what the store has."""

from __future__ import annotations

import click

from isobox import Image
from isobox.cli.report import size
from isobox.cli.stored import NO_NAME, day, echo_json, echo_table, short


@click.command("images", short_help="List the images of the store.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("--no-trunc", is_flag=True, help="Print whole ids.")
@click.option("--digests", is_flag=True, help="Print the digests of manifests too.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def command(quiet: bool, no_trunc: bool, digests: bool, as_json: bool) -> int:
    """List every name in the store: its image's id, the size of its layers there, and when it was made.

    Images without a name come last.
    """
    images = Image.all()
    if as_json:
        echo_json([_fields(image) for image in images])
    elif quiet:
        for id in dict.fromkeys(image.id for image in images):
            click.echo(short(id, whole=no_trunc))
    else:
        rows = [("NAME", *(["DIGEST"] if digests else []), "ID", "SIZE", "CREATED")]
        for image in images:
            cells = (
                *([image.digest] if digests else []),
                short(image.id, whole=no_trunc),
                size(image.size),
                day(image.created),
            )
            rows += [(name, *cells) for name in image.references or (NO_NAME,)]
        echo_table(rows, right=frozenset({len(rows[0]) - 2}))
    return 0


def _fields(image: Image) -> dict[str, object]:
    return {
        "names": list(image.references),
        "id": image.id,
        "digest": image.digest,
        "size": image.size,
        "created": image.created,
        "platform": str(image.config.platform),
    }
