"""Cgroups: limits, set and read back, and what is measured."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from isobox import cgroups, idmap
from isobox.cgroups import scope
from isobox.cgroups.convert import huge_pages
from isobox.errors import CleanupError, IsoboxError
from isobox.findings import Item, Status
from isobox.host import features
from isobox.runtime import Owner
from isobox.spec import IoLimit, Limits

from .outcome import failed


def try_limits(stack: contextlib.ExitStack, owner: Owner | None) -> Iterator[Item]:
    """Try each limit on a group of its own."""
    groups = cgroups.Groups(cgroups.discover(), f"{os.getpid()}-doctor" if owner is None else owner.id)
    stack.callback(_close, groups)
    cpu = min(features().cpus)
    trials: dict[str, Limits] = {
        "cpu limit": Limits(cpu=0.5),
        "cpu_weight": Limits(cpu_weight=50),
        "cpuset": Limits(cpuset=frozenset({cpu})),
        "memory limit": Limits(memory=64 << 20),
        "swap limit": Limits(memory=64 << 20, swap=1 << 20),
        "pids limit": Limits(pids=64),
    }
    disk = block_device()
    if disk:
        trials["io limit"] = Limits(io=(IoLimit(disk, write_bps=1 << 30),))
    pages = huge_pages()
    if pages:
        trials["hugetlb limit"] = Limits(hugetlb={min(pages): min(pages)})
    yield _cgroups(groups)
    for name, limits in trials.items():
        yield _limit(name, lambda limits=limits: groups.container(limits, id="doctor").close())  # type: ignore[misc]
    if not disk:
        why = "there is no block device to limit"
        yield Item("io limit", "missing", why, "run isobox where /sys/block shows the machine's disks")
    if not pages:
        why = "the kernel has no huge pages"
        yield Item("hugetlb limit", "missing", why, "use a kernel that is built with CONFIG_HUGETLBFS")
    yield _device_control(groups)
    yield _limit("pause", lambda: _pause(groups))
    yield from _measurement(groups)


def _cgroups(groups: cgroups.Groups) -> Item:
    """Where groups can be made, once systemd was asked for a scope where one is needed."""
    name = "cgroups"
    groups.settle()
    layout = f"layout {groups.host.layout}"
    if not features().cgroups:
        status: Status = "missing" if groups.host.layout == "none" else "degraded"
        return Item(name, status, f"{layout}: {features().why('cgroups')}", groups.remedy("cpu"))
    if scope.wanted(groups.host):
        why = f"{layout}: beside this process's own group, where systemd may take controllers away"
        return Item(name, "degraded", why, groups.remedy("cpu"))
    if scope.UNIT.search(cgroups.own_group()):
        layout += ", in a scope for which systemd is asked by a program's first container"
    return Item(name, "works", layout)


def block_device() -> str:
    """The numbers of a disk of this machine, for the experiment only; empty if there is none."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir("/sys/block")):
            if not name.startswith(("loop", "ram", "zram", "sr", "fd")):
                return idmap.read_text(f"/sys/block/{name}/dev").strip()
    return ""


def _limit(name: str, attempt: Callable[[], object]) -> Item:
    try:
        attempt()
    except (IsoboxError, OSError) as error:
        return failed(name, error)
    return Item(name, "works", "set and read back" if name != "pause" else "")


def _device_control(groups: cgroups.Groups) -> Item:
    name = "device control"
    if not features().is_root or features().in_user_namespace:
        return Item(name, "works", "the kernel lets nobody make device nodes in a user namespace")
    devices = frozenset({cgroups.Device("c", 1, 3)})
    item = _limit(name, lambda: groups.container(Limits(), id="doctor", devices=devices).close())
    if item.status != "works":
        return item
    version = cgroups.discover().controllers["devices"].version
    return Item(name, "works", "by the devices controller" if version == 1 else "by a BPF program")


def _pause(groups: cgroups.Groups) -> None:
    group = groups.container(Limits(), id="doctor")
    try:
        group.freeze()
        group.thaw()
    finally:
        group.close()


def _measurement(groups: cgroups.Groups) -> Iterator[Item]:
    wanted = {
        "cpu_time": "cpu time",
        "memory_peak": "memory peak",
        "pids_peak": "pids peak",
        "io_read": "block I/O",
        "pressure": "pressure",
    }
    try:
        group = groups.container(Limits(), id="doctor")
    except (IsoboxError, OSError) as error:
        for name in wanted.values():
            yield Item(name, "missing", str(error), groups.remedy("memory"))
        return
    try:
        usage = group.read()
    finally:
        group.close()
    for field, name in wanted.items():
        if getattr(usage, field) is not None:
            yield Item(name, "works", f"from {usage.sources.get(field, 'the cgroup')}")
            continue
        note = next((note for note in usage.notes if field in note), "")
        if field == "cpu_time" and not group.present:
            note = "of the processes that were waited for only, from wait4(2)"
        why, remedy = note or "no cgroup of this user measures it", groups.remedy("memory")
        if field == "pressure" and not features().pressure:
            why, remedy = features().why("pressure"), "boot with psi=1"
        elif field == "pressure" and group.present:
            why, remedy = "cgroup v1 measures it for the whole machine only", "use cgroup v2"
        elif field == "pids_peak" and not features().since("pids_peak"):
            why, remedy = features().why("pids_peak"), "boot a newer kernel"
        elif field == "io_read" and note:
            remedy = "set an io limit, or use cgroup v2"
        yield Item(name, "degraded" if note else "missing", why, remedy)


def _close(groups: cgroups.Groups) -> None:
    # What resists is found by the next collection: the owner is gone by then.
    with contextlib.suppress(CleanupError):
        groups.close()
