"""The files of /etc that say where a container is: hosts, hostname and resolv.conf.

They are the container's own, lie over those of its image, and are no change that it made. Docker makes the
same three.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from .layers import Etc
from .views import host_view

__all__ = ["ETC", "NAMED", "etc_files", "etc_of", "etc_size"]

HOSTS: Final = "/etc/hosts"
HOSTNAME: Final = "/etc/hostname"
RESOLV_CONF: Final = "/etc/resolv.conf"
ETC: Final = (HOSTS, HOSTNAME, RESOLV_CONF)
NAMED: Final = (HOSTS, HOSTNAME)
"""Those that have the container's name in them."""

_MOST: Final = 64 << 10
_PAGE: Final = 4096
_OVERFLOW: Final = 65534  # an owner that there is no id for here
_LOCAL: Final = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def etc_files(hostname: str, network: str) -> tuple[tuple[str, bytes], ...]:
    r"""Give path and contents of each.

    With ``network="host"`` they are the host's own as of now, with the container's name added; else there
    is no name server, and no name but these.

    >>> dict(etc_files("box", "none"))["/etc/hosts"].splitlines()[-1]
    b'127.0.1.1\tbox'
    """
    hosts, servers = _LOCAL, b""
    if network == "host":
        hosts, servers = _host(HOSTS) or _LOCAL, _host(RESOLV_CONF)
        hosts += b"" if hosts.endswith(b"\n") else b"\n"
    name = hostname.encode()
    return (HOSTS, b"%b127.0.1.1\t%b\n" % (hosts, name)), (HOSTNAME, name + b"\n"), (RESOLV_CONF, servers)


def etc_size(files: Iterable[tuple[str, bytes]]) -> int:
    """The bytes that they take of a tmpfs."""
    return sum(-(-len(content) // _PAGE) * _PAGE for _, content in files)


def etc_of(found: os.stat_result | None, number: int, root: tuple[int, int] | None) -> Etc:
    """What lies over the image's /etc, `found` in its layer of this number, and is to look like that.

    `root`: the user and group of files of the container's root; None where others' don't have their owners.
    """
    if found is None:
        return Etc(0o755)
    owner = found.st_uid, found.st_gid
    other = root is not None and owner != root and _OVERFLOW not in owner
    return Etc(found.st_mode & 0o1777, number if other else None)


def _host(path: str) -> bytes:
    content = host_view(path)
    return content if len(content) <= _MOST else b""
