/* isobox-init: the first program in a container and its PID 1. No libc, no allocation.
 *
 * Started by the extension's clone + execveat in the new namespaces. Waits for the plan on the
 * control socket, carries it out, answers READY, and from then on reaps and serves requests. It ends,
 * and the kernel ends everything in the PID namespace with it, when its owner does: the owner's pidfd
 * becomes readable, or the control socket closes.
 *
 * Frozen, it can't see that. So while a container is paused, another one of it runs outside, which thaws
 * that container's cgroup once the owner has ended (ISOBOX_THAW).
 *
 * Every answer is one struct isobox_reply: the stage, the op and the errno, never text. */
#include "ops.h"

enum {
    EINTR_ = 4,
    EAGAIN_ = 11,
    ENOENT_ = 2,
    ENOSPC_ = 28,
    EBADMSG_ = 74,
    ESRCH_ = 3,
    EINVAL_ = 22,
    AT_FDCWD_ = -100,
    O_CLOEXEC_ = 02000000,
    O_NONBLOCK_ = 04000,
    O_NOCTTY_ = 0400,
    O_PATH_ = 010000000,
    RESOLVE_IN_ROOT_ = 0x10,
    RESOLVE_NO_MAGICLINKS_ = 0x02,
    POLLIN_ = 1,
    SIGCHLD_ = 17,
    SIGKILL_ = 9,
    SIG_SETMASK_ = 2,
    CLONE_VM_ = 0x100,
    CLONE_VFORK_ = 0x4000,
    CLONE_NEWPID_ = 0x20000000,
    CLONE_OF_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000, /* VM, FS, FILES, SIGHAND, THREAD, SYSVSEM */
    FUTEX_WAIT_PRIVATE_ = 128,
    FUTEX_WAKE_PRIVATE_ = 129,
    MSG_CMSG_CLOEXEC_ = 0x40000000,
    MSG_NOSIGNAL_ = 0x4000,
    MSG_TRUNC_ = 0x20,
    MSG_CTRUNC_ = 8,
    SOL_SOCKET_ = 1,
    SCM_RIGHTS_ = 1,
    SCM_CREDENTIALS_ = 2,
    WNOHANG_ = 1,
    PROT_RW = 3,
    MAP_PRIVATE_ = 2,
    MAP_SHARED_ = 1,
    MAP_ANONYMOUS_ = 0x20,
    STACK_SIZE = 32768,
    PID_ENDED = -1,
};

struct iovec_ {
    void *base;
    size_t size;
};

struct msghdr_ {
    void *name;
    int namelen;
    struct iovec_ *iov;
    size_t iovlen;
    void *control;
    size_t controllen;
    unsigned int flags;
};

struct cmsghdr_ {
    size_t len;
    int level;
    int type;
};

struct pollfd_ {
    int fd;
    short events;
    short revents;
};

struct timespec_ {
    long sec;
    long nsec;
};

struct exec_slot {
    long long id;
    long long start_ns;
    int pid; /* 0: free; PID_ENDED: it has ended, its keeper not yet */
    int status_fd;
    int held[2]; /* stdout and stderr of an exec whose caller waits for the end only; -1 */
    int keeper;  /* the first process of its own PID namespace, 0: it has none */
};

/* What the child of an exec needs; it shares our memory until it execs. */
struct exec_child {
    struct isobox_run run;
    long failed;
};

static struct exec_slot slots[ISOBOX_EXECS_MAX];
static int slots_used;     /* slots at and above were never used */
static struct isobox_reply endings[ISOBOX_EXECS_MAX]; /* of those whose keeper has not ended */
static int signal_fd;
static int new_root = -1;  /* of the plan, from PREPARE to SETUP */
static long own_pids = -1; /* our own PID namespace */
static const uint64_t all_signals = ~0ull;

