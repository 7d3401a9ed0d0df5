"""Odd hosts, made with namespaces: on each isobox works, or says why not and what would help.

And the doctor says the same thing in the same words, for a container as for one with a limit or a layer on
disk; and nothing is left. Each row of `HOSTS` runs as each user that it names (`USERS`); what a shell script
does to the host happens in a mount namespace of the test's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen

from isobox.findings import Item, Report
from isobox.host import features

HERE = Path(__file__).resolve()
CHECKOUT = HERE.parents[2]
STRANGER = "65533"

# Says what becomes of containers on its host, what the doctor says, and what both leave.
PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import isobox, leftovers

def attempt(**options):
    try:
        result = isobox.run(["true"], timeout=30, **options)
    except isobox.UnsupportedError as error:
        return [error.feature, error.why, error.remedy]
    assert result.ok, result
    return []

def everything():
    kinds = {"plain": {}, "limit": {"memory": "64M"}, "disk": {"upper": "disk"}}
    found = {"attempts": {kind: attempt(**options) for kind, options in kinds.items()}}
    found["doctor"] = {i.name: [i.status, i.why, i.remedy, i.needed] for i in isobox.doctor().items}
    return found

seen = os.path.exists("/proc/self") and os.readlink("/proc/self") == str(os.getpid())
attempt(), attempt(upper="disk")  # what is made once and kept
if seen:
    leftovers.close_shared()
    before = leftovers.count()
found = everything()
if seen:
    leftovers.close_shared()
    found["left"] = leftovers.settled(before)
print("FOUND" + json.dumps(found))
"""

# Refuses new user namespaces as Docker's default profile does, and runs a program.
FILTER = """
import ctypes, os, sys
from isobox.security import seccomp
profile = {"defaultAction": "SCMP_ACT_ALLOW",
           "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                        {"names": ["clone", "unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [
                            {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0x10000000,
                             "valueTwo": 0x10000000}]}]}
text = ctypes.create_string_buffer(seccomp.compile(profile))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
program = Program((len(text) - 1) // 8, ctypes.addressof(text))
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execvp(sys.argv[1], sys.argv[1:])
"""

BUBBLEWRAP = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--unshare-user", "--proc", "/proc"]
# The commands that make a namespace for the host, and those that turn into the user of isobox in it.
USERS: Mapping[str, tuple[list[str], list[str]]] = {
    "as is": (["env"], ["env"]),
    "root": (["unshare", "--mount", "--propagation", "private"], ["env"]),
    "root of a pid namespace": (["unshare", "--mount", "--pid", "--fork", "--mount-proc"], ["env"]),
    "root of a user namespace": (["unshare", "--user", "--map-root-user", "--mount"], ["env"]),
    "user of a user namespace": (
        ["unshare", "--user", "--map-root-user", "--mount"],
        ["unshare", "--user", "--map-user=1000", "--map-group=1000"],
    ),
    "root in bubblewrap": (BUBBLEWRAP, ["env"]),
    "ordinary user in bubblewrap": (BUBBLEWRAP, ["env"]),
    "ordinary user": (
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc"],
        ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"],
    ),
}
FOR_ROOT = ("root", "root in bubblewrap", "root of a pid namespace", "ordinary user")
EVERYBODY = ("root", "root of a user namespace", "user of a user namespace", "ordinary user")
ORDINARY = ("user of a user namespace", "ordinary user")
RANGE = f'echo {STRANGER}:1000000:65536 >"$scratch/subids"\n' + "".join(
    f'[ -e /etc/sub{kind}id ] && mount --bind "$scratch/subids" /etc/sub{kind}id\n' for kind in "ug"
)
NAME = f"""
{{ cat /etc/passwd; echo stranger:x:{STRANGER}:{STRANGER}::/:/bin/sh; }} >"$scratch/passwd"
mount --bind "$scratch/passwd" /etc/passwd
"""
# Python and the checkout at their places, where those lie below a directory that is closed to others (/root).
SHOW = """
IFS='
'
for path in $shown; do mkdir -p "$scratch/shown$path"; mount --rbind "$path" "$scratch/shown$path"; done
for path in $shown; do
    closed=
    above=$path
    while [ "$above" != / ]; do
        above=$(dirname "$above")
        case $(stat -c %A "$above") in *[xt]) ;; *) closed=$above ;; esac
    done
    [ -z "$closed" ] || mount -t tmpfs -o mode=755 none "$closed"
    [ -d "$path" ] || { mkdir -p "$path"; mount --rbind "$scratch/shown$path" "$path"; }
done
unset IFS
"""
PROGRAMS = 'for name in newuidmap newgidmap; do cp "$(command -v $name)" "$scratch"; done\n'
# A root directory on another file system, with this machine's top level mounted or made in it.
NEW_ROOT = """
for path in ${top-/*}; do
    if [ -L "$path" ]; then cp -P "$path" "$root"
    elif [ -d "$path" ]; then [ -d "$root$path" ] || mkdir "$root$path"; mount --rbind "$path" "$root$path"
    fi
done
"""
PIVOT = 'cd "$root"; mkdir -p old-root; pivot_root . old-root; cd /; umount -l /old-root\n'


