"""The config of an image: what it runs and which layers it has (image-spec, config.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import field, frozen

from isobox.errors import ImageError

from .descriptor import platform_from, platform_to
from .digest import Digest
from .fields import Fields, encode
from .media import CONFIGS, plain_media_type
from .platform import Platform

__all__ = ["MOST_LAYERS", "History", "ImageConfig", "RunConfig", "chain_ids"]

MOST_LAYERS: Final = 1000  # twice what overlayfs stacks
_MOST_HISTORY: Final = 10_000


@frozen
class RunConfig:
    """What a container of the image runs unless it is told otherwise (config.md, "config").

    Texts are as the document has them: `user` may be a name or a number, with or without a group,
    and `working_dir` empty. `entrypoint` and `cmd` are None where the document has none.
    `env` has the entries in their order; `environment` says what they mean. `extra` has the rest,
    such as Docker's Healthcheck. No text that goes to the kernel has a NUL in it.
    """

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    labels: Mapping[str, str] = field(factory=dict, hash=False)
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    extra: Mapping[str, Any] = field(factory=dict, hash=False)

    def __attrs_post_init__(self) -> None:
        for name, texts in (
            ("User", (self.user,)),
            ("Env", self.env),
            ("Entrypoint", self.entrypoint or ()),
            ("Cmd", self.cmd or ()),
            ("WorkingDir", (self.working_dir,)),
            ("Volumes", self.volumes),
        ):
            if any("\0" in text for text in texts):
                raise ImageError(f"{name}: expected text without NUL characters")

    def environment(self, defaults: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return `defaults` changed by `env` as Docker does it: the later entry of a name wins.

        An entry without "=" takes the variable away.

        >>> RunConfig(env=("A=1", "TERM", "A=2=3")).environment({"TERM": "xterm", "HOME": "/root"})
        {'HOME': '/root', 'A': '2=3'}
        """
        variables = dict(defaults or {})
        for entry in self.env:
            name, equals, value = entry.partition("=")
            if equals and name:
                variables[name] = value
            else:
                variables.pop(name, None)
        return variables

    @classmethod
    def from_fields(cls, fields: Fields) -> RunConfig:
        """Read it from a config; raises `ImageError`."""
        values: dict[str, Any] = {
            "user": fields.text("User"),
            "env": fields.texts("Env") or (),
            "entrypoint": fields.texts("Entrypoint"),
            "cmd": fields.texts("Cmd"),
            "working_dir": fields.text("WorkingDir"),
            "labels": fields.text_map("Labels"),
            "volumes": fields.names("Volumes"),
            "exposed_ports": fields.names("ExposedPorts"),
            "stop_signal": fields.text("StopSignal"),
            "extra": fields.extra(),
        }
        try:
            return cls(**values)
        except ImageError as error:
            fields.within(error)

    def to_fields(self) -> dict[str, Any]:
        """The JSON object that `from_fields` reads."""
        values = dict(self.extra)
        texts = {"User": self.user, "WorkingDir": self.working_dir, "StopSignal": self.stop_signal}
        values |= {name: text for name, text in texts.items() if text}
        if self.env:
            values["Env"] = list(self.env)
        if self.entrypoint is not None:
            values["Entrypoint"] = list(self.entrypoint)
        if self.cmd is not None:
            values["Cmd"] = list(self.cmd)
        if self.labels:
            values["Labels"] = dict(self.labels)
        if self.volumes:
            values["Volumes"] = {name: {} for name in self.volumes}
        if self.exposed_ports:
            values["ExposedPorts"] = {name: {} for name in self.exposed_ports}
        return values


