"""The machine itself: its disks, its memory, its log, its processes, its settings, its keys."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import isobox
from isobox import Container
from isobox.security import paths
from programs import ROOT, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

REAL_ROOT = ROOT and not isobox.host.features().in_user_namespace

# Disks and memory

OPENED = """
import os, sys
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        print(path)
    except OSError:
        pass
"""

NODES = """
import os, stat, sys
for number, text in enumerate(sys.argv[2:]):
    kind, major, minor = text.split(":")
    path = f"{sys.argv[1]}/node-{number}"
    try:
        kind = stat.S_IFBLK if kind == "b" else stat.S_IFCHR
        os.mknod(path, kind | 0o666, os.makedev(int(major), int(minor)))
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            print(text)
        finally:
            os.unlink(path)
    except OSError:
        pass
"""


def numbers() -> list[str]:
    """Every disk and part of one, and the memory of the machine: "b:254:0"."""
    disks = [f"b:{name}" for name in os.listdir("/sys/dev/block")][:8]
    return [*disks, "c:1:1", "c:1:2", "c:1:4", "c:1:11"]


def test_disks_and_memory_by_their_numbers(box: Container, tmp_path: Path) -> None:
    """Make a node of one's own for a disk or for /dev/mem, and open it. On the host, as root, that works."""
    attack = python(NODES, str(tmp_path), *numbers())
    if REAL_ROOT:
        done = subprocess.run(attack, capture_output=True, text=True, check=True)
        if not done.stdout:
            pytest.skip(f"{tmp_path} is mounted nodev")
    more: list[dict[str, Any]] = [{}, {"cap_add": ["ALL"], "seccomp": None}]
    if REAL_ROOT:
        more += [{"userns": "host"}, {"userns": "host", "cap_add": ["SYS_ADMIN"]}]
    for options in more:
        with Container(**options) as container:
            sh(container, f"mkdir -p {tmp_path}")
            for place in (str(tmp_path), "/tmp", "/dev/shm", "/dev"):
                assert said(container, python(NODES, place, *numbers())) == "", (options, place)


MEMORY = ("/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/proc/kmsg", "/proc/kpageflags")
DISKS = tuple(f"/dev/{line.split()[3]}" for line in Path("/proc/partitions").read_text().splitlines()[2:])


def test_disks_and_memory_by_their_names(box: Container) -> None:
    attack = python(OPENED, *MEMORY, *DISKS)
    if REAL_ROOT:
        assert subprocess.run(attack, capture_output=True, check=True).stdout
    assert said(box, attack) == ""


LOG = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("read" if libc.klogctl(3, ctypes.create_string_buffer(4096), 4096) >= 0 else "refused")
"""


def test_the_kernel_s_log(box: Container) -> None:
    """syslog(2), which dmesg asks. Only the machine's root can have the wall down."""
    if REAL_ROOT:
        with Container(userns="host", cap_add=["SYSLOG"]) as container:
            assert said(container, python(LOG)).strip() == "read"
    assert said(box, python(LOG)).strip() == "refused"


# Processes

FIND = """
import os, sys
word, found = sys.argv[1].encode(), set()
for name in filter(str.isdigit, os.listdir("/proc")):
    if int(name) == os.getpid():
        continue
    for what in ("cmdline", "environ", "comm"):
        try:
            with open(f"/proc/{name}/{what}", "rb") as file:
                if word in file.read():
                    found.add(what)
        except OSError:
            pass
    try:
        if os.path.exists(f"/proc/{name}/root{sys.argv[2]}"):
            found.add("root")
    except OSError:
        pass
print(*sorted(found))
"""


