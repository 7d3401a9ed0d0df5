"""A whole Debian, made by mmdebstrap: run, changed, handed on, and the same file by file wherever it went."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from attrs import evolve, frozen

from debian import debian
from isobox import Change, Container, Image, Store
from others import Podman, run
from programs import ROOT, said, sh
from registry import Registry
from requirements import program

pytestmark = pytest.mark.requires("user_namespaces", "overlay", "host_folders", "id_ranges")

# All that is known of the files in the folder $1: no python runs in there.
FILES = r"""
cd "$1"
part="-path ./proc -o -path ./sys -o -path ./dev"
find . -xdev \( $part \) -prune -o -printf '%P\0%y\0%m\0%U:%G\0%T@\0%i\0%l\0'
printf '\n\0'
find . -xdev \( $part \) -prune -o -type f -print0 | xargs -0 sha256sum -z
"""


@frozen
class File:
    """One of a tree; hard links by the first name of the same file."""

    kind: str
    mode: int
    owner: str
    time: Decimal
    target: str = ""
    content: str = ""
    same: str = ""


Tree = dict[str, File]


def of_tar(path: Path) -> Tree:
    """What the archive says."""
    kinds = {tarfile.DIRTYPE: "d", tarfile.SYMTYPE: "l", tarfile.REGTYPE: "f"}
    found: Tree = {}
    linked: dict[str, list[str]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            name = os.path.normpath(info.name)
            if name.split("/")[0] in ("dev", "proc", "sys"):
                continue
            if info.islnk():
                first = os.path.normpath(info.linkname)
                linked.setdefault(first, [first]).append(name)
                found[name] = found[first]
                continue
            file = tar.extractfile(info) if info.isreg() else None
            found[name] = File(
                kinds[info.type],
                info.mode,
                f"{info.uid}:{info.gid}",
                Decimal(info.pax_headers.get("mtime", info.mtime)),
                info.linkname,
                "" if file is None else hashlib.file_digest(file, "sha256").hexdigest(),
                "" if file is None else name,
            )
    for names in linked.values():
        found |= {name: evolve(found[name], same=min(names)) for name in names}
    return found


def of_listing(text: str) -> Tree:
    """What FILES has printed."""
    listed, _, sums = text.partition("\n\0")
    contents = {line[68:]: line[:64] for line in sums.split("\0") if line}
    fields = iter(listed.split("\0"))
    rows = sorted(zip(*[fields] * 7, strict=False))
    first: dict[str, str] = {}
    found: Tree = {}
    for name, kind, mode, owner, time, number, target in rows:
        content = contents.get(name, "")
        same = first.setdefault(number, name) if kind == "f" else ""
        found[name or "."] = File(kind, int(mode, 8), owner, Decimal(time), target, content, same)
    return found


def of_container(image: Image) -> Tree:
    with Container(image) as box:
        return of_listing(said(box, ["sh", "-euc", FILES, "sh", "/"]))


def same(one: Tree, other: Tree, *, owners: bool = True) -> None:
    """Whether both are the same files, but for what every container has of its own."""

    def known(tree: Tree) -> Tree:
        own = ("etc/hosts", "etc/hostname", "etc/resolv.conf", "dev", "proc", "sys")
        kept = {name: file for name, file in tree.items() if name not in own}
        for name in (".", "etc"):
            kept[name] = evolve(kept[name], time=Decimal())  # in which it makes these
        if not owners:
            kept = {name: evolve(file, owner="", mode=file.mode & 0o777) for name, file in kept.items()}
        return kept

    assert known(one) == known(other)


def damaged(box: Container) -> str:
    """What dpkg finds otherwise than the packages have it, but for pages for people."""
    return sh(box, "dpkg --verify | sed '\\,^missing  *\\(c \\)* */usr/share/\\(doc\\|locale\\|man\\)/,d'")


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One store for all tests of this file: the image is imported and unpacked once."""
    place = tmp_path_factory.mktemp("debian")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOBOX_DATA_DIR", str(place / "data"))
        patch.setenv("DOCKER_CONFIG", str(place / "docker"))
        patch.setenv("REGISTRY_AUTH_FILE", str(place / "auth.json"))
        yield place / "data"
        for image in Image.all():
            image.remove()


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return debian(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def image(data: Path, tar: Path) -> Image:
    return Image.from_tar(tar, "debian:own", cmd=["/bin/bash"])


@pytest.fixture(scope="module")
def whole(tar: Path) -> Tree:
    """What an image of the tar has to be, file by file."""
    return of_tar(tar)


def test_file_by_file(image: Image, whole: Tree) -> None:
    """Types, modes, owners, times, links and contents are what the archive has."""
    set_id = [name for name, file in whole.items() if file.mode & 0o6000]
    assert "usr/bin/su" in set_id and whole["usr/bin/chage"].owner == "0:42"
    assert any(file.same not in ("", name) for name, file in whole.items()), "hard links"
    same(of_container(image), whole)
    with Container(image) as box:
        assert box.changes() == []


def test_its_own_programs(image: Image) -> None:
    with Container(image, hostname="here") as box:
        assert "ID=debian" in sh(box, "cat /etc/os-release").splitlines()
        states = said(box, ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\n"]).split()
        assert len(states) > 60 and set(states) == {"ii"}
        assert said(box, ["dpkg", "--audit"]) == damaged(box) == ""
        sh(box, "useradd --create-home --shell /bin/bash builder && echo builder:secret | chpasswd")
        script = "id -un; pwd; umask 027; echo mine > file; stat -c '%U %a' file; hostname; cat /etc/shadow"
        result = box.exec(["su", "-", "builder", "-c", script], text=True)
        assert result.stdout == "builder\n/home/builder\nbuilder 640\nhere\n" and "denied" in result.stderr
        assert said(box, ["id", "-nG"], user="builder") == "builder\n"
        assert said(box, ["perl", "-e", 'print join ",", sort { $a <=> $b } 10, 9'], user="builder") == "9,10"


PACKAGE = r"""
mkdir -p p/DEBIAN p/usr/bin p/etc/greeting
printf '#!/bin/sh\nexec cat /etc/greeting/text\n' > p/usr/bin/greet
chmod 755 p/usr/bin/greet
ln p/usr/bin/greet p/usr/bin/greet-again
echo hello > p/etc/greeting/text
echo /etc/greeting/text > p/DEBIAN/conffiles
cat > p/DEBIAN/control <<END
Package: greet
Version: 1
Architecture: all
Maintainer: Nobody <nobody@example.org>
Depends: passwd, libc6
Description: says hello
END
cat > p/DEBIAN/postinst <<END
#!/bin/sh
set -e
[ "\$1" != configure ] || useradd --system --home-dir /var/lib/greet --create-home greet
END
chmod 755 p/DEBIAN/postinst
dpkg-deb --root-owner-group --build p greet.deb
"""


@pytest.fixture(scope="module")
def installed(image: Image) -> Iterator[Container]:
    """A container with a package more: made there, and installed by apt without a network."""
    with Container(image, workdir="/tmp") as box:
        sh(box, f"set -e\n{PACKAGE}")
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        said(box, ["apt-get", "-qq", "install", "-y", "/tmp/greet.deb"], env=environment)
        sh(box, "rm -r /tmp/*")
        yield box


def test_commit(installed: Container, image: Image) -> None:
    """What apt and useradd did is in a layer, and what dpkg deletes in the next one."""
    made = installed.commit("debian:greeting", cmd=["greet"])
    assert made.layers[:-1] == image.layers and made.layer_sizes[-1] < 4 << 20
    with Container(made) as box:
        assert box.changes() == []
        assert said(box, ["greet-again"]) == "hello\n"
        assert sh(box, "stat -c '%U %h' /var/lib/greet /usr/bin/greet") == "greet 2\nroot 2\n"
        said(box, ["dpkg", "--purge", "greet"])
        assert Change("deleted", "/usr/bin/greet") in box.changes()
        without = box.commit("debian:without")
    with Container(without) as box:
        assert sh(box, "ls -d /usr/bin/greet* /etc/greeting 2>/dev/null || dpkg --audit") == ""


def test_snapshot(installed: Container, image: Image) -> None:
    """A container begins with the package, and goes back to it when little is left of its system."""
    with installed.snapshot() as taken, Container(taken) as box:
        assert box.changes() == [] and said(box, ["greet"]) == "hello\n"
        sh(box, "rm -rf /usr/share /var/lib/dpkg /usr/bin/dpkg* /etc/greeting")
        box.restore(taken)
        assert said(box, ["greet"]) == "hello\n"
        assert damaged(box) == ""


def test_skopeo_and_umoci(image: Image, whole: Tree, tmp_path: Path) -> None:
    """Written by us, copied by skopeo, and unpacked by umoci; and what skopeo wrote is the same image."""
    image.save(tmp_path / "ours.tar", format="oci")
    source = f"oci-archive:{tmp_path}/ours.tar"
    run(program("skopeo"), "copy", "-q", source, f"oci:{tmp_path}/theirs:debian:own", TMPDIR=str(tmp_path))
    (theirs,) = Store(tmp_path / "theirs").images()
    assert theirs == image and theirs.layers == image.layers
    rootless = [] if ROOT else ["--rootless"]
    folder = ["--image", f"{tmp_path}/theirs:debian:own"]
    run(program("umoci"), "--log=error", "unpack", *rootless, *folder, str(tmp_path / "bundle"))
    found = run("sh", "-euc", FILES, "sh", str(tmp_path / "bundle/rootfs"))
    same(of_listing(found), whole, owners=ROOT)  # one id is all that an ordinary user's umoci has


def test_podman(image: Image, whole: Tree, podman: Podman, tmp_path: Path) -> None:
    """Written by us, and read and written again by podman."""
    image.save(tmp_path / "ours.tar", format="docker")
    podman("load", "-q", "-i", str(tmp_path / "ours.tar"))
    script = 'top=$($podman image mount debian:own); sh -euc "$1" sh "$top"'
    same(of_listing(podman.inside(script, FILES)), whole)
    podman("save", "-q", "-o", str(tmp_path / "theirs.tar"), "debian:own")
    store = Store(tmp_path / "store")
    assert Image.load(tmp_path / "theirs.tar", store=store).layers == image.layers


def test_registry(image: Image, registry: Registry, whole: Tree, tmp_path: Path) -> None:
    """Pushed, and pulled where nothing of it is."""
    name = f"{registry.address}/debian:own"
    digest = image.push(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOBOX_DATA_DIR", str(tmp_path / "data"))
        pulled = Image.pull(name)
        assert pulled.digest == digest == image.digest and pulled.id == image.id
        same(of_container(pulled), whole)
        pulled.remove()
