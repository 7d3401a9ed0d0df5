"""Containers of images, as the users of images expect them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import isobox
from archives import entry, packed
from isobox import Container, Image
from isobox.images import local
from leftovers import nothing_left
from made import archive, base, upper
from patience import patient
from programs import said

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders")

ROOT = os.geteuid() == 0


def load(tmp_path: Path, *layers: bytes, name: str = "app:1", **run: Any) -> Image:
    """An image of these layers, or of a small one, whose config is `run`."""
    path = archive(tmp_path / "image.tar", *(layers or (base(),)), tags=(name,), run=run)
    return Image.load(path)


class TestKeptReady:
    """What a process keeps of an image from one container to the next."""

    def test_the_same_values(self, tmp_path: Path) -> None:
        load(tmp_path)
        with Container("app:1") as one, Container("app:1") as two:
            # So that what was prepared for one container fits the next.
            assert rootfs(one) is rootfs(two)
            load(tmp_path, name="other:1")  # changes the names in the store, not this image
            with Container("app:1") as three, Container("other:1") as other:
                assert rootfs(three) is rootfs(one)
                assert said(other, ["cat", "/data/old"]) == "x"

    def test_a_name_that_moves(self, tmp_path: Path) -> None:
        load(tmp_path)
        with Container("app:1") as old:
            load(tmp_path, base(), upper())
            with Container("app:1") as new:
                assert said(new, ["ls", "/data"]) == "new\n"
            assert said(old, ["ls", "/data"]) == "old\n"

    def test_layers_stay_while_they_are_kept(self, tmp_path: Path) -> None:
        """Another process may remove the image meanwhile; who comes back later unpacks it anew."""
        load(tmp_path)
        with local.own_layers() as found:
            layers = Path(found.path, "layers")
        isobox.run(["true"], "app:1").check()
        remove = "import isobox; isobox.Image.get('app:1').remove()"
        subprocess.run([sys.executable, "-c", remove], check=True, timeout=patient(60))
        assert len(os.listdir(layers)) == 1
        with pytest.raises(isobox.NotFound):
            isobox.run(["true"], "app:1")
        load(tmp_path)
        local.forget()
        subprocess.run([sys.executable, "-c", remove], check=True, timeout=patient(60))
        assert os.listdir(layers) == []
        load(tmp_path)
        isobox.run(["true"], "app:1").check()

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        load(tmp_path)
        with nothing_left():
            isobox.run(["true"], "app:1").check()
            pid = os.fork()
            if pid == 0:
                kept = [fd for fd in os.listdir("/proc/self/fd") if "/layers/locks/" in target(fd)]
                os._exit(len(kept))
            assert os.waitpid(pid, 0)[1] == 0

    def test_many_layers(self, tmp_path: Path) -> None:
        load(tmp_path, base(), *[packed(entry(f"etc/{number}", b"x")) for number in range(150)])
        with Container("app:1") as box:
            assert len(said(box, ["ls", "/etc"]).split()) == 152


def rootfs(box: Container) -> object:
    assert box._programs is not None
    return box._programs.launched.rootfs


def target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""
