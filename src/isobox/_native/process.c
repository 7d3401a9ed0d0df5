/* The ops that change the process itself: where it belongs, who it is, what it may do. */
#include "ops.h"

#include <asm/ioctls.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>

long isobox_op_join(struct isobox_run *run, struct isobox_decoded *op)
{
    long fd = isobox_descriptor(run, op->head.arg[0]);
    if (fd < 0)
        return fd;
    long written = SYS3(__NR_write, fd, "0", 1);
    return written < 0 ? written : 0;
}

long isobox_op_setns(struct isobox_run *run, struct isobox_decoded *op)
{
    long fd = isobox_descriptor(run, op->head.arg[0]);
    return fd < 0 ? fd : SYS2(__NR_setns, fd, op->head.arg[1]);
}

long isobox_op_ids(struct isobox_decoded *op)
{
    long uid = op->head.arg[0], gid = op->head.arg[1];
    long failed = SYS3(__NR_setresgid, gid, gid, gid);
    return failed ? failed : SYS3(__NR_setresuid, uid, uid, uid);
}

long isobox_op_groups(struct isobox_decoded *op)
{
    if (op->head.arg[0] < 0 || op->head.arg[0] > op->len[0] || op->len[0] != (unsigned long long)op->head.arg[0] * 4)
        return -EBADMSG;
    return SYS2(__NR_setgroups, op->head.arg[0], op->str[0]);
}

long isobox_op_loopback(void)
{
    struct {
        char name[16];
        short flags;
        char rest[22];
    } request;
    memset(&request, 0, sizeof request);
    request.name[0] = 'l';
    request.name[1] = 'o';
    long fd = SYS3(__NR_socket, 2 /* AF_INET */, 2 | O_CLOEXEC /* SOCK_DGRAM */, 0);
    if (fd < 0)
        return fd;
    long failed = SYS3(__NR_ioctl, fd, SIOCGIFFLAGS, &request);
    if (failed == 0) {
        request.flags |= IFF_UP;
        failed = SYS3(__NR_ioctl, fd, SIOCSIFFLAGS, &request);
    }
    SYS1(__NR_close, fd);
    return failed;
}

long isobox_op_rlimit(struct isobox_decoded *op)
{
    uint64_t limit[2] = {op->head.arg[1], op->head.arg[2]};
    return SYS4(__NR_prlimit64, 0, op->head.arg[0], limit, 0);
}

long isobox_op_bounding(struct isobox_decoded *op)
{
    for (int capability = 0; capability < 64; capability++) {
        if (op->head.arg[0] >> capability & 1)
            continue;
        long failed = SYS5(__NR_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
        if (failed == -EINVAL)
            return 0; /* past the kernel's last capability */
        if (failed)
            return failed;
    }
    return 0;
}

long isobox_op_capabilities(struct isobox_decoded *op)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    uint64_t set = op->head.arg[0];
    long failed = SYS2(__NR_capget, &header, data);
    if (failed)
        return failed;
    SYS5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int half = 0; half < 2; half++) {
        uint32_t bits = (uint32_t)(set >> (32 * half)) & data[half].permitted;
        data[half].effective = bits;
        data[half].permitted = bits;
        data[half].inheritable = 0;
    }
    return SYS2(__NR_capset, &header, data);
}

long isobox_op_seccomp(struct isobox_decoded *op)
{
    struct {
        unsigned short count;
        const void *filter;
    } program = {(unsigned short)(op->len[0] / 8), op->str[0]};
    if (op->len[0] % 8 || op->len[0] / 8 > 4096 || op->len[0] == 0)
        return -EINVAL;
    return SYS3(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

/* keyctl(2). A kernel without keys has none to share; a filter around us that refuses the call refuses it to
 * the programs too. */
long isobox_op_keyring(void)
{
    long serial = SYS2(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    return serial >= 0 || serial == -ENOSYS || serial == -EPERM ? 0 : serial;
}

/* Through a link of /proc's a program would begin in a directory that one of our descriptors is open on, and
 * on v2 that is a cgroup of the host's, from where ".." leads to all of its files. */
long isobox_op_chdir(struct isobox_decoded *op)
{
    long fd = isobox_open_resolving(AT_FDCWD, op->str[0], O_PATH | O_DIRECTORY, 0);
    if (fd < 0)
        return fd;
    long failed = SYS1(__NR_fchdir, fd);
    SYS1(__NR_close, fd);
    return failed;
}

long isobox_op_terminal(struct isobox_decoded *op)
{
    long failed = SYS3(__NR_ioctl, 0, TIOCSCTTY, 0);
    /* So that the user of the terminal may open it by its name, as login(1) does. */
    if (!failed)
        SYS3(__NR_fchown, 0, op->head.arg[0], -1);
    return failed;
}
