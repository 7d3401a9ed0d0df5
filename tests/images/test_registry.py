"""The registry of the tests is what the others take it for."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest

from archives import entry, packed
from leftovers import wait_until
from registry import Registry, push_with_skopeo, running_registry, skopeo
from requirements import program

USERS = {"builder": "se cret:ü"}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with one image of one file."""
    place = tmp_path_factory.mktemp("made")
    (place / "root.tar").write_bytes(packed(entry("hello", b"world")))
    command = [
        program("skopeo"),
        "--insecure-policy",
        "copy",
        "-q",
        f"tarball:{place}/root.tar",
        f"oci:{place}/oci",
    ]
    subprocess.run(command, check=True)
    return place / "oci"


def answer(
    registry: Registry, path: str = "/v2/", authorization: str = "", method: str = "GET"
) -> tuple[int, str]:
    """The status and what it wants of whoever may not."""
    kind = "http" if registry.ca is None else "https"
    headers = {"Authorization": authorization} if authorization else {}
    request = urllib.request.Request(f"{kind}://{registry.address}{path}", headers=headers, method=method)
    context = None if registry.ca is None else ssl.create_default_context(cafile=str(registry.ca))
    try:
        with urllib.request.urlopen(request, context=context) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("WWW-Authenticate", "")


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_plain(registry: Registry, layout: Path) -> None:
    push_with_skopeo(layout, registry, "plain/app:1")
    said = json.loads(skopeo("inspect", f"docker://{registry.address}/plain/app:1", registry=registry))
    assert len(said["Layers"]) == 1 and registry.blob(said["Layers"][0]).is_file()
    assert "PUT /v2/plain/app/manifests/1" in registry.requests()
    assert answer(registry, f"/v2/plain/app/manifests/{said['Digest']}", method="DELETE") == (202, "")


def test_users_and_tls_and_a_restart(tmp_path: Path, layout: Path) -> None:
    with running_registry(tmp_path, users=USERS, tls=True) as registry:
        assert answer(registry)[0] == answer(registry, authorization=basic("builder", "wrong"))[0] == 401
        assert answer(registry, authorization=basic("builder", USERS["builder"])) == (200, "")
        push_with_skopeo(layout, registry, "app:1", login=("builder", USERS["builder"]))
        address, path = registry.address, f"docker://{registry.address}/app:1"
        registry.kill()
        with pytest.raises(urllib.error.URLError):
            answer(registry)
        registry.start()
        assert registry.address == address
        assert skopeo("inspect", "--raw", path, registry=registry, login=("builder", USERS["builder"]))
    with pytest.raises(urllib.error.URLError):
        answer(registry)


def test_tokens(tmp_path: Path, layout: Path) -> None:
    with running_registry(tmp_path, users=USERS, tokens=True) as registry:
        tokens = registry.tokens
        assert tokens is not None
        assert answer(registry) == (401, f'Bearer realm="{tokens.realm}",service="{tokens.service}"')
        push_with_skopeo(layout, registry, "app:1", login=("builder", USERS["builder"]))
        assert {request["user"] for request in tokens.asked} == {"builder"}

        def token(authorization: str = "") -> str:
            wanted = {"service": tokens.service, "scope": "repository:app:pull", "offline_token": "true"}
            query = urlencode(wanted)
            headers = {"Authorization": authorization} if authorization else {}
            with urllib.request.urlopen(
                urllib.request.Request(f"{tokens.realm}?{query}", headers=headers)
            ) as response:
                return f"Bearer {json.load(response)['token']}"

        path = "/v2/app/tags/list"
        assert answer(registry, path, token(basic("builder", USERS["builder"]))) == (200, "")
        assert answer(registry, path, token())[0] == 401
        tokens.lifetimes[:] = [0]
        status, wanted = answer(registry, path, token(basic("builder", USERS["builder"])))
        assert status == 401 and 'error="invalid_token"' in wanted
        form = {"grant_type": "refresh_token", "refresh_token": next(iter(tokens.identities)), "service": "x"}
        form["scope"] = "repository:app:pull"
        with urllib.request.urlopen(tokens.realm, urlencode(form).encode()) as response:
            assert answer(registry, path, f"Bearer {json.load(response)['access_token']}") == (200, "")


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from registry import running_registry
with running_registry(Path(sys.argv[1])) as registry:
    print(registry.pid, flush=True)
    time.sleep(1000)
"""
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tests)}
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())
