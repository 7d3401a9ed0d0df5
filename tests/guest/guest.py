"""Run a command in a small virtual machine: cgroup v2 only, and this machine's files.

``python tests/guest/guest.py COMMAND...`` (as root) boots User Mode Linux 6.1: no KVM is needed and programs
run at full speed, on one CPU, without cpuset, pressure and time namespaces. With ``--qemu`` it is Linux 6.12
on two CPUs with all that isobox uses, about twelve times slower where there is no KVM. ``--systemd`` is
that with systemd as PID 1, the command in a login session of root or, with ``--user``, of an ordinary user,
whose cgroup is its own with ``--delegate``.

What the command writes stays in the guest's memory or on its throw-away disk, except below this checkout. Its
output and its exit status are the command's; 125 says that the guest itself failed. The packages that it
needs are in the set "guest" of tests/prerequisites.sh; Debian's kernel is fetched into .cache once.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from machines import CHECKOUT, Boot, Qemu, UserModeLinux

HERE = Path(__file__).resolve().parent
FAILED = 125
TIMED_OUT = 124
DISK_BYTES = 8 << 30  # sparse
SCRIPTS = ("init.sh", "run.sh", "session.sh", "systemd.sh")
PASSED_ON = (
    "CI",
    *(f"ISOBOX_{name}" for name in ("MUST_WORK", "MAY_LACK", "LEAK_RUNS", "KILLS", "PATIENCE", "RECORD")),
)


def prepare(
    folder: Path, command: Sequence[str], environment: Mapping[str, str], settings: Mapping[str, str]
) -> None:
    """Write what the guest reads: its own programs, their settings, the command, an empty disk."""
    for script in SCRIPTS:
        shutil.copy(HERE / script, folder)
        (folder / script).chmod(0o755)
    (folder / "init.sh").rename(folder / "init")
    (folder / "settings").write_text(
        "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items())
    )
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += [f"cd {shlex.quote(str(CHECKOUT))}", f"exec {shlex.join(command)}"]
    (folder / "command").write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    (folder / "command").chmod(0o755)
    with (folder / "disk").open("wb") as disk:
        disk.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", folder / "disk"], check=True)


def closed_to_others() -> list[Path]:
    """The folders above this checkout and this Python that an ordinary user may not enter."""
    above = (*CHECKOUT.parents, *Path(sys.base_prefix).resolve().parents)
    return [folder for folder in dict.fromkeys(above) if not folder.stat().st_mode & 0o001]


def relay(said: socket.socket, status: socket.socket, deadline: float) -> int | None:
    """Hand on what the command writes until it has ended; its exit status, None where the guest went away."""
    told = b""
    with selectors.DefaultSelector() as selector:
        for end in (said, status):
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            over = told.endswith(b"\n")
            ready = selector.select(0.2 if over else max(0.0, deadline - time.monotonic()))
            if not ready:
                return int(told.split()[1]) if over else TIMED_OUT
            for key, _ in ready:
                end = said if key.fileobj is said else status
                data = end.recv(65536)
                if not data:
                    selector.unregister(end)
                elif end is said:
                    sys.stdout.buffer.write(data)
                    sys.stdout.flush()
                else:
                    told += data
    return None


def run(
    machine: UserModeLinux | Qemu, command: Sequence[str], *, systemd: bool, memory: int, timeout: float
) -> int:
    """Boot, run, end. Returns the exit status."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "ISOBOX_GUEST": machine.name,
        **passed_on,
        "ISOBOX_PATIENCE": str(machine.slowness * float(passed_on.get("ISOBOX_PATIENCE", "1"))),
    }
    settings = {
        "machine": machine.name,
        "checkout": str(CHECKOUT),
        "systemd": "yes" if systemd else "",
        "closed": shlex.join(map(str, closed_to_others())),
        **machine.settings(),
    }
    with ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="isobox-guest-", dir="/var/tmp")
        folder = Path(stack.enter_context(scratch))
        prepare(folder, command, environment, settings)
        ends = []
        for _ in range(2):
            ours, theirs = socket.socketpair()
            ends.append((stack.enter_context(ours), stack.enter_context(theirs)))
        machine.start(Boot(folder, memory, (ends[0][1].fileno(), ends[1][1].fileno())), stack)
        for _, theirs in ends:
            theirs.close()
        status = relay(ends[0][0], ends[1][0], time.monotonic() + timeout)
        if status is None:
            tail = (folder / "console").read_text(errors="replace")[-2000:]
            print(f"{tail}\nguest.py: the guest ended by itself", file=sys.stderr)
            return FAILED
        if status == TIMED_OUT:
            print(f"guest.py: ended after {timeout:g} s", file=sys.stderr)
        return status


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--qemu", action="store_true", help="all controllers of cgroup v2; slow without KVM")
    parser.add_argument("--systemd", action="store_true", help="QEMU with systemd as PID 1")
    parser.add_argument("--user", action="store_true", help="an ordinary user's session of systemd")
    parser.add_argument("--delegate", action="store_true", help="in a scope that systemd delegates")
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS")
    parser.add_argument("command", nargs="*", help="after --, where it has options")
    options = parser.parse_args()
    if (options.user or options.delegate) and not options.systemd:
        parser.error("--user and --delegate go with --systemd")
    if not options.command:
        parser.error("no COMMAND")
    machine = Qemu() if options.qemu or options.systemd else UserModeLinux()
    missing = [name for name in machine.needed if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        why = f"there is no {missing[0]} here" if missing else "it has to be run by root"
        print(f"guest.py: {why}: see the head of {__file__}", file=sys.stderr)
        return FAILED
    command = options.command
    if options.systemd:
        asked = [f"--{name}" for name in ("user", "delegate") if getattr(options, name)]
        command = ["/run/guest/session.sh", *asked, *command]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return run(machine, command, systemd=options.systemd, memory=options.memory, timeout=options.timeout)
    except (ChildProcessError, LookupError, subprocess.CalledProcessError) as error:
        print(f"guest.py: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
