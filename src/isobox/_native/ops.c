/* The ops: each is one step of a plan, about one system call. What they mean is in isobox.h.
 *
 * A function here takes the decoded op and returns 0 or a negative errno. Paths "below the new root"
 * are resolved with openat2(RESOLVE_IN_ROOT), so that a symlink in an image never leads outside. */
#include "ops.h"

#include <linux/capability.h>
#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/securebits.h>
#include <linux/stat.h>

enum {
    PATH_ROOM = 4096,
    EBADMSG_ = 74,
    EEXIST_ = 17,
    ENOENT_ = 2,
    EACCES_ = 13,
    ENOSYS_ = 38,
    EPERM_ = 1,
    ENOTDIR_ = 20,
    ENAMETOOLONG_ = 36,
    EINVAL_ = 22,
    AT_FDCWD_ = -100,
    O_CREAT_ = 0100,
    O_EXCL_ = 0200,
    O_TRUNC_ = 01000,
    O_WRONLY_ = 1,
    O_CLOEXEC_ = 02000000,
#if defined(__aarch64__)
    O_DIRECTORY_ = 040000,
    O_NOFOLLOW_ = 0100000,
#else
    O_DIRECTORY_ = 0200000,
    O_NOFOLLOW_ = 0400000,
#endif
    O_PATH_ = 010000000,
    RESOLVE_IN_ROOT_ = 0x10,
    RESOLVE_NO_MAGICLINKS_ = 0x02,
    RESOLVE_NO_SYMLINKS_ = 0x04,
    AT_EMPTY_PATH_ = 0x1000,
    MOVE_EMPTY_BOTH = 0x04 | 0x40,
    MOVE_EMPTY_SOURCE = 0x04,
    MNT_DETACH_ = 2,
    FSCONFIG_FLAG_ = 0,
    FSCONFIG_STRING_ = 1,
    FSCONFIG_FD_ = 5,
    FSCONFIG_CREATE_ = 6,
    SIOCGIFFLAGS_ = 0x8913,
    SIOCSIFFLAGS_ = 0x8914,
    IFF_UP_ = 1,
    TIOCSCTTY_ = 0x540E,
    SECCOMP_SET_MODE_FILTER_ = 1,
    KEYCTL_JOIN_SESSION_KEYRING_ = 1,
};

struct decoded {
    struct isobox_op head;
    const char *str[ISOBOX_STRINGS_MAX];
    unsigned int len[ISOBOX_STRINGS_MAX];
};

int isobox_kept = -1;
int isobox_bases[ISOBOX_BASES_MAX];
unsigned int isobox_base_count;

/* gcc would otherwise see through these loops and call the functions from within themselves. */
#pragma GCC optimize("no-tree-loop-distribute-patterns")

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    unsigned char *t = to;
    const unsigned char *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memset(void *at, int byte, size_t size)
{
    unsigned char *t = at;
    while (size--)
        *t++ = (unsigned char)byte;
    return at;
}

static unsigned long length(const char *text)
{
    unsigned long n = 0;
    while (text[n])
        n++;
    return n;
}

/* Walks the strings of the op at `at`; the plan comes from the owner, yet is checked like any input. */
static long decode(const unsigned char *at, unsigned long left, struct decoded *op)
{
    unsigned long used = sizeof op->head;
    if (left < sizeof op->head)
        return -EBADMSG_;
    memcpy(&op->head, at, sizeof op->head);
    if (op->head.size > left || op->head.size < used || op->head.nstr > ISOBOX_STRINGS_MAX)
        return -EBADMSG_;
    for (unsigned int i = 0; i < ISOBOX_STRINGS_MAX; i++) {
        op->str[i] = "";
        op->len[i] = 0;
    }
    for (unsigned int i = 0; i < op->head.nstr; i++) {
        unsigned int size;
        if (op->head.size - used < sizeof size + 1)
            return -EBADMSG_;
        memcpy(&size, at + used, sizeof size);
        used += sizeof size;
        if (size > op->head.size - used - 1 || at[used + size] != 0)
            return -EBADMSG_;
        op->str[i] = (const char *)at + used;
        op->len[i] = size;
        used += size + 1;
    }
    return 0;
}

static long descriptor(const struct isobox_run *run, long long index)
{
    if (index < 0 || index >= (long long)run->nfds)
        return -EBADMSG_;
    return run->fds[index];
}

