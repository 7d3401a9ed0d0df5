"""What the programs of one container share: their plans, their users, and whether it is at its end.

A `Process` knows its container by this alone.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Protocol

from . import files
from .control import Control
from .errors import StateError, UnsupportedError
from .idmap import outside
from .plan.exec import SEARCH_PATH, ExecTemplate, User, exec_ops, filter_plan
from .security.paths import covers
from .spec import ContainerSpec, ExecSpec, Limits
from .start import Launched
from .users import FILE_MAX, resolve

_TEMPLATES_MOST = 64
_FEW_PIDS = 64
"""Where so few are allowed, each of them is the programs' own."""


def check_owner(pid: int) -> None:
    """Raise `StateError` where this process is not `pid`, which made the container, but a fork of it."""
    if pid != os.getpid():
        raise StateError("this container belongs to the process that forked; make one here")


class Program(Protocol):
    """A `Process`, as its container sees it."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""

    def send_signal(self, signal: int) -> None:
        """Send a signal."""


class Programs:
    """See the module. `running` has those that have not been waited for, by their number.

    `killed`: the caller ended them, and a program's end is told so. `ending`: nothing needs to be
    cleaned up any more, since the whole container goes.
    """

    def __init__(self, launched: Launched, spec: ContainerSpec) -> None:
        self.launched = launched
        self.spec = spec
        self.running: dict[int, Program] = {}
        self._pid = os.getpid()
        self.killed = False
        self.ending = False
        self._count = 0
        self._oom_told = 0
        self._lock = threading.Lock()
        self._users: dict[str | None, User] = {}
        self._templates: dict[tuple[object, ...], ExecTemplate] = {}
        self._filtering: bool | None = None

    @property
    def control(self) -> Control:
        """The socket to the container's init."""
        return self.launched.control

    @property
    def paused(self) -> bool:
        """Whether nothing ends before the container goes on."""
        return self.control.paused

    @property
    def limits(self) -> Limits:
        """The container's limits as they are now."""
        return self.spec.limits

    def next_number(self) -> int:
        """What isobox-init knows the next exec by."""
        with self._lock:
            self._count += 1
            return self._count

    def is_ours(self) -> bool:
        """Return whether this process started them, rather than one that it was forked from."""
        return self._pid == os.getpid()

    def check_ours(self) -> None:
        """Raise `StateError` in a forked child."""
        check_owner(self._pid)

    def over(self, timeout: float = 0.0) -> bool:
        """Whether the container's init ends, and with it all that runs there, within `timeout` seconds."""
        return self.launched.pidfd.ended(timeout)

    def ran_out_of_memory(self, own: int | None, was_killed: bool) -> bool:
        """Whether the kernel killed processes of an exec for want of memory: `own`, where they were counted.

        Where they were not (``measure=False``), a program that was killed is told by the container's
        count, less what others have been told of.
        """
        if own == 0 or (own is None and not (was_killed and self.launched.group.present)):
            return False
        with self._lock:
            if own is None:
                own = max(0, self.launched.group.oom_kills() - self._oom_told)
            self._oom_told += own
            return own > 0

    def gone(self) -> StateError:
        """What to raise where its init is found to have ended."""
        return StateError("the container has stopped")

    def template(self, spec: ExecSpec, joins: int) -> ExecTemplate:
        """Return the part of the plan that does not change from exec to exec; `joins`: cgroups to join."""
        env_key = None if spec.env is None else tuple(sorted(spec.env.items()))
        if self._filtering is None and self._count:
            self._filter_ahead()
        key = (spec.user, spec.workdir, spec.tty, joins, env_key, self._filtering)
        found = self._templates.get(key)
        if found is None:
            found = self._make_template(spec, joins)
            if len(self._templates) < _TEMPLATES_MOST:
                self._templates[key] = found
        return found

    def _filter_ahead(self) -> None:
        """Install the filter once for all further programs, from the second one on.

        Only where the profile is known to let init's thread start programs.
        """
        launched, pids = self.launched, self.limits.pids
        with self._lock:
            if self._filtering is not None:
                return
            self._filtering = False
        if self.spec.seccomp != "default" or not launched.group.present:
            return
        if launched.group.unified:  # clone(2), all that the filter allows, can't start one in a group
            return
        if pids is None or pids >= _FEW_PIDS:
            with contextlib.suppress(OSError):
                self.control.filter(filter_plan(launched.filters))
                self._filtering = True

    def _make_template(self, spec: ExecSpec, joins: int) -> ExecTemplate:
        launched, settings = self.launched, self.spec
        filtered = bool(self._filtering)
        defaults = launched.defaults
        user = self._user(spec.user or settings.user or defaults.user)
        base = {"PATH": SEARCH_PATH, "HOME": user.home, "LANG": "C.UTF-8"}
        if spec.tty:
            base["TERM"] = "xterm"
        ops = exec_ops(
            joins=joins,
            user=user,
            groups_allowed=launched.id_map is None or not launched.id_map.deny_setgroups,
            rlimits=launched.rlimits,
            filters=() if filtered else launched.filters,
            workdir=spec.workdir or settings.workdir or defaults.workdir or "/",
            tty=spec.tty,
            landlock=launched.landlock,
            # Without a user namespace of its own, what hides the machine's settings lies over the old one.
            own_proc=None
            if launched.group.present or launched.id_map is None
            else covers(own_userns=True, capabilities=launched.capabilities),
            own_cgroupns=launched.group.unified and settings.namespaces["cgroup"] == "private",
        )
        env = {**base, **defaults.env, **settings.env, **(spec.env or {})}
        return ExecTemplate.make(ops, env, filtered=filtered)

    def _user(self, name: str | None) -> User:
        found = self._users.get(name)
        if found is None:
            found = resolve(name, self._text)
            self._check_mapped(found)
            self._users[name] = found
        return found

    def _text(self, path: str) -> str:
        try:
            return files.read_bytes(self.control, path, limit=FILE_MAX).decode("utf-8", "replace")
        except OSError:
            return ""

    def _check_mapped(self, user: User) -> None:
        id_map = self.launched.id_map
        if id_map is None:
            return
        try:
            outside(id_map.uid_lines, user.uid)
            outside(id_map.gid_lines, user.gid)
        except LookupError:
            raise UnsupportedError(
                f"user {user.uid}:{user.gid}",
                "the container's user namespace has no such id",
                "give this user a range in /etc/subuid and /etc/subgid (usermod --add-subuids 100000-165535 "
                "--add-subgids 100000-165535 NAME) and install the package uidmap",
            ) from None
