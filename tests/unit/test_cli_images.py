"""The commands around the store: what they print, what they refuse, and what is there afterwards."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archives import entry, packed
from isobox import Image, Store
from isobox.cli import main
from isobox.images.documents.config import ImageConfig
from isobox.images.documents.descriptor import Descriptor
from isobox.images.documents.media import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from isobox.images.documents.model import Index, Manifest
from isobox.images.documents.platform import Platform
from isobox.images.documents.reference import Reference
from made import archive
from patience import patient

LAYERS = (packed(entry("a", b"1")), packed(entry("b", b"2")))
HOSTILE = "\x1b]0;x\x07 \x9b2J \u202e é \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")


class Commands:
    """`isobox` in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *args: str) -> str:
        status, out, err = self.done(*args)
        assert (status, err) == (0, "")
        return out

    def done(self, *args: str) -> tuple[int, str, str]:
        status = main(args)
        out, err = self._capture.readouterr()
        return status, out, err

    def refused(self, *args: str) -> str:
        status, out, err = self.done(*args)
        assert (status, out) == (125, "")
        return err


@pytest.fixture
def isobox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody to be asked
    return Commands(capsys)


def made(tmp_path: Path, *names: str, **options: Any) -> Image:
    return Image.load(archive(tmp_path / "app.tar", *LAYERS, tags=names, **options))


def with_history(image: Image, *history: dict[str, Any]) -> Image:
    """The same with another config, named app:1."""
    store = Store.default()
    document = json.loads(image.config.encode()) | {"history": list(history)}
    config = json.dumps(document).encode()
    ImageConfig.parse(config)
    with store.lease():
        encoded = Manifest(Descriptor(OCI_CONFIG, *store.add(config)), image._chosen.manifest.layers).encode()
        store.add(encoded)
        store.tag(Reference.parse("app:1"), Descriptor.of(encoded, OCI_MANIFEST))
    return Image.get("app:1")


class TestImages:
    def test_with_and_without_names(self, isobox: Commands, tmp_path: Path) -> None:
        assert isobox("images") == "NAME  ID  SIZE  CREATED\n"
        unnamed = made(tmp_path, run={})
        image = made(tmp_path, "app:1", "app:2")
        lines = [line.split() for line in isobox("images").splitlines()]
        short = image.id[7:19]
        day = "2026-01-02"
        assert lines[1:] == [
            ["app:1", short, "20.0", "KiB", day],
            ["app:2", short, "20.0", "KiB", day],
            ["<none>", unnamed.id[7:19], "20.0", "KiB", day],
        ]
        assert isobox("images", "-q").split() == [short, unnamed.id[7:19]]
        assert isobox("images", "-q", "--no-trunc").split() == [image.id, unnamed.id]
        assert isobox("images", "--digests").splitlines()[1].split()[1] == image.digest
        assert json.loads(isobox("images", "--json"))[0] == {
            "names": ["app:1", "app:2"],
            "id": image.id,
            "digest": image.digest,
            "size": sum(map(len, LAYERS)),
            "created": "2026-01-02T03:04:05Z",
            "platform": str(image.config.platform),
        }

    def test_a_time_that_is_none(self, isobox: Commands, tmp_path: Path) -> None:
        config = json.loads(made(tmp_path, "app:1").config.encode()) | {"created": "\x1b[2J" * 1000}
        store = Store.default()
        with store.lease():
            parts = Image.get("app:1")._chosen.manifest.layers
            data = json.dumps(config).encode()
            encoded = Manifest(Descriptor(OCI_CONFIG, *store.add(data)), parts).encode()
            store.add(encoded)
            store.tag(Reference.parse("app:1"), Descriptor.of(encoded, OCI_MANIFEST))
        printed = isobox("images")
        assert "\x1b" not in printed and len(printed) < 200


class TestInspect:
    def test_as_docker_has_it(self, isobox: Commands, tmp_path: Path) -> None:
        run = {"Cmd": ["sh"], "Env": ["A=1"], "Healthcheck": {"Test": ["CMD"]}}
        image = made(tmp_path, "app:1", "localhost:5000/team/app:2", run=run)
        first, second = json.loads(isobox("inspect", "app:1", image.id[7:15]))
        assert (
            first
            == second
            == {
                "Id": image.id,
                "RepoTags": ["app:1", "localhost:5000/team/app:2"],
                "RepoDigests": [f"app@{image.digest}", f"localhost:5000/team/app@{image.digest}"],
                "Digest": image.digest,
                "Comment": "",
                "Created": "2026-01-02T03:04:05Z",
                "Author": "",
                "Config": run,
                "Architecture": Platform.here().architecture,
                "Os": "linux",
                "Size": 20480,
                "RootFS": {"Type": "layers", "Layers": list(image.layers)},
            }
        )

    def test_nothing_for_a_terminal_to_obey(self, isobox: Commands, tmp_path: Path) -> None:
        made(tmp_path, "app:1", run={"Labels": {HOSTILE: HOSTILE}})
        printed = isobox("inspect", "app:1")
        assert all(character.isprintable() or character == "\n" for character in printed)
        assert "é" in printed and "😀" in printed
        assert json.loads(printed)[0]["Config"]["Labels"] == {HOSTILE: HOSTILE}

    def test_none_of_them_where_one_is_missing(self, isobox: Commands, tmp_path: Path) -> None:
        made(tmp_path, "app:1")
        error = isobox.refused("inspect", "app:1", "app:2")
        assert "no image 'app:2'" in error and "IMAGE is" not in error


