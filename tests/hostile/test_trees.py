"""Trees of files that attack whoever walks them: too deep, in circles, with names that say something else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from bystanders import well
from isobox import Container
from isobox.discard import remove_tree
from programs import python, said

pytestmark = [pytest.mark.requires("user_namespaces", "overlay"), pytest.mark.usefixtures("all_well")]

Upper = Literal["memory", "disk"]
UPPERS = pytest.mark.parametrize("upper", ["memory", "disk"])


# A path this long has no name: only who goes there step by step arrives.
DEEP = """
import os, sys
os.chdir(sys.argv[1])
for _ in range(int(sys.argv[2])):
    os.mkdir("d")
    os.chdir("d")
open("end", "w").close()
"""
DEPTH = 1500  # more than Python recurses


class TestDepth:
    @pytest.fixture
    def tree(self) -> Iterator[Path]:
        """The same tree in a folder of the host."""
        with tempfile.TemporaryDirectory(prefix="isobox-test-", dir="/dev/shm") as folder:
            try:
                subprocess.run(python(DEEP, folder, str(DEPTH)), check=True)
                yield Path(folder, "d")
            finally:
                remove_tree(f"{folder}/d")
                remove_tree(f"{folder}/copy")

    def test_it_is_too_deep_for_most(self, tree: Path) -> None:
        with pytest.raises((RecursionError, OSError)):
            shutil.rmtree(tree)
        with pytest.raises((RecursionError, OSError)):
            shutil.copytree(tree, tree.parent / "copy")
        assert tree.is_dir()

    @UPPERS
    def test_it_goes_with_its_container(self, upper: Upper) -> None:
        with Container(upper=upper) as container:
            said(container, python(DEEP, "/tmp", str(DEPTH)))

    def test_it_is_listed(self) -> None:
        with Container() as container:
            said(container, python(DEEP, "/tmp", str(DEPTH)))
            paths = [change.path for change in container.changes() if change.path.startswith("/tmp/d")]
            assert paths[0] == "/tmp/d" and 100 < len(paths) < 200

    def test_it_is_not_copied_out(self, tmp_path: Path) -> None:
        with Container() as container:
            said(container, python(DEEP, "/tmp", str(DEPTH)))
            with pytest.raises(OSError, match="deep"):
                container.copy_out("/tmp/d", tmp_path / "out")
            assert well(container)
        remove_tree(tmp_path / "out")


CIRCLES = """
import os
os.makedirs("/tmp/c/d")
os.symlink("..", "/tmp/c/d/up")
os.symlink("/tmp/c", "/tmp/c/d/again")
os.symlink("self", "/tmp/c/self")
os.symlink("/", "/tmp/c/root")
"""


class TestCircles:
    def test_links_are_not_followed(self, tmp_path: Path) -> None:
        with Container() as container:
            said(container, python(CIRCLES))
            container.copy_out("/tmp/c", tmp_path / "out")
            inside = {change.path for change in container.changes() if change.path.startswith("/tmp/c")}
            with pytest.raises(OSError, match="symbolic links"):
                container.read_bytes("/tmp/c/self")
        names = {"", "/d", "/d/again", "/d/up", "/root", "/self"}
        assert inside == {f"/tmp/c{name}" for name in names}
        found = {str(path)[len(str(tmp_path / "out")) :] for path in (tmp_path / "out").rglob("*")}
        assert found == names - {""}
        # Who follows them finds files for ever.
        assert (tmp_path / "out" / ("d/up/" * 15)).is_dir()


NAMES = [
    b"two\nlines",
    b"/etc/passwd".replace(b"/", b"\n/"),
    b"\x1b]0;owned\x07",
    b"\xff\xfe not utf-8",
    b"-rf",
    b" ",
    b"\xe2\x80\xae gnp.exe",
    b"n" * 255,
]


class TestNames:
    def test_are_what_they_are(self, tmp_path: Path) -> None:
        names = [name.replace(b"/", b"") for name in NAMES]
        code = """
import os, sys
os.mkdir("/tmp/n")
for name in sys.argv[1:]:
    open(b"/tmp/n/" + bytes.fromhex(name), "w").close()
"""
        with Container() as container:
            said(container, python(code, *(name.hex() for name in names)))
            lines = container.exec(["ls", "/tmp/n"]).stdout.splitlines()
            assert len(lines) > len(names)  # who takes lines for names is told of others
            changes = [change for change in container.changes() if change.path.startswith("/tmp/n/")]
            container.copy_out("/tmp/n", tmp_path / "out")
        found = sorted(os.fsencode(change.path) for change in changes)
        assert found == sorted(b"/tmp/n/" + name for name in names)
        assert {change.kind for change in changes} == {"added"}
        assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(names)
        assert not [text for text in map(repr, changes) if not text.isprintable()]

    @UPPERS
    def test_thousands_of_them(self, upper: Upper) -> None:
        count = 2000
        code = "import os, sys\nfor n in range(int(sys.argv[1])): os.close(os.open(f'/tmp/{n}', os.O_CREAT))"
        with Container(upper=upper) as container:
            said(container, python(code, str(count)))
            assert len([change for change in container.changes() if change.path[:5] == "/tmp/"]) == count