@frozen
class Host:
    """A host: a shell script makes it, with $scratch a directory of its own.

    `refused` is the feature that containers do not get here (empty: they work), `remedy` a pattern of what is
    to help; `limit` and `disk` are the same for a memory limit and a layer on disk. `items` are the doctor's
    other items and their status.
    """

    name: str
    script: str
    refused: str = ""
    remedy: str = ""
    limit: str | None = None
    disk: str | None = None
    items: Mapping[str, str] = field(factory=dict)
    users: tuple[str, ...] = EVERYBODY
    needs: str = ""
    env: Mapping[str, str] = field(factory=dict)


HOSTS = (
    Host("as it is", "", users=("as is", *EVERYBODY)),
    Host(
        "a container of bubblewrap, which masks parts of /proc for root",
        "",
        refused="/proc and /sys",
        remedy="unmasked",
        users=("root in bubblewrap",),
    ),
    Host("a container of bubblewrap", "", users=("ordinary user in bubblewrap",)),
    Host(
        "cgroups mounted read-only",
        "awk '/ - cgroup2? /{print $5}' /proc/self/mountinfo | xargs -n 1 mount -o remount,bind,ro",
        limit="mount it writable|run it as|delegated",
        items={"cgroups": "degraded", "pids limit": "missing"},
    ),
    Host(
        "no cgroups mounted",
        "mount -t tmpfs none /sys/fs/cgroup",
        limit="mount it writable|run it as|delegated",
        items={"memory limit": "missing", "pids limit": "missing"},
    ),
    Host(
        "user namespaces switched off",
        # The setting belongs to the user namespace that it is written in; the one for the user counts too.
        "case $user in user*) most=1;; *) most=0;; esac; echo $most >/proc/sys/user/max_user_namespaces",
        refused="user namespace",
        remedy=r"sysctl -w user\.max_user_namespaces",
        users=("root of a user namespace", "user of a user namespace"),
    ),
    Host(
        "a seccomp filter that refuses user namespaces",
        'set -- "$python" -c "$filter" "$@"',
        refused="user namespace",
        remedy="seccomp=unconfined.*inside isobox, with seccomp=None",
        users=("as is", "root", "root of a user namespace", "ordinary user"),  # the other is made under it
    ),
    Host(
        "a chroot",
        f'root="$scratch/root"; mkdir "$root"\n{NEW_ROOT}set -- chroot "$root" "$@"',
        refused="user namespace",
        remedy="chroot",
        users=("root", "root of a user namespace"),
    ),
    Host(
        "a masked /proc",
        "mount -t tmpfs none /proc/sys/fs",
        refused="/proc and /sys",
        remedy="systempaths=unconfined",
        items={"overlay": "works", "user namespace": "works"},
    ),
    Host(
        "no /sys",
        "umount -l /sys",
        refused="/proc and /sys",
        remedy="mount -t sysfs",
        users=("root", "ordinary user"),
    ),
    Host("a covered /sys", "mount -t tmpfs none /sys", refused="/proc and /sys", remedy="unmasked"),
    Host(
        "no /proc",
        "umount -l /proc",
        refused="/proc and /sys",
        remedy="mount -t proc proc /proc",
        users=("root",),
    ),
    Host(
        "/proc of another PID namespace",
        "umount /proc",
        refused="/proc and /sys",
        remedy="mount -t proc proc /proc",
        users=("root of a pid namespace",),
    ),
    Host(
        "/proc with hidepid",
        "umount /proc; mount -t proc -o hidepid=2 proc /proc",
        users=("root of a pid namespace", "ordinary user"),
    ),
    Host(
        "nothing may be run from memory",
        "echo 2 >/proc/sys/vm/memfd_noexec",
        refused="isobox-init",
        remedy="vm.memfd_noexec",
        users=("root of a pid namespace", "ordinary user"),
        needs="/proc/sys/vm/memfd_noexec",
    ),
    Host(
        "a noexec /tmp",
        "mount -t tmpfs -o noexec,nosuid,nodev none /tmp",
        env={"ISOBOX_STATE_DIR": "/tmp/state", "ISOBOX_DATA_DIR": "/tmp/data"},
    ),
    Host(
        "a state folder that nobody may write to",
        'mkdir "$scratch/closed"; mount -t tmpfs -o ro none "$scratch/closed"',
        refused="state folder",
        remedy="ISOBOX_STATE_DIR",
        items={"user namespace": "works"},
        env={"ISOBOX_STATE_DIR": "$scratch/closed/state"},
    ),
    Host(
        "a home that is read-only, and no XDG_RUNTIME_DIR",
        "mount -t tmpfs -o mode=1777 none /tmp; mkdir /tmp/home; mount -t tmpfs -o ro none /tmp/home\n"
        "unset ISOBOX_STATE_DIR ISOBOX_DATA_DIR XDG_DATA_HOME; export XDG_RUNTIME_DIR=/no/such",
        disk="ISOBOX_DATA_DIR",
        users=ORDINARY,
        env={"HOME": "/tmp/home"},
    ),
    Host(
        "a root file system in memory",
        f'root="$scratch/root"; mkdir "$root"; mount -t tmpfs none "$root"\n{NEW_ROOT}{PIVOT}',
    ),
    Host(
        "a root file system that is an overlay, and all data on it",
        # In a user namespace "/" can't be a layer: the mounts below it would be left out.
        'case $user in *"user namespace")\nlower=$scratch/low more=,userxattr top="/*";;\n'
        '*) lower=/ more= top="/dev /proc /sys /srv /tmp /root /home /opt";; esac\n'
        'mkdir "$scratch/memory" "$scratch/low"; mount -t tmpfs none "$scratch/memory"\n'
        'cd "$scratch/memory"; mkdir up work root; root=$PWD/root\n'
        'mount -t overlay -o "lowerdir=$lower,upperdir=$PWD/up,workdir=$PWD/work$more" none "$root"\n'
        f'mkdir -m 1777 "$root/here"\n{NEW_ROOT}{PIVOT}',
        disk="ext4, xfs, btrfs or tmpfs",
        items={"overlay": "works"},
        env={"ISOBOX_STATE_DIR": "/here/state", "ISOBOX_DATA_DIR": "/here/data"},
    ),
    Host(
        "a user without a name, which newuidmap wants to know",
        RANGE,
        refused="id ranges",
        remedy="/etc/subuid",
        items={"user namespace": "works"},
        users=("ordinary user",),
        needs="newuidmap",
    ),
    Host(
        "ids from newuidmap",
        RANGE + NAME,
        items={"id ranges": "works"},
        users=("ordinary user",),
        needs="newuidmap",
    ),
    Host(
        "newuidmap that is not setuid",
        f"{RANGE}{NAME}{PROGRAMS}",
        items={"id ranges": "degraded"},
        users=("ordinary user",),
        needs="newuidmap",
        env={"PATH": "$scratch:/usr/sbin:/usr/bin:/sbin:/bin"},
    ),
    Host(
        "no newuidmap",
        RANGE,
        items={"id ranges": "degraded"},
        users=("ordinary user",),
        env={"PATH": "/no/such"},
    ),
    Host(
        "no_new_privs",
        f'{RANGE}set -- setpriv --no-new-privs "$@"',
        items={"id ranges": "degraded"},
        users=("ordinary user",),
    ),
    Host(
        "no range of ids",
        "mount --bind /dev/null /etc/subuid",
        items={"id ranges": "degraded"},
        users=ORDINARY,
    ),
    Host(
        "an /etc/subuid of nonsense",
        f'{RANGE}printf "$user\\n::::\\n{STRANGER}:x:y\\n{STRANGER}:-5:9\\n\\0\\377:\\n" >"$scratch/subids"',
        items={"id ranges": "degraded"},
        users=ORDINARY,
    ),
)


