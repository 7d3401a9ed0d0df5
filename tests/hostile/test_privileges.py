"""Ways to more power than was given: capabilities, set-user-id files, cgroups, handles, tracing."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isobox
from isobox import Container
from programs import ROOT, python, said, sh

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

OTHER = "1000" if isobox.host.features().id_ranges or ROOT else None
"""A user inside who is not root; None where there is but one."""

BARE: dict[str, Any] = {"seccomp": None, "cap_add": ["ALL"]} | ({"userns": "host"} if ROOT else {})
"""Every wall taken down that this user can take down."""


@pytest.fixture(scope="module")
def bare(everything_is_given_back: None) -> Iterator[Container]:
    with Container(**BARE) as container:
        yield container


# cgroups

CGROUPS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
NEWUSER, NEWNS, NEWCGROUP = 0x10000000, 0x20000, 0x2000000
place = "/tmp/hierarchy"
os.makedirs(place, exist_ok=True)
def attempt():
    for controller in ("memory", "devices", "pids", "cpu", "rdma", "freezer"):
        if libc.mount(b"cgroup", place.encode(), b"cgroup", 0, controller.encode()) == 0:
            yield place
    if libc.mount(b"cgroup2", place.encode(), b"cgroup2", 0, None) == 0:
        yield place
    yield "/sys/fs/cgroup"
def reached():
    # What is opened is not written to: that would change the machine.
    for top in attempt():
        for path, folders, names in os.walk(top):
            for name in names:
                if name in ("release_agent", "notify_on_release", "cgroup.procs", "tasks", "devices.allow"):
                    try:
                        os.close(os.open(f"{path}/{name}", os.O_WRONLY))
                        return name
                    except OSError:
                        pass
    return ""
found = reached()
if not found and libc.unshare(NEWUSER | NEWNS | NEWCGROUP) == 0:
    found = reached()
print("reached" if found else "refused")
"""


@pytest.mark.requires("root", "cgroups")
def test_release_agent_works_where_it_is_let(bare: Container) -> None:
    if isobox.host.features().in_user_namespace:
        pytest.skip("nobody in a user namespace mounts cgroup v1")
    with Container(**BARE, namespaces={"cgroup": "host"}) as container:
        assert said(container, python(CGROUPS)).strip() == "reached"


def test_no_cgroup_is_reached(box: Container) -> None:
    """CVE-2022-0492 (https://nvd.nist.gov/vuln/detail/CVE-2022-0492): mount a hierarchy, in a user namespace
    of its own if need be, and have the kernel run release_agent on the host. Neither is given here: no
    mount, no new namespace, no hierarchy to begin with.
    """
    assert said(box, python(CGROUPS)).strip() == "refused"


# Capabilities that come along

STATUS = ["grep", "-E", "^Cap(Inh|Amb)|^NoNewPrivs", "/proc/self/status"]


def sets(text: str) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split(":")[1], 16) for line in text.splitlines()}


