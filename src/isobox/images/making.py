"""Make images of this user's store: layers, a config and a manifest for them, and a name."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from attrs import evolve, frozen

from isobox.errors import ImageError, SpecError

from .documents.config import History, ImageConfig, RunConfig
from .documents.descriptor import Descriptor
from .documents.digest import Digest
from .documents.media import (
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
)
from .documents.model import Manifest
from .documents.platform import Platform
from .documents.reference import Reference
from .layout.choose import Chosen
from .store import Store
from .tar.gzipping import Gzipping

__all__ = ["Added", "Changes", "add_image", "add_layer", "changed", "epoch"]


@frozen
class Added:
    """A layer in the store: its descriptor there, and the digest of what it is uncompressed."""

    descriptor: Descriptor
    diff_id: Digest


def add_layer(store: Store, fill: Callable[[Callable[[bytes | memoryview], None]], None]) -> Added:
    """Add what `fill` hands to the function that it is given, a tar archive; inside a lease.

    It is compressed with gzip: the same archive gives the same blob wherever the zlib is the same.
    """
    hasher = hashlib.sha256()
    with store.writer() as writer:
        with Gzipping(writer.write) as packed:

            def write(data: bytes | memoryview) -> None:
                hasher.update(data)
                packed.write(data)

            fill(write)
            packed.finish()
        digest = writer.commit()
        descriptor = Descriptor(OCI_LAYER_GZIP, digest, writer.written)
    return Added(descriptor, Digest("sha256", hasher.hexdigest()))


@frozen
class Changes:
    """What a new image has otherwise than the one that it is made from; None: as there.

    `env`: variables over the image's; the value None takes one away. `labels` likewise. `entrypoint`
    alone takes the command away too, as in a Dockerfile.
    """

    env: Mapping[str, str | None] | None = None
    workdir: str | None = None
    user: str | int | None = None
    entrypoint: Iterable[str] | None = None
    cmd: Iterable[str] | None = None
    labels: Mapping[str, str | None] | None = None
    volumes: Iterable[str] | None = None
    stop_signal: str | None = None


def changed(run: RunConfig, changes: Changes) -> RunConfig:
    """Return the settings of an image with `changes`; raises `SpecError` for what makes no sense.

    >>> changed(RunConfig(env=("A=1", "B=2"), cmd=("sh",)), Changes({"A": None, "C": "3"}, workdir="/srv"))
    RunConfig(user='', env=('B=2', 'C=3'), entrypoint=None, cmd=('sh',), working_dir='/srv', ...)
    """
    values: dict[str, object] = {}
    if changes.env is not None:
        values["env"] = _environment(run.env, changes.env)
    if changes.workdir is not None:
        if not isinstance(changes.workdir, str) or not changes.workdir.startswith("/"):
            raise SpecError("workdir", changes.workdir, "an absolute path in the image, such as /srv")
        values["working_dir"] = _text("workdir", changes.workdir)
    if changes.user is not None:
        values["user"] = _text("user", str(changes.user))
    if changes.entrypoint is not None:
        values |= {"entrypoint": _texts("entrypoint", changes.entrypoint), "cmd": None}
    if changes.cmd is not None:
        values["cmd"] = _texts("cmd", changes.cmd)
    if changes.labels is not None:
        labels = dict(run.labels)
        for name, value in changes.labels.items():
            labels.pop(name, None)
            if value is not None:
                labels[_text("labels", name)] = _text("labels", value)
        values["labels"] = labels
    if changes.volumes is not None:
        added = _texts("volumes", changes.volumes)
        if not all(path.startswith("/") for path in added):
            raise SpecError("volumes", added, "absolute paths in the image")
        values["volumes"] = tuple(sorted({*run.volumes, *added}))
    if changes.stop_signal is not None:
        values["stop_signal"] = _text("stop_signal", changes.stop_signal)
    return evolve(run, **values)  # type: ignore[arg-type]


def _environment(old: tuple[str, ...], new: Mapping[str, str | None]) -> tuple[str, ...]:
    if not isinstance(new, Mapping) or any(not name or "=" in name for name in new):
        raise SpecError("env", new, 'a dict of names without "=" and their values')
    kept = [entry for entry in old if entry.partition("=")[0] not in new]
    return (*kept, *(_text("env", f"{name}={value}") for name, value in new.items() if value is not None))


def _texts(field: str, texts: Iterable[str]) -> tuple[str, ...]:
    if isinstance(texts, (str, bytes)):
        raise SpecError(field, texts, 'a list of strings, such as ["sh", "-c", "echo hello"]')
    return tuple(_text(field, text) for text in texts)


def _text(field: str, text: object) -> str:
    if isinstance(text, os.PathLike):
        text = os.fspath(text)
    if not isinstance(text, str) or "\0" in text:
        raise SpecError(field, text, "text without NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SpecError(field, text, "text that UTF-8 has") from None
    return text


def epoch() -> int | None:
    """Seconds since 1970 that stand for now and for all that is later, None where nothing is set.

    They come from SOURCE_DATE_EPOCH in the environment (reproducible-builds.org/specs/source-date-epoch).
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 11):
        raise SpecError("SOURCE_DATE_EPOCH", text, "whole seconds since 1970, such as 1700000000")
    return int(text)


def add_image(
    store: Store,
    base: Chosen | None,
    layers: Iterable[Added],
    changes: Changes,
    *,
    author: str = "",
    comment: str = "",
    created_by: str = "",
) -> Descriptor:
    """Add an image that has `layers` on top of those of `base`; inside a lease, named by `Store.tag`.

    What isn't known here of the base's documents stays in them, and its kind: OCI's or Docker's. Raises
    `ImageError` where the store has not all that the base needs.
    """
    added = tuple(layers)
    seconds = epoch()
    now = datetime.fromtimestamp(int(time.time()) if seconds is None else seconds, UTC)
    created = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    if base is None:
        here = Platform.here()
        # The best that this CPU has is not what the files need.
        variant = "" if here.architecture == "amd64" else here.variant
        config = ImageConfig(Platform(here.os, here.architecture, variant))
        manifest = Manifest(Descriptor(OCI_CONFIG, Digest.of(b""), 0))
    else:
        config, manifest = base.config, base.manifest
        for part in manifest.layers:
            if not store.has(part.digest, part.size) and not part.urls:
                raise ImageError(
                    f"the store has no blob {part.digest}, a layer of the image that the container was "
                    "started from: pull or load that again"
                )
    _text("author", author)
    _text("message", comment)
    entries = [History(created, author, created_by, comment) for _ in added]
    config = evolve(
        config,
        created=created,
        author=author or config.author,
        config=changed(config.config, changes),
        diff_ids=(*config.diff_ids, *(layer.diff_id for layer in added)),
        history=(*config.history, *entries) if added else config.history,
    )
    data = config.encode()
    store.add(data)
    docker = manifest.media_type == DOCKER_MANIFEST
    new = [
        evolve(layer.descriptor, media_type=DOCKER_LAYER_GZIP) if docker else layer.descriptor
        for layer in added
    ]
    manifest = evolve(
        manifest,
        config=Descriptor.of(data, manifest.config.media_type),
        layers=(*manifest.layers, *new),
        subject=None,  # what the base said of another
    )
    encoded = manifest.encode()
    store.add(encoded)
    return Descriptor.of(encoded, manifest.media_type)


def named(text: str | None) -> Reference | None:
    """Return the name that a new image is to have; raises `InvalidReference`."""
    if text is None:
        return None
    reference = Reference.parse(text)
    if reference.digest is not None:
        raise ImageError(f"name {text}: expected one without a digest, which only its content gives")
    return reference
