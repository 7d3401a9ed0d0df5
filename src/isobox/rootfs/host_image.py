"""The image "host": this machine's system as an unprivileged user may see it, copy-on-write.

Two shapes, since the kernel lets only root clone "/" without the mounts below it (and not where these
were taken over from another user's mount namespace):

- root: one overlay over "/", with what is never visible taken out of it by whiteouts, and one tree
  for each real file system that is mounted below a visible directory;
- an ordinary user, or root of such a namespace: an empty root with one tree for each visible top-level
  directory.

In both, the Python in use gets trees of its own where it lies under a hidden directory. Files that
others may not read need nothing here: the host's root has no identity in the container, so the
kernel refuses them.

The topmost directory of each tree belongs to the container's root, so names in it can be added and
taken away, in the container's own layer. Nothing of a root-owned directory below it can: the kernel
copies a file or directory only together with its owner, and the host's root is nobody inside.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache

from .layers import Directory, Layer, Link, Rootfs, Tree, components
from .mountinfo import PSEUDO, Mountpoint, mount_table
from .python_in_use import Homes, Trace, trace

__all__ = ["HIDDEN", "SKELETON", "SPECIAL", "host_image"]

HIDDEN = (
    "/boot",
    "/home",
    "/lost+found",
    "/media",
    "/mnt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var/run",
    "/var/tmp",
)
"""Never visible; /var/run counts only where it is a directory of its own, not the usual link."""

SPECIAL = ("/dev", "/proc", "/sys")
"""File systems of the kernel: every container has its own."""

SKELETON = (
    Directory("/dev", 0o755),
    Directory("/home", 0o755),
    Directory("/media", 0o755),
    Directory("/mnt", 0o755),
    Directory("/proc", 0o555),
    Directory("/root", 0o700),
    Directory("/run", 0o755),
    Directory("/run/lock", 0o1777),
    Directory("/srv", 0o755),
    Directory("/sys", 0o555),
    Directory("/tmp", 0o1777),
    Directory("/var/tmp", 0o1777),
)
"""Made fresh in every container on the host image."""

# What overlayfs takes as a lower layer without ifs. Others (fuse, nfs, vfat, 9p ...) may revalidate
# or fold case, which it refuses or serves badly: they are shown read-only instead.
OVERLAY_LOWER = frozenset(
    {
        "bcachefs",
        "btrfs",
        "erofs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "overlay",
        "ramfs",
        "squashfs",
        "tmpfs",
        "xfs",
        "zfs",
    }
)


def within(path: str, parent: str) -> bool:
    """Whether `path` is `parent` or lies below it; both absolute and normalised.

    >>> within("/tmp/x", "/tmp"), within("/tmpx", "/tmp"), within("/etc", "/")
    (True, False, True)
    """
    return parent == "/" or path == parent or path.startswith(parent + "/")


def _topmost(paths: Iterable[str]) -> list[str]:
    """Without those that lie in another of them; parents first."""
    kept: list[str] = []
    for path in sorted(set(paths), key=components):
        if not (kept and within(path, kept[-1])):
            kept.append(path)
    return kept


def _hidden_paths(homes: Homes, state_dir: str) -> list[str]:
    """Every path that is taken out, where it really is, as far as it is not inside another."""
    found: set[str] = set()
    for path in (*HIDDEN, *homes.paths, os.path.abspath(state_dir)):
        parent = os.path.realpath(os.path.dirname(path))
        place = os.path.join(parent, os.path.basename(path))
        is_link = os.path.islink(place)
        if os.path.isdir(parent) and not (is_link and path not in _FRESH):
            found.add(place)
        if is_link:
            found.add(os.path.realpath(place))
    return _topmost(path for path in found if not homes.is_system(path))


_FRESH = frozenset(directory.path for directory in SKELETON)


def _skeleton() -> dict[str, Directory]:
    """SKELETON with /var/tmp where it really lies, should /var be a link on this machine."""
    places: dict[str, Directory] = {}
    for directory in SKELETON:
        parent, name = os.path.split(directory.path)
        if parent not in _FRESH:
            parent = os.path.realpath(parent)
        place = os.path.join(parent, name)
        places[place] = Directory(place, directory.mode)
    return places


class _Builder:
    """Collects the parts of one Rootfs; only `host_image` uses it."""

    def __init__(
        self, root: bool, whole: bool, stacks: bool, state_dir: str, python_paths: Sequence[str]
    ) -> None:
        self.root = root
        self.whole = whole
        self.lower = OVERLAY_LOWER if stacks else OVERLAY_LOWER - {"overlay"}
        self.homes = Homes.read()
        self.hidden = _hidden_paths(self.homes, state_dir)
        table = {mount.path: mount for mount in mount_table()}
        self.root_type = table.pop("/").fstype if "/" in table else "overlay"
        self.mounts: dict[str, Mountpoint] = table
        self.traces: list[Trace] = [trace(path) for path in python_paths]
        self.shown = self._python_places()
        self.trees: list[Tree] = []
        self.skeleton: dict[str, Directory] = _skeleton()
        self.links: dict[str, Link] = {}

    def _python_places(self) -> list[str]:
        """Where the Python in use really lies, as far as that is hidden; narrow on purpose.

        A directory that holds hidden ones or is somebody's home, such as "/tmp" as an entry of
        sys.path, would show far more than a Python, so it is left out.
        """
        return _topmost(
            t.real
            for t in self.traces
            if self._is_hidden(t.real)
            and not any(within(hidden, t.real) for hidden in self.hidden)
            and not self.homes.is_home(t.real)
        )

    def _is_hidden(self, path: str) -> bool:
        return any(within(path, hidden) for hidden in (*self.hidden, *SPECIAL))

    def visible(self, path: str) -> bool:
        """Whether the container shows what the host has at `path`."""
        if any(within(path, shown) for shown in self.shown):
            return True
        return not self._is_hidden(path)

    def file_system(self, path: str) -> str:
        best = "/"
        for mounted in self.mounts:
            if within(path, mounted) and len(mounted) > len(best):
                best = mounted
        return self.root_type if best == "/" else self.mounts[best].fstype

    def submounts(self, path: str) -> list[str]:
        return [m for m in self.mounts if m != path and within(m, path)]

    def hidden_below(self, path: str) -> list[str]:
        return [h for h in (*self.hidden, *SPECIAL) if h != path and within(h, path)]

    def add_tree(self, path: str) -> None:
        """Show the host's `path` at the same place, by a tree of its own."""
        try:
            status = os.stat(path)
        except OSError:
            return
        if not self._may_enter(path, status):
            return
        if not stat.S_ISDIR(status.st_mode):
            if stat.S_ISREG(status.st_mode):
                self.trees.append(Tree(path, (Layer(path),), "bind", is_file=True))
            return
        # Without privileges the kernel refuses to take a directory without the mounts below it.
        if (not self.whole and self.submounts(path)) or self.file_system(path) not in self.lower:
            self.trees.append(Tree(path, (Layer(path),), "bind"))
            self._cover(path)
            return
        self.trees.append(
            Tree(
                path,
                (Layer(path),),
                mode=stat.S_IMODE(status.st_mode) & 0o1777,
                hidden=tuple(_relative(h, path) for h in self.hidden_below(path)),
            )
        )

    def _cover(self, path: str) -> None:
        """Hide what must not be seen below a read-only tree: an empty one on top of each."""
        for hidden in self.hidden_below(path):
            if os.path.isdir(hidden):
                mode = self.skeleton[hidden].mode if hidden in self.skeleton else 0o755
                self.skeleton.pop(hidden, None)
                self.trees.append(Tree(hidden, (), mode=mode))

    def _may_enter(self, path: str, status: os.stat_result) -> bool:
        need = os.R_OK | os.X_OK if stat.S_ISDIR(status.st_mode) else os.R_OK
        if not self.root:
            return os.access(path, need)
        return (status.st_mode & need) == need  # the bits of others: R_OK is 4, X_OK is 1

    def add_submounts(self) -> None:
        """Real file systems mounted below visible places (root only: there, trees are single)."""
        done = [tree.target for tree in self.trees if tree.kind == "bind"]
        for path in sorted(self.mounts, key=components):
            mount = self.mounts[path]
            if mount.fstype in PSEUDO or not self.visible(path) or path in self.shown:
                continue
            if any(within(path, target) for target in done):
                continue
            before = len(self.trees)
            self.add_tree(path)
            done.extend(tree.target for tree in self.trees[before:] if tree.kind == "bind")

    def add_top_level(self) -> None:
        """Each visible entry of "/" by itself (ordinary users)."""
        for name in sorted(os.listdir("/")):
            path = "/" + name
            if self._is_hidden(path):
                continue
            if os.path.islink(path):
                self.links[path] = Link(path, os.readlink(path))
            elif os.path.isdir(path):
                before = len(self.trees)
                self.add_tree(path)
                if len(self.trees) > before:
                    self.skeleton[path] = Directory(path)
            else:
                self.add_tree(path)

    def add_python(self) -> None:
        for place in self.shown:
            is_file = not os.path.isdir(place)
            self._add_parents(place)
            if not is_file:
                self.skeleton[place] = Directory(place)
            self.add_tree(place)
        for traced in self.traces:
            for link in traced.links:
                if not self.visible(link.path) and traced.real_is_shown(self.visible):
                    self._add_parents(link.path)
                    self.skeleton.pop(link.path, None)
                    self.links[link.path] = link

    def _add_parents(self, path: str) -> None:
        """Make the directories above a place under a hidden one; anybody inside may pass them."""
        parent = os.path.dirname(path)
        while self._is_hidden(parent) and parent not in self.links:
            old = self.skeleton.get(parent)
            mode = 0o755 if old is None or old.mode == 0o700 else old.mode
            self.skeleton[parent] = Directory(parent, mode)
            parent = os.path.dirname(parent)

    def _add_missing_parents(self) -> None:
        """For a machine without a (visible) /var: the directory that /var/tmp is to be made in."""
        for path in list(self.skeleton):
            parent = os.path.dirname(path)
            while parent != "/" and parent not in self.skeleton and not self._is_there(parent):
                self.skeleton[parent] = Directory(parent)
                parent = os.path.dirname(parent)

    def _is_there(self, path: str) -> bool:
        if self.whole:
            return self.visible(path) and os.path.isdir(path)
        return any(within(path, tree.target) for tree in self.trees) and os.path.isdir(path)

    def build(self) -> Rootfs:
        if self.whole:
            hidden = tuple(_relative(h, "/") for h in (*self.hidden, *SPECIAL))
            first = Tree("/", (Layer("/"),), hidden=hidden)
        else:
            first = Tree("/", ())
            self.add_top_level()
        self.add_python()
        if self.whole:
            self.add_submounts()
        self._add_missing_parents()
        self.trees.sort(key=lambda tree: components(tree.target))
        skeleton = sorted(self.skeleton.values(), key=lambda d: components(d.path))
        links = sorted(self.links.values(), key=lambda link: components(link.path))
        return Rootfs((first, *self.trees), tuple(skeleton), tuple(links))


