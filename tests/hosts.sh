#!/bin/sh
# usage: hosts.sh PYTHON [PYTEST-ARGS...]      (as root)
# What docs/reference/hosts.md says, and how programs that misbehave end, as each kind of user on this host. With
# ISOBOX_RECORD=FOLDER, which all of them can write to, what is found is kept there.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
set -- "$python" -m pytest -p no:cacheprovider -q tests/kernel/test_features.py tests/kernel/test_meaning.py "$@"
set -x
"$@"
sh tests/as_user.sh "$@"
ISOBOX_ONE_ID=1 sh tests/as_user.sh "$@"
ISOBOX_DELEGATE=1 sh tests/as_user.sh "$@"
