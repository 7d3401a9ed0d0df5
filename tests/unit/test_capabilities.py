from __future__ import annotations

import re
from pathlib import Path

import pytest

from isobox.errors import SpecError
from isobox.security import capabilities
from isobox.security.capabilities import ALL, BITS, DEFAULT, effective, names


def test_the_numbers_are_those_of_the_kernel() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    found = re.findall(r"^#define (CAP_\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    assert len(found) > 35
    for name, bit in found:
        assert BITS[name] == int(bit)


def test_the_known_set_ends_at_checkpoint_restore() -> None:
    assert BITS["CAP_CHECKPOINT_RESTORE"] == 40
    assert len(BITS) == 41
    assert ALL == 2**41 - 1


def test_the_default_is_dockers() -> None:
    # what `docker run` shows as CapEff in /proc/self/status
    assert DEFAULT == 0xA80425FB
    assert effective((), ()) == DEFAULT


def test_dropping_and_adding() -> None:
    assert effective((), ("CAP_NET_RAW",)) == DEFAULT & ~(1 << 13)
    assert effective(("CAP_SYS_ADMIN",), ()) == DEFAULT | 1 << 21
    assert effective((), ("ALL",)) == 0
    assert effective(("CHOWN", "cap_kill"), ("all",)) == 0b100001
    assert effective(("ALL",), ()) == ALL
    assert effective(("ALL",), ("SYS_ADMIN",)) == ALL & ~(1 << 21)


def test_adding_what_is_there_changes_nothing() -> None:
    assert effective(("CHOWN",), ()) == DEFAULT


def test_names_come_back_in_the_order_of_bits() -> None:
    assert names(0b100001) == ("CAP_CHOWN", "CAP_KILL")
    assert names(DEFAULT) == tuple(sorted(capabilities.DEFAULT_NAMES, key=BITS.__getitem__))
    assert names(1 << 63) == ()


@pytest.mark.parametrize("name", ["NET_ROW", "CAP_NET_ROW", "net_row"])
def test_a_misspelt_name_is_answered_with_the_right_one(name: str) -> None:
    with pytest.raises(SpecError, match="CAP_NET_RAW") as caught:
        effective((), (name,))
    assert caught.value.field == "cap_drop"


def test_nonsense_is_refused() -> None:
    with pytest.raises(SpecError, match=r"capabilities\(7\)"):
        effective(("???",), ())
    with pytest.raises(SpecError, match="name of a capability"):
        effective((5,), ())  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="a sequence of names"):
        effective("NET_RAW", ())


def test_contradictions_are_refused() -> None:
    with pytest.raises(SpecError, match="cap_drop does not name"):
        effective(("NET_RAW",), ("CAP_NET_RAW",))
    with pytest.raises(SpecError, match="not in both"):
        effective(("ALL",), ("ALL",))
