"""``isobox logout``: a login that is no longer kept."""

from __future__ import annotations

import click

from isobox.images.registry.login import log_out, registry_of


@click.command("logout", short_help="Log out of a registry.")
@click.argument("registry", default="docker.io")
def command(registry: str) -> int:
    """Drop the login for REGISTRY that docker or isobox keeps; for Docker Hub without it."""
    registry = registry_of(registry)
    there, left = log_out(registry)
    click.echo(f"Logged out of {registry}" if there else f"There was no login for {registry}", err=True)
    if left:
        click.echo(f"There is another one, of another program's: {left}", err=True)
    return 0