@pytest.fixture
def scratch() -> Iterator[Path]:
    # Not tmp_path: that is closed to others, and so to containers of root.
    with tempfile.TemporaryDirectory(prefix="isobox-hosts-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def obstacle(host: Host, user: str) -> str:
    """Why this host can't be made here for this user, or ""."""
    if user in FOR_ROOT and os.geteuid() != 0:
        return "for root only"
    if user == "ordinary user in bubblewrap" and os.geteuid() == 0:
        return "for ordinary users only"
    if user != "root" and not features().user_namespaces:
        return features().why("user_namespaces")
    if shutil.which(USERS[user][0][0]) is None:
        return f"there is no {USERS[user][0][0]}"
    if host.needs and not os.path.exists(host.needs) and shutil.which(host.needs) is None:
        return f"there is no {host.needs}"
    if user == "ordinary user" and not HERE.stat().st_mode & stat.S_IROTH:
        return "ordinary users may not read this checkout"
    if host.name == "no /proc" and os.environ.get("ISOBOX_SANITIZED") == "1":
        return "AddressSanitizer finds its options in /proc"
    return ""


def found_on(host: Host, user: str, scratch: Path) -> dict[str, Any]:
    """Make the host and run `PROGRAM` there."""
    own = scratch / "own"
    own.mkdir()
    if user == "ordinary user":
        os.chown(own, int(STRANGER), int(STRANGER))
    told = {
        "scratch": str(scratch),
        "user": user,
        "python": sys.executable,
        "filter": FILTER,
        "shown": f"{sys.base_prefix}\n{CHECKOUT}",
    }
    places = {"ISOBOX_STATE_DIR": f"{own}/state", "ISOBOX_DATA_DIR": f"{own}/data"}
    around, become = USERS[user]
    # What the host's env says is for isobox only: the shell needs its PATH.
    changed = [f"{name}={value.replace('$scratch', str(scratch))}" for name, value in host.env.items()]
    command = [*become, "env", *changed, sys.executable, "-c", PROGRAM, str(CHECKOUT / "tests")]
    done = subprocess.run(
        [
            *around,
            "sh",
            "-euc",
            f'cd /\n{SHOW if user == "ordinary user" else ""}{host.script}\nexec "$@"',
            "sh",
            *command,
        ],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **places, **told},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.partition("FOUND")[2])
    return found


