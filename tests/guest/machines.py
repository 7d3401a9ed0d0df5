"""The two machines that a guest can run on: how each is started, and what it needs."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import kernel

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
CHECKOUT = Path(__file__).resolve().parents[2]
EMULATION_SLOWNESS = 12.0
"""How much slower than here programs run where the processor is emulated."""

# /dev/kvm alone does not say it: some virtual machines have one for guests that are made for it.
_FLAGS = re.compile(r"^flags\s*:.*\b(vmx|svm)\b", re.MULTILINE)
KVM = os.path.exists("/dev/kvm") and _FLAGS.search(Path("/proc/cpuinfo").read_text()) is not None

# However this process ends, they end.
WITH_US = ("setpriv", "--pdeathsig", "KILL")


@dataclass(frozen=True)
class Boot:
    """What a machine is started with: a folder with `init` and `disk`, MiB, descriptors of two consoles."""

    folder: Path
    memory: int
    consoles: tuple[int, int]


class UserModeLinux:
    """Linux 6.1 as a program: one CPU at full speed, without cpuset, pressure and time namespaces."""

    name = "uml"
    needed = ("linux.uml", "busybox", "mkfs.ext4", "unshare")
    slowness = 1.0

    def settings(self) -> dict[str, str]:
        return {"modules": "/usr/lib/uml/modules"}

    def start(self, boot: Boot, stack: ExitStack) -> subprocess.Popen[bytes]:
        said, status = boot.consoles
        folder = boot.folder
        command = [
            # In a PID namespace of its own: none of its many processes outlives it.
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("linux.uml", f"mem={boot.memory}M", f"ubd0={folder}/disk", f"uml_dir={folder}/uml"),
            *("root=/dev/root", "rootfstype=hostfs", "hostfs=/", "ro", f"init={folder}/init"),
            *("quiet", "panic=-1", "noreboot", "con=null", "con0=null,fd:2"),
            *(f"con1=null,fd:{said}", f"con2=null,fd:{status}"),
        ]
        return spawn(command, boot, stack)


class Qemu:
    """Linux 6.12 with two CPUs and everything that isobox uses; without KVM they are emulated."""

    name = "qemu"
    needed = ("qemu-system-x86_64", VIRTIOFSD, "busybox", "mkfs.ext4", "setpriv")
    slowness = 1.0 if KVM else EMULATION_SLOWNESS

    def settings(self) -> dict[str, str]:
        return {
            "modules": f"{self._kernel()}/lib/modules",
            # The program that serves files holds one open for each that the guest remembers.
            "files": str(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        }

    def start(self, boot: Boot, stack: ExitStack) -> subprocess.Popen[bytes]:
        said, status = boot.consoles
        folder = boot.folder
        files = [
            *self._files(boot, stack, "rootfs", Path("/"), "always"),
            *self._files(boot, stack, "checkout", CHECKOUT, "auto"),
        ]
        parameters = [
            *("console=ttyS0", "rootfstype=virtiofs", "root=rootfs", "ro", f"init={folder}/init"),
            *("quiet", "panic=-1", "mitigations=off", "nokaslr", "audit=0", "apparmor=0", "no_timer_check"),
            *("cryptomgr.notests", "random.trust_cpu=on", "tsc=reliable", "rcupdate.rcu_expedited=1"),
            *("i8042.noaux", "i8042.nokbd", "8250.nr_uarts=1"),
            *([] if KVM else [f"tsc_early_khz={time_stamp_khz()}"]),
        ]
        command = [
            *("qemu-system-x86_64", "-machine", "q35,memory-backend=memory", "-smp", "2"),
            # Of the emulated CPUs an old one is the fastest.
            *(("-accel", "kvm", "-cpu", "host") if KVM else ("-accel", "tcg", "-cpu", "Nehalem-v1")),
            *("-m", f"{boot.memory}M", "-object"),
            f"memory-backend-memfd,id=memory,size={boot.memory}M,share=on",
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-kernel", f"{self._kernel()}/vmlinuz", "-append", " ".join(parameters)),
            *("-drive", f"file={folder}/disk,if=none,id=disk,format=raw,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=said,fd={said}", "-device", "virtserialport,chardev=said,nr=1"),
            *("-chardev", f"socket,id=status,fd={status}", "-device", "virtserialport,chardev=status,nr=2"),
            *files,
        ]
        return spawn(command, boot, stack)

    def _kernel(self) -> Path:
        return kernel.fetched(CHECKOUT / ".cache/guest")

    def _files(self, boot: Boot, stack: ExitStack, name: str, source: Path, cache: str) -> Sequence[str]:
        """Serve `source` to the guest under this name; the options of QEMU that show it."""
        place = boot.folder / name
        options = f"source={source},cache={cache},sandbox=chroot,log_level=warn"
        server = spawn([VIRTIOFSD, f"--socket-path={place}", "-o", options], boot, stack)
        while not place.exists():
            if server.poll() is not None:
                raise ChildProcessError(f"virtiofsd ended with status {server.returncode}")
            time.sleep(0.01)
        chardev = ("-chardev", f"socket,id={name},path={place}")
        return (*chardev, "-device", f"vhost-user-fs-pci,chardev={name},tag={name}")


def time_stamp_khz() -> int:
    """How fast this machine's time stamp counter runs; an emulated CPU hands it on.

    A guest that measures it while it gets little of a busy CPU is wrong by as much as a factor of two, and
    with it are all its clocks.
    """
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl $32, %rdx; or %rdx, %rax; ret
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def now() -> tuple[int, int]:
        """The clock and the counter at one moment: what lay closest together of many."""
        reads = []
        for _ in range(100):
            before, count, after = time.monotonic_ns(), counter(), time.monotonic_ns()
            reads.append((after - before, (before + after) // 2, count))
        return min(reads)[1:]

    began, first = now()
    time.sleep(0.3)
    ended, last = now()
    return round((last - first) * 1_000_000 / (ended - began))


def spawn(command: Sequence[str], boot: Boot, stack: ExitStack) -> subprocess.Popen[bytes]:
    """Start one program of a machine; it ends with the stack. What it says goes to the file `console`."""
    with (boot.folder / "console").open("ab") as console:
        process = subprocess.Popen(
            [*WITH_US, *command],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=boot.consoles,
        )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process
