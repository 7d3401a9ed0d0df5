"""The decoders in Python of what others wrote: any bytes give a value or the documented error.

Each target takes bytes. What it lets through is a finding: another exception, or one of its assertions.
`run.py` feeds them with coverage of ``isobox`` to guide it, `test_seeds.py` with the seeds that are kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from typing import Any

import attrs

from fuzz import images
from fuzz.images import MEMORY, with_checksums
from isobox import _native
from isobox.cgroups import convert, discovery
from isobox.cgroups.dialect import Reading
from isobox.cgroups.v1 import V1
from isobox.cgroups.v2 import V2
from isobox.control import Control
from isobox.discard import remove_tree
from isobox.errors import CgroupError, ImageError, IsoboxError, SpecError, UnpackError, UnsupportedError
from isobox.images.archives.docker_archive import encode_images, parse_images
from isobox.images.documents.model import ImageConfig, Index, parse_document
from isobox.images.documents.platform import Platform
from isobox.images.documents.reference import Reference
from isobox.images.layers.layer import unpack_layer
from isobox.images.layers.root import unpack
from isobox.images.tar.compression import decompressed
from isobox.images.tar.stream import TarStream
from isobox.plan import ops
from isobox.refusals import exec_error
from isobox.rootfs import mountinfo
from isobox.security import filter_cache, libseccomp
from isobox.security.profile import read


def tar(data: bytes) -> None:
    """An archive, compressed or not, unpacked; beside it nothing appears."""
    place = tempfile.mkdtemp(dir=MEMORY)
    try:
        os.mkdir(f"{place}/a")
        with open(f"{place}/archive", "wb") as file:
            file.write(with_checksums(data))
        try:
            made = unpack(
                f"{place}/archive", f"{place}/root", keep_owners=False, most_bytes=1 << 20, most_entries=64
            )
        except (UnpackError, UnsupportedError):
            assert sorted(os.listdir(place)) == ["a", "archive"]
        else:
            assert sorted(os.listdir(place)) == ["a", "archive", "root"]
            assert made.entries <= 64 and made.size <= 1 << 20
        assert os.listdir(f"{place}/a") == []
    finally:
        shutil.rmtree(place)


def layer(data: bytes) -> None:
    """A layer, with whiteouts and attributes: a lower directory, whose names are no whiteouts any more."""
    place = tempfile.mkdtemp(dir=MEMORY)
    try:
        os.mkdir(f"{place}/a")
        try:
            unpack_layer(
                io.BytesIO(with_checksums(data)),
                f"{place}/root",
                keep_owners=False,
                most_bytes=1 << 20,
                most_entries=64,
            )
        except (UnpackError, UnsupportedError):
            assert os.listdir(place) == ["a"]
        else:
            assert sorted(os.listdir(place)) == ["a", "root"]
            for _, folders, files in os.walk(os.fsencode(f"{place}/root")):
                assert not [name for name in folders + files if name.startswith(b".wh.")]
        assert os.listdir(f"{place}/a") == []
    finally:
        remove_tree(place)


def tar_entries(data: bytes) -> None:
    """The same, but only read: a hundred times as fast."""
    fd = os.memfd_create("archive")
    try:
        os.write(fd, with_checksums(data))
        os.lseek(fd, 0, os.SEEK_SET)
        seen = 0
        with open(fd, "rb", closefd=False) as file:
            for entry in TarStream(decompressed(file), 1 << 20).entries():
                assert entry.size >= 0 and entry.mode <= 0o7777 and 0 <= entry.uid < 1 << 32
                seen += 1
        assert seen <= (1 << 20) // 512
    except (UnpackError, UnsupportedError):
        pass
    finally:
        os.close(fd)


def image_documents(data: bytes) -> None:
    """A manifest, an index, a config or the list of an archive: what was read can be written."""
    for parse in (parse_document, ImageConfig.parse):
        try:
            document = parse(data)
        except ImageError:
            continue
        assert document.encode() == data
        anew = attrs.evolve(document).encode()
        assert parse(anew) == document
        assert attrs.evolve(parse(anew)).encode() == anew
        if isinstance(document, Index):
            with contextlib.suppress(ImageError):
                assert document.choices(Platform("linux", "amd64", "v4"))
    try:
        images = parse_images(data)
    except ImageError:
        return
    assert parse_images(encode_images(images)) == images


def image_names(data: bytes) -> None:
    """The name of an image and of a platform, as somebody types them."""
    text = data.decode(errors="surrogateescape")
    try:
        reference = Reference.parse(text)
    except ImageError:
        pass
    else:
        assert Reference.parse(str(reference)) == Reference.parse(reference.familiar) == reference
    try:
        platform = Platform.parse(text)
    except SpecError:
        return
    assert Platform.parse(str(platform)) == platform


class _Files:
    """A group each of whose files holds the same."""

    path = "/a/group"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_if_there(self, name: str) -> bytes:
        return self._data


def cgroup_files(data: bytes) -> None:
    """The text in any file of a cgroup, of /proc/self/cgroup and of the mounts."""
    group: Any = _Files(data)
    for parse in (convert.parse_number, convert.parse_ranges, V1.parse_cpu_time, V2.parse_cpu_time):
        with contextlib.suppress(CgroupError):
            parse(data)
    for parse in (convert.parse_flat, convert.parse_devices, convert.parse_service, convert.parse_io_max):
        parse(data)
    convert.parse_pressure(data)
    for dialect in (V1, V2):
        for look in (dialect.read_cpu, dialect.read_memory, dialect.read_pids, dialect.read_io):
            with contextlib.suppress(CgroupError):
                look(group, Reading())
        dialect.read_pressure(group, Reading())
        dialect.throttled(group)
        dialect.oom_kills(group)
        dialect.is_frozen(group)
    memberships = discovery.parse_memberships(data)
    for mount in discovery.parse_mounts(data):
        for membership in memberships:
            discovery.locate(membership.path, mount)
    list(mountinfo.parse(data))


def seccomp_profile(data: bytes) -> None:
    """A profile that a user names, made into a filter."""
    try:
        profile = read(
            json.loads(data), mask=int.from_bytes(data[-5:], "little"), machine="x86_64", kernel=(6, 1)
        )
        program = libseccomp.build(profile)
    except (SpecError, UnsupportedError):
        return
    except (ValueError, RecursionError):  # of JSON, which isobox.security.seccomp takes for a SpecError
        return
    assert program and len(program) % 8 == 0 and len(program) // 8 <= 4096


def filter_entry(data: bytes) -> None:
    """An entry of the cache of compiled filters."""
    found = filter_cache._decode(data, b"key")
    assert found is None or (len(found) % 8 == 0 and data.endswith(found))


_PLAN = [
    ops.make("CHDIR", strings=(b"/w",)),
    ops.make("IDS", 1, 2),
    ops.make("FSOPEN", strings=(b"overlay",)),
    ops.make("HOSTNAME", strings=(b"\xff",)),
]
_REPLY = struct.Struct("=Iiiiqqqqq")


def record(data: bytes) -> None:
    """A record on the status pipe of an exec."""
    reader, writer = os.pipe()
    try:
        os.write(writer, data[: 8 * _REPLY.size])
        os.close(writer)
        for _ in range(2):
            pump = _native.Pump(reader)
            try:
                event = pump.run(0)
            except (IsoboxError, OSError):
                event = 0
            reply = pump.reply()
            assert (reply is not None) == (event == _native.PUMP_ENDED)
            if reply is not None and reply.kind == _native.FAILED:
                error = exec_error(_PLAN, reply, "program")
                assert isinstance(error, IsoboxError) and str(error)
            pump.close()
    finally:
        os.close(reader)


def answers(data: bytes) -> None:
    """Answers on the control socket: the first byte is how many descriptors come along, then one's size."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    control = Control(os.dup(ours.fileno()))
    calls: tuple[Callable[[], Any], ...] = (
        lambda: os.close(control.open("/x", os.O_RDONLY)),
        lambda: control.mkdir("/x"),
        lambda: control.symlink("y", "/x"),
        lambda: control.change(b""),
        lambda: control.locate(1),
        lambda: control.signal(1, 9),
    )
    try:
        for call in calls:
            count, size, rest = data[:1], data[1:2], data[2:]
            if not size:
                theirs.close()
            else:
                said, data = rest[: size[0]], rest[size[0] :]
                with contextlib.suppress(OSError):
                    socket.send_fds(theirs, [said], [null] * (count[0] % 5))
            with contextlib.suppress(IsoboxError, OSError):
                call()
    finally:
        control.close()
        assert len(os.listdir("/proc/self/fd")) == before - (theirs.fileno() < 0)
        os.close(null)
        ours.close()
        theirs.close()


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *images.TARGETS,
        answers,
        cgroup_files,
        filter_entry,
        image_documents,
        image_names,
        layer,
        record,
        seccomp_profile,
        tar,
        tar_entries,
    )
}