class TestHistory:
    def test_steps_and_their_layers(self, isobox: Commands, tmp_path: Path) -> None:
        image = with_history(
            made(tmp_path, "app:1"),
            {"created": "2026-01-02T03:04:05Z", "created_by": "ADD rootfs.tar /", "comment": "first"},
            {"created_by": "CMD " + "x" * 100, "empty_layer": True},
            {"created_by": f"RUN {HOSTILE}"},
        )
        head, *lines = isobox("history", "app:1").splitlines()
        assert head.split() == ["LAYER", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
        assert lines[0].startswith(image.layers[1][7:19]) and "\\x1b" in lines[0] and "\x1b" not in lines[0]
        assert lines[1].split() == ["-", "CMD", "x" * 55 + "…", "0", "B"]
        assert lines[2].split() == [
            image.layers[0][7:19],
            *"2026-01-02 ADD rootfs.tar / 10.0 KiB first".split(),
        ]
        whole = isobox("history", "--no-trunc", "app:1")
        assert "x" * 100 in whole and image.layers[0] in whole

    def test_that_does_not_fit_the_layers(self, isobox: Commands, tmp_path: Path) -> None:
        image = made(tmp_path, "app:1")
        found = [line.split()[0] for line in isobox("history", "app:1").splitlines()[1:]]
        assert found == [layer[7:19] for layer in reversed(image.layers)]
        with_history(image, *[{"created_by": str(number)} for number in range(4)])
        found = [line.split()[0] for line in isobox("history", "app:1").splitlines()[1:]]
        assert found == ["-", "-", *[layer[7:19] for layer in reversed(image.layers)]]


class TestTagAndRmi:
    def test_names(self, isobox: Commands, tmp_path: Path) -> None:
        image = made(tmp_path, "app:1")
        assert isobox("tag", "app:1", "localhost:5000/team/app") == ""
        assert Image.get("app:1").references == ("app:1", "localhost:5000/team/app:latest")
        assert "lower-case" in isobox.refused("tag", "app:1", "App")
        assert "several names" in isobox.refused("rmi", image.id)
        assert isobox("rmi", "docker.io/library/app:1") == "Untagged: app:1\n"
        assert isobox("images", "-q").split() == [image.id[7:19]]
        last = f"Untagged: localhost:5000/team/app:latest\nDeleted: {image.digest}\n"
        assert isobox("rmi", image.id[7:19]) == last
        assert Store.default().sizes().total == 0
        assert "isobox load" in isobox.refused("rmi", "app:1")

    def test_all_names_at_once(self, isobox: Commands, tmp_path: Path) -> None:
        image = made(tmp_path, "app:1", "app:2")
        assert isobox("rmi", "-f", image.digest).splitlines() == [
            "Untagged: app:1",
            "Untagged: app:2",
            f"Deleted: {image.digest}",
        ]
        image = made(tmp_path, "app:1", "app:2")
        assert isobox("rmi", "app:1", "app:2").splitlines()[-1] == f"Deleted: {image.digest}"

    def test_nothing_goes_where_one_is_missing(self, isobox: Commands, tmp_path: Path) -> None:
        made(tmp_path, "app:1")
        assert "no image 'app:2'" in isobox.refused("rmi", "app:1", "app:2")
        assert Image.get("app:1")

    def test_for_another_machine(self, isobox: Commands, tmp_path: Path) -> None:
        """What can't be run here can be had, named, looked at, saved and removed."""
        other = "s390x" if Platform.here().architecture != "s390x" else "amd64"
        path = str(archive(tmp_path / "other.tar", *LAYERS, architecture=other))
        assert isobox("load", "-i", path) == "app:1\n"
        isobox("tag", "app:1", "app:2")
        (found,) = json.loads(isobox("inspect", "app:2"))
        assert found["Architecture"] == other and found["RepoTags"] == ["app:1", "app:2"]
        assert json.loads(isobox("images", "--json"))[0]["platform"] == f"linux/{other}"
        assert isobox("history", "--platform", f"linux/{other}", "app:1")
        assert f"for linux/{other}: expected one for linux/mips" in isobox.refused(
            "inspect", "--platform", "linux/mips", "app:1"
        )
        isobox("save", "-o", f"{tmp_path}/again.tar", "app:2")
        gone = isobox("rmi", "app:1", "app:2")
        assert gone.startswith("Untagged: app:1\nUntagged: app:2\nDeleted: sha256:")
        assert isobox("load", "-i", f"{tmp_path}/again.tar") == "app:2\n"
        isobox("rmi", "app:2")
        assert Store.default().sizes().total == 0

    def test_a_part_of_another(self, isobox: Commands, tmp_path: Path) -> None:
        image = made(tmp_path, "app:1")
        store = Store.default()
        with store.lease():
            index = Descriptor(OCI_INDEX, *store.add(Index((image._descriptor,)).encode()))
            store.tag(Reference.parse("app:1"), index)
        assert "several platforms" in isobox.refused("rmi", image.digest)
        assert Image.get(image.digest).layers == image.layers
        assert f"Deleted: {index.digest}" in isobox("rmi", image.id)


class TestPrune:
    def test_without_a_name(self, isobox: Commands, tmp_path: Path) -> None:
        assert isobox("prune") == "Freed 0 B in the store: nothing removed\n"
        image = made(tmp_path, "app:1")
        unnamed = made(tmp_path, run={})
        deleted, freed = isobox("prune").splitlines()
        assert deleted == f"Deleted: {unnamed.digest} <none>"
        assert freed.endswith(" B in the store: 1 image, 2 blobs removed")
        assert Image.all() == [image]

    def test_all(self, isobox: Commands, tmp_path: Path) -> None:
        image = made(tmp_path, "app:1")
        assert "--force" in isobox.refused("prune", "--all")
        assert Image.all() == [image]
        assert isobox("prune", "-a", "-f").startswith(f"Deleted: {image.digest} app:1\nFreed 20.")
        assert Image.all() == [] and Store.default().sizes().total == 0


class TestSaveAndLoad:
    @pytest.mark.parametrize("format", ["docker", "oci", "oci-dir"])
    def test_files(self, isobox: Commands, tmp_path: Path, format: str) -> None:
        image = made(tmp_path, "app:1", "app:2")
        unnamed = made(tmp_path, run={})
        path = str(tmp_path / "saved")
        assert isobox("save", "-o", path, "--format", format, "app:1", unnamed.id) == ""
        isobox("prune", "-a", "-f")
        assert isobox("load", "-i", path).splitlines() == ["app:1", unnamed.id]
        assert Image.all() == [image, unnamed]

    def test_refusals(self, isobox: Commands, tmp_path: Path) -> None:
        made(tmp_path, "app:1")
        assert "Name the folder" in isobox.refused("save", "--format", "oci-dir", "app:1")
        assert "no image 'app:2'" in isobox.refused("save", "-o", str(tmp_path / "new"), "app:1", "app:2")
        assert not (tmp_path / "new").exists()
        assert "directory" in isobox.refused("save", "-o", str(tmp_path), "app:1")
        assert "twice" in isobox.refused("load", "-i", "a", "b")
        assert "no such archive" in isobox.refused("load", str(tmp_path / "none"))

    def test_through_pipes(self, isobox: Commands, tmp_path: Path) -> None:
        image = made(tmp_path, "app:1")
        command = [sys.executable, "-m", "isobox.cli"]

        def run(*args: str, data: bytes = b"", status: int = 0) -> bytes:
            done = subprocess.run([*command, *args], input=data, capture_output=True, timeout=patient(60))
            assert done.returncode == status, done.stderr
            return done.stdout or done.stderr

        data = run("save", "app:1")
        image.remove()
        assert b"ends early" in run("load", data=data[:5000], status=125)
        assert Image.all() == []
        assert run("load", data=data) == b"app:1\n" and Image.all() == [image]


class TestDiff:
    def test_of_images(self, isobox: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ISOBOX_STATE_DIR", str(tmp_path / "state"))
        made(tmp_path, "app:1")
        above = packed(entry(".wh.a"), entry("b", b"3"), entry("\x1b[2J", b""))
        Image.load(archive(tmp_path / "app.tar", *LAYERS, above, tags=("app:2",)))
        for args in (("app:1", "app:2"), ("app:2",)):
            assert isobox("diff", *args) == "A /\\x1b[2J\nD /a\nC /b\n"
        assert json.loads(isobox("diff", "--json", "app:2"))[1] == {"kind": "deleted", "path": "/a"}
        assert isobox("diff", "app:1", "app:1") == ""
        for args, told in (
            (("none",), "no container 'none' runs, and the store has no such image. No container of yours"),
            (("No Name",), "no container 'No Name' runs, and"),
            (("app:1", "none:1"), "no image 'none:1'"),
            ((), "CONTAINER|IMAGE"),
        ):
            assert told in isobox.refused("diff", *args)
        assert not (tmp_path / "state").exists()
