"""What the usual tools find in a default container, against what is written here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import isobox
from isobox import Container
from isobox.rootfs.views import VIEWED
from isobox.security import capabilities
from patience import patient
from programs import said

pytestmark = pytest.mark.requires("user_namespaces", "overlay")

CAPABILITIES = (
    "cap_chown,cap_dac_override,cap_fowner,cap_fsetid,cap_kill,cap_setgid,cap_setuid,cap_setpcap,"
    "cap_net_bind_service,cap_net_raw,cap_sys_chroot,cap_mknod,cap_audit_write,cap_setfcap"
)

CAPSH = {
    "Current": f"{CAPABILITIES}=ep",
    "Bounding set": CAPABILITIES,
    "Ambient set": "",
    "Securebits": "00/0x0/1'b0 (no-new-privs=1)",
    "uid": "0(root) euid=0(root)",
    "gid": "0(root)",
}
"""What ``capsh --print`` says; inheritable would be the letter i behind a set."""

MOUNTS = {
    "/": ("overlay", "rw,nodev"),
    "/proc": ("proc", "rw,nosuid,nodev,noexec"),
    "/proc/sys": ("proc", "ro,nosuid,nodev,noexec"),
    "/sys": ("sysfs", "ro,nosuid,nodev,noexec"),
    "/dev/pts": ("devpts", "rw,nosuid,noexec"),
    "/dev/shm": ("tmpfs", "rw,nosuid,nodev,noexec"),
    "/dev/mqueue": ("mqueue", "rw,nosuid,nodev,noexec"),
}
"""Target → type and options of ``findmnt`` that have to be there."""

REFUSED = {
    "dmesg": "Operation not permitted",
    "mount -t tmpfs none /mnt": "(permission denied|not permitted|must be superuser)",
    "umount /proc": "(not permitted|must be superuser|Operation not permitted)",
    "unshare -U true": "Operation not permitted",
    "unshare -m true": "Operation not permitted",
    "nsenter -t 1 -m true": "(Permission denied|Operation not permitted|Invalid argument)",
    "hostname other": "(must be root|not permitted|permission)",
    "mknod /tmp/disk b 8 0": "Operation not permitted",
    "losetup -f": "(cannot find|Permission denied|No such file)",
    "cat /proc/1/environ": "Permission denied",
    "cat /proc/1/mem": "Permission denied",
    "readlink /proc/1/exe": "",
}
"""What is tried as root of the container, and how it is refused."""

STATUS = {"CapInh": "0" * 16, "CapAmb": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2", "TracerPid": "0"}

STRESSORS = (
    "af-alg bad-ioctl bind-mount bpf cap chroot clone cpu-online dev enosys env fanotify file-ioctl "
    "get io-uring kcmp key kill klog kvm landlock link mknod module netlink-proc opcode personality "
    "pidfd procfs ptrace quota ramfs rawpkt rawsock reboot rlimit seccomp session set shm-sysv "
    "sockdiag swap symlink sysbadaddr syscall sysfs sysinval timer tmpfs tun umount unshare "
    "userfaultfd verity vm-segv x86syscall xattr zombie"
).split()
"""Of stress-ng's class "os": those that go for interfaces of the kernel's, or use its tables up."""


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with Container() as container:
        yield container


def fields(text: str, separator: str) -> dict[str, str]:
    pairs = (line.partition(separator) for line in text.splitlines() if separator in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def test_capsh(box: Container) -> None:
    lines = (
        said(box, ["capsh", "--print"])
        .replace("Bounding set =", "Bounding set:")
        .replace("Ambient set =", "Ambient set:")
    )
    found = fields(lines.replace("uid=0(root) euid", "uid: 0(root) euid").replace("gid=", "gid:"), ":")
    assert {name: found.get(name) for name in CAPSH} == CAPSH
    assert sorted(CAPABILITIES.upper().split(",")) == sorted(capabilities.DEFAULT_NAMES)


def test_lsns(box: Container) -> None:
    rows = said(box, ["lsns", "--noheadings", "--output", "TYPE,NS"]).split("\n")
    inside = dict(row.split() for row in rows if row)
    outside = {
        name: re.sub(r"\D", "", os.readlink(f"/proc/self/ns/{name}"))
        for name in isobox.host.features().namespaces
    }
    assert inside.keys() == outside.keys()
    assert {name for name in inside if inside[name] == outside[name]} <= {"time"}


def test_findmnt(box: Container) -> None:
    columns = ["--noheadings", "--raw", "--output", "TARGET,FSTYPE,VFS-OPTIONS"]
    found = {}
    for line in said(box, ["findmnt", *columns]).splitlines():
        target, kind, options = line.split()
        found[target] = (kind, set(options.split(",")))
    for target, (kind, options) in MOUNTS.items():
        assert found[target][0] == kind and found[target][1] >= set(options.split(",")), target
    for target, (kind, present) in found.items():
        if kind == "devtmpfs" or target == "/dev" or target.startswith("/dev/"):
            continue  # /dev/null, over a file; the device nodes
        assert "nodev" in present, (target, kind, present)
        assert kind == "overlay" or "ro" in present or target in (*MOUNTS, *VIEWED), (target, kind)


def test_status(box: Container) -> None:
    found = fields(said(box, ["cat", "/proc/self/status"]), ":")
    assert {name: found[name] for name in STATUS} == STATUS
    assert int(found["CapBnd"], 16) == int(found["CapEff"], 16) == capabilities.DEFAULT


def test_programs_and_links(box: Container) -> None:
    """What ps and /sys/class/net show: nothing of the host's."""
    # Before Linux 6.14 a program in memory is called by the number of its descriptor.
    *others, last = said(box, ["ps", "-A", "-o", "pid,comm", "--no-headers"]).split("\n")[:-1]
    assert last.split()[1] == "ps" and [line.split()[0] for line in others] in ([], ["1"])
    assert said(box, ["ls", "/sys/class/net"]).split() == ["lo"]


