#!/bin/sh
# usage: v1_only.sh COMMAND...      (as root)
# Runs a command on this host as if it had cgroup v1 only: in a mount namespace of its own, the v2
# hierarchy of a hybrid host is not mounted. Where there is no v1, nothing is run.
set -eu
if [ "${ISOBOX_V1_ONLY:-}" != inside ]; then
    ISOBOX_V1_ONLY=inside exec unshare --mount --propagation private sh "$0" "$@"
fi
unset ISOBOX_V1_ONLY
points() { sed -n "s/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - $1 .*/\1/p" /proc/self/mountinfo; }
if [ -z "$(points cgroup)" ]; then
    echo "v1_only.sh: no hierarchy of cgroup v1 here, so nothing was run" >&2
    exit 0
fi
for point in $(points cgroup2); do
    umount --lazy "$point"
done
exec "$@"