static unsigned char message[ISOBOX_MESSAGE_MAX + sizeof(struct isobox_request)];
static union {
    struct cmsghdr_ head;
    unsigned char bytes[sizeof(struct cmsghdr_) + sizeof(int) * ISOBOX_FDS_MAX + 64];
} control;
static unsigned char child_stack[STACK_SIZE] __attribute__((aligned(16)));
static int received[ISOBOX_FDS_MAX];
static unsigned int received_count;

static void __attribute__((noreturn)) leave(int code)
{
    for (;;)
        SYS1(__NR_exit_group, code);
}

static long long now(void)
{
    struct timespec_ t = {0, 0};
    SYS2(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, &t);
    return (long long)t.sec * 1000000000 + t.nsec;
}

static void set_cloexec(int fd)
{
    SYS3(__NR_fcntl, fd, 2 /* F_SETFD */, 1 /* FD_CLOEXEC */);
}

static void close_received(void)
{
    for (unsigned int i = 0; i < received_count; i++)
        if (received[i] >= 0)
            SYS1(__NR_close, received[i]);
    received_count = 0;
}

/* One message with its descriptors into `message` and `received`. Its size, 0 at the end, or -errno. */
static long receive(void)
{
    struct iovec_ iov = {message, sizeof message};
    struct msghdr_ header = {0, 0, &iov, 1, &control, sizeof control, 0};
    long size;
    received_count = 0;
    do
        size = SYS3(__NR_recvmsg, ISOBOX_FD_CONTROL, &header, MSG_CMSG_CLOEXEC_);
    while (size == -EINTR_);
    if (size <= 0)
        return size;
    if (header.controllen >= sizeof(struct cmsghdr_) && control.head.level == SOL_SOCKET_ &&
        control.head.type == SCM_RIGHTS_ && control.head.len <= header.controllen) {
        received_count = (unsigned int)((control.head.len - sizeof(struct cmsghdr_)) / sizeof(int));
        if (received_count > ISOBOX_FDS_MAX)
            leave(1);
        memcpy(received, control.bytes + sizeof(struct cmsghdr_), received_count * sizeof(int));
    }
    if (header.flags & (MSG_TRUNC_ | MSG_CTRUNC_)) {
        close_received();
        return -EBADMSG_;
    }
    return size;
}

/* Answers on the control socket; `fd` and `pid` travel as ancillary data where they are not 0. */
static void answer(struct isobox_reply *reply, int fd, int pid)
{
    struct iovec_ iov = {reply, sizeof *reply};
    struct msghdr_ header = {0, 0, &iov, 1, 0, 0, 0};
    struct {
        struct cmsghdr_ head;
        int data[4];
    } ancillary;
    memset(&ancillary, 0, sizeof ancillary);
    ancillary.head.level = SOL_SOCKET_;
    if (fd > 0 || pid > 0) {
        /* For credentials: pid here, which the kernel translates for the owner; uid 0, gid 0. */
        ancillary.head.type = fd > 0 ? SCM_RIGHTS_ : SCM_CREDENTIALS_;
        ancillary.head.len = sizeof(struct cmsghdr_) + (fd > 0 ? sizeof(int) : 3 * sizeof(int));
        ancillary.data[0] = fd > 0 ? fd : pid;
        header.control = &ancillary;
        header.controllen = ancillary.head.len;
    }
    SYS3(__NR_sendmsg, ISOBOX_FD_CONTROL, &header, MSG_NOSIGNAL_);
}

static void answer_code(long failed)
{
    struct isobox_reply reply;
    memset(&reply, 0, sizeof reply);
    reply.kind = failed < 0 ? ISOBOX_FAILED : ISOBOX_DONE;
    reply.error = failed < 0 ? (int)-failed : 0;
    answer(&reply, 0, 0);
}

/* An exec's own descriptor is a pipe: a record is far below PIPE_BUF, so it arrives whole. */
static void report(int status_fd, struct isobox_reply *reply)
{
    SYS3(__NR_write, status_fd, reply, sizeof *reply);
}

/* The ops of the request in `message`: behind the header, or, where `mapped` allows that, in a memfd mapped
 * for the request's time. */
