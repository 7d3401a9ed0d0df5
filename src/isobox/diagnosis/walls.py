"""Seccomp filters and Landlock."""

from __future__ import annotations

from collections.abc import Iterator

from isobox.errors import IsoboxError, UnsupportedError
from isobox.findings import Item
from isobox.host import features
from isobox.plan.ops import make
from isobox.probes import Probes
from isobox.security import seccomp

from .outcome import USERNS, tried


def try_walls(probes: Probes) -> Iterator[Item]:
    """Try what confines programs."""
    name = "seccomp"
    try:
        program = seccomp.compile("default")
    except IsoboxError as error:
        remedy = error.remedy if isinstance(error, UnsupportedError) else ""
        yield Item(name, "missing", str(error), remedy, needed=True)
        return
    assert program is not None
    refused = probes.run(USERNS, [make("NO_NEW_PRIVS"), make("SECCOMP", strings=(program,))])
    yield tried(name, refused, "use a kernel with CONFIG_SECCOMP_FILTER", "the default profile", needed=True)
    yield _landlock(probes)


def _landlock(probes: Probes) -> Item:
    name = "landlock"
    facts = features()
    remedy = "boot Linux 6.12 or newer, with landlock among the modules of its option lsm="
    if not facts.landlock:
        return Item(name, "missing", facts.why(name), remedy)
    rules = (0xFFFF, 0x3, 0x3) if facts.landlock_scopes else (0x1, 0, 0)
    ops = [make("NO_NEW_PRIVS"), make("LANDLOCK_RULESET", *rules), make("LANDLOCK_RESTRICT", 1)]
    refused = probes.run(USERNS, ops)
    if refused is not None or facts.landlock_scopes:
        return tried(name, refused, remedy, f"version {facts.landlock_abi} of its ABI")
    kinds = {"landlock_paths": "paths", "landlock_ports": "TCP ports"}
    some = [what for fact, what in kinds.items() if getattr(facts, fact)]
    there = f"{facts.why('landlock_scopes')}: rules for {' and '.join(some) or 'nothing that isobox offers'}"
    return Item(name, "degraded", f"{there}; no scopes", remedy)
