"""The maps of user namespaces: pure parts by example and by property, `write` on the real kernel."""

from __future__ import annotations

import doctest
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox import idmap
from isobox.errors import SetupError
from isobox.idmap import COUNT, IdMap, IdRange, Line

FULL: tuple[Line, ...] = ((0, 0, 4294967295),)


def test_doctests() -> None:
    assert doctest.testmod(idmap).failed == 0


def test_parse_takes_names_and_numbers_in_order() -> None:
    text = "ann:100000:65536\nbob:200000:10\n1000:300000:5\n"
    assert idmap.parse_subids(text, ("ann", "1000")) == (IdRange(100000, 65536), IdRange(300000, 5))
    assert idmap.parse_subids(text, ("bob",)) == (IdRange(200000, 10),)
    assert len(idmap.parse_subids(text, None)) == 3


@pytest.mark.parametrize(
    "line",
    [
        "",
        "#ann:1:1",
        "ann",
        "ann:1",
        "ann:1:1:1",
        "ann:x:1",
        "ann:1:",
        "ann::1",
        "ann:-5:1",
        "ann:+5:1",
        "ann:1_0:1",
        "ann:٣:1",
        "ann:5:0",
        "ann:0:10",
        "ann:4294967290:100",
        "ann:99999999999999999999:1",
        ":5:5",
    ],
)
def test_parse_skips(line: str) -> None:
    assert idmap.parse_subids(line + "\nann:7:3\n", ("ann",)) == (IdRange(7, 3),)


def test_parse_skips_overlaps() -> None:
    assert idmap.parse_subids("a:100:10\na:105:10\na:110:1", ("a",)) == (IdRange(100, 10), IdRange(110, 1))


numbers = st.one_of(st.integers(-5, 2**33).map(str), st.text(max_size=4))
lines = st.one_of(
    st.text(max_size=20),
    st.tuples(st.sampled_from(["ann", "0", "bob", "#", ""]), numbers, numbers).map(":".join),
)


@given(st.lists(lines, max_size=12).map("\n".join))
def test_whatever_the_file_says_the_map_is_one_that_the_kernel_takes(text: str) -> None:
    ranges = idmap.parse_subids(text, ("ann", "0"))
    for made in (
        idmap.for_user(1000, 1000, ranges, ranges, newuidmap_available=True),
        idmap.for_user(1000, 1000, ranges, ranges, newuidmap_available=False),
    ):
        for part in (made.uid_lines, made.gid_lines):
            assert 1 <= len(part) <= 340
            inside = [IdRange(first, count) for first, _, count in part]
            host = [IdRange(first, count) for _, first, count in part]
            for some in (inside, host):
                for index, entry in enumerate(some):
                    assert entry.size > 0 and entry.end <= 0xFFFFFFFF
                    assert not any(entry.overlaps(other) for other in some[:index])
            assert not any(entry.start == 0 for entry in host)
        assert (made.root_uid, made.root_gid) == (1000, 1000)
        assert made.single == made.deny_setgroups == (not made.needs_newuidmap)


@given(st.lists(lines, max_size=12).map("\n".join), st.lists(lines, max_size=12).map("\n".join))
def test_ranges_of_root_are_apart_from_everyone_elses(subuid: str, subgid: str) -> None:
    ranges = idmap.root_ranges(subuid, subgid, FULL, FULL)
    others = [
        entry
        for text in (subuid, subgid)
        for entry in idmap.parse_subids("\n".join(x for x in text.split("\n") if x[:2] != "0:"), None)
    ]
    own = idmap.parse_subids(subuid, ("0", "root"))
    for index, entry in enumerate(ranges):
        assert entry.start > 0 and entry.size >= COUNT
        assert not any(entry.overlaps(other) for other in ranges[:index])
        if not any(entry.overlaps(other) for other in own):
            assert not any(entry.overlaps(other) for other in others)


def test_root_ranges_prefer_the_files() -> None:
    text = "root:1000000:200000\nann:1879048192:65536\n"
    assert idmap.root_ranges(text, text, FULL, FULL) == (
        IdRange(1000000, 200000),
        IdRange(1879048192 + 65536, 2147483648 - 1879048192 - 65536),
    )
    # Only one of the two files names root: nothing to take from them.
    assert idmap.root_ranges("root:1000000:200000", "", FULL, FULL)[0].start == idmap.RANGE_START


def test_root_in_a_small_namespace_has_no_ranges_but_a_map() -> None:
    small: tuple[Line, ...] = ((0, 100000, 65536),)
    assert idmap.root_ranges("", "", small, small) == ()
    assert idmap.for_nested(small, small) == IdMap(((0, 1, 65535),), ((0, 1, 65535),), False, False)
    split: tuple[Line, ...] = ((0, 1000, 1), (1, 100000, 65536))
    assert idmap.for_nested(split, split).uid_lines == ((0, 1, 65536),)
    single: tuple[Line, ...] = ((0, 1000, 1),)
    assert idmap.for_nested(single, single) == IdMap(((0, 0, 1),), ((0, 0, 1),), False, True)


def test_user_with_ranges() -> None:
    made = idmap.for_user(
        1000,
        100,
        (IdRange(100000, 65536), IdRange(900, 200)),
        (IdRange(200000, 10),),
        newuidmap_available=True,
    )
    # The second range has the user's own id in it: it can't be mapped twice.
    assert made.uid_lines == ((0, 1000, 1), (1, 100000, 65536))
    assert made.gid_text == b"0 100 1\n1 200000 10\n"
    assert idmap.outside(made.uid_lines, 2) == 100001
    with pytest.raises(LookupError):
        idmap.outside(made.uid_lines, 70000)


def test_only_one_of_the_files_names_the_user() -> None:
    made = idmap.for_user(1000, 100, (IdRange(100000, 65536),), (), newuidmap_available=True)
    assert made.single and made.deny_setgroups and not made.needs_newuidmap


def test_write_says_where_and_why() -> None:
    # This process's own namespace has its map already: the kernel answers EPERM.
    with pytest.raises(SetupError) as caught:
        idmap.write(os.getpid(), idmap.for_root(1_900_000_000))
    assert caught.value.errno == errno.EPERM
    assert caught.value.stage == "user namespace"
    assert "gid_map" in str(caught.value) and caught.value.hint


def test_write_to_a_process_that_is_gone() -> None:
    with pytest.raises(SetupError) as caught:
        idmap.write(2**22 + 1, idmap.for_root(1_900_000_000))
    assert caught.value.errno == errno.ENOENT


def test_newuidmap_reports_its_own_message() -> None:
    if idmap.newuidmap_programs() is None:
        with pytest.raises(SetupError, match="uidmap"):
            idmap.write(os.getpid(), IdMap(((0, 1, 1),), ((0, 1, 1),), True, False))
        return
    with pytest.raises(SetupError, match="new[ug]idmap") as caught:
        idmap.write(os.getpid(), IdMap(((0, 4242, 1),), ((0, 4242, 1),), True, False))
    assert caught.value.errno == errno.EPERM


def test_own_maps_read() -> None:
    uids, gids = idmap.read_own_maps()
    assert uids and gids and all(count > 0 for _, _, count in (*uids, *gids))
