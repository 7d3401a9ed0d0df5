"""Every step of a start made to fail, one after another: an error of ours that names it, and nothing left.

The ops fail inside the real isobox-init, in the real kernel. The host's side fails at its seams: the
n-th system call of the starting thread, for every n.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import isobox
from isobox import Container, _native, idmap, shell
from isobox import host as hosts
from isobox.control import Control
from isobox.plan.ops import encode_op, make
from leftovers import at_rest, close_shared, descendants, nothing_left, settled
from seams import Faults, every_call

pytestmark = pytest.mark.requires("user_namespaces", "overlay")


@pytest.fixture(autouse=True)
def everything_is_given_back() -> Iterator[None]:
    with nothing_left():
        yield


def options(tmp_path: Path) -> dict[str, Any]:
    """A container with as many kinds of ops as there are."""
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("x")
    found: dict[str, Any] = {
        "mounts": [f"{tmp_path}:/data:ro", f"{tmp_path}/file:/tmp/a-file:ro", isobox.Mount.tmpfs("/scratch")],
        "hostname": "box",
        "read_only": True,
        "rlimits": {"nofile": 512},
        "namespaces": {"time": "private" if hosts.features().time_namespaces else "host"},
        "name": f"faults-{os.getpid()}",
    }
    if hosts.features().cgroup_memory:
        found |= {"memory": "64M", "pids": 50, "cpu": 1.0}
    return found


BROKEN = {
    errno.ENOENT: make("CHDIR", strings=(b"/no/such/directory",)),
    errno.EBADMSG: make("TAKE_TREE", 150),
    errno.EINVAL: make("HOSTNAME", strings=(b"x" * 200,)),
}
PARTS = ["prepare", "setup"]


def split(plan: bytes) -> list[bytes]:
    """The ops of a plan as they travel (struct isobox_op: code, strings, size)."""
    found = []
    while plan:
        size = struct.unpack_from("=HHI", plan)[2]
        found.append(plan[:size])
        plan = plan[size:]
    return found


class Wire:
    """Changes the plans on their way to isobox-init: op `number` of one part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
        self.ops: list[bytes] = []
        self.change: Callable[[list[bytes]], bytes] = b"".join
        original = getattr(Control, part)

        def sent(control: Control, plan: bytes, fds: Any) -> Any:
            self.ops = split(plan)
            return original(control, self.change(self.ops), fds)

        monkeypatch.setattr(Control, part, sent)

    def replace(self, number: int, op: bytes) -> None:
        self.change = lambda ops: b"".join([*ops[:number], op, *ops[number + 1 :]])


