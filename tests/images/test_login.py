"""isobox login and logout against a real registry, and what they leave for docker and skopeo."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from isobox.cli.app import dispatch
from isobox.images.registry.credentials import Credential, find
from patience import patient
from registry import Registry, running_registry, skopeo

USERS = {"builder": "se cret:ü"}


def run(*args: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isobox.cli", *args]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=patient(60))


@pytest.mark.parametrize("tokens", [False, True], ids=["passwords", "tokens"])
def test_in_and_out(tmp_path: Path, tokens: bool) -> None:
    with running_registry(tmp_path / "registry", users=USERS, tokens=tokens) as registry:
        refused = run("login", "-u", "builder", "--password-stdin", registry.address, given="wrong-word\n")
        assert refused.returncode == 125 and "refuses this login: check the name" in refused.stderr
        assert "wrong-word" not in refused.stderr and find(registry.address) is None

        done = run(
            "login",
            "-u",
            "builder",
            "--password-stdin",
            f"http://{registry.address}/v2/",
            given="se cret:ü\r\n",
        )
        kept = f"{os.environ['DOCKER_CONFIG']}/config.json"
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"Logged in to {registry.address}. The login is kept in {kept}, unencrypted\n"
        assert find(registry.address) == Credential("builder", USERS["builder"])
        # skopeo is let in by it: there is no such image, but it may look.
        with pytest.raises(AssertionError, match="manifest unknown"):
            skopeo("inspect", f"docker://{registry.address}/none:1", registry=registry)

    assert run("logout", registry.address).stderr == f"Logged out of {registry.address}\n"
    again = run("logout", registry.address)
    assert (again.returncode, again.stderr) == (0, f"There was no login for {registry.address}\n")


def test_a_program_keeps_it(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/docker-credential-test"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n[ $1 != get ] && cat > {tmp_path}/kept-$1 || cat {tmp_path}/kept-store\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text('{"credsStore": "test"}')
    done = run("login", "--username", "builder", "--password-stdin", registry.address, given="hidden")
    assert done.stderr == f"Logged in to {registry.address}. The login is kept by docker-credential-test\n"
    kept = json.loads((tmp_path / "kept-store").read_text())
    assert kept == {"ServerURL": registry.address, "Username": "builder", "Secret": "hidden"}
    assert "hidden" not in (tmp_path / "docker/config.json").read_text()
    run("logout", registry.address)
    assert (tmp_path / "kept-erase").read_text() == registry.address


def test_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "auth.json").write_text('{"auths": {"x.example": {"auth": "YTpi"}}}')
    left = run("logout", "x.example")
    assert left.stderr.endswith(f"There is another one, of another program's: {tmp_path}/auth.json\n")


@pytest.mark.parametrize(
    ("args", "given", "expected"),
    [
        (["-u", "builder"], "", "--password-stdin reads it"),
        (["--password-stdin"], "x", "--username NAME"),
        (["-u", "builder", "--password-stdin"], "\n", "the password is empty"),
        (["-u", "an:na", "--password-stdin"], "x", "--username 'an:na': expected a name without a colon"),
        (["-u", "builder", "--password-stdin", "a/b"], "x", "registry 'a/b': expected a host"),
        (["-u", "builder", "--password-stdin", "127.0.0.1:1"], "x", "no connection to it"),
    ],
)
def test_what_is_wrong(
    args: list[str],
    given: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    assert dispatch(["login", *args]) == 125
    assert expected in capsys.readouterr().err


def test_on_a_terminal(registry: Registry) -> None:
    """It asks, and shows no password."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "isobox.cli", "login", registry.address]
    seen = b""
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        try:
            for question, reply in (
                (b"Username: ", b"builder\n"),
                (b"Password: ", b"hidden\n"),
                (b"unencrypted", b""),
            ):
                while question not in seen:
                    seen += os.read(master, 1000)
                os.write(master, reply)
            process.wait(patient(30))
        finally:
            process.kill()
            os.close(master)
    assert b"builder" in seen and b"hidden" not in seen
    assert find(registry.address) == Credential("builder", "hidden")
