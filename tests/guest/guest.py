"""Run a command in a small virtual machine: Linux 6.1 with cgroup v2 only, and this machine's files.

``python tests/guest/guest.py COMMAND...`` (as root). User Mode Linux: no KVM is needed and programs run at
full speed, on one CPU. What the command writes stays in the guest's memory or on its throw-away disk, except
below this checkout. Its output and its exit status are the command's; 125 says that the guest itself failed.

Debian's packages user-mode-linux, busybox-static and e2fsprogs are needed.
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
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
FAILED = 125
TIMED_OUT = 124
DISK_BYTES = 8 << 30  # sparse
NEEDED = ("linux.uml", "busybox", "mkfs.ext4", "unshare")
PASSED_ON = ("CI", "ISOBOX_MUST_WORK", "ISOBOX_MAY_LACK", "ISOBOX_LEAK_RUNS", "ISOBOX_KILLS")


def prepare(folder: Path, command: Sequence[str], environment: dict[str, str]) -> None:
    """Write what the guest reads: its first program, its settings, the command, an empty disk."""
    shutil.copy(HERE / "init.sh", folder / "init")
    (folder / "init").chmod(0o755)
    (folder / "settings").write_text(f"checkout={shlex.quote(str(CHECKOUT))}\n")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += [f"cd {shlex.quote(str(CHECKOUT))}", f"exec {shlex.join(command)}"]
    (folder / "command").write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    (folder / "command").chmod(0o755)
    with (folder / "disk").open("wb") as disk:
        disk.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", folder / "disk"], check=True)


def boot(folder: Path, memory: int, said: socket.socket, status: socket.socket) -> subprocess.Popen[bytes]:
    """Start the guest; its consoles 1 and 2 are these sockets. It ends with the process that is returned."""
    with (folder / "console").open("wb") as console:
        return subprocess.Popen(
            [
                # In a PID namespace of its own: none of its many processes outlives it.
                *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("linux.uml", f"mem={memory}M", f"ubd0={folder}/disk", f"uml_dir={folder}/uml"),
                *("root=/dev/root", "rootfstype=hostfs", "hostfs=/", "ro", f"init={folder}/init"),
                *("quiet", "panic=-1", "noreboot", "con=null", "con0=null,fd:2"),
                *(f"con1=null,fd:{said.fileno()}", f"con2=null,fd:{status.fileno()}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=(said.fileno(), status.fileno()),
        )


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


def run(command: Sequence[str], *, memory: int, timeout: float) -> int:
    """Boot, run, end. Returns the exit status."""
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "ISOBOX_GUEST": "uml",
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }
    with ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="isobox-guest-", dir="/var/tmp")
        folder = Path(stack.enter_context(scratch))
        prepare(folder, command, environment)
        ends = []
        for _ in range(2):
            ours, theirs = socket.socketpair()
            ends.append((stack.enter_context(ours), stack.enter_context(theirs)))
        machine = boot(folder, memory, ends[0][1], ends[1][1])
        stack.callback(machine.wait)
        stack.callback(machine.kill)
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
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS")
    parser.add_argument("command", nargs="*", help="after --, where it has options")
    options = parser.parse_args()
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        why = f"there is no {missing[0]} here" if missing else "it has to be run by root"
        print(f"guest.py: {why}: see the head of {__file__}", file=sys.stderr)
        return FAILED
    if not options.command:
        parser.error("no COMMAND")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    return run(options.command, memory=options.memory, timeout=options.timeout)


if __name__ == "__main__":
    sys.exit(main())
