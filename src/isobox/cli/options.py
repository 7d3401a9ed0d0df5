"""The options of a container as Docker names them, and what they mean for `isobox.Container`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import click

from isobox import IoLimit, Landlock, Mount
from isobox.cli.sections import option, together

_LIMITS = "Limits"
_FILES = "Files"
_PROGRAM = "Program"
_CONTAINER = "Container"
_ISOLATION = "Isolation"
_SIZE = "SIZE"

container_options = together(
    option("--cpus", metavar="CORES", section=_LIMITS, help="CPU time as a number of cores, such as 0.5."),
    option(
        "--cpu-weight",
        type=int,
        section=_LIMITS,
        metavar="WEIGHT",
        help="Share against others when CPUs are busy, 1 to 10000.",
    ),
    option("--cpuset-cpus", metavar="CPUS", section=_LIMITS, help="CPUs to run on, such as 0-2,5."),
    option(
        "-m",
        "--memory",
        metavar=_SIZE,
        section=_LIMITS,
        help="Memory, such as 256M; a program that needs more is killed.",
    ),
    option(
        "--memory-swap", metavar=_SIZE, section=_LIMITS, help="Memory and swap together. Default: no swap."
    ),
    option(
        "--pids-limit",
        type=int,
        metavar="COUNT",
        section=_LIMITS,
        help="Processes and threads; -1: no limit. Default: 1024.",
    ),
    option(
        "--ulimit",
        metavar="NAME=SOFT[:HARD]",
        multiple=True,
        section=_LIMITS,
        help="A limit of setrlimit(2), such as nofile=1024.",
    ),
    option("--disk", metavar=_SIZE, section=_LIMITS, help="What may be written to files, such as 1G."),
    option(
        "--device-read-bps",
        metavar="PATH:RATE",
        multiple=True,
        section=_LIMITS,
        help="Most bytes a second from a device.",
    ),
    option(
        "--device-write-bps",
        metavar="PATH:RATE",
        multiple=True,
        section=_LIMITS,
        help="Most bytes a second to a device.",
    ),
    option(
        "--device-read-iops", metavar="PATH:RATE", multiple=True, section=_LIMITS, help="Most reads a second."
    ),
    option(
        "--device-write-iops",
        metavar="PATH:RATE",
        multiple=True,
        section=_LIMITS,
        help="Most writes a second.",
    ),
    option(
        "--hugetlb",
        metavar="PAGE=SIZE",
        multiple=True,
        section=_LIMITS,
        help="Most huge pages of one size, such as 2M=64M.",
    ),
    option(
        "-v",
        "--volume",
        metavar="SOURCE:TARGET[:ro]",
        multiple=True,
        section=_FILES,
        help="Show a file or folder of the host, or the volume of a name.",
    ),
    option(
        "--tmpfs",
        metavar="TARGET[:size=SIZE]",
        multiple=True,
        section=_FILES,
        help="Put an empty file system in memory at TARGET.",
    ),
    option("--read-only", is_flag=True, section=_FILES, help="Read-only root file system."),
    option(
        "--upper",
        type=click.Choice(["memory", "disk"]),
        section=_FILES,
        help="Where written files live until the end. Default: memory.",
    ),
    option(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        multiple=True,
        section=_PROGRAM,
        help="Set a variable; NAME alone passes on the value that it has here.",
    ),
    option(
        "--env-file",
        metavar="FILE",
        multiple=True,
        section=_PROGRAM,
        help="Set variables from lines NAME=VALUE.",
    ),
    option("-w", "--workdir", metavar="DIRECTORY", section=_PROGRAM, help="Directory to run in."),
    option(
        "-u", "--user", metavar="USER[:GROUP]", section=_PROGRAM, help="Name or number. Default: root inside."
    ),
    option(
        "--name", metavar="NAME", section=_CONTAINER, help="Name of the container. Default: made from its id."
    ),
    option("-h", "--hostname", metavar="NAME", section=_CONTAINER, help="Name of the machine inside."),
    option("-l", "--label", metavar="KEY=VALUE", multiple=True, section=_CONTAINER, help="Set a label."),
    option(
        "--network",
        "--net",
        type=click.Choice(["none", "host"]),
        section=_ISOLATION,
        help="none: loopback only. Default: none.",
    ),
    option(
        "--pid",
        "pid_mode",
        type=click.Choice(["private", "host"]),
        section=_ISOLATION,
        help="Process ids. Default: private.",
    ),
    option(
        "--ipc",
        type=click.Choice(["private", "host"]),
        section=_ISOLATION,
        help="Shared memory, semaphores, queues. Default: private.",
    ),
    option(
        "--uts",
        type=click.Choice(["private", "host"]),
        section=_ISOLATION,
        help="Host name. Default: private.",
    ),
    option(
        "--cgroupns",
        type=click.Choice(["private", "host"]),
        section=_ISOLATION,
        help="View of cgroups. Default: private.",
    ),
    option(
        "--userns",
        type=click.Choice(["auto", "host"]),
        section=_ISOLATION,
        help="auto: root inside is nobody outside. Default: auto.",
    ),
    option(
        "--cap-add",
        metavar="CAPABILITY",
        multiple=True,
        section=_ISOLATION,
        help="Give a capability, or ALL.",
    ),
    option(
        "--cap-drop",
        metavar="CAPABILITY",
        multiple=True,
        section=_ISOLATION,
        help="Take a capability, or ALL.",
    ),
    option(
        "--security-opt",
        metavar="seccomp=PROFILE",
        multiple=True,
        section=_ISOLATION,
        help="A profile in Docker's JSON format, or unconfined.",
    ),
    option(
        "--landlock",
        metavar="NAME=VALUE[,VALUE...]",
        multiple=True,
        section=_ISOLATION,
        help="Paths to read, write, execute, ioctl-dev; ports to connect-tcp, bind-tcp; scope. Or none.",
    ),
    option("--device", metavar="PATH", multiple=True, section=_ISOLATION, help="Device node to allow."),
)


def container_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `isobox.Container` for parsed options. Leaves defaults to it."""
    arguments: dict[str, Any] = {}
    for name, option_name in (
        ("cpu", "cpus"),
        ("cpu_weight", "cpu_weight"),
        ("cpuset", "cpuset_cpus"),
        ("memory", "memory"),
        ("disk", "disk"),
        ("upper", "upper"),
        ("workdir", "workdir"),
        ("user", "user"),
        ("name", "name"),
        ("hostname", "hostname"),
        ("network", "network"),
        ("userns", "userns"),
    ):
        if given[option_name] is not None:
            arguments[name] = given[option_name]
    for name, option_name in (("cap_add", "cap_add"), ("cap_drop", "cap_drop"), ("devices", "device")):
        if given[option_name]:
            arguments[name] = given[option_name]
    if given["read_only"]:
        arguments["read_only"] = True
    if given["memory_swap"] is not None:
        arguments["swap"] = _swap(given["memory"], given["memory_swap"])
    if given["pids_limit"] is not None:
        arguments["pids"] = None if given["pids_limit"] in (0, -1) else given["pids_limit"]
    arguments.update(_security(given["security_opt"]))
    if given["landlock"]:
        arguments["landlock"] = _landlock(given["landlock"])
    lists = {
        "rlimits": dict(_ulimit(text) for text in given["ulimit"]),
        "io": _io(given),
        "hugetlb": dict(_pair("--hugetlb", text) for text in given["hugetlb"]),
        "mounts": [Mount.parse(text) for text in given["volume"]] + [_tmpfs(text) for text in given["tmpfs"]],
        "env": environment(given["env"], given["env_file"], os.environ),
        "labels": dict(_pair("--label", text) for text in given["label"]),
        "namespaces": _namespaces(given),
    }
    arguments.update((name, value) for name, value in lists.items() if value)
    return arguments


