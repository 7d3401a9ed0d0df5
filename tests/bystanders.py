"""What an attack on what the machine has got, and whether it stayed with its container."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Any

import isobox
from isobox import Container
from leftovers import nothing_left, resident
from patience import patient
from programs import python, said

GROWTH_BYTES = 16 << 20
"""How much this process may grow: allocators keep some."""


def well(container: Container) -> bool:
    """A program of it starts, runs and ends at once."""
    result = container.exec(["echo", "well"], timeout=patient(10))
    return result.ok and result.stdout == b"well\n"


def got(container: Container, code: str, *arguments: object, **options: Any) -> int:
    """How much an attack gets: the last number that it prints."""
    out = said(container, python(code, *map(str, arguments)), **options)
    return int(out.split()[-1])


@contextlib.contextmanager
def unharmed() -> Iterator[None]:
    """The block's attack is over with it: nobody else was hurt, nothing is left."""
    with nothing_left(), Container() as neighbour:
        assert well(neighbour)
        memory = resident()
        yield
        assert well(neighbour)
        assert isobox.run(["true"], timeout=patient(10)).ok
        gc.collect()
        with contextlib.suppress(AttributeError):  # the C library's own, glibc's
            ctypes.CDLL(None).malloc_trim(0)
        assert resident() - memory < GROWTH_BYTES, f"{resident() - memory} bytes more"
