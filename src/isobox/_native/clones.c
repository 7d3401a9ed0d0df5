/* How a program of an exec begins: as a child of PID 1's that carries its plan out and becomes the program.
 *
 * In the ordinary way PID 1 itself clones it (isobox_clone_exec). Where no cgroup holds an exec together, it gets a PID
 * namespace of its own (isobox_clone_into_own_pids). Where the container's filter has been installed ahead of time, the
 * thread that is under it does the cloning (isobox_clone_filtered). In each of them PID 1 waits until the child has
 * become the program or has failed. */
#include "init.h"

enum {
    STACK_SIZE = 32768,
    CLONE_OF_THREAD = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
};

static unsigned char child_stack[STACK_SIZE] __attribute__((aligned(16)));
static long own_pids = -1; /* our own PID namespace */

/* Runs in the child: on its own stack, in our memory (CLONE_VM) unless it has its own PID namespace. */
static void child_main(void *argument)
{
    struct isobox_child *child = argument;
    uint64_t none = 0;
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
    child->failed = isobox_run_ops(&child->run);
    SYS1(__NR_exit, 127);
}

/* 1 while a child is in our memory: at its execve or its end the kernel clears it and wakes who waits for that
 * (CLONE_CHILD_CLEARTID in clone(2)). */
static int shared;

/* Not CLONE_VFORK: whoever is root inside may stop the child (SIGSTOP), and then nobody would see the owner's end. */
static void await_memory(void)
{
    const struct __kernel_timespec at_once = {0, 0}, a_while = {0, 100000000};
    while (__atomic_load_n(&shared, __ATOMIC_ACQUIRE)) {
        struct pollfd owner = {ISOBOX_FD_OWNER, POLLIN, 0};
        if (SYS4(__NR_futex, &shared, FUTEX_WAIT, 1, &a_while) == -ETIMEDOUT &&
            SYS5(__NR_ppoll, &owner, 1, &at_once, 0, 0))
            isobox_leave(0);
    }
}

/* The child that becomes a program: in our memory until then, while we wait. */
long isobox_clone_exec(struct isobox_child *child, int cgroup_fd)
{
    unsigned int bases = isobox_base_count; /* what it opens is open there only */
    int ruleset = isobox_ruleset;
    shared = 1;
    long pid = isobox_clone_into(cgroup_fd, CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD, child_stack,
                                 sizeof child_stack, 0, &shared, child_main, child);
    if (pid > 0)
        await_memory();
    isobox_base_count = bases;
    isobox_ruleset = ruleset;
    return pid;
}

/* The first process of an exec's own PID namespace, where no cgroup holds an exec together: it only
 * reaps, and all that the program started ends with it. */
static void keeper_main(void *nothing)
{
    const uint64_t child = 1ull << (SIGCHLD - 1);
    (void)nothing;
    isobox_close_from(0, -1);
    for (;;) {
        SYS4(__NR_rt_sigtimedwait, &child, 0, 0, sizeof child);
        while (SYS4(__NR_wait4, -1, 0, WNOHANG, 0) > 0)
            ;
    }
}

/* Starts the program in a PID namespace of its own, yet as our child: its failure, its signals and its
 * end are told as any other's. */
long isobox_clone_into_own_pids(struct isobox_child *child, int *keeper)
{
    if (own_pids < 0)
        own_pids = SYS2(__NR_pidfd_open, SYS0(__NR_getpid), 0);
    if (own_pids < 0)
        return own_pids;
    long pid = SYS1(__NR_unshare, CLONE_NEWPID); /* of the children from here on */
    if (pid < 0)
        return pid;
    *keeper = 0;
    pid = isobox_clone(SIGCHLD, 0, 0, 0, keeper_main, 0);
    if (pid > 0) {
        *keeper = (int)pid;
        pid = isobox_clone_exec(child, -1); /* only where there are no cgroups */
    }
    if (SYS2(__NR_setns, own_pids, CLONE_NEWPID))
        isobox_leave(1);
    if (*keeper && (pid < 0 || child->failed))
        SYS2(__NR_kill, *keeper, SIGKILL);
    return pid;
}

/* A thread of ours under the container's filter. A program that it clones has that filter from birth; to
 * install one in each program makes the kernel compile it each time, a third of what an exec takes. The
 * programs are this process's children all the same, and reaped as any others. */
static struct {
    struct isobox_child *work;
    long result;
    int busy; /* a futex: 1 from the work's arrival until it is done */
    int started;
    int installed;
} filtered;
static unsigned char filtered_stack[STACK_SIZE] __attribute__((aligned(16)));

static void filtered_await(int busy)
{
    while (__atomic_load_n(&filtered.busy, __ATOMIC_ACQUIRE) != busy)
        SYS4(__NR_futex, &filtered.busy, FUTEX_WAIT_PRIVATE, !busy, 0);
}

static void filtered_tell(int busy)
{
    __atomic_store_n(&filtered.busy, busy, __ATOMIC_RELEASE);
    SYS3(__NR_futex, &filtered.busy, FUTEX_WAKE_PRIVATE, 1);
}

static void filtered_main(void *nothing)
{
    (void)nothing;
    for (;;) {
        filtered_await(1);
        if (filtered.installed)
            filtered.result = isobox_clone_exec(filtered.work, -1);
        else
            filtered.result = isobox_run_ops(&filtered.work->run);
        filtered_tell(0);
    }
}

static long filtered_run(struct isobox_child *work)
{
    filtered.work = work;
    filtered_tell(1);
    filtered_await(0);
    return filtered.result;
}

long isobox_clone_filtered(struct isobox_child *child)
{
    return filtered.installed ? filtered_run(child) : -EBADMSG;
}

void isobox_serve_filter(const struct isobox_request *request, long size)
{
    struct isobox_child work = {isobox_plan_of(request, size, 0), 0};
    long failed = work.run.ops && !filtered.installed ? 0 : -EBADMSG;
    if (!failed && !filtered.started) {
        failed = isobox_clone(CLONE_OF_THREAD, filtered_stack + sizeof filtered_stack, 0, 0, filtered_main, 0);
        filtered.started = failed > 0;
    }
    if (failed >= 0)
        failed = filtered_run(&work);
    if (work.run.root >= 0)
        SYS1(__NR_close, work.run.root);
    filtered.installed = filtered.installed || !failed;
    isobox_answer_code(failed);
}
