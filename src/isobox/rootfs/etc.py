"""The files of /etc that say where a container is: hosts, hostname and resolv.conf.

They are the container's own, lie over those of its image, and are no change that it made. Docker makes the
same three.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from .views import host_view

__all__ = ["ETC", "NAMED", "etc_files", "etc_mode", "etc_size"]

HOSTS: Final = "/etc/hosts"
HOSTNAME: Final = "/etc/hostname"
RESOLV_CONF: Final = "/etc/resolv.conf"
ETC: Final = (HOSTS, HOSTNAME, RESOLV_CONF)
NAMED: Final = (HOSTS, HOSTNAME)
"""Those that have the container's name in them."""

_MOST: Final = 64 << 10
_PAGE: Final = 4096
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


def etc_mode(found: os.stat_result | None, *, root: bool) -> int | None:
    """The mode of the directory /etc that lies over the image's, `found`; None where it can't be the same.

    `root`: owners are the image's. /etc in the container's own layer belongs to its root.
    """
    if found is None:
        return 0o755
    if root and (found.st_uid or found.st_gid):
        return None
    return found.st_mode & 0o1777


def _host(path: str) -> bytes:
    content = host_view(path)
    return content if len(content) <= _MOST else b""
