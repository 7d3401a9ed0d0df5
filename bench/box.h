/* One container made and ended with nothing but system calls: the work that isobox does, at the kernel's price. */
#ifndef ISOBOX_BENCH_BOX_H
#define ISOBOX_BENCH_BOX_H

#include <stdint.h>
#include <sys/types.h>

enum {
    STEP_USER = 1 << 0,
    STEP_NET = 1 << 1,
    STEP_IPC = 1 << 2,
    STEP_UTS = 1 << 3,
    STEP_CGROUPNS = 1 << 4,
    STEP_OVERLAY = 1 << 5, /* left out: a read-only bind of the lower directory */
    STEP_PROC = 1 << 6,
    STEP_SYS = 1 << 7,
    STEP_DEV = 1 << 8,
    STEP_PTS = 1 << 9,
    STEP_SHM = 1 << 10,
    STEP_MQUEUE = 1 << 11,
    STEP_LO = 1 << 12,
    STEP_CGROUP = 1 << 13,
    STEP_LIMITS = 1 << 14,
    STEP_SECCOMP = 1 << 15,
    STEP_CAPS = 1 << 16,
    STEP_INIT = 1 << 17, /* left out: the program itself is PID 1 */
    STEP_VIEWS = 1 << 18,
    STEP_ALL = (1 << 19) - 1,
};

enum { MAX_LOWERS = 8, MAX_GROUPS = 8, MAX_PHASES = 32 };

struct box_options {
    unsigned steps;
    const char *lowers[MAX_LOWERS]; /* topmost first */
    int lower_count;
    int pooled_cgroups; /* groups made ahead and not removed in the measured time */
    const char *program;
    const char *init;
};

struct phase {
    const char *name;
    int64_t at;
};

struct box {
    pid_t pid;
    int pidfd;
    int out;    /* read end of the program's standard output */
    int socket; /* to an init that serves; -1 otherwise */
    int group;  /* number of its cgroups */
    const char *failed; /* the step that failed inside, or NULL */
    long error;
    struct phase inside[MAX_PHASES];
    int inside_count;
    struct phase outside[MAX_PHASES];
    int outside_count;
};

int64_t now_ns(void);
void die(const char *what, long error);

/* Prepares what all containers share: open descriptors, the filter, the base groups. */
void box_prepare(const struct box_options *options);
/* The program's descriptor: opened before the process went into a mount namespace of its own. */
int box_program(void);
/* Makes the container; argv[1] of init is `mode` ("run", "serve", "idle", "fork N" ...). */
void box_start(struct box *box, const char *mode);
/* Reads its output to the end and reaps it; returns the wait status. */
int box_wait(struct box *box);
/* Removes its groups. */
void box_remove(struct box *box);

#endif
