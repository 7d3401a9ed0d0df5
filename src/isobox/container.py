"""The life of a container: create, start, exec, pause, resume, stop, remove.

Every resource goes on an ExitStack in the line that makes it; `stop` unwinds the stack. No system calls
are made here: start.py, process.py and control.py do.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal as signals
import threading
import time
import warnings
import weakref
from contextlib import ExitStack
from subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attrs import evolve

from . import _native
from . import files as files
from .errors import CgroupError, CleanupError, SpecError, StateError, UnsupportedError
from .explain import explain
from .options import PROGRAM_NAMES, ContainerOptions, ExecOptions, Path, ProgramOptions
from .plan.exec import SEARCH_PATH, ExecTemplate, User, exec_ops
from .process import Process, encode_input
from .result import Result
from .rootfs.changes import Change, changes
from .rootfs.views import views, visible_cpus
from .shared import Shared, shared
from .spec import Args, ContainerSpec, ExecSpec
from .start import Launched, explain_plan, launch, make_id
from .streams import connect, terminal
from .usage import Usage
from .users import FILE_MAX, resolve

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from typing_extensions import Unpack

State: TypeAlias = Literal["creating", "created", "running", "paused", "stopped"]

_STOP_SIGNALS_SECONDS = 10.0
_live: weakref.WeakSet[Container] = weakref.WeakSet()


class Container:
    """A Linux container. Entering the ``with`` block starts it, leaving stops and removes it.

    Options (all by keyword but `image`; None means no limit):

    - `image`: ``"host"``, this machine's system copy-on-write; or the path of a root folder or of a tar
      of one (plain, gzip, zstd).
    - `cpu`: cores, a float > 0. `cpu_weight`: 1..10000. `cpuset`: ``"0-2,5"`` or ints.
    - `memory`: bytes or ``"256M"`` (powers of 1024); exceeding it ends the program with reason "oom".
      `swap`: bytes on top of it, 0 by default.
    - `pids`: processes and threads, 1024 by default. `io`: a list of `IoLimit`.
    - `disk`: bytes that the container may write; past it, writes get ENOSPC.
    - `rlimits`: ``{"nofile": 1024}`` or ``{"nofile": (soft, hard)}``.
    - `network`: ``"none"`` (loopback only) or ``"host"``.
    - `mounts`: `Mount.bind`, `Mount.tmpfs` or ``"src:dst[:ro]"``.
    - `env`, `workdir`, `user`: what programs get unless an exec says otherwise.
    - `read_only`, `upper` ("memory" or "disk"), `userns` ("auto" or "host"), `cap_add`, `cap_drop`,
      `seccomp`, `devices`, `namespaces`, `name`, `hostname`, `labels`.

    Raises `SpecError` for what makes no sense; starting raises `UnsupportedError`, `SetupError`,
    `CgroupError`, `ImageError`.

    >>> with Container("host", cpu=0.5, memory="256M") as c:
    ...     c.exec(["echo", "hello"], text=True).stdout
    'hello\\n'
    """

    def __init__(self, image: Path = "host", **options: Unpack[ContainerOptions]) -> None:
        _known(options, ContainerOptions.__annotations__)
        self._spec = ContainerSpec.make(image, **options)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._state: State = "creating"
        self._stack = ExitStack()
        self._launched: Launched | None = None
        self._shared: Shared | None = None
        self._id = ""
        self._processes: dict[int, Process] = {}
        self._count = 0
        self._users: dict[str | None, User] = {}
        self._templates: dict[tuple[object, ...], _Templates] = {}
        self._was_killed = False
        self._ending = False
        self._started = 0
        self._state = "created"

    def __repr__(self) -> str:
        return f"<isobox.Container {self.name or 'not started'} {self._spec.image!r} {self.state}>"

    # What it is

    @property
    def id(self) -> str:
        """Twelve hex digits, given at the start; "" before."""
        return self._id

    @property
    def name(self) -> str:
        """The name that was given, else the id."""
        return self._spec.name or self._id

    @property
    def image(self) -> str:
        """The image that was given."""
        return self._spec.image

    @property
    def spec(self) -> ContainerSpec:
        """Everything that was asked for, checked and converted."""
        return self._spec

    @property
    def pid(self) -> int | None:
        """The pid of its init, as this process sees it; None unless it runs."""
        launched = self._launched
        return launched.pid if launched is not None and self.state in ("running", "paused") else None

    @property
    def state(self) -> State:
        """``created``, ``running``, ``paused`` or ``stopped``."""
        if self._state in ("running", "paused") and self._init_ended():
            return "stopped"
        return self._state

    def _init_ended(self) -> bool:
        launched = self._launched
        if launched is None:
            return True
        try:
            return bool(select.select([launched.pidfd], [], [], 0)[0])
        except (OSError, ValueError):
            return True

    # Starting and ending

    def start(self) -> Self:
        """Start it; the same as entering the ``with`` block."""
        self._own()
        with self._lock:
            if self._state != "created":
                raise StateError(f"start: the container is {self._state}; make a new one")
            self._shared = shared()
            self._id = make_id()
            with ExitStack() as stack:
                self._launched = launch(self._spec, self._shared, self._id, stack)
                self._stack = stack.pop_all()
            self._started = time.monotonic_ns()
            self._state = "running"
            _live.add(self)
        return self

    def _own(self) -> None:
        if self._pid != os.getpid():
            raise StateError("this container belongs to the process that forked; make one here")

    def stop(self, timeout: float = 10.0) -> None:
        """End it: SIGTERM to the running programs, SIGKILL to all after `timeout` seconds. Idempotent."""
        self._own()
        if self.state == "paused":
            self.resume()
        running = list(self._processes.values())
        if running and timeout > 0 and self.state == "running":
            deadline = time.monotonic() + timeout
            for process in running:
                process.terminate()
            for process in running:
                with contextlib.suppress(Exception):
                    process.wait(max(0.0, deadline - time.monotonic()))
        self.remove()

    def remove(self) -> None:
        """End it at once and give everything back. Idempotent. Raises `CleanupError`."""
        if self._pid != os.getpid():
            return  # a forked child leaves its parent's container alone
        with self._lock:
            if self._state == "stopped":
                return
            self._ending = True
            if self._processes:
                self._was_killed = True
            launched = self._launched
            if launched is not None:
                self._thaw_for_the_end(launched)
            errors: list[BaseException] = []
            try:
                if launched is not None and self._processes:
                    # Programs that someone waits for end first, so that their costs can be read.
                    with contextlib.suppress(OSError, StateError):
                        signals.pidfd_send_signal(launched.pidfd, signals.SIGKILL)
                    for process in list(self._processes.values()):
                        with contextlib.suppress(Exception):
                            process.wait(2.0)
                self._stack.close()
            except BaseException as error:  # noqa: BLE001 - told below, once the state is right
                errors.append(error)
            self._state = "stopped"
            _live.discard(self)
        if errors:
            if not isinstance(errors[0], Exception):
                raise errors[0]
            raise CleanupError(f"container {self.name}", tuple(errors)) from errors[0]

    def _thaw_for_the_end(self, launched: Launched) -> None:
        if self._state == "paused":
            with contextlib.suppress(CgroupError, OSError):
                launched.group.thaw()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __del__(self) -> None:
        if getattr(self, "_state", "stopped") in ("running", "paused") and self._pid == os.getpid():
            warnings.warn(
                f"{self!r} was never removed: use it in a with block", ResourceWarning, stacklevel=2
            )
            with contextlib.suppress(Exception):
                self.remove()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the container has stopped; False after `timeout` seconds."""
        launched = self._running_or_stopped()
        if launched is None or self._state == "stopped":
            return True
        try:
            return bool(select.select([launched.pidfd], [], [], timeout)[0])
        except (OSError, ValueError):
            return True

    def _running_or_stopped(self) -> Launched | None:
        if self._state == "created":
            raise StateError("the container has not been started")
        return self._launched

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to every program that was exec'd; SIGKILL ends the whole container."""
        launched = self._running("kill", paused=True)
        number = int(signals.Signals(signal))
        if number == signals.SIGKILL:
            self._was_killed = True
            self._thaw_for_the_end(launched)
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(launched.pidfd, signals.SIGKILL)
            self.wait(10.0)
            return
        for process in list(self._processes.values()):
            process.send_signal(number)

    def pause(self) -> None:
        """Freeze every process of the container (the cgroup freezer)."""
        launched = self._running("pause")
        with self._lock:
            launched.group.freeze()
            self._state = "paused"

    def resume(self) -> None:
        """Let a paused container go on."""
        self._own()
        if self.state != "paused" or self._launched is None:
            raise StateError(f"resume: the container is {self.state}, not paused")
        with self._lock:
            self._launched.group.thaw()
            self._state = "running"

    def update(self, **limits: Any) -> None:
        """Change limits of the running container: cpu, cpu_weight, cpuset, memory, swap, pids, io.

        >>> with Container(memory="64M") as c:
        ...     c.update(memory="128M", pids=100)
        ...     c.spec.limits.memory
        134217728
        """
        launched = self._running("update", paused=True)
        spec = self._spec.with_limits(**limits)
        launched.group.update(spec.limits)
        self._spec = spec
        allowed = os.sched_getaffinity(0)
        cpus = visible_cpus(spec.limits, allowed)
        for path, content in views(spec.limits, sorted(cpus or allowed)).items():
            with contextlib.suppress(OSError):
                fd = launched.control.open(path, os.O_WRONLY | os.O_TRUNC)
                try:
                    os.write(fd, content)
                finally:
                    os.close(fd)
        if {"cpu", "cpuset"} & limits.keys():
            self._pin(launched, cpus or allowed)

    def _pin(self, launched: Launched, cpus: set[int]) -> None:
        for pid in {launched.pid, *launched.group.threads()}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.sched_setaffinity(pid, cpus)

    def _running(self, verb: str, *, paused: bool = False) -> Launched:
        self._own()
        state = self.state
        if state == "running" or (paused and state == "paused"):
            assert self._launched is not None
            return self._launched
        cure = {"created": "start it, or use it in a with block", "paused": "resume it first"}
        raise StateError(f"{verb}: the container is {state}; {cure.get(state, 'make a new one')}")

    @property
    def _control(self) -> Any:
        assert self._launched is not None
        return self._launched.control

    def _is_ending(self) -> bool:
        return self._ending or self._was_killed

    def _gone(self) -> StateError:
        return StateError("the container has stopped")

    def _forget(self, number: int) -> None:
        self._processes.pop(number, None)

    # Programs

    def exec(self, args: Args, **options: Unpack[ExecOptions]) -> Result[Any]:
        """Run one program to its end and return its Result.

        - `args`: a sequence of str or path-like.
        - `input`: bytes (or str with ``text=True``) for stdin; `stdin`, `stdout`, `stderr`: PIPE,
          DEVNULL, STDOUT, a file, a descriptor, None to inherit. Default: stdin empty, output captured.
        - `text`, `encoding` ("utf-8"), `errors` ("replace": what a program writes is not trusted).
        - `env`, `workdir`, `user`: instead of the container's (`env`: on top of it).
        - `timeout`: wall-clock seconds; `cpu_time`: user + system seconds. When one passes, everything
          that this exec started is killed, and `Result.reason` says so.
        - `output_limit`: bytes kept in memory, "16M"; past it the program is ended. None: no bound.
        - `memory`, `pids`: this exec's own limits, below the container's.
        - `tty`: a terminal; stdout has both streams.
        - `check`: raise `ProcessError` unless the program exited with 0.
        - `measure`: a cgroup of its own, so that its costs are its own.

        Raises `SpecError`, `StateError`, `ExecError` (no such program, not executable, too many
        arguments).

        >>> with Container() as c:
        ...     c.exec(["cat"], input=b"hello").stdout
        b'hello'
        """
        check = options.pop("check", False)
        data = options.pop("input", None)
        if data is not None and options.get("stdin", DEVNULL) not in (DEVNULL, PIPE):
            raise SpecError("input", data, "none where stdin is given")
        if data is not None or options.get("tty"):
            options["stdin"] = PIPE
        process, streams = self._launch_program(args, options, capture=True, data=data)
        process._run(streams)
        result = process.result()
        return result.check() if check else result

    def popen(self, args: Args, **options: Unpack[ProgramOptions]) -> Process:
        """Start one program and return a `Process` at once; takes what `exec` takes but `input`, `check`.

        Streams default to the ones of `exec`: stdin empty, stdout and stderr PIPE. Limits in time and
        memory are enforced whether or not anyone waits.
        """
        process, streams = self._launch_program(args, options, capture=False)
        process._open_streams(streams)
        try:
            process._await_start()
        except BaseException:
            self._forget(process._number)
            process._group.close()
            process._ended.set()
            process.close()
            raise
        process._guard_limits()
        return process

    def _launch_program(
        self, args: Args, options: Any, *, capture: bool, data: object = None
    ) -> tuple[Process, Any]:
        launched = self._launched
        if launched is None or self._state != "running" or self._pid != os.getpid():
            launched = self._running("exec")  # says what is wrong; an init that is gone is met when sending
        stdin = options.pop("stdin", DEVNULL)
        stdout = options.pop("stdout", PIPE)
        stderr = options.pop("stderr", PIPE)
        _known(options, PROGRAM_NAMES)
        spec = ExecSpec.make(args, **options)
        encoded = encode_input(data, spec)  # before anything runs: it may be of the wrong kind
        with ExitStack() as kept, ExitStack() as lent:
            templates = self._template(launched, spec)
            if spec.tty:
                streams = terminal(launched.control.open("/dev/ptmx", os.O_RDWR), lent, kept)
            else:
                streams = connect(stdin, stdout, stderr, lent, kept)
            if spec.cpu_time is not None and not spec.measure:
                raise SpecError(
                    "measure", False, "True where cpu_time is given: the time is read from a cgroup"
                )
            group = launched.group.child(spec.memory, spec.pids, spec.measure)
            kept.callback(group.close)
            if spec.cpu_time is not None and group.cpu_time() is None:
                raise UnsupportedError(
                    "cpu_time", "no cgroup with CPU accounting is writable here", "see 'isobox doctor'"
                )
            status, theirs = os.pipe()
            kept.callback(os.close, status)
            lent.callback(os.close, theirs)
            with self._lock:
                self._count += 1
                number = self._count
            fds = [theirs, *streams.inside, *group.join_fds]
            cgroup = -1
            if group.into_fd is not None:
                cgroup = len(fds)
                fds.append(group.into_fd)
            flags = (_native.HOLD if capture else _native.WANT_START) | (
                0 if group.present else _native.OWN_PIDNS
            )
            joined = templates.joining(len(group.join_fds))
            process = Process(
                self, spec, number=number, status_fd=status, group=group, ops=joined.ops, kept=kept, data=encoded
            )
            try:
                self._processes[number] = process
                launched.control.exec(
                    joined.encode(spec.args), fds, number=number, flags=flags, cgroup=cgroup
                )
            except BaseException:
                self._forget(number)
                process._status_fd = -1
                process._ended.set()
                raise
            group.joined()
            process._kept = kept.pop_all()
        return process, streams

    def _template(self, launched: Launched, spec: ExecSpec) -> _Templates:
        """The part of the plan that does not change from exec to exec."""
        env_key = None if spec.env is None else tuple(sorted(spec.env.items()))
        key = (spec.user, spec.workdir, spec.tty, env_key)
        found = self._templates.get(key)
        if found is None:
            found = _Templates(self, launched, spec)
            if len(self._templates) < 64:
                self._templates[key] = found
        return found

    def _user(self, launched: Launched, name: str | None) -> User:
        if name is None:
            name = self._spec.user
        found = self._users.get(name)
        if found is None:
            found = resolve(name, lambda path: self._text_of(launched, path))
            if launched.id_map is not None:
                _check_mapped(found, launched)
            self._users[name] = found
        return found

    def _text_of(self, launched: Launched, path: str) -> str:
        try:
            return files.read_bytes(launched.control, path, limit=FILE_MAX).decode("utf-8", "replace")
        except OSError:
            return ""

    # Files

    def read_bytes(self, path: Path) -> bytes:
        """Return the content of a file."""
        return files.read_bytes(self._running("read_bytes").control, os.fspath(path))

    def read_text(self, path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content of a file as text."""
        return self.read_bytes(path).decode(encoding, errors)

    def write_bytes(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Write a file, made or replaced; it belongs to the container's root."""
        files.write_bytes(self._running("write_bytes").control, os.fspath(path), data, mode)

    def write_text(self, path: Path, text: str, encoding: str = "utf-8", mode: int = 0o644) -> None:
        """Write a file of text."""
        self.write_bytes(path, text.encode(encoding), mode)

    def copy_in(self, source: Path, target: Path) -> None:
        """Copy a file or a tree of the host into the container, modes and symlinks kept."""
        files.copy_in(self._running("copy_in").control, os.fspath(source), os.fspath(target))

    def copy_out(self, source: Path, target: Path) -> None:
        """Copy a file or a tree of the container to the host; never through a link out of either."""
        files.copy_out(self._running("copy_out").control, os.fspath(source), os.fspath(target))

    def changes(self) -> list[Change]:
        """Return what the container changed in its root file system, sorted by path."""
        launched = self._running("changes", paused=False)
        rootfs = launched.rootfs
        made = [mount.target for mount in self._spec.mounts] + [link.path for link in rootfs.links]
        return changes(launched.control, rootfs.trees, rootfs.skeleton, made)

    # Looking at it

    def stats(self) -> Usage:
        """Return what the container has used since it was started, as of now."""
        launched = self._running("stats", paused=True)
        wall = (time.monotonic_ns() - self._started) / 1e9
        usage = launched.group.read()
        return evolve(
            usage, wall_time=wall, sources={**usage.sources, "wall_time": "clock_gettime(CLOCK_MONOTONIC)"}
        )

    def explain(self) -> str:
        """Return the plan in order, op by op, with paths and values; works before the start too."""
        self._own()
        launched = self._launched
        if launched is None:
            return explain(self._spec, explain_plan(self._spec, shared()), None)
        return explain(self._spec, launched.ops, launched)


class _Templates:
    """The templates of one kind of exec, made when first needed."""

    def __init__(self, container: Container, launched: Launched, spec: ExecSpec) -> None:
        settings = container.spec
        user = container._user(launched, spec.user)
        workdir = spec.workdir or settings.workdir or "/"
        base = {"PATH": SEARCH_PATH, "HOME": user.home, "LANG": "C.UTF-8"}
        if spec.tty:
            base["TERM"] = "xterm"
        self._env = base | settings.env | (spec.env or {})
        self._ops = {
            "user": user,
            "groups_allowed": launched.id_map is None or not launched.id_map.deny_setgroups,
            "rlimits": launched.rlimits,
            "seccomp": launched.seccomp,
            "workdir": workdir,
            "tty": spec.tty,
        }
        self._made: dict[int, ExecTemplate] = {}

    def joining(self, joins: int) -> ExecTemplate:
        found = self._made.get(joins)
        if found is None:
            ops: Any = self._ops
            found = self._made[joins] = ExecTemplate.make(exec_ops(joins=joins, **ops), self._env)
        return found


def _check_mapped(user: User, launched: Launched) -> None:
    from .idmap import outside

    assert launched.id_map is not None
    try:
        outside(launched.id_map.uid_lines, user.uid)
        outside(launched.id_map.gid_lines, user.gid)
    except LookupError:
        raise UnsupportedError(
            f"user {user.uid}:{user.gid}",
            "the container's user namespace has no such id",
            "give this user a range in /etc/subuid and /etc/subgid (usermod --add-subuids 100000-165535 "
            "--add-subgids 100000-165535 NAME) and install the package uidmap",
        ) from None


def _known(options: Any, names: Any) -> None:
    for name in options:
        if name not in names:
            raise TypeError(f"unknown option {name!r}: choose from {', '.join(sorted(names))}")


def run(args: Args, image: Path = "host", **options: Any) -> Result[Any]:
    """Run one program in a container of its own and clean up: every option of Container and of exec.

    `memory` and `pids` are the container's. Options that both have (`env`, `workdir`, `user`) serve
    the same purpose here.

    >>> import isobox
    >>> isobox.run(["python3", "-c", "print(6 * 7)"], cpu=0.5, memory="256M", timeout=30, text=True).stdout
    '42\\n'
    """
    _known(options, PROGRAM_NAMES | ContainerOptions.__annotations__.keys())
    own = {name: options.pop(name) for name in list(options) if name in ContainerOptions.__annotations__}
    ExecSpec.make(args, **{n: v for n, v in options.items() if n not in _NOT_SPEC})
    with Container(image, **own) as container:
        return container.exec(args, **options)


_NOT_SPEC = frozenset({"input", "check", "stdin", "stdout", "stderr"})


@atexit.register
def _remove_all() -> None:
    for container in list(_live):
        with contextlib.suppress(Exception):
            container.remove()
