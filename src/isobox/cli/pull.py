"""``isobox pull``: an image from a registry into the store."""

from __future__ import annotations

import click

from isobox import Image, NotFound
from isobox.cli.bars import bars


@click.command("pull", short_help="Fetch an image from a registry.")
@click.option("--platform", metavar="OS/ARCH", help="Such as linux/arm64. Default: this machine's.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--insecure", is_flag=True, help="Allow plain http, and any certificate.")
@click.argument("name", metavar="NAME")
def command(name: str, platform: str | None, quiet: bool, insecure: bool) -> int:
    """Fetch the image NAME from its registry, ready to run. Prints its name.

    Without a registry in front it is Docker Hub's. What is there already is not fetched again. Registries
    on this machine may speak plain http; logins are those of isobox login, Docker and podman.

    \b
      isobox pull debian:12
      isobox pull registry.example:5000/team/app:1
      isobox run debian:12 cat /etc/os-release
    """
    click.echo(fetch(name, platform=platform, quiet=quiet, insecure=insecure))
    return 0


def fetch(name: str, *, platform: str | None = None, quiet: bool = False, insecure: bool = False) -> str:
    """Pull an image with progress on standard error; return the name that it has now."""
    with bars(quiet) as progress:
        try:
            image = Image.pull(name, platform=platform, progress=progress, insecure=insecure)
        except NotFound as error:
            raise click.ClickException(str(error)) from None  # at the registry, not in the store
    return name if name in image.references or not image.references else image.references[0]
