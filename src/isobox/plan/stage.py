"""The list of ops of a plan as it grows."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Final

from attrs import define, field

from .ops import HOST_PATH, Op, make

_FEWEST_INODES: Final = 1024


@define
class Stage:
    """The list of ops as it grows, with what is known of the directories made so far."""

    root: str
    ops: list[Op] = field(factory=list)
    made: set[str] = field(factory=set)

    def add(self, name: str, *args: int, strings: tuple[str | bytes, ...] = (), note: str = "") -> None:
        """Append an op."""
        encoded = tuple(
            text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text for text in strings
        )
        self.ops.append(make(name, *args, strings=encoded, note=note))

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory of the stage and its parents, each once."""
        if path in self.made:
            return
        parent = posixpath.dirname(path)
        if len(parent) > len(self.root):
            self.mkdir(parent)
        self.made.add(path)
        self.add("MKDIR", mode, HOST_PATH, 1, strings=(path,))

    def mount(
        self, kind: str, options: Mapping[str, str | None], attributes: int, target: str, below: int
    ) -> None:
        """Make a file system and attach it."""
        self.add("FSOPEN", strings=(kind,))
        for key, value in options.items():
            if value is None:
                self.add("FSCONFIG_FLAG", strings=(key,))
            else:
                self.add("FSCONFIG_STRING", strings=(key, value))
        self.add("FSMOUNT", attributes, note=kind)
        self.add("ATTACH", below, strings=(target,), note=kind)


def bounds(size: int) -> dict[str, str]:
    """How much a tmpfs holds. Without nr_inodes, empty files fill the machine whatever the size."""
    # The kernel's own ratio (shmem_default_max_inodes in mm/shmem.c): an inode a page.
    return {"size": str(size), "nr_inodes": str(max(size // 4096, _FEWEST_INODES))}
