"""Platforms: their names, and which image is chosen."""

from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import SpecError
from isobox.images.documents.platform import Platform, _of_machine, best


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/i386", "linux/386"),
        ("linux/i386/v3", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/v8.0", "linux/arm64"),
        ("linux/arm64/v8.2", "linux/arm64/v8.2"),
        ("linux/arm64/9", "linux/arm64/v9"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/arm/V6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armhf/v6", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/ppc64le", "linux/ppc64le"),
        ("linux/riscv64/rva20u64", "linux/riscv64/rva20u64"),
        ("macOS/arm64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("armhf", "linux/arm/v7"),
    ],
)
def test_names(written: str, normal: str) -> None:
    platform = Platform.parse(written)
    assert str(platform) == normal
    assert Platform.parse(normal) == platform == platform.normalized
    assert pickle.loads(pickle.dumps(platform)) == platform
    assert len({platform, Platform.parse(normal)}) == 1


@pytest.mark.parametrize(
    "text",
    ["", "/", "linux/", "/amd64", "linux/amd64/v1/x", "a/b/c/d", "*", "linux/*", "linux/a b", "linux/é",
     "foo", "linux/amd64\n", "x" * 300, "linux/" + "x" * 65, "\udcff", None, 3, b"linux/amd64", ["linux"]],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"platform=.*linux/amd64"):
        Platform.parse(text)


@given(st.text() | st.from_regex(r"[a-zA-Z0-9_.-]+(/[a-zA-Z0-9_.-]+){0,3}", fullmatch=True))
def test_any_text_is_a_platform_or_an_error(text: str) -> None:
    try:
        platform = Platform.parse(text)
    except SpecError:
        return
    assert Platform.parse(str(platform)) == platform


def chosen(wanted: str, *offered: str) -> str | None:
    place = best([Platform(*text.split("/")) for text in offered], Platform.parse(wanted))
    return None if place is None else offered[place]


@pytest.mark.parametrize(
    ("wanted", "offered", "taken"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64", "linux/386"], "linux/amd64"),
        ("linux/amd64", ["linux/x86_64"], "linux/x86_64"),
        ("linux/amd64", ["linux/arm64", "linux/386"], "linux/386"),
        ("linux/386", ["linux/amd64"], None),
        ("linux/amd64", ["windows/amd64", "unknown/unknown"], None),
        ("linux/amd64", ["linux/amd64/v2"], None),
        (
            "linux/amd64/v3",
            ["linux/amd64", "linux/amd64/v4", "linux/amd64/v2", "linux/386"],
            "linux/amd64/v2",
        ),
        ("linux/amd64/v3", ["linux/amd64/v2", "linux/amd64/v3"], "linux/amd64/v3"),
        ("linux/amd64/v3", ["linux/386", "linux/amd64/v1"], "linux/amd64/v1"),
        ("linux/amd64/v4", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("linux/amd64/odd", ["linux/amd64", "linux/amd64/odd"], "linux/amd64/odd"),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "linux/arm/v6"),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], "linux/arm/v5"),
        ("linux/arm/v6", ["linux/arm"], None),
        ("linux/arm/v8", ["linux/arm/v6", "linux/arm"], "linux/arm"),
        ("linux/arm/v5", ["linux/arm/v4"], None),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7", "linux/amd64"], "linux/arm/v7"),
        ("linux/arm64", ["linux/arm64/v8.1"], None),
        ("linux/arm64/v8.2", ["linux/arm64", "linux/arm64/v8.1", "linux/arm64/v8.3"], "linux/arm64/v8.1"),
        ("linux/arm64/v9", ["linux/arm64", "linux/arm64/v8.5", "linux/arm64/v8.6"], "linux/arm64/v8.5"),
        ("linux/arm64/v9.1", ["linux/arm64/v8.6", "linux/arm64/v9", "linux/arm64/v9.2"], "linux/arm64/v9"),
        ("linux/arm64/v9.7", ["linux/arm64/v8.9", "linux/arm/v7"], "linux/arm64/v8.9"),
        ("linux/arm64/v9", ["linux/arm/v8"], "linux/arm/v8"),
        ("linux/arm64/odd", ["linux/arm64", "linux/arm64/odd"], "linux/arm64/odd"),
        ("linux/arm", ["linux/arm64"], None),
        ("linux/s390x", ["linux/amd64", "linux/s390x"], "linux/s390x"),
        ("linux/amd64", [], None),
    ],
)
def test_the_choice(wanted: str, offered: list[str], taken: str | None) -> None:
    assert chosen(wanted, *offered) == taken


def test_the_first_of_equals_is_taken_and_what_has_no_platform_is_not() -> None:
    here = Platform("linux", "amd64")
    assert best([None, here, here], here) == 1
    assert best([None], here) is None


def test_features_of_the_system() -> None:
    plain = Platform("windows", "amd64")
    one = Platform("windows", "amd64", os_features=("win32k",))
    two = Platform("windows", "amd64", os_features=("other", "win32k"))
    assert best([one, plain], plain) == 1
    assert best([plain, one, two], one) == 1
    assert best([plain, one, two], two) == 2
    assert best([two], one) is None


V2 = b"cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = V2 + b" avx avx2 bmi1 bmi2 f16c fma abm movbe"
V4 = V3 + b" avx512f avx512bw avx512cd avx512dq avx512vl\n"


@pytest.mark.parametrize(
    ("machine", "order", "cpuinfo", "platform"),
    [
        ("x86_64", "little", b"", "linux/amd64"),
        ("x86_64", "little", b"flags\t\t: fpu sse2\n", "linux/amd64"),
        ("x86_64", "little", b"vendor: x\nflags\t\t: fpu " + V2 + b"\nbugs: none", "linux/amd64/v2"),
        ("x86_64", "little", b"flags\t\t: " + V3 + b"\n", "linux/amd64/v3"),
        ("x86_64", "little", b"flags : " + V4, "linux/amd64/v4"),
        # Without v2's, v3's do not count.
        ("x86_64", "little", b"flags : avx avx2 bmi1 bmi2 f16c fma abm movbe\n", "linux/amd64"),
        ("x86_64", "little", b"vmx flags : " + V3 + b"\nflags : sse2\n\xff", "linux/amd64"),
        ("i686", "little", b"", "linux/386"),
        ("aarch64", "little", b"", "linux/arm64"),
        ("armv8l", "little", b"", "linux/arm/v8"),
        ("armv7l", "little", b"", "linux/arm/v7"),
        ("armv6l", "little", b"", "linux/arm/v6"),
        ("armv5tejl", "little", b"", "linux/arm/v5"),
        ("ppc64le", "little", b"", "linux/ppc64le"),
        ("s390x", "big", b"", "linux/s390x"),
        ("riscv64", "little", b"", "linux/riscv64"),
        ("loongarch64", "little", b"", "linux/loong64"),
        ("mips64", "little", b"", "linux/mips64le"),
        ("mips", "big", b"", "linux/mips"),
    ],
)  # fmt: skip
def test_machines(machine: str, order: str, cpuinfo: bytes, platform: str) -> None:
    assert str(_of_machine(machine, order, cpuinfo)) == platform


def test_this_machine_runs_its_own() -> None:
    here = Platform.here()
    assert here == here.normalized == Platform.here()
    assert best([Platform("linux", os.uname().machine)], here) == 0
    assert Platform.parse("linux") == here
