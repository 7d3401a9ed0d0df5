"""Debian's Linux 6.12 for virtual machines: fetched once into a folder, not installed.

virtiofs, PCI and virtio's console are built into it, so that it starts without an initramfs.
"""

from __future__ import annotations

import lzma
import subprocess
import tempfile
from pathlib import Path

PACKAGE = "linux-image-6.12-cloud-amd64"  # it stands for the newest of its kind


def fetched(place: Path) -> Path:
    """The folder in `place` with `vmlinuz` and `lib/modules`; a first call loads 34 MB from Debian."""
    kernel = place / PACKAGE
    if not kernel.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            made = _unpack(_download(Path(scratch)), Path(scratch, "kernel"))
            if not kernel.exists():  # another guest may have been quicker
                made.rename(kernel)
    return kernel


def _download(folder: Path) -> Path:
    depends = ["apt-cache", "depends", "--important", PACKAGE]
    said = subprocess.run(depends, check=True, stdout=subprocess.PIPE, text=True).stdout
    names = [line.split()[1] for line in said.splitlines() if line.strip().startswith("Depends:")]
    if not names:
        raise LookupError(f"apt knows no {PACKAGE}: run apt-get update")
    # As root: apt's own user may not write here.
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", names[0]]
    subprocess.run(download, cwd=folder, check=True)
    return next(folder.glob("*.deb"))


def _unpack(package: Path, kernel: Path) -> Path:
    subprocess.run(["dpkg-deb", "--extract", package, kernel], check=True)
    next(kernel.glob("boot/vmlinuz-*")).rename(kernel / "vmlinuz")
    if not (kernel / "lib").exists():
        (kernel / "usr/lib").rename(kernel / "lib")
    for module in kernel.glob("lib/modules/**/*.ko.xz"):  # here, and not at every start by a slow processor
        module.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        module.unlink()
    version = next((kernel / "lib/modules").iterdir()).name
    subprocess.run(["busybox", "depmod", "-b", kernel, version], check=True)
    return kernel
