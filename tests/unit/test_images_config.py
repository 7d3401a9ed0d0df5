"""The config of an image."""

from __future__ import annotations

import hashlib
import json
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import ImageError
from isobox.images.documents import media
from isobox.images.documents.config import MOST_LAYERS, History, ImageConfig, RunConfig, chain_ids
from isobox.images.documents.digest import Digest
from isobox.images.documents.platform import Platform

ONE, TWO, THREE = (Digest.of(text) for text in (b"1", b"2", b"3"))

# As Docker writes them, with fields that the specification does not have.
DOCKER: dict[str, Any] = {
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "os.version": "1",
    "os.features": ["x"],
    "created": "2024-01-31T22:22:56.015925234Z",
    "author": "A <a@b.example>",
    "container": "0123",
    "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) "], "cmd": 1},
    "docker_version": "24.0.7",
    "config": {
        "Hostname": "",
        "User": "alice:users",
        "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
        "Env": ["PATH=/bin", "A=1"],
        "Entrypoint": ["/entry"],
        "Cmd": ["--flag", ""],
        "Volumes": {"/data": {}},
        "WorkingDir": "/work",
        "Labels": {"a": "b"},
        "StopSignal": "SIGRTMIN+3",
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30000000000},
        "OnBuild": [],
    },
    "history": [
        {"created": "2024-01-31T22:22:54Z", "created_by": "ADD &", "author": "me", "comment": "c", "x": 1},
        {"created_by": "CMD", "empty_layer": True},
    ],
    "rootfs": {"type": "layers", "diff_ids": [str(ONE), str(TWO)], "base_layer": "x"},
}  # fmt: skip


def parse(values: Any, media_type: str | None = None) -> ImageConfig:
    return ImageConfig.parse(json.dumps(values).encode(), media_type)


def test_a_config_of_docker() -> None:
    parsed = parse(DOCKER, media.DOCKER_CONFIG)
    assert parsed.platform == Platform("linux", "arm64", "v8", "1", ("x",))
    assert (parsed.created, parsed.author) == (DOCKER["created"], DOCKER["author"])
    assert parsed.diff_ids == (ONE, TWO)
    assert parsed.history == (
        History("2024-01-31T22:22:54Z", "me", "ADD &", "c", extra={"x": 1}),
        History(created_by="CMD", empty_layer=True),
    )
    assert set(parsed.extra) == {"container", "container_config", "docker_version", "rootfs"}
    run = parsed.config
    assert (run.user, run.working_dir, run.stop_signal) == ("alice:users", "/work", "SIGRTMIN+3")
    assert (run.env, run.entrypoint, run.cmd) == (("PATH=/bin", "A=1"), ("/entry",), ("--flag", ""))
    assert (run.labels, run.volumes, run.exposed_ports) == ({"a": "b"}, ("/data",), ("53/udp", "8080/tcp"))
    assert set(run.extra) == {"Hostname", "Healthcheck", "OnBuild"}


def test_nothing_is_lost_on_the_way() -> None:
    data = json.dumps(DOCKER, indent=1).encode()
    parsed = ImageConfig.parse(data)
    assert parsed.encode() == parsed.raw == data
    again = pickle.loads(pickle.dumps(parsed))
    assert again == parsed and again.encode() == data
    hash(parsed)
    changed = attrs.evolve(attrs.evolve(parsed, author="other"), author=parsed.author)
    assert changed == parsed and changed.raw is None
    assert json.loads(changed.encode()) == DOCKER
    assert ImageConfig.parse(changed.encode()) == parsed
    assert json.loads(attrs.evolve(parsed, diff_ids=(THREE,)).encode())["rootfs"]["diff_ids"] == [str(THREE)]


def test_the_least_config() -> None:
    least = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}}
    nulls = {"config": None, "history": None, "created": None, "author": None, "variant": None}
    expected = ImageConfig(Platform("linux", "amd64"))
    assert parse(least) == parse(least | nulls) == expected
    assert json.loads(expected.encode()) == least
    empty = {"Env": None, "Cmd": None, "Entrypoint": [], "Labels": None, "Volumes": None, "User": None}
    assert parse(least | {"config": empty}).config == RunConfig(entrypoint=())
    assert parse(least | {"config": {}}).config == RunConfig()


