"""What `pip install .` makes: one wheel for every Python from 3.11, with isobox-init in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy: building writes beside the sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    left_out = shutil.ignore_patterns("*.so", "isobox-init", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", copy / "src", ignore=left_out)
    args = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(copy), str(copy)]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([sys.executable, "-m", "pip", *args], check=True, timeout=170, env=environment, stdout=-3)
    (path,) = copy.glob("*.whl")
    return zipfile.ZipFile(path)


def test_tag(wheel: zipfile.ZipFile) -> None:
    assert "-cp311-abi3-linux_" in str(wheel.filename)


def test_content(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {
        "isobox/py.typed",
        "isobox/_native/isobox-init",
        "isobox/_native/_isobox.abi3.so",
        "isobox/security/default_seccomp.json",
    } <= names
    assert not [name for name in names if name.endswith((".c", ".h", ".o"))]
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_init_is_static_and_small(wheel: zipfile.ZipFile) -> None:
    info = wheel.getinfo("isobox/_native/isobox-init")
    assert info.external_attr >> 16 & 0o111, "executable"
    assert info.file_size < 64 * 1024
    program = wheel.read(info)
    assert program[:4] == b"\x7fELF"
    assert b"ld-linux" not in program
    assert b"GLIBC" not in program


def test_license_and_entry_point(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()
    (entry,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "isobox = isobox.cli:main" in wheel.read(entry).decode()
