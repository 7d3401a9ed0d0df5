"""A root file system as data: which host directories lie where, and what is made fresh.

Nothing here touches the machine. isobox-init carries it out inside the container's own
namespaces, in the order of `Rootfs.steps`.

>>> rootfs = Rootfs(
...     trees=(Tree("/", (Layer("/srv/image"),)),),
...     skeleton=(Directory("/tmp", 0o1777),),
... )
>>> [type(step).__name__ for step in rootfs.steps()]
['Tree', 'Directory']
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from attrs import field, frozen

from ..idmap import IdMap


@frozen
class Layer:
    """One lower directory on the host (or one file, for a `Tree` with `is_file`).

    `idmap`: show the host's uid and gid 0..65535 as the container's 0..65535, as the files of an
    image of our own want it. Never for the host's system: its root is nobody's root inside.
    """

    path: str
    idmap: bool = False


@frozen
class Tree:
    """Something mounted at `target`, an absolute path in the container without symlinks.

    kind "overlay": `layers` topmost first (none: an empty tree), and a writable upper directory of
    the container's own. `hidden` are paths relative to the target that no layer shows: a layer of
    whiteouts above all others, which is made on the container's own tmpfs; kept in a directory of
    the host it might share a file system with another layer, and the kernel refuses layers that
    lie in each other.
    kind "bind": the one layer and everything mounted below it, read-only.
    `mode` is the mode of an overlay's root directory (it belongs to the container's root).
    `is_file`: the layer is a regular file, so the mount point has to be one; only with "bind".
    `within`: a directory that all the layers lie below, on its own file system: one mount shows them all.
    """

    target: str
    layers: tuple[Layer, ...]
    kind: Literal["overlay", "bind"] = "overlay"
    mode: int = 0o755
    is_file: bool = False
    hidden: tuple[str, ...] = ()
    within: str | None = None


@frozen
class Begun:
    """What the containers before this one wrote, of all its trees: directory n is tree n's upper directory.

    `path` on the host, or, with `fd`, the detached mount that it is. `idmap`: as a `Layer` has it. `root`:
    the host's id of the container's root in it, as a file's owner.
    `copy` makes a copy of the mount, the caller's, where nobody but it can: before Linux 6.15. `ids`: what
    containers that begin here have for theirs, where the owners in the mount can't be shown as others.
    """

    path: str
    fd: int | None
    idmap: bool
    root: int
    copy: Callable[[], int] | None = None
    ids: IdMap | None = None


@frozen
class Directory:
    """A directory made in the container, owned by its root; it gets `mode` even if it is there."""

    path: str
    mode: int = 0o755


@frozen
class Etc:
    """The /etc of the container's own: its mode, and the layer of the first tree that it has all else of.

    `like`: the layer's number, the topmost being 0; None: it belongs to the container's root.
    """

    mode: int
    like: int | None = None


@frozen
class Link:
    """A symbolic link made in the container: `path` leads to `target` (kept as it is written)."""

    path: str
    target: str


Step = Tree | Directory | Link


def components(path: str) -> tuple[str, ...]:
    """Split an absolute path into names; sorting by them puts every parent before its children.

    >>> components("/var/tmp"), components("/")
    (('var', 'tmp'), ())
    """
    return tuple(name for name in path.split("/") if name)


def _order(step: Step) -> tuple[tuple[str, ...], bool]:
    if isinstance(step, Tree):
        return components(step.target), True
    return components(step.path), False


@frozen
class Rootfs:
    """Everything that the root of a container is made of; ``trees[0].target`` is "/".

    `begun`: lies over the layers of the trees, and over what they hide; topmost first.

    The mount point of every other tree is in `skeleton` or in the tree that it lies in; for a
    tree with `is_file` it may be missing, then it is made as an empty file.
    `etc`: the container's own, in which its hosts, hostname and resolv.conf lie over those of the tree at
    "/" (see etc.py); None: there are none.
    """

    trees: tuple[Tree, ...] = field()
    skeleton: tuple[Directory, ...] = ()
    links: tuple[Link, ...] = ()
    etc: Etc | None = None
    begun: tuple[Begun, ...] = ()

    @trees.validator
    def _root_comes_first(self, _attribute: object, trees: tuple[Tree, ...]) -> None:
        if not trees or trees[0].target != "/":
            raise ValueError("the first tree of a Rootfs has to be the one at '/'")

    def steps(self) -> Iterator[Step]:
        """All parts in the order in which to carry them out: parents first, "/" the very first.

        At one path, a directory comes before the tree that is mounted on it; what lies inside a
        tree comes after it, and so lands in it.
        """
        parts: list[Step] = [*self.skeleton, *self.links, *self.trees]
        yield from sorted(parts, key=_order)
