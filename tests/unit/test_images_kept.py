"""How long a process keeps what it made of an image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isobox.images import kept
from isobox.images.kept import Kept, stamp


class Image:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    times = [100.0]
    monkeypatch.setattr(kept.time, "monotonic", lambda: times[0])
    return times


STAMP = (1, 2, 3, 4, 5)
OTHER = (1, 2, 3, 4, 6)


def test_by_its_stamp() -> None:
    images, one, two = Kept[Image](), Image(), Image()
    assert images.find("a", STAMP) is None and images.peek("a") is None
    images.put("a", STAMP, one)
    assert images.find("a", STAMP) is one and images.find("a", OTHER) is None and images.peek("a") is one
    images.put("a", OTHER, one)  # the same still
    assert images.find("a", OTHER) is one and not one.closed
    images.put("a", STAMP, two)
    assert images.find("a", STAMP) is two and one.closed and not two.closed
    images.clear()
    assert two.closed and images.find("a", STAMP) is None


def test_a_few_at_most(now: list[float]) -> None:
    images, made = Kept[Image](), [Image() for _ in range(kept.MOST + 1)]
    for number, image in enumerate(made[:-1]):
        now[0] += 1
        images.put(number, STAMP, image)
    now[0] += 1
    images.used(0, Image())
    images.put("more", STAMP, made[-1])
    assert [image.closed for image in made] == [False, True, *[False] * (kept.MOST - 1)]


def test_unused_for_a_while(now: list[float]) -> None:
    images, one, two, user = Kept[Image](), Image(), Image(), Image()
    assert images.expire() is None
    images.put("one", STAMP, one)
    images.put("two", STAMP, two)
    images.used("one", user)
    now[0] += kept.IDLE_SECONDS
    assert images.expire() is not None and (one.closed, two.closed) == (False, True)
    user.close()
    now[0] += kept.IDLE_SECONDS / 2
    assert images.expire() is not None and not one.closed  # it was in use until a moment ago
    now[0] += kept.IDLE_SECONDS / 2
    assert images.expire() is None and one.closed


def test_stamps(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    assert stamp(str(path)) is None
    path.write_text("1")
    first = stamp(str(path))
    assert first is not None and stamp(str(path)) == first
    new = tmp_path / "new"
    new.write_text("2")
    os.utime(new, ns=(first[2], first[2]))
    os.rename(new, path)
    assert stamp(str(path)) not in (None, first)
