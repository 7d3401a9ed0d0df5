/* The ops that make something at a path: on the host, or below the new root, where no symlink of an image leads
 * outside. Symlinks are never followed at the last name. */
#include "ops.h"

enum {
    PATH_ROOM = 4096,
};

long isobox_open_resolving(int root, const char *path, unsigned long flags, unsigned long resolve)
{
    struct isobox_open_how how = {flags | O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS};
    return SYS4(__NR_openat2, root, path, &how, sizeof how);
}

long isobox_open_below(int root, const char *path, unsigned long flags)
{
    return isobox_open_resolving(root, path, flags, RESOLVE_IN_ROOT);
}

/* Splits `path` into a directory, opened below the root, and the last name. */
static long open_parent(int root, const char *path, const char **name)
{
    char buffer[PATH_ROOM];
    unsigned long size = isobox_length(path), cut = size;
    while (cut > 0 && path[cut - 1] != '/')
        cut--;
    if (cut >= sizeof buffer)
        return -ENAMETOOLONG;
    *name = path + cut;
    memcpy(buffer, path, cut);
    buffer[cut] = 0;
    return isobox_open_below(root, cut ? buffer : ".", O_PATH | O_DIRECTORY);
}

/* The directory and name that a creating op works on; the host's own path when not below the root. The kernel's
 * answer is no place: a file system may say ENETDOWN, which is AT_FDCWD's number. */
static long creation_place(const struct isobox_run *run, const struct isobox_decoded *op, long *place,
                           const char **name)
{
    *name = op->str[0];
    *place = AT_FDCWD;
    if (op->head.arg[1] == 0)
        return 0;
    long directory = open_parent(run->root, op->str[0], name);
    if (directory < 0)
        return directory;
    *place = directory;
    return 0;
}

static void leave_place(long directory)
{
    if (directory >= 0)
        SYS1(__NR_close, directory);
}

long isobox_op_mkdir(struct isobox_run *run, struct isobox_decoded *op)
{
    const char *name;
    long place, failed = creation_place(run, op, &place, &name);
    if (!failed) {
        failed = SYS3(__NR_mkdirat, place, name, op->head.arg[0]);
        leave_place(place);
    }
    if (op->head.arg[2] == 2 || (failed == -EEXIST && op->head.arg[2]))
        failed = 0;
    return failed;
}

long isobox_op_file(struct isobox_run *run, struct isobox_decoded *op)
{
    const char *name;
    long place, failed = creation_place(run, op, &place, &name);
    if (failed)
        return failed;
    long fd = SYS4(__NR_openat, place, name,
                   O_WRONLY | O_CREAT | (op->head.arg[2] ? O_EXCL : O_TRUNC) | O_NOFOLLOW | O_CLOEXEC,
                   op->head.arg[0]);
    leave_place(place);
    if (fd == -EEXIST && op->head.arg[2])
        return 0; /* a mount point that is there already */
    if (fd < 0)
        return fd;
    for (unsigned int done = 0; done < op->len[1];) {
        long written = SYS3(__NR_write, fd, op->str[1] + done, op->len[1] - done);
        if (written <= 0) {
            failed = written < 0 ? written : -EINVAL;
            break;
        }
        done += (unsigned int)written;
    }
    SYS1(__NR_close, fd);
    return failed;
}

long isobox_op_symlink(struct isobox_run *run, struct isobox_decoded *op)
{
    const char *name;
    long place, failed = creation_place(run, op, &place, &name);
    if (failed)
        return failed;
    failed = SYS3(__NR_symlinkat, op->str[1], place, name);
    leave_place(place);
    return failed;
}

long isobox_op_mknod(struct isobox_run *run, struct isobox_decoded *op)
{
    const char *name;
    long place, failed = creation_place(run, op, &place, &name);
    if (failed)
        return failed;
    failed = SYS4(__NR_mknodat, place, name, op->head.arg[0], op->head.arg[2]);
    leave_place(place);
    return failed;
}