static const unsigned char *payload(const struct isobox_request *request, long size, void **mapped)
{
    if (mapped)
        *mapped = 0;
    if (!(request->flags & ISOBOX_PAYLOAD_FD))
        return (long)request->size <= size - (long)sizeof *request ? message + sizeof *request : 0;
    if (!mapped || received_count == 0 || request->size == 0 || request->size > ISOBOX_PAYLOAD_MAX)
        return 0;
    long at = SYS6(__NR_mmap, 0, request->size, PROT_RW, MAP_PRIVATE_, received[received_count - 1], 0);
    if (at < 0 && at > -4096)
        return 0;
    *mapped = (void *)at;
    return *mapped;
}

/* The run of a request's ops, none where its payload is not as it says. */
static struct isobox_run plan_of(const struct isobox_request *request, long size, void **mapped)
{
    struct isobox_run run;
    memset(&run, 0, sizeof run);
    run.ops = payload(request, size, mapped);
    run.size = request->size;
    run.fds = received;
    run.nfds = received_count;
    run.root = -1;
    return run;
}

/* PREPARE and SETUP: two parts of one plan, which share the new root that the first one made. */
static void setup(const struct isobox_request *request, long size)
{
    struct isobox_reply reply;
    void *mapped;
    memset(&reply, 0, sizeof reply);
    struct isobox_run run = plan_of(request, size, &mapped);
    run.root = new_root;
    long failed = run.ops ? isobox_run_ops(&run) : -EBADMSG_;
    new_root = run.root;
    if (mapped)
        SYS2(__NR_munmap, mapped, request->size);
    if (!failed && request->kind == ISOBOX_PREPARE)
        return;
    reply.kind = failed ? ISOBOX_FAILED : ISOBOX_READY;
    reply.op = run.op;
    reply.error = (int)-failed;
    reply.status = (int)request->kind;
    answer(&reply, failed ? 0 : isobox_kept, 0);
    if (failed)
        leave(1);
}

/* Waits for the owner's end, then writes the payload to the descriptor that came along. */
static void __attribute__((noreturn)) thaw_at_end(const struct isobox_request *request, long size)
{
    struct pollfd_ owner = {ISOBOX_FD_OWNER, POLLIN_, 0}; /* alone: the socket closes a moment earlier */
    if (received_count != 1 || (long)request->size > size - (long)sizeof *request)
        leave(1);
    answer_code(0);
    while (!owner.revents)
        SYS5(__NR_ppoll, &owner, 1, 0, 0, 0);
    SYS3(__NR_write, received[0], message + sizeof *request, request->size);
    leave(0);
}

/* Runs in the child: on its own stack, in our memory (CLONE_VM) unless it has its own PID namespace. */
static void exec_child(void *argument)
{
    struct exec_child *child = argument;
    uint64_t none = 0;
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK_, &none, 0, sizeof none);
    child->failed = isobox_run_ops(&child->run);
    SYS1(__NR_exit, 127);
}

/* The child that becomes a program: in our memory until then, while we wait. */
static long clone_exec(struct exec_child *child, int cgroup_fd)
{
    unsigned int bases = isobox_base_count; /* what it opens is open there only */
    int ruleset = isobox_ruleset;
    long pid = isobox_clone_into(cgroup_fd, CLONE_VM_ | CLONE_VFORK_ | SIGCHLD_, child_stack, sizeof child_stack, 0,
                                 exec_child, child);
    isobox_base_count = bases;
    isobox_ruleset = ruleset;
    return pid;
}

static void add_usage(struct isobox_reply *reply, const long *rusage)
{
    reply->user_us += (long long)rusage[0] * 1000000 + rusage[1];
    reply->system_us += (long long)rusage[2] * 1000000 + rusage[3];
    if (reply->maxrss_kib < rusage[4])
        reply->maxrss_kib = rusage[4];
}

/* The first process of an exec's own PID namespace, where no cgroup holds an exec together: it only
 * reaps, and all that the program started ends with it. */
