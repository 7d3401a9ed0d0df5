"""`changes` on directories as overlayfs leaves them; the real thing is in tests/kernel."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from isobox.errors import SetupError
from isobox.rootfs.changes import changes
from isobox.rootfs.layers import Directory, Layer, Tree


class Uppers:
    """The part of `Inside` that hands out upper directories."""

    def __init__(self, *uppers: Path) -> None:
        self.uppers = uppers

    def open(self, path: str, flags: int, mode: int = 0o666, *, base: int = 0) -> int:
        return os.open(self.uppers[base - 1] / path, flags)


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    place = tmp_path / "lower"
    (place / "etc" / "conf.d").mkdir(parents=True)
    (place / "etc" / "passwd").write_bytes(b"root")
    (place / "etc" / "conf.d" / "a").write_bytes(b"a")
    (place / "bin").symlink_to("etc")
    return place


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    place = tmp_path / "upper"
    place.mkdir()
    return place


def seen(lower: Path, upper: Path, *skeleton: str, hidden: tuple[str, ...] = (), most: int = 99) -> list[str]:
    trees = [Tree("/", (Layer(str(lower)),), hidden=hidden)]
    found = changes(Uppers(upper), trees, [Directory(path) for path in skeleton], most=most)
    return [f"{change.kind} {change.path}" for change in found]


def test_added_and_modified(lower: Path, upper: Path) -> None:
    (upper / "etc").mkdir()
    (upper / "etc" / "passwd").write_bytes(b"changed")
    (upper / "etc" / "new").write_bytes(b"")
    (upper / "data" / "sub").mkdir(parents=True)
    assert seen(lower, upper) == [
        "added /data",
        "added /data/sub",
        "added /etc/new",
        "modified /etc/passwd",
    ]


def test_a_directory_counts_when_it_changed_itself(lower: Path, upper: Path) -> None:
    (upper / "etc").mkdir(mode=0o700)
    assert seen(lower, upper) == ["modified /etc"]


def test_deleted(lower: Path, upper: Path) -> None:
    (upper / "etc").mkdir()
    os.mknod(upper / "etc" / "passwd", 0o020000, 0)
    os.mknod(upper / "etc" / "never", 0o020000, 0)
    os.mknod(upper / "bin", 0o020000, 0)
    assert seen(lower, upper) == ["deleted /bin", "deleted /etc/passwd"]


def test_a_link_replaced_by_a_directory_is_not_followed(lower: Path, upper: Path) -> None:
    (upper / "bin").mkdir()
    (upper / "bin" / "passwd").write_bytes(b"")
    assert seen(lower, upper) == ["modified /bin", "added /bin/passwd"]


def test_a_replaced_directory(lower: Path, upper: Path) -> None:
    (upper / "etc" / "conf.d").mkdir(parents=True)
    (upper / "etc" / "conf.d" / "b").write_bytes(b"")
    try:
        os.setxattr(upper / "etc", "user.overlay.opaque", b"y")
    except OSError:
        pytest.skip("this file system has no user attributes")
    assert seen(lower, upper) == [
        "modified /etc",
        "modified /etc/conf.d",
        "deleted /etc/conf.d/a",
        "added /etc/conf.d/b",
        "deleted /etc/passwd",
    ]


def test_a_replaced_directory_of_several_layers(lower: Path, upper: Path, tmp_path: Path) -> None:
    """What a layer had deleted already is no change."""
    above = tmp_path / "above"
    (above / "etc").mkdir(parents=True)
    os.mknod(above / "etc" / "passwd", 0o020000, 0)
    (upper / "etc").mkdir()
    try:
        os.setxattr(upper / "etc", "user.overlay.opaque", b"y")
    except OSError:
        pytest.skip("this file system has no user attributes")
    found = changes(Uppers(upper), [Tree("/", (Layer(str(above)), Layer(str(lower))))], [])
    assert [f"{change.kind} {change.path}" for change in found] == ["modified /etc", "deleted /etc/conf.d"]


def test_what_isobox_made_is_left_out(lower: Path, upper: Path) -> None:
    (upper / "etc").mkdir(mode=0o711)
    (upper / "etc" / "fresh" / "mount").mkdir(parents=True)
    (upper / "etc" / "fresh" / "mount" / "by-program").write_bytes(b"")
    assert seen(lower, upper, "/etc/fresh/mount") == ["added /etc/fresh/mount/by-program"]
    assert seen(lower, upper, "/etc/fresh/mount", hidden=("etc/fresh",)) == [
        "added /etc/fresh/mount/by-program"
    ]


def test_hidden_lower_files_do_not_count(lower: Path, upper: Path) -> None:
    (upper / "etc").mkdir()
    (upper / "etc" / "passwd").write_bytes(b"")
    assert seen(lower, upper, hidden=("etc/passwd",)) == ["added /etc/passwd"]


def test_several_trees(lower: Path, upper: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_bytes(b"")
    (upper / "y").write_bytes(b"")
    trees = [
        Tree("/", (Layer(str(lower)),)),
        Tree("/usr", (Layer(str(lower)),), "bind"),
        Tree("/opt/app", (Layer(str(lower)),)),
    ]
    found = changes(Uppers(upper, tmp_path / "none", other), trees, [])
    assert [change.path for change in found] == ["/opt/app/x", "/y"]


def test_more_than_most(lower: Path, upper: Path) -> None:
    for n in range(5):
        (upper / str(n)).write_bytes(b"")
    with pytest.raises(SetupError):
        seen(lower, upper, most=4)


def test_nothing_is_left_out_for_want_of_descriptors(lower: Path, upper: Path) -> None:
    """At each directory in turn there is none left to open it with."""
    (upper / "data" / "sub" / "below").mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = os.dup(0)  # the lowest free
    os.close(used)
    for few in range(5):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + few, hard))
        try:
            with pytest.raises(SetupError) as raised:
                seen(lower, upper)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert raised.value.errno == errno.EMFILE
    assert seen(lower, upper) == ["added /data", "added /data/sub", "added /data/sub/below"]


def test_deep_trees_end(lower: Path, upper: Path) -> None:
    place = upper.joinpath(*["d"] * 300)
    place.mkdir(parents=True)
    assert len(seen(lower, upper, most=999)) == 129


def test_links_and_files_that_isobox_made(lower: Path, upper: Path) -> None:
    (upper / "sbin").symlink_to("usr/sbin")
    (upper / "resolv.conf").write_bytes(b"")
    (upper / "bin").unlink(missing_ok=True)
    (upper / "bin").symlink_to("elsewhere")
    found = changes(Uppers(upper), [Tree("/", (Layer(str(lower)),))], [], ["/sbin", "/resolv.conf"])
    assert [(change.kind, change.path) for change in found] == [("modified", "/bin")]
