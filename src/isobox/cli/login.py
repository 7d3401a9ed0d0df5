"""``isobox login``: a name and a password for a registry, kept where Docker keeps them."""

from __future__ import annotations

import sys

import click

from isobox.images.registry.credentials import Credential
from isobox.images.registry.login import log_in, registry_of

_LONGEST = 1 << 16  # bytes of a password


@click.command("login", short_help="Log in to a registry.")
@click.option("-u", "--username", metavar="NAME", help="Your name there; asked for without it.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--insecure", is_flag=True, help="Take plain http and any certificate.")
@click.argument("registry", default="docker.io")
def command(username: str | None, password_stdin: bool, insecure: bool, registry: str) -> int:
    """Log in to REGISTRY, a host with an optional port; Docker Hub without it.

    The registry is asked first. The login is kept in Docker's config.json, or behind the program that this
    names (credsStore, credHelpers): docker and skopeo use it too, and theirs are used here.

    \b
      isobox login -u builder registry.example:5000
      isobox login -u builder --password-stdin registry.example:5000 < token
    """
    registry = registry_of(registry)
    if username is None:
        if password_stdin or not sys.stdin.isatty():
            raise click.UsageError("a name is needed: --username NAME")
        username = click.prompt("Username", err=True)
    place = log_in(registry, Credential(username, _password(password_stdin)), insecure=insecure)
    click.echo(f"Logged in to {registry}. The login is kept {_kept(place)}", err=True)
    return 0


def _password(from_stdin: bool) -> str:
    if from_stdin:
        try:
            word = sys.stdin.buffer.read(_LONGEST).decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise click.UsageError("the password is not UTF-8") from None
    elif sys.stdin.isatty():
        word = click.prompt("Password", hide_input=True, err=True)
    else:
        raise click.UsageError("there is no terminal to ask for the password: --password-stdin reads it")
    if not word:
        raise click.UsageError("the password is empty")
    return str(word)


def _kept(place: str) -> str:
    return f"in {place}, unencrypted" if "/" in place else f"by {place}"
