"""``isobox volume``: directories that outlive containers."""

from __future__ import annotations

import sys

import click

from isobox import Volume
from isobox.cli.stored import echo_json, echo_table, of_the_store


@click.group("volume", short_help="List, make and remove named volumes.")
def command() -> None:
    """Named volumes: directories that containers share and that outlive them.

    isobox run -v NAME:/data makes one where it is missing, with what the image has at /data.
    """


@command.command("ls", short_help="List them.")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
def _ls(quiet: bool) -> int:
    """List the volumes, and whether a container uses them."""
    volumes = Volume.all()
    if quiet:
        for volume in volumes:
            click.echo(volume.name)
        return 0
    rows = [("NAME", "IN USE", "CREATED")]
    rows += [(volume.name, "yes" if volume.in_use else "no", volume.created) for volume in volumes]
    echo_table(rows)
    return 0


@command.command("create", short_help="Make one.")
@click.argument("name")
def _create(name: str) -> int:
    """Make the volume NAME, empty, where it is not there yet. Prints its name."""
    click.echo(Volume.create(name).name)
    return 0


@command.command("rm", short_help="Remove some.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def _rm(names: tuple[str, ...]) -> int:
    """Delete volumes with all that is in them. One that a container uses stays, and is an error."""
    with of_the_store():
        for volume in [Volume.get(name) for name in names]:
            volume.remove()
            click.echo(volume.name)
    return 0


@command.command("inspect", short_help="Show all that is known of some, as JSON.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def _inspect(names: tuple[str, ...]) -> int:
    """Print an array with an object for each volume."""
    with of_the_store():
        volumes = [Volume.get(name) for name in names]
    echo_json(
        [
            {
                "Name": volume.name,
                "Mountpoint": volume.path,
                "CreatedAt": volume.created,
                "InUse": volume.in_use,
            }
            for volume in volumes
        ]
    )
    return 0


@command.command("prune", short_help="Remove all that no container uses.")
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
def _prune(force: bool) -> int:
    """Delete every volume that no container uses. Prints their names."""
    if not force:
        if not sys.stdin.isatty():
            raise click.UsageError("this deletes all volumes that no container uses: say --force to do it")
        click.confirm("Delete all volumes that no container uses?", abort=True)
    for volume in Volume.prune():
        click.echo(volume.name)
    return 0