@pytest.mark.parametrize("script", REFUSED)
def test_what_is_refused(box: Container, script: str) -> None:
    result = box.exec(["sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin; {script}"], text=True)
    assert not result.ok, result.stdout
    assert re.search(REFUSED[script], result.stderr), result.stderr


def sysctls() -> dict[str, str]:
    """The settings of this machine that a program could want to change."""
    found = {}
    for folder in ("kernel", "vm", "fs", "net/ipv4", "net/core"):
        for path in Path(f"/proc/sys/{folder}").iterdir():
            if path.is_file() and path.stat().st_mode & 0o222 and os.access(path, os.R_OK):
                try:
                    found[str(path)] = path.read_text()
                except OSError:
                    continue
    return {
        path: text
        for path, text in found.items()
        if not path.endswith(("-nr", "-state", "_last_pid", "uuid"))
    }


@pytest.mark.requires("cgroup_memory", "cgroup_pids", "cgroup_cpu")
def test_stress_ng() -> None:
    """For seconds everything at once against the kernel: the host stays as it was, the next one starts."""
    with Container(cpu=1, memory="512M", pids=500, disk="128M", workdir="/tmp") as box:
        known = said(box, ["stress-ng", "--class", "os?"]).split(":")[1].split()
        chosen = [name for name in STRESSORS if name in known]
        assert len(chosen) > 40
        before, hostname = sysctls(), os.uname().nodename
        command = ["stress-ng", "--timeout", "5", "--oom-avoid-bytes", "64M", "--quiet"]
        for name in chosen:
            command += [f"--{name}", "1"]
        result = box.exec(command, timeout=patient(60), text=True)
        # stress-ng(1), exit status: 0 done, 2 some failed, 3 some could not start, 4 not implemented here.
        assert (result.reason, result.returncode in (0, 2, 3, 4)) == ("exited", True), result
        assert box.exec(["true"]).ok
    changed = {path for path, text in sysctls().items() if before.get(path) != text}
    assert {path for path in changed if "/random/" not in path and "/pty/" not in path} == set()
    assert os.uname().nodename == hostname
    assert isobox.run(["true"]).ok
