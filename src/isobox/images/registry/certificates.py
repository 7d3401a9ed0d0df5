"""TLS with one registry: whose certificates count besides the system's, and the one that we show.

They lie where podman and Docker have them, in a folder that is named as the registry is in the names of
images, with its port where that has one (containers-certs.d(5); docs.docker.com, "Verify repository client
with certificates"): ``*.crt`` are authorities, ``NAME.cert`` with ``NAME.key`` a client certificate. All are
PEM. Of several folders for a registry the first counts alone, as in containers/image.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Iterator
from typing import Final, NoReturn

from isobox.errors import ImageError, printable

from .auth_file import read_file

__all__ = ["tls_context"]

_SYSTEM: Final = ("/etc/containers/certs.d", "/etc/docker/certs.d")


def tls_context(registry: str, *, insecure: bool = False, identified: bool = True) -> ssl.SSLContext:
    """Return what connections for a registry are made with; raises `ImageError` for files that won't do.

    `registry`: a host with an optional port, as `Reference.registry` has it. `insecure`: no certificate is
    looked at. Not `identified`: for hosts that are not to know who we are; none of ours is shown.
    """
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    folder, names = _find(registry)
    for name in names:
        if name.endswith(".crt"):
            _trust(context, f"{folder}/{name}")
    # OpenSSL keeps one pair for each kind of key, the last: so the first by name stays.
    for name in reversed(names):
        stem, kind = os.path.splitext(name)
        other = {".cert": f"{stem}.key", ".key": f"{stem}.cert"}.get(kind)
        if other is not None and other not in names:
            _fail(
                f"{folder}/{name}",
                f"there is no {printable(other)} with it, and a client certificate needs both. "
                "The names of authorities end with .crt",
            )
        if kind == ".cert" and identified:
            _show(context, f"{folder}/{name}", f"{folder}/{other}")
    return context


def _folders() -> Iterator[str]:
    home = os.path.expanduser("~/.config")
    yield f"{home}/containers/certs.d"
    yield f"{os.environ.get('XDG_CONFIG_HOME') or home}/docker/certs.d"  # Docker's without root
    yield from _SYSTEM


def _find(registry: str) -> tuple[str, list[str]]:
    """The folder for a registry, and what is in it, sorted; that of nobody where there is none."""
    for place in _folders():
        folder = f"{place}/{registry}"
        try:
            return folder, sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError as error:
            _fail(folder, error.strerror)
    return "", []


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        text = read_file(path).decode("ascii", "ignore")  # others are only in comments
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):  # ValueError: an empty one
        _fail(path, "expected certificates of authorities, in PEM")
    except OSError as error:
        _fail(path, error.strerror)
    # Private authorities often lack what RFC 5280 asks of them; Docker and podman don't mind, and no more
    # did Python until 3.13.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT


def _show(context: ssl.SSLContext, certificate: str, key: str) -> None:
    def password() -> NoReturn:
        _fail(key, "it is encrypted. Write it without a password, for its owner to read alone")

    for path in (certificate, key):
        try:
            # It is opened by its name, and nobody is to wait for a fifo.
            with open(path, "rb", opener=_open) as file:
                regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        except OSError as error:
            _fail(path, error.strerror)
        if not regular:
            _fail(path, "it is no regular file")
    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError:
        _fail(certificate, f"expected a certificate in PEM that belongs to {printable(key)}")
    except OSError as error:
        _fail(certificate, error.strerror)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _fail(path: str, why: str | None) -> NoReturn:
    raise ImageError(
        f"certificates for a registry: {printable(path)}: {why}. A folder in "
        "~/.config/containers/certs.d goes before those in /etc"
    )
