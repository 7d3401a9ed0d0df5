"""Images beyond this machine: a store of the test's own, and a real registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from isobox.shared import shared
from others import Podman
from programs import ROOT
from registry import Registry, running_registry
from requirements import obstacle


@pytest.fixture(scope="session", autouse=True)
def made_first() -> None:
    """What a process's containers share is made before a test changes where its state lies."""
    shared()


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own, and no login of whoever runs the tests."""
    monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    return tmp_path / "data"


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One for all tests: anybody may do anything, over HTTP. Each test has names of its own in it."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def podman() -> Iterator[Podman]:
    if not ROOT and (reason := obstacle(["newuidmap", "id_ranges"])):
        pytest.skip(f"podman unpacks images with a range of ids only: {reason}")
    made = Podman()
    try:
        yield made
    finally:
        made.close()
