"""The other engines as subjects: each in a process that fits it, started when first asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from . import engines, install, libraries, peerhost
from .remote import Remote
from .samples import Failed, Subject, progress

ORDER = ("bwrap", "sandlock", "systemd-nspawn", "runc", "podman", "docker", "benchexec")
LIBRARIES = ("sandlock", "benchexec")
NAMES = {"docker": "docker run", "podman": "podman run", "runc": "runc run", "bwrap": "bwrap --unshare-all"}
NOTES = {
    "bwrap": "no limits, overlay or filter",
    "sandlock": "no namespaces, cgroup or overlay",
    "systemd-nspawn": "no limits",
    "runc": "no overlay or filter",
    "podman": "no user namespace",
    "docker": "no user namespace; a daemon",
    "benchexec": "no filter; measures",
}
PER_ROUND = {
    "bwrap": 8,
    "sandlock": 8,
    "systemd-nspawn": 4,
    "runc": 4,
    "podman": 1,
    "docker": 1,
    "benchexec": 1,
}


class Peers:
    """Every engine that can be had here; `absent` says why the others can't."""

    def __init__(self, work: Path, rootfs: Path) -> None:
        self._work = work
        self._rootfs = rootfs
        self._remotes: dict[str, Remote] = {}
        self.absent = install.install_missing()
        for name, reason in engines.unavailable(tuple(engines.COMMANDS)).items():
            self.absent.setdefault(name, reason)
        for name, reason in self.absent.items():
            progress(f"  without {name}: {reason}")

    def subjects(self, names: Sequence[str] = ORDER) -> list[Subject]:
        """The named engines as subjects of a case, fastest first."""
        present = [name for name in names if name not in self.absent]
        return [
            Subject(NAMES.get(name, name), partial(self.take, name), PER_ROUND[name], NOTES[name])
            for name in present
        ]

    def take(self, engine: str, count: int) -> Sequence[float]:
        """Run one engine `count` times; nanoseconds of each."""
        if engine in self.absent:
            raise Failed(self.absent[engine])
        samples: Sequence[float] = self._remote(engine).ask(engine=engine, count=count)
        return samples

    def _remote(self, engine: str) -> Remote:
        place = engine if engine in LIBRARIES else "commands"
        if place not in self._remotes:
            if engine in LIBRARIES:
                python = [str(install.PYTHON), libraries.__file__, engine, str(self._rootfs), str(self._work)]
                # BenchExec looks at every mount; its own changes stay in a mount namespace of this process.
                command = python if os.geteuid() else ["unshare", "--mount", *python]
            else:
                command = list(peerhost.command(self._work, self._rootfs))
            self._remotes[place] = Remote(command)
        return self._remotes[place]

    def close(self) -> None:
        """End them all."""
        for remote in self._remotes.values():
            remote.close()
        self._remotes.clear()
