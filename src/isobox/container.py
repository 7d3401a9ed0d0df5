"""A container, as its users see it: what it is made from, and all that is done in it.

How it starts and ends is in lifecycle.py.
"""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import ExitStack
from subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Any

from attrs import evolve

from . import files as files
from . import forks
from .errors import SpecError
from .exec import start_program
from .explain import explain
from .lifecycle import Lifecycle, raise_as_setup_error
from .options import PROGRAM_NAMES, ConfigOptions, ContainerOptions, ExecOptions, Path, ProgramOptions, known
from .process import Process
from .programs import Programs
from .result import Result
from .rootfs.changes import Change, changes
from .rootfs.views import visible_cpus
from .shared import shared
from .show import show
from .sources import Closed
from .spec import Args, ContainerSpec, ExecSpec
from .start import Launched, explain_plan
from .usage import Usage

if TYPE_CHECKING:
    from typing import IO

    from typing_extensions import Unpack

    from .images.image import Image
    from .snapshots import Snapshot


class Container(Lifecycle):
    """A Linux container. Entering the ``with`` block starts it, leaving stops and removes it.

    Options (all by keyword but `image`; None means no limit):

    - `image`: ``"host"``, this machine's system copy-on-write; the name of an image of the store, such as
      ``"debian:12"``; the path (``/...``, ``./...`` or path-like) of a root folder or of a tar
      of one (plain, gzip, zstd); or a `Snapshot`.
    - `cpu`: cores, a float > 0. `cpu_weight`: 1..10000. `cpuset`: ``"0-2,5"`` or ints.
    - `memory`: bytes or ``"256M"`` (powers of 1024); exceeding it ends the program with reason "oom".
      `swap`: bytes on top of it, 0 by default.
    - `pids`: processes and threads, 1024 by default. `io`: a list of `IoLimit`.
    - `hugetlb`: bytes of huge pages by the size of such a page, ``{"2M": "64M"}``.
    - `disk`: bytes that the container may write; past it, or past one file for each 4 KiB of it (at
      least 1024), ENOSPC.
    - `rlimits`: ``{"nofile": 1024}`` or ``{"nofile": (soft, hard)}``. Not inherited is ``core``: it is 1, so
      that the kernel neither writes a core dump nor hands one to the handler of the host.
    - `network`: ``"none"`` (loopback only) or ``"host"``.
    - `mounts`: `Mount.bind`, `Mount.volume`, `Mount.tmpfs` or ``"src:dst[:ro]"``, where `src` is a path
      (``/...`` or ``./...``) or the name of a volume.
    - `env`, `workdir`, `user`: what programs get unless an exec says otherwise.
    - `read_only`, `upper` ("memory" or "disk"), `userns` ("auto" or "host"), `cap_add`, `cap_drop`,
      `seccomp`, `landlock` (rules, see `Landlock`), `devices`, `namespaces`, `name`, `hostname`, `labels`.

    Raises `SpecError` for what makes no sense; starting raises `UnsupportedError`, `SetupError`,
    `CgroupError`, `ImageError`.

    >>> with Container("host", cpu=0.5, memory="256M") as c:
    ...     c.exec(["echo", "hello"], text=True).stdout
    'hello\\n'
    """

    def __init__(self, image: Path | Image | Snapshot = "host", **options: Unpack[ContainerOptions]) -> None:
        known(options, ContainerOptions.__annotations__)
        snapshot: Snapshot | None = None
        if not isinstance(image, (str, os.PathLike)):
            image, snapshot = _begin_at(image, options.get("userns", "auto"))
        super().__init__(ContainerSpec.make(image, **options), snapshot)

    # What its image says

    @property
    def labels(self) -> dict[str, str]:
        """Those of its image, once it has been started, and its own over them."""
        programs = self._programs
        return {**(programs.launched.defaults.labels if programs else {}), **self._spec.labels}

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """The program that its image is for, once it has been started; `cmd` are its usual arguments.

        Both may be empty. Without an entrypoint, `cmd` begins with a program.
        """
        return self._programs.launched.defaults.entrypoint if self._programs else ()

    @property
    def cmd(self) -> tuple[str, ...]:
        """What its image runs behind `entrypoint` where nothing else is given, once it has been started."""
        return self._programs.launched.defaults.cmd if self._programs else ()

    # Limits

    def update(self, **limits: Any) -> None:
        """Change limits of the running container: cpu, cpu_weight, cpuset, memory, swap, pids, io, hugetlb.

        >>> with Container(memory="64M") as c:
        ...     c.update(memory="128M", pids=100)
        ...     c.spec.limits.memory
        134217728
        """
        programs = self._running("update", paused=True)
        launched = programs.launched
        spec = self._spec.with_limits(**limits)
        allowed = os.sched_getaffinity(0)
        cpus = None
        if {"cpu", "cpuset"} & limits.keys():
            cpus = visible_cpus(spec.limits, allowed) or allowed
        launched.group.update(spec.limits)
        self._spec = programs.spec = spec
        if cpus is not None:
            for pid in {launched.pid, *launched.group.threads()}:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.sched_setaffinity(pid, cpus)
        if programs.paused:
            self._changed_while_paused = True
        else:
            show(launched, spec.limits)

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
        process = start_program(self._exec_programs(), args, options, Process._run, capture=True, data=data)
        result = process.result()
        return result.check() if check else result

    def popen(self, args: Args, **options: Unpack[ProgramOptions]) -> Process:
        """Start one program and return a `Process` at once; takes what `exec` takes but `input`, `check`.

        Streams default to the ones of `exec`: stdin empty, stdout and stderr PIPE. Limits in time and
        memory are enforced whether or not anyone waits.
        """
        return start_program(self._exec_programs(), args, options, Process._begin, capture=False)

    def _exec_programs(self) -> Programs:
        programs = self._programs
        if programs is None or self._state != "running" or self._pid != os.getpid():
            return self._running("exec")  # says what is wrong; an init that is gone is met when sending
        return programs

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
        launched = self._running("changes").launched
        rootfs = launched.rootfs
        begun, made, own = rootfs.begun, self._made(launched), launched.own
        with Closed(launched.id_map) as closed:
            return changes(
                launched.control, rootfs.trees, rootfs.skeleton, made, own=own, begun=begun, look=closed.look
            )

    def _made(self, launched: Launched) -> list[str]:
        """What isobox put into the root file system, beside the skeleton."""
        return [mount.target for mount in self._spec.mounts] + [link.path for link in launched.rootfs.links]

    # Images

    def commit(
        self,
        reference: str,
        *,
        author: str | None = None,
        message: str | None = None,
        **changes: Unpack[ConfigOptions],
    ) -> Image:
        """Make an image of what the container is made of and has changed, and give it a name.

        It has the layers of the container's image, and one more: its `changes()`, without what isobox made
        itself and what lies in mounts. Where the container was started from a folder or a tar, a layer of
        that is the first. Equal content, times included, gives an equal layer; with SOURCE_DATE_EPOCH in
        the environment, that is the time of all that is later, and of the image. It is compressed by zlib,
        whose output is the same wherever zlib is.

        The config is the image's; nothing of what was given to the container gets into it, but `changes`:
        `env` (variables over the image's; None takes one away), `workdir`, `user`, `entrypoint` (alone, it
        takes the command away), `cmd`, `labels` (as `env`), `volumes` (more of them), `stop_signal`.

        The container goes on; while its files are read it is frozen, where it can be, so that they are of one
        moment. Where it began at a snapshot, that is a layer of its own.
        Raises `UnsupportedError` for image="host", `StateError`, `InvalidReference`, `SpecError`, and
        `ImageError` for what no layer can have (files named ``.wh.*``) and where the layers of its image are
        gone from the store.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Container(folder) as c:
        ...     c.write_text("/greeting", "hello")
        ...     image = c.commit("greeting:1", env={"LANG": "C.UTF-8"})
        >>> image.references, len(image.layers)
        (('greeting:1',), 2)
        >>> image.remove()
        """
        known(changes, ConfigOptions.__annotations__)
        self._running("commit", paused=True)
        with forks.whole:
            from . import commit
            from .images.making import Changes
        with self._lock:
            launched = self._running("commit", paused=True).launched  # another thread may remove it
            return commit.commit(
                launched,
                shared(),
                self._uppers if self._state == "paused" else None,
                self._made(launched),
                reference,
                Changes(**changes),
                author=author or "",
                message=message or "",
            )

    def export(self, target: Path | IO[bytes]) -> None:
        """Write its whole root file system as a tar archive, to a path or a binary file.

        As ``docker export`` does: the container runs on, and what is mounted in it is left out but for
        the mount points. `Image.from_tar` reads it. Raises `UnsupportedError` for image="host",
        `StateError`, `ImageError`.
        """
        launched = self._running("export").launched
        with forks.whole:
            from . import commit
        commit.export(launched, target)

    # Snapshots

    def snapshot(self) -> Snapshot:
        """Keep what the container has written up to now, for other containers to begin at or to come back to.

        That is its root file system: what lies in `mounts`, in /dev/shm or in the memory of processes is no
        part of it. The container goes on; while its files are copied it is frozen, so that they are of one
        moment (where there is no freezer, see ``isobox doctor``, it runs on: have its programs rest
        meanwhile). The copy lies where `upper` says; in memory it counts as this process's, not the
        container's, and is bounded as the container's layer is.

        Raises `StateError`, `SetupError`, `UnsupportedError`, `CgroupError`.

        >>> with Container() as c:
        ...     c.write_text("/data", "first")
        ...     with c.snapshot() as first:
        ...         c.write_text("/data", "second")
        ...         c.restore(first)
        ...     c.read_text("/data")
        'first'
        """
        from .snapshots import take_snapshot

        with self._lock:
            programs = self._running("snapshot", paused=True)
            uppers = self._uppers if self._state == "paused" else None
            try:
                return take_snapshot(programs.launched, self._spec, shared(), uppers)
            except OSError as error:
                raise_as_setup_error(error)
                raise

    def restore(self, snapshot: Snapshot) -> None:
        """End all that runs in the container, and have its root file system be as in the snapshot.

        It keeps its id, name and options, and the limits of `update`; it runs afterwards, even if it was
        paused. `stats` and `changes` begin anew. The snapshot may be of another container with the
        same `userns`. Raises `StateError`, and `SpecError` where that is another one; if it raises anything
        else (`SetupError`, ...), the container is stopped.
        """
        from .snapshots import Snapshot

        if not isinstance(snapshot, Snapshot):
            raise SpecError("snapshot", snapshot, "a Snapshot, as Container.snapshot gives it")
        _check_userns(snapshot, self._spec.userns)
        with self._lock, ExitStack() as held:
            programs = self._running("restore", paused=True)
            origin = snapshot.origin
            origin.hold(held)
            self._begin_anew(programs, snapshot, origin)

    # Looking at it

    def stats(self) -> Usage:
        """Return what the container has used since it was started, as of now."""
        launched = self._running("stats", paused=True).launched
        wall = (time.monotonic_ns() - self._started) / 1e9
        usage = launched.group.read()
        return evolve(
            usage, wall_time=wall, sources={**usage.sources, "wall_time": "clock_gettime(CLOCK_MONOTONIC)"}
        )

    def explain(self) -> str:
        """Return the plan in order, op by op, with paths and values; works before the start too."""
        self._own()
        if self._programs is None:
            origin = None if self._snapshot is None else self._snapshot.origin
            return explain(self._spec, explain_plan(self._spec, shared(), origin), None)
        launched = self._programs.launched
        return explain(self._spec, launched.ops, launched)


