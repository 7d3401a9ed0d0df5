"""The compiled parts: the cffi module (abi3), and isobox-init, a static program without libc.

Metadata is in pyproject.toml. CC chooses the compiler; ISOBOX_SANITIZE=1 builds the extension
with AddressSanitizer and UndefinedBehaviorSanitizer (see src/isobox/_native/build.py).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/isobox/_native")
INIT_PARTS = "init messages execs clones paths ops mounts places process program copy remount landlock memory"
INIT_SOURCES = [f"{name}.c" for name in INIT_PARTS.split()]
INIT_FLAGS = (
    "-Os -std=gnu11 -Wall -Wextra -Werror -ffreestanding -nostdlib -static -fno-stack-protector "
    "-fno-pie -no-pie -fno-asynchronous-unwind-tables"
).split()


class build_init(Command):
    description = "compile isobox-init"
    user_options = [  # noqa: RUF012
        ("output=", None, "the file to write"),
        ("cc=", None, "the compiler (default: $CC, else cc or gcc)"),
    ]

    def initialize_options(self) -> None:
        self.output: str | None = None
        self.cc: str | None = None

    def finalize_options(self) -> None:
        self.output = self.output or str(NATIVE / "isobox-init")

    def run(self) -> None:
        compiler = self.cc or os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            sys.exit("isobox needs a C compiler, and there is none. On Debian: apt-get install gcc")
        output = Path(str(self.output))
        output.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: a running interpreter may be reading the old one.
        fresh = output.with_name(f".{output.name}.{os.getpid()}")
        sources = [str(NATIVE / name) for name in INIT_SOURCES]
        command = [*shlex.split(compiler), *INIT_FLAGS, "-o", str(fresh), *sources]
        self.announce(" ".join(command), level=2)
        try:
            subprocess.run(command, check=True)
            fresh.chmod(0o755)
            fresh.replace(output)
        finally:
            fresh.unlink(missing_ok=True)


class build_native(build_ext):
    def run(self) -> None:
        super().run()
        in_source = self.inplace or getattr(self, "editable_mode", False)
        folder = NATIVE if in_source else Path(self.build_lib) / "isobox" / "_native"
        command = self.get_finalized_command("build_init")
        command.output = str(folder / "isobox-init")
        command.run()


setup(
    cffi_modules=["src/isobox/_native/build.py:ffibuilder"],
    cmdclass={"build_ext": build_native, "build_init": build_init},
    # cffi builds against the stable ABI; the floor of requires-python is the tag's version.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
