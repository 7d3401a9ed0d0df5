"""The other engines: the command line with which each runs the same program on the same root folder."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from .install import find
from .rootfs import ID_BASE, make_bundle
from .samples import Failed

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
LIMITS = ("--memory", "256m", "--cpus", "1", "--pids-limit", "1024")


@frozen
class Place:
    """Where an engine may put things: `work` on disk, `run` on a tmpfs, `cgroup` is a group path."""

    rootfs: Path
    work: Path
    run: Path
    cgroup: str


def bwrap(place: Place) -> list[str]:
    """All namespaces, read-only root; no overlay, no limits, no filter."""
    command = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    command += ["--ro-bind", str(place.rootfs), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    return [*command, "/true"]


def nspawn(place: Place) -> list[str]:
    """All namespaces, overlay, its filter; no limits, not registered with any service."""
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={place.rootfs}"]
    command += [
        f"--private-users={ID_BASE}:65536",
        "--private-network",
        "--volatile=overlay",
        "--timezone=off",
    ]
    return [*command, "--resolv-conf=off", "--link-journal=no", "/true"]


def runc(place: Place) -> list[str]:
    """All namespaces, limits, read-only root; no overlay, no filter."""
    bundle = place.work / "bundle"
    if not bundle.exists():
        make_bundle(bundle, place.rootfs, f"{place.cgroup}/runc")
    name = f"bench-{time.monotonic_ns()}"
    return ["runc", "--root", str(place.run / "runc"), "run", "--bundle", str(bundle), name]


def podman(place: Place) -> list[str]:
    """Overlay, limits, filter; no user namespace (its default for root)."""
    state = place.work / "podman"
    command = [
        "podman",
        "--root",
        str(state),
        "--runroot",
        str(place.run / "podman"),
        "--tmpdir",
        str(place.run / "tmp"),
    ]
    command += [
        "--cgroup-manager",
        "cgroupfs",
        "--events-backend",
        "none",
        "--network-config-dir",
        str(place.work / "net"),
    ]
    command += ["run", "--rm", "--network", "none", "--cgroup-parent", place.cgroup, "--log-driver", "none"]
    return [*command, "--ulimit", "host", *LIMITS, "--rootfs", f"{place.rootfs}:O", "/true"]


def docker(place: Place) -> list[str]:
    """Overlay, limits, filter; no user namespace (its default). Needs `dockerd` and an imported image."""
    command = ["docker", "--host", f"unix://{place.run}/docker.sock", "run", "--rm", "--network", "none"]
    return [*command, *LIMITS, "bench:latest", "/true"]


COMMANDS = {"bwrap": bwrap, "systemd-nspawn": nspawn, "runc": runc, "podman": podman, "docker": docker}
NEED_ROOT = frozenset({"systemd-nspawn", "runc", "podman", "docker"})


def timed_runs(engine: str, place: Place, count: int) -> list[int]:
    """Run an engine's command `count` times; nanoseconds of each. Raises Failed with its last words."""
    samples = []
    for _ in range(count):
        command = COMMANDS[engine](place)
        begin = time.perf_counter_ns()
        done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=False)
        samples.append(time.perf_counter_ns() - begin)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise Failed(f"status {done.returncode}: {words[-1][:200]}")
    return samples


def _docker(place: Place, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = ["docker", "--host", f"unix://{place.run}/docker.sock", *arguments]
    return subprocess.run(command, capture_output=True, env=ENVIRONMENT, input=data, check=False)


@contextmanager
def dockerd(place: Place) -> Iterator[None]:
    """A Docker daemon of our own: private socket, data and state; no bridge, no firewall rules."""
    program = find("dockerd")
    if program is None:
        raise Failed("dockerd is not installed (apt-get install docker.io)")
    data = place.work / "docker"
    data.mkdir(exist_ok=True)
    command = [program, "--host", f"unix://{place.run}/docker.sock", "--data-root", str(data)]
    command += ["--exec-root", str(place.run / "docker"), "--pidfile", str(place.run / "docker.pid")]
    command += [
        "--bridge",
        "none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
        "--ip-masq=false",
    ]
    command += ["--cgroup-parent", place.cgroup, "--exec-opt", "native.cgroupdriver=cgroupfs"]
    with open(place.work / "dockerd.log", "wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 30
        while _docker(place, "version").returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"dockerd did not start: {_last_line(place.work / 'dockerd.log')}")
            time.sleep(0.1)
        done = _docker(place, "import", "-", "bench:latest", data=_archive(place.rootfs))
        if done.returncode:
            raise Failed(f"docker import: {done.stderr.decode(errors='replace').strip()}")
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _archive(folder: Path) -> bytes:
    return subprocess.run(["tar", "-C", folder, "-c", "."], capture_output=True, check=True).stdout


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no message"


def unavailable(engines: Sequence[str]) -> dict[str, str]:
    """Engines that can't run here: name → why."""
    reasons = {}
    for name in engines:
        if find("dockerd" if name == "docker" else name) is None:
            reasons[name] = "not installed"
        elif name in NEED_ROOT and os.geteuid():
            reasons[name] = "needs root"
    return reasons