def test_processes_of_the_host(box: Container, tmp_path: Path) -> None:
    """What they were started with, and their files by /proc/PID/root. A program outside sees all of it."""
    word = f"isobox-word-{os.getpid()}"
    (tmp_path / "file").write_text("")
    attack = python(FIND, word, str(tmp_path / "file"))
    code = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, word], env={"WORD": word}) as process:
        done = subprocess.run(attack, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["cmdline", "environ", "root"]
        assert said(box, attack).strip() == ""
        process.kill()
    listed = sh(box, "cd /proc && ls -d [0-9]* | wc -l")
    assert int(listed) < 8


# Settings, and what /proc and /sys tell

SETTINGS = [
    f"/proc/sys/{name}"
    for name in (
        "kernel/core_pattern kernel/modprobe kernel/hostname kernel/panic kernel/sysrq kernel/dmesg_restrict "
        "kernel/randomize_va_space kernel/keys/maxkeys vm/drop_caches vm/overcommit_memory fs/file-max "
        "fs/binfmt_misc/register fs/suid_dumpable user/max_user_namespaces"
    ).split()
]
"""Not kernel/pid_max, which is each PID namespace's own on newer kernels."""

WRITABLE = """
import os, sys
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_WRONLY))  # nothing is written
        print(path)
    except OSError:
        pass
"""


def test_settings_of_the_machine(box: Container) -> None:
    """With /proc/sys/kernel/core_pattern and its like the kernel runs a program on the host."""
    files = [*SETTINGS, "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/sys/power/state"]
    attack = python(WRITABLE, *files)
    if REAL_ROOT:
        outside = subprocess.run(attack, capture_output=True, text=True, check=True)
        assert "/proc/sys/kernel/core_pattern" in outside.stdout
    for options in ({}, {"userns": "host"}) if ROOT else ({},):
        with Container(**options) as container:
            found = set(said(container, attack).split())
            assert found <= {"/proc/sys/kernel/hostname"}  # of its own UTS namespace


def test_nothing_below_sys_is_written(box: Container) -> None:
    """Kernel file systems below /sys (debugfs, tracefs, securityfs, bpffs, pstore) aren't there at all."""
    assert "/sys/" not in sh(box, "awk '$2 ~ \"^/sys/(kernel|fs)/\" {print $2}' /proc/self/mounts")
    code = """
import os
for path, folders, names in os.walk("/sys/kernel"):
    for name in names:
        try:
            os.close(os.open(f"{path}/{name}", os.O_WRONLY))
            print(path, name)
        except OSError:
            pass
print(os.listdir("/sys/kernel/debug") if os.path.exists("/sys/kernel/debug") else [])
print(os.listdir("/sys/fs/cgroup") if os.path.exists("/sys/fs/cgroup") else [])
"""
    assert said(box, python(code)) == "[]\n[]\n"


@pytest.mark.requires("root")
def test_what_is_masked_says_nothing() -> None:
    """In a container whose root is the host's, where nothing else stands before these."""
    with Container(userns="host") as container:
        for path in paths.MASKED:
            if os.path.isfile(path):
                assert sh(container, f"cat {path}") == "", path
            elif os.path.isdir(path):
                assert sh(container, f"ls -A {path}") == "", path


# Keys

KEYS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
keyctl, add_key = (250, 248) if os.uname().machine == "x86_64" else (219, 217)
def call(*args):
    return libc.syscall(*(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args))
"""

READ_KEY = f"""{KEYS}
found = call(keyctl, 10, -3, b"user", b"isobox-test", 0)  # KEYCTL_SEARCH in the session's keyring
text = ctypes.create_string_buffer(64)
if found > 0:
    call(keyctl, 11, found, text, 64)  # KEYCTL_READ
print(text.value.decode() or "refused")
"""

WITH_A_KEY = f"""{KEYS}
import subprocess, sys
import isobox
if call(keyctl, 1, 0) < 0 or call(add_key, b"user", b"isobox-test", b"of the host", 11, -3) < 0:
    sys.exit(77)
attack = sys.argv[1:]
print(subprocess.run(attack, capture_output=True, text=True, check=True).stdout.strip())
for options in ({{}}, {{"seccomp": None}}):
    with isobox.Container(**options) as container:
        print(container.exec(attack, text=True, check=True).stdout.strip())
"""


def test_keys_of_the_caller() -> None:
    """A session's keyring is handed on to children, which read the keys out of it: outside, that works. The
    filter closes the calls; and a container has a keyring of its own.
    """
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_KEY, *python(READ_KEY)], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77:
        pytest.skip("no keyrings here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["of the host", "refused", "refused"]


# Core dumps

CRASH = """
import ctypes, os, resource
try:
    resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
except ValueError:
    pass
ctypes.string_at(0)
"""


def test_a_crash_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No dump by default. Where the limit lets there be one it is written inside, where the program was, and
    not where the caller is.

    With a pipe in core_pattern the kernel starts that program on the host, for all containers alike: that is
    a setting of the machine's.
    """
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")) or resource.getrlimit(resource.RLIMIT_CORE)[1] != -1:
        pytest.skip(f"dumps go to {pattern or 'nowhere'}")
    monkeypatch.chdir(tmp_path)
    for rlimits, dumps in (({"core": "unlimited"}, "1"), ({}, "0")):
        with Container(workdir="/tmp", rlimits=rlimits) as container:
            assert container.exec(python(CRASH)).returncode == -signal.SIGSEGV
            assert sh(container, "ls /tmp | wc -l").strip() == dumps
    assert os.listdir(tmp_path) == []
