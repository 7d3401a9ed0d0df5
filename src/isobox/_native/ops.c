/* Carrying out a plan: each op is read and checked, then done, one after the other until the first that fails. What
 * they mean is in isobox.h; how they are done is in mounts.c, places.c, process.c, program.c, copy.c, remount.c and
 * landlock.c.
 *
 * A function for an op takes the decoded op and returns 0 or a negative errno. */
#include "ops.h"

#include <linux/prctl.h>

/* Walks the strings of the op at `at`; the plan comes from the owner, yet is checked like any input. */
static long decode(const unsigned char *at, unsigned long left, struct isobox_decoded *op)
{
    unsigned long used = sizeof op->head;
    if (left < sizeof op->head)
        return -EBADMSG;
    memcpy(&op->head, at, sizeof op->head);
    if (op->head.size > left || op->head.size < used || op->head.nstr > ISOBOX_STRINGS_MAX)
        return -EBADMSG;
    for (unsigned int i = 0; i < ISOBOX_STRINGS_MAX; i++) {
        op->str[i] = "";
        op->len[i] = 0;
    }
    for (unsigned int i = 0; i < op->head.nstr; i++) {
        unsigned int size;
        if (op->head.size - used < sizeof size + 1)
            return -EBADMSG;
        memcpy(&size, at + used, sizeof size);
        used += sizeof size;
        if (size > op->head.size - used - 1 || at[used + size] != 0)
            return -EBADMSG;
        op->str[i] = (const char *)at + used;
        op->len[i] = size;
        used += size + 1;
    }
    return 0;
}

long isobox_descriptor(const struct isobox_run *run, long long index)
{
    if (index < 0 || index >= (long long)run->nfds)
        return -EBADMSG;
    return run->fds[index];
}

static long run_op(struct isobox_run *run, struct isobox_decoded *op)
{
    long long *arg = op->head.arg;
    switch (op->head.code) {
    case ISOBOX_OP_JOIN_CGROUP: return isobox_op_join(run, op);
    case ISOBOX_OP_UNSHARE: return SYS1(__NR_unshare, arg[0]);
    case ISOBOX_OP_IDS: return isobox_op_ids(op);
    case ISOBOX_OP_GROUPS: return isobox_op_groups(op);
    case ISOBOX_OP_HOSTNAME: return SYS2(__NR_sethostname, op->str[0], op->len[0]);
    case ISOBOX_OP_LOOPBACK: return isobox_op_loopback();
    case ISOBOX_OP_PROPAGATION: return SYS5(__NR_mount, 0, "/", 0, arg[0], 0);
    case ISOBOX_OP_FSOPEN: return isobox_op_fsopen(run, op);
    case ISOBOX_OP_FSCONFIG_STRING:
        return SYS5(__NR_fsconfig, run->context, FSCONFIG_SET_STRING, op->str[0], op->str[1], 0);
    case ISOBOX_OP_FSCONFIG_FLAG:
        return SYS5(__NR_fsconfig, run->context, FSCONFIG_SET_FLAG, op->str[0], 0, 0);
    case ISOBOX_OP_FSCONFIG_FD: return isobox_op_fsconfig_fd(run, op);
    case ISOBOX_OP_FSMOUNT: return isobox_op_fsmount(run, op);
    case ISOBOX_OP_OPEN_TREE: return isobox_op_open_tree(run, op);
    case ISOBOX_OP_TAKE_TREE: return isobox_op_take_tree(run, op);
    case ISOBOX_OP_SETATTR: return isobox_op_setattr(run, op);
    case ISOBOX_OP_ATTACH: return isobox_op_attach(run, op);
    case ISOBOX_OP_ROOT: return isobox_op_root(run, op);
    case ISOBOX_OP_BASE: return isobox_op_base(op);
    case ISOBOX_OP_MKDIR: return isobox_op_mkdir(run, op);
    case ISOBOX_OP_FILE: return isobox_op_file(run, op);
    case ISOBOX_OP_SYMLINK: return isobox_op_symlink(run, op);
    case ISOBOX_OP_MKNOD: return isobox_op_mknod(run, op);
    case ISOBOX_OP_PIVOT: return isobox_op_pivot(run);
    case ISOBOX_OP_AFFINITY: return SYS3(__NR_sched_setaffinity, 0, op->len[0], op->str[0]);
    case ISOBOX_OP_RLIMIT: return isobox_op_rlimit(op);
    case ISOBOX_OP_UMASK: return SYS1(__NR_umask, arg[0]) < 0 ? -EINVAL : 0;
    case ISOBOX_OP_CHDIR: return isobox_op_chdir(op);
    case ISOBOX_OP_BOUNDING: return isobox_op_bounding(op);
    case ISOBOX_OP_CAPABILITIES: return isobox_op_capabilities(op);
    case ISOBOX_OP_KEYRING: return isobox_op_keyring();
    case ISOBOX_OP_NO_NEW_PRIVS: return SYS5(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    case ISOBOX_OP_SECCOMP: return isobox_op_seccomp(op);
    case ISOBOX_OP_DUMPABLE: return SYS5(__NR_prctl, PR_SET_DUMPABLE, arg[0], 0, 0, 0);
    case ISOBOX_OP_SESSION: return SYS0(__NR_setsid) < 0 ? -EINVAL : 0;
    case ISOBOX_OP_TERMINAL: return isobox_op_terminal(op);
    case ISOBOX_OP_STREAMS: return isobox_op_streams(run, op);
    case ISOBOX_OP_EXEC: return isobox_op_exec(op);
    case ISOBOX_OP_LANDLOCK_RULESET: return isobox_landlock_ruleset(arg[0], arg[1], arg[2]);
    case ISOBOX_OP_LANDLOCK_PATH: return isobox_landlock_path(op->str[0], arg[0]);
    case ISOBOX_OP_LANDLOCK_PORT: return isobox_landlock_port(arg[0], arg[1]);
    case ISOBOX_OP_LANDLOCK_RESTRICT: return isobox_landlock_restrict(arg[0] != 0);
    case ISOBOX_OP_SETNS: return isobox_op_setns(run, op);
    case ISOBOX_OP_CLONE_TREE: return isobox_op_clone_tree(run, op);
    case ISOBOX_OP_COPY: return isobox_op_copy(run, op);
    case ISOBOX_OP_KEEP: return isobox_op_keep(run);
    case ISOBOX_OP_LIKE: return isobox_like(op->str[0], op->str[1]);
    case ISOBOX_OP_MOUNT: return isobox_op_mount(run, op);
    default: return -EBADMSG;
    }
}

long isobox_run_ops(struct isobox_run *run)
{
    struct isobox_decoded op;
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
    isobox_let_go(&run->context);
    isobox_let_go(&run->tree);
    return failed;
}
