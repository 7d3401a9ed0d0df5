"""What one image of a store has otherwise than another: their layers, laid on one another and compared."""

from __future__ import annotations

import os
from collections.abc import Sequence

from isobox.errors import ImageError, UnpackError

from .documents.descriptor import Descriptor
from .documents.digest import Digest
from .layers.listed import EMPTY, Kind, Listed, differences, list_layer, merged
from .layers.unpacking import MOST_ENTRIES
from .layout.choose import Chosen
from .store import Store

__all__ = ["between", "of_the_last"]

_Layers = Sequence[tuple[Descriptor, Digest]]


def between(store: Store, first: Chosen, second: Chosen) -> list[tuple[Kind, str]]:
    """List what the second image has otherwise than the first, sorted by path, as `Container.changes` does.

    A file is "modified" where its kind, mode, owner, content or extended attributes are others; times are not
    looked at. Of a directory that is gone only the topmost is listed. All that is read is verified. Raises
    `ImageError` where the store lacks a layer, and what `unpack_layer` raises.
    """
    return _compare(store, first.layers, second.layers)


def of_the_last(store: Store, image: Chosen) -> list[tuple[Kind, str]]:
    """List what the topmost layer of an image changes in those below; as `between`."""
    return _compare(store, image.layers[:-1], image.layers)


def _compare(store: Store, first: _Layers, second: _Layers) -> list[tuple[Kind, str]]:
    common = 0
    while common < min(len(first), len(second)) and first[common][1] == second[common][1]:
        common += 1
    if common == len(first) == len(second):
        return []
    with store.lease():
        for layer, _ in (*first, *second[common:]):
            if not store.has(layer.digest, layer.size):
                raise ImageError(f"the store lacks the layer {layer.digest}: pull or load its image again")
        base, left = _laid(store, EMPTY, first[:common], MOST_ENTRIES)
        one, _ = _laid(store, base, first[common:], left)
        other, _ = _laid(store, base, second[common:], left)
    return [(kind, os.fsdecode(b"/" + b"/".join(place))) for kind, place in differences(one, other)]


def _laid(store: Store, base: Listed, layers: _Layers, left: int) -> tuple[Listed, int]:
    """Lay layers on `base`, the lowest first; `left`: how many entries they may have."""
    for layer, diff_id in layers:
        if not left:
            raise UnpackError(f"the image has more than {MOST_ENTRIES} entries")
        with store.open(layer.digest) as stream:
            listed, count = list_layer(stream, diff_id, left)
        left -= count
        base = merged(base, listed) or EMPTY
    return base, left
