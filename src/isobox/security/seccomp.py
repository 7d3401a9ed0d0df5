"""The seccomp filter of a container: a profile in Docker's JSON format to BPF bytes.

Compiled once per profile: the result is kept in memory and, where the caller names a directory,
on disk, so that a new process neither loads libseccomp nor parses JSON before its first container.
"""

from __future__ import annotations

import os
from typing import Any

from isobox import forks
from isobox.errors import SpecError
from isobox.security import capabilities as _capabilities

_DEFAULT_PROFILE = os.path.join(os.path.dirname(__file__), "default_seccomp.json")
_MAX_PROFILE = 4 << 20
_FORMAT = b"isobox-seccomp 2\n"  # raise the number when the same profile compiles to something else

_compiled: dict[bytes, bytes] = {}
_default_text: bytes | None = None
_prefix: bytes | None = None


def compile(
    profile: object,
    *,
    capabilities: int = _capabilities.DEFAULT,
    cache: str | None = None,
) -> bytes | None:
    """The filter as the ``struct sock_filter[]`` that ``SECCOMP_SET_MODE_FILTER`` takes.

    - `profile`: ``"default"``, ``None`` (no filter; gives ``None``), a path to a JSON profile, or
      the parsed profile as a dict.
    - `capabilities`: the container's set (`capabilities.effective`), which a profile's
      ``includes`` and ``excludes`` depend on.
    - `cache`: a directory to keep compiled filters in; made if it is missing. What others could
      have written there is not read.

    The kernel takes at most 4096 instructions of 8 bytes. Raises SpecError for a profile that
    makes no sense, UnsupportedError if libseccomp is needed and not installed.

    >>> len(compile("default")) % 8
    0
    >>> compile(None) is None
    True
    """
    if profile is None:
        return None
    key = b"%s%x\n%s" % (_machine_and_kernel(), capabilities, _text(profile))
    program = _compiled.get(key)
    if program is not None:
        return program
    with forks.whole:  # it imports and loads what most programs never need
        program = _compiled.get(key) or _load_or_make(profile, key, capabilities, cache)
        _compiled[key] = program
    return program


def _load_or_make(profile: object, key: bytes, capabilities: int, cache: str | None) -> bytes:
    from isobox.security import filter_cache

    program = None if cache is None else filter_cache.load(cache, key)
    if program is None:
        program = _compile(profile, key, capabilities)
        if cache is not None:
            filter_cache.store(cache, key, program)
    return program


def _text(profile: object) -> bytes:
    """The profile's exact content: this, not its path, says which filter it is."""
    global _default_text
    if isinstance(profile, dict):
        with forks.whole:
            import json

        try:
            return json.dumps(profile, sort_keys=True).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise SpecError("seccomp", profile, f"only what JSON can express ({error})") from None
    if profile == "default":
        if _default_text is None:
            _default_text = _read(_DEFAULT_PROFILE)
        return _default_text
    if isinstance(profile, (str, os.PathLike)):
        return _read(os.fspath(profile))
    raise SpecError("seccomp", profile, "'default', None, the path of a JSON profile, or a dict")


def _read(path: Any) -> bytes:
    expected = "'default', None, or the path of a profile in Docker's JSON format"
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_PROFILE + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SpecError("seccomp", path, f"{expected} ({why})") from None
    if len(text) > _MAX_PROFILE:
        raise SpecError("seccomp", path, f"a profile of at most {_MAX_PROFILE} bytes")
    return text


def _machine_and_kernel() -> bytes:
    # Which kernel: `minKernel` and what libseccomp thinks it may use. Which library: its table of
    # calls. The link's target has the version in its name, so nothing needs loading to know.
    global _prefix
    if _prefix is None:
        host = os.uname()
        library = "?"
        for folder in (f"/usr/lib/{host.machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib"):
            try:
                library = os.readlink(f"{folder}/libseccomp.so.2")
                break
            except OSError:
                continue
        _prefix = _FORMAT + f"{host.machine}\n{host.release}\n{library}\n".encode()
    return _prefix


def _compile(profile: object, key: bytes, capabilities: int) -> bytes:
    import json
    import re

    from isobox.security import libseccomp
    from isobox.security.profile import read

    document: object = profile
    if not isinstance(profile, dict):
        try:
            document = json.loads(_text(profile))
        except (ValueError, RecursionError) as error:
            raise SpecError("seccomp", profile, f"a profile in Docker's JSON format ({error})") from None
    host = os.uname()
    version = re.match(r"(\d+)\.(\d+)", host.release)
    kernel = (int(version[1]), int(version[2])) if version else (0, 0)
    return libseccomp.build(read(document, mask=capabilities, machine=host.machine, kernel=kernel))
