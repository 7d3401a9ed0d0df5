"""One exec: what the caller asked for becomes a request to isobox-init and a `Process`."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from subprocess import DEVNULL, PIPE
from typing import Any, Final

from . import _native
from .communicating import encode_input
from .control import too_long
from .errors import ExecError, IsoboxError, SpecError
from .hints import hint
from .interrupts import Undisturbed
from .options import PROGRAM_NAMES, known
from .process import Process
from .programs import Programs
from .spec import Args, ExecSpec
from .streams import Streams, connect, terminal, widen

TERMINALS: Final = "/dev/ptmx"


def start_program(
    programs: Programs,
    args: Args,
    options: Any,
    begin: Callable[[Process, Streams], None],
    *,
    capture: bool,
    data: object = None,
) -> Process:
    """Ask for the program and call `begin` with it. `options` are those of `Container.exec`.

    `capture`: `begin` waits for its end; else its start is reported too. Whatever is raised, by
    `begin` or by a signal's handler at any moment, nothing runs on and nothing is left. Raises
    `SpecError`, `StateError`, `UnsupportedError`, `CgroupError`, `ExecError`.
    """
    try:
        return _start(programs, args, options, begin, capture, data)
    except IsoboxError:
        raise
    except OSError as error:  # what the kernel refused to this process
        number = error.errno or 0
        what = str(error.filename or "starting a program")
        where = "terminal" if what == TERMINALS else "host"
        raise ExecError(number, what, stage="exec", hint=hint(where, number)) from error


def _start(
    programs: Programs,
    args: Args,
    options: Any,
    begin: Callable[[Process, Streams], None],
    capture: bool,
    data: object,
) -> Process:
    stdin = options.pop("stdin", DEVNULL)
    stdout = options.pop("stdout", PIPE)
    stderr = options.pop("stderr", PIPE)
    known(options, PROGRAM_NAMES)
    spec = ExecSpec.make(args, **options)
    size = sum(map(len, spec.args))
    if size > _native.PAYLOAD_MAX:
        raise too_long(size)  # before more copies of them are made
    encoded = encode_input(data, spec)  # before anything runs: it may be of the wrong kind
    if spec.cpu_time is not None and not spec.measure:
        raise SpecError("measure", False, "True where cpu_time is given: the time is read from a cgroup")
    process = None
    try:
        with Undisturbed(), ExitStack() as kept, ExitStack() as lent:
            if spec.tty:
                streams = terminal(programs.control.open(TERMINALS, os.O_RDWR), lent, kept)
            else:
                streams = connect(stdin, stdout, stderr, lent, kept)
                if not capture:
                    widen(streams)
            group = programs.launched.group.child(spec.memory, spec.pids, spec.measure)
            kept.callback(group.close)
            if spec.cpu_time is not None and group.cpu_time() is None:
                raise group.lacking("cpuacct", "cpu_time")
            template = programs.template(spec, len(group.join_fds))
            status, theirs = os.pipe()
            kept.callback(os.close, status)
            lent.callback(os.close, theirs)
            fds = [theirs, *streams.inside, *group.join_fds]
            born_in = -1
            if group.into_fd is not None:
                born_in = len(fds)
                fds.append(group.into_fd)
            flags = _native.HOLD if capture else _native.WANT_START
            flags |= 0 if group.present else _native.OWN_PIDNS
            flags |= _native.FILTERED if template.filtered else 0
            flags |= 0 if spec.memory is None else _native.OWN_MEMORY
            number = programs.next_number()
            process = Process(
                programs,
                spec,
                number=number,
                status_fd=status,
                group=group,
                ops=template.ops,
                kept=kept.pop_all(),
                data=encoded,
            )
            programs.running[number] = process
            request = template.encode(spec.args)
            programs.control.exec(request, fds, number=number, flags=flags, cgroup=born_in)
            lent.close()  # so that the status pipe ends where nobody writes to it
            group.joined()
        begin(process, streams)
    except BaseException:
        if process is not None:
            process._give_up()
        raise
    return process
