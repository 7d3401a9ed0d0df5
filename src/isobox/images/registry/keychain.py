"""Programs that keep logins: docker-credential-NAME (github.com/docker/docker-credential-helpers).

One is given an action, and what it needs for that on stdin; it answers in JSON on stdout, and where it
fails, with a message there. What it says beside that, or asks a person, goes to stderr and the terminal.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import time
from typing import Final

from isobox.errors import ImageError, printable, shown

from ..documents.fields import Fields

__all__ = ["Keychain"]

SECONDS: Final = 120.0
"""How long one may take: it may ask a person for a passphrase."""

MOST_OUTPUT: Final = 1 << 20
"""Bytes of its answer."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_NOT_FOUND: Final = "credentials not found"  # "... in native keychain"; some say it in words of their own
_SHOWN: Final = 200


class Keychain:
    """The program of that name; `where` is the field that names it, for messages."""

    def __init__(self, name: str, where: str) -> None:
        if _NAME.fullmatch(name) is None:
            raise ImageError(f"{where}: {shown(name)} is no name of a program docker-credential-NAME")
        self._where = where
        self.program = f"docker-credential-{name}"
        """What it is called."""

    def get(self, server: str) -> tuple[str, str] | None:
        """The user's name and secret for a server; None where it has none. Raises `ImageError`."""
        status, output = self._run("get", server)
        if status:
            if _NOT_FOUND in output:
                return None
            raise self._failed("get", status, output, "")
        try:
            values = Fields.read(output.encode(), self.program).extra()
        except ImageError:
            values = {}  # what is wrong with it may be a secret
        name, secret = values.get("Username"), values.get("Secret")
        if not isinstance(name, str) or not isinstance(secret, str):
            raise ImageError(
                f"{self.program} get: expected a JSON object with the strings Username and Secret. "
                f"It is named by {self._where}"
            )
        return (name, secret) if name and secret else None

    def store(self, server: str, name: str, secret: str) -> None:
        """Have it keep a login. Raises `ImageError`."""
        request = json.dumps({"ServerURL": server, "Username": name, "Secret": secret})
        status, output = self._run("store", request)
        if status:
            raise self._failed("store", status, output, secret)

    def erase(self, server: str) -> None:
        """Have it drop a login. Raises `ImageError`."""
        status, output = self._run("erase", server)
        if status and _NOT_FOUND not in output:
            raise self._failed("erase", status, output, "")

    def _failed(self, action: str, status: int, output: str, secret: str) -> ImageError:
        said = " ".join(output.split())[:_SHOWN]
        if "{" in said or (secret and secret in output):
            said = ""  # it may have secrets in it
        return ImageError(
            f"{self.program} {action}: it failed with status {status}"
            + (f": {said}" if said else "")
            + f". It is named by {self._where}"
        )

    def _run(self, action: str, request: str) -> tuple[int, str]:
        """Run it: its exit status and what it wrote."""
        path = shutil.which(self.program)
        if path is None:
            raise ImageError(
                f"{self._where}: there is no program {self.program} on the PATH. Install it, or take it "
                "out of that file"
            )
        # Never on a disk, and never a pipe that it doesn't read.
        with os.fdopen(os.memfd_create(self.program), "w+b") as stdin:
            stdin.write(request.encode())
            stdin.seek(0)
            try:
                process = subprocess.Popen([path, action], stdin=stdin, stdout=subprocess.PIPE)
            except OSError as error:
                raise ImageError(f"{printable(path)}: can't run it: {error.strerror}") from error
        with process:
            try:
                output = self._output(process)
            except BaseException:
                process.kill()
                raise
        return process.returncode, output.decode(errors="replace").strip()

    def _output(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        fd = process.stdout.fileno()
        until = time.monotonic() + SECONDS
        poll = select.poll()  # which any number of descriptors is fine for
        poll.register(fd, select.POLLIN)
        output = b""
        while poll.poll(max(0.0, until - time.monotonic()) * 1000):
            data = os.read(fd, 65536)
            if not data:
                try:
                    process.wait(max(0.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    break
                return output
            output += data
            if len(output) > MOST_OUTPUT:
                raise ImageError(f"{self.program}: expected at most {MOST_OUTPUT} bytes of it")
        raise ImageError(f"{self.program}: it took longer than {SECONDS:.0f} s. It is named by {self._where}")
