"""Kernels without one of the newer system calls, and seccomp filters that hide it: what then.

`older.LANES` says which calls go. What isobox can do without works all the same; for the others there is an
`UnsupportedError` that names the version, before anything is made.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from older import LANES

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

NEEDED = {
    "pidfd_open": "5.3",
    "open_tree": "5.2",
    "move_mount": "5.2",
    "fsopen": "5.2",
    "fsconfig": "5.2",
    "fsmount": "5.2",
    "openat2": "5.6",
}
"""The lanes without a stand-in, and the version that has the call."""

STAND_IN = sorted(LANES.keys() - NEEDED.keys())
FOLDERS = {"mount_setattr", "linux-5.10"}
"""Those where folders of the host have no owners in root's containers."""

TESTS = str(Path(__file__).parents[1])

BEGINNING = f"""
import json, os, sys
sys.path.insert(0, {TESTS!r})
import older
lane, code = sys.argv[1], int(sys.argv[2])
if lane:
    older.install([missing._replace(code=code or missing.code) for missing in older.LANES[lane]])
import isobox, leftovers
from isobox import Container, Mount
found = {{}}
"""

REFUSED = """
before = leftovers.count()
for number, attempt in enumerate((lambda: isobox.run(["true"]), lambda: Container().start())):
    try:
        attempt()
    except isobox.UnsupportedError as error:
        found[number] = [error.feature, error.why, error.remedy]
item = isobox.doctor()["kernel"]
found["doctor"] = [item.status, item.why, item.remedy]
found["left"] = before.changes(leftovers.count())
print(json.dumps(found))
"""

WORKS = r'''
SEEN = """
cat /proc/self/mountinfo
for folder in /dev /sys /mnt/dev/shm /mnt/dev; do touch $folder/isobox-older; done
ls /proc/self/fd
"""
with leftovers.nothing_left():
    came_along = os.dup2(0, 200)  # far from the numbers that isobox-init has
    mounts = [Mount.bind("/dev", "/mnt/dev", read_only=True)]
    for network in ("none", "host"):
        with Container(mounts=mounts, network=network) as box:
            said = box.exec(["sh", "-c", SEEN], text=True)
            lines = [line.split(" - ")[0].split() for line in said.stdout.splitlines() if " - " in line]
            found[network] = {
                # Of two mounts on one place the later, which covers the other.
                "mounts": {line[4]: line[5] for line in lines},
                "said": said.stderr,
                "descriptors": sorted(line for line in said.stdout.splitlines() if line.isdigit()),
                "measured": box.exec(["true"], measure=False).returncode,
            }
    os.close(came_along)
    report = isobox.doctor()
    found["ok"] = report.ok
    found["doctor"] = report["kernel"].status
    if os.geteuid() == 0:
        try:
            isobox.run(["true"], mounts=[Mount.bind("/usr", "/mnt/usr")])
        except isobox.UnsupportedError as error:
            found["folder"] = str(error)
if os.path.exists("/dev/shm/isobox-older"):
    os.unlink("/dev/shm/isobox-older")
print(json.dumps(found))
'''


def run(program: str, lane: str, code: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-c", BEGINNING + program, lane, str(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("lane", NEEDED)
def test_the_error_names_the_version(lane: str, code: int) -> None:
    if code == errno.EPERM and os.geteuid() and lane in ("move_mount", "fsopen", "fsmount"):
        pytest.skip("an ordinary user is told so by every kernel")
    found = run(REFUSED, lane, code)
    for way in ("0", "1"):
        feature, why, remedy = found[way]
        assert f"Linux {NEEDED[lane]} or newer" in why and "seccomp" in why
        assert feature == "kernel" and ("descriptors of processes" if lane == "pidfd_open" else "call") in why
        assert "newer kernel" in remedy and "seccomp=unconfined" in remedy
    status, why, remedy = found["doctor"]
    assert status == "missing" and f"Linux {NEEDED[lane]}" in why and remedy
    assert found["left"] == []


LANDLOCK = """
rules = {"write": ["/tmp"], "connect_tcp": [443], "ioctl_dev": [], "scope": ["signal"]}
for name, value in rules.items():
    try:
        isobox.run(["true"], landlock=isobox.Landlock(**{name: value}))
    except isobox.UnsupportedError as error:
        found[name] = [error.feature, error.why, error.remedy]
found["without"] = isobox.run(["true"], network="host").returncode
item = isobox.doctor()["landlock"]
found["doctor"] = [item.status, item.why, item.remedy]
facts = isobox.host.features()
found["facts"] = [facts.landlock, facts.landlock_paths, facts.landlock_scopes, facts.why("landlock_scopes")]
print(json.dumps(found))
"""


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP], ids=errno.errorcode.get)
@pytest.mark.parametrize("lane", ["landlock", "linux-5.10"])
def test_rules_of_landlock_are_refused(lane: str, code: int) -> None:
    """EOPNOTSUPP: it is built in, but switched off."""
    if lane == "linux-5.10" and code != errno.ENOSYS:
        pytest.skip("such a kernel has none of its calls")
    found = run(LANDLOCK, lane, code)
    for name, version in (("write", "6.2"), ("connect_tcp", "6.7"), ("ioctl_dev", "6.10"), ("scope", "6.12")):
        feature, why, remedy = found[name]
        assert feature == f"landlock.{name}" and f"Linux {version}" in why and f"Linux {version}" in remedy
        assert "lsm=" in remedy and name in remedy
    assert found["without"] == 0
    status, why, remedy = found["doctor"]
    assert status == "missing" and "Landlock" in why and "6.12" in remedy
    assert ("lsm=" in why) == (code == errno.EOPNOTSUPP)
    assert found["facts"][:3] == [False] * 3 and found["facts"][3]


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    found = run(WORKS, "")
    for network in ("none", "host"):
        seen = found[network]
        assert seen["said"].count("Read-only file system") == 4
        assert seen["mounts"]["/mnt/dev/shm"].startswith("ro,")
        assert seen["descriptors"] == ["0", "1", "2", "3"] and seen["measured"] == 0  # 3: the listing
    return found


@pytest.mark.parametrize("lane", STAND_IN)
def test_the_stand_in_does_the_same(lane: str, usual: dict[str, Any]) -> None:
    """The same mounts with the same options, nothing to write to, no descriptor that came along."""
    found = run(WORKS, lane)
    for network in ("none", "host"):
        assert found[network] == usual[network]
    assert found["ok"]
    assert found["doctor"] == ("degraded" if lane in FOLDERS else usual["doctor"])
    if lane in FOLDERS and os.geteuid() == 0:
        assert "idmapped" in found["folder"] and "Linux 5." in found["folder"]
    else:
        assert found.get("folder") == usual.get("folder")
