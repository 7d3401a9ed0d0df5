"""The filter is tried for real: a child installs it and makes the calls."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bpf
from isobox.errors import IsoboxError, SpecError
from isobox.security import capabilities, filter_cache, libseccomp, seccomp
from isobox.security.profile import read

NUMBERS = {
    "x86_64": {
        "seccomp": 317, "getpid": 39, "clone": 56, "clone3": 435, "mount": 165, "umount2": 166,
        "unshare": 272, "setns": 308, "pivot_root": 155, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "io_uring_setup": 425, "keyctl": 250, "add_key": 248, "request_key": 249,
        "open_by_handle_at": 304, "kexec_load": 246, "init_module": 175, "reboot": 169, "swapon": 167,
        "acct": 163, "ioctl": 16,
        "socket": 41, "open_tree_attr": 467, "ptrace": 101, "unlinkat": 263, "personality": 135,
        "sysfs": 139, "lookup_dcookie": 212, "settimeofday": 164, "syslog": 103, "sethostname": 170,
        "getppid": 110,
    },
    "aarch64": {
        "seccomp": 277, "getpid": 172, "clone": 220, "clone3": 435, "mount": 40, "umount2": 39, "unshare": 97,
        "setns": 268, "pivot_root": 41, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "io_uring_setup": 425, "keyctl": 219, "add_key": 217, "request_key": 218, "open_by_handle_at": 265,
        "kexec_load": 104, "init_module": 105, "reboot": 142, "swapon": 224, "acct": 89, "ioctl": 29,
        "socket": 198, "open_tree_attr": 467, "ptrace": 117, "unlinkat": 35, "personality": 92,
        "lookup_dcookie": 18, "settimeofday": 170, "syslog": 116, "sethostname": 161, "getppid": 173,
    },
}[os.uname().machine]  # fmt: skip

CHILD = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
order = json.load(sys.stdin)
program = bytes.fromhex(order["program"])
buffer = ctypes.create_string_buffer(program, len(program))
class Fprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
fprog = Fprog(len(program) // 8, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.syscall(order["seccomp"], 1, 0, ctypes.byref(fprog)) == 0, ctypes.get_errno()
answers = []
for number, arguments in order["calls"]:
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_ulong(a % 2**64) for a in (number, *arguments)])
    answers.append(ctypes.get_errno() if result == -1 else 0)
print(json.dumps(answers))
"""

DENY_BY_DEFAULT_SAFE = [
    "rt_sigreturn", "rt_sigaction", "rt_sigprocmask", "sigaltstack", "brk", "mmap", "munmap", "mprotect",
    "mremap", "madvise", "futex", "read", "write", "close", "exit", "exit_group", "fstat",
    "lseek", "ioctl", "getpid",
]  # fmt: skip


def run_with(program: bytes, calls: list[tuple[str | int, list[int]]]) -> subprocess.CompletedProcess[str]:
    order = {
        "program": program.hex(),
        "seccomp": NUMBERS["seccomp"],
        "calls": [(NUMBERS[name] if isinstance(name, str) else name, a) for name, a in calls],
    }
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=60,
    )


def answers(program: bytes | None, calls: list[tuple[str | int, list[int]]]) -> list[int]:
    assert program is not None
    done = run_with(program, calls)
    assert done.returncode == 0, done.stderr
    result: list[int] = json.loads(done.stdout)
    return result


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


def deny(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXDEV, **more}


SOME_CALLS = (
    "ioctl read write openat clone dup fcntl prctl mount kill futex wait4 socket bind listen accept connect"
)


