"""Every block of code in the README and in docs/ runs, and prints what the page says.

- ```python: the blocks of a page run in order, in one namespace and in one empty folder. Where a
  ```text block comes right after one, it is what that prints.
- ```console: lines that begin with `$ ` are run by a shell; the lines below are what they print.
- ```sh: a script of its own.

Where Python or a console asks for images of registry.example, a real registry on loopback stands in, which
has them: nothing but its name is replaced.

`...` in an output stands for anything. `<!-- requires: cgroup_memory -->` above a block leaves it out
where the host lacks that. Commands that change the machine or take minutes are checked without running.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil.document import Document
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

import isobox
import requirements
from archives import entry, folder, link, packed
from isobox.shared import shared
from made import archive, busybox
from registry import push_with_skopeo, running_registry

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REGISTRY = "registry.example"
TOOLS = ("cat", "sh")
LANGUAGES = {"python", "console", "sh", "text", "json", "mermaid"}
# Checked by other means: `make test` can't run in itself, and these change the machine.
NOT_RUN = re.compile(r"(sudo|apt-get|usermod|sysctl|pip install|systemd-run|git clone|cd isobox)\b")

checker = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def same(expected: str, printed: str) -> None:
    """Compare outputs; `...` stands for anything."""
    if not checker.check_output(expected.rstrip() + "\n", printed.rstrip() + "\n", FLAGS):
        pytest.fail(f"the page says:\n{expected}\nit printed:\n{printed}", pytrace=False)


def left_out(example: Example) -> bool:
    """True where the line above the block names something that this host lacks."""
    above = example.document.text[: example.region.start].rstrip().rpartition("\n")[2]
    match = re.fullmatch(r"<!-- requires: ([\w ,]+) -->", above.strip())
    return bool(match and requirements.obstacle(re.findall(r"\w+", match[1])))


def written(example: Example) -> str:
    """What the block says, of the registry that is there."""
    return str(example.parsed).replace(REGISTRY, example.namespace.get("registry", REGISTRY))


def run_python(example: Example) -> None:
    """Run one block in the page's namespace and compare what it prints."""
    tree = ast.parse("\n" * (example.line - 1) + written(example), example.path)
    leave_out = left_out(example)
    if leave_out:  # but for its imports, which the blocks below may use
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    code = compile(tree, example.path, "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, example.namespace)
    below = re.match(r"\s*```text\n(.*?)^```$", example.document.text[example.region.end :], re.DOTALL | re.M)
    if below and not leave_out:
        same(below[1], printed.getvalue())


def shell(script: str) -> str:
    """What a script prints, both streams; it has to end with status 0."""
    done = subprocess.run(
        ["bash", "-euc", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    if done.returncode:
        pytest.fail(f"status {done.returncode} of {script}\n{done.stdout}", pytrace=False)
    return done.stdout


def run_command(command: str, expected: str) -> None:
    """Run one command of a console and compare what it prints, where the page says something."""
    if NOT_RUN.match(command):
        return
    target = re.match(r"make ([a-z]+)", command)
    if target:
        assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.M), command
        return
    printed = shell(command)
    if expected.strip():
        same(expected, printed)


def run_console(example: Example) -> None:
    """Run the commands of a console block one by one."""
    if left_out(example):
        return
    for part in re.split(r"^\$ ", written(example), flags=re.M)[1:]:
        match = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, re.DOTALL)
        assert match
        run_command(match[1], match[2])


def run_sh(example: Example) -> None:
    """Run a script; one that has commands of the README's kind line by line."""
    if left_out(example):
        return
    lines = [line for line in str(example.parsed).splitlines() if line and not line.startswith("#")]
    if any(NOT_RUN.match(line) or line.startswith("make ") for line in lines):
        for line in lines:
            run_command(line.partition(" #")[0].rstrip(), "")
    else:
        shell(str(example.parsed))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared()  # made before its place changes
    monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    document = Document.parse(
        str(page),
        CodeBlockParser("python", run_python),
        CodeBlockParser("console", run_console),
        CodeBlockParser("sh", run_sh),
    )
    document.namespace["__name__"] = "__main__"
    with contextlib.ExitStack() as stack:
        if re.search(rf"^[^#\n]*\"{REGISTRY}/", page.read_text(), re.M):
            document.namespace["registry"] = stack.enter_context(registry_with_app(tmp_path, monkeypatch))
        for example in document.examples():
            try:
                example.evaluate()
            except Exception as error:
                error.add_note(f"in the block at {page.relative_to(ROOT)}:{example.line}")
                raise


@contextlib.contextmanager
def registry_with_app(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of one that has team/app:1."""
    motd = entry("etc/motd", b"hello from an image\n")
    tools = [entry("bin/busybox", busybox(), mode=0o755), *[link(f"bin/{name}", "busybox") for name in TOOLS]]
    app = archive(place / "app.tar", packed(folder("etc"), folder("bin"), *tools, motd), run={})
    with running_registry(place / "registry") as registry:
        # No login of whoever runs the tests, nor a place for one that this user has not.
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(place / "auth.json"))
        push_with_skopeo(app, registry, "team/app:1")
        try:
            yield registry.address
        finally:
            for image in isobox.Image.all():
                image.remove()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_languages(page: Path) -> None:
    """Links lead to files that are there, headings too; every block says its language."""
    text = page.read_text()
    blocks = re.findall(r"^```(.*)$", text, re.M)
    assert set(blocks[::2]) <= LANGUAGES
    assert not any(blocks[1::2])
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.DOTALL)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if heading:
            names = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in names}
            assert heading in anchors, target


def test_the_tests_that_pages_name_are_there() -> None:
    for page in [*PAGES, ROOT / "SECURITY.md"]:
        for path in re.findall(r"\btests/[\w/]+\.\w+", page.read_text()):
            assert (ROOT / path).is_file(), f"{page}: {path}"
