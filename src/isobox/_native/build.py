"""How cffi builds the extension: declarations from isobox.h and extension.h, code from .c files.

Build time only; nothing imports this at run time.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent


def declarations() -> str:
    """The two headers without the preprocessor's lines and comments, which cffi does not read."""
    text = "".join((HERE / name).read_text(encoding="ascii") for name in ("isobox.h", "extension.h"))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


SOURCES = ("spawn.c", "sockets.c", "pump.c", "calls.c", "files.c")
SANITIZE = os.environ.get("ISOBOX_SANITIZE") == "1"
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-g",
    "-fno-omit-frame-pointer",
]

ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "isobox._native._isobox",
    '#include "extension.h"',
    sources=[os.path.relpath(HERE / name) for name in SOURCES],
    include_dirs=[str(HERE)],
    extra_compile_args=[*WARNINGS, *(SANITIZERS if SANITIZE else ["-O2"])],
    extra_link_args=["-fsanitize=address,undefined"] if SANITIZE else [],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
