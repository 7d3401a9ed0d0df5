"""The root folder that every engine gets, and the OCI bundle around it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .native import BUILD

ID_BASE = 1_879_048_192 - 65536
MEMORY = 256 << 20
APPLETS = ("sh", "cat", "echo", "ls", "sleep")


def make_rootfs(target: Path, busybox: str | None) -> Path:
    """Fill `target` with busybox, if there is one, and our static programs. Readable by all."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "run", "root", "usr", "var", "data"):
        (target / name).mkdir(parents=True, exist_ok=True)
    for path in (target, *target.iterdir()):
        path.chmod(0o755)
    for name in ("true", "work"):
        shutil.copy(BUILD / name, target / name)
        (target / name).chmod(0o755)
    if busybox is not None:
        shutil.copy(busybox, target / "bin" / "busybox")
        (target / "bin" / "busybox").chmod(0o755)
        for applet in APPLETS:
            link = target / "bin" / applet
            if not link.is_symlink():
                link.symlink_to("busybox")
    (target / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (target / "etc" / "group").write_text("root:x:0:\n")
    # Engines put their own over these; they want to find them.
    for name in ("hosts", "hostname", "resolv.conf", "os-release"):
        (target / "etc" / name).touch()
    return target


def make_bundle(bundle: Path, rootfs: Path, cgroup: str) -> Path:
    """Write an OCI bundle: all namespaces, limits, the usual mounts, no capability but the usual few."""
    capabilities = [
        *(
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FSETID",
            "CAP_FOWNER",
            "CAP_MKNOD",
            "CAP_NET_RAW",
            "CAP_SETGID",
        ),
        *("CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL"),
        "CAP_AUDIT_WRITE",
    ]
    sets = ("bounding", "effective", "permitted", "inheritable")
    ids = [{"containerID": 0, "hostID": ID_BASE, "size": 65536}]
    config = {
        "ociVersion": "1.0.2",
        "hostname": "bench",
        "root": {"path": str(rootfs), "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(sets, capabilities),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")
            ],
            "uidMappings": ids,
            "gidMappings": ids,
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "memory": {"limit": MEMORY},
                "cpu": {"quota": 100000, "period": 100000},
                "pids": {"limit": 1024},
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    }
    bundle.mkdir(parents=True, exist_ok=True)
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle
