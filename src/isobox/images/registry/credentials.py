"""Logins for registries, as Docker and podman keep them: in a file of the user's, or behind a program.

Docker's file is ``config.json`` in $DOCKER_CONFIG, else in ~/.docker (docs.docker.com, "docker login",
"Credential stores"). podman's are in containers-auth.json(5). Docker's is asked first, and it is the
only one that is written to.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import field, frozen

from isobox.errors import ImageError, shown

from ..documents.reference import DEFAULT_REGISTRY
from .auth_file import AuthFile
from .keychain import Keychain

__all__ = ["Credential", "Found", "find", "forget", "look_up", "save"]

_HUB: Final = "https://index.docker.io/v1/"
_HUB_HOSTS: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
_TOKEN: Final = "<token>"  # the user's name where a program keeps an identity token
_PATHS: Final = ("", "v0", "v1", "v2")  # behind a host, of the registry itself


@frozen
class Credential:
    """A login: a name and a password, or an identity token that stands for both. Its repr has no secrets.

    >>> Credential("builder", "secret")
    Credential(username='builder')
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


@frozen
class Found:
    """A login and where it is kept, for people: the path of a file, or the name of a program."""

    credential: Credential
    place: str


def find(registry: str, repository: str = "") -> Credential | None:
    """Return the login that is kept for a registry (``"docker.io"``, ``"localhost:5000"``), or None.

    `repository` is what is asked for there: podman's files may have logins for parts of a registry. Raises
    `ImageError` for a file or a program that is broken; it never says a secret.
    """
    found = look_up(registry, repository)
    return found.credential if found is not None else None


def look_up(registry: str, repository: str = "") -> Found | None:
    """As `find`, and where it is kept."""
    for path, required in _paths():
        file = AuthFile.read(path, required=required)
        if (found := _in_file(file, registry, repository)) is not None:
            return found
    return None


def save(registry: str, credential: Credential) -> str:
    """Keep a login as ``docker login`` does; return where, as `Found.place` has it.

    That is the program that Docker's file names for this registry or for all, else the file itself (mode
    0600), of which everything else is kept. Raises `ImageError`.
    """
    key = _key(registry)
    with AuthFile.changing(_docker_path()) as file:
        keychain, server = _keychain(file, registry)
        auths: dict[str, Mapping[str, Any]] = dict(file.objects("auths"))
        for other in list(auths):
            if other != key and _host(other) == _host(registry):
                del auths[other]  # it would be found too
        if keychain is not None:
            if credential.identity_token:
                keychain.store(server, _TOKEN, credential.identity_token)
            else:
                keychain.store(server, credential.username, credential.password)
            auths[key] = {}  # says to others that there is one
        else:
            both = f"{credential.username}:{credential.password}".encode()
            token = {"identitytoken": credential.identity_token} if credential.identity_token else {}
            auths[key] = {"auth": base64.b64encode(both).decode(), **token}
        file.replace(auths)
    return keychain.program if keychain is not None else file.path


def forget(registry: str) -> bool:
    """Drop what is kept for a registry in Docker's file and behind its program; whether there was any.

    podman's files are left alone. Raises `ImageError`.
    """
    if not os.path.exists(_docker_path()):
        return False
    with AuthFile.changing(_docker_path()) as file:
        keychain, server = _keychain(file, registry)
        erased = keychain is not None and keychain.get(server) is not None
        if keychain is not None and erased:
            keychain.erase(server)
        auths = file.objects("auths")
        kept = {key: entry for key, entry in auths.items() if _host(key) != _host(registry)}
        if len(kept) != len(auths):
            file.replace(kept)
        return erased or len(kept) != len(auths)


def _docker_path() -> str:
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return os.path.join(folder, "config.json")


def _paths() -> Iterator[tuple[str, bool]]:
    """The files in their order, and whether it is an error that one can't be reached."""
    yield _docker_path(), True
    if chosen := os.environ.get("REGISTRY_AUTH_FILE"):
        yield chosen, True
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        yield (
            f"{runtime}/containers/auth.json" if runtime else f"/run/containers/{os.geteuid()}/auth.json",
            False,
        )
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield f"{config}/containers/auth.json", False


def _key(registry: str) -> str:
    """What Docker calls a registry in its file, and to programs."""
    return _HUB if _host(registry) == DEFAULT_REGISTRY else registry


def _host(key: str) -> str | None:
    """The registry that a key of a file means; None where it means a part of one, as podman has them.

    >>> _host("https://index.docker.io/v1/"), _host("localhost:5000"), _host("quay.io/team")
    ('docker.io', 'localhost:5000', None)
    """
    scheme, colon, rest = key.partition("://")
    host, _, path = (rest if colon else scheme).partition("/")
    if not colon and path.strip("/") not in _PATHS:
        return None
    host = host.lower()
    return DEFAULT_REGISTRY if host in _HUB_HOSTS else host


def _keychain(file: AuthFile, registry: str) -> tuple[Keychain | None, str]:
    """The program that keeps the login of a registry, and what it calls that; None: the file does."""
    programs = file.texts("credHelpers")
    for key in (_key(registry), registry, *programs):
        if key in programs and _host(key) == _host(registry):
            return (Keychain(programs[key], f"{file.what}: credHelpers") if programs[key] else None), key
    store = file.text("credsStore")
    return (Keychain(store, f"{file.what}: credsStore") if store else None), _key(registry)


def _in_file(file: AuthFile, registry: str, repository: str) -> Found | None:
    keychain, server = _keychain(file, registry)
    if keychain is not None and (kept := keychain.get(server)) is not None:
        name, secret = kept
        credential = Credential(identity_token=secret) if name == _TOKEN else Credential(name, secret)
        return Found(credential, keychain.program)
    auths = file.objects("auths")
    for key in _keys(auths, registry, repository):
        if (credential_here := _read(auths[key], f"{file.what}: auths: {shown(key)}")) is not None:
            return Found(credential_here, file.path)
    return None


def _keys(auths: Mapping[str, Any], registry: str, repository: str) -> Iterator[str]:
    """The keys of a file for a repository: the longest path first, at last those for all of the registry."""
    path = f"{registry}/{repository}" if repository else ""
    while path.count("/"):
        if path in auths:
            yield path
        path = path.rpartition("/")[0]
    exact = (_key(registry), registry)
    for key in exact:
        if key in auths:
            yield key
    for key in auths:
        if key not in exact and _host(key) == _host(registry):
            yield key


def _read(entry: Mapping[str, Any], what: str) -> Credential | None:
    """An entry of "auths"; None for an empty one, which stands for a login that a program keeps."""
    values = {}
    for name in ("auth", "identitytoken", "username", "password"):
        value = entry.get(name) or ""
        if not isinstance(value, str):
            raise ImageError(f"{what}: {name}: expected a string. Log in again, or remove it")
        values[name] = value
    username, password = values["username"], values["password"]
    if values["auth"]:
        username, password = _decoded(values["auth"], f"{what}: auth")
    if not (username and password) and not values["identitytoken"]:
        return None
    return Credential(username, password, values["identitytoken"])


def _decoded(text: str, what: str) -> tuple[str, str]:
    try:
        both = base64.b64decode("".join(text.split()), validate=True).decode()
    except (binascii.Error, ValueError):
        both = ""
    username, colon, password = both.partition(":")
    if not colon or not username:
        raise ImageError(f"{what}: expected base64 of USER:PASSWORD. Log in again, or remove it")
    return username, password.strip("\0")
