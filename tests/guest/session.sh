#!/bin/sh
# usage: session.sh [--user] [--delegate] COMMAND...      (as root, in a guest with systemd)
# Runs a command in a login session: of root or, with --user, of an ordinary user with a subuid range. With
# --delegate it is in a scope of its own below that user's (or the machine's) systemd, which hands the cgroup over.
set -eu
user=root
manager=
delegate=
while :; do
    case $1 in
    --user) user=guest manager=--user ;;
    --delegate) delegate=yes ;;
    *) break ;;
    esac
    shift
done
[ -z "$delegate" ] || set -- systemd-run $manager --scope --quiet -p Delegate=yes -- "$@"
passed=$(env | sed -n 's/^\(CI\|LANG\|PATH\|PYTHON[A-Z]*\|ISOBOX_[A-Z_]*\)=.*/--setenv=\1/p')
# shellcheck disable=SC2086  # a list of options
exec systemd-run --quiet --wait --pipe --collect --same-dir $passed -p PAMName=login --uid="$user" -- "$@"
