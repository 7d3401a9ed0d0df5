#!/bin/sh
# usage: sessions.sh PYTHON      (as root, in a guest with systemd)
# The tests in sessions: of an ordinary user in a delegated scope, which takes the longest; meanwhile, on the
# other CPU, of root, of that user, whom systemd gives a scope where it is asked for one, and of that user without.
# All run, whatever fails in one.
set -u
python=$1
kernel=tests/kernel
export ISOBOX_MUST_WORK=1 ISOBOX_MAY_LACK= ISOBOX_KILLS="${ISOBOX_KILLS:-8}"

tests() { # OPTIONS-OF-SESSION FILES...
    options=$1
    shift
    # shellcheck disable=SC2086  # a list
    /run/guest/session.sh $options "$python" -m pytest -p no:cacheprovider -q -m 'not slow' "$@"
}

others() {
    status=0
    echo "== root"
    tests '' $kernel/test_doctor.py::test_here $kernel/test_doctor.py::test_all_limits_work_for_root \
        $kernel/test_scope.py $kernel/test_limits.py::TestCpu $kernel/test_limits.py::TestMemory \
        $kernel/test_limits.py::TestPids tests/faults/test_kill.py || status=1
    echo "== an ordinary user who is given a scope"
    tests --user $kernel/test_features.py || status=1
    tests --user $kernel/test_scope.py || status=1
    echo "== an ordinary user to whom nothing is delegated"
    export ISOBOX_SYSTEMD_SCOPE=0
    ISOBOX_MAY_LACK=cgroups,cgroup_cpu,cgroup_cpuset,cgroup_memory,cgroup_pids,cgroup_io,cgroup_freezer
    tests --user $kernel/test_limits.py $kernel/test_user.py $kernel/test_idmap.py $kernel/test_doctor.py \
        tests/faults/test_kill.py::test_the_next_start_collects || status=1
    return $status
}

others >/run/guest/others 2>&1 &
status=0
echo "== an ordinary user in a delegated scope"
tests '--user --delegate' $kernel/test_limits.py $kernel/test_reasons.py $kernel/test_cgroups.py \
    $kernel/test_user.py::test_the_filter_takes_no_process_from_a_few $kernel/test_doctor.py::test_here \
    $kernel/test_doctor.py::test_nothing_is_left tests/faults/test_kill.py || status=1
wait $! || status=1
cat /run/guest/others
exit $status
