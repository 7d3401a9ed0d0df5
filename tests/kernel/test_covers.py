"""What a container does not see of the host's kernel, or can't write: paths, sysctls, keyrings, core dumps.

Each wall is taken down once, to see that the look through it would have told something.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isobox import Container
from isobox.security import capabilities, paths
from programs import ROOT, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

DEFAULT = paths.covers(own_userns=True, capabilities=capabilities.DEFAULT)
EVERY = paths.covers(own_userns=False, capabilities=capabilities.DEFAULT)
UNCOVERED: dict[str, Any] = {"cap_add": ["SYS_ADMIN"]}
"""A program that may mount could take the covers off: such a container has none."""

SIZES = """
import os, sys
for path in sys.argv[1:]:
    if os.path.isdir(path):
        print(path, len(os.listdir(path)))
    else:
        with open(path, "rb") as file:
            print(path, len(file.read(65536)))
"""

KEYCTL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
SESSION, SEARCH, JOIN_SESSION_KEYRING = -3, 10, 1
if sys.argv[1] == "add":
    assert libc.syscall(number[1], JOIN_SESSION_KEYRING, 0) > 0, ctypes.get_errno()
    assert libc.syscall(number[0], b"user", b"isobox-test", b"secret", 6, SESSION) > 0, ctypes.get_errno()
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
print(libc.syscall(number[1], SEARCH, SESSION, b"user", b"isobox-test", 0) > 0)
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container() as container:
        yield container


@pytest.fixture(scope="module")
def uncovered() -> Iterator[Container]:
    with Container(**UNCOVERED) as container:
        yield container


def sizes(container: Container, names: list[str]) -> dict[str, int]:
    lines = said(container, python(SIZES, *names)).splitlines()
    return {path: int(size) for path, size in map(str.split, lines)}


def test_what_is_masked_is_empty(box: Container, uncovered: Container) -> None:
    names = [path for path, _ in DEFAULT.masked]
    assert "/proc/interrupts" in names
    assert not any(sizes(box, names).values())
    told = sizes(uncovered, names)
    assert told["/proc/interrupts"]


def test_what_only_the_hosts_root_may_read_needs_no_cover(box: Container) -> None:
    masked = {path for path, _ in DEFAULT.masked}
    rest = [path for path, _ in EVERY.masked if path not in masked]
    script = 'for path; do ! cat "$path" >/dev/null 2>&1 || echo "$path"; done'
    assert said(box, ["sh", "-c", script, "sh", *rest]) == ""


@pytest.mark.skipif(not ROOT, reason="for root only")
def test_without_a_user_namespace_everything_is_covered() -> None:
    with Container(userns="host") as container:
        assert not any(sizes(container, [path for path, _ in EVERY.masked]).values())
        for path in EVERY.read_only:
            assert "[" not in path
            assert sh(container, f"[ -w {path} ] || echo no") == "no\n"


def test_no_sysctl_is_written() -> None:
    """Not even those of its own namespaces, which an administrator of the network there may set otherwise."""
    script = "echo 61 >/proc/sys/net/ipv4/ip_default_ttl; cat /proc/sys/net/ipv4/ip_default_ttl"
    with Container(cap_add=["NET_ADMIN", "SYS_ADMIN"]) as container:
        assert sh(container, script) == "61\n"
    with Container(cap_add=["NET_ADMIN"]) as container:
        assert container.exec(["sh", "-c", script], text=True).stdout == "64\n"


def test_the_covers_stay_on(box: Container) -> None:
    with Container(seccomp=None) as container:
        for tried in (box, container):
            result = tried.exec(["umount", "/proc/interrupts"], text=True)
            assert not result.ok
            assert not any(sizes(tried, ["/proc/interrupts"]).values())


@pytest.mark.parametrize("userns", ["auto", pytest.param("host", marks=pytest.mark.requires("root"))])
def test_the_session_keyring_is_its_own(userns: str) -> None:
    """keyrings(7): a child has its parent's otherwise, and may use the keys that are in it."""
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel has no keys")
    # In a program of its own, with a session keyring of its own: this one's stays as it is.
    program = f"""
import sys
from isobox import Container
with Container(seccomp=None, userns={userns!r}) as container:
    result = container.exec([sys.executable, "-I", "-S", "-c", {KEYCTL!r}, "look"], text=True, check=True)
    sys.stdout.write(result.stdout)
"""
    start = [sys.executable, "-c", KEYCTL, "add"]
    outside = subprocess.run([*start, "-c", KEYCTL, "look"], capture_output=True, text=True, check=True)
    assert outside.stdout == "True\n"
    inside = subprocess.run([*start, "-c", program], capture_output=True, text=True, check=False)
    assert inside.stdout == "False\n", inside.stderr


HARD_CORE = resource.getrlimit(resource.RLIMIT_CORE)[1]


@pytest.mark.skipif(not HARD_CORE, reason="this process may not raise its limit on core dumps")
def test_no_core_is_dumped_and_the_hosts_handler_gets_none(box: Container) -> None:
    """With a limit of 1 the kernel neither writes a file nor starts what core_pattern names: core(5)."""
    code = "import resource; print(*resource.getrlimit(resource.RLIMIT_CORE))"
    assert said(box, python(code)) == "1 1\n"
    crash = "cd /tmp; sh -c 'kill -SEGV $$'; ls"
    assert sh(box, crash) == ""
    with Container(rlimits={"core": "unlimited" if HARD_CORE < 0 else HARD_CORE}) as container:
        assert said(container, python(code)) == f"{HARD_CORE} {HARD_CORE}\n"
        if not Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
            assert sh(container, crash) != ""
