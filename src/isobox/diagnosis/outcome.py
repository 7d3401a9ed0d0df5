"""What an experiment's outcome says of a feature."""

from __future__ import annotations

from typing import Final

from isobox import idmap
from isobox.errors import UnsupportedError
from isobox.findings import Item
from isobox.hints import unsupported
from isobox.plan.ops import CLONE_NEWNS, CLONE_NEWUSER
from isobox.probes import Refusal

USERNS: Final = CLONE_NEWUSER | CLONE_NEWNS
"""The namespaces that all experiments take place in."""


def failed(name: str, error: Exception, remedy: str = "", *, needed: bool = False) -> Item:
    """What an error says of the feature."""
    if isinstance(error, UnsupportedError):
        return Item(name, "missing", error.why, error.remedy, needed)
    return Item(name, "missing", str(error), getattr(error, "hint", "") or remedy, needed)


def tried(name: str, refused: Refusal | None, remedy: str, works: str = "", *, needed: bool = False) -> Item:
    """What the kernel's answer to some ops says of the feature."""
    if refused is None:
        return Item(name, "works", works, needed=needed)
    error = unsupported(refused.where, refused.errno, refused.what)
    if error is None:
        return Item(name, "missing", str(refused), remedy or idmap.hint(refused.errno), needed=needed)
    if error.feature != name:
        return Item(name, "missing", str(refused), f"see the {error.feature}", needed=needed)
    return Item(name, "missing", error.why, error.remedy, needed=needed)
