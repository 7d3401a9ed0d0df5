"""Whose processes may be moved on cgroup v2, where a group that holds some gives out no resources."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

import isobox

pytestmark = [
    pytest.mark.requires("root", "cgroups"),
    pytest.mark.skipif(isobox.host.features().cgroup_layout != "v2", reason="v1 has no such rule"),
]

# In a group of its own, which it sees as the topmost one, as the first program of an outer container does.
ENTER = """
echo $$ > "$1/cgroup.procs"
shift
exec unshare --cgroup --mount sh -ec '
    umount --lazy /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    exec "$@"' sh "$@"
"""

RUN = """
import isobox
try:
    print(isobox.run(["true"], memory="64M").reason)
except isobox.UnsupportedError as error:
    print(error)
print(isobox.doctor()["memory limit"].remedy)
print(open("/proc/self/cgroup").read().strip())
"""


@pytest.fixture
def group() -> Iterator[str]:
    path = f"/sys/fs/cgroup/isobox-test-{os.getpid()}"
    os.mkdir(path)
    try:
        with open("/sys/fs/cgroup/cgroup.controllers") as file:
            wanted = " ".join(f"+{name}" for name in file.read().split() if name in ("cpu", "memory", "pids"))
        with open("/sys/fs/cgroup/cgroup.subtree_control", "w") as file:
            file.write(wanted)
        yield path
    finally:
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)


def inside(group: str, **environment: str) -> list[str]:
    done = subprocess.run(
        ["sh", "-c", ENTER, "sh", group, sys.executable, "-c", RUN],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_nothing_is_moved_unasked(group: str) -> None:
    said, remedy, where = inside(group)
    assert said.startswith("memory limit: /sys/fs/cgroup holds processes")
    assert remedy in said and "ISOBOX_MOVE_PROCESSES=1" in remedy
    assert where == "0::/"


def test_moved_when_asked(group: str) -> None:
    said, remedy, where = inside(group, ISOBOX_MOVE_PROCESSES="1")
    assert (said, remedy, where) == ("exited", "", "0::/isobox-host")
