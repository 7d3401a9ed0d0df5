"""The doctor's experiments: tries each feature on this host, as this user, and says what would help.

Nothing is concluded from version numbers where it can be tried: namespaces, mounts and filters are
made by isobox-init (`isobox.probes`), limits are set on real cgroups and read back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator

from isobox import _native, cgroups, idmap
from isobox.cgroups import scope
from isobox.cgroups.convert import huge_pages
from isobox.container import run
from isobox.errors import CleanupError, IsoboxError, UnsupportedError
from isobox.findings import Item, Status
from isobox.hints import NESTED, disk_refused, overlay_refused, proc_refused, unsupported
from isobox.host import features
from isobox.plan.ops import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    HOST_PATH,
    make,
)
from isobox.probes import ATTR_QUIET, Probes, Refusal, for_host
from isobox.runtime import Owner
from isobox.security import seccomp
from isobox.spec import IoLimit, Limits

_USERNS = CLONE_NEWUSER | CLONE_NEWNS


def items() -> Iterator[Item]:
    """Try one feature after the other."""
    yield _python()
    yield _kernel()
    if refused := proc_refused():
        yield _failed(refused.feature, refused, needed=True)
    else:
        yield from _tries()
    yield _container()
    yield _zstd()


def _tries() -> Iterator[Item]:
    owner: Owner | None = None
    with contextlib.ExitStack() as stack:
        stage, id_map = "/tmp", for_host()
        try:
            # One of its own: closing it must not touch what this process's containers have.
            owner = Owner()
            stack.callback(owner.close)
            stage, id_map = owner.directory("stage"), owner.id_map()
            state = Item("state folder", "works", owner.state, needed=True)
        except IsoboxError as error:
            state = _failed("state folder", error, needed=True)
        yield state
        try:
            probes = stack.enter_context(Probes(stage, id_map))
        except OSError as error:
            yield _failed("isobox-init", unsupported("memfd", error.errno or errno.EIO) or error, needed=True)
        else:
            yield from _namespaces(probes)
            yield from _file_systems(probes, owner)
            yield from _limits(stack, owner)
            yield from _walls(probes)


def _failed(name: str, error: Exception, remedy: str = "", *, needed: bool = False) -> Item:
    if isinstance(error, UnsupportedError):
        return Item(name, "missing", error.why, error.remedy, needed)
    return Item(name, "missing", str(error), getattr(error, "hint", "") or remedy, needed)


def _python() -> Item:
    version = "{}.{}.{}".format(*sys.version_info[:3])
    abi = sys.implementation.cache_tag
    if sys.version_info < (3, 11) or sys.implementation.name != "cpython":
        return Item("python", "missing", f"{abi} {version}", "use CPython 3.11 or later", needed=True)
    return Item(
        "python", "works", f"CPython {version} on {features().machine}, extension for abi3", needed=True
    )


def _kernel() -> Item:
    facts = features()
    if not facts.since("overlay_in_userns"):
        return Item(
            "kernel",
            "missing",
            f"Linux {facts.release}; isobox needs 5.11",
            "boot a newer kernel",
            needed=True,
        )
    try:
        facts.need_calls()
    except UnsupportedError as error:
        return Item("kernel", "missing", error.why, error.remedy, needed=True)
    wished = ("mount_setattr", "idmapped_overlay", "pids_peak", "tmpfs_xattrs")
    old = [name for name in wished if not facts.since(name)]
    if old:
        return Item(
            "kernel",
            "degraded",
            "; ".join(facts.why(name) for name in old),
            "boot a newer kernel",
            needed=True,
        )
    return Item("kernel", "works", f"Linux {facts.release}", needed=True)


def _tried(name: str, refused: Refusal | None, remedy: str, works: str = "", *, needed: bool = False) -> Item:
    if refused is None:
        return Item(name, "works", works, needed=needed)
    error = unsupported(refused.where, refused.errno, refused.what)
    if error is None:
        return Item(name, "missing", str(refused), remedy or idmap.hint(refused.errno), needed=needed)
    if error.feature != name:
        return Item(name, "missing", str(refused), f"see the {error.feature}", needed=needed)
    return Item(name, "missing", error.why, error.remedy, needed=needed)


def _namespaces(probes: Probes) -> Iterator[Item]:
    refused = probes.run(_USERNS, [])
    only_ranges = refused is not None and refused.where == "newuidmap"
    yield _tried(
        "user namespace",
        None if only_ranges else refused,
        "",
        "root inside is nobody outside",
        needed=True,
    )
    yield _ids(probes, refused)
    rest = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
    late = [make("UNSHARE", CLONE_NEWCGROUP, note="cgroup namespace")]
    yield _tried(
        "pid, ipc, uts, cgroup namespaces",
        probes.run(_USERNS | rest, [*late, make("HOSTNAME", strings=(b"doctor",))]),
        "use a kernel that is built with them",
        needed=True,
    )
    yield _tried(
        "network namespace",
        probes.run(_USERNS | CLONE_NEWNET, [make("LOOPBACK", note="lo up")]),
        "use a kernel that is built with CONFIG_NET_NS, or network='host'",
        "its own loopback",
    )
    yield _tried(
        "time namespace",
        probes.run(_USERNS, [make("UNSHARE", CLONE_NEWTIME, note="time namespace")]),
        "use a kernel with CONFIG_TIME_NS (Linux 5.6); by default containers use the host's clocks",
    )
    ended = refused is None and probes.ends_with_its_owner()
    yield Item(
        "end with the owner",
        "works" if ended else "missing",
        "containers end when the Python process does" if ended else "isobox-init did not end",
        "" if ended else "see the user namespace",
        needed=True,
    )


def _ids(probes: Probes, refused: Refusal | None) -> Item:
    name = "id ranges"
    made = probes.id_map
    if refused is not None and refused.where == "newuidmap":
        return _tried(name, refused, "", needed=True)
    if refused is not None:
        return Item(name, "missing", "they need the user namespace", "see the user namespace")
    if made.single:
        if os.geteuid() == 0:
            return Item(
                name,
                "degraded",
                "this process is root of a namespace with one id, which is root's in containers too",
                "run isobox outside of that namespace",
            )
        facts = features()
        remedy = "install the package uidmap (newuidmap, newgidmap, setuid root)"
        if not facts.subuids or not facts.subgids:
            remedy = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {_user()}"
        elif facts.no_new_privs:
            remedy = "start this process without no_new_privs"
        return Item(name, "degraded", f"a container has the user root only: {facts.why('id_ranges')}", remedy)
    if os.geteuid() == 0 and not idmap.read_root_ranges():
        return Item(
            name,
            "degraded",
            "containers share the few ids of the namespace that this process is in",
            "run isobox outside of it",
        )
    count = sum(size for _, _, size in made.uid_lines)
    whose = "of its own" if os.geteuid() == 0 else "by newuidmap, shared by this user's containers"
    return Item(name, "works", f"{count} ids for a container, {whose}")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _file_systems(probes: Probes, owner: Owner | None) -> Iterator[Item]:
    stage = probes.stage
    folders = ("lower", "more", "upper", "work", "merged")
    layers = {"upperdir": f"{stage}/upper", "workdir": f"{stage}/work", "userxattr": None}
    merged = [probes.file("merged/file", b"x")]
    lower: dict[str, str | None] = {"lowerdir": f"{stage}/lower:{stage}/more"}
    overlay = probes.mount("overlay", lower | layers, f"{stage}/merged")
    yield _tried(
        "overlay",
        probes.run(_USERNS, [*probes.scratch(folders=folders), *overlay, *merged]),
        overlay_refused(0)[1],
        "copy-on-write root file systems, upper in memory",
        needed=True,
    )
    yield _layer_disk(probes, owner)
    yield _idmapped(probes, owner)
    yield _disk_limit(probes)
    kernels = probes.scratch(folders=("proc", "sys", "mqueue"))
    kernels += probes.mount("proc", {}, f"{stage}/proc", ATTR_QUIET)
    kernels += probes.mount("sysfs", {}, f"{stage}/sys", ATTR_QUIET | 1)
    kernels += probes.mount("mqueue", {}, f"{stage}/mqueue", ATTR_QUIET)
    yield _tried(
        "/proc and /sys",
        probes.run(_USERNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC, kernels),
        NESTED,
        "fresh ones for each container",
        needed=True,
    )
    yield _tried(
        "tty",
        _pty()
        or probes.run(
            _USERNS,
            [
                *probes.scratch(folders=("pts",)),
                *probes.mount(
                    "devpts", {"newinstance": None, "ptmxmode": "0666"}, f"{stage}/pts", ATTR_QUIET & ~4
                ),
            ],
        ),
        "mount devpts with ptmxmode=0666 on this host",
        "terminals of its own for each container",
    )


def _pty() -> Refusal | None:
    try:
        for fd in os.openpty():
            os.close(fd)
    except OSError as error:
        return Refusal("openpty", error.errno or errno.EIO)
    return None


def _layer_disk(probes: Probes, owner: Owner | None) -> Item:
    """An overlay whose upper is a directory of the data folder."""
    name = 'upper="disk"'
    if owner is None:
        return Item(name, "missing", "it needs the state folder", "see the state folder")
    try:
        place = owner.disk_dir()
    except (IsoboxError, OSError) as error:
        return _failed(name, error, "set ISOBOX_DATA_DIR to a directory on a disk")
    stage = probes.stage
    fds: list[int] = []
    try:
        ops = probes.scratch(folders=("disk", "lower", "merged"))
        if os.geteuid() == 0:
            os.chown(place, probes.id_map.root_uid, probes.id_map.root_gid)
            fds.append(_native.clone_tree(place))
            ops.append(make("TAKE_TREE", 0, note=place))
        else:
            ops.append(make("OPEN_TREE", 1, HOST_PATH, strings=(os.fsencode(place),)))
        ops.append(make("ATTACH", HOST_PATH, strings=(f"{stage}/disk".encode(),)))
        ops += [
            make("MKDIR", 0o755, HOST_PATH, 1, strings=(f"{stage}/disk/{sub}".encode(),))
            for sub in ("u", "w")
        ]
        options: dict[str, str | None] = {
            "lowerdir": f"{stage}/lower",
            "upperdir": f"{stage}/disk/u",
            "workdir": f"{stage}/disk/w",
            "userxattr": None,
            "volatile": None,
        }
        ops += probes.mount("overlay", options, f"{stage}/merged")
        refused = probes.run(_USERNS, [*ops, probes.file("merged/file", b"x")], fds)
    except OSError as error:
        refused = Refusal(place, error.errno or errno.EIO)
    finally:
        for fd in fds:
            os.close(fd)
        owner.discard(place)
    if refused is not None and refused.where == "FSCONFIG_STRING" and refused.errno == errno.EINVAL:
        return Item(name, "missing", *disk_refused(owner.data)[1:])
    return _tried(name, refused, disk_refused(owner.data)[2], owner.data)


def _idmapped(probes: Probes, owner: Owner | None) -> Item:
    """Folders and archives as images: their root has to be root inside."""
    name = "folder and tar images"
    if probes.id_map.single:
        return Item(name, "degraded", "all files belong to root inside", "see the id ranges")
    if os.geteuid() != 0:
        return Item(name, "works", "owners by newuidmap's ranges")
    if owner is None:
        return Item(name, "missing", "it needs the state folder", "see the state folder")
    try:
        place = owner.disk_dir()
        fd = _native.clone_tree(place)
        try:
            with probes.process(CLONE_NEWUSER) as (_, pid, _):
                userns_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _native.mount_setattr(fd, 0, userns_fd=userns_fd)
                finally:
                    os.close(userns_fd)
        finally:
            os.close(fd)
            owner.discard(place)
    except UnsupportedError as error:
        return _failed(name, error)
    except (IsoboxError, OSError) as error:
        code = error.errno if isinstance(error, OSError) else None
        why = os.strerror(code) if code else str(error)
        remedy = (
            "use Linux 5.19 and a file system with idmapped mounts (ext4, xfs, btrfs) for ISOBOX_DATA_DIR"
        )
        if features().in_user_namespace:
            remedy = "only the machine's root can make them: run isobox outside of the container around it"
        return Item(name, "missing", f"an idmapped mount of {owner.data}: {why}", remedy)
    if not features().since("idmapped_overlay"):
        return Item(name, "missing", features().why("idmapped_overlay"), "boot a newer kernel")
    return Item(name, "works", "owners by idmapped mounts")


def _disk_limit(probes: Probes) -> Item:
    """A file larger than the scratch file system must not fit."""
    name = "disk limit"
    refused = probes.run(_USERNS, [*probes.scratch(65536), probes.file("big", bytes(262144))])
    if refused is None:
        return Item(name, "missing", "a file system took more than its size", "use a newer kernel")
    if refused.errno != errno.ENOSPC:
        return _tried(name, refused, "")
    return Item(
        name,
        "degraded",
        'enforced with upper="memory"; refused with upper="disk"',
        'use upper="memory" with disk=',
    )


def _limits(stack: contextlib.ExitStack, owner: Owner | None) -> Iterator[Item]:
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
        return _failed(name, error)
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


def _walls(probes: Probes) -> Iterator[Item]:
    name = "seccomp"
    try:
        program = seccomp.compile("default")
    except IsoboxError as error:
        remedy = error.remedy if isinstance(error, UnsupportedError) else ""
        yield Item(name, "missing", str(error), remedy, needed=True)
        return
    assert program is not None
    refused = probes.run(_USERNS, [make("NO_NEW_PRIVS"), make("SECCOMP", strings=(program,))])
    yield _tried(name, refused, "use a kernel with CONFIG_SECCOMP_FILTER", "the default profile", needed=True)
    yield _landlock(probes)


def _landlock(probes: Probes) -> Item:
    name = "landlock"
    facts = features()
    remedy = "boot Linux 6.12 or newer, with landlock among the modules of its option lsm="
    if not facts.landlock:
        return Item(name, "missing", facts.why(name), remedy)
    rules = (0xFFFF, 0x3, 0x3) if facts.landlock_scopes else (0x1, 0, 0)
    ops = [make("NO_NEW_PRIVS"), make("LANDLOCK_RULESET", *rules), make("LANDLOCK_RESTRICT", 1)]
    refused = probes.run(_USERNS, ops)
    if refused is not None or facts.landlock_scopes:
        return _tried(name, refused, remedy, f"version {facts.landlock_abi} of its ABI")
    kinds = {"landlock_paths": "paths", "landlock_ports": "TCP ports"}
    some = [what for fact, what in kinds.items() if getattr(facts, fact)]
    there = f"{facts.why('landlock_scopes')}: rules for {' and '.join(some) or 'nothing that isobox offers'}"
    return Item(name, "degraded", f"{there}; no scopes", remedy)


def _container() -> Item:
    """All of it together: a container on the host image that runs a program."""
    name = "container"
    try:
        result = run(["true"], timeout=30)
    except UnsupportedError as error:
        return Item(name, "missing", f"{error.feature}: {error.why}", error.remedy, needed=True)
    except (IsoboxError, OSError) as error:
        return Item(name, "missing", str(error), getattr(error, "hint", ""), needed=True)
    if not result.ok:
        return Item(
            name, "missing", f"'true' ended with {result.reason}, {result.returncode}", "", needed=True
        )
    return Item(name, "works", "started on the host image, ran a program, and was removed", needed=True)


def _zstd() -> Item:
    if features().zstd:
        return Item("zstd", "works", "archives and layers with Zstandard")
    return Item("zstd", "missing", features().why("zstd"), "pip install 'isobox[zstd]'")
