"""The doctor's experiments: tries each feature on this host, as this user, and says what would help.

Nothing is concluded from version numbers where it can be tried: namespaces, mounts and filters are
made by isobox-init (`isobox.probes`), limits are set on real cgroups and read back.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

from isobox.container import run
from isobox.errors import IsoboxError, UnsupportedError
from isobox.findings import Item
from isobox.hints import proc_refused, unsupported
from isobox.host import features
from isobox.probes import Probes, for_host
from isobox.runtime import Owner

from .file_systems import try_file_systems
from .limits import try_limits
from .namespaces import try_namespaces
from .outcome import failed
from .walls import try_walls


def items() -> Iterator[Item]:
    """Try one feature after the other."""
    yield _python()
    yield _kernel()
    if refused := proc_refused():
        yield failed(refused.feature, refused, needed=True)
    else:
        yield from _tries()
    yield _container()
    yield _zstd()


def _tries() -> Iterator[Item]:
    owner: Owner | None = None
    with contextlib.ExitStack() as stack:
        stage, id_map = "/tmp", for_host()
        try:
            # One of its own: closing it must not touch what this process's containers have.
            owner = Owner()
            stack.callback(owner.close)
            stage, id_map = owner.directory("stage"), owner.id_map()
            state = Item("state folder", "works", owner.state, needed=True)
        except IsoboxError as error:
            state = failed("state folder", error, needed=True)
        yield state
        try:
            probes = stack.enter_context(Probes(stage, id_map))
        except OSError as error:
            yield failed("isobox-init", unsupported("memfd", error.errno or errno.EIO) or error, needed=True)
        else:
            yield from try_namespaces(probes)
            yield from try_file_systems(probes, owner)
            yield from try_limits(stack, owner)
            yield from try_walls(probes)


def _python() -> Item:
    version = "{}.{}.{}".format(*sys.version_info[:3])
    abi = sys.implementation.cache_tag
    if sys.version_info < (3, 11) or sys.implementation.name != "cpython":
        return Item("python", "missing", f"{abi} {version}", "use CPython 3.11 or later", needed=True)
    return Item(
        "python", "works", f"CPython {version} on {features().machine}, extension for abi3", needed=True
    )


def _kernel() -> Item:
    facts = features()
    if not facts.since("overlay_in_userns"):
        return Item(
            "kernel",
            "missing",
            f"Linux {facts.release}; isobox needs 5.11",
            "boot a newer kernel",
            needed=True,
        )
    try:
        facts.need_calls()
    except UnsupportedError as error:
        return Item("kernel", "missing", error.why, error.remedy, needed=True)
    wished = ("mount_setattr", "idmapped_overlay", "pids_peak", "tmpfs_xattrs")
    old = [name for name in wished if not facts.since(name)]
    if old:
        return Item(
            "kernel",
            "degraded",
            "; ".join(facts.why(name) for name in old),
            "boot a newer kernel"
            + ', or use upper="disk" where directories of an image are removed' * ("tmpfs_xattrs" in old),
            needed=True,
        )
    return Item("kernel", "works", f"Linux {facts.release}", needed=True)


def _container() -> Item:
    """All of it together: a container on the host image that runs a program."""
    name = "container"
    try:
        result = run(["true"], timeout=30)
    except UnsupportedError as error:
        return Item(name, "missing", f"{error.feature}: {error.why}", error.remedy, needed=True)
    except (IsoboxError, OSError) as error:
        return Item(name, "missing", str(error), getattr(error, "hint", ""), needed=True)
    if not result.ok:
        return Item(
            name, "missing", f"'true' ended with {result.reason}, {result.returncode}", "", needed=True
        )
    return Item(name, "works", "started on the host image, ran a program, and was removed", needed=True)


def _zstd() -> Item:
    if features().zstd:
        return Item("zstd", "works", "archives and layers with Zstandard")
    return Item("zstd", "missing", features().why("zstd"), "pip install 'isobox[zstd]'")
