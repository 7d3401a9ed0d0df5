#!/bin/sh
# usage: as_user.sh COMMAND...      (as root)
# Runs a command of the tests as an ordinary user with a subuid range, made for it and removed
# afterwards. With ISOBOX_ONE_ID=1 the user has no such range, so that its containers have one id. With
# ISOBOX_DELEGATE=1 it gets a cgroup of its own in each hierarchy and starts in it, so that it can set limits.
# Where that user could not read this checkout or the Python of .venv (they lie below /root, say), they are
# shown to it at their own paths in a mount namespace of this script's own.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd -P)

if [ "$(id -u)" != 0 ]; then
    echo "as_user.sh: only root can make a user" >&2
    exit 2
fi
if ! command -v useradd >/dev/null 2>&1; then
    echo "as_user.sh: no useradd here, so the tests were not run as an ordinary user" >&2
    [ "${ISOBOX_MUST_WORK:-}" != 1 ] || exit 1
    exit 0
fi
if [ "${ISOBOX_AS_USER:-}" != inside ]; then
    ISOBOX_AS_USER=inside exec unshare --mount --propagation private sh "$here/tests/as_user.sh" "$@"
fi

# One user for each run, so that two runs do not meet; those of runs that were killed are removed.
for old in $(sed -n 's/^\(isobox-test-[0-9]*\):.*/\1/p' /etc/passwd); do
    [ -d "/proc/${old#isobox-test-}" ] || userdel --remove "$old" 2>/dev/null || :
done
user=isobox-test-$$
scratch=$(mktemp -d /tmp/isobox-as-user.XXXXXX)
chmod 755 "$scratch"
[ -e /etc/subuid ] || touch /etc/subuid /etc/subgid
ranges=
[ "${ISOBOX_ONE_ID:-}" != 1 ] || ranges='--key SUB_UID_COUNT=0 --key SUB_GID_COUNT=0'
# shellcheck disable=SC2086  # options
useradd $ranges --create-home --home-dir "$scratch/home" --shell /bin/sh "$user"
uid=$(id -u "$user")
if [ -z "$ranges" ] && ! grep -q "^$user:" /etc/subuid; then
    usermod --add-subuids 300000000-300065535 --add-subgids 300000000-300065535 "$user"
fi

delegated=
back=
given=
# Make cgroups below our own, give them to the user, and go there.
delegate() {
    while IFS=: read -r _ controllers path; do
        case $controllers in name=*) continue ;; esac
        found=$(awk -v wanted="$controllers" '{
            for (i = 7; $i != "-"; i++);
            if (wanted == "" ? $(i + 1) == "cgroup2" \
                : $(i + 1) == "cgroup" && index("," $(i + 3) ",", "," wanted ",")) { print $4, $5; exit }
        }' /proc/self/mountinfo)
        [ -n "$found" ] || continue
        own="${found#* }/${path#"${found%% *}"}"
        if [ -n "$controllers" ]; then delegate_v1 "$own"; else delegate_v2 "$own"; fi
    done < /proc/self/cgroup
}

delegate_v1() {
    mkdir "$1/$user"
    delegated="$delegated $1/$user"
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$1/$file" ] || cat "$1/$file" > "$1/$user/$file"
    done
    chown -R "$user" "$1/$user"
    back="$back $1/tasks"
    echo 0 > "$1/$user/tasks"
}

# "Model of Delegation" in the kernel's cgroup-v2.rst. One that holds processes hands out no controllers, but
# for the root: the user's group lies in the nearest one above ours that can.
delegate_v2() {
    above=$1
    while [ -e "$above/cgroup.type" ] && [ -n "$(cat "$above/cgroup.procs")" ]; do
        above=$(dirname "$above")
    done
    [ -n "$(cat "$above/cgroup.controllers")" ] || return 0 # v1 has them all
    for controller in $(cat "$above/cgroup.controllers"); do
        case " $(cat "$above/cgroup.subtree_control") " in *" $controller "*) continue ;; esac
        echo "+$controller" > "$above/cgroup.subtree_control"
        given="$given -$controller"
    done
    giver=$above
    mkdir "$above/$user"
    delegated="$delegated $above/$user"
    chown "$user" "$above/$user"
    for file in cgroup.procs cgroup.threads cgroup.subtree_control; do
        chown "$user" "$above/$user/$file"
    done
    back="$back $1/cgroup.procs"
    echo 0 > "$above/$user/cgroup.procs"
}

