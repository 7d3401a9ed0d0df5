"""/dev of a container: device nodes, terminals, shared memory."""

from __future__ import annotations

from typing import Final

from .ops import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    BELOW_ROOT,
    HOST_PATH,
    NO_LINKS,
    OPEN_TREE_CLONE,
)
from .parts import Shape
from .stage import Stage, bounds

DEVICES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
"""The usual device nodes of a container: name → (major, minor); see runtime-spec, "Default Devices"."""

TERMINALS: Final = ((5, 2), (136, -1))
"""/dev/pts/ptmx, and the terminals that it makes: Documentation/admin-guide/devices.txt."""

DEVICE_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

SHM_SIZE: Final = 64 << 20

MOST_TERMINALS: Final = 256
"""Of one container. The kernel's bound (kernel.pty.max, 4096) is for all of the machine together."""


def add_devices(stage: Stage, setup: Shape) -> None:
    """Make /dev, and what is mounted below it."""
    quiet = ATTR_NOSUID | ATTR_NOEXEC
    if setup.dev_fd is not None:
        stage.add("TAKE_TREE", setup.dev_fd, note="device nodes")
        stage.add("ATTACH", NO_LINKS, strings=("/dev",), note="device nodes")
        stage.add("SETATTR", quiet | ATTR_RDONLY, 0, note="read-only; its devices work all the same")
    else:
        stage.mount("tmpfs", {"size": "65536", "mode": "0755"}, quiet, "/dev", NO_LINKS)
        for name in DEVICES:
            _bind_device(stage, f"/dev/{name}")
        for name, target in DEVICE_LINKS.items():
            stage.add("SYMLINK", 0, BELOW_ROOT, strings=(f"/dev/{name}", target))
        for name in ("pts", "shm", "mqueue"):
            stage.add("MKDIR", 0o755, BELOW_ROOT, 0, strings=(f"/dev/{name}",))
        for path in setup.devices:
            _bind_device(stage, path)
    terminals = {"newinstance": None, "ptmxmode": "0666", "mode": "0620", "max": str(MOST_TERMINALS)}
    if setup.tty_group:
        terminals["gid"] = "5"
    stage.mount("devpts", terminals, quiet, "/dev/pts", BELOW_ROOT)
    shared = bounds(min(SHM_SIZE, setup.scratch_size)) | {"mode": "1777"}
    stage.mount("tmpfs", shared, quiet | ATTR_NODEV, "/dev/shm", BELOW_ROOT)
    if setup.own_ipcns:
        stage.mount("mqueue", {}, quiet | ATTR_NODEV, "/dev/mqueue", BELOW_ROOT)


def _bind_device(stage: Stage, path: str) -> None:
    stage.add("FILE", 0o666, BELOW_ROOT, strings=(path, b""))
    stage.add("OPEN_TREE", OPEN_TREE_CLONE, HOST_PATH, strings=(path,))
    stage.add("ATTACH", BELOW_ROOT, strings=(path,), note="device")
