/* How a program of an exec begins: as a child of PID 1's that carries its plan out and becomes the program.
 *
 * In the ordinary way PID 1 itself clones it (isobox_clone_exec), with a thread that looks at the owner meanwhile where
 * the exec has a limit of memory (isobox_clone_limited). Where no cgroup holds an exec together, it gets a PID namespace
 * of its own (isobox_clone_into_own_pids). Where the container's filter has been installed ahead of time, the thread
 * that is under it does the cloning (isobox_clone_filtered). In each of them PID 1 waits until the child has become the
 * program or has failed. */
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

/* Waits until `busy` is 0, and sees our owner's end meanwhile: whoever is root inside may stop the child that we wait
 * for (SIGSTOP), and then nobody else would. */
static void await(int *busy)
{
    const struct __kernel_timespec at_once = {0, 0}, a_while = {0, 100000000};
    while (__atomic_load_n(busy, __ATOMIC_ACQUIRE)) {
        struct pollfd owner = {ISOBOX_FD_OWNER, POLLIN, 0};
        if (SYS4(__NR_futex, busy, FUTEX_WAIT, 1, &a_while) == -ETIMEDOUT &&
            SYS5(__NR_ppoll, &owner, 1, &at_once, 0, 0))
            isobox_leave(0);
    }
}

static void tell(int *busy, int now)
{
    __atomic_store_n(busy, now, __ATOMIC_RELEASE);
    SYS3(__NR_futex, busy, FUTEX_WAKE, 1);
}

/* `how` this thread waits for the child to leave our memory: in the kernel (CLONE_VFORK), or here, where the kernel
 * clears `shared` at the child's execve or its end and wakes us (CLONE_CHILD_CLEARTID). */
static long clone_exec(struct isobox_child *child, int cgroup_fd, uint64_t how)
{
    static int shared;
    unsigned int bases = isobox_base_count; /* what it opens is open there only */
    int ruleset = isobox_ruleset;
    shared = how == CLONE_CHILD_CLEARTID;
    long pid = isobox_clone_into(cgroup_fd, CLONE_VM | SIGCHLD | how, child_stack, sizeof child_stack, 0, &shared,
                                 child_main, child);
    if (pid > 0)
        await(&shared);
    isobox_base_count = bases;
    isobox_ruleset = ruleset;
    return pid;
}

/* The child that becomes a program: in our memory until then, while we wait. */
long isobox_clone_exec(struct isobox_child *child, int cgroup_fd)
{
    return clone_exec(child, cgroup_fd, CLONE_CHILD_CLEARTID);
}

static int starting; /* what `watch_main` waits for */

static void watch_main(void *nothing)
{
    (void)nothing;
    await(&starting);
    SYS1(__NR_exit, 0);
}

/* Waits until that thread, which is on its way out, counts no more in a limit of pids: until nobody has its number
 * (release_task in kernel/exit.c). */
static void await_end(long thread)
{
    const struct __kernel_timespec a_moment = {0, 100000};
    for (int moments = 0; moments < 10000; moments++) {
        if (SYS3(__NR_tgkill, SYS0(__NR_getpid), thread, 0))
            return;
        SYS5(__NR_ppoll, 0, 0, &a_moment, 0, 0);
    }
}

/* The same for an exec with a limit of memory of its own. Where that is too little to begin, the kernel would kill the
 * child and all who share its memory, so us; it refuses the child the memory instead where we wait in vfork
 * (oom_badness in mm/oom_kill.c). A thread sees our owner's end meanwhile. It is not the one that waits in vfork: the
 * program would be sent its PR_SET_PDEATHSIG when that thread ends. */
long isobox_clone_limited(struct isobox_child *child, int cgroup_fd)
{
    static unsigned char stack[4096] __attribute__((aligned(16)));
    static int watched;
    starting = watched = 1;
    const long thread =
        isobox_clone(CLONE_OF_THREAD | CLONE_CHILD_CLEARTID, stack + sizeof stack, 0, &watched, watch_main, 0);
    long pid = thread;
    if (thread > 0) {
        pid = clone_exec(child, cgroup_fd, CLONE_VFORK);
        tell(&starting, 0);
        await(&watched); /* it is on its stack */
        if (pid == -EAGAIN) /* it may have been the last that a limit of pids allowed */
            await_end(thread);
    }
    return pid == -EAGAIN ? isobox_clone_exec(child, cgroup_fd) : pid;
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

static void filtered_main(void *nothing)
{
    (void)nothing;
    for (;;) {
        while (!__atomic_load_n(&filtered.busy, __ATOMIC_ACQUIRE))
            SYS4(__NR_futex, &filtered.busy, FUTEX_WAIT, 0, 0);
        if (filtered.installed)
            filtered.result = clone_exec(filtered.work, -1, CLONE_VFORK);
        else
            filtered.result = isobox_run_ops(&filtered.work->run);
        tell(&filtered.busy, 0);
    }
}

static long filtered_run(struct isobox_child *work)
{
    filtered.work = work;
    tell(&filtered.busy, 1);
    await(&filtered.busy);
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
