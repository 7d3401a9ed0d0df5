"""``isobox push``: an image from the store to a registry."""

from __future__ import annotations

import click

from isobox import NotFound
from isobox.cli.bars import bars
from isobox.cli.stored import get
from isobox.images.documents.reference import Reference


@click.command("push", short_help="Send an image to a registry.")
@click.option("--platform", metavar="OS/ARCH", help="Only the image for this one, such as linux/arm64.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--insecure", is_flag=True, help="Allow plain http, and any certificate.")
@click.argument("name", metavar="NAME")
def command(name: str, platform: str | None, quiet: bool, insecure: bool) -> int:
    """Send the image NAME to the registry that its name begins with. Prints its name and digest there.

    Without a registry in front it is Docker Hub's: give it a name with one first. What the registry has
    already is not sent. Logins are those of isobox login, Docker and podman.

    \b
      isobox tag app:1 registry.example:5000/team/app:1
      isobox push registry.example:5000/team/app:1
    """
    image = get(name)
    if "@" not in name and Reference.parse(name).familiar not in image.references:
        raise click.UsageError(
            f"{name} is no name of the image: give it one with its registry: isobox tag {name} NAME"
        )
    with bars(quiet) as progress:
        try:
            digest = image.push(name, platform=platform, progress=progress, insecure=insecure)
        except NotFound as error:
            raise click.ClickException(str(error)) from None  # at the registry too, not in the store alone
    click.echo(name if "@" in name else f"{name}@{digest}")
    return 0
