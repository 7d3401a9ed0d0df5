"""A small Debian as a tar: what mmdebstrap makes from this machine's own mirror, once for each checkout."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path

from patience import patient
from programs import ROOT
from requirements import obstacle, program, refuse

CACHE = Path(__file__).parents[1] / ".cache/debian"

# What every Debian has, apt and useradd; pages for people are left out, as they are of most images.
RECIPE = (
    "--format=tar",
    "--variant=essential",
    "--include=apt,passwd",
    '--aptopt=Acquire::Languages "none"',
    '--aptopt=Acquire::Retries "3"',
    '--aptopt=Acquire::http::Timeout "30"',
    "--dpkgopt=force-unsafe-io",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
)


def debian(place: Path) -> Path:
    """Return the tar. The first who asks makes it, in `place` where the checkout can't be written to."""
    recipe = (*RECIPE, *_fetching(), *_source())
    name = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16] + ".tar"
    for path in (CACHE / name, place / name):
        if os.access(path, os.R_OK):
            return path
    with contextlib.suppress(OSError):
        CACHE.mkdir(parents=True, exist_ok=True)
    if os.access(CACHE, os.W_OK):
        for old in CACHE.glob("*.tar"):
            old.unlink(missing_ok=True)
        place = CACHE
    _make(recipe, place / name)
    return place / name


def _make(recipe: tuple[str, ...], path: Path) -> None:
    """Write it to `path`, all of it or nothing. What is mounted for it, nobody else sees."""
    if ROOT:
        command = ["unshare", "--mount", "--propagation=private", program("mmdebstrap"), "--mode=root"]
    elif reason := obstacle(["user_namespaces", "newuidmap", "id_ranges"]):
        refuse("debian", f"an ordinary user makes a Debian with a range of ids only: {reason}")
    else:
        command = [program("mmdebstrap"), "--mode=unshare"]
    *options, suite, source = recipe
    command = ["timeout", "--kill-after=10", str(patient(150)), *command, *options, suite, "-", source]
    with tempfile.TemporaryDirectory(prefix="making-", dir=path.parent) as scratch:
        made = Path(scratch) / "debian.tar"
        with made.open("wb") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
            ended = f"mmdebstrap made no Debian of {source!r}, it ended with status {done.returncode}"
            refuse("debian", "\n".join([ended, *errors[:10]]))
        made.chmod(0o644)
        made.replace(path)


def _source() -> tuple[str, str]:
    """The suite of this machine, and the line of sources.list(5) that says where it comes from."""
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    for line in _said("apt-get", "--print-uris", "update").splitlines():
        if found := re.match(rf"'([^']+)/dists/{re.escape(suite)}/InRelease'", line):
            return suite, f"deb {found[1]} {suite} main"
    refuse("debian", f"apt has no mirror here for this machine's own release, {suite!r}")


def _fetching() -> list[str]:
    """How this machine's apt fetches: through a proxy, with a clock that is wrong ..."""
    lines = _said("apt-config", "dump").splitlines()
    return [
        f"--aptopt={line}" for line in lines if re.match(r"Acquire::(https?|Check-)\S* \"[^\"]+\";$", line)
    ]


def _said(name: str, *arguments: str) -> str:
    command = [program(name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=patient(60)).stdout