static void keeper_main(void *nothing)
{
    const uint64_t child = 1ull << (SIGCHLD_ - 1);
    (void)nothing;
    isobox_close_from(0, -1);
    for (;;) {
        SYS4(__NR_rt_sigtimedwait, &child, 0, 0, sizeof child);
        while (SYS4(__NR_wait4, -1, 0, WNOHANG_, 0) > 0)
            ;
    }
}

/* Starts the program in a PID namespace of its own, yet as our child: its failure, its signals and its
 * end are told as any other's. */
static long clone_into_own_pids(struct exec_child *child, int *keeper)
{
    if (own_pids < 0)
        own_pids = SYS2(__NR_pidfd_open, SYS0(__NR_getpid), 0);
    if (own_pids < 0)
        return own_pids;
    long pid = SYS1(__NR_unshare, CLONE_NEWPID_); /* of the children from here on */
    if (pid < 0)
        return pid;
    *keeper = 0;
    pid = isobox_clone(SIGCHLD_, 0, 0, keeper_main, 0);
    if (pid > 0) {
        *keeper = (int)pid;
        pid = clone_exec(child, -1); /* only where there are no cgroups */
    }
    if (SYS2(__NR_setns, own_pids, CLONE_NEWPID_))
        leave(1);
    if (*keeper && (pid < 0 || child->failed))
        SYS2(__NR_kill, *keeper, SIGKILL_);
    return pid;
}

/* A thread of ours under the container's filter. A program that it clones has that filter from birth; to
 * install one in each program makes the kernel compile it each time, a third of what an exec takes. The
 * programs are this process's children all the same, and reaped as any others. */
static struct {
    struct exec_child *work;
    long result;
    int busy; /* a futex: 1 from the work's arrival until it is done */
    int started;
    int installed;
} filtered;
static unsigned char filtered_stack[STACK_SIZE] __attribute__((aligned(16)));

static void filtered_await(int busy)
{
    while (__atomic_load_n(&filtered.busy, __ATOMIC_ACQUIRE) != busy)
        SYS4(__NR_futex, &filtered.busy, FUTEX_WAIT_PRIVATE_, !busy, 0);
}

static void filtered_tell(int busy)
{
    __atomic_store_n(&filtered.busy, busy, __ATOMIC_RELEASE);
    SYS3(__NR_futex, &filtered.busy, FUTEX_WAKE_PRIVATE_, 1);
}

static void filtered_main(void *nothing)
{
    (void)nothing;
    for (;;) {
        filtered_await(1);
        if (filtered.installed)
            filtered.result = clone_exec(filtered.work, -1);
        else
            filtered.result = isobox_run_ops(&filtered.work->run);
        filtered_tell(0);
    }
}

static long filtered_run(struct exec_child *work)
{
    filtered.work = work;
    filtered_tell(1);
    filtered_await(0);
    return filtered.result;
}

static void serve_filter(const struct isobox_request *request, long size)
{
    struct exec_child work = {plan_of(request, size, 0), 0};
    long failed = work.run.ops && !filtered.installed ? 0 : -EBADMSG_;
    if (!failed && !filtered.started) {
        failed = isobox_clone(CLONE_OF_THREAD, filtered_stack + sizeof filtered_stack, 0, filtered_main, 0);
        filtered.started = failed > 0;
    }
    if (failed >= 0)
        failed = filtered_run(&work);
    if (work.run.root >= 0)
        SYS1(__NR_close, work.run.root);
    filtered.installed = filtered.installed || !failed;
    answer_code(failed);
}

static int free_slot(void)
{
    for (int i = 0; i < slots_used; i++)
        if (slots[i].pid == 0)
            return i;
    return slots_used < ISOBOX_EXECS_MAX ? slots_used++ : -1;
}

