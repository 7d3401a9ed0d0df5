"""What the doctor finds: one `Item` a feature, together a `Report`; values that print themselves."""

from __future__ import annotations

import textwrap
from typing import Literal

from attrs import frozen

Status = Literal["works", "degraded", "missing"]


@frozen
class Item:
    """One feature: its `status`, `why` it is so, and the `remedy` (empty where it works).

    No container starts while an item that is `needed` is missing.
    """

    name: str
    status: Status
    why: str = ""
    remedy: str = ""
    needed: bool = False

    def __str__(self) -> str:
        return _text((self,))


@frozen
class Report:
    """What the doctor found, in an order that goes from what everything needs to extras."""

    items: tuple[Item, ...]

    @property
    def ok(self) -> bool:
        """True if nothing that every container needs is missing."""
        return not any(item.needed and item.status == "missing" for item in self.items)

    def __getitem__(self, name: str) -> Item:
        """The item of this name; KeyError if there is none."""
        for item in self.items:
            if item.name == name:
                return item
        raise KeyError(name)

    def __str__(self) -> str:
        return _text(self.items)


def _text(items: tuple[Item, ...]) -> str:
    names = max((len(item.name) for item in items), default=0)
    lines = []
    for item in items:
        head = f"{item.status:<8}  {item.name:<{names}}"
        words = item.why + (f". Remedy: {item.remedy}" if item.remedy else "")
        indent = " " * (len(head) + 2)
        wrapped = textwrap.wrap(words, max(110 - len(indent), 40)) or [""]
        lines.append(f"{head}  {wrapped[0]}".rstrip())
        lines += [indent + more for more in wrapped[1:]]
    return "\n".join(lines)
