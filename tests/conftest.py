"""What every test shares: `@pytest.mark.requires("overlay", ...)`, and hypothesis without a clock."""

from __future__ import annotations

import hypothesis
import pytest

import requirements

# A loaded machine is no bug, so no deadlines; nothing is written into the checkout.
hypothesis.settings.register_profile(
    "isobox",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("isobox")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires"):
        reason = requirements.obstacle(marker.args)
        if reason:
            pytest.skip(reason)
