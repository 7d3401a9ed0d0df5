"""Images put into a registry by hand."""

from __future__ import annotations

import gzip
import json
from typing import Any

from archives import entry, packed
from isobox.images.documents.digest import Digest
from isobox.images.documents.media import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from isobox.images.documents.platform import Platform
from isobox.images.registry.client import Client
from registry import Registry

HERE = Platform.here().architecture


def put(registry: Registry, repository: str, name: str, data: bytes, kind: str = "") -> dict[str, Any]:
    """Push a blob, or a manifest of media type `kind` under a name, by hand; return its descriptor."""
    digest = str(Digest.of(data))
    with Client(registry.address) as client:
        path = f"/v2/{repository}/"
        if kind:
            client.request(
                "PUT",
                f"{path}manifests/{name or digest}",
                repository=repository,
                body=data,
                headers={"Content-Type": kind},
                expect=(201,),
            ).close()
        else:
            with client.request(
                "POST", f"{path}blobs/uploads/", repository=repository, expect=(202,)
            ) as begun:
                place = begun.headers["Location"]
            place += f"{'&' if '?' in place else '?'}digest={digest}"
            headers = {"Content-Type": "application/octet-stream"}
            client.request(
                "PUT", place, repository=repository, body=data, headers=headers, expect=(201,)
            ).close()
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def put_image(
    registry: Registry, repository: str, name: str, *layers: bytes, architecture: str = HERE
) -> dict[str, Any]:
    """Push an image whose layers are compressed with gzip."""
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
    }
    parts = [put(registry, repository, "", gzip.compress(layer, 1, mtime=0)) for layer in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": put(registry, repository, "", json.dumps(config).encode()) | {"mediaType": OCI_CONFIG},
        "layers": [part | {"mediaType": OCI_LAYER_GZIP} for part in parts],
    }
    return put(registry, repository, name, json.dumps(manifest).encode(), OCI_MANIFEST)


def noise(number: int, size: int) -> bytes:
    """A layer whose bytes can't be compressed, the same each time."""
    block = b"".join(Digest.of(f"{number} {i}".encode()).hex.encode() for i in range(64))
    seed = int.from_bytes(block, "big")
    data = bytearray()
    while len(data) < size:
        seed = seed * 6364136223846793005 + 1442695040888963407 & (1 << 4096) - 1
        data += seed.to_bytes(512, "big")
    return packed(entry(f"noise-{number}", bytes(data[:size])))
