/* PID 1 of the floor's containers, static and without libc: the same part that isobox-init plays.
 *   init run       starts the program behind descriptor 3 with descriptor 1 as its output, reaps it, exits
 *   init serve     for each message on the socket 3: descriptors of program, output, status pipe and of groups that
 *                  the program joins; runs it
 *   init filter    like serve, but each program installs the seccomp filter for itself
 *   init idle      waits until it is killed, after writing one byte to descriptor 1
 *   init fork:N    the same with N children that wait too */
#include "filter.h"
#include "raw.h"

struct part {
    void *base;
    unsigned long length;
};
struct message {
    void *name;
    unsigned int name_length;
    struct part *parts;
    unsigned long part_count;
    void *control;
    unsigned long control_length;
    int flags;
};
struct job {
    int program;
    int output;
    int *groups; /* descriptors of `tasks` files to write to */
    int group_count;
};

static char stack[8192] __attribute__((aligned(16)));
static char *arguments[] = {(char *)"true", 0};
static char *environment[] = {0};

static void redirect(int from, int to)
{
#ifdef NR_dup2
    raw2(NR_dup2, from, to);
#else
    raw3(NR_dup3, from, to, 0);
#endif
}

static struct sock_filter filter[FILTER_MAX];
static struct sock_fprog program_filter = {0, filter};

static int child(void *opaque)
{
    struct job *job = opaque;
    if (program_filter.len && raw3(NR_seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, 0, &program_filter) < 0)
        return 126;
    for (int i = 0; i < job->group_count; i++)
        raw3(NR_write, job->groups[i], "0", 1);
    if (job->output != 1)
        redirect(job->output, 1);
    raw5(NR_execveat, job->program, "", arguments, environment, 0x1000 /* AT_EMPTY_PATH */);
    return 127;
}

static int run(struct job *job)
{
    int status = 0;
    long pid = raw_clone(RAW_CLONE_VM | RAW_CLONE_VFORK | RAW_SIGCHLD, stack + sizeof stack, child, job, 0);
    if (pid < 0)
        return 126 << 8;
    while (raw4(NR_wait4, -1, &status, 0, 0) != pid)
        ;
    return status;
}

static void serve(void)
{
    static unsigned long control[16];
    char byte;
    struct part part = {&byte, 1};
    for (;;) {
        struct message message = {0, 0, &part, 1, control, sizeof control, 0};
        long got = raw3(NR_recvmsg, 3, &message, 0x40000000 /* MSG_CMSG_CLOEXEC */);
        if (got == -4)
            continue;
        if (got <= 0)
            raw1(NR_exit_group, 0);
        int *fds = (int *)(control + 2);
        int count = (int)((control[0] - 2 * sizeof control[0]) / sizeof *fds); /* cmsg_len without its header */
        struct job job = {fds[0], fds[1], fds + 3, count - 3};
        int status = run(&job);
        for (int i = 0; i < count; i++) {
            if (i == 2)
                raw3(NR_write, fds[i], &status, sizeof status);
            raw1(NR_close, fds[i]);
        }
    }
}

static void wait_for_ever(void)
{
    for (;;) {
#ifdef NR_pause
        raw0(NR_pause);
#else
        raw4(NR_ppoll, 0, 0, 0, 0);
#endif
    }
}

void start(long *entry);
void start(long *entry)
{
    char **argv = (char **)(entry + 1);
    const char *mode = entry[0] > 1 ? argv[1] : "run";
    long children = 0;
    if (*mode == 'r') {
        struct job job = {3, 1, 0, 0};
        int status = run(&job);
        raw1(NR_exit_group, (status & 0x7f) ? 128 + (status & 0x7f) : (status >> 8) & 0xff);
    }
    if (mode[0] == 'f' && mode[1] == 'o') {
        for (mode += 5; *mode >= '0' && *mode <= '9'; mode++)
            children = children * 10 + (*mode - '0');
        for (; children > 0; children--) {
            if (raw5(NR_clone, RAW_SIGCHLD, 0, 0, 0, 0) == 0)
                wait_for_ever();
        }
        mode = "idle";
    }
    if (*mode == 'f')
        program_filter.len = filter_build(filter);
    raw3(NR_write, 1, "", 1);
    if (*mode == 'i')
        wait_for_ever();
    serve();
}

RAW_START(start);
