"""Options become arguments of the library; results become JSON, tables and exit statuses."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import click
import pytest

from isobox import IoLimit, Landlock, Mount, Result, Usage
from isobox.cli import main, report, run, status
from isobox.cli.options import container_arguments, environment
from isobox.errors import ExecError, SpecError


def parsed(*arguments: str) -> dict[str, Any]:
    params = run.command.make_context("run", [*arguments, "host", "true"]).params
    return container_arguments(params)


def result(**changes: Any) -> Result[bytes]:
    values: dict[str, Any] = {
        "args": ("sh", "-c", "exit 3"),
        "returncode": 3,
        "stdout": b"out\n",
        "stderr": b"",
        "reason": "exited",
        "truncated": False,
        "usage": Usage(
            wall_time=0.0125, cpu_time=0.002, memory_peak=3 << 20, sources={"cpu_time": "cpuacct.usage"}
        ),
    }
    return Result(**{**values, **changes})


def test_without_options_the_library_s_defaults_hold() -> None:
    assert parsed() == {}


def test_docker_s_names() -> None:
    assert parsed("--cpus", "0.5", "-m", "256M", "--pids-limit", "64", "--cpuset-cpus", "0-1") == {
        "cpu": "0.5",
        "memory": "256M",
        "pids": 64,
        "cpuset": "0-1",
    }
    assert parsed("-w", "/work", "-u", "1000:1000", "-h", "box", "--name", "n", "--read-only", "--rm") == {
        "workdir": "/work",
        "user": "1000:1000",
        "hostname": "box",
        "name": "n",
        "read_only": True,
    }
    assert parsed("--network", "host") == parsed("--net=host") == {"network": "host"}
    assert parsed("--cap-drop", "ALL", "--cap-add", "CHOWN", "--device", "/dev/fuse") == {
        "cap_drop": ("ALL",),
        "cap_add": ("CHOWN",),
        "devices": ("/dev/fuse",),
    }
    assert parsed("-l", "a=b", "-l", "c=d=e", "--ipc", "host") == {
        "labels": {"a": "b", "c": "d=e"},
        "namespaces": {"ipc": "host"},
    }


def test_landlock() -> None:
    given = [
        "read=/usr,/etc",
        "connect-tcp=443,80",
        "bind-tcp=",
        "read=/lib",
        "ioctl-dev=/dev",
        "scope=signal",
    ]
    assert parsed(*(word for text in given for word in ("--landlock", text))) == {
        "landlock": Landlock(
            read=["/usr", "/etc", "/lib"],
            ioctl_dev=["/dev"],
            connect_tcp=[443, 80],
            bind_tcp=[],
            scope=["signal"],
        )
    }
    assert parsed("--landlock", "none") == {"landlock": None}
    for wrong in ("", "/usr", "none=", "connect_tcp=80", "look=/usr"):
        with pytest.raises(click.BadParameter, match="connect-tcp"):
            parsed("--landlock", wrong)
    with pytest.raises(click.BadParameter, match="expected none"):
        parsed("--landlock", "read=/", "--landlock", "none")
    for wrong in ("connect-tcp=http", "read=usr", "scope=all"):
        with pytest.raises(SpecError, match="landlock"):
            parsed("--landlock", wrong)


def test_huge_pages() -> None:
    assert parsed("--hugetlb", "2M=64M", "--hugetlb", "1G=0") == {"hugetlb": {"2M": "64M", "1G": "0"}}
    with pytest.raises(click.BadParameter, match="NAME=VALUE"):
        parsed("--hugetlb", "2M")


@pytest.mark.parametrize("unlimited", ["-1", "0"])
def test_unlimited_pids(unlimited: str) -> None:
    assert parsed("--pids-limit", unlimited) == {"pids": None}


def test_swap_is_the_rest_of_the_sum() -> None:
    assert parsed("-m", "256M", "--memory-swap", "1G") == {"memory": "256M", "swap": 768 << 20}
    assert parsed("-m", "256M", "--memory-swap", "256M")["swap"] == 0
    for wrong in (
        ["--memory-swap", "1G"],
        ["-m", "1G", "--memory-swap", "1M"],
        ["-m", "1G", "--memory-swap", "-1"],
    ):
        with pytest.raises(click.BadParameter, match=r"memory|sum|undo"):
            parsed(*wrong)


def test_mounts() -> None:
    assert parsed("-v", "/srv:/data:ro", "--tmpfs", "/scratch", "--tmpfs", "/s:size=64m") == {
        "mounts": [
            Mount.bind("/srv", "/data", read_only=True),
            Mount.tmpfs("/scratch"),
            Mount.tmpfs("/s", "64M"),
        ]
    }
    assert parsed("-v", "web:/data", "-v", "/own") == {
        "mounts": [Mount.volume("web", "/data"), Mount.volume(None, "/own")]
    }
    with pytest.raises(SpecError, match="begins with"):
        parsed("-v", "some/folder:/data")
    with pytest.raises(click.BadParameter, match="only size"):
        parsed("--tmpfs", "/scratch:mode=700")


def test_ulimits() -> None:
    assert parsed("--ulimit", "nofile=64", "--ulimit", "core=0:-1", "--ulimit", "cpu=unlimited") == {
        "rlimits": {"nofile": (64, 64), "core": (0, -1), "cpu": ("unlimited", "unlimited")}
    }
    with pytest.raises(click.BadParameter, match="NAME=VALUE"):
        parsed("--ulimit", "nofile")


def test_device_rates() -> None:
    assert parsed("--device-read-bps", "/dev/vda:10M", "--device-write-iops", "/dev/vda:100") == {
        "io": [IoLimit("/dev/vda", read_bps="10M", write_iops=100)]
    }
    with pytest.raises(click.BadParameter, match="/dev/sda:1000"):
        parsed("--device-write-iops", "/dev/vda:fast")


def test_security_options(tmp_path: Path) -> None:
    assert parsed("--security-opt", "seccomp=unconfined") == {"seccomp": None}
    assert parsed("--security-opt", "seccomp:unconfined") == {"seccomp": None}
    assert parsed("--security-opt", "seccomp=/a=b:c.json") == {"seccomp": "/a=b:c.json"}
    assert parsed("--security-opt", "no-new-privileges") == {}
    assert parsed("--security-opt", "no-new-privileges:true") == {}
    for wrong in ("apparmor=unconfined", "seccomp=", "no-new-privileges=false"):
        with pytest.raises(click.BadParameter, match="seccomp=FILE"):
            parsed("--security-opt", wrong)


def test_environment(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1\nB=two words # kept\n  C=3\nHERE\nGONE\n")
    own = {"HERE": "value", "OTHER": "x"}
    assert environment((), [str(file)], own) == {"A": "1", "B": "two words # kept", "C": "3", "HERE": "value"}
    assert environment(["A=2", "OTHER", "MISSING", "E="], [str(file)], own) == {
        "A": "2", "B": "two words # kept", "C": "3", "HERE": "value", "OTHER": "x", "E": "",
    }  # fmt: skip
    for wrong in ("=x", "", "A B =x"):
        with pytest.raises(click.BadParameter, match="NAME=VALUE"):
            environment([wrong], [], {}) if wrong != "A B =x" else environment(["A =x"], [], {})
    with pytest.raises(click.BadParameter, match="No such file"):
        environment([], [str(tmp_path / "missing")], {})


def test_what_follows_the_command_is_the_command_s() -> None:
    params = run.command.make_context("run", ["-i", "host", "ls", "-l", "--rm", "--", "-m"]).params
    assert params["command"] == ("ls", "-l", "--rm", "--", "-m")
    assert params["interactive"] is True


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 3),
        ({"returncode": 0}, 0),
        ({"returncode": -15, "reason": "signaled"}, 143),
        ({"returncode": -9, "reason": "oom"}, 137),
        ({"returncode": 1, "reason": "oom"}, 137),
        ({"returncode": -9, "reason": "timeout"}, 124),
        ({"returncode": -9, "reason": "cpu-timeout"}, 124),
        ({"returncode": -9, "reason": "killed"}, 137),
        ({"returncode": -9, "reason": "output-limit"}, 137),
    ],
)
def test_exit_statuses(changes: dict[str, Any], expected: int) -> None:
    assert status.of_result(result(**changes)) == expected


def test_exit_statuses_of_programs_that_could_not_start() -> None:
    assert status.of_error(ExecError(2, "nosuch", stage="exec", op="execve")) == 127
    assert status.of_error(ExecError(2, "workdir /nosuch", stage="exec", op="chdir")) == 126
    assert status.of_error(ExecError(13, "/etc/passwd", stage="exec", op="execve")) == 126
    assert status.of_error(ExecError(8, "/etc/passwd", stage="exec", op="execve")) == 126


def test_json_is_the_whole_result() -> None:
    document = json.loads(report.as_json(result(stderr=b"\xff\xfe"), {"id": "x", "name": "y"}))
    assert document["stdout"] == "out\n"
    assert document["stdout_encoding"] == "utf-8"
    assert document["stderr_encoding"] == "base64"
    assert base64.b64decode(document["stderr"]) == b"\xff\xfe"
    assert document["returncode"] == 3
    assert document["reason"] == "exited"
    assert document["ok"] is False
    assert document["usage"]["memory_peak"] == 3 << 20
    assert document["usage"]["io_read"] is None
    assert document["container"] == {"id": "x", "name": "y"}


def test_json_of_strange_arguments_is_valid() -> None:
    text = report.as_json(result(args=("\udcff", "ä")), {})
    json.loads(text).get("args")
    text.encode()


def test_the_table_is_aligned_and_says_what_is_unknown() -> None:
    usage = Usage(
        wall_time=1.5, cpu_time=0.25, oom_kills=1, notes=("the host swapped",), sources={"cpu_time": "f"}
    )
    lines = report.table(usage).splitlines()
    assert lines[0].split() == ["wall", "time", "1.500", "s"]
    assert lines[1].split() == ["cpu", "time", "0.250", "s", "f"]
    assert lines[2].split() == ["peak", "memory", "unknown"]
    assert lines[-1] == "note: the host swapped"
    ends = {len(line[: line.index(" s") + 2]) for line in lines[:2]}
    assert len(ends) == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert report.size(size) == text


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "doctor" in shown and "explain" in shown and "run" in shown
    assert main(["run", "--help"]) == 0
    assert "--memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "Missing argument 'IMAGE'"),
        (["run", "host"], "isobox run host sh"),
        (["run", "--memry", "1G", "host", "true"], "--memory"),
        (["run", "-m", "12X", "host", "true"], "--memory '12X': expected bytes"),
        (["run", "--cpus", "0", "host", "true"], "--cpus '0': expected"),
        (["run", "--network", "bridge", "host", "true"], "'none', 'host'"),
        (["run", "-t", "host", "true"], "-t needs a terminal"),
        (["run", "-t", "--json", "host", "true"], "one of the two"),
        (["run", "--cap-add", "NET_ROW", "host", "true"], "CAP_NET_RAW"),
        (["nosuch"], "No such command"),
        (["doctor", "--what"], "No such option"),
    ],
)
def test_mistakes_are_one_line_and_125(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/null") as nothing:
        import os

        before = os.dup(0)
        try:
            os.dup2(nothing.fileno(), 0)
            assert main(arguments) == 125
        finally:
            os.dup2(before, 0)
            os.close(before)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("isobox: ")
    assert err.count("\n") == 1
    assert words in err
