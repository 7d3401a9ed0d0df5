/* isobox-init's parts: init.c (PID 1: requests, reaping), ops.c (carrying out a plan), remount.c,
 * landlock.c, copy.c. */
#ifndef ISOBOX_OPS_H
#define ISOBOX_OPS_H

#include "isobox.h"
#include "syscalls.h"

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

#endif
