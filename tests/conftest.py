"""What every test shares: `@pytest.mark.requires("overlay", ...)`, and hypothesis without a clock.

A test says which facts of `isobox.host.features()` it needs and is skipped where the host lacks one.
With ISOBOX_MUST_WORK=1 (CI) that is a failure instead, but for the facts in ISOBOX_MAY_LACK, a list
with commas. "root" and "ordinary_user" are about who runs the tests, and never a failure.
"""

from __future__ import annotations

import os

import hypothesis
import pytest

# A loaded machine is no bug, so no deadlines; nothing is written into the checkout.
hypothesis.settings.register_profile(
    "isobox",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("isobox")

WHO = {"root": os.geteuid() == 0, "ordinary_user": os.geteuid() != 0}


def lacking(name: str) -> str | None:
    """Why this host lacks a feature, or None where it is there. An unknown name is an error."""
    from isobox import host

    features = host.features()
    if not hasattr(features, name):
        raise LookupError(f"requires({name!r}): isobox.host.features() knows no such fact")
    if getattr(features, name):
        return None
    why = getattr(features, "why", None)
    reason = why(name) if callable(why) else ""
    return f"this host lacks {name}" + (f": {reason}" if reason else "")


def pytest_runtest_setup(item: pytest.Item) -> None:
    may_lack = set(filter(None, os.environ.get("ISOBOX_MAY_LACK", "").split(",")))
    for marker in item.iter_markers("requires"):
        for name in marker.args:
            if name in WHO:
                if not WHO[name]:
                    pytest.skip(f"for {name} only")
                continue
            reason = lacking(name)
            if reason is None:
                continue
            if os.environ.get("ISOBOX_MUST_WORK") == "1" and name not in may_lack:
                pytest.fail(f"{reason} (and ISOBOX_MUST_WORK=1)", pytrace=False)
            pytest.skip(reason)
