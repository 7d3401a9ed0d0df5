/* The ops that mount: a file system is configured in a context (FSOPEN ... FSMOUNT), or a tree of mounts is opened,
 * taken or copied; either becomes the mount in hand, which is attached. PIVOT makes of the new root "/".
 *
 * Paths "below the new root" are resolved with openat2(RESOLVE_IN_ROOT), so that a symlink in an image never leads
 * outside. */
#include "ops.h"

int isobox_kept = -1;
int isobox_bases[ISOBOX_BASES_MAX];
unsigned int isobox_base_count;

long isobox_op_fsopen(struct isobox_run *run, struct isobox_decoded *op)
{
    return isobox_hold(&run->context, SYS2(__NR_fsopen, op->str[0], FSOPEN_CLOEXEC));
}

long isobox_op_fsconfig_fd(struct isobox_run *run, struct isobox_decoded *op)
{
    long fd = isobox_descriptor(run, op->head.arg[0]);
    return fd < 0 ? fd : SYS5(__NR_fsconfig, run->context, FSCONFIG_SET_FD, op->str[0], 0, fd);
}

long isobox_op_fsmount(struct isobox_run *run, struct isobox_decoded *op)
{
    long failed = SYS5(__NR_fsconfig, run->context, FSCONFIG_CMD_CREATE, 0, 0, 0);
    if (!failed)
        failed = isobox_hold(&run->tree, SYS3(__NR_fsmount, run->context, FSMOUNT_CLOEXEC, op->head.arg[0]));
    if (!failed)
        isobox_let_go(&run->context);
    return failed;
}

long isobox_op_open_tree(struct isobox_run *run, struct isobox_decoded *op)
{
    long flags = op->head.arg[0] | O_CLOEXEC;
    if (!op->head.arg[1])
        return isobox_hold(&run->tree, SYS3(__NR_open_tree, AT_FDCWD, op->str[0], flags));
    long place = isobox_open_below(run->root, op->str[0], O_PATH);
    if (place < 0)
        return place;
    long failed = isobox_hold(&run->tree, SYS3(__NR_open_tree, place, "", flags | AT_EMPTY_PATH));
    SYS1(__NR_close, place);
    return failed;
}

/* mount(2), whose options are a page; a value of fsconfig(2) has 255 bytes. The first flags of both are the same. */
long isobox_op_mount(struct isobox_run *run, struct isobox_decoded *op)
{
    long failed = SYS5(__NR_mount, op->str[0], op->str[1], op->str[0], op->head.arg[0], op->str[2]);
    return failed ? failed : isobox_hold(&run->tree, SYS3(__NR_open_tree, AT_FDCWD, op->str[1], O_CLOEXEC));
}

long isobox_op_take_tree(struct isobox_run *run, struct isobox_decoded *op)
{
    long fd = isobox_descriptor(run, op->head.arg[0]);
    return fd < 0 ? fd : isobox_hold(&run->tree, SYS3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, 0));
}

long isobox_op_clone_tree(struct isobox_run *run, struct isobox_decoded *op)
{
    long fd = isobox_descriptor(run, op->head.arg[0]);
    if (fd < 0)
        return fd;
    return isobox_hold(&run->tree, SYS3(__NR_open_tree, fd, "", OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH));
}

long isobox_op_copy(struct isobox_run *run, struct isobox_decoded *op)
{
    long fd = isobox_descriptor(run, op->head.arg[0]);
    return fd < 0 ? fd : isobox_copy((int)fd, run->tree, op->str[0]);
}

long isobox_op_keep(struct isobox_run *run)
{
    long failed = isobox_copy_end(run->tree);
    return failed ? failed : isobox_hold(&isobox_kept, SYS3(__NR_fcntl, run->tree, F_DUPFD_CLOEXEC, 0));
}

long isobox_op_setattr(struct isobox_run *run, struct isobox_decoded *op)
{
    struct isobox_mount_attr attr = {op->head.arg[0], 0, 0, 0};
    long failed = SYS5(__NR_mount_setattr, run->tree, "", AT_EMPTY_PATH | op->head.arg[1], &attr, sizeof attr);
    if (failed == -ENOSYS || failed == -EPERM) /* before Linux 5.12; or a filter around us forbids it */
        return isobox_remount(run->tree, op->head.arg[0], op->head.arg[1] != 0);
    return failed;
}

long isobox_op_attach(struct isobox_run *run, struct isobox_decoded *op)
{
    const unsigned int both = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    if (op->head.arg[0] == 0)
        return SYS5(__NR_move_mount, run->tree, "", AT_FDCWD, op->str[0], MOVE_MOUNT_F_EMPTY_PATH);
    unsigned long links = op->head.arg[0] == 2 ? RESOLVE_NO_SYMLINKS : 0;
    long target = isobox_open_resolving(run->root, op->str[0], O_PATH, RESOLVE_IN_ROOT | links);
    if (target < 0)
        return target;
    long failed = SYS5(__NR_move_mount, run->tree, "", target, "", both);
    SYS1(__NR_close, target);
    return failed;
}

static long open_directory(const char *path)
{
    return SYS4(__NR_openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
}

long isobox_op_root(struct isobox_run *run, struct isobox_decoded *op)
{
    return isobox_hold(&run->root, open_directory(op->str[0]));
}

long isobox_op_base(struct isobox_decoded *op)
{
    if (isobox_base_count >= ISOBOX_BASES_MAX)
        return -EBADMSG;
    long fd = open_directory(op->str[0]);
    if (fd < 0)
        return fd;
    isobox_bases[isobox_base_count++] = (int)fd;
    return 0;
}

/* pivot_root(".", "."): see pivot_root(2), "Notes". */
long isobox_op_pivot(struct isobox_run *run)
{
    long failed = SYS1(__NR_fchdir, run->root);
    if (!failed)
        failed = SYS2(__NR_pivot_root, ".", ".");
    if (!failed)
        failed = SYS2(__NR_umount2, ".", MNT_DETACH);
    if (!failed)
        failed = SYS1(__NR_chdir, "/");
    isobox_let_go(&run->root);
    return failed;
}
