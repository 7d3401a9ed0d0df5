"""Layers of all shapes, and trees of them, file by file."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from archives import entry, folder, link, packed
from programs import ROOT

CAPABILITY = "\x01\x00\x00\x02\x00\x20" + "\x00" * 14  # VFS_CAP_REVISION_2 with CAP_NET_RAW
OPAQUE = ".wh..wh..opq"
HARD = tarfile.LNKTYPE


def dated(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A layer in which everything has a time and an owner of its own."""
    for number, (info, _) in enumerate(members):
        info.mtime = 1_600_000_000.25 + number  # type: ignore[assignment]
        info.uid, info.gid = 1000 + number, 2000 + number
    return packed(*members)


def attributes(member: tuple[tarfile.TarInfo, bytes], **values: str) -> tuple[tarfile.TarInfo, bytes]:
    names = {name.replace("_", "."): value for name, value in values.items()}
    member[0].pax_headers = {f"SCHILY.xattr.{name}": value for name, value in names.items()}
    return member


def shaped(*, empty: bool = True) -> bytes:
    """All that one layer may have. `empty`: an attribute without a value too, which pax means to be none."""
    capable = {"security_capability": CAPABILITY} if ROOT else {}
    members = [
        folder("./", 0o755),
        folder("usr", 0o755),
        attributes(folder("usr/bin", 0o755), user_where="here"),
        attributes(entry("usr/bin/ping", b"\x7fELF" * 40_000, mode=0o755), **capable),
        entry("usr/bin/su", b"su", mode=0o4755 if ROOT else 0o755),
        link("usr/bin/ping6", "usr/bin/ping", HARD),
        folder("etc", 0o751),
        attributes(
            entry("etc/passwd", b"root\n", mode=0o640),
            **{"user_mime": "text\nplain", **({"user_empty": ""} if empty else {})},
        ),
        entry("etc/empty", mode=0o400),
        link("etc/hard", "usr/bin/su", HARD),
        link("bin", "usr/bin"),
        link("dangling", "/no/such/" + "x" * 200),
        folder("tmp", 0o1777),
        entry("pipe", type=tarfile.FIFOTYPE, mode=0o622),
        *(folder("/".join(["d" * 60] * depth), 0o500 + depth) for depth in range(1, 7)),
        entry("/".join([*["d" * 60] * 6, "n" * 200]), b"deep"),
        entry("\udcff\udcfe", b"not UTF-8"),
    ]
    return dated(*members)


def compared(tree: dict[str, dict[str, Any]], *, folders: bool = True) -> dict[str, dict[str, Any]]:
    """What has to be the same; owners for root only. `folders`: their times too."""
    for known in tree.values():
        if not ROOT:
            del known["owner"]
        if known["mode"].startswith("d") and not folders:
            del known["mtime"]
    return tree


STACK = [
    [
        folder("etc", 0o751),
        entry("etc/motd", b"1"),
        entry("etc/gone", b"1"),
        folder("opt", 0o700),
        folder("opt/a", 0o750),
        entry("opt/a/old", b"1"),
        entry("opt/b", b"1"),
        folder("anew"),
        entry("anew/old", b"1"),
        folder("becomes-a-file"),
        entry("becomes-a-file/x", b"1"),
        entry("becomes-a-folder", b"1"),
        link("becomes-real", "etc"),
        entry("linked", b"1"),
        link("linked-too", "linked", HARD),
    ],
    [
        folder("etc", 0o755),
        entry("etc/.wh.gone"),
        entry("etc/.wh.never"),
        folder("opt", 0o711),
        folder("opt/a", 0o755),
        entry("opt/a/new", b"2"),
        entry(f"opt/{OPAQUE}"),
        folder("anew", 0o555),
        entry("anew/new", b"2"),
        entry(".wh.anew"),
        entry(".wh.becomes-a-file"),
        entry("becomes-a-file", b"2"),
        entry(".wh.becomes-a-folder"),
        folder("becomes-a-folder"),
        entry("becomes-a-folder/y", b"2"),
        entry(".wh.linked"),
        entry(".wh.becomes-real"),
        folder("becomes-real"),
        entry("becomes-real/z", b"2"),
    ],
    [
        folder("etc", 0o700),
        attributes(entry("etc/motd", b"3"), user_a="3"),
        entry("etc/gone", b"back"),
        folder("opt", 0o711),
        entry("opt/.wh.a"),
    ],
]
_SHOWN = """
import os, subprocess, sys
options, target, listing, *layers = sys.argv[1:]
for number, layer in enumerate(layers):
    if os.path.isfile(layer):
        from isobox import _native
        layers[number] = f"/proc/{os.getpid()}/fd/{_native.mount_file('erofs', layer)}"
options = f"lowerdir={':'.join(layers)}{options}"
subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)
sys.argv = [listing, target]
exec(open(listing).read())
"""


def merged(target: Path, layers: list[Path], options: str) -> dict[str, dict[str, Any]]:
    """What an overlay of the layers shows, mounted where nobody else sees it."""
    target.mkdir()
    script = [
        sys.executable,
        "-c",
        _SHOWN,
        options,
        str(target),
        str(Path(__file__).parent / "listing.py"),
    ]
    unshare = ["unshare", "--mount", *([] if ROOT else ["--user", "--map-root-user"])]
    done = subprocess.run([*unshare, *script, *map(str, layers)], check=True, capture_output=True, text=True)
    target.rmdir()
    tree: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return tree
