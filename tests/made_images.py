"""A small image as bytes: its parts, and the OCI layout that another tool would make of it."""

from __future__ import annotations

import json
from typing import Any

from archives import entry, packed
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import OCI_LAYER, OCI_MANIFEST
from isobox.images.documents.model import Manifest
from isobox.images.documents.reference import Reference
from isobox.images.store import Store

APP = Reference.parse("app:1")
LAYERS = (packed(entry("a", b"1")), packed(entry("b", b"2")))


def config(*layers: bytes) -> bytes:
    ids = [str(Digest.of(layer)) for layer in layers]
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": ids},
            "docker_version": "1.2",
        }
    ).encode()


def layout(*more: Any, name: str = "app:1", blob: bytes | None = None) -> bytes:
    """As `skopeo copy` writes it, and `docker save` since version 25."""
    parts = {str(Digest.of(data)): data for data in (config(*LAYERS), *LAYERS)}
    digests = list(parts)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digests[0],
            "size": len(parts[digests[0]]),
        },
        "layers": [
            {"mediaType": OCI_LAYER, "digest": digest, "size": len(parts[digest])} for digest in digests[1:]
        ],
    }
    encoded = json.dumps(manifest).encode()
    own = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(encoded)), "size": len(encoded)}
    named = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
    index = {"schemaVersion": 2, "manifests": [own | named]}
    parts[own["digest"]] = encoded
    if blob is not None:
        parts[digests[1]] = blob
    return packed(
        entry("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
        *[entry(f"blobs/{digest.replace(':', '/')}", data) for digest, data in parts.items()],
        *more,
        entry("index.json", json.dumps(index).encode()),
    )


def check(store: Store) -> None:
    """The image is whole, and what it was."""
    manifest = Manifest.parse(store.read(store.resolve(APP).digest))
    assert store.read(manifest.config.digest) == config(*LAYERS)
    assert [store.read(layer.digest) for layer in manifest.layers] == list(LAYERS)
    assert store.prune().blobs == ()