/* fds[0] is the exec's status pipe; the plan refers to the others by their index. */
static void serve_exec(const struct isobox_request *request, long size)
{
    struct isobox_reply reply;
    struct exec_child child;
    void *mapped;
    long pid = -EBADMSG_;
    memset(&reply, 0, sizeof reply);
    if (received_count == 0)
        return;
    int slot = free_slot();
    int cgroup_fd = -1, keeper = 0;
    if (request->flags & ISOBOX_CGROUP_FD && request->arg[1] >= 0 && request->arg[1] < received_count)
        cgroup_fd = received[request->arg[1]];
    child.run = plan_of(request, size, &mapped);
    child.failed = 0;
    reply.start_ns = now();
    if (slot < 0) {
        pid = -ENOSPC_;
    } else if (!child.run.ops) {
        pid = -EBADMSG_;
    } else if (request->flags & ISOBOX_OWN_PIDNS) {
        pid = clone_into_own_pids(&child, &keeper);
    } else if (request->flags & ISOBOX_FILTERED) {
        pid = filtered.installed && cgroup_fd < 0 ? filtered_run(&child) : -EBADMSG_;
    } else {
        pid = clone_exec(&child, cgroup_fd);
    }
    if (mapped)
        SYS2(__NR_munmap, mapped, request->size);
    if (pid < 0 || child.failed) {
        reply.kind = ISOBOX_FAILED;
        reply.op = pid < 0 ? -1 : child.run.op;
        reply.error = (int)-(pid < 0 ? pid : child.failed);
        report(received[0], &reply);
        return;
    }
    slots[slot].id = request->id;
    slots[slot].start_ns = reply.start_ns;
    slots[slot].pid = (int)pid;
    slots[slot].keeper = keeper;
    slots[slot].status_fd = received[0];
    for (unsigned int i = 0; i < 2; i++) {
        unsigned int place = 2 + i; /* after the status and stdin */
        int hold = request->flags & ISOBOX_HOLD && place < received_count;
        slots[slot].held[i] = hold ? received[place] : -1;
        if (hold)
            received[place] = -1;
    }
    if (request->flags & ISOBOX_WANT_START) {
        reply.kind = ISOBOX_STARTED;
        reply.status = (int)pid;
        report(received[0], &reply);
    }
    received[0] = -1;
}

static struct exec_slot *find_exec(long long id)
{
    for (int i = 0; i < slots_used; i++)
        if (slots[i].pid > 0 && slots[i].id == id)
            return &slots[i];
    return 0;
}

/* Only we reap, so a pid in the table is that exec's until we take it out: no reuse race. */
static void serve_signal(const struct isobox_request *request)
{
    struct exec_slot *exec = find_exec(request->arg[0]);
    answer_code(exec ? SYS2(__NR_kill, exec->pid, request->arg[1]) : -ESRCH_);
}

static void serve_locate(const struct isobox_request *request)
{
    struct isobox_reply reply;
    struct exec_slot *exec = find_exec(request->arg[0]);
    if (!exec) {
        answer_code(-ESRCH_);
        return;
    }
    memset(&reply, 0, sizeof reply);
    reply.kind = ISOBOX_DONE;
    reply.status = exec->pid;
    answer(&reply, 0, exec->pid);
}

/* The next NUL-ended string of a file request. */
static const char *request_string(const struct isobox_request *request, long size, unsigned int number)
{
    long end = (long)sizeof *request + (long)request->size;
    long at = sizeof *request;
    if (end > size || request->size == 0 || message[end - 1] != 0)
        return 0;
    while (number--) {
        while (at < end && message[at])
            at++;
        at++;
    }
    return at < end ? (const char *)message + at : 0;
}

static long base_directory(const struct isobox_request *request)
{
    if (request->arg[2] == 0)
        return 0;
    if (request->arg[2] < 0 || request->arg[2] > isobox_base_count)
        return -EBADMSG_;
    return isobox_bases[request->arg[2] - 1];
}

