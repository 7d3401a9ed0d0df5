#!/bin/busybox sh
# Becomes systemd, which runs the command as a service once users can log in. What a short life does not need is
# left out: no journal, no udev, no network, no timers.
. /run/guest/settings
units=/run/systemd/system
mkdir -p $units/user@.service.d
for target in sysinit local-fs basic sockets timers paths; do
    for unit in /lib/systemd/system/$target.target.wants/* /etc/systemd/system/$target.target.wants/*; do
        case $unit in *dbus* | */\*) ;; *) ln -sf /dev/null "$units/${unit##*/}" ;; esac
    done
done
ln -s /dev/null $units/modprobe@.service
: >/etc/fstab
# Without this, a user manager has cpu, memory and pids only: see "Delegation" in systemd's CGROUP_DELEGATION.md.
printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >$units/user@.service.d/delegate.conf

useradd --home-dir /home/guest --shell /bin/sh guest
chown guest: /home/guest
for ranges in /etc/subuid /etc/subgid; do
    grep -qs ^guest: $ranges || echo guest:524288:65536 >>$ranges
done
[ -z "$closed" ] || eval "chmod o+x $closed"  # in the guest only

cat >$units/guest.service <<'END'
[Unit]
Requires=dbus.socket
After=basic.target dbus.socket systemd-logind.service systemd-user-sessions.service
[Service]
ExecStart=/run/guest/run.sh
END
cat >$units/guest.target <<'END'
[Unit]
Requires=basic.target guest.service
Wants=systemd-logind.service systemd-user-sessions.service
END
exec /lib/systemd/systemd --unit=guest.target