@pytest.mark.parametrize(
    ("host", "user"),
    [pytest.param(host, user, id=f"{host.name}-{user}") for host in HOSTS for user in host.users],
)
def test_what_containers_and_the_doctor_say(host: Host, user: str, scratch: Path) -> None:
    if reason := obstacle(host, user):
        pytest.skip(reason)
    found = found_on(host, user, scratch)
    items = {name: Item(name, *rest) for name, rest in found["doctor"].items()}
    said = "\n".join(map(str, items.values()))

    for kind, error in found["attempts"].items():
        if not error:
            continue
        # The same words, whoever is asked.
        feature, why, remedy = error
        assert remedy, f"{kind}: {feature}: {why}"
        item = items['upper="disk"' if feature == "data folder" else feature]
        assert (item.status, item.why, item.remedy) == ("missing", why, remedy), f"{kind}: {error}\n{said}"
    plain, limit, disk = (found["attempts"][kind] for kind in ("plain", "limit", "disk"))
    if host.refused:
        assert plain and plain[0] == host.refused and re.search(host.remedy, plain[2]), f"{plain}\n{said}"
        assert items["container"].status == "missing" and not Report(tuple(items.values())).ok
        assert (items["container"].why, items["container"].remedy) == (f"{plain[0]}: {plain[1]}", plain[2])
    else:
        assert not plain, plain
        assert items["container"].status == "works" and Report(tuple(items.values())).ok, said
        for error, wanted, name in ((limit, host.limit, "memory limit"), (disk, host.disk, 'upper="disk"')):
            assert bool(error) == (items[name].status != "works"), f"{error}\n{items[name]}"
            if wanted is not None:
                assert error and re.search(wanted, error[2]), error
    for name, status in host.items.items():
        assert items[name].status == status, said
    for item in items.values():
        assert item.status == "works" or (item.why and item.remedy), f"nothing helps against {item}"

    assert not found.get("left"), found["left"]
    for folder in scratch.glob("own/*/owners"):
        assert os.listdir(folder) == []