/* Opens below "/" (which is the container's) or below a base; never through /proc's magic links. */
static long open_inside(long base, const char *path, uint64_t flags, uint64_t mode)
{
    struct isobox_open_how how = {flags | O_CLOEXEC_, mode, RESOLVE_IN_ROOT_ | RESOLVE_NO_MAGICLINKS_};
    if (base == 0) {
        long root = SYS4(__NR_openat, AT_FDCWD_, "/", O_PATH_ | O_CLOEXEC_, 0);
        if (root < 0)
            return root;
        long fd = SYS4(__NR_openat2, root, path, &how, sizeof how);
        SYS1(__NR_close, root);
        return fd;
    }
    return SYS4(__NR_openat2, base, path, &how, sizeof how);
}

static void serve_open(const struct isobox_request *request, long size)
{
    const char *path = request_string(request, size, 0);
    long base = base_directory(request);
    if (!path || base < 0) {
        answer_code(-EBADMSG_);
        return;
    }
    uint64_t flags = (uint64_t)request->arg[0];
    if (!(flags & O_PATH_))
        flags |= O_NONBLOCK_ | O_NOCTTY_; /* a FIFO or a terminal inside must not hold PID 1 up */
    long fd = open_inside(base, path, flags, (uint64_t)request->arg[1]);
    if (fd < 0) {
        answer_code(fd);
        return;
    }
    struct isobox_reply reply;
    memset(&reply, 0, sizeof reply);
    reply.kind = ISOBOX_DONE;
    answer(&reply, (int)fd, 0);
    SYS1(__NR_close, fd);
}

/* mkdir, symlink and unlink: the parent is opened inside, then the *at call takes the last name. */
static void serve_name(const struct isobox_request *request, long size)
{
    static char parent[4096];
    const char *path = request_string(request, size, 0);
    long base = base_directory(request);
    if (!path || base < 0) {
        answer_code(-EBADMSG_);
        return;
    }
    unsigned int cut = 0;
    for (unsigned int i = 0; path[i]; i++)
        if (path[i] == '/')
            cut = i + 1;
    if (cut >= sizeof parent) {
        answer_code(-36 /* ENAMETOOLONG */);
        return;
    }
    memcpy(parent, path, cut);
    parent[cut] = 0;
    long directory = open_inside(base, cut ? parent : ".", O_PATH_, 0);
    long failed = directory;
    if (directory >= 0) {
        const char *name = path + cut;
        const char *target = request_string(request, size, 1);
        if (request->kind == ISOBOX_MKDIR)
            failed = SYS3(__NR_mkdirat, directory, name, request->arg[1]);
        else if (request->kind == ISOBOX_UNLINK)
            failed = SYS3(__NR_unlinkat, directory, name, request->arg[0]);
        else
            failed = target ? SYS3(__NR_symlinkat, target, directory, name) : -EBADMSG_;
        SYS1(__NR_close, directory);
    }
    answer_code(failed < 0 ? failed : 0);
}

static void serve_change(const struct isobox_request *request, long size)
{
    struct isobox_run run = plan_of(request, size, 0);
    long failed = run.ops ? isobox_run_ops(&run) : -EBADMSG_;
    if (run.root >= 0)
        SYS1(__NR_close, run.root);
    answer_code(failed);
}

static void serve(void)
{
    long size = receive();
    if (size <= 0 && size != -EBADMSG_)
        leave(0); /* the owner closed its end */
    struct isobox_request request;
    if (size < (long)sizeof request) {
        answer_code(-EBADMSG_);
        close_received();
        return;
    }
    memcpy(&request, message, sizeof request);
    switch (request.kind) {
    case ISOBOX_EXEC: serve_exec(&request, size); break;
    case ISOBOX_SIGNAL: serve_signal(&request); break;
    case ISOBOX_LOCATE: serve_locate(&request); break;
    case ISOBOX_OPEN: serve_open(&request, size); break;
    case ISOBOX_MKDIR:
    case ISOBOX_SYMLINK:
    case ISOBOX_UNLINK: serve_name(&request, size); break;
    case ISOBOX_CHANGE: serve_change(&request, size); break;
    case ISOBOX_FILTER: serve_filter(&request, size); break;
    default: answer_code(-EBADMSG_);
    }
    close_received();
}

