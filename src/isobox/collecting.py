"""Collecting what dead owners have left in the state: see `isobox.runtime`."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import frozen

from isobox.errors import IsoboxError
from isobox.idmap import IdRange
from isobox.owners import Owners
from isobox.ranges import chunks


@frozen
class Collected:
    """What `Owner.collect` found of dead owners.

    `owners` are their ids, `names` the container names and `ranges` the ids that were freed,
    `directories` the trees that were deleted, `errors` what could not be removed yet.
    """

    owners: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ranges: tuple[IdRange, ...] = ()
    directories: tuple[str, ...] = ()
    errors: tuple[BaseException, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.owners or self.names or self.ranges or self.directories or self.errors)


def collect_state(
    registry: Owners, cgroups: Callable[[str], object], errors: list[BaseException], *, thorough: bool
) -> tuple[list[str], list[str], list[IdRange]]:
    """End what dead owners have left running, and free their names and ids; returns all three.

    `thorough`: names and ids without an owner are looked for even where nobody is dead.
    """
    claims: dict[str, int] = {}
    done: list[str] = []
    try:
        with registry.exclusive():
            for owner_id in registry.ids():
                fd = registry.claim(owner_id)
                if fd is not None:
                    claims[owner_id] = fd
        if not claims and not thorough:
            return [], [], []
        for owner_id in claims:
            # Outside of the lock: this ends processes and may take its time. Should we die,
            # our claim dies too.
            try:
                cgroups(owner_id)
                done.append(owner_id)
            except (IsoboxError, OSError) as error:
                errors.append(error)
        with registry.exclusive():
            # Entries without an owner come from a death between two lines.
            known = set(registry.ids())
            orphans = {
                holder
                for folder in ("names", "ranges")
                for holder in registry.holders(folder).values()
                if holder not in known
            }
            gone = orphans | set(done)
            names = registry.release("names", gone)
            ranges = chunks(registry.release("ranges", gone))
            for owner_id in done:
                try:
                    registry.forget(owner_id)
                except OSError as error:
                    errors.append(error)
    finally:
        for fd in claims.values():
            os.close(fd)
    return done, names, ranges
