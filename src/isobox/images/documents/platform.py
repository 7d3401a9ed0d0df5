"""Platforms: which of an image's variants runs here.

Names are normalised and variants ordered as github.com/containerd/platforms does it
(database.go, compare.go), so that the same image is chosen here as by containerd and Docker.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from attrs import evolve, field, frozen

from isobox.errors import SpecError

__all__ = ["Platform", "best"]

_PART: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SYSTEMS: Final = frozenset(
    "android darwin dragonfly freebsd illumos ios linux macos netbsd openbsd plan9 solaris windows".split()
)
_ARCHITECTURES: Final = frozenset(
    "386 amd64 arm arm64 loong64 mips mips64 mips64le mipsle ppc64 ppc64le riscv64 s390x wasm".split()
)

# What uname(2) calls a machine, where Go has another name for it (architecture, variant).
_MACHINES: Final = {
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm", "v8"),
    "armv8b": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}
_ARM_MACHINE: Final = re.compile(r"armv([5-7])")

# What the CPU must have for v2, v3, v4 beyond the level below: the x86-64 psABI's levels, in the
# words of /proc/cpuinfo (pni is SSE3, abm is LZCNT; what the kernel shows of AVX it also saves).
_AMD64_LEVELS: Final = (
    frozenset("cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3".split()),
    frozenset("avx avx2 bmi1 bmi2 f16c fma abm movbe".split()),
    frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split()),
)

# The largest minor version of each older generation that a generation of arm64 includes.
_ARM64_MINOR_BEHIND: Final = 5  # v9.N runs what v8.(N+5) runs
_ARM64_LAST_V8: Final = 9


@frozen
class Platform:
    """What an image needs: an operating system, an architecture and perhaps a variant of that.

    Names are Go's ("linux", "amd64", "arm64"). A platform read from a document keeps the names
    that stand there; `normalized` gives the one way to write it. `os_version` and `os_features`
    matter for Windows; `extra` has the fields of the document that are not known here.

    >>> Platform.parse("linux/x86_64") == Platform("linux", "amd64")
    True
    >>> str(Platform.parse("linux/armhf"))
    'linux/arm/v7'
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Return the platform that a person wrote; raises `SpecError`.

        ``os/architecture`` or ``os/architecture/variant``; one word alone is either of the first
        two, and this machine's other is taken.
        """
        parts = text.split("/", 3) if isinstance(text, str) and len(text) < 256 else []
        if 1 <= len(parts) <= 3 and all(_PART.fullmatch(part) for part in parts):
            if len(parts) > 1:
                return cls(parts[0], parts[1], "".join(parts[2:])).normalized
            if parts[0].lower() in _SYSTEMS:
                return evolve(cls.here(), os=parts[0]).normalized
            alone = cls("linux", parts[0]).normalized
            if alone.architecture in _ARCHITECTURES:
                return alone
        raise SpecError("platform", text, 'a platform such as "linux/amd64" or "linux/arm/v7"')

    @classmethod
    def here(cls) -> Platform:
        """The platform of this machine; with the best variant of amd64 that its CPU has."""
        return _here()

    @property
    def normalized(self) -> Platform:
        """The same in the one way to write it: Go's names, the ordinary variant left out.

        >>> str(Platform("Linux", "aarch64", "v8").normalized)
        'linux/arm64'
        """
        system = self.os.lower()
        architecture, variant = _normalized(self.architecture.lower(), self.variant.lower())
        features = tuple(sorted(set(self.os_features)))
        return evolve(
            self,
            os={"macos": "darwin"}.get(system, system),
            architecture=architecture,
            variant=variant,
            os_features=features,
        )

    def __str__(self) -> str:
        return "/".join([part for part in (self.os, self.architecture, self.variant) if part])


def best(candidates: Sequence[Platform | None], wanted: Platform) -> int | None:
    """Return the position of the candidate that suits `wanted` best, None where none does.

    A machine also runs what was made for less: arm/v7 runs v6 and v5, arm64 runs its older
    versions and then arm, amd64/v3 runs v2 and v1, and amd64 at last 386. What was made for more,
    or needs a feature of the system that `wanted` lacks, is never taken. Among equals the one with
    most features is taken, then the first, as the specification says (image-index.md).

    >>> offered = [Platform("linux", "arm", "v6"), Platform("linux", "arm", "v7")]
    >>> best(offered, Platform.parse("linux/arm/v7"))
    1
    >>> best(offered, Platform.parse("linux/amd64")) is None
    True
    """
    ranks = {suited: rank for rank, suited in enumerate(_suited(wanted.normalized))}
    features = frozenset(wanted.os_features)
    chosen: tuple[int, int, int] | None = None
    for position, candidate in enumerate(candidates):
        if candidate is None:
            continue
        plain = candidate.normalized
        rank = ranks.get((plain.os, plain.architecture, plain.variant))
        if rank is None or not features.issuperset(plain.os_features):
            continue
        key = (rank, -len(plain.os_features), position)
        if chosen is None or key < chosen:
            chosen = key
    return None if chosen is None else chosen[2]


def _normalized(architecture: str, variant: str) -> tuple[str, str]:
    match architecture:
        case "i386":
            return "386", ""
        case "x86_64" | "x86-64" | "amd64":
            return "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            if variant in ("8", "v8", "v8.0"):
                return "arm64", ""
            return "arm64", "v9" if variant in ("9", "9.0", "v9.0") else variant
        case "armhf":
            return "arm", "v7"
        case "armel":
            return "arm", "v6"
        case "arm":
            if variant in ("", "7"):
                return "arm", "v7"
            return "arm", f"v{variant}" if variant in ("5", "6", "8") else variant
    return architecture, variant


def _suited(wanted: Platform) -> Iterable[tuple[str, str, str]]:
    """Every platform that `wanted` runs, best first, in normalised names."""
    for architecture, variant in _runs(wanted.architecture, wanted.variant):
        yield wanted.os, *_normalized(architecture, variant)


def _runs(architecture: str, variant: str) -> Iterable[tuple[str, str]]:
    yield architecture, variant
    level = _number(variant)
    if architecture == "amd64":
        for lower in range((level or 1) - 1, 0, -1):
            yield "amd64", f"v{lower}"
        yield "386", ""
    elif architecture == "arm":
        for lower in range((level or 5) - 1, 4, -1):
            yield "arm", f"v{lower}"
    elif architecture == "arm64":
        match = re.fullmatch(r"v([89])(?:\.([0-9]))?", variant or "v8")
        if match is None:
            return
        generation, minor = int(match[1]), int(match[2] or 0)
        for lower in range(minor - 1, -1, -1):
            yield "arm64", f"v{generation}.{lower}"
        if generation == 9:
            for lower in range(min(minor + _ARM64_MINOR_BEHIND, _ARM64_LAST_V8), -1, -1):
                yield "arm64", f"v8.{lower}"
        yield "arm", "v8"
        yield from _runs("arm", "v8")


def _number(variant: str) -> int | None:
    match = re.fullmatch(r"v([1-9])", variant)
    return int(match[1]) if match else None


@cache
def _here() -> Platform:
    flags = b""
    if os.uname().machine == "x86_64":
        try:
            with open("/proc/cpuinfo", "rb") as file:
                # One CPU's lines are a few KiB, and the first speaks for all of them.
                flags = file.read(16384)
        except OSError:  # no /proc: the lowest level, which every such machine has
            pass
    return _of_machine(os.uname().machine, sys.byteorder, flags)


def _of_machine(machine: str, byteorder: str, cpuinfo: bytes) -> Platform:
    if match := _ARM_MACHINE.match(machine):
        return Platform("linux", "arm", f"v{match[1]}")
    if machine in ("mips", "mips64"):  # one name for both orders of bytes
        return Platform("linux", machine + ("le" if byteorder == "little" else ""))
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    if architecture == "amd64":
        match_flags = re.search(rb"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
        flags = frozenset(match_flags[1].decode("ascii", "replace").split() if match_flags else ())
        for level, needed in enumerate(_AMD64_LEVELS, 2):
            if not needed <= flags:
                break
            variant = f"v{level}"
    return Platform("linux", architecture, variant).normalized
