/* What the two sides of a start share: the parent fills it in, the child, in the same memory, reads it. */
#ifndef ISOBOX_BENCH_JOB_H
#define ISOBOX_BENCH_JOB_H

#include "box.h"

/* Where things are in the mount namespace that containers are cloned from; see staging_namespace(). */
#define STAGE_SCRATCH "/scratch"

struct job {
    struct box_options options;
    struct box *box;
    const char *mode;  /* argv[1] of init */
    int child_runs;    /* else a failure is the parent's own, and ends it */
    int go;            /* read end: a byte comes when the id maps are written */
    int out;           /* the program's standard output */
    int socket;        /* for an init that serves, or -1 */
    int program, init; /* O_PATH */
    int tasks[MAX_GROUPS], task_count;
};
extern struct job job;

/* Runs in the child, from its first instruction to the exec. */
int child_body(void *unused);

/* Mounting, for both sides. `must` names the step that failed: in the child by leaving word and exiting. */
long must(const char *step, long result);
long new_mount(const char *type, const char *const *options, unsigned attributes);
void attach(long mount, long where, const char *target);
long clone_tree(const char *path);
void inside(const char *phase);

#endif
