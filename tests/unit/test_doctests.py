"""The examples in docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import isobox
import requirements
from isobox.shared import shared

LIMITS = ["cgroup_cpu", "cgroup_memory", "cgroup_pids"]
NEEDS = {
    "isobox": LIMITS,
    "isobox.container": [*LIMITS, "host_folders"],
}
MODULES = ["isobox"] + [
    module.name
    for module in pkgutil.walk_packages(isobox.__path__, "isobox.")
    if not module.name.endswith(("._native.build", "._isobox", ".__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = requirements.obstacle(NEEDS.get(name, ()))
    if reason:
        pytest.skip(reason)
    shared()  # made before its place changes
    monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "data"))
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not failed
