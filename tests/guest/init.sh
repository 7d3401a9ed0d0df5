#!/bin/busybox sh
# PID 1 of the guest: makes an overlay on the host's files its "/", mounts what a machine has, with cgroup v2 and
# nothing else, runs the command, tells its status on the second console, and waits to be ended.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. "$(dirname "$0")/settings"
run=$(dirname "$0")
hard=nosuid,nodev,noexec
/bin/busybox mount -t proc proc /proc
modules=/usr/lib/uml/modules/$(uname -r)
mount -t tmpfs -o mode=755 upper /mnt
mkdir /mnt/upper /mnt/work /mnt/root
insmod "$modules/kernel/fs/overlayfs/overlay.ko"
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root
cd /mnt/root
mount -t devtmpfs dev dev
mount -t proc -o $hard proc proc
pivot_root . mnt
cd /
umount -l /mnt

mount -t sysfs -o $hard sysfs /sys
mount -t cgroup2 -o $hard,nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /dev/mqueue "/lib/modules/$(uname -r)"
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/guest
cp "$run/command" /run/guest/command
ln -sfn /proc/self/fd /dev/fd
for number in 0 1 2; do stty raw -echo <"/dev/tty$number"; done
mount -o bind "$modules" "/lib/modules/$(uname -r)"
modprobe -q loop 2>/dev/null || :
# The disk takes what must be on one: layers and images, for which neither hostfs nor an overlay serves.
mkdir -p /run/disk /var/lib/isobox
mount -t ext4 /dev/ubda /run/disk
mkdir -m 1777 /run/disk/tmp /run/disk/var-tmp
mkdir -m 755 /run/disk/isobox
mount -o bind /run/disk/tmp /tmp
mount -o bind /run/disk/var-tmp /var/tmp
mount -o bind /run/disk/isobox /var/lib/isobox
mount -t hostfs -o "$checkout" checkout "$checkout"
chmod 666 /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/ptmx
hostname guest
ip link set lo up
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
# Through a pipe: what is not meant for a person should not see a terminal.
mkfifo /run/guest/said
cat /run/guest/said >/dev/tty1 &
relay=$!
/run/guest/command >/run/guest/said 2>&1 </dev/null
status=$?
for _ in $(seq 20); do
    kill -0 $relay 2>/dev/null || break
    sleep 0.1
done
sync
echo "exit $status" >/dev/tty2
while :; do sleep 1000; done
