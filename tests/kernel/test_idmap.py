"""Id maps on the real kernel: what isobox writes is what /proc shows, and who owns what is deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from isobox import idmap
from isobox.discard import remove_tree, remove_tree_mapped
from isobox.errors import SetupError
from isobox.plan.ops import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, make
from isobox.probes import Probes, for_host
from isobox.runtime import Owner

pytestmark = pytest.mark.requires("user_namespaces")


@pytest.fixture
def probes() -> Iterator[Probes]:
    with Probes("/tmp", for_host()) as probes:
        yield probes


def test_maps_are_as_written(probes: Probes) -> None:
    with probes.process(CLONE_NEWUSER) as (_, pid, _):
        for name, lines in (("uid_map", probes.id_map.uid_lines), ("gid_map", probes.id_map.gid_lines)):
            assert idmap.parse_map(Path(f"/proc/{pid}/{name}").read_text()) == lines
        denied = Path(f"/proc/{pid}/setgroups").read_text().strip() == "deny"
        assert denied == probes.id_map.deny_setgroups


@pytest.mark.requires("id_ranges")
def test_other_users_exist_inside(probes: Probes) -> None:
    assert probes.run(CLONE_NEWUSER, [make("IDS", 0, 0), make("IDS", 1000, 1000)]) is None


def test_a_map_that_is_not_allowed_is_refused() -> None:
    if os.geteuid() == 0:
        # Two lines that overlap.
        bad = idmap.IdMap(((0, 10, 5), (5, 12, 5)), ((0, 10, 5),), False, False)
    else:
        bad = idmap.for_root(idmap.RANGE_START)
    with Probes("/tmp", bad) as probes:
        refused = probes.run(CLONE_NEWUSER, [])
    assert refused is not None and "_map" in refused.op


@pytest.mark.requires("ordinary_user", "newuidmap", "id_ranges")
def test_newuidmap_refuses_ranges_of_others(probes: Probes) -> None:
    made = probes.id_map
    foreign = idmap.IdMap((*made.uid_lines[:1], (1, 4_000_000, 10)), made.gid_lines, True, False)
    with (
        Probes(probes.stage, foreign) as others,
        pytest.raises(SetupError, match="uid range"),
        others.process(CLONE_NEWUSER),
    ):
        pass


@pytest.mark.requires("ordinary_user", "newuidmap", "id_ranges")
def test_what_belongs_to_subids_is_deleted(probes: Probes, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir(mode=0o755)
    make_foreign(probes, tree)
    assert os.stat(tree / "theirs").st_uid != os.getuid()
    with pytest.raises(PermissionError):
        remove_tree(tree)
    remove_tree_mapped(tree, lambda pid: idmap.write(pid, idmap.of_user()))
    assert not tree.exists()


@pytest.mark.requires("ordinary_user", "newuidmap", "id_ranges")
def test_an_owner_leaves_nothing_of_subids(probes: Probes, tmp_path: Path) -> None:
    owner = Owner(str(tmp_path / "state"), str(tmp_path / "data"))
    for _ in range(2):
        place = Path(owner.disk_dir())
        make_foreign(probes, place)
    owner.discard(str(place))
    assert owner.flush(30)
    assert not place.exists() and sorted(os.listdir(place.parent)) == ["1", "lock"]
    owner.close()
    assert os.listdir(tmp_path / "data/owners") == []


def make_foreign(probes: Probes, place: Path) -> None:
    """A directory of the inside user 1000 that only that user may enter, with a file."""
    place.chmod(0o777)
    ops = [
        make("UMASK", 0),
        make("CHDIR", strings=(os.fsencode(place),)),  # the way there is closed to user 1000
        make("IDS", 1000, 1000),
        make("MKDIR", 0o700, 0, 0, strings=(b"theirs",)),
        make("FILE", 0o600, 0, 0, strings=(b"theirs/file", b"x")),
    ]
    refused = probes.run(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID, ops)
    assert refused is None, str(refused)


@pytest.mark.requires("root")
def test_a_container_of_root_owns_its_disk_directory(tmp_path: Path) -> None:
    owner = Owner(str(tmp_path / "state"), str(tmp_path / "data"))
    made = owner.id_map()
    place = owner.disk_dir()
    os.chown(place, made.root_uid, made.root_gid)
    with Probes("/tmp", made) as probes, probes.process(CLONE_NEWUSER) as (_, pid, _):
        assert str(made.root_uid).encode() in Path(f"/proc/{pid}/uid_map").read_bytes()
    owner.release_id_map(made)
    owner.close()
    assert not os.path.exists(place)