@frozen
class History:
    """How a layer came about (config.md, "history"); `empty_layer`: there is no layer of it."""

    created: str | None = None
    author: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False
    extra: Mapping[str, Any] = field(factory=dict, hash=False)

    @classmethod
    def from_fields(cls, fields: Fields) -> History:
        """Read it from a config; raises `ImageError`."""
        return cls(
            fields.optional_text("created"),
            fields.text("author"),
            fields.text("created_by"),
            fields.text("comment"),
            fields.flag("empty_layer"),
            fields.extra(),
        )

    def to_fields(self) -> dict[str, Any]:
        """The JSON object that `from_fields` reads."""
        values = dict(self.extra)
        if self.created is not None:
            values["created"] = self.created
        texts = {"author": self.author, "created_by": self.created_by, "comment": self.comment}
        values |= {name: text for name, text in texts.items() if text}
        if self.empty_layer:
            values["empty_layer"] = True
        return values


@frozen
class ImageConfig:
    """The config of an image: OCI's and Docker's are the same document.

    `diff_ids` are the digests of the layers' tar archives, uncompressed, the lowest first.
    `created` is a time as RFC 3339 writes it, as the document has it. `raw` are the bytes that
    were parsed; a value that was made otherwise, by ``attrs.evolve`` say, has none.
    """

    platform: Platform
    created: str | None = None
    author: str = ""
    config: RunConfig = field(factory=RunConfig)
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[History, ...] = ()
    extra: Mapping[str, Any] = field(factory=dict, hash=False)
    raw: bytes | None = field(init=False, default=None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if len(self.diff_ids) > MOST_LAYERS:
            raise ImageError(f"diff_ids: expected at most {MOST_LAYERS}, got {len(self.diff_ids)}")

    @classmethod
    def parse(cls, data: bytes, media_type: str | None = None) -> ImageConfig:
        """Read a config of at most `fields.MOST_BYTES`; raises `ImageError`.

        `media_type` is what its descriptor says, None where nothing says it.

        >>> data = b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"x":1}'
        >>> config = ImageConfig.parse(data)
        >>> str(config.platform), config.extra, config.encode() == data
        ('linux/amd64', {'x': 1}, True)
        """
        given = plain_media_type(media_type)
        if given is not None and given not in CONFIGS:
            raise ImageError(f"image config: expected the config of a container image, got {given}")
        fields = Fields.read(data, "image config")
        rootfs = fields.required_object("rootfs")
        if rootfs.required_text("type") != "layers":
            rootfs.fail("type", '"layers"')
        run = fields.object("config")
        values: dict[str, Any] = {
            "platform": platform_from(fields, with_extra=False),
            "created": fields.optional_text("created"),
            "author": fields.text("author"),
            "config": RunConfig() if run is None else RunConfig.from_fields(run),
            "diff_ids": _diff_ids(rootfs),
            "history": tuple(History.from_fields(item) for item in fields.objects("history", _MOST_HISTORY)),
            "extra": fields.extra(),
        }
        if rest := rootfs.extra():
            values["extra"]["rootfs"] = rest
        try:
            parsed = cls(**values)
        except ImageError as error:
            fields.within(error)
        object.__setattr__(parsed, "raw", bytes(data))
        return parsed

    def encode(self) -> bytes:
        """The document: byte for byte the one that was parsed, else in `fields.encode`'s form."""
        if self.raw is not None:
            return self.raw
        values = dict(self.extra) | platform_to(self.platform)
        if self.created is not None:
            values["created"] = self.created
        if self.author:
            values["author"] = self.author
        if run := self.config.to_fields():
            values["config"] = run
        if self.history:
            values["history"] = [item.to_fields() for item in self.history]
        values["rootfs"] = {
            **self.extra.get("rootfs", {}),
            "type": "layers",
            "diff_ids": [str(digest) for digest in self.diff_ids],
        }
        return encode(values)


def _diff_ids(rootfs: Fields) -> tuple[Digest, ...]:
    texts = rootfs.texts("diff_ids") or ()
    try:
        return tuple(Digest.parse(text) for text in texts)
    except ImageError as error:
        rootfs.within(error)


def chain_ids(diff_ids: Iterable[Digest]) -> tuple[Digest, ...]:
    """Return for each layer the digest that names it with all layers below (config.md, "ChainID").

    >>> first, second = Digest.of(b"1"), Digest.of(b"2")
    >>> chain_ids([first, second]) == (first, Digest.of(f"{first} {second}".encode()))
    True
    """
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)
