#!/bin/busybox sh
# Runs the command in the guest: what it says goes to the first console, its exit status to the second.
. /run/guest/settings
set -- $consoles
# Through a pipe: what is not meant for a person should not see a terminal.
mkfifo /run/guest/said
cat /run/guest/said >"$1" &
relay=$!
/run/guest/command >/run/guest/said 2>&1 </dev/null
status=$?
for _ in $(seq 20); do
    kill -0 $relay 2>/dev/null || break
    sleep 0.1
done
sync
echo "exit $status" >"$2"