NAMES = {code: name.lower().replace("_", "-") for name, code in _native.OP_CODES.items()}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("code", BROKEN)
def test_every_op(part: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the op in whose place something failed."""
    wanted = options(tmp_path)
    wire = Wire(monkeypatch, part)
    # An overlay that is refused may be tried once more, by a plan of other ops: not here.
    monkeypatch.setattr(isobox.shared.Shared, "stack_no_more", lambda self: False)
    with Container("host", **wanted):
        kinds = [NAMES[struct.unpack_from("=H", op)[0]] for op in wire.ops]
    assert len(kinds) > 15
    before = at_rest()
    for number, kind in enumerate(kinds):
        wire.replace(number, encode_op(BROKEN[code]))
        with pytest.raises((isobox.SetupError, isobox.UnsupportedError)) as caught:
            Container("host", **wanted).start()
        error = caught.value
        if isinstance(error, isobox.UnsupportedError):
            # Where "/" is an overlay itself, what this says of another is that it would be one too many.
            assert (error.feature, code) == ("overlay", errno.EINVAL), f"op {number}: {error}"
            assert kind == "mount" or kind.startswith("fs"), f"op {number}: {kind}: {error}"
        else:
            assert (error.stage, error.op, error.errno) == ("setup", kind, code), f"op {number}: {error}"
        close_shared()  # and with it the shells that the broken plan has made
        assert not [name for name in descendants(os.getpid()).values() if "isobox-i" in name], f"op {number}"
    assert not settled(before)
    wire.change = b"".join
    with Container("host", **wanted) as c:
        assert c.exec(["true"]).ok


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in the header": lambda op: op[:5],
    "cut in the strings": lambda op: op[:-1] if len(op) > 40 else op[:-8],
    "no such code": lambda op: struct.pack("=H", 9999) + op[2:],
    "more strings than there are": lambda op: op[:2] + struct.pack("=H", 8) + op[4:],
    "too many strings": lambda op: op[:2] + struct.pack("=H", 60000) + op[4:],
    "a size of 0": lambda op: op[:4] + struct.pack("=I", 0) + op[8:],
    "a size beyond the end": lambda op: op[:4] + struct.pack("=I", 0xFFFFFFF0) + op[8:],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ops(part: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no plan: isobox-init says so and ends; at the first op, in the middle, at the last."""
    wire = Wire(monkeypatch, part)
    with Container("host"):
        length = len(wire.ops)
    for number in (0, length // 2, length - 1):
        wire.change = lambda ops, n=number: b"".join([*ops[:n], DAMAGES[damage](ops[n])])  # type: ignore[misc]
        with pytest.raises(isobox.SetupError) as caught:
            Container("host").start()
        assert caught.value.errno == errno.EBADMSG
        close_shared()


def test_a_shell_that_failed_while_it_was_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure is met by the container that takes it, as if it had been made for it."""
    wire = Wire(monkeypatch, "prepare")
    wire.replace(5, encode_op(BROKEN[errno.ENOENT]))
    for _ in range(6):
        with pytest.raises(isobox.SetupError) as caught:
            Container("host").start()
        assert caught.value.errno == errno.ENOENT
    wire.change = b"".join
    close_shared()
    with Container("host") as c:
        assert c.exec(["true"]).ok


# The host's side


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_every_call_of_a_start(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = options(tmp_path)

    def step() -> None:
        with Container("host", **wanted):
            faults.off()  # the end is another test's

    faults = Faults(monkeypatch, code)
    assert every_call(faults, step) > 50


def test_every_call_of_a_start_with_a_layer_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> None:
        with Container("host", upper="disk"):
            faults.off()

    faults = Faults(monkeypatch, errno.EIO)
    assert every_call(faults, step) > 30


def test_no_more_descriptors() -> None:
    """The real thing: the kernel refuses the next descriptor, at every place in turn."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def step() -> None:
        with Container("host") as c:
            c.exec(["true"])
            with c.popen(["true"]) as p:
                p.communicate()
            c.write_bytes("/tmp/x", b"x")

    refused = 0
    before = at_rest()
    top = len(os.listdir("/proc/self/fd"))
    for room in range(1, 150):
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + room, hard))
        try:
            step()
        except isobox.IsoboxError as error:
            assert error.__cause__ is None or isinstance(error.__cause__, OSError)
            refused += 1
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.collect()
        close_shared()
        left = settled(before, 3)
        assert not left, f"room for {room}: {left}"
    assert 5 < refused < 149


@pytest.mark.requires("ordinary_user")
def test_no_more_processes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    try:
        with pytest.raises(isobox.SetupError) as caught:
            Container("host").start()
        assert caught.value.errno == errno.EAGAIN and caught.value.stage == "spawn"
        assert "ulimit -u" in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
    assert isobox.run(["true"]).ok


def test_the_kernel_refuses_the_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell.Wanted, "flags", property(lambda self: 0x10000000 | 0x200))  # + CLONE_FS
    with pytest.raises(isobox.SetupError) as caught:
        Container("host").start()
    assert caught.value.errno == errno.EINVAL and caught.value.stage == "spawn" and caught.value.op == "clone"


def test_the_kernel_refuses_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is in memory is no program: the newborn says so and is reaped."""
    (tmp_path / "init").write_bytes(b"not a program")
    monkeypatch.setattr(_native, "INIT_PROGRAM", tmp_path / "init")
    close_shared()
    with pytest.raises(isobox.SetupError) as caught:
        Container("host").start()
    assert caught.value.errno == errno.ENOEXEC and caught.value.op == "execveat"
    monkeypatch.undo()
    close_shared()


def test_wrong_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself refuses them."""
    wrong = idmap.IdMap(((0, 0, 0),), ((0, 0, 0),), needs_newuidmap=False, deny_setgroups=False)
    write = idmap.write
    monkeypatch.setattr(idmap, "write", lambda pid, id_map: write(pid, wrong))
    with pytest.raises(isobox.SetupError) as caught:
        Container("host").start()
    assert caught.value.stage == "user namespace"


@pytest.mark.parametrize("step", ["control", "pidfd", "group"])
def test_an_interrupt(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt in the middle of a start is no exception to the rule."""
    places: dict[str, tuple[Any, str]] = {
        "control": (idmap, "write"),
        "pidfd": (shell.Control, "prepare"),
        "group": (Control, "setup"),
    }

    def interrupted(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(*places[step], interrupted)
    with pytest.raises(KeyboardInterrupt):
        Container("host").start()
