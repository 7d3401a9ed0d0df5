"""What the plan of a container is made from, as values: both parts of it, and the user's mounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from ..rootfs.layers import Rootfs
from ..security.landlock import Ruleset
from ..security.paths import Covers
from ..spec import Mount


@frozen
class Placed:
    """A user's mount, resolved: `tree` is the descriptor of a detached copy, or None to clone by path."""

    mount: Mount
    is_file: bool
    tree: int | None


@frozen
class Shape:
    """What the first part of a plan is made from: it names no container, so one may be made in advance.

    `layer_fds`, `dev_fd` and `disk_fd` are places in the table of descriptors that travels with it
    (tree index → one detached copy a layer, or one of what all lie within); what is not in it is reached by
    its path, and so are the sources of `mounts`. `begun_fds`: one for each of `rootfs.begun`, None where it
    has a path.
    """

    stage: str
    rootfs: Rootfs
    layer_fds: Mapping[int, Sequence[int]]
    dev_fd: int | None
    devices: Sequence[str]
    scratch_size: int
    disk_scratch: str | None
    disk_fd: int | None
    groups_allowed: bool
    tty_group: bool
    own_userns: bool
    own_netns: bool
    own_ipcns: bool
    lowerdir_plus: bool
    views: Sequence[tuple[str, bytes]]
    cpus: frozenset[int] | None
    bounding: int
    mounts: Sequence[Placed]
    covers: Covers
    sysctls: Sequence[tuple[str, bytes]]
    files: Sequence[tuple[str, bytes]] = ()
    volumes: Sequence[str] = ()
    begun_fds: Sequence[int | None] = ()


@frozen
class Setup:
    """What the second part is made from: the container's own. The sources of `mounts` are descriptors.

    `scoped`: LANDLOCK_SCOPE_* for init and all that it starts; `landlock`: what its programs take on.
    `files`: contents of those that the first part made; `workdir`: a directory to make where it is missing.
    """

    hostname: str | None
    join_fds: Sequence[int]
    late_namespaces: int
    mounts: Sequence[Placed]
    read_only: Sequence[str]
    scoped: int = 0
    landlock: Ruleset | None = None
    files: Sequence[tuple[str, bytes]] = ()
    workdir: str | None = None
