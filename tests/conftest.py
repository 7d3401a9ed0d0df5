"""What every test shares: `@pytest.mark.requires("overlay", ...)`, and hypothesis without a clock."""

from __future__ import annotations

import signal

import hypothesis
import pytest

import requirements
from patience import patient

# A loaded machine is no bug, so no deadlines; nothing is written into the checkout.
hypothesis.settings.register_profile(
    "isobox",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("isobox")


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout's own
def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in the background has Ctrl-C ignored, and so would the programs that tests send one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("timeout") is None:
        config.option.timeout = patient(float(config.getini("timeout")))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires"):
        reason = requirements.obstacle(marker.args)
        if reason:
            pytest.skip(reason)
