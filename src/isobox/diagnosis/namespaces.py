"""Namespaces, and the ids of a container's users."""

from __future__ import annotations

import os
from collections.abc import Iterator

from isobox import idmap
from isobox.findings import Item
from isobox.host import features
from isobox.plan.ops import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUTS,
    make,
)
from isobox.probes import Probes, Refusal

from .outcome import USERNS, tried


def try_namespaces(probes: Probes) -> Iterator[Item]:
    """Try namespaces, and the end of all that is in them."""
    refused = probes.run(USERNS, [])
    only_ranges = refused is not None and refused.where == "newuidmap"
    yield tried(
        "user namespace",
        None if only_ranges else refused,
        "",
        "root inside is nobody outside",
        needed=True,
    )
    yield _ids(probes, refused)
    rest = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
    late = [make("UNSHARE", CLONE_NEWCGROUP, note="cgroup namespace")]
    yield tried(
        "pid, ipc, uts, cgroup namespaces",
        probes.run(USERNS | rest, [*late, make("HOSTNAME", strings=(b"doctor",))]),
        "use a kernel that is built with them",
        needed=True,
    )
    yield tried(
        "network namespace",
        probes.run(USERNS | CLONE_NEWNET, [make("LOOPBACK", note="lo up")]),
        "use a kernel that is built with CONFIG_NET_NS, or network='host'",
        "its own loopback",
    )
    yield tried(
        "time namespace",
        probes.run(USERNS, [make("UNSHARE", CLONE_NEWTIME, note="time namespace")]),
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
        return tried(name, refused, "", needed=True)
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
