"""Logging in to a registry and out of it, as ``docker login`` and ``docker logout`` do."""

from __future__ import annotations

from isobox.errors import RegistryError, SpecError

from ..documents.reference import DEFAULT_REGISTRY, Reference
from .client import Client
from .credentials import Credential, forget, look_up, save

__all__ = ["log_in", "log_out", "registry_of"]


def registry_of(text: str) -> str:
    """Return the registry that somebody means: its host, with a port where it has one. `InvalidReference`.

    >>> registry_of("https://index.docker.io/v1/"), registry_of("localhost:5000/")
    ('docker.io', 'localhost:5000')
    """
    host = text.partition("://")[2] or text
    host = host.removesuffix("/").removesuffix("/v1").removesuffix("/v2")
    if host.lower() in ("", "index.docker.io", "registry-1.docker.io"):
        return DEFAULT_REGISTRY
    return Reference(host, "any/name").registry


def log_in(registry: str, credential: Credential, *, insecure: bool = False) -> str:
    """Ask the registry whether it takes a login, and keep that if so; return where, as `save` does.

    A registry that asks for no login takes every one. Raises `RegistryError`, `SpecError`, `ImageError`.
    """
    if not credential.username or ":" in credential.username:  # RFC 7617, section 2
        raise SpecError("username", credential.username, "a name without a colon")
    with Client(registry, insecure=insecure, credential=credential) as client:
        try:
            client.request("GET", "/v2/", repository="").close()
        except RegistryError as error:
            if error.status not in (400, 401, 403):
                raise
            raise RegistryError(
                f"registry {registry}: it refuses this login: check the name and the password, or token",
                status=error.status,
                code=error.code,
            ) from None
    return save(registry, credential)


def log_out(registry: str) -> tuple[bool, str]:
    """Drop the login for a registry: whether there was any, and where there is still one, "" for nowhere."""
    there = forget(registry)
    left = look_up(registry)
    return there, left.place if left is not None else ""
