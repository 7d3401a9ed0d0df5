#!/bin/sh
# usage: suite.sh PYTHON [PYTEST-ARGS...]      (as root in the guest of User Mode Linux)
# The tests as root, then those with the kernel as an ordinary user, and as one with a cgroup of its own. What
# the guest's kernel lacks is named here: a test that misses anything else fails. Tells how long each part
# took; fails where one has failed.
set -u
cd "$(dirname "$0")/../.."
python=$1
shift
export ISOBOX_MUST_WORK=1 ISOBOX_MAY_LACK=cgroup_cpuset,time_namespaces,tmpfs_xattrs
export ISOBOX_KILLS="${ISOBOX_KILLS:-40}"
summary=
failed=0

part() {
    name=$1
    shift
    echo "== $name"
    began=$(date +%s)
    "$@"
    status=$?
    [ $status = 0 ] || failed=1
    summary="$summary$name: status $status after $(($(date +%s) - began)) s
"
}

part "root" "$python" -m pytest -m 'not slow' tests/unit tests/kernel tests/faults "$@"
part "ordinary user" sh tests/as_user.sh "$python" -m pytest -m 'not slow' tests/kernel "$@"
export ISOBOX_DELEGATE=1
part "ordinary user with cgroups" sh tests/as_user.sh "$python" -m pytest -m 'not slow' tests/kernel "$@"
printf '%s' "$summary"
exit $failed
