"""What a process's containers share is made before a test changes where its state lies."""

from __future__ import annotations

import pytest

from isobox.shared import shared


@pytest.fixture(scope="session", autouse=True)
def made_first() -> None:
    """Tests of the doctor set ISOBOX_STATE_DIR for a while; the shared parts would stay there."""
    shared()
