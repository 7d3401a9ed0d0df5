/* A plan and its ops: ops.c carries it out; how each op is done is in mounts.c, places.c, process.c, program.c, copy.c,
 * remount.c and landlock.c. */
#ifndef ISOBOX_OPS_H
#define ISOBOX_OPS_H

#include "isobox.h"
#include "uapi.h"

/* A plan being carried out. On failure `op` is the index of the op that failed. */
struct isobox_run {
    const unsigned char *ops;
    unsigned long size;
    const int *fds;
    unsigned int nfds;
    int op;
    int context; /* fsopen's descriptor, -1 */
    int tree;    /* the mount in hand, detached until ATTACH; -1 */
    int root;    /* the new root until PIVOT, -1; the caller's from one run to the next */
};

/* 0, or a negative errno. */
long isobox_run_ops(struct isobox_run *run);

/* An op as it is read: strings that it has not are "". */
struct isobox_decoded {
    struct isobox_op head;
    const char *str[ISOBOX_STRINGS_MAX];
    unsigned int len[ISOBOX_STRINGS_MAX];
};

/* The descriptor that came along as number `index`, or -EBADMSG. */
long isobox_descriptor(const struct isobox_run *run, long long index);

static inline void isobox_let_go(int *place)
{
    if (*place >= 0)
        SYS1(__NR_close, *place);
    *place = -1;
}

/* Keeps what a call has opened instead of what is in `place`; where it failed, returns its error. */
static inline long isobox_hold(int *place, long opened)
{
    if (opened < 0)
        return opened;
    isobox_let_go(place);
    *place = (int)opened;
    return 0;
}

/* Opens a path, close-on-exec: resolved from `root` by RESOLVE_*, never through a magic link of /proc. */
long isobox_open_resolving(int root, const char *path, unsigned long flags, unsigned long resolve);
long isobox_open_below(int root, const char *path, unsigned long flags);

/* mounts.c */
long isobox_op_fsopen(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_fsconfig_fd(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_fsmount(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_open_tree(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_mount(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_take_tree(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_clone_tree(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_copy(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_keep(struct isobox_run *run);
long isobox_op_setattr(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_attach(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_root(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_base(struct isobox_decoded *op);
long isobox_op_pivot(struct isobox_run *run);

/* places.c */
long isobox_op_mkdir(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_file(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_symlink(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_mknod(struct isobox_run *run, struct isobox_decoded *op);

/* process.c */
long isobox_op_join(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_setns(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_ids(struct isobox_decoded *op);
long isobox_op_groups(struct isobox_decoded *op);
long isobox_op_loopback(void);
long isobox_op_rlimit(struct isobox_decoded *op);
long isobox_op_bounding(struct isobox_decoded *op);
long isobox_op_capabilities(struct isobox_decoded *op);
long isobox_op_seccomp(struct isobox_decoded *op);
long isobox_op_keyring(void);
long isobox_op_chdir(struct isobox_decoded *op);
long isobox_op_terminal(struct isobox_decoded *op);

/* program.c */
long isobox_op_streams(struct isobox_run *run, struct isobox_decoded *op);
long isobox_op_exec(struct isobox_decoded *op);

/* Sets MOUNT_ATTR_* (RDONLY, NOSUID, NODEV, NOEXEC) on an attached mount, and on all below it, by mount(2). */
long isobox_remount(int tree, long long attributes, int recursive);

/* The ruleset in hand, -1: made and filled by a setup, taken on by the programs; see the ops LANDLOCK_*. */
extern int isobox_ruleset;
long isobox_landlock_ruleset(long long fs, long long net, long long scoped);
long isobox_landlock_path(const char *path, long long access);
long isobox_landlock_port(long long access, long long port);
long isobox_landlock_restrict(int drop);

/* Copies the directory `from` (O_PATH will do) into `top` as `name`, which isn't there; what several of them share
 * by hard links, they share in the copies too, until isobox_copy_end. */
long isobox_copy(int from, int top, const char *name);
long isobox_copy_end(int top);

/* Gives a directory the owner, mode, times and attributes of another. */
long isobox_like(const char *path, const char *model);

/* A mount that SETUP's answer brings along, -1: none. */
extern int isobox_kept;

/* Directories that file requests may start from: index 0 is "/" and is not stored. */
extern int isobox_bases[ISOBOX_BASES_MAX];
extern unsigned int isobox_base_count;

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *at, int byte, size_t size);
unsigned long isobox_length(const char *text);

#endif
