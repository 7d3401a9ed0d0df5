"""Finds the command, and turns whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from isobox.cli import ISOBOX_ERROR
from isobox.errors import IsoboxError, NotFound, SpecError

COMMANDS = (
    "commit",
    "diff",
    "doctor",
    "explain",
    "export",
    "history",
    "images",
    "import",
    "inspect",
    "load",
    "login",
    "logout",
    "prune",
    "pull",
    "push",
    "rmi",
    "run",
    "save",
    "tag",
    "volume",
)

_IMAGES = (
    'IMAGE is "host" (this machine\'s system), a name that isobox images lists, '
    "or the path of a folder or a tar such as ./rootfs"
)

_OPTIONS_OF_FIELDS = {
    "args": "COMMAND",
    "image": "IMAGE",
    "cpu": "--cpus",
    "cpu_weight": "--cpu-weight",
    "cpuset": "--cpuset-cpus",
    "memory": "--memory",
    "swap": "--memory-swap",
    "pids": "--pids-limit",
    "io": "--device-read-bps",
    "hugetlb": "--hugetlb",
    "disk": "--disk",
    "rlimits": "--ulimit",
    "network": "--network",
    "mounts": "--volume",
    "env": "--env",
    "labels": "--label",
    "workdir": "--workdir",
    "user": "--user",
    "seccomp": "--security-opt seccomp",
    "cap_add": "--cap-add",
    "cap_drop": "--cap-drop",
    "devices": "--device",
    "name": "--name",
    "hostname": "--hostname",
    "timeout": "--timeout",
    "cpu_time": "--cpu-time",
    "output_limit": "--output-limit",
    "username": "--username",
}


class _Commands(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"isobox.cli.{cmd_name}").command
        return command


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"isobox {version('isobox')}")
        except PackageNotFoundError:  # run from its sources
            click.echo("isobox (not installed)")
        ctx.exit()


@click.command(cls=_Commands, epilog="Each command explains itself: isobox COMMAND --help")
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version.",
)
def isobox() -> None:
    """Run programs in containers: limited, isolated, measured, and gone afterwards."""


def dispatch(argv: Sequence[str] | None) -> int:
    """Run `argv` (default: the process's) and return the exit status."""
    try:
        status = isobox.main(
            args=None if argv is None else list(argv), prog_name="isobox", standalone_mode=False
        )
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "isobox"
        return _failed(f"{error.format_message().rstrip('.')}. See '{command} --help'")
    except click.ClickException as error:
        return _failed(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SpecError as error:
        return _failed(_as_options(error))
    except NotFound as error:
        return _failed(f"{error}. {_IMAGES}")
    except IsoboxError as error:
        return _failed(str(error))
    except BrokenPipeError:
        # Whoever read our output is gone (`isobox doctor | head`): the interpreter must not try to
        # flush once more and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:  # the last frame before the shell
        if os.environ.get("ISOBOX_TRACEBACK"):
            raise
        return _failed(
            f"unexpected {type(error).__name__}: {error}. This is a mistake in isobox; "
            "ISOBOX_TRACEBACK=1 in the environment shows where"
        )


def _failed(message: str) -> int:
    print(f"isobox: {message}", file=sys.stderr)
    return ISOBOX_ERROR


def _as_options(error: SpecError) -> str:
    """Name the option that was typed, not the library's parameter: ``--memory '12X': expected ...``."""
    text = str(error)
    name, rest = error.field, text.removeprefix(f"{error.field}=")
    top = name.partition(".")[0].partition("[")[0]
    option = _OPTIONS_OF_FIELDS.get(top)
    if option is None or rest == text:
        return text
    return f"{option} {rest}".replace("; None for no limit", "")  # left out, in a shell