static void tell_end(int slot, struct isobox_reply *reply)
{
    report(slots[slot].status_fd, reply);
    SYS1(__NR_close, slots[slot].status_fd);
    for (int held = 0; held < 2; held++)
        if (slots[slot].held[held] >= 0)
            SYS1(__NR_close, slots[slot].held[held]);
    slots[slot].pid = slots[slot].keeper = 0;
}

/* The end of a program with a keeper is told once its keeper, and so everything that it started, has
 * ended. A keeper can't end before: the kernel keeps it until we have reaped the program. */
static void reap(void)
{
    for (;;) {
        int status = 0;
        long rusage[18];
        long pid = SYS4(__NR_wait4, -1, &status, WNOHANG_, rusage);
        if (pid <= 0)
            return;
        for (int i = 0; i < slots_used; i++) {
            if (slots[i].pid == PID_ENDED && slots[i].keeper == pid) {
                add_usage(&endings[i], rusage);
                tell_end(i, &endings[i]);
                break;
            }
            if (slots[i].pid != pid)
                continue;
            struct isobox_reply reply;
            memset(&reply, 0, sizeof reply);
            reply.kind = ISOBOX_ENDED;
            reply.status = status;
            reply.start_ns = slots[i].start_ns;
            reply.end_ns = now();
            add_usage(&reply, rusage);
            if (slots[i].keeper) {
                endings[i] = reply;
                slots[i].pid = PID_ENDED;
                SYS2(__NR_kill, slots[i].keeper, SIGKILL_);
            } else {
                tell_end(i, &reply);
            }
            break;
        }
    }
}

static void reset_signals(void)
{
    /* struct sigaction of the kernel: handler, flags, restorer, mask; all 0 is SIG_DFL. */
    unsigned long action[4] = {0, 0, 0, 0};
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK_, &all_signals, 0, sizeof all_signals);
    for (int signal = 1; signal <= 64; signal++)
        SYS4(__NR_rt_sigaction, signal, action, 0, 8);
}

void isobox_main(void);

__attribute__((noreturn, used)) void isobox_main(void)
{
    const uint64_t child = 1ull << (SIGCHLD_ - 1);
    reset_signals();
    SYS0(__NR_setsid); /* the host program's terminal is none of ours */
    for (int fd = 0; fd <= ISOBOX_FD_OWNER; fd++)
        set_cloexec(fd);
    long opened = SYS4(__NR_signalfd4, -1, &child, sizeof child, O_CLOEXEC_ | O_NONBLOCK_);
    if (opened < 0)
        leave(1);
    signal_fd = (int)opened;

    struct pollfd_ watched[3] = {
        {ISOBOX_FD_CONTROL, POLLIN_, 0}, {ISOBOX_FD_OWNER, POLLIN_, 0}, {signal_fd, POLLIN_, 0}};
    int ready = 0;
    for (;;) {
        SYS5(__NR_ppoll, watched, 3, 0, 0, 0);
        if (watched[1].revents)
            leave(0);
        if (watched[2].revents) {
            unsigned char info[128 * 8];
            SYS3(__NR_read, signal_fd, info, sizeof info);
            reap();
        }
        if (!watched[0].revents)
            continue;
        if (ready) {
            serve();
            continue;
        }
        long size = receive();
        struct isobox_request request;
        if (size < (long)sizeof request)
            leave(0);
        memcpy(&request, message, sizeof request);
        if (request.kind == ISOBOX_THAW)
            thaw_at_end(&request, size);
        if (request.kind != ISOBOX_SETUP && request.kind != ISOBOX_PREPARE)
            leave(1);
        setup(&request, size);
        close_received();
        ready = request.kind == ISOBOX_SETUP;
    }
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall isobox_main\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tbl isobox_main\n\tbrk #1\n");
#endif
