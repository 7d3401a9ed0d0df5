"""The case of an image that is pulled: 200 MB of this machine's own files, from a registry on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .cases import Bench, Case
from .samples import Failed, Subject, interleave, progress
from .unpacking import folder_in_memory, write_files

LAYERS = ({"/usr/bin": 50}, {"/usr/lib/python3": 20, "/usr/share": 40}, {"/usr/lib": 90})
"""Where the files of each layer are taken from, and how many MB."""

_LISTENS = re.compile(r"listening on (127\.0\.0\.1:\d+)")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def pulling(bench: Bench) -> Case:
    """From a name to a root folder that could run, each by its own program."""
    with ExitStack() as stack:
        work = stack.enter_context(folder_in_memory())
        address = stack.enter_context(_registry(work))
        archive = work / "image.tar"
        _make_image(archive)
        name = f"{address}/bench:1"
        run("skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false",
             f"docker-archive:{archive}", f"docker://{name}")  # fmt: skip
        archive.unlink()
        subjects = [
            Subject("podman pull", _timed(work, lambda into: _podman(name, into)), 1),
            Subject("skopeo, umoci", _timed(work, lambda into: _skopeo(name, into)), 1),
            Subject("isobox pull", _timed(work, lambda into: _isobox(name, into)), 1),
        ]
        return Case("pull a 200 MB image", interleave("pulling", subjects, bench.rounds(3, 6)))


def _make_image(path: Path) -> None:
    """Write an archive as docker save does."""
    ids = []
    with tarfile.open(path, "w") as archive:
        for number, parts in enumerate(LAYERS):
            layer = path.with_suffix(f".{number}")
            files = write_files(layer, parts)
            with layer.open("rb") as file:
                ids.append(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
            archive.add(layer, f"{number}.tar")
            progress(f"  a layer of {files} files, {layer.stat().st_size / 1e6:.0f} MB")
            layer.unlink()
        config = {
            "os": "linux",
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "rootfs": {"type": "layers", "diff_ids": ids},
        }
        names = [f"{number}.tar" for number in range(len(LAYERS))]
        manifest = [{"Config": "config.json", "RepoTags": ["bench:1"], "Layers": names}]
        for name, document in (("config.json", config), ("manifest.json", manifest)):
            data = json.dumps(document).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@contextmanager
def _registry(work: Path) -> Iterator[str]:
    """Run Debian's docker-registry; give its address."""
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(work / "registry")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    (work / "registry.yml").write_text(json.dumps(config))
    log = work / "registry.log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                ["docker-registry", "serve", str(work / "registry.yml")], stdout=output, stderr=output
            )
        except FileNotFoundError:
            raise Failed("no docker-registry here") from None
    try:
        deadline = time.monotonic() + 30
        while (found := _LISTENS.search(log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed("docker-registry does not start")
            time.sleep(0.05)
        yield found[1]
    finally:
        process.kill()
        process.wait()


def _timed(work: Path, pull: Callable[[Path], object]) -> Callable[[int], Sequence[float]]:
    def take(count: int) -> Sequence[float]:
        samples = []
        for _ in range(count):
            into = work / "into"
            into.mkdir()
            begin = time.perf_counter_ns()
            pull(into)
            samples.append(float(time.perf_counter_ns() - begin))
            shutil.rmtree(into)
        return samples

    return take


def _isobox(name: str, into: Path) -> None:
    run(sys.executable, "-m", "isobox.cli", "pull", "-q", name, ISOBOX_DATA_DIR=str(into / "data"))


def _podman(name: str, into: Path) -> None:
    # What it mounts goes with the mount namespace.
    run("unshare", "--mount", "--propagation", "private", "podman", "--root", f"{into}/root", "--runroot",
         f"{into}/run", "--storage-driver", "overlay", "pull", "-q", "--tls-verify=false", name)  # fmt: skip


def _skopeo(name: str, into: Path) -> None:
    run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{name}",
         f"oci:{into}/oci:bench")  # fmt: skip
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run("umoci", "unpack", *rootless, "--image", f"{into}/oci:bench", f"{into}/bundle")


def run(*command: str, **environment: str) -> None:
    """Run a program of another engine; Failed where there is none, or it fails."""
    if shutil.which(command[0]) is None:
        raise Failed(f"no {command[0]} here")
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise Failed(f"{command[0]}: {done.stderr.strip()[-300:]}")
