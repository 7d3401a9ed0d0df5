"""A scope of systemd's for this process, where its own group of v2 is not for it to divide.

systemd divides the groups of a machine, and hands one on to whoever asks for it: a transient scope with
``Delegate=yes``, made around a process that runs already (org.freedesktop.systemd1(5), StartTransientUnit;
https://systemd.io/CGROUP_DELEGATION/). An ordinary user asks the manager of that user, root the system's.
It moves this process for good, at most once; its threads go with it, its children of before do not, those
of later are born there. The scope ends with the last process in it, and systemd removes what is left of it.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import frozen

from .bus import BUS, BusError, Connection, installed
from .discovery import CgroupHost, discover, own_group

SWITCH: Final = "ISOBOX_SYSTEMD_SCOPE"
"""The environment variable that says no, with ``0``."""

UNIT: Final = re.compile(r"/isobox-\d+-[0-9a-f]{8}\.scope(/|$)")
"""What a path in such a scope has in it."""

_SECONDS: Final = 25.0
"""For one connection: connecting, asking, and the moving. As long as libsystemd waits for any answer
(sd_bus_get_method_call_timeout(3)): on a busy machine systemd may take seconds."""

_MANAGER: Final = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
_MATCH: Final = f"type='signal',sender='{_MANAGER[0]}',interface='{_MANAGER[2]}',member='JobRemoved'"
_INFINITY: Final = 2**64 - 1
_ESCAPED: Final = re.compile("%([0-9A-Fa-f]{2})")


@frozen
class Refusal:
    """Why there is no scope, and the one command or setting that would help."""

    why: str
    remedy: str


@frozen
class Door:
    """A socket behind which a manager may be reached, through a message bus or directly."""

    path: str
    bus: bool


def booted() -> bool:
    """Return whether systemd is this machine's init, as sd_booted(3) does."""
    return os.path.isdir("/run/systemd/system")


def wanted(host: CgroupHost) -> bool:
    """Return whether this process would be better off in a scope of its own.

    Root can make groups anywhere. But beside its own group they lie in one that systemd divides, and
    that may lose its controllers whenever a unit starts or stops.
    """
    if host.layout != "v2" or not booted():
        return False
    usable = [controller for controller in host.controllers.values() if controller.writable]
    if os.geteuid() == 0:
        return not usable or any(controller.borrowed for controller in usable)
    return not usable


def why_no_manager() -> str:
    """Return why there is no manager of systemd that this user could ask; "" where there is one."""
    if not booted():
        return "this machine was not booted with systemd"
    place = _runtime(os.environ)
    if place and os.path.exists(f"{place}/systemd/private"):
        return ""
    return f"no manager of systemd runs for {'root' if os.geteuid() == 0 else 'this user'}"


def obstacle() -> Refusal | None:
    """Return what keeps this process from asking at all; None where it can."""
    if os.environ.get(SWITCH) == "0":
        return Refusal(f"{SWITCH}=0 says not to ask it", f"unset {SWITCH}, or {_by_hand()}")
    why = why_no_manager()
    if why:
        uid = os.geteuid()
        return Refusal(why, _by_hand() if uid == 0 else f"as root: loginctl enable-linger {uid}")
    if not installed():
        return Refusal("the Python package jeepney is not installed", "pip install 'isobox[systemd]'")
    return None


def _by_hand() -> str:
    user = "" if os.geteuid() == 0 else "--user "
    return f"run it as: systemd-run {user}--scope -p Delegate=yes PROGRAM"


def settle() -> Refusal | None:
    """Have this process in a scope of its own, if that is `wanted`. Where it can't be had, say why.

    Asked once by a process: what was refused stays refused, without another wait.
    """
    global _refused
    with _lock:
        if not wanted(discover()):
            return None
        if _refused is not None:
            return _refused
        refusal = obstacle()
        # Looked at anew: an answer that Ctrl-C cut off may have moved this process.
        if refusal is None and wanted(discover(anew=True)):
            refusal = _refused = _ask()
        return refusal


_lock = threading.Lock()
_refused: Refusal | None = None


def _forget() -> None:
    """In the child of a fork: another process, which may ask for itself."""
    global _lock, _refused
    _lock = threading.Lock()
    _refused = None


os.register_at_fork(after_in_child=_forget)


