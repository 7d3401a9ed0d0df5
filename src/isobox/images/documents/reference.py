"""References: the names of images, in Docker's short form and in full.

The grammar and the rules for short names are those of github.com/distribution/reference
(reference.go, normalize.go), which Docker, containerd and podman share. Three things that it lets
pass are refused here, since nothing could be done with them: a host that has a dot or a colon and
is no host (``my_host.example/x``), a port above 65535, and brackets around what is no IPv6 address.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve, frozen

from isobox.errors import ImageError, InvalidReference, shown

from .digest import Digest

__all__ = ["DEFAULT_REGISTRY", "DEFAULT_TAG", "Reference"]

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LEGACY_REGISTRY: Final = "index.docker.io"
_OFFICIAL: Final = "library/"

_LONGEST_NAME: Final = 255  # of the repository, and of the registry
_LONGEST: Final = 1024  # of a whole reference: what the parts allow is below it
_LONGEST_TAG: Final = 128

_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[([a-fA-F0-9:]+)\])(?::([0-9]+))?")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER: Final = re.compile(r"[a-f0-9]{64}")


@frozen
class Reference:
    """The name of an image: what is not well-formed can't be made.

    `registry` is a host with an optional port (Docker Hub is "docker.io"), `repository` the path
    there, `tag` and `digest` say which image of it. Both together are kept: the digest decides,
    the tag is what a person reads. With neither, it names the repository as a whole; `parse`
    never returns that. ``str`` of it is the full form, which `parse` reads back.

    >>> reference = Reference.parse("debian:12")
    >>> str(reference)
    'docker.io/library/debian:12'
    >>> reference.familiar
    'debian:12'
    >>> Reference.parse("localhost:5000/team/app")
    Reference(registry='localhost:5000', repository='team/app', tag='latest', digest=None)
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __attrs_post_init__(self) -> None:
        _check_registry(self.registry)
        _check_repository(self.registry, self.repository)
        if self.tag is not None and not (isinstance(self.tag, str) and _TAG.fullmatch(self.tag)):
            raise InvalidReference(
                f"tag {shown(self.tag)}: expected up to {_LONGEST_TAG} letters, digits, '_', '.' and '-', "
                "the first one no '.' or '-'"
            )
        if self.digest is not None and not isinstance(self.digest, Digest):
            raise InvalidReference(f"digest {shown(self.digest)}: expected a Digest")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference that `text` means; raises `InvalidReference`.

        What stands before the first slash is a registry where it has a dot, a colon or an
        upper-case letter, or is "localhost"; otherwise the name is one of Docker Hub's. A name
        with neither a tag nor a digest gets the tag "latest".

        >>> str(Reference.parse("nginx"))
        'docker.io/library/nginx:latest'
        >>> str(Reference.parse("team/app:1"))
        'docker.io/team/app:1'
        """
        if not isinstance(text, str):
            raise InvalidReference(f'reference {shown(text)}: expected text such as "debian:12"')
        if not text:
            raise InvalidReference('reference: expected a name such as "debian:12", got an empty one')
        if len(text) > _LONGEST:
            raise InvalidReference(f"reference {shown(text)}: expected at most {_LONGEST} characters")
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(
                f"reference {text}: 64 hexadecimal digits are the id of an image, never its name"
            )
        registry, rest = _split_registry(text)
        rest, at, digits = rest.partition("@")
        digest = _digest(digits, text) if at else None
        repository, colon, given = rest.partition(":")
        tag = given if colon else None
        if tag is None and digest is None:
            tag = DEFAULT_TAG
        if registry == DEFAULT_REGISTRY and repository and "/" not in repository:
            repository = _OFFICIAL + repository
        try:
            return cls(registry, repository, tag, digest)
        except InvalidReference as error:
            raise InvalidReference(f"reference {shown(text)}: {error}") from None

    @property
    def familiar(self) -> str:
        """The shortest form that means the same: Docker Hub's name and "library/" left out.

        >>> Reference.parse("docker.io/library/debian:12").familiar
        'debian:12'
        """
        name = self.name
        if self.registry == DEFAULT_REGISTRY:
            short = self.repository.removeprefix(_OFFICIAL)
            if "/" in short:
                short = self.repository
            # What would be read as another registry's, or as an id, stays long.
            if _split_registry(short) == (DEFAULT_REGISTRY, short) and not _IDENTIFIER.fullmatch(short):
                name = short
        return name + self._suffix

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag is not None else "") + (f"@{self.digest}" if self.digest else "")

    def with_tag(self, tag: str | None) -> Reference:
        """The same with another tag; raises `InvalidReference`."""
        return evolve(self, tag=tag)

    def with_digest(self, digest: Digest | None) -> Reference:
        """The same with another digest."""
        return evolve(self, digest=digest)

    def __str__(self) -> str:
        return self.name + self._suffix


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_REGISTRY, text
    if first == _LEGACY_REGISTRY:
        return DEFAULT_REGISTRY, rest
    if first == "localhost" or "." in first or ":" in first or first.lower() != first:
        return first, rest
    return DEFAULT_REGISTRY, text


def _digest(digits: str, text: str) -> Digest:
    try:
        return Digest.parse(digits)
    except ImageError as error:
        raise InvalidReference(f"reference {shown(text)}: {error}") from None


def _check_registry(registry: object) -> None:
    match = _REGISTRY.fullmatch(registry) if isinstance(registry, str) else None
    if match is None or len(match[0]) > _LONGEST_NAME:
        raise InvalidReference(
            f"registry {shown(registry)}: expected a host of at most {_LONGEST_NAME} characters and, where "
            'it needs one, a port, such as "registry.example:5000"'
        )
    if _split_registry(f"{match[0]}/x") != (match[0], "x"):
        hint = DEFAULT_REGISTRY if match[0] == _LEGACY_REGISTRY else f"{match[0]}:443"
        raise InvalidReference(f"registry {shown(registry)}: no reference reads like this: write {hint}")
    address, port = match.groups()
    if address is not None and not _is_ipv6(address):
        raise InvalidReference(f"registry {registry}: expected an IPv6 address between the brackets")
    if port is not None and not (len(port) <= 5 and 1 <= int(port) <= 65535):
        raise InvalidReference(f"registry {shown(registry)}: expected a port from 1 to 65535")


def _check_repository(registry: str, repository: object) -> None:
    if not isinstance(repository, str) or _REPOSITORY.fullmatch(repository) is None:
        raise InvalidReference(
            f"repository {shown(repository)}: expected names of lower-case letters and digits, joined by "
            '".", "_", "__" or "-" and divided by "/", such as "team/app"'
        )
    if len(repository) > _LONGEST_NAME:
        raise InvalidReference(f"repository {shown(repository)}: expected at most {_LONGEST_NAME} characters")
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        raise InvalidReference(
            f"repository {shown(repository)}: Docker Hub keeps it as {_OFFICIAL}{repository}"
        )


def _is_ipv6(address: str) -> bool:
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return False
    return True