@pytest.mark.requires("root")
def test_inheritable_capabilities_of_the_caller_do_not_come_along() -> None:
    """CVE-2022-29162 (https://nvd.nist.gov/vuln/detail/CVE-2022-29162), CVE-2022-24769: inheritable
    capabilities let a program with file capabilities gain them as an ordinary user. A caller hands its own
    on to its children; not to those in a container.
    """
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    raised = ["setpriv", "--inh-caps=+net_raw,+sys_admin", "--ambient-caps=+net_raw"]
    twin = subprocess.run([*raised, *STATUS], capture_output=True, text=True, check=True)
    assert sets(twin.stdout)["CapInh"] and sets(twin.stdout)["CapAmb"]
    code = (
        "import isobox, sys\n"
        "with isobox.Container() as c:\n"
        "    for user in (None, '1000'):\n"
        f"        sys.stdout.write(c.exec({STATUS}, user=user, text=True, check=True).stdout)\n"
    )
    done = subprocess.run(
        [*raised, python("")[0], "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    for part in (lines[:3], lines[3:]):
        assert sets("\n".join(part)) == {"CapInh": 0, "CapAmb": 0, "NoNewPrivs": 1}


def test_no_capability_is_inheritable(box: Container, bare: Container) -> None:
    for container in (box, bare):
        for user in (None, OTHER):
            found = sets(said(container, STATUS, user=user))
            assert found == {"CapInh": 0, "CapAmb": 0, "NoNewPrivs": 1}


# Set-user-id programs


def setuid_copy(folder: Path) -> Path:
    program = folder / "as-root"
    shutil.copy(shutil.which("id") or "/usr/bin/id", program)
    program.chmod(0o4755)
    return program


@pytest.mark.requires("root")
def test_set_user_id_works_without_no_new_privs() -> None:
    """The wall taken down, outside of a container: with no_new_privs, the same program gains nothing."""
    with tempfile.TemporaryDirectory(prefix="isobox-test-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        program = str(setuid_copy(Path(folder)))
        other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if os.statvfs(folder).f_flag & os.ST_NOSUID:
            pytest.skip(f"{folder} is mounted nosuid")
        for more, uid in (([], "0"), (["--no-new-privs"], "65534")):
            done = subprocess.run([*other, *more, program, "-u"], capture_output=True, text=True, check=True)
            assert done.stdout.strip() == uid


@pytest.mark.requires("host_folders")
def test_set_user_id_gains_nothing(
    image: Path, host_programs: list[Any], box: Container, bare: Container
) -> None:
    """In the image; or made inside by root, for another user to run."""
    if OTHER is None:
        pytest.skip("one user only")
    setuid_copy(image)
    with Container(image, mounts=host_programs) as container:
        mode = said(container, ["stat", "-c", "%a %u", "/as-root"]).split()
        assert mode == ["4755", "0"]
        assert said(container, ["/as-root", "-u"], user=OTHER).strip() == OTHER
    for container in (box, bare):
        sh(
            container,
            "mkdir -p /tmp/set && cp $(command -v id) /tmp/set/as-root && chmod 4755 /tmp/set/as-root",
        )
        assert said(container, ["/tmp/set/as-root", "-u"], user=OTHER).strip() == OTHER


def test_what_root_inside_makes_is_not_root_s_outside() -> None:
    """A set-user-id file in the container's own layer, seen from the host: it is somebody unprivileged's.

    Only root has other users to be; without a user namespace, the wall taken down, it is the host's root's.
    """
    make = "cp $(command -v id) /set && chmod 4755 /set"
    for userns in ("auto", "host") if ROOT else ("auto",):
        with Container(upper="disk", userns=userns) as container:
            sh(container, make)
            with container.popen(["sleep", "60"]) as process:
                status = os.stat(f"/proc/{process.pid}/root/set")
                process.kill()
            assert status.st_mode & stat.S_ISUID
            if ROOT:
                assert (status.st_uid == 0) == (userns == "host")
            else:
                assert status.st_uid == os.getuid()


# Handles of files: what is not in sight is opened by its number


def handle_of(path: Path) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    if libc.name_to_handle_at(-100, os.fsencode(path), room, ctypes.byref(mount), 0):
        pytest.skip(f"no file handles here: {os.strerror(ctypes.get_errno())}")
    size = struct.unpack_from("I", room.raw)[0]
    return room.raw[: 8 + size]


BY_HANDLE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
handle = ctypes.create_string_buffer(bytes.fromhex(sys.argv[1]))
mount = os.open("/shown", os.O_RDONLY)
fd = libc.open_by_handle_at(mount, handle, os.O_RDONLY)
print(os.read(fd, 100).decode() if fd >= 0 else "refused")
"""


@pytest.mark.requires("host_folders")
def test_no_file_is_opened_by_its_handle(tmp_path: Path) -> None:
    """The attack "shocker" (https://github.com/gabrtv/shocker): open_by_handle_at opens any file of a file
    system of which one folder is bound in. The capability for it is not given, and counts for nothing in a
    user namespace, so that only root can take the wall down.
    """
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    shown.mkdir()
    hidden.write_text("of the host")
    handle = handle_of(hidden).hex()
    mounts = [f"{shown}:/shown:ro"]
    if ROOT and not isobox.host.features().in_user_namespace:
        with Container(mounts=mounts, userns="host", cap_add=["DAC_READ_SEARCH"]) as container:
            assert said(container, python(BY_HANDLE, handle)).strip() == "of the host"
    for options in ({}, {"cap_add": ["DAC_READ_SEARCH"]}):
        with Container(mounts=mounts, **options) as container:
            assert said(container, python(BY_HANDLE, handle)).strip() == "refused"


# New namespaces, mounts, and calls that programs have no use for

CALLS = {  # name: (x86-64, arm64, arguments that do no harm)
    "unshare": (272, 97, (0x10000000,)),  # CLONE_NEWUSER
    "setns": (308, 268, (-1, 0)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "open_tree": (428, 428, (-100, 0, 0)),
    "fsopen": (430, 430, (0, 0)),
    "bpf": (321, 280, (0, 0, 0)),
    "perf_event_open": (298, 241, (0, 0, 0, 0, 0)),
    "userfaultfd": (323, 282, (-1,)),
    "io_uring_setup": (425, 425, (0, 0)),
    "add_key": (248, 217, (0, 0, 0, 0, 0)),
    "keyctl": (250, 219, (-1, 0, 0, 0, 0)),
    "init_module": (175, 105, (0, 0, 0)),
    "kexec_load": (246, 104, (0, 0, 0, -1)),
    "quotactl": (179, 60, (-1, 0, 0, 0)),
    "syslog": (103, 116, (-1, 0, 0)),
}

MACHINES = ("init_module", "kexec_load", "syslog", "quotactl", "bpf", "perf_event_open")
"""The kernel itself refuses these to root of a user namespace."""

CALL = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
result = libc.syscall(*(ctypes.c_long(int(word)) for word in sys.argv[1:]))
print("done" if result >= 0 else errno.errorcode[ctypes.get_errno()])
"""


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_are_closed(name: str, box: Container, bare: Container) -> None:
    """Each is a way to much of the kernel's code. Without the filter, the wall here, the kernel answers
    itself, be it only that the arguments make no sense.
    """
    x86_64, arm64, args = CALLS[name]
    number = x86_64 if os.uname().machine == "x86_64" else arm64
    attack = python(CALL, *map(str, (number, *args)))
    assert said(box, attack).strip() in ("EPERM", "ENOSYS")
    answer = said(bare, attack).strip()
    if answer == "ENOSYS":
        pytest.skip(f"this kernel has no {name}")
    if answer == "EPERM" and not ROOT and name in MACHINES:
        pytest.skip(f"the kernel refuses {name} to all but the machine's root")
    assert answer != "EPERM"


# Tracing others

TRACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
print("traced" if libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0 else "refused")  # PTRACE_SEIZE
"""

OF_ROOT = """
import os, subprocess, sys
victim = subprocess.Popen(["sleep", "60"])
if sys.argv[2] != "0":
    os.setgroups([])
    os.setresgid(*[int(sys.argv[2])] * 3)
    os.setresuid(*[int(sys.argv[2])] * 3)
print(subprocess.run([*sys.argv[3:], str(victim.pid)], capture_output=True, text=True).stdout.strip())
"""


def test_others_processes_are_not_traced(box: Container) -> None:
    """One's own children can be, and that is what is tried first; not root's by another user, and nobody's
    outside, for which there is no number.
    """
    attack = python(TRACE)
    for user in ("0",) if OTHER is None else ("0", OTHER):
        code = [python("")[0], "-c", OF_ROOT, "-", user, *attack]
        assert said(box, code).strip() == ("traced" if user == "0" else "refused")
    with subprocess.Popen(["sleep", "60"]) as victim:
        done = subprocess.run([*attack, str(victim.pid)], capture_output=True, text=True, check=True)
        victim.kill()
        assert done.stdout.strip() == "traced"
    with subprocess.Popen(["sleep", "60"]) as victim:
        assert said(box, [*attack, str(victim.pid)]).strip() == "refused"
        victim.kill()
