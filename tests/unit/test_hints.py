"""What a host refuses to every container, where no test can make the host: one without overlays, say."""

from __future__ import annotations

import errno

import attrs
import pytest

from isobox import hints, host
from isobox.hints import unsupported


def on(monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int], filesystems: frozenset[str]) -> None:
    made = attrs.evolve(host.features(), kernel=kernel, release="{}.{}.0".format(*kernel))
    made.__dict__["filesystems"] = filesystems
    monkeypatch.setattr(hints, "features", lambda: made)


def test_a_kernel_without_overlays(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (6, 1), frozenset({"tmpfs"}))
    error = unsupported("FSOPEN", errno.ENODEV, "overlay")
    assert error is not None and (error.feature, "modprobe overlay" in error.remedy) == ("overlay", True)


def test_a_kernel_without_overlays_in_user_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (5, 10), frozenset({"overlay"}))
    error = unsupported("FSMOUNT", errno.EPERM, "overlay")
    assert error is not None and error.feature == "overlay"
    assert "need Linux 5.11, this is 5.10.0" in error.why and "boot Linux 5.11" in error.remedy


def test_a_filter_that_forbids_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (6, 1), frozenset({"overlay"}))
    error = unsupported("FSOPEN", errno.EPERM, "overlay")
    assert error is not None and "seccomp filter" in error.remedy


@pytest.mark.parametrize(
    ("where", "number", "what"),
    [
        ("clone", errno.EAGAIN, ""),
        ("clone", errno.EINVAL, ""),
        ("uid_map", errno.EINVAL, ""),
        ("FSMOUNT", errno.ENOMEM, "proc"),
        ("ATTACH", errno.EPERM, ""),
    ],
)
def test_what_is_no_matter_of_the_host(where: str, number: int, what: str) -> None:
    assert unsupported(where, number, what) is None