static void close_held(int *fd)
{
    if (*fd >= 0)
        SYS1(__NR_close, *fd);
    *fd = -1;
}

static long open_resolving(int root, const char *path, unsigned long flags, unsigned long resolve)
{
    struct isobox_open_how how = {flags | O_CLOEXEC_, 0, resolve | RESOLVE_NO_MAGICLINKS_};
    return SYS4(__NR_openat2, root, path, &how, sizeof how);
}

static long open_below(int root, const char *path, unsigned long flags)
{
    return open_resolving(root, path, flags, RESOLVE_IN_ROOT_);
}

/* Splits `path` into a directory, opened below the root, and the last name. */
static long open_parent(int root, const char *path, const char **name)
{
    char buffer[PATH_ROOM];
    unsigned long size = length(path), cut = size;
    while (cut > 0 && path[cut - 1] != '/')
        cut--;
    if (cut >= sizeof buffer)
        return -ENAMETOOLONG_;
    *name = path + cut;
    memcpy(buffer, path, cut);
    buffer[cut] = 0;
    return open_below(root, cut ? buffer : ".", O_PATH_ | O_DIRECTORY_);
}

/* The directory and name that a creating op works on; the host's own path when not below the root. The kernel's
 * answer is no place: a file system may say ENETDOWN, which is AT_FDCWD's number. */
