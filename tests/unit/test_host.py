"""Facts of the host: against the kernel itself where it can be asked another way."""

from __future__ import annotations

import doctest
import os
import pickle
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

import hosts
from isobox import host, idmap
from isobox.host import HostFeatures
from isobox.idmap import IdRange
from isobox.kernel import SINCE, parse_release

FACTS = sorted(
    name for name in dir(HostFeatures) if not name.startswith("_") and name not in ("since", "why")
)


def test_doctests() -> None:
    assert doctest.testmod(host).failed == 0


def test_cached_and_frozen() -> None:
    found = host.features()
    assert host.features() is found
    with pytest.raises(FrozenInstanceError):
        found.uid = 7  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(found)) == found


def test_basic_facts_are_the_kernels() -> None:
    found = host.features()
    assert found.release == platform.release() and found.machine == platform.machine()
    assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
    assert found.kernel == tuple(int(part) for part in platform.release().split(".")[:2])
    assert found.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.cpus == os.sched_getaffinity(0)
    assert found.swap == 1024 * sum(
        int(line.split()[2]) for line in Path("/proc/swaps").read_text().splitlines()[1:]
    )


@pytest.mark.parametrize("name", FACTS)
def test_every_fact_answers_and_says_why_not(name: str) -> None:
    found = host.features()
    value = getattr(found, name)
    reason = found.why(name)
    if value is False and name not in (
        "no_new_privs",
        "filtered",
        "in_user_namespace",
        "apparmor_restricted",
    ):
        assert reason, f"{name} is false and nobody knows why"
    if value:
        assert reason == ""


def test_unknown_fact() -> None:
    with pytest.raises(AttributeError):
        host.features().why("teleport")


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-18-amd64", (6, 1)),
        ("5.15.167.4-microsoft-standard-WSL2", (5, 15)),
        ("4.18", (4, 18)),
        ("x", (0, 0)),
    ],
)
def test_release(release: str, version: tuple[int, int]) -> None:
    assert parse_release(release) == version


def test_an_old_kernel_says_what_it_lacks() -> None:
    old = evolve(host.features(), kernel=(5, 4), release="5.4.0-1")
    assert old.open_tree and not old.openat2 and not old.overlay and not old.lowerdir_plus
    assert old.why("lowerdir_plus") == "overlay layers given one by one need Linux 6.8, this is 5.4.0-1"
    assert "5.11" in old.why("overlay")
    for name in SINCE.keys() - old.unanswered:  # these the kernel may be built without
        assert evolve(old, kernel=SINCE[name][0]).since(name)
        elsewhere = ("idmapped_", "landlock_")  # it takes more than the version
        assert evolve(old, kernel=SINCE[name][0]).why(name) == "" or name.startswith(elsewhere)
        assert "5.4.0-1" in evolve(old, kernel=(0, 0)).why(name)
        assert (
            not evolve(old, kernel=(SINCE[name][0][0], SINCE[name][0][1] - 1)).since(name)
            or SINCE[name][0][1] == 0
        )


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict_unprivileged_userns is 1"),
        ("kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone is 0"),
        ("user/max_user_namespaces", "0", "max_user_namespaces is 0"),
    ],
)
def test_what_keeps_ordinary_users_out(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, words: str
) -> None:
    # Settings of the whole machine: what they would say is given, not set.
    real = idmap.sysctl
    monkeypatch.setattr("isobox.idmap.sysctl", lambda name: value if name == setting else real(name))
    found = evolve(host.features(), uid=1000, gid=1000, capabilities=0)
    assert not found.user_namespaces and words in found.why("user_namespaces")
    assert not found.overlay and words in found.why("overlay")
    as_root = evolve(found, uid=0)
    assert as_root.user_namespaces == (setting != "user/max_user_namespaces")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert setting.replace("/", ".") in idmap.hint(1)


def test_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    user = evolve(host.features(), uid=12345, gid=12345, capabilities=0)
    assert user.subuids == () and not user.id_ranges
    assert "/etc/subuid" in user.why("id_ranges")
    some = (IdRange(100000, 65536),)
    monkeypatch.setattr("isobox.idmap.read_user_ranges", lambda uid: (some, some))
    monkeypatch.setattr("isobox.idmap.newuidmap_programs", lambda: ("/n/newuidmap", "/n/newgidmap"))
    user = evolve(user, no_new_privs=False)
    assert user.id_ranges and user.why("id_ranges") == ""
    locked = evolve(user, no_new_privs=True)
    assert not locked.newuidmap and not locked.id_ranges
    assert "no_new_privs" in locked.why("id_ranges")
    monkeypatch.setattr("isobox.idmap.newuidmap_programs", lambda: None)
    assert "not installed" in evolve(user, no_new_privs=False).why("id_ranges")


@pytest.mark.requires("root")
def test_facts_are_those_of_the_present_user() -> None:
    """A process that gives up root gets new facts."""
    code = """
import os
from isobox import host
assert host.features().is_root
os.setresgid(4242, 4242, 4242); os.setresuid(4242, 4242, 4242)
assert host.features().uid == 4242 and not host.features().is_root
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_facts_of_a_start_are_cheap() -> None:
    code = """
import sys
from isobox import host
before = set(sys.modules)
found = host.features()
found.is_root, found.lowerdir_plus, found.memfd_exec, found.user_namespaces
assert not set(sys.modules) - before, set(sys.modules) - before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_about_hosts_is_what_was_found() -> None:
    """Written by `make hosts`, and compared on each host by tests/kernel/test_features.py."""
    assert hosts.PAGE.read_text() == hosts.page()


def test_the_page_about_kernels_has_every_fact() -> None:
    """The table is `SINCE`, in its order; and the versions of its first lines are those that are refused."""
    page = (Path(__file__).parents[2] / "docs/reference/kernels.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [(name.strip("`"), version, what) for name, version, what, *_ in rows] == [
        (name, f"{major}.{minor}", what)
        for name, ((major, minor), what) in sorted(SINCE.items(), key=lambda entry: entry[1][0])
    ]
    assert all(len(row) == 5 and all(row) for row in rows)
    assert f"needs **Linux 5.{SINCE['overlay_in_userns'][0][1]}**" in page
