"""What the attacks share: a container as it is by default, an image to write at will, a count at the end.

Each attack runs twice: with the wall that it is about taken down, where it has to work, so that the test
can fail; then against what everybody gets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bystanders import unharmed, well
from isobox import Container, Mount
from leftovers import nothing_left

HOST = [
    Mount.bind(path, path, read_only=True)
    for path in ("/usr", "/bin", "/lib", "/lib64")
    if os.path.isdir(path) and not os.path.islink(path)
]
"""The host's programs, for images that have none."""


@pytest.fixture(scope="module", autouse=True)
def everything_is_given_back() -> Iterator[None]:
    """A program that attacks leaves no more behind than one that doesn't."""
    with nothing_left():
        yield


@pytest.fixture(scope="module")
def box(everything_is_given_back: None) -> Iterator[Container]:
    """A container with the options that nobody gave."""
    with Container() as container:
        yield container


@pytest.fixture(scope="module")
def all_well() -> Iterator[None]:
    """For modules whose attacks go for the machine: nobody else was hurt when all are over."""
    with unharmed():
        yield


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Container]:
    """Another container, which has nothing to do with the attack."""
    with Container() as container:
        yield container


@pytest.fixture
def the_next_is_well(neighbour: Container) -> Iterator[None]:
    """The neighbour runs programs after each attack."""
    yield
    assert well(neighbour)


@pytest.fixture
def host_programs() -> list[Mount]:
    return list(HOST)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A root folder without programs of its own, to be started with `host_programs` mounted."""
    folder = tmp_path / "image"
    for name in ("usr", "etc", "tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            (folder / name).symlink_to(os.readlink(f"/{name}"))
    (folder / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
    folder.chmod(0o755)
    return folder
