"""What a test needs of its host, by the facts of `isobox.host.features()`.

A test is skipped where the host lacks one. With ISOBOX_MUST_WORK=1 (CI) that is a failure instead, but for
the facts and programs in ISOBOX_MAY_LACK, a list with commas. "root" and "ordinary_user" are about who runs
the tests, "systemd" about what started the machine: never a failure. A name that `host` does not know is an
error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import NoReturn

import pytest

WHO = {"root": os.geteuid() == 0, "ordinary_user": os.geteuid() != 0}
KINDS = ("systemd",)


def obstacle(names: Iterable[str]) -> str:
    """Why a test that needs these is skipped, or "". Fails the test where it must not be skipped."""
    may_lack = set(filter(None, os.environ.get("ISOBOX_MAY_LACK", "").split(",")))
    for name in names:
        if name in WHO:
            if not WHO[name]:
                return f"for {name} only"
            continue
        reason = lacking(name)
        if not reason:
            continue
        if os.environ.get("ISOBOX_MUST_WORK") == "1" and name not in may_lack and name not in KINDS:
            pytest.fail(f"{reason} (and ISOBOX_MUST_WORK=1)", pytrace=False)
        return reason
    return ""


def lacking(name: str) -> str:
    """Why this host lacks a feature, or "" where it is there."""
    from isobox import host

    features = host.features()
    if not hasattr(features, name):
        raise LookupError(f"requires({name!r}): isobox.host.features() knows no such fact")
    if getattr(features, name):
        return ""
    why = features.why(name)
    return f"this host lacks {name}" + (f": {why}" if why else "")


def program(name: str) -> str:
    """Return the path of a program that a test runs; without it, the test is skipped, or fails as above."""
    return shutil.which(name) or refuse(name, f"there is no {name} here")


def refuse(name: str, reason: str) -> NoReturn:
    """Skip the test for want of `name`, which is no feature of the host; or fail it, as above."""
    may_lack = os.environ.get("ISOBOX_MAY_LACK", "").split(",")
    if os.environ.get("ISOBOX_MUST_WORK") == "1" and name not in may_lack:
        pytest.fail(f"{reason} (and ISOBOX_MUST_WORK=1)", pytrace=False)
    pytest.skip(reason)
