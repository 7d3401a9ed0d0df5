"""Images made by hand, small and with a shell: what `docker save` would write of them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

from archives import entry, folder, link, packed
from isobox.images.documents.platform import Platform
from requirements import program

PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n"
RUN = {"Env": ["PATH=/bin", "A=of the image"], "WorkingDir": "/srv", "User": "app", "Cmd": ["sh"]}


def busybox() -> bytes:
    return Path(program("busybox")).read_bytes()


def base() -> bytes:
    """A layer with a shell."""
    names = "sh ls id cat stat true echo ln"
    return packed(
        folder("./"),
        folder("bin"),
        entry("bin/busybox", busybox(), mode=0o755),
        *[link(f"bin/{name}", "busybox") for name in names.split()],
        folder("etc"),
        entry("etc/passwd", PASSWD),
        entry("etc/gone", b"x"),
        folder("data"),
        entry("data/old", b"x"),
        entry("srv", type=tarfile.DIRTYPE, mode=0o755, uid=1000, gid=1000),
        entry("srv/mine", b"m", mode=0o600, uid=1000, gid=1000),
    )


def upper(text: bytes = b"n") -> bytes:
    return packed(entry("etc/.wh.gone"), entry("data/.wh..wh..opq"), entry("data/new", text))


def archive(
    path: Path, *layers: bytes, tags: tuple[str, ...] = ("app:1",), run: Any = RUN, architecture: str = ""
) -> Path:
    """As `docker save` writes it."""
    config = {
        "architecture": architecture or Platform.here().architecture,
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": run,
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
        },
    }
    names = [f"{number}.tar" for number in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": list(tags) or None, "Layers": names}]
    parts = [entry(name, layer) for name, layer in zip(names, layers, strict=True)]
    path.write_bytes(
        packed(
            entry("config.json", json.dumps(config).encode()),
            *parts,
            entry("manifest.json", json.dumps(manifest).encode()),
        )
    )
    return path
