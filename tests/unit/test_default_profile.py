"""The default profile, call by call: tests/syscalls.txt says what is to become of each."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
from pathlib import Path

import pytest

import bpf
from isobox.security import capabilities, seccomp

HERE = Path(__file__).parent
PROFILE = HERE.parents[1] / "src/isobox/security/default_seccomp.json"
LINES = [
    line.split() for line in (HERE.parent / "syscalls.txt").read_text().splitlines() if line[:1].isdigit()
]
TABLE = {name: (int(number), answer, opened) for number, name, answer, opened in LINES}
X86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the table is x86-64's")
WORDS = {
    bpf.ALLOW: "allowed",
    bpf.ERRNO | errno.EPERM: "EPERM",
    bpf.ERRNO | errno.ENOSYS: "ENOSYS",
    bpf.ERRNO | errno.EAFNOSUPPORT: "EAFNOSUPPORT",
}


@functools.cache
def filter_with(mask: int) -> bytes:
    program = seccomp.compile("default", capabilities=mask)
    assert program is not None
    return program


def answer(number: int, *arguments: int, mask: int = capabilities.DEFAULT) -> str:
    return WORDS[bpf.run(filter_with(mask), number, arguments)[0]]


def verdict(number: int, mask: int) -> str:
    action, looked = bpf.run(filter_with(mask), number)
    return "arguments" if looked else WORDS[action]


@X86_64
class TestTable:
    def test_what_each_call_gets_without_capabilities(self) -> None:
        assert {name: verdict(number, 0) for name, (number, _, _) in TABLE.items()} == {
            name: expected for name, (_, expected, _) in TABLE.items()
        }

    def test_what_each_capability_opens(self) -> None:
        expected: dict[str, set[str]] = {}
        for name, (_, _, opened) in TABLE.items():
            for short in opened.split(",") if opened != "-" else ():
                expected.setdefault(f"CAP_{short}", set()).add(name)
        found: dict[str, set[str]] = {}
        for capability, bit in capabilities.BITS.items():
            if filter_with(1 << bit) != filter_with(0):
                found[capability] = {
                    name for name, (number, before, _) in TABLE.items() if verdict(number, 1 << bit) != before
                }
        # these two open families of sockets, which the filter tells by an argument
        assert (found.pop("CAP_NET_ADMIN"), found.pop("CAP_NET_RAW")) == (set(), set())
        assert found == expected

    def test_capabilities_close_nothing(self) -> None:
        for number, before, _ in TABLE.values():
            if before == "allowed":
                assert verdict(number, capabilities.ALL) == "allowed"

    def test_the_usual_capabilities_open_one_call(self) -> None:
        changed = {
            name
            for name, (number, before, _) in TABLE.items()
            if verdict(number, capabilities.DEFAULT) != before
        }
        assert changed == {"chroot"}

    def test_no_other_number_is_a_call(self) -> None:
        named = {number for number, _, _ in TABLE.values()}
        for number in range(max(named) + 1):
            if number not in named:
                assert answer(number, mask=capabilities.ALL) == "EPERM", number
        for number in (max(named) + 1, 600, 0x3FFFFFFF):
            assert answer(number, mask=capabilities.ALL) == "ENOSYS"

    def test_other_tables_end_the_process(self) -> None:
        i386, x32 = 0x40000003, 0x40000000
        for number in range(max(number for number, _, _ in TABLE.values()) + 100):
            for mask in (capabilities.DEFAULT, capabilities.ALL):
                assert bpf.run(filter_with(mask), number, architecture=i386)[0] == bpf.KILL_PROCESS
                assert bpf.run(filter_with(mask), number | x32)[0] == bpf.KILL_PROCESS

    def test_the_kernel_remembers_what_is_always_allowed(self) -> None:
        """It does for calls whose answer needs no argument, and skips the filter (SECCOMP_CACHE)."""
        looked_at = {name for name, (number, _, _) in TABLE.items() if bpf.run(filter_with(0), number)[1]}
        assert looked_at == {"clone", "ioctl", "personality", "socket", "socketpair"}

    def test_the_filter_is_short(self) -> None:
        """The kernel translates it each time it is installed: some 0.25 us an instruction."""
        for mask in (0, capabilities.DEFAULT, capabilities.ALL):
            assert len(filter_with(mask)) // 8 < 200

    @pytest.mark.parametrize("header", ["asm/unistd_64.h", "x86_64-linux-gnu/asm/unistd_64.h"])
    def test_no_call_of_these_headers_is_forgotten(self, header: str) -> None:
        path = Path("/usr/include") / header
        if not path.exists():
            pytest.skip("not here")
        found = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", path.read_text()))
        assert found
        assert {name: int(number) for name, number in found.items()} == {
            name: TABLE.get(name, (None,))[0] for name in found
        }


def test_every_call_of_newer_architectures_is_named() -> None:
    path = Path("/usr/include/asm-generic/unistd.h")
    if not path.exists():
        pytest.skip("no headers here")
    named = {name for rule in json.loads(PROFILE.read_text())["syscalls"] for name in rule["names"]}
    found = set(re.findall(r"#define __NR(?:3264)?_(\w+)\s", path.read_text()))
    # what 32-bit machines call other calls, other names of named ones, and what is no call
    no_calls = {"arch_specific_syscall", "fstatat", "llseek", "mmap2", "sync_file_range2", "syscalls"}
    assert found
    assert {name for name in found - named if not name.endswith("64")} == no_calls


def number_of(name: str) -> int:
    return TABLE[name][0]


@X86_64
class TestArguments:
    ADMIN = capabilities.DEFAULT | 1 << capabilities.BITS["CAP_NET_ADMIN"]
    HIGH = 1 << 32  # the kernel looks at 32 bits of these arguments

    @pytest.mark.parametrize("call", ["socket", "socketpair"])
    @pytest.mark.parametrize("high", [0, HIGH])
    def test_families_of_sockets(self, call: str, high: int) -> None:
        allowed = {family for family in range(60) if answer(number_of(call), family | high) == "allowed"}
        assert allowed == {1, 2, 10, 16} | ({17} if call == "socket" else set())
        more = {
            family
            for family in range(60)
            if answer(number_of(call), family | high, mask=self.ADMIN) == "allowed"
        }
        assert more == allowed | ({15, 24, 29, 44} if call == "socket" else set())
        assert answer(number_of(call), 17 | high, mask=0) in ("EPERM", "EAFNOSUPPORT")
        for family in (38, 40):
            assert answer(number_of(call), family | high) == "EAFNOSUPPORT"
            assert answer(number_of(call), family | high, mask=capabilities.ALL) == "EAFNOSUPPORT"
        # as from a kernel without them: programs look for what else there is
        assert {answer(number_of(call), f | high) for f in {*range(60)} - allowed - {15, 17}} == {
            "EAFNOSUPPORT"
        }

    def test_flags_of_clone(self) -> None:
        namespaces = {0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000}
        for flag in (1 << bit for bit in range(32)):
            expected = "EPERM" if flag in namespaces else "allowed"
            assert answer(number_of("clone"), flag | 17) == expected
            assert answer(number_of("clone"), flag | 17 | self.HIGH) == expected
        assert answer(number_of("clone"), sum(namespaces), mask=capabilities.ALL) == "allowed"

    def test_requests_of_ioctl(self) -> None:
        for high in (0, self.HIGH, 0xFFFFFFFF << 32):
            refused = {r for r in range(0x10000) if answer(number_of("ioctl"), 0, r | high) == "EPERM"}
            assert refused == {0x5412, 0x541C}
        assert answer(number_of("ioctl"), 0, 0x5412, mask=capabilities.ALL) == "EPERM"

    def test_personalities(self) -> None:
        harmless = {0, 8, 0x20000, 0x20008}
        for bit in range(32):
            for value in (1 << bit, 1 << bit | 8, 1 << bit | 0x20000):
                expected = "allowed" if value in harmless else "EPERM"
                assert answer(number_of("personality"), value) == expected
        for ask in (0xFFFFFFFF, 2**64 - 1):
            assert answer(number_of("personality"), ask) == "allowed"


@X86_64
class TestPage:
    """docs/reference/seccomp.md says what the filter does."""

    TEXT = (HERE.parents[1] / "docs/reference/seccomp.md").read_text()

    def rows(self, heading: str) -> list[list[str]]:
        _, _, rest = self.TEXT.partition(f"| {heading} |")
        lines = rest.split("\n\n")[0].splitlines()[2:]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    def test_what_is_refused(self) -> None:
        written: dict[str, tuple[str, set[str]]] = {}
        for calls, gives, opened, _ in self.rows("calls | gives | opened by | why"):
            for name in re.findall(r"`(\w+)`", calls):
                assert name not in written
                written[name] = gives, {*opened.split(", ")}
        assert written == {
            name: (gives, {*opened.split(",")})
            for name, (_, gives, opened) in TABLE.items()
            if gives not in ("allowed", "arguments")
        }

    def test_where_arguments_decide(self) -> None:
        names = [
            name for row in self.rows("call | allowed | refused") for name in re.findall(r"`(\w+)`", row[0])
        ]
        assert sorted(names) == sorted(name for name, line in TABLE.items() if line[1] == "arguments")
