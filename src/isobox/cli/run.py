"""``isobox run``: one program in one container, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from isobox import Container, ExecError, ImageError, NotFound, Result
from isobox.checks import is_path
from isobox.cli import report, signals, status, terminal
from isobox.cli.attended import attending
from isobox.cli.options import container_arguments, container_options
from isobox.cli.outcome import committing, show_changes
from isobox.cli.sections import SectionedCommand, option, together

_RUN = "Run"
_CHANGE = "With --commit: a line of a Dockerfile for its config, such as 'ENV A=1'."

_run_options = together(
    option("-i", "--interactive", is_flag=True, section=_RUN, help="Connect standard input."),
    option("-t", "--tty", is_flag=True, section=_RUN, help="Give it a terminal, connected to this one."),
    option("--entrypoint", metavar="PROGRAM", section=_RUN, help="Run this, not what the image says."),
    option("--timeout", metavar="SECONDS", section=_RUN, help="Wall time, such as 30 or 250ms."),
    option("--cpu-time", metavar="SECONDS", section=_RUN, help="CPU time, user and system."),
    option("--output-limit", metavar="SIZE", section=_RUN, help="With --json: most output. Default: 16M."),
    option("--usage", is_flag=True, section=_RUN, help="Print what it cost, to standard error."),
    option("--json", "as_json", is_flag=True, section=_RUN, help="Print the whole result as JSON instead."),
    option(
        "--pull",
        type=click.Choice(["missing", "always", "never"]),
        default="missing",
        section=_RUN,
        help="When to fetch IMAGE from its registry. Default: missing.",
    ),
    option("--diff", is_flag=True, section=_RUN, help="Print what it changed, to standard error."),
    option(
        "--commit",
        metavar="NAME",
        section=_RUN,
        help="Make an image of what it is in the end, if the status is 0.",
    ),
    option("--change", metavar="INSTRUCTION", multiple=True, section=_RUN, help=_CHANGE),
    option("--author", section=_RUN, metavar="TEXT", help="With --commit: who made the image."),
    option("--message", section=_RUN, metavar="TEXT", help="With --commit: what was done."),
    option("--rm", is_flag=True, expose_value=False, section=_RUN, help="Accepted: it is always removed."),
)


@click.command(
    "run",
    cls=SectionedCommand,
    context_settings={"allow_interspersed_args": False, "max_content_width": 100},
    short_help="Run one program in a new container.",
)
@_run_options
@container_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(image: str, command: tuple[str, ...], **given: Any) -> int:
    """Run COMMAND in a new container on IMAGE: "host" (this machine's system), an image, a folder or a tar.

    Without COMMAND it runs what the image says. An image with an entrypoint runs that, and COMMAND are its
    arguments. Options of isobox come before IMAGE; what follows COMMAND is the command's own. The exit status
    is the program's; 125: isobox's own error; 126: not executable; 127: not found; 124: time-out;
    137: killed or out of memory; 128+N: ended by signal N.

    \b
      isobox run host python3 -c 'print(6 * 7)'
      isobox run -it --memory 256M --cpus 0.5 host bash
      isobox run --timeout 5 --usage -v ./data:/data:ro host sort /data/names
      isobox run --commit app:2 --change 'CMD ["app"]' app:1 sh -c 'make install'
    """
    arguments = container_arguments(given)
    commit = committing(image, given)
    limits = {
        name: given[name] for name in ("timeout", "cpu_time", "output_limit") if given[name] is not None
    }
    if given["tty"]:
        _needs_terminal(given["as_json"])
        arguments.setdefault("env", {}).setdefault("TERM", os.environ.get("TERM") or "xterm")
    if given["pull"] == "always" and _is_of_registry(image):
        _fetch(image)
    try:
        with signals.ending(), _container(image, arguments, given["pull"]) as container:
            command = _command(container, command, given["entrypoint"])
            with attending(container):
                if given["tty"]:
                    result = _in_terminal(container, command, limits, given["interactive"])
                else:
                    result = _with_streams(container, command, limits, given["interactive"], given["as_json"])
            about = {"id": container.id, "name": container.name}
            if given["diff"]:
                show_changes(container)
            if commit is not None and result.ok:
                commit(container)
    except signals.Ended as ended:
        return status.SIGNAL + ended.number
    except ExecError as error:
        print(f"isobox: {error}", file=sys.stderr)
        return status.of_error(error)
    _report(result, {**limits, "memory": given["memory"]}, about, given)
    if commit is not None and not result.ok:
        print("isobox: nothing was committed, since it did not end with status 0", file=sys.stderr)
    return status.of_result(result)


def _command(container: Container, command: tuple[str, ...], entrypoint: str | None) -> tuple[str, ...]:
    """As Docker does it: an entrypoint of the caller's takes the image's command away too."""
    if entrypoint is not None:
        whole = (entrypoint, *command) if entrypoint else command
    else:
        whole = container.entrypoint + (command or container.cmd)
    if not whole:
        image = container.image
        raise click.UsageError(f"there is nothing to run: add a command, such as isobox run {image} sh")
    return whole


@contextlib.contextmanager
def _container(image: str, arguments: dict[str, Any], pull: str) -> Iterator[Container]:
    """A started container; an image that isn't there is fetched first."""
    with contextlib.ExitStack() as stack:
        container = Container(image, **arguments)
        stack.callback(container.remove)
        try:
            container.start()
        except NotFound:
            if pull != "missing" or not _is_of_registry(image):
                raise
            try:
                _fetch(image)
            except (ImageError, click.ClickException) as error:
                raise click.ClickException(
                    f"{image} is not in the store, and can't be fetched: {error}"
                ) from None
            container.start()
        yield container


def _is_of_registry(image: str) -> bool:
    return image != "host" and not is_path(image) and not os.path.exists(image)


def _fetch(image: str) -> None:
    from isobox.cli.pull import fetch

    fetch(image)


def _needs_terminal(as_json: bool) -> None:
    if as_json:
        raise click.UsageError("--json captures the output, -t shows it: give one of the two")
    if not os.isatty(0):
        raise click.UsageError("-t needs a terminal as standard input; leave it out in a pipe or a script")


def _with_streams(
    container: Container, command: tuple[str, ...], limits: dict[str, Any], interactive: bool, capture: bool
) -> Result[Any]:
    from subprocess import DEVNULL, PIPE

    sys.stdout.flush()
    streams: dict[str, Any] = {"stdin": None if interactive else DEVNULL}
    streams["stdout"] = streams["stderr"] = PIPE if capture else None
    with signals.Forwarding() as forwarding, container.popen(command, **streams, **limits) as process:
        forwarding.to(process.send_signal)
        if capture:
            process.communicate()
        return process.result()


def _in_terminal(
    container: Container, command: tuple[str, ...], limits: dict[str, Any], interactive: bool
) -> Result[Any]:
    # The container is removed after the terminal is itself again: an error's text is then readable.
    with terminal.raw(0), container.popen(command, tty=True, **limits) as process:
        assert process.stdout is not None
        relay = terminal.Relay(process.stdout.fileno(), forward_input=interactive)
        relay.run(process.fileno(), process.resize)
        return process.result()


def _report(
    result: Result[Any], limits: dict[str, Any], about: dict[str, str], given: dict[str, Any]
) -> None:
    if given["as_json"]:
        click.echo(report.as_json(result, about))
    why = status.explanation(result, limits)
    if why is not None:
        print(f"isobox: {why}", file=sys.stderr)
    if given["usage"]:
        print(report.table(result.usage), file=sys.stderr)
