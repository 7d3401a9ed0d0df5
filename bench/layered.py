"""Images with the files of a folder, in as many layers as one likes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import isobox
from isobox.images.documents.platform import Platform


def load_image(rootfs: str, name: str, layers: int) -> None:
    """Load one into the user's store: the folder as its lowest layer, small files in those above."""
    archives = [_folder(rootfs), *(_file(f"etc/layer-{number}") for number in range(1, layers))]
    config = {
        "architecture": Platform.here().architecture,
        "os": "linux",
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in archives],
        },
    }
    names = [f"{number}.tar" for number in range(layers)]
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": names}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, data in (
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
            *zip(names, archives, strict=True),
        ):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    out.seek(0)
    isobox.Image.load(out)


def _folder(path: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(path, arcname=".")
    return out.getvalue()


def _file(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return out.getvalue()
