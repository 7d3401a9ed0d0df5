"""Who one is at a registry."""

from __future__ import annotations

from attrs import field, frozen

__all__ = ["Credential", "find"]


@frozen
class Credential:
    """A login: a name and a password, or an identity token that stands for both. Its repr has no secrets."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def find(registry: str) -> Credential | None:
    """Return the login that is kept for a registry; None where there is none."""
    return None