# Remove a group and those below it, once what was killed in them is gone.
remove_group() {
    for _ in $(seq 50); do
        find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || :
        [ -d "$1" ] || return 0
        sleep 0.1
    done
    echo "as_user.sh: $1 stays in use" >&2
}

finish() {
    trap '' INT TERM
    for file in $back; do
        echo 0 > "$file"
    done
    for status in /proc/[0-9]*/status; do
        if [ "$(sed -n 's/^Uid:[[:space:]]*\([0-9]*\).*/\1/p' "$status" 2>/dev/null)" = "$uid" ]; then
            pid=${status#/proc/}
            kill -KILL "${pid%/status}" 2>/dev/null || :
        fi
    done
    for group in $delegated; do
        remove_group "$group"
    done
    for controller in $given; do
        echo "$controller" > "$giver/cgroup.subtree_control" || :
    done
    userdel "$user" 2>/dev/null || :
    rm -rf --one-file-system "$scratch/home" "$scratch/copy" "/tmp/isobox-$uid" "/tmp/pytest-of-$user"
    # Not by rm: the checkout itself is mounted in there.
    for shown in "$scratch/shown"/*; do
        umount --lazy "$shown" 2>/dev/null || :
        rmdir "$shown" 2>/dev/null || :
    done
    rmdir "$scratch/shown" "$scratch" 2>/dev/null || :
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

as_user() {
    setpriv --reuid "$user" --regid "$user" --init-groups -- "$@"
}

# Hold a folder at a place of our own: what is mounted over what lies above it may hide it.
hold() {
    mkdir -p "$scratch/shown/$1"
    mount --rbind "$2" "$scratch/shown/$1"
}

# Show what is held under the name $1 at the path $2 to the user, whatever lies above that.
show() {
    hidden=
    parent=$2
    while [ "$parent" != / ]; do
        parent=$(dirname "$parent")
        as_user test -x "$parent" || hidden=$parent
    done
    [ -z "$hidden" ] || mount -t tmpfs -o mode=755 isobox-test "$hidden"
    [ -d "$2" ] || mkdir -p "$2"
    mount --rbind "$scratch/shown/$1" "$2"
}

python=$1
prefix=$(realpath "$("$python" -c 'import sys; print(sys.base_prefix)')")
hold prefix "$prefix"
hold here "$here"
as_user test -x "$prefix/bin" || show prefix "$prefix"
[ -d "$here/tests" ] && as_user test -r "$here/tests" || show here "$here"
readable='cat src/isobox/*.py tests/*.py >/dev/null && "$1" -c "import cffi"'
cd "$here"
if ! as_user sh -c "$readable" sh "$python" 2>/dev/null; then
    # Files are readable for root only (a umask of 077): a copy with wider permissions, at the same path.
    cp -a "$scratch/shown/here" "$scratch/copy"
    chmod -R go+rX "$scratch/copy"
    hold copy "$scratch/copy"
    show copy "$here"
    cd "$here"
fi

may_lack=${ISOBOX_MAY_LACK:-}
[ -z "$ranges" ] || may_lack=$may_lack,id_ranges
if [ "${ISOBOX_DELEGATE:-}" = 1 ]; then
    delegate
    if [ -z "$delegated" ]; then
        echo "as_user.sh: no cgroup hierarchy with controllers here, so nothing was delegated and nothing run" >&2
        [ "${ISOBOX_MUST_WORK:-}" != 1 ] || exit 1
        exit 0
    fi
else # an ordinary user has cgroups only where they were delegated
    may_lack=$may_lack,cgroups,cgroup_cpu,cgroup_cpuset,cgroup_memory,cgroup_pids,cgroup_io,cgroup_freezer
fi
set +e
as_user env -i \
    HOME="$scratch/home" USER="$user" LOGNAME="$user" LANG="${LANG:-C.UTF-8}" PATH="$PATH" \
    PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY="$scratch/home/.hypothesis" \
    ${CI:+CI="$CI"} ${ISOBOX_MUST_WORK:+ISOBOX_MUST_WORK="$ISOBOX_MUST_WORK"} \
    ${ISOBOX_PATIENCE:+ISOBOX_PATIENCE="$ISOBOX_PATIENCE"} ${ISOBOX_RECORD:+ISOBOX_RECORD="$ISOBOX_RECORD"} \
    ISOBOX_MAY_LACK="$may_lack" \
    "$@"