# Asks everything and then, inside a container of its own, the same again.
NESTED = (
    PROGRAM
    + """
depth, checkout, options = int(sys.argv[2]), os.path.dirname(sys.argv[1]), json.loads(sys.argv[3])
if depth:
    shown = isobox.Mount.bind(checkout, checkout, read_only=True)
    with isobox.Container("host", mounts=[shown], **options) as container:
        again = [sys.executable, "-c", sys.orig_argv[2], sys.argv[1], str(depth - 1), sys.argv[3]]
        inside = container.exec(again, env={"ISOBOX_DATA_DIR": "/tmp/data"}, text=True, timeout=100)
        assert inside.ok, inside
        print(inside.stdout)
    leftovers.close_shared()
    left = leftovers.settled(before)
    assert not left, left
"""
)
OPEN = {"seccomp": None, "cap_add": ["ALL"]}


def levels(user: str, depth: int, scratch: Path, **options: Any) -> list[dict[str, Any]]:
    """What is found in containers in containers, the outermost first."""
    places = {"ISOBOX_STATE_DIR": f"{scratch}/state", "ISOBOX_DATA_DIR": f"{scratch}/data"}
    program = [sys.executable, "-c", NESTED, str(CHECKOUT / "tests"), str(depth), json.dumps(options)]
    done = subprocess.run(
        [*USERS[user][0], *program],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **places},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    return [json.loads(line.removeprefix("FOUND")) for line in lines]


@pytest.mark.requires("user_namespaces", "overlay")
@pytest.mark.parametrize("user", ["as is", "root of a user namespace"])
@pytest.mark.parametrize("options", [OPEN, OPEN | {"network": "host"}], ids=["network none", "network host"])
def test_three_deep(user: str, options: dict[str, Any], scratch: Path) -> None:
    """Where the outer ones let it; the third lies on more overlays than the kernel stacks."""
    found = levels(user, 3, scratch, **options)
    assert len(found) == 4
    for level in found:
        assert level["attempts"]["plain"] == [] and level["doctor"]["container"][0] == "works", level
        assert level["left"] == []
    for level in found[1:]:
        # The outer container shows no cgroups that its programs could write to.
        feature, why, remedy = level["attempts"]["limit"]
        assert level["doctor"][feature][:3] == ["missing", why, remedy]
        assert level["attempts"]["disk"][0] == 'upper="disk"'


@pytest.mark.requires("user_namespaces", "overlay")
def test_inside_a_container_that_is_closed(scratch: Path) -> None:
    """As containers are: the seccomp filter hides what makes another."""
    inside = levels("as is", 1, scratch)[1]
    feature, why, remedy = inside["attempts"]["plain"]
    assert feature == "kernel" and "cap_add=['ALL']" in remedy and inside["left"] == []
    assert inside["doctor"][feature][:3] == ["missing", why, remedy]


@pytest.mark.requires("user_namespaces", "overlay", "mount_setattr")
def test_an_image_that_lies_on_two_overlays(scratch: Path) -> None:
    """A folder is not shown read-only instead: that would be another image."""
    places = {"ISOBOX_STATE_DIR": f"{scratch}/state", "ISOBOX_DATA_DIR": f"{scratch}/data"}
    code = """
import sys
import isobox
depth = int(sys.argv[1])
checkout = sys.argv[2]
if depth:
    shown = isobox.Mount.bind(checkout, checkout, read_only=True)
    with isobox.Container("host", mounts=[shown], seccomp=None, cap_add=["ALL"]) as outer:
        again = [sys.executable, "-c", sys.orig_argv[2], str(depth - 1), checkout]
        print(outer.exec(again, text=True, timeout=60, check=True).stdout)
else:
    try:
        isobox.run(["/bin/true"], "/usr")
    except isobox.UnsupportedError as error:
        print(error.feature, error.why, error.remedy)
"""
    done = subprocess.run(
        [*USERS["root of a user namespace"][0], sys.executable, "-c", code, "2", str(CHECKOUT)],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("overlay") and "two at most" in done.stdout, done.stdout + done.stderr
