"""The inputs that are kept, each run once: what `make fuzz` starts from, and what it once found."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.compile import TARGETS as IN_C
from fuzz.compile import compile
from fuzz.targets import TARGETS as IN_PYTHON

HERE = Path(__file__).parent


def seeds(target: str) -> list[Path]:
    found = sorted((HERE / "seeds" / target).iterdir())
    assert found
    return found


@pytest.mark.parametrize("target", IN_PYTHON)
def test_seeds_in_python(target: str) -> None:
    for seed in seeds(target):
        try:
            IN_PYTHON[target](seed.read_bytes())
        except BaseException as error:
            error.add_note(str(seed))
            raise


@pytest.mark.parametrize("target", IN_PYTHON)
@settings(max_examples=50)
@given(data=st.data())
def test_any_bytes(target: str, data: st.DataObject) -> None:
    """A seed with a part of it replaced, or anything at all."""
    whole = data.draw(st.sampled_from(seeds(target))).read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    IN_PYTHON[target](
        whole[:at] + data.draw(st.binary(max_size=80)) + whole[data.draw(st.integers(at, at + 99)) :]
    )


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
@pytest.mark.skipif(os.environ.get("ISOBOX_SANITIZED") == "1", reason="has sanitizers of its own")
@pytest.mark.parametrize("target", IN_C)
def test_seeds_in_c(target: str, tmp_path: Path) -> None:
    compile(target, tmp_path / target, "gcc", fuzzer=False)
    done = subprocess.run([tmp_path / target, *seeds(target)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]  # the last name is that of the seed


def test_every_folder_of_seeds_has_its_target() -> None:
    assert {folder.name for folder in (HERE / "seeds").iterdir()} == {*IN_C, *IN_PYTHON}
