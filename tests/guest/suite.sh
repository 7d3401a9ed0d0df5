#!/bin/sh
# usage: suite.sh PYTHON [PYTEST-ARGS...]      (as root in the guest of User Mode Linux)
# The tests as root, then those whose outcome depends on the user as an ordinary one, as one with a single id, and
# as one with a cgroup of its own (all its limits and its recovery are tested in sessions.sh). What the guest's kernel
# lacks is named here: a test that misses anything else fails. Tells how long each part took; fails where one has.
set -u
cd "$(dirname "$0")/../.."
python=$1
shift
export ISOBOX_MUST_WORK=1 ISOBOX_MAY_LACK=cgroup_cpuset,time_namespaces,tmpfs_xattrs,landlock_paths,landlock_ports,landlock_scopes,detached_copies
export ISOBOX_KILLS="${ISOBOX_KILLS:-40}"
# Odd hosts are made of this one: its "/" is an overlay on files that a mount shows, and hides nothing below a mount.
not_here="--ignore=tests/kernel/test_hosts.py"
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

# What is the same on every kernel: reading and writing images, the command line, text.
everywhere="--ignore-glob=tests/unit/test_images_* --ignore-glob=tests/unit/test_cli*
    --ignore=tests/unit/test_import.py --ignore=tests/unit/test_tar.py --ignore=tests/unit/test_wheel.py"

for folder in tests/unit tests/kernel tests/faults; do
    # shellcheck disable=SC2086  # a list
    part "root, $folder" "$python" -m pytest -m 'not slow' $not_here $everywhere $folder "$@"
done
kernel=tests/kernel
hostile=tests/hostile
# Overlays of many layers, and snapshots, which older kernels take otherwise.
snapshot=tests/images/test_snapshot.py
images="tests/images/test_running.py::TestKeptReady::test_many_layers $snapshot::TestContent::test_file_by_file
    $snapshot::TestLife::test_on_older_kernels $snapshot::TestNothingLeft::test_killed"
# shellcheck disable=SC2086  # a list
part "root, images" "$python" -m pytest -m 'not slow' $images "$@"
part "root, $hostile" "$python" -m pytest -m 'not slow' $hostile/test_init.py $hostile/test_privileges.py \
    $hostile/test_machine.py $hostile/test_neighbours.py "$@"
part "without births in cgroups" "$python" tests/older.py clone_into_cgroup -- \
    "$python" -m pytest -m 'not slow' $kernel/test_exec.py $kernel/test_limits.py::TestMemory \
    $kernel/test_limits.py::TestPids $kernel/test_meaning.py "$@"
of_users="$kernel/test_features.py $kernel/test_meaning.py $kernel/test_user.py $kernel/test_idmap.py
    $kernel/test_doctor.py $kernel/test_container.py $hostile/test_init.py"
# shellcheck disable=SC2086  # a list of files
part "ordinary user" sh tests/as_user.sh "$python" -m pytest -m 'not slow' $of_users $kernel/test_limits.py "$@"
# shellcheck disable=SC2086
part "ordinary user, images" sh tests/as_user.sh "$python" -m pytest -m 'not slow' \
    $kernel/test_images.py::TestRunning $kernel/test_images.py::TestOwners $images "$@"
# shellcheck disable=SC2086
part "ordinary user with one id, images" env ISOBOX_ONE_ID=1 sh tests/as_user.sh \
    "$python" -m pytest -m 'not slow' $kernel/test_images.py::TestRunning::test_one_id \
    $snapshot::TestContent::test_file_by_file "$@"
# shellcheck disable=SC2086
part "ordinary user with one id" env ISOBOX_ONE_ID=1 sh tests/as_user.sh \
    "$python" -m pytest -m 'not slow' $of_users $kernel/test_limits.py "$@"
# shellcheck disable=SC2086
part "ordinary user with cgroups" env ISOBOX_DELEGATE=1 sh tests/as_user.sh "$python" -m pytest -m 'not slow' \
    $of_users $kernel/test_exec.py "$@"
printf '%s' "$summary"
exit $failed
