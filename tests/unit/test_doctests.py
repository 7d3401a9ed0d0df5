"""The examples in docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import isobox
import requirements

NEEDS_LIMITS = {"isobox", "isobox.container"}  # their examples ask for memory and CPU
MODULES = ["isobox"] + [
    module.name
    for module in pkgutil.walk_packages(isobox.__path__, "isobox.")
    if not module.name.endswith(("._native.build", "._isobox", ".__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    if name in NEEDS_LIMITS and (
        reason := requirements.obstacle(["cgroup_cpu", "cgroup_memory", "cgroup_pids"])
    ):
        pytest.skip(reason)
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not failed