def _ask() -> Refusal | None:
    reasons = []
    for door in doors(os.environ, os.geteuid()):
        try:
            with Connection(door.path, bus=door.bus, seconds=_SECONDS) as connection:
                if door.bus:
                    connection.call(BUS, "AddMatch", "s", (_MATCH,))
                connection.call(_MANAGER, "Subscribe")
                # From here on it is systemd that answers: another door leads to the same.
                reason = _start(connection)
        except BusError as error:
            reasons.append(f"{door.path}: {error}")
            continue
        if not reason and wanted(discover(anew=True)):
            reason = "the scope that it made can't be divided either"
        if not reason:
            return None
        reasons = [reason]
        break
    return Refusal("; ".join(reasons), _by_hand())


def _start(connection: Connection) -> str:
    """Have the scope made and this process moved; return what went wrong, or ""."""
    unit = f"isobox-{os.getpid()}-{os.urandom(4).hex()}.scope"
    try:
        answer = connection.call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", request(unit))
        for body in connection.signals(_MANAGER[2], "JobRemoved"):
            if len(body) == 4 and body[1:3] == (*answer, unit):
                if body[3] != "done":
                    return f"its job for {unit} ended as {body[3]!r}"
                break
    except BusError as error:
        return f"{unit}: {error}"
    group = own_group()
    return "" if os.path.basename(group) == unit else f"it made {unit}, but this process is in {group}"


def request(unit: str) -> tuple[object, ...]:
    """Return what StartTransientUnit is called with."""
    properties: list[tuple[str, tuple[str, object]]] = [
        ("Description", ("s", f"Containers of {os.path.basename(sys.argv[0]) or 'python'} (isobox)")),
        # 0 is the sender, whatever its number is in the namespace of the manager.
        ("PIDs", ("au", [0])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
        # As for a login session: the default, 15% of what the machine has, is meant for one service. What the
        # slices around it allow holds.
        ("TasksMax", ("t", _INFINITY)),
    ]
    slice_ = enclosing_slice(own_group()) if os.geteuid() == 0 else ""
    if slice_:
        properties.append(("Slice", ("s", slice_)))
    return unit, "fail", properties, []


def enclosing_slice(group: str) -> str:
    """Return the slice around a group of the system manager, whose limits go on holding; "" if none.

    >>> enclosing_slice("/user.slice/user-0.slice/session-2.scope")
    'user-0.slice'
    """
    return next((name for name in reversed(group.split("/")) if name.endswith(".slice")), "")


def doors(environment: Mapping[str, str], uid: int) -> tuple[Door, ...]:
    """Return where the manager may be reached: on the bus, which is the documented way, then directly.

    A bus that is named in the environment may be another one (``dbus-run-session``): systemd isn't there.
    """
    place = _runtime(environment)
    named = environment.get("DBUS_SYSTEM_BUS_ADDRESS" if uid == 0 else "DBUS_SESSION_BUS_ADDRESS", "")
    usual = "/run/dbus/system_bus_socket" if uid == 0 else f"{place}/bus"
    buses = dict.fromkeys([*socket_paths(named), *([usual] if place else [])])
    direct = [Door(f"{place}/systemd/private", bus=False)] if place else []
    return (*(Door(path, bus=True) for path in buses), *direct)


def socket_paths(address: str) -> Iterator[str]:
    r"""Yield the UNIX sockets of a D-Bus address; an abstract one begins with ``"\0"``.

    >>> list(socket_paths("tcp:host=h,port=1;unix:path=/run/user/1000/bus,guid=12;unix:abstract=/tmp/a%20b"))
    ['/run/user/1000/bus', '\x00/tmp/a b']
    """
    for each in address.split(";"):
        transport, _, rest = each.partition(":")
        for pair in rest.split(",") if transport == "unix" else ():
            key, _, value = pair.partition("=")
            value = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value)
            if key == "path":
                yield value
            elif key == "abstract":
                yield "\0" + value


def _runtime(environment: Mapping[str, str]) -> str:
    """Return the directory with the manager's sockets, or "". sudo and su hand on another user's."""
    uid = os.geteuid()
    if uid == 0:
        return "/run"
    for path in (environment.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        try:
            if os.path.isabs(path) and os.stat(path).st_uid == uid:
                return path
        except OSError:
            continue
    return ""
