"""Logins for registries: the files of Docker and podman, programs that keep secrets, and what is broken."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.errors import ImageError
from isobox.images.registry import keychain
from isobox.images.registry.auth_file import AuthFile
from isobox.images.registry.credentials import Credential, find, forget, look_up, save

HUB = "https://index.docker.io/v1/"
SECRET = "se:cret-ü"  # with what a password may have in it
ANNA = Credential("builder", SECRET)

NAMES = st.sampled_from(
    [
        "auths",
        "auth",
        "credsStore",
        "credHelpers",
        "identitytoken",
        "x.example",
        "x.example/team",
        "username",
        "é",
    ]
)


def entry(name: str = "builder", password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Docker's file, whose directory is there."""
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker/config.json"


def write(path: Path, **values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


class TestKeys:
    @pytest.mark.parametrize(
        "key", [HUB, "docker.io", "index.docker.io", "https://registry-1.docker.io", "docker.io/v1/"]
    )
    def test_docker_hub(self, config: Path, key: str) -> None:
        write(config, auths={"other.example": entry("no"), key: entry()})
        assert find("docker.io") == ANNA

    @pytest.mark.parametrize(
        "key",
        [
            "localhost:5000",
            "http://localhost:5000",
            "https://localhost:5000/",
            "https://localhost:5000/v2/",
            "localhost:5000/v1",
            "https://LocalHost:5000/any/path",
        ],
    )
    def test_others(self, config: Path, key: str) -> None:
        write(config, auths={"localhost": entry("no"), "localhost:5001": entry("no"), key: entry()})
        assert find("localhost:5000") == ANNA

    @pytest.mark.parametrize(
        "key", ["localhost", "localhost:500", "ocalhost:5000", "localhost:5000.evil", "evil/localhost:5000"]
    )
    def test_of_no_other_registry(self, config: Path, key: str) -> None:
        write(config, auths={key: entry()})
        assert find("localhost:5000") is None

    def test_the_exact_one_first(self, config: Path) -> None:
        write(config, auths={"https://x.example/v2/": entry("old"), "x.example": entry()})
        assert find("x.example") == ANNA

    def test_parts_of_a_registry(self, config: Path) -> None:
        write(
            config,
            auths={"x.example/team": entry("team"), "x.example/team/app": entry("app"), "x.example": entry()},
        )
        names = {
            path: (find("x.example", path) or Credential()).username
            for path in ("team/app", "team/b", "teams", "")
        }
        assert names == {"team/app": "app", "team/b": "team", "teams": "builder", "": "builder"}
        write(config, auths={"x.example/team": entry("team")})
        assert find("x.example") is None and find("x.example", "other") is None


class TestFiles:
    def test_none(self) -> None:
        assert find("docker.io") is None

    def test_kinds_of_entries(self, config: Path) -> None:
        write(
            config,
            auths={
                "token.example": {**entry("<token>", ""), "identitytoken": "id-secret"},
                "plain.example": {"username": "builder", "password": SECRET},
                "empty.example": {},
                "other.example": {"email": "a@example", "auth": None},
                "padded.example": {"auth": f" {entry()['auth'][:9]}\r\n{entry()['auth'][9:]}\n"},
            },
        )
        assert find("token.example") == Credential("<token>", "", "id-secret")
        assert find("plain.example") == find("padded.example") == ANNA
        assert find("empty.example") is None and find("other.example") is None

    def test_order(self, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Docker's, then the one of podman's that its user chose, then the usual ones."""
        usual, late = tmp_path / "run/containers/auth.json", tmp_path / "home/.config/containers/auth.json"
        chosen = tmp_path / "chosen.json"
        write(late, auths={"x.example": entry("late")})
        assert look_up("x.example") and look_up("x.example").place == str(late)  # type: ignore[union-attr]
        write(usual, auths={"x.example": entry("usual")})
        assert find("x.example") == Credential("usual", SECRET)
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(chosen))
        assert find("x.example") == Credential("late", SECRET)
        write(chosen, auths={"x.example": entry("chosen")})
        assert find("x.example") == Credential("chosen", SECRET)
        write(config, auths={"x.example": entry("docker")})
        assert find("x.example") == Credential("docker", SECRET)

    @pytest.mark.requires("ordinary_user")
    def test_not_to_be_looked_at(self, config: Path, tmp_path: Path) -> None:
        """The usual one of podman's is another's, say; Docker's is this user's, so that it is a mistake."""
        usual = tmp_path / "run/containers/auth.json"
        write(usual, auths={"x.example": entry()})
        usual.chmod(0)
        assert find("x.example") is None
        write(config, auths={"x.example": entry()})
        config.chmod(0)
        with pytest.raises(ImageError, match="config.json: can't read them: Permission denied"):
            find("x.example")

    def test_no_regular_file(self, config: Path) -> None:
        os.mkfifo(config)
        with pytest.raises(ImageError, match="no regular file"):
            find("x.example")
        config.unlink()
        config.symlink_to("/dev/null")
        assert find("x.example") is None

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ('{"auths": {"x.example": {"auth": "hunter2!"}}}', "auths: 'x.example': auth"),
            ('{"auths": {"x.example": {"auth": "aHVudGVyMg=="}}}', "auths: 'x.example': auth"),  # no colon
            ('{"auths": {"x.example": {"auth": "//8="}}}', "auths: 'x.example': auth"),  # no UTF-8
            ('{"auths": {"x.example": {"auth": ["hunter2"]}}}', "auths: 'x.example': auth"),
            ('{"auths": {"x.example": {"identitytoken": {"a": "hunter2"}}}}', "identitytoken"),
            ('{"auths": {"x.example": "hunter2"}}', "auths"),
            ('{"auths": "hunter2"}', "auths"),
            ('{"credsStore": ["hunter2"]}', "credsStore"),
            ('{"credsStore": "../hunter"}', "credsStore"),
            ('{"credHelpers": "hunter2"}', "credHelpers"),
            ('{"credHelpers": {"x.example": {"hunter2": 1}}}', "credHelpers"),
            ('{"auths": {"x.example": {"auth": "hunter2"', "config.json"),
            ('["hunter2"]', "config.json"),
            ("hunter2", "config.json"),
            ('"hunter2"', "config.json"),
            ('{"auths": ' + "[" * 100_000, "config.json"),
        ],
    )
    def test_broken(self, config: Path, text: str, field: str) -> None:
        config.write_text(text)
        for call in (lambda: find("x.example"), lambda: save("x.example", ANNA), lambda: forget("x.example")):
            if call.__code__.co_names[0] != "find" and field.endswith(("auth", "identitytoken")):
                continue  # an entry that is replaced or removed is not read
            with pytest.raises(ImageError, match="config.json") as error:
                call()
            assert field in str(error.value) and "hunter2" not in str(error.value).replace(str(config), "")
            assert config.read_text() == text

    def test_not_utf8(self, config: Path) -> None:
        config.write_bytes(b'{"auths": {"\xff": {}}}')
        with pytest.raises(ImageError, match="config.json: not UTF-8"):
            find("x.example")

    def test_secrets_are_not_shown(self) -> None:
        assert repr(Credential("builder", "hunter2", "token")) == "Credential(username='builder')"


class TestSaving:
    def test_what_others_read(self, tmp_path: Path) -> None:
        config = tmp_path / "docker/config.json"
        assert save("localhost:5000", ANNA) == str(config)
        assert save("docker.io", ANNA) == str(config)
        assert json.loads(config.read_text()) == {"auths": {"localhost:5000": entry(), HUB: entry()}}
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert stat.S_IMODE(config.parent.stat().st_mode) & 0o077 == 0
        assert os.listdir(config.parent) == ["config.json"]
        assert find("localhost:5000") == find("docker.io") == ANNA

    def test_all_else_is_kept(self, config: Path) -> None:
        other = {"psFormat": "table\t{{.ID}} ü", "HttpHeaders": {"X": "1"}, "n": 1.5}
        write(
            config,
            **other,
            auths={"https://x.example/v2/": entry("old"), "x.example/team": entry("t"), "y.example": {}},
        )
        config.chmod(0o644)
        save("x.example", Credential("builder", "", "token"))
        auths = {
            "x.example": {**entry("builder", ""), "identitytoken": "token"},
            "x.example/team": entry("t"),
            "y.example": {},
        }
        assert json.loads(config.read_text()) == {**other, "auths": auths}
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert forget("x.example") and not forget("x.example")
        del auths["x.example"]
        assert json.loads(config.read_text()) == {**other, "auths": auths}

    def test_a_link_is_followed(self, config: Path, tmp_path: Path) -> None:
        (tmp_path / "dotfiles").mkdir()
        config.symlink_to(tmp_path / "dotfiles/docker.json")
        save("x.example", ANNA)
        assert config.is_symlink() and find("x.example") == ANNA

    def test_nothing_is_made_to_forget(self, tmp_path: Path) -> None:
        assert not forget("x.example")
        assert os.listdir(tmp_path) == []

    def test_what_a_killed_one_left(self, config: Path) -> None:
        (config.parent / "config.json.isobox").write_text("half")
        save("x.example", ANNA)
        assert os.listdir(config.parent) == ["config.json"]

    def test_nothing_is_lost_when_it_fails(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(config, auths={"y.example": entry()})

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(ImageError, match=r"No space left on device\. Nothing that was there is lost"):
            save("x.example", ANNA)
        assert os.listdir(config.parent) == ["config.json"] and find("y.example") == ANNA

    def test_several_at_once(self) -> None:
        threads = [threading.Thread(target=save, args=(f"{n}.example", ANNA)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(find(f"{n}.example") == ANNA for n in range(8))


# Of the shell's and of Python's: the kernel takes no interpreter whose path has a space.
PROGRAM = """#!/bin/sh
''''exec "{python}" -IS "$0" "$@" # '''
import json, sys
path = {kept!r}
action, request = sys.argv[1], sys.stdin.read()
try:
    kept = json.load(open(path))
except FileNotFoundError:
    kept = {{}}
if action == "store":
    values = json.loads(request)
    kept[values["ServerURL"]] = values
elif request not in kept:
    print("credentials not found in native keychain")
    sys.exit(1)
elif action == "get":
    print(json.dumps(kept[request]))
else:
    del kept[request]
json.dump(kept, open(path, "w"))
"""


class TestPrograms:
    @pytest.fixture
    def kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """What docker-credential-test keeps."""
        self.install(
            tmp_path, monkeypatch, PROGRAM.format(python=sys.executable, kept=str(tmp_path / "kept.json"))
        )
        return tmp_path / "kept.json"

    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        program = tmp_path / "bin/docker-credential-test"
        program.parent.mkdir()
        program.write_text(text)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    @pytest.mark.parametrize(
        "fields", [{"credsStore": "test"}, {"credHelpers": {"x.example": "test", "docker.io": "test"}}]
    )
    def test_there_and_back(self, config: Path, kept: Path, fields: dict[str, Any]) -> None:
        write(config, **fields)
        assert find("x.example") is None and not forget("x.example")
        assert save("x.example", ANNA) == "docker-credential-test"
        save("docker.io", Credential("builder", "", "id-secret"))
        server = HUB if "credsStore" in fields else "docker.io"
        assert json.loads(kept.read_text()) == {
            "x.example": {"ServerURL": "x.example", "Username": "builder", "Secret": SECRET},
            server: {"ServerURL": server, "Username": "<token>", "Secret": "id-secret"},
        }
        assert json.loads(config.read_text()) == {**fields, "auths": {"x.example": {}, HUB: {}}}
        assert find("x.example") == ANNA
        assert find("docker.io") == Credential(identity_token="id-secret")
        assert (
            forget("x.example")
            and find("x.example") is None
            and list(json.loads(kept.read_text())) == [server]
        )

    def test_for_one_registry_only(self, config: Path, kept: Path) -> None:
        write(
            config,
            credHelpers={"x.example": "test", "y.example": ""},
            credsStore="absent",
            auths={"y.example": entry()},
        )
        assert find("x.example") is None and find("y.example") == ANNA
        with pytest.raises(
            ImageError, match="credsStore: there is no program docker-credential-absent on the PATH"
        ):
            find("z.example")

    @pytest.mark.parametrize(
        ("script", "expected"),
        [
            ("echo 'hunter2 is no JSON'", "expected a JSON object with the strings Username and Secret"),
            ('echo \'{"Username": "builder", "Secret": 123456}\'', "expected a JSON object"),
            ("echo locked; exit 3", "get: it failed with status 3: locked"),
            ('echo \'{"Secret": "hunter2"}\'; exit 3', r"get: it failed with status 3\. It is"),
            ("kill -9 $$", "failed with status -9"),
            ("exec head -c 2000000 /dev/zero", "expected at most 1048576 bytes"),
        ],
    )
    def test_broken(
        self, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
    ) -> None:
        self.install(tmp_path, monkeypatch, f"#!/bin/sh\n{script}\n")
        write(config, credsStore="test")
        with pytest.raises(ImageError, match=expected) as error:
            find("x.example")
        said = str(error.value).replace(str(config), "")
        assert "hunter2" not in said and "123456" not in said

    @pytest.mark.parametrize("script", ["exec sleep 1000", "exec >&-; exec sleep 1000"])
    def test_without_an_end(
        self, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
    ) -> None:
        self.install(tmp_path, monkeypatch, f"#!/bin/sh\n{script}\n")
        monkeypatch.setattr(keychain, "SECONDS", 0.2)
        write(config, credsStore="test")
        with pytest.raises(ImageError, match="docker-credential-test: it took longer"):
            find("x.example")

    def test_not_a_program(self, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.install(tmp_path, monkeypatch, "#!/nowhere\n")
        write(config, credsStore="test")
        with pytest.raises(ImageError, match="can't run it: No such file or directory"):
            find("x.example")

    def test_a_refusal_keeps_the_file(
        self, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(tmp_path, monkeypatch, "#!/bin/sh\ncat; exit 1\n")  # says what it was given
        write(config, credsStore="test")
        before = config.read_text()
        with pytest.raises(ImageError, match="store: it failed with status 1") as error:
            save("x.example", Credential("builder", "hunter2"))
        assert "hunter2" not in str(error.value) and config.read_text() == before


def test_a_file_is_read_once_it_is_locked(config: Path) -> None:
    """Otherwise what another process has just saved would be lost."""
    with AuthFile.changing(str(config)) as file:
        thread = threading.Thread(target=save, args=("y.example", ANNA))
        thread.start()
        file.replace({"x.example": entry()})
    thread.join()
    assert find("x.example") == find("y.example") == ANNA


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(entry()["auth"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_whatever_a_file_says(values: dict[str, Any]) -> None:
    """A login, none, or an ImageError; and what is saved is found where there is no error."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", folder)
        patch.setenv("PATH", "")
        Path(folder, "config.json").write_text(json.dumps(values))
        for call in (lambda: find("x.example", "team/app"), lambda: forget("x.example")):
            with contextlib.suppress(ImageError):
                call()
        with contextlib.suppress(ImageError):
            save("x.example", ANNA)
            assert find("x.example") == ANNA