def environment(pairs: Iterable[str], files: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """Variables of ``--env-file`` and then of ``-e``; a bare name takes the value that it has here."""
    lines: list[tuple[str, str]] = []
    for path in files:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                content = file.read().splitlines()
        except OSError as error:
            raise click.BadParameter(f"{path}: {error.strerror}", param_hint="--env-file") from None
        lines += [
            (f"--env-file {path}, line {number}", line.lstrip())
            for number, line in enumerate(content, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
    lines += [("--env", pair) for pair in pairs]
    result: dict[str, str] = {}
    for where, line in lines:
        name, equals, value = line.partition("=")
        if not name or name != name.strip():
            raise click.BadParameter(f"{line!r} is not NAME=VALUE", param_hint=where)
        if equals:
            result[name] = value
        elif name in own:
            result[name] = own[name]
    return result


def _swap(memory: str | None, both: str) -> int:
    hint = "--memory-swap"
    if memory is None:
        raise click.BadParameter("needs --memory: it is the sum of memory and swap", param_hint=hint)
    if both == "-1":
        raise click.BadParameter("unlimited swap would undo --memory: give a size", param_hint=hint)
    from isobox.spec import parse_size

    swap = parse_size(both, field="memory_swap") - parse_size(memory, field="memory")
    if swap < 0:
        raise click.BadParameter(f"{both} is less than --memory {memory}", param_hint=hint)
    return swap


def _security(options: Iterable[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for text in options:
        # Docker takes both: seccomp=... and, as it was first written, seccomp:...
        name, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
        if name == "seccomp" and value:
            arguments["seccomp"] = None if value == "unconfined" else value
        elif name != "no-new-privileges" or value not in ("", "true"):
            raise click.BadParameter(
                f"{text!r}: expected seccomp=FILE, seccomp=default or seccomp=unconfined "
                "(no-new-privileges is always on)",
                param_hint="--security-opt",
            )
    return arguments


def _landlock(texts: Iterable[str]) -> Landlock | None:
    if list(texts) == ["none"]:
        return None
    names = ("read", "write", "execute", "ioctl-dev", "connect-tcp", "bind-tcp", "scope")
    rules: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or name not in names:
            raise click.BadParameter(
                f"{text!r}: expected none, or such as write=/dev,/tmp; the names are {', '.join(names)}",
                param_hint="--landlock",
            )
        kept = rules.setdefault(name.replace("-", "_"), [])
        kept += [
            _limit(value) if name.endswith("tcp") else value for value in filter(None, values.split(","))
        ]
    return Landlock(**rules)


def _ulimit(text: str) -> tuple[str, tuple[int | str, int | str]]:
    name, limits = _pair("--ulimit", text)
    soft, colon, hard = limits.partition(":")
    return name, (_limit(soft), _limit(hard if colon else soft))


def _limit(text: str) -> int | str:
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() else text


def _pair(hint: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=hint)
    return name, value


def _tmpfs(text: str) -> Mount:
    target, _, options = text.partition(":")
    size = None
    for one in filter(None, options.split(",")):
        name, _, value = one.partition("=")
        if name != "size" or not value:
            raise click.BadParameter(f"{one!r}: only size=SIZE is known", param_hint="--tmpfs")
        size = value
    return Mount.tmpfs(target, size)


def _io(given: Mapping[str, Any]) -> list[IoLimit]:
    devices: dict[str, dict[str, Any]] = {}
    for limit in ("read_bps", "write_bps", "read_iops", "write_iops"):
        hint = "--device-" + limit.replace("_", "-")
        for text in given[f"device_{limit}"]:
            device, colon, rate = text.rpartition(":")
            if not colon or not device or (limit.endswith("iops") and not rate.isdigit()):
                example = "1000" if limit.endswith("iops") else "10M"
                raise click.BadParameter(f"{text!r}: expected such as /dev/sda:{example}", param_hint=hint)
            devices.setdefault(device, {})[limit] = int(rate) if limit.endswith("iops") else rate
    return [IoLimit(device, **limits) for device, limits in devices.items()]


def _namespaces(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {"pid": "pid_mode", "ipc": "ipc", "uts": "uts", "cgroup": "cgroupns"}
    return {name: given[key] for name, key in chosen.items() if given[key] is not None}
