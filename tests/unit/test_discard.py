"""Deleting what a hostile program has left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from isobox.discard import Trash, remove_tree


def test_missing_is_fine(tmp_path: Path) -> None:
    remove_tree(tmp_path / "no")


def test_files_links_and_modes(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "deep").mkdir(parents=True)
    (kept / "file").write_text("x")
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/b/file").write_text("x")
    (top / "link").symlink_to(kept)
    (top / "a/link").symlink_to("/")
    os.mkfifo(top / "a/fifo")
    (top / "a/b/c").chmod(0)
    (top / "a/b").chmod(0o500)
    (top / "a").chmod(0)
    top.chmod(0o500)
    remove_tree(top)
    assert not top.exists() and sorted(os.listdir(kept)) == ["deep", "file"]


def test_a_link_or_file_itself(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "dir")
    remove_tree(tmp_path / "link")
    (tmp_path / "file").write_text("")
    remove_tree(tmp_path / "file")
    assert os.listdir(tmp_path) == ["dir"]


def test_depth_beyond_paths_descriptors_and_recursion(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(top)
    assert not top.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_entries_in_one_directory(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for index in range(9000):
        os.close(os.open(top / str(index), os.O_CREAT | os.O_WRONLY))
        if index % 10 == 0:
            (top / f"d{index}").mkdir()
        if index % 100 == 0:
            (top / f"d{index}/x/y").mkdir(parents=True)
    remove_tree(top)
    assert not top.exists()


def test_what_cannot_be_deleted_is_said_and_the_rest_goes(tmp_path: Path) -> None:
    # A mount point can't be removed by anyone; /proc/self is a handy directory that refuses.
    with pytest.raises(OSError):
        remove_tree("/proc/self/task")


def test_trash_works_in_the_background_and_ends(tmp_path: Path) -> None:
    trash = Trash()
    for index in range(20):
        (tmp_path / f"{index}/a/b").mkdir(parents=True)
        trash.put(str(tmp_path / str(index)))
    assert trash.flush(10)
    assert os.listdir(tmp_path) == [] and trash.errors == []
    for thread in threading.enumerate():
        if thread.name == "isobox-trash":
            thread.join(5)
    assert "isobox-trash" not in [thread.name for thread in threading.enumerate()]
    (tmp_path / "again").mkdir()
    trash.put(str(tmp_path / "again"))
    assert trash.flush(10) and os.listdir(tmp_path) == []


def test_trash_keeps_errors() -> None:
    def fail(path: str) -> None:
        raise OSError(1, "no", path)

    trash = Trash(fail)
    trash.put("/x")
    trash.flush()
    assert [error.filename for error in trash.errors] == ["/x"]


def test_trash_without_a_thread_does_not_wait_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No more processes for this user: that is said, and nobody waits for the end of what never began."""

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    trash = Trash()
    (tmp_path / "first").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError):
            trash.put(str(tmp_path / "first"))
        assert trash.flush(5)
    trash.put(str(tmp_path / "none"))
    assert trash.flush(5) and not (tmp_path / "first").exists()