def _relative(path: str, parent: str) -> str:
    return path[len(parent) :].lstrip("/")


def host_image(
    *,
    root: bool,
    state_dir: str,
    python_paths: Sequence[str],
    whole: bool | None = None,
    stacks: bool = True,
) -> Rootfs:
    """Describe this machine's host image as it is now; the caller keeps it as long as it likes.

    `root`: whether the container is made with the host's root privileges; `whole`: whether the kernel lets
    it clone "/" without the mounts below it, as it does for root unless told otherwise; `stacks`: whether an
    overlay may lie on another, which the kernel allows two deep, else such places are shown read-only.
    `state_dir`: where isobox keeps its state; hidden too. `python_paths`: what `python_paths()` gives, or a
    part of it.

    >>> import isobox.rootfs.host_image as m
    >>> rootfs = m.host_image(root=True, state_dir="/run/isobox", python_paths=())
    >>> rootfs.trees[0].target, "tmp" in rootfs.trees[0].hidden
    ('/', True)
    """
    return _Builder(root, root if whole is None else whole, stacks, state_dir, python_paths).build()


def python_paths() -> tuple[str, ...]:
    """Where the Python in use lies: its prefixes, its executable, what exists of sys.path.

    The empty entry of sys.path, the current directory, is not one of them: a container has a
    working directory of its own. Looked up once for each state of sys.path, since every start of a
    container asks; a directory that comes into being later is not noticed before sys.path changes.
    """
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    programs = (sys.executable or "", getattr(sys, "_base_executable", None) or "")
    return _existing((*prefixes, *programs, *(entry for entry in sys.path if isinstance(entry, str))))


@lru_cache(maxsize=8)
def _existing(names: tuple[str, ...]) -> tuple[str, ...]:
    found = dict.fromkeys(os.path.abspath(name) for name in names if name)
    return tuple(path for path in found if os.path.exists(path))
