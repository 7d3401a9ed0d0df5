"""``isobox inspect``: all that is known of images, as JSON."""

from __future__ import annotations

import json
from typing import Any

import click

from isobox import Image
from isobox.cli.stored import echo_json, get


@click.command("inspect", short_help="Show all that is known of images, as JSON.")
@click.option("--platform", metavar="OS/ARCH", help="What is for this one, such as linux/arm64.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
def command(images: tuple[str, ...], platform: str | None) -> int:
    """Print an array with an object for each IMAGE, with the fields that docker image inspect has.

    Size is that of the layers in the store, and Config is as the image has it.
    """
    echo_json([_fields(image) for image in [get(name, platform) for name in images]])
    return 0


def _fields(image: Image) -> dict[str, Any]:
    config = image.config
    document = json.loads(config.encode())
    history = config.history
    return {
        "Id": image.id,
        "RepoTags": [name for name in image.references if "@" not in name],
        "RepoDigests": sorted({f"{_repository(name)}@{image.digest}" for name in image.references}),
        "Digest": image.digest,
        "Comment": history[-1].comment if history else "",
        "Created": config.created,
        "Author": config.author,
        "Config": document.get("config") or {},
        "Architecture": config.platform.architecture,
        **({"Variant": config.platform.variant} if config.platform.variant else {}),
        "Os": config.platform.os,
        "Size": image.size,
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
    }


def _repository(name: str) -> str:
    """A name without its tag: what stands before the last colon, unless that is a port's."""
    name = name.partition("@")[0]
    before, _, after = name.rpartition(":")
    return before if before and "/" not in after else name