class TestDefaultProfile:
    def test_what_a_container_must_never_call(self) -> None:
        bad = 2**64 - 1  # a pointer that the kernel would answer with EFAULT, if it came so far
        expected = {
            errno.EPERM: [
                "mount", "umount2", "unshare", "setns", "pivot_root", "bpf", "perf_event_open", "userfaultfd",
                "keyctl", "add_key", "request_key", "open_by_handle_at", "kexec_load", "init_module",
                "reboot", "swapon", "acct", "settimeofday", "syslog", "sethostname", "open_tree_attr",
            ],
            errno.ENOSYS: ["clone3", "io_uring_setup", "lookup_dcookie"],
        }  # fmt: skip
        names = [(name, code) for code, group in expected.items() for name in group]
        got = answers(seccomp.compile("default"), [(name, [bad] * 6) for name, _ in names])
        assert list(zip((name for name, _ in names), got, strict=True)) == names

    def test_ordinary_calls_go_through(self) -> None:
        got = answers(
            seccomp.compile("default"),
            [
                ("getpid", []),
                ("getppid", []),
                ("ptrace", [99999, 0, 0, 0]),  # answered by the kernel itself
                ("unlinkat", [2**64 - 1, 0, 0]),
                ("personality", [0xFFFFFFFF]),
                ("socket", [1, 1, 0]),
                ("ioctl", [999, 0x5413, 0]),
            ],
        )
        assert got[:2] == [0, 0]
        assert got[2] in (errno.EIO, errno.ESRCH)
        assert got[3] in (errno.EFAULT, errno.EBADF)
        assert got[4:] == [0, 0, errno.EBADF]

    @pytest.mark.parametrize(
        "flag", [0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
    )
    def test_clone_makes_no_namespaces(self, flag: int) -> None:
        program = seccomp.compile("default")
        assert answers(program, [("clone", [flag | signal.SIGCHLD, 0, 0, 0, 0])]) == [errno.EPERM]

    def test_clone_makes_processes_and_threads(self) -> None:
        # an impossible combination: that the kernel says EINVAL shows that it was asked
        thread_without_vm = 0x10000
        assert answers(seccomp.compile("default"), [("clone", [thread_without_vm, 0, 0, 0, 0])]) == [
            errno.EINVAL
        ]

    def test_sockets_that_reach_past_the_network_namespace(self) -> None:
        got = answers(
            seccomp.compile("default"),
            [("socket", [40, 1, 0]), ("socket", [38, 5, 0]), ("socket", [(1 << 32) + 40, 1, 0])],
        )
        assert got == [errno.EAFNOSUPPORT] * 3

    def test_tiocsti_even_with_high_bits_set(self) -> None:
        # the kernel looks at 32 bits of the request, a filter at 64 (CVE-2019-10063)
        got = answers(
            seccomp.compile("default"),
            [
                ("ioctl", [999, 0x5412, 0]),
                ("ioctl", [999, 0x5412 + (1 << 32), 0]),
                ("ioctl", [999, 0x541C, 0]),
            ],
        )
        assert got == [errno.EPERM] * 3

    def test_capabilities_open_what_they_are_for(self) -> None:
        mask = capabilities.effective(("SYS_ADMIN", "SYSLOG", "BPF"), ())
        bad = 2**64 - 1
        got = answers(
            seccomp.compile("default", capabilities=mask),
            [("mount", [bad] * 5), ("syslog", [99]), ("bpf", [99, bad, 1]), ("keyctl", [bad])],
        )
        # as an ordinary user the kernel says EPERM to some of these; as root it looks at the arguments
        assert got[3] == errno.EPERM
        if os.geteuid() == 0:
            assert errno.EPERM not in got[:3]

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 exists on x86-64 only")
    def test_x32_is_closed(self) -> None:
        program = seccomp.compile("default")
        assert program is not None
        assert run_with(program, [(0x40000000 + 39, [])]).returncode == -signal.SIGSYS

    def test_python_runs_under_it(self) -> None:
        program = seccomp.compile("default")
        assert program is not None
        code = CHILD + "import subprocess, threading\n"
        code += "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        code += "subprocess.run(['/bin/sh', '-c', 'echo child; ls / >/dev/null && echo ls'], check=True)\n"
        order = {"program": program.hex(), "seccomp": NUMBERS["seccomp"], "calls": []}
        done = subprocess.run(
            [sys.executable, "-I", "-u", "-c", code],
            input=json.dumps(order), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["[]", "thread", "child", "ls"]


class TestProfiles:
    def test_none_is_no_filter(self) -> None:
        assert seccomp.compile(None) is None

    def test_a_path_and_a_dict_are_the_same(self, tmp_path: Path) -> None:
        document = profile(deny("getppid"))
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(document, indent=3))
        assert seccomp.compile(str(path)) == seccomp.compile(document) == seccomp.compile(path)
        assert answers(seccomp.compile(str(path)), [("getppid", [])]) == [errno.EXDEV]

    def test_a_changed_file_is_compiled_again(self, tmp_path: Path) -> None:
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(profile(deny("getppid"))))
        first = seccomp.compile(str(path))
        path.write_text(json.dumps(profile(deny("getpid"))))
        assert seccomp.compile(str(path)) != first

    def test_an_allow_list(self) -> None:
        allow = {"names": DENY_BY_DEFAULT_SAFE, "action": "SCMP_ACT_ALLOW"}
        program = seccomp.compile(profile(allow, default="SCMP_ACT_ERRNO", defaultErrnoRet=errno.EXDEV))
        # a call newer than any that the profile names: ENOSYS, so that a libc falls back
        got = answers(program, [("getpid", []), ("getppid", []), (5000, []), ("clone", [0])])
        assert got == [0, errno.EXDEV, errno.ENOSYS, errno.ENOSYS if NUMBERS["clone"] > 231 else errno.EXDEV]

    def test_arguments(self) -> None:
        def rule(op: str, value: int, two: int = 0) -> dict[str, Any]:
            return deny("personality", args=[{"index": 0, "op": op, "value": value, "valueTwo": two}])

        for op, value, two, hit, miss in [
            ("SCMP_CMP_EQ", 8, 0, 8, 0), ("SCMP_CMP_NE", 8, 0, 0, 8), ("SCMP_CMP_LT", 8, 0, 0, 8),
            ("SCMP_CMP_LE", 0, 0, 0, 8), ("SCMP_CMP_GE", 8, 0, 8, 0), ("SCMP_CMP_GT", 0, 0, 8, 0),
            ("SCMP_CMP_MASKED_EQ", 8, 8, 8, 0),
        ]:  # fmt: skip
            got = answers(
                seccomp.compile(profile(rule(op, value, two))), [("personality", [a]) for a in (hit, miss)]
            )
            assert got == [errno.EXDEV, 0], op

    def test_conditions_on_two_arguments_must_both_hold(self) -> None:
        args = [{"index": 0, "op": "SCMP_CMP_EQ", "value": 16}, {"index": 2, "op": "SCMP_CMP_EQ", "value": 9}]
        got = answers(
            seccomp.compile(profile(deny("socket", args=args))),
            [("socket", [16, 3, 9]), ("socket", [16, 3, 0]), ("socket", [1, 1, 0])],
        )
        assert got == [errno.EXDEV, 0, 0]

    def test_two_conditions_on_one_argument_are_alternatives(self) -> None:
        args = [{"index": 0, "op": "SCMP_CMP_EQ", "value": v} for v in (8, 0x20000)]
        got = answers(
            seccomp.compile(profile(deny("personality", args=args))),
            [("personality", [v]) for v in (8, 0x20000, 0)],
        )
        assert got == [errno.EXDEV, errno.EXDEV, 0]

    def test_includes_and_excludes(self) -> None:
        documents: dict[str, tuple[dict[str, Any], bool]] = {
            "caps held": ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
            "caps not held": ({"includes": {"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}}, False),
            "excluded": ({"excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}}, False),
            "not excluded": ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
            "kernel": ({"includes": {"minKernel": "4.8"}}, True),
            "kernel to come": ({"includes": {"minKernel": "99.0"}}, False),
            "not before": ({"excludes": {"minKernel": "4.8"}}, False),
            "here": ({"includes": {"arches": ["amd64", "arm64"]}}, True),
            "elsewhere": ({"includes": {"arches": ["s390x"]}}, False),
            "not here": ({"excludes": {"arches": ["amd64", "arm64"]}}, False),
        }
        for label, (condition, applies) in documents.items():
            rules = read(
                profile(deny("getppid", **condition)),
                mask=capabilities.DEFAULT, machine=os.uname().machine, kernel=(6, 1),
            ).rules  # fmt: skip
            assert bool(rules) is applies, label

    def test_kernels_compare_as_numbers(self) -> None:
        document = profile(deny("getppid", includes={"minKernel": "5.10"}))
        for kernel, applies in [((5, 9), False), ((5, 10), True), ((5, 11), True), ((10, 0), True)]:
            assert bool(read(document, mask=0, machine="x86_64", kernel=kernel).rules) is applies

    def test_a_denial_beside_an_allowance_holds(self) -> None:
        # as in a profile that one engine ships: libseccomp would let the first of the two win
        allow = {"names": [*DENY_BY_DEFAULT_SAFE, "getppid"], "action": "SCMP_ACT_ALLOW"}
        document = profile(allow, deny("getppid"), default="SCMP_ACT_ERRNO")
        assert answers(seccomp.compile(document), [("getppid", [])]) == [errno.EXDEV]

    def test_a_refusal_with_conditions_beside_an_allowance_holds(self) -> None:
        # libseccomp would drop the condition in silence
        allow = {"names": ["personality"], "action": "SCMP_ACT_ALLOW"}
        for op, value, refused, allowed in [("EQ", 8, 8, 0), ("MASKED_EQ", 0xFF, 0x100, 8)]:
            args = [{"index": 0, "op": f"SCMP_CMP_{op}", "value": value}]
            for default in ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"):
                program = seccomp.compile(profile(allow, deny("personality", args=args), default=default))
                assert program is not None
                number = NUMBERS["personality"]
                assert bpf.run(program, number, (refused,)) == (bpf.ERRNO | errno.EXDEV, True)
                assert bpf.run(program, number, (allowed,)) == (bpf.ALLOW, True)

    def test_an_allowance_with_conditions_beside_a_refusal_has_no_effect(self) -> None:
        allow = {"names": ["personality"], "action": "SCMP_ACT_ALLOW"}
        allow["args"] = [{"index": 0, "op": "SCMP_CMP_EQ", "value": 0}]  # type: ignore[assignment]
        program = seccomp.compile(profile(deny("personality"), allow))
        assert program is not None
        assert bpf.run(program, NUMBERS["personality"]) == (bpf.ERRNO | errno.EXDEV, False)

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="names x86-64's relatives")
    def test_a_condition_without_effect_is_refused(self) -> None:
        allow = {"names": ["clone"], "action": "SCMP_ACT_ALLOW"}
        conditional = deny("clone", args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": 1}])
        with pytest.raises(SpecError, match="no effect"):
            seccomp.compile(profile(allow, conditional, architectures=["SCMP_ARCH_X86"]))

    def test_names_that_no_table_has(self) -> None:
        allow = {"names": ["a_call_to_come", *DENY_BY_DEFAULT_SAFE], "action": "SCMP_ACT_ALLOW"}
        assert seccomp.compile(profile(allow, default="SCMP_ACT_ERRNO"))
        with pytest.raises(SpecError, match="a_call_to_come"):
            seccomp.compile(profile(deny("a_call_to_come")))
        with pytest.raises(SpecError, match="umlaut"):
            seccomp.compile(profile(deny("umlautä")))

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="names x86-64's relatives")
    def test_other_call_tables_open_only_when_named(self) -> None:
        closed = profile(deny("getppid"), architectures=["SCMP_ARCH_X86_64"])
        opened = profile(
            deny("getppid"),
            archMap=[
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}
            ],
        )
        x32 = 0x40000000 + 110
        first, second = seccomp.compile(closed), seccomp.compile(opened)
        assert first is not None and second is not None
        assert run_with(first, [(x32, [])]).returncode == -signal.SIGSYS
        assert answers(second, [("getppid", []), (x32, [])]) == [errno.EXDEV, errno.EXDEV]

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="asks by x86-64's numbers")
    @pytest.mark.parametrize("mask", [capabilities.DEFAULT, capabilities.ALL])
    def test_a_profile_as_docker_writes_them(self, mask: int) -> None:
        """Every key that its own profile has, and none that it has not; in short."""
        allow: dict[str, Any] = {"action": "SCMP_ACT_ALLOW"}
        document = {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
            ],
            "syscalls": [
                {**allow, "names": [*DENY_BY_DEFAULT_SAFE, "futex_time64", "uretprobe", "a_call_to_come"]},
                {**allow, "names": ["ptrace"], "includes": {"minKernel": "4.8"}},
                {**allow, "names": ["socket"], "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_LT"}]},
                {**allow, "names": ["socket"], "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_GT"}]},
                {**allow, "names": ["swapcontext"], "includes": {"arches": ["ppc64le"]}},
                {**allow, "names": ["arch_prctl"], "includes": {"arches": ["amd64", "x32"]}},
                {**allow, "names": ["clone", "clone3", "mount"], "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {
                    **allow,
                    "names": ["clone"],
                    "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}],
                    "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390", "s390x"]},
                },
                {
                    **allow,
                    "names": ["clone"],
                    "args": [{"index": 1, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}],
                    "comment": "other machines have these the other way round",
                    "includes": {"arches": ["s390", "s390x"]},
                    "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                },
                {
                    "names": ["clone3"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 38,
                    "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                },
            ],
        }
        program = seccomp.compile(document, capabilities=mask)
        assert program is not None
        allowed, refused = bpf.ALLOW, bpf.ERRNO | errno.EPERM
        admin = mask == capabilities.ALL
        for name, arguments, expected in [
            ("getpid", (), allowed), ("ptrace", (), allowed), ("bpf", (), refused),
            ("socket", (37,), allowed), ("socket", (38,), refused), ("socket", (41,), allowed),
            ("mount", (), allowed if admin else refused), ("clone", (17,), allowed),
            ("clone", (0x10000000,), allowed if admin else refused),
            ("clone3", (), allowed if admin else bpf.ERRNO | errno.ENOSYS),
            ("open_tree_attr", (), bpf.ERRNO | errno.ENOSYS),  # newer than what it names
        ]:  # fmt: skip
            assert bpf.run(program, NUMBERS[name], arguments)[0] == expected, (name, arguments)
        for number, architecture in [(20, 0x40000003), (0x40000000 + 39, bpf.NATIVE)]:  # both getpid
            assert bpf.run(program, number, architecture=architecture)[0] == allowed

    def test_a_profile_of_another_engine(self) -> None:
        path = Path("/usr/share/containers/seccomp.json")
        if not path.exists():
            pytest.skip("no other engine's profile here")
        got = answers(
            seccomp.compile(str(path)), [("getpid", []), ("setns", [0, 0]), ("kexec_load", [0] * 4)]
        )
        assert got == [0, errno.EPERM, errno.EPERM]

    def test_errnos_by_name(self) -> None:
        """As containers/common writes them, beside the number or alone."""
        rules = [
            {
                "names": ["getppid"],
                "action": "SCMP_ACT_ERRNO",
                "errno": "EXDEV",
                "args": None,
                "includes": {},
            },
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS", "errnoRet": 38},
            {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errno": "", "excludes": {}},
        ]
        program = seccomp.compile(profile(*rules, defaultErrno=""))
        assert program is not None
        for name, code in [("getppid", errno.EXDEV), ("personality", errno.ENOSYS), ("ptrace", errno.EPERM)]:
            assert bpf.run(program, NUMBERS[name])[0] == bpf.ERRNO | code
        default = profile(default="SCMP_ACT_ERRNO", defaultErrnoRet=1, defaultErrno="ENOSYS")
        assert bpf.run(seccomp.compile(default) or b"", NUMBERS["getppid"])[0] == bpf.ERRNO | errno.ENOSYS

    def test_flags(self) -> None:
        assert seccomp.compile(profile(flags=["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]))
        with pytest.raises(SpecError, match="seccomp.flags"):
            seccomp.compile(profile(flags=["SECCOMP_FILTER_FLAG_LOG"]))

    def test_what_the_default_refuses_may_be_unknown(self) -> None:
        """It is refused all the same; a call that would be allowed is a hole."""
        unknown = {"names": ["a_call_to_come"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
        assert seccomp.compile(profile(unknown, default="SCMP_ACT_ERRNO"))
        with pytest.raises(SpecError, match="a_call_to_come"):
            seccomp.compile(profile({**unknown, "errnoRet": 38}, default="SCMP_ACT_ERRNO"))

    def test_notify_is_refused(self) -> None:
        for document in (
            profile(default="SCMP_ACT_NOTIFY"),
            profile({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}),
            profile(listenerPath="/run/agent.sock"),
        ):
            with pytest.raises(SpecError, match="no agent"):
                seccomp.compile(document)

    @pytest.mark.parametrize(
        ("document", "field"),
        [
            ({}, "seccomp.defaultAction"),
            ({"defaultAction": "ALLOW"}, "seccomp.defaultAction"),
            ({"defaultAction": ["x"]}, "seccomp.defaultAction"),
            (profile(syscall=[]), "seccomp"),
            (profile({"names": [], "action": "SCMP_ACT_ALLOW"}), r"seccomp.syscalls\[0\].names"),
            (profile({"names": "getpid", "action": "SCMP_ACT_ALLOW"}), r"seccomp.syscalls\[0\].names"),
            (profile({"names": [7], "action": "SCMP_ACT_ALLOW"}), r"seccomp.syscalls\[0\].names"),
            (profile(deny("getpid"), {"names": ["getpid"]}), r"seccomp.syscalls\[1\].action"),
            (profile({**deny("getpid"), "errnoRet": 5000}), r"seccomp.syscalls\[0\].errnoRet"),
            (profile({**deny("getpid"), "errnoRet": True}), r"seccomp.syscalls\[0\].errnoRet"),
            (profile({**deny("getpid"), "errorRet": 1}), r"seccomp.syscalls\[0\]"),
            (profile({**deny("getpid"), "errno": "ENOSUCH"}), r"seccomp.syscalls\[0\].errno"),
            (profile({**deny("getpid"), "errno": 1}), r"seccomp.syscalls\[0\].errno"),
            (profile(flags="SECCOMP_FILTER_FLAG_TSYNC"), "seccomp.flags"),
            (profile(deny("getpid", args=[{"index": 6, "op": "SCMP_CMP_EQ", "value": 0}])), "index"),
            (profile(deny("getpid", args=[{"index": 0, "op": "==", "value": 0}])), "op"),
            (profile(deny("getpid", args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": -1}])), "value"),
            (profile(deny("getpid", includes={"minKernel": "5"})), "minKernel"),
            (profile(deny("getpid", includes={"cap": ["CAP_CHOWN"]})), "includes"),
        ],
    )
    def test_mistakes_are_named(self, document: dict[str, Any], field: str) -> None:
        with pytest.raises(SpecError, match=field):
            seccomp.compile(document)

    def test_what_is_no_profile(self, tmp_path: Path) -> None:
        garbage = tmp_path / "garbage.json"
        garbage.write_bytes(b"\xff{")
        for bad in (
            str(tmp_path / "missing.json"),
            str(tmp_path),
            str(garbage),
            5,
            "a\0b",
            {"defaultAction": object()},
        ):
            with pytest.raises(SpecError, match="seccomp"):
                seccomp.compile(bad)

    def test_without_libseccomp_the_error_says_what_to_install(self, tmp_path: Path) -> None:
        (tmp_path / "libseccomp.so.2").write_bytes(b"not a library")
        code = (
            "from isobox.errors import UnsupportedError\n"
            "from isobox.security import seccomp\n"
            "assert seccomp.compile(None) is None\n"
            "try: seccomp.compile('default')\n"
            "except UnsupportedError as error: print(error.feature, error.remedy)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "seccomp apt-get install libseccomp2" in done.stdout

    @pytest.mark.parametrize(
        ("names", "rules", "conditions", "said"),
        [("ioctl", 4000, 6, "one system call"), ("ioctl", 257, 1, "one system call"),
         (SOME_CALLS, 50, 5, "4096 instructions")],
    )  # fmt: skip
    def test_more_rules_than_there_is_room_for(
        self, names: str, rules: int, conditions: int, said: str
    ) -> None:
        """The library itself writes beyond its memory from some number on: that must not be reached."""
        args = [
            [{"index": i, "value": value, "op": "SCMP_CMP_EQ"} for i in range(conditions)]
            for value in range(rules)
        ]
        syscalls = [{"names": names.split(), "action": "SCMP_ACT_ERRNO", "args": each} for each in args]
        with pytest.raises(SpecError, match=said):
            seccomp.compile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls})

    def test_a_kernel_of_very_many_digits(self) -> None:
        syscalls = [
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "9" * 5000 + ".1"}}
        ]
        with pytest.raises(SpecError, match="minKernel"):
            seccomp.compile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls})

    @settings(max_examples=150, deadline=None)
    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-5, 70000)
            | st.sampled_from(["SCMP_ACT_ERRNO", "getpid", "x"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "defaultAction",
                            "syscalls",
                            "names",
                            "action",
                            "args",
                            "includes",
                            "caps",
                            "archMap",
                        ]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        )
    )
    def test_any_json_is_a_filter_or_a_named_error(self, document: Any) -> None:
        if isinstance(document, dict):
            document = {"defaultAction": "SCMP_ACT_ALLOW", **document}
        try:
            parsed = read(document, mask=0, machine=os.uname().machine, kernel=(6, 1))
            assert len(libseccomp.build(parsed)) % 8 == 0
        except IsoboxError as error:
            assert "seccomp" in str(error)


class TestCache:
    def test_the_second_process_does_not_load_libseccomp(self, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        code = (
            "import sys; from isobox.security import seccomp\n"
            f"program = seccomp.compile('default', cache={str(folder)!r})\n"
            "print(len(program), 'cffi' in sys.modules, 'json' in sys.modules)"
        )
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            for _ in range(2)
        ]
        first, second = (run.stdout.split() for run in runs)
        assert first[1] == "True"
        assert second == [first[0], "False", "False"]
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_an_entry_is_for_its_key_only(self, tmp_path: Path) -> None:
        filter_cache.store(str(tmp_path), b"key", b"12345678")
        assert filter_cache.load(str(tmp_path), b"key") == b"12345678"
        (entry,) = tmp_path.iterdir()
        entry.rename(tmp_path / filter_cache._name(b"other"))
        assert filter_cache.load(str(tmp_path), b"other") is None
        assert filter_cache.load(str(tmp_path), b"key") is None

    @pytest.mark.parametrize("mode", [0o620, 0o602])
    def test_what_others_can_write_is_not_read(self, tmp_path: Path, mode: int) -> None:
        filter_cache.store(str(tmp_path), b"key", b"12345678")
        (entry,) = tmp_path.iterdir()
        entry.chmod(mode)
        assert filter_cache.load(str(tmp_path), b"key") is None

    def test_a_folder_that_others_can_write_is_not_used(self, tmp_path: Path) -> None:
        filter_cache.store(str(tmp_path), b"key", b"12345678")
        tmp_path.chmod(0o777)
        assert filter_cache.load(str(tmp_path), b"key") is None
        filter_cache.store(str(tmp_path), b"another", b"12345678")
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_what_belongs_to_someone_else_is_not_read(self, tmp_path: Path) -> None:
        filter_cache.store(str(tmp_path), b"key", b"12345678")
        (entry,) = tmp_path.iterdir()
        os.chown(entry, 12345, -1)
        assert filter_cache.load(str(tmp_path), b"key") is None

    def test_links_fifos_and_damage(self, tmp_path: Path) -> None:
        filter_cache.store(str(tmp_path), b"key", b"12345678")
        (entry,) = tmp_path.iterdir()
        whole = entry.read_bytes()
        for damaged in (b"", whole[:10], whole[:-1], whole[:-1] + b"9", whole + b"x", b"x" * 4096):
            entry.write_bytes(damaged)
            assert filter_cache.load(str(tmp_path), b"key") is None
        entry.unlink()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(whole)
        entry.symlink_to(elsewhere)
        assert filter_cache.load(str(tmp_path), b"key") is None
        entry.unlink()
        os.mkfifo(entry)
        assert filter_cache.load(str(tmp_path), b"key") is None

    def test_no_place_for_it_is_no_error(self, tmp_path: Path) -> None:
        assert seccomp.compile("default", cache=str(tmp_path / "no" / "such" / "place"))
        file = tmp_path / "file"
        file.write_text("")
        document = profile(deny("getppid", "getpid"))
        assert seccomp.compile(document, cache=str(file))

    def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        filter_cache.store(str(tmp_path), b"key", b"12345678")
        filter_cache.store(str(tmp_path), b"key", b"12345678")
        assert [p.suffix for p in tmp_path.iterdir()] == [".bpf"]
        before = os.listdir("/proc/self/fd")
        for _ in range(20):
            filter_cache.load(str(tmp_path), b"key")
            libseccomp.build(read(profile(), mask=0, machine=os.uname().machine, kernel=(6, 1)))
        assert len(os.listdir("/proc/self/fd")) == len(before)
