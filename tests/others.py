"""Other programs that read and write images: skopeo, umoci, podman."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from patience import patient
from programs import ROOT
from requirements import program

LISTING = str(Path(__file__).parent / "listing.py")


def run(*args: str, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        args, capture_output=True, text=True, timeout=patient(120), cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Podman:
    """podman with a storage of its own, and nothing of it left when it is closed."""

    def __init__(self) -> None:
        self._program = program("podman")
        place = Path(tempfile.mkdtemp(prefix="isobox-podman-", dir="/tmp"))  # it takes no longer paths
        self._place = place
        self._environment = {
            "HOME": str(place / "home"),
            "XDG_RUNTIME_DIR": str(place / "run"),
            "TMPDIR": str(place),
        }
        self._mapped = not ROOT
        for name in ("home", "run"):
            (place / name).mkdir(parents=True)

    def __call__(self, *args: str) -> str:
        return run(*self._command(*args), **self._environment)

    def _command(self, *args: str) -> list[str]:
        place = self._place
        options = [f"--root={place}/root", f"--runroot={place}/runroot", f"--tmpdir={place}/tmp"]
        fixed = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]
        return [self._program, *options, *fixed, *args]

    def inside(self, script: str, *args: str) -> str:
        """What a shell script says where podman's files have their owners; ``$podman`` is podman there."""
        command = ["sh", "-euc", f'podman="{" ".join(self._command())}"; {script}', "sh", *args]
        return run(*(self._command("unshare", *command) if self._mapped else command), **self._environment)

    def tree(self, name: str) -> dict[str, dict[str, Any]]:
        """The image, file by file."""
        script = 'top=$($podman image mount "$1"); "$2" "$3" "$top"; $podman image umount "$1" >/dev/null'
        found: dict[str, dict[str, Any]] = json.loads(self.inside(script, name, sys.executable, LISTING))
        return found

    def close(self) -> None:
        self.inside('rm -rf "$1"', f"{self._place}/root")
        if self._mapped:
            self("system", "migrate")  # which ends the process that keeps its user namespace
        shutil.rmtree(self._place)


def by_umoci(folder: Path, name: str, place: Path) -> dict[str, dict[str, Any]]:
    rootless = [] if ROOT else ["--rootless"]
    image = ["--image", f"{folder}:{name}"]
    run(program("umoci"), "--log=error", "unpack", *rootless, *image, str(place))
    done = run(sys.executable, LISTING, str(place / "rootfs"))
    found: dict[str, dict[str, Any]] = json.loads(done)
    return found