def changed(path: str, value: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(DOCKER))
    *outer, last = path.split("/")
    place = values
    for name in outer:
        place = place[name]
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("os", None, "os: expected a string, got nothing"),
        ("architecture", 3, "architecture"),
        ("variant", 3, "variant"),
        ("os.features", [3], "os.features"),
        ("created", 3, "created"),
        ("author", [], "author"),
        ("config", [], "config: expected an object"),
        ("config/User", 1000, "config.User"),
        ("config/User", "a\0b", "config: User: expected text without NUL"),
        ("config/Env", "A=1", "config.Env"),
        ("config/Env", ["A=1", 2], "config.Env"),
        ("config/Env", ["A=1\0"], "config: Env"),
        ("config/Entrypoint", "/bin/sh", "config.Entrypoint"),
        ("config/Entrypoint", ["\0"], "config: Entrypoint"),
        ("config/Cmd", {"a": 1}, "config.Cmd"),
        ("config/Cmd", ["a", "\0"], "config: Cmd"),
        ("config/WorkingDir", ["/"], "config.WorkingDir"),
        ("config/WorkingDir", "/\0", "config: WorkingDir"),
        ("config/Labels", {"a": 1}, "config.Labels"),
        ("config/Labels", ["a"], "config.Labels"),
        ("config/Volumes", ["/data"], "config.Volumes"),
        ("config/Volumes", {"/\0": {}}, "config: Volumes"),
        ("config/Volumes", {"/data": 1}, "config.Volumes"),
        ("config/ExposedPorts", 80, "config.ExposedPorts"),
        ("config/StopSignal", 9, "config.StopSignal"),
        ("config/env", ["A=2"], "expected it to be written Env"),
        ("Config", {}, "expected it to be written config"),
        ("history", {}, "history"),
        ("history", [1], "history"),
        ("history", [{}] * 10_001, "history: expected at most 10000"),
        ("history", [{"empty_layer": "yes"}], r"history\[0\].empty_layer"),
        ("history", [{}, {"created_by": ["x"]}], r"history\[1\].created_by"),
        ("rootfs", None, "rootfs: expected an object, got nothing"),
        ("rootfs/type", None, "rootfs.type"),
        ("rootfs/type", "layers+base", 'rootfs.type: expected "layers"'),
        ("rootfs/diff_ids", "x", "rootfs.diff_ids"),
        ("rootfs/diff_ids", [3], "rootfs.diff_ids"),
        ("rootfs/diff_ids", ["sha256:00"], "64 digits"),
        ("rootfs/diff_ids", [str(ONE)] * (MOST_LAYERS + 1), f"diff_ids: expected at most {MOST_LAYERS}"),
        ("rootfs/Diff_IDs", [], "expected it to be written diff_ids"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_configs_that_are_refused(path: str, value: Any, why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        parse(changed(path, value))
    assert str(caught.value).startswith("image config: ")
    assert str(caught.value).count("image config") == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "media_type", [media.OCI_CONFIG, media.DOCKER_CONFIG, None, "application/octet-stream"]
)
def test_media_types_of_configs(media_type: str | None) -> None:
    assert parse(DOCKER, media_type) == parse(DOCKER)


@pytest.mark.parametrize(
    "media_type", [media.EMPTY, media.OCI_MANIFEST, "application/vnd.cncf.helm.config.v1+json"]
)
def test_what_is_no_config_of_a_container_is_not_parsed(media_type: str) -> None:
    with pytest.raises(ImageError, match="expected the config of a container image"):
        parse(DOCKER, media_type)


def test_the_environment() -> None:
    run = RunConfig(env=("A=1", "B=", "C", "A=2", "=x", "D=a=b", "HOME", "E E=\n"))
    assert run.environment() == {"A": "2", "B": "", "D": "a=b", "E E": "\n"}
    defaults = {"HOME": "/root", "PATH": "/bin"}
    assert run.environment(defaults)["PATH"] == "/bin"
    assert "HOME" not in run.environment(defaults)
    assert defaults == {"HOME": "/root", "PATH": "/bin"}


def test_chain_ids() -> None:
    def named(text: str) -> Digest:
        return Digest("sha256", hashlib.sha256(text.encode()).hexdigest())

    assert chain_ids([]) == ()
    assert chain_ids([ONE]) == (ONE,)
    second = named(f"{ONE} {TWO}")
    assert chain_ids([ONE, TWO, THREE]) == (ONE, second, named(f"{second} {THREE}"))
    # The same layer twice is another place in the chain.
    assert len(set(chain_ids([ONE, ONE, ONE]))) == 3
    long = Digest("sha512", "0" * 128)
    assert chain_ids([long, ONE]) == (long, named(f"{long} {ONE}"))


JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.builds(list)
    | st.builds(dict)
    | st.builds(lambda: [{}])
)
PLACES = list(DOCKER) + [f"{outer}/{name}" for outer in ("config", "rootfs") for name in DOCKER[outer]]


@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3))
def test_any_damage_is_an_image_error(damage: list[tuple[str, Any]]) -> None:
    values = json.loads(json.dumps(DOCKER))
    for path, junk in damage:
        outer, _, last = path.rpartition("/")
        place = values.get(outer) if outer else values
        if isinstance(place, dict):
            place[last] = junk
    try:
        parsed = parse(values)
    except ImageError:
        return
    assert ImageConfig.parse(attrs.evolve(parsed).encode()) == parsed


@given(st.binary(max_size=200))
def test_any_bytes_are_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        ImageConfig.parse(data)