def _begin_at(image: object, userns: str) -> tuple[str, Snapshot | None]:
    """The digest of an `Image`; or a `Snapshot` and the image that it is of."""
    with forks.whole:
        from .images.image import Image
        from .snapshots import Snapshot
    if isinstance(image, Image):
        return image.digest, None
    if not isinstance(image, Snapshot):
        raise SpecError("image", image, "a name, a path, an Image or a Snapshot")
    _check_userns(image, userns)
    return image.image, image


def _check_userns(snapshot: Snapshot, userns: object) -> None:
    if snapshot.userns != userns:
        expected = f"{snapshot.userns!r}, which the container had that the snapshot is of"
        raise SpecError("userns", userns, expected)


def run(args: Args | None = None, image: Path | Image | Snapshot = "host", **options: Any) -> Result[Any]:
    """Run one program in a container of its own and clean up: every option of Container and of exec.

    `memory` and `pids` are the container's. Options that both have (`env`, `workdir`, `user`) serve
    the same purpose here. `args`: None for what the image runs, its entrypoint and cmd; given, they are
    exactly what runs.

    >>> import isobox
    >>> isobox.run(["python3", "-c", "print(6 * 7)"], cpu=0.5, memory="256M", timeout=30, text=True).stdout
    '42\\n'
    """
    known(options, PROGRAM_NAMES | ContainerOptions.__annotations__.keys())
    own = {name: options.pop(name) for name in list(options) if name in ContainerOptions.__annotations__}
    checked = ["image's own"] if args is None else args
    ExecSpec.make(checked, **{n: v for n, v in options.items() if n not in _NOT_SPEC})
    with Container(image, **own) as container:
        program = container.entrypoint + container.cmd if args is None else args
        if args is None and not program:
            raise SpecError(
                "args", args, f'a program, such as ["sh"]: the image {container.image} names none to run'
            )
        return container.exec(program, **options)


_NOT_SPEC = frozenset({"input", "check", "stdin", "stdout", "stderr"})