static long creation_place(const struct isobox_run *run, const struct decoded *op, long *place, const char **name)
{
    *name = op->str[0];
    *place = AT_FDCWD_;
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

static long op_join(struct isobox_run *run, struct decoded *op)
{
    long fd = descriptor(run, op->head.arg[0]);
    if (fd < 0)
        return fd;
    long written = SYS3(__NR_write, fd, "0", 1);
    return written < 0 ? written : 0;
}

static long op_ids(struct decoded *op)
{
    long uid = op->head.arg[0], gid = op->head.arg[1];
    long failed = SYS3(__NR_setresgid, gid, gid, gid);
    return failed ? failed : SYS3(__NR_setresuid, uid, uid, uid);
}

static long op_groups(struct decoded *op)
{
    if (op->head.arg[0] < 0 || op->head.arg[0] > op->len[0] || op->len[0] != (unsigned long long)op->head.arg[0] * 4)
        return -EBADMSG_;
    return SYS2(__NR_setgroups, op->head.arg[0], op->str[0]);
}

static long op_loopback(void)
{
    struct {
        char name[16];
        short flags;
        char rest[22];
    } request;
    memset(&request, 0, sizeof request);
    request.name[0] = 'l';
    request.name[1] = 'o';
    long fd = SYS3(__NR_socket, 2 /* AF_INET */, 2 | O_CLOEXEC_ /* SOCK_DGRAM */, 0);
    if (fd < 0)
        return fd;
    long failed = SYS3(__NR_ioctl, fd, SIOCGIFFLAGS_, &request);
    if (failed == 0) {
        request.flags |= IFF_UP_;
        failed = SYS3(__NR_ioctl, fd, SIOCSIFFLAGS_, &request);
    }
    SYS1(__NR_close, fd);
    return failed;
}

static long op_fsopen(struct isobox_run *run, struct decoded *op)
{
    close_held(&run->context);
    long fd = SYS2(__NR_fsopen, op->str[0], 1 /* FSOPEN_CLOEXEC */);
    if (fd < 0)
        return fd;
    run->context = (int)fd;
    return 0;
}

static long op_fsconfig_fd(struct isobox_run *run, struct decoded *op)
{
    long fd = descriptor(run, op->head.arg[0]);
    if (fd < 0)
        return fd;
    return SYS5(__NR_fsconfig, run->context, FSCONFIG_FD_, op->str[0], 0, fd);
}

static void hold_tree(struct isobox_run *run, long fd)
{
    close_held(&run->tree);
    run->tree = (int)fd;
}

static long op_fsmount(struct isobox_run *run, struct decoded *op)
{
    long failed = SYS5(__NR_fsconfig, run->context, FSCONFIG_CREATE_, 0, 0, 0);
    if (failed)
        return failed;
    long fd = SYS3(__NR_fsmount, run->context, 1 /* FSMOUNT_CLOEXEC */, op->head.arg[0]);
    if (fd < 0)
        return fd;
    hold_tree(run, fd);
    close_held(&run->context);
    return 0;
}

static long op_open_tree(struct isobox_run *run, struct decoded *op)
{
    long fd;
    if (op->head.arg[1]) {
        long place = open_below(run->root, op->str[0], O_PATH_);
        if (place < 0)
            return place;
        fd = SYS3(__NR_open_tree, place, "", op->head.arg[0] | O_CLOEXEC_ | AT_EMPTY_PATH_);
        SYS1(__NR_close, place);
    } else {
        fd = SYS3(__NR_open_tree, AT_FDCWD_, op->str[0], op->head.arg[0] | O_CLOEXEC_);
    }
    if (fd < 0)
        return fd;
    hold_tree(run, fd);
    return 0;
}

static long op_take_tree(struct isobox_run *run, struct decoded *op)
{
    long fd = descriptor(run, op->head.arg[0]);
    if (fd < 0)
        return fd;
    fd = SYS3(__NR_fcntl, fd, 1030 /* F_DUPFD_CLOEXEC */, 0);
    if (fd < 0)
        return fd;
    hold_tree(run, fd);
    return 0;
}

static long op_setns(struct isobox_run *run, struct decoded *op)
{
    long fd = descriptor(run, op->head.arg[0]);
    return fd < 0 ? fd : SYS2(__NR_setns, fd, op->head.arg[1]);
}

static long op_clone_tree(struct isobox_run *run, struct decoded *op)
{
    long fd = descriptor(run, op->head.arg[0]);
    if (fd < 0)
        return fd;
    fd = SYS3(__NR_open_tree, fd, "", OPEN_TREE_CLONE | O_CLOEXEC_ | AT_EMPTY_PATH_);
    if (fd < 0)
        return fd;
    hold_tree(run, fd);
    return 0;
}

static long op_copy(struct isobox_run *run, struct decoded *op)
{
    long fd = descriptor(run, op->head.arg[0]);
    return fd < 0 ? fd : isobox_copy((int)fd, run->tree, op->str[0]);
}

static long op_keep(struct isobox_run *run)
{
    long failed = isobox_copy_end(run->tree);
    if (failed)
        return failed;
    close_held(&isobox_kept);
    long fd = SYS3(__NR_fcntl, run->tree, 1030 /* F_DUPFD_CLOEXEC */, 0);
    if (fd < 0)
        return fd;
    isobox_kept = (int)fd;
    return 0;
}

static long op_setattr(struct isobox_run *run, struct decoded *op)
{
    struct isobox_mount_attr attr = {op->head.arg[0], 0, 0, 0};
    long failed = SYS5(__NR_mount_setattr, run->tree, "", AT_EMPTY_PATH_ | op->head.arg[1], &attr, sizeof attr);
    if (failed == -ENOSYS_ || failed == -EPERM_) /* before Linux 5.12; or a filter around us forbids it */
        return isobox_remount(run->tree, op->head.arg[0], op->head.arg[1] != 0);
    return failed;
}

static long op_attach(struct isobox_run *run, struct decoded *op)
{
    long failed;
    if (op->head.arg[0] == 0) {
        failed = SYS5(__NR_move_mount, run->tree, "", AT_FDCWD_, op->str[0], MOVE_EMPTY_SOURCE);
    } else {
        unsigned long links = op->head.arg[0] == 2 ? RESOLVE_NO_SYMLINKS_ : 0;
        long target = open_resolving(run->root, op->str[0], O_PATH_, RESOLVE_IN_ROOT_ | links);
        if (target < 0)
            return target;
        failed = SYS5(__NR_move_mount, run->tree, "", target, "", MOVE_EMPTY_BOTH);
        SYS1(__NR_close, target);
    }
    return failed;
}

static long op_root(struct isobox_run *run, struct decoded *op)
{
    close_held(&run->root);
    long fd = SYS4(__NR_openat, AT_FDCWD_, op->str[0], O_PATH_ | O_DIRECTORY_ | O_CLOEXEC_, 0);
    if (fd < 0)
        return fd;
    run->root = (int)fd;
    return 0;
}

static long op_base(struct decoded *op)
{
    if (isobox_base_count >= ISOBOX_BASES_MAX)
        return -EBADMSG_;
    long fd = SYS4(__NR_openat, AT_FDCWD_, op->str[0], O_PATH_ | O_DIRECTORY_ | O_CLOEXEC_, 0);
    if (fd < 0)
        return fd;
    isobox_bases[isobox_base_count++] = (int)fd;
    return 0;
}

static long op_mkdir(struct isobox_run *run, struct decoded *op)
{
    const char *name;
    long place, failed = creation_place(run, op, &place, &name);
    if (!failed) {
        failed = SYS3(__NR_mkdirat, place, name, op->head.arg[0]);
        leave_place(place);
    }
    if (op->head.arg[2] == 2 || (failed == -EEXIST_ && op->head.arg[2]))
        failed = 0;
    return failed;
}

static long op_file(struct isobox_run *run, struct decoded *op)
{
    const char *name;
    long place, failed = creation_place(run, op, &place, &name);
    if (failed)
        return failed;
    long fd = SYS4(__NR_openat, place, name,
                   O_WRONLY_ | O_CREAT_ | (op->head.arg[2] ? O_EXCL_ : O_TRUNC_) | O_NOFOLLOW_ | O_CLOEXEC_,
                   op->head.arg[0]);
    leave_place(place);
    if (fd == -EEXIST_ && op->head.arg[2])
        return 0; /* a mount point that is there already */
    if (fd < 0)
        return fd;
    for (unsigned int done = 0; done < op->len[1];) {
        long written = SYS3(__NR_write, fd, op->str[1] + done, op->len[1] - done);
        if (written <= 0) {
            failed = written < 0 ? written : -EINVAL_;
            break;
        }
        done += (unsigned int)written;
    }
    SYS1(__NR_close, fd);
    return failed;
}

static long op_symlink(struct isobox_run *run, struct decoded *op)
{
    const char *name;
    long place, failed = creation_place(run, op, &place, &name);
    if (failed)
        return failed;
    failed = SYS3(__NR_symlinkat, op->str[1], place, name);
    leave_place(place);
    return failed;
}

static long op_mknod(struct isobox_run *run, struct decoded *op)
{
    const char *name;
    long place, failed = creation_place(run, op, &place, &name);
    if (failed)
        return failed;
    failed = SYS4(__NR_mknodat, place, name, op->head.arg[0], op->head.arg[2]);
    leave_place(place);
    return failed;
}

/* pivot_root(".", "."): see pivot_root(2), "Notes". */
static long op_pivot(struct isobox_run *run)
{
    long failed = SYS1(__NR_fchdir, run->root);
    if (!failed)
        failed = SYS2(__NR_pivot_root, ".", ".");
    if (!failed)
        failed = SYS2(__NR_umount2, ".", MNT_DETACH_);
    if (!failed)
        failed = SYS1(__NR_chdir, "/");
    close_held(&run->root);
    return failed;
}

static long op_rlimit(struct decoded *op)
{
    uint64_t limit[2] = {op->head.arg[1], op->head.arg[2]};
    return SYS4(__NR_prlimit64, 0, op->head.arg[0], limit, 0);
}

static long op_bounding(struct decoded *op)
{
    for (int capability = 0; capability < 64; capability++) {
        if (op->head.arg[0] >> capability & 1)
            continue;
        long failed = SYS5(__NR_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
        if (failed == -EINVAL_)
            return 0; /* past the kernel's last capability */
        if (failed)
            return failed;
    }
    return 0;
}

static long op_capabilities(struct decoded *op)
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

static long op_seccomp(struct decoded *op)
{
    struct {
        unsigned short count;
        const void *filter;
    } program = {(unsigned short)(op->len[0] / 8), op->str[0]};
    if (op->len[0] % 8 || op->len[0] / 8 > 4096 || op->len[0] == 0)
        return -EINVAL_;
    return SYS3(__NR_seccomp, SECCOMP_SET_MODE_FILTER_, 0, &program);
}

/* Through a link of /proc's a program would begin in a directory that one of our descriptors is open on, and
 * on v2 that is a cgroup of the host's, from where ".." leads to all of its files. */
static long op_chdir(struct decoded *op)
{
    long fd = open_resolving(AT_FDCWD_, op->str[0], O_PATH_ | O_DIRECTORY_, 0);
    if (fd < 0)
        return fd;
    long failed = SYS1(__NR_fchdir, fd);
    SYS1(__NR_close, fd);
    return failed;
}

static long op_terminal(struct decoded *op)
{
    long failed = SYS3(__NR_ioctl, 0, TIOCSCTTY_, 0);
    /* So that the user of the terminal may open it by its name, as login(1) does. */
    if (!failed)
        SYS3(__NR_fchown, 0, op->head.arg[0], -1);
    return failed;
}

static long op_streams(struct isobox_run *run, struct decoded *op)
{
    for (int target = 0; target < 3; target++) {
        long fd = descriptor(run, op->head.arg[target]);
        if (fd < 0)
            return fd;
        long failed = SYS3(__NR_dup3, fd, target, 0);
        if (failed < 0)
            return failed;
    }
    /* All are close-on-exec; but the name of the program may be a link that goes through one of them. */
    return isobox_close_from(3, isobox_ruleset);
}

/* Fills the room for pointers with the addresses of `count` strings packed in `packed`. */
static long point(char *room, const char *packed, unsigned int size, long long count)
{
    unsigned int at = 0;
    for (long long i = 0; i < count; i++) {
        const char *text = packed + at;
        while (at < size && packed[at])
            at++;
        if (at >= size)
            return -EBADMSG_;
        at++;
        memcpy(room + i * sizeof text, &text, sizeof text);
    }
    const char *end = 0;
    memcpy(room + count * sizeof end, &end, sizeof end);
    return 0;
}

static long execute(const char *file, const char *path, char *argv, char *envp)
{
    char buffer[PATH_ROOM];
    long result = -ENOENT_;
    unsigned long size = length(file);
    for (unsigned long i = 0; i < size; i++)
        if (file[i] == '/')
            return SYS3(__NR_execve, file, argv, envp);
    if (size == 0)
        return -ENOENT_;
    for (;;) {
        unsigned long part = 0;
        while (path[part] && path[part] != ':')
            part++;
        if (part + 1 + size + 1 <= sizeof buffer) {
            memcpy(buffer, path, part);
            buffer[part] = '/';
            memcpy(buffer + part + (part > 0), file, size + 1);
            long failed = SYS3(__NR_execve, buffer, argv, envp);
            if (failed == -EACCES_)
                result = failed;
            else if (failed != -ENOENT_ && failed != -ENOTDIR_)
                return failed;
        }
        path += part;
        if (*path == 0)
            return result;
        path++;
    }
}

static long op_exec(struct decoded *op)
{
    long long argc = op->head.arg[0], envc = op->head.arg[1];
    if (op->head.nstr != 5 || argc < 1 || envc < 0 || argc > ISOBOX_PAYLOAD_MAX || envc > ISOBOX_PAYLOAD_MAX ||
        op->len[2] < (unsigned long long)(argc + envc + 2) * sizeof(char *))
        return -EBADMSG_;
    /* The caller left the room in its own message: writable, ours, and read by no one else. */
    char *room = (char *)(uintptr_t)op->str[2];
    long failed = point(room, op->str[3], op->len[3], argc);
    if (!failed)
        failed = point(room + (argc + 1) * sizeof(char *), op->str[4], op->len[4], envc);
    if (failed)
        return failed;
    return execute(op->str[0], op->str[1], room, room + (argc + 1) * sizeof(char *));
}

/* keyctl(2). A kernel without keys has none to share; a filter around us that refuses the call refuses it to
 * the programs too. */
static long op_keyring(void)
{
    long serial = SYS2(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING_, 0);
    return serial >= 0 || serial == -ENOSYS_ || serial == -EPERM_ ? 0 : serial;
}

static long run_op(struct isobox_run *run, struct decoded *op)
{
    long long *arg = op->head.arg;
    switch (op->head.code) {
    case ISOBOX_OP_JOIN_CGROUP: return op_join(run, op);
    case ISOBOX_OP_UNSHARE: return SYS1(__NR_unshare, arg[0]);
    case ISOBOX_OP_IDS: return op_ids(op);
    case ISOBOX_OP_GROUPS: return op_groups(op);
    case ISOBOX_OP_HOSTNAME: return SYS2(__NR_sethostname, op->str[0], op->len[0]);
    case ISOBOX_OP_LOOPBACK: return op_loopback();
    case ISOBOX_OP_PROPAGATION: return SYS5(__NR_mount, 0, "/", 0, arg[0], 0);
    case ISOBOX_OP_FSOPEN: return op_fsopen(run, op);
    case ISOBOX_OP_FSCONFIG_STRING:
        return SYS5(__NR_fsconfig, run->context, FSCONFIG_STRING_, op->str[0], op->str[1], 0);
    case ISOBOX_OP_FSCONFIG_FLAG:
        return SYS5(__NR_fsconfig, run->context, FSCONFIG_FLAG_, op->str[0], 0, 0);
    case ISOBOX_OP_FSCONFIG_FD: return op_fsconfig_fd(run, op);
    case ISOBOX_OP_FSMOUNT: return op_fsmount(run, op);
    case ISOBOX_OP_OPEN_TREE: return op_open_tree(run, op);
    case ISOBOX_OP_TAKE_TREE: return op_take_tree(run, op);
    case ISOBOX_OP_SETATTR: return op_setattr(run, op);
    case ISOBOX_OP_ATTACH: return op_attach(run, op);
    case ISOBOX_OP_ROOT: return op_root(run, op);
    case ISOBOX_OP_BASE: return op_base(op);
    case ISOBOX_OP_MKDIR: return op_mkdir(run, op);
    case ISOBOX_OP_FILE: return op_file(run, op);
    case ISOBOX_OP_SYMLINK: return op_symlink(run, op);
    case ISOBOX_OP_MKNOD: return op_mknod(run, op);
    case ISOBOX_OP_PIVOT: return op_pivot(run);
    case ISOBOX_OP_AFFINITY: return SYS3(__NR_sched_setaffinity, 0, op->len[0], op->str[0]);
    case ISOBOX_OP_RLIMIT: return op_rlimit(op);
    case ISOBOX_OP_UMASK: return SYS1(__NR_umask, arg[0]) < 0 ? -EINVAL_ : 0;
    case ISOBOX_OP_CHDIR: return op_chdir(op);
    case ISOBOX_OP_BOUNDING: return op_bounding(op);
    case ISOBOX_OP_CAPABILITIES: return op_capabilities(op);
    case ISOBOX_OP_KEYRING: return op_keyring();
    case ISOBOX_OP_NO_NEW_PRIVS: return SYS5(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    case ISOBOX_OP_SECCOMP: return op_seccomp(op);
    case ISOBOX_OP_DUMPABLE: return SYS5(__NR_prctl, PR_SET_DUMPABLE, arg[0], 0, 0, 0);
    case ISOBOX_OP_SESSION: return SYS0(__NR_setsid) < 0 ? -EINVAL_ : 0;
    case ISOBOX_OP_TERMINAL: return op_terminal(op);
    case ISOBOX_OP_STREAMS: return op_streams(run, op);
    case ISOBOX_OP_EXEC: return op_exec(op);
    case ISOBOX_OP_LANDLOCK_RULESET: return isobox_landlock_ruleset(arg[0], arg[1], arg[2]);
    case ISOBOX_OP_LANDLOCK_PATH: return isobox_landlock_path(op->str[0], arg[0]);
    case ISOBOX_OP_LANDLOCK_PORT: return isobox_landlock_port(arg[0], arg[1]);
    case ISOBOX_OP_LANDLOCK_RESTRICT: return isobox_landlock_restrict(arg[0] != 0);
    case ISOBOX_OP_SETNS: return op_setns(run, op);
    case ISOBOX_OP_CLONE_TREE: return op_clone_tree(run, op);
    case ISOBOX_OP_COPY: return op_copy(run, op);
    case ISOBOX_OP_KEEP: return op_keep(run);
    case ISOBOX_OP_LIKE: return isobox_like(op->str[0], op->str[1]);
    default: return -EBADMSG_;
    }
}

long isobox_run_ops(struct isobox_run *run)
{
    struct decoded op;
    unsigned long at = 0;
    run->context = run->tree = -1;
    long failed = 0;
    for (run->op = 0; at < run->size; run->op++, at += op.head.size) {
        failed = decode(run->ops + at, run->size - at, &op);
        if (!failed)
            failed = run_op(run, &op);
        if (failed)
            break;
    }
    close_held(&run->context);
    close_held(&run->tree);
    return failed;
}
