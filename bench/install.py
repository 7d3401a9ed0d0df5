"""Installs the engines to compare with, where that is possible, and says what could not be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from attrs import frozen

from .samples import progress

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "bench"
PYTHON = CACHE / "bin" / "python"


@frozen
class Package:
    """Where an engine comes from: a program on PATH from a Debian package, or a module from PyPI."""

    engine: str
    program: str = ""
    debian: str = ""
    pypi: str = ""


PACKAGES = (
    Package("bwrap", program="bwrap", debian="bubblewrap"),
    Package("systemd-nspawn", program="systemd-nspawn", debian="systemd-container"),
    Package("runc", program="runc", debian="runc"),
    Package("podman", program="podman", debian="podman"),
    Package("docker", program="dockerd", debian="docker.io"),
    Package("busybox", program="busybox", debian="busybox-static"),
    Package("sandlock", pypi="sandlock"),
    Package("benchexec", pypi="benchexec"),
)


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def find(program: str) -> str | None:
    """Where a program is, also in the directories that only root's PATH has."""
    return shutil.which(program, path=_path())


def _has_module(name: str) -> bool:
    if not PYTHON.exists():
        return False
    return subprocess.run([PYTHON, "-c", f"import {name}"], capture_output=True, check=False).returncode == 0


def _installed(package: Package) -> bool:
    return _has_module(package.pypi) if package.pypi else find(package.program) is not None


def _apt(names: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *names],
    ):
        subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )


def _pip(names: list[str]) -> None:
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", CACHE], capture_output=True, check=False)
    if not PYTHON.exists():
        return  # not ours to write to, or no venv here: the caller says what is missing
    for name in names:
        command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", name]
        subprocess.run(command, capture_output=True, check=False)


def install_missing() -> dict[str, str]:
    """Install what is missing; returns engine → why it can't be had."""
    missing = [package for package in PACKAGES if not _installed(package)]
    names = [package.debian for package in missing if package.debian]
    if names and os.geteuid() == 0 and shutil.which("apt-get"):
        progress(f"installing {' '.join(names)} (apt-get)")
        _apt(names)
    names = [package.pypi for package in missing if package.pypi]
    if names:
        progress(f"installing {' '.join(names)} (pip, into {CACHE})")
        _pip(names)
    absent = {}
    for package in missing:
        if not _installed(package):
            origin = f"pip install {package.pypi}" if package.pypi else f"apt-get install {package.debian}"
            absent[package.engine] = f"not installed ({origin})"
    return absent
