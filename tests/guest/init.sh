#!/bin/busybox sh
# PID 1 of the guest: makes an overlay on the host's files its "/", mounts what a machine has, with cgroup v2 and
# nothing else, and runs the command, or becomes systemd, which does.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
run=$(dirname "$0")
. "$run/settings"
hard=nosuid,nodev,noexec
/bin/busybox mount -t proc proc /proc
modules=$modules/$(uname -r)
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
cp "$run/command" "$run/settings" "$run"/*.sh /run/guest
ln -sfn /proc/self/fd /dev/fd
mount -o bind "$modules" "/lib/modules/$(uname -r)"
# The kernel too loads modules by this program.
[ -x /sbin/modprobe ] || ln -s /bin/busybox /sbin/modprobe
for module in loop fuse tun; do modprobe -q $module 2>/dev/null || :; done
mkdir -p /run/disk /var/lib/isobox /home/guest
if [ "$machine" = uml ]; then
    consoles="/dev/tty1 /dev/tty2"
    disk=/dev/ubda
    for number in 0 1 2; do stty raw -echo <"/dev/tty$number"; done
    mount -t hostfs -o "$checkout" checkout "$checkout"
else
    modprobe virtio_blk
    consoles=$(echo /dev/vport*p1 /dev/vport*p2)
    disk=/dev/vda
    mount -t virtiofs checkout "$checkout"
    if [ "$files" -lt 200000 ]; then
        while sleep 1; do
            remembered=$(sed -n 's/^fuse_inode *\([0-9]*\).*/\1/p' /proc/slabinfo)
            [ "$remembered" -lt $((files / 3)) ] || echo 2 >/proc/sys/vm/drop_caches
        done &
    fi
fi
# The disk takes what must be on one: layers and images, for which neither the host's files nor an overlay serve.
mount -t ext4 $disk /run/disk
mkdir -m 1777 /run/disk/tmp /run/disk/var-tmp
mkdir -m 755 /run/disk/isobox /run/disk/home
mount -o bind /run/disk/tmp /tmp
mount -o bind /run/disk/var-tmp /var/tmp
mount -o bind /run/disk/isobox /var/lib/isobox
mount -o bind /run/disk/home /home/guest
for device in null zero full random urandom tty ptmx fuse net/tun; do chmod 666 /dev/$device 2>/dev/null; done
hostname guest
ip link set lo up
echo "consoles='$consoles'" >>/run/guest/settings
if [ -n "$systemd" ]; then
    exec /run/guest/systemd.sh
fi
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
/run/guest/run.sh
while :; do sleep 1000; done
