/* isobox-init: the first program in a container and its PID 1. No libc, no allocation.
 *
 * In this order: the extension clones it into the new namespaces (isobox_spawn_init). It waits for the plan on the
 * control socket, whose parts are PREPARE and SETUP; carries each out (ops.c), and answers READY or what failed. From
 * then on it reaps (execs.c) and serves requests, one at a time: execs, signals, file requests (paths.c), more ops. It
 * ends, and the kernel ends everything in the PID namespace with it, when its owner does: the owner's pidfd becomes
 * readable, or the control socket closes.
 *
 * Frozen, it can't see that. So while a container is paused, another one of it runs outside, which thaws that
 * container's cgroup once the owner has ended (THAW instead of SETUP).
 *
 * Every answer is one struct isobox_reply: the op and the errno, never text. */
#include "init.h"

static int signal_fd;
static int new_root = -1; /* of the plan, from PREPARE to SETUP */
static const uint64_t all_signals = ~0ull;

static void set_cloexec(int fd)
{
    SYS3(__NR_fcntl, fd, F_SETFD, FD_CLOEXEC);
}

/* PREPARE and SETUP: two parts of one plan, which share the new root that the first one made. */
static void setup(const struct isobox_request *request, long size)
{
    struct isobox_reply reply;
    void *mapped;
    memset(&reply, 0, sizeof reply);
    struct isobox_run run = isobox_plan_of(request, size, &mapped);
    run.root = new_root;
    long failed = run.ops ? isobox_run_ops(&run) : -EBADMSG;
    new_root = run.root;
    if (mapped)
        SYS2(__NR_munmap, mapped, request->size);
    if (!failed && request->kind == ISOBOX_PREPARE)
        return;
    reply.kind = failed ? ISOBOX_FAILED : ISOBOX_READY;
    reply.op = run.op;
    reply.error = (int)-failed;
    reply.status = (int)request->kind;
    isobox_answer(&reply, failed ? 0 : isobox_kept, 0);
    if (failed)
        isobox_leave(1);
}

/* Waits for the owner's end, then writes the payload to the descriptor that came along. */
static void __attribute__((noreturn)) thaw_at_end(const struct isobox_request *request, long size)
{
    struct pollfd owner = {ISOBOX_FD_OWNER, POLLIN, 0}; /* alone: the socket closes a moment earlier */
    if (isobox_received_count != 1 || (long)request->size > size - (long)sizeof *request)
        isobox_leave(1);
    isobox_answer_code(0);
    while (!owner.revents)
        SYS5(__NR_ppoll, &owner, 1, 0, 0, 0);
    SYS3(__NR_write, isobox_received[0], isobox_message + sizeof *request, request->size);
    isobox_leave(0);
}

/* A mount that the ops KEEP goes to the owner. */
static void serve_change(const struct isobox_request *request, long size)
{
    struct isobox_reply reply;
    memset(&reply, 0, sizeof reply);
    isobox_let_go(&isobox_kept);
    struct isobox_run run = isobox_plan_of(request, size, 0);
    long failed = run.ops ? isobox_run_ops(&run) : -EBADMSG;
    isobox_let_go(&run.root);
    reply.kind = failed ? ISOBOX_FAILED : ISOBOX_DONE;
    reply.error = (int)-failed;
    isobox_answer(&reply, failed ? 0 : isobox_kept, 0);
    isobox_let_go(&isobox_kept);
}

static void serve(void)
{
    long size = isobox_take_message();
    if (size <= 0 && size != -EBADMSG)
        isobox_leave(0); /* the owner closed its end */
    struct isobox_request request;
    if (size < (long)sizeof request) {
        isobox_answer_code(-EBADMSG);
        isobox_close_received();
        return;
    }
    memcpy(&request, isobox_message, sizeof request);
    switch (request.kind) {
    case ISOBOX_EXEC: isobox_serve_exec(&request, size); break;
    case ISOBOX_SIGNAL: isobox_serve_signal(&request); break;
    case ISOBOX_LOCATE: isobox_serve_locate(&request); break;
    case ISOBOX_OPEN: isobox_serve_open(&request, size); break;
    case ISOBOX_MKDIR:
    case ISOBOX_SYMLINK:
    case ISOBOX_UNLINK: isobox_serve_name(&request, size); break;
    case ISOBOX_CHANGE: serve_change(&request, size); break;
    case ISOBOX_FILTER: isobox_serve_filter(&request, size); break;
    default: isobox_answer_code(-EBADMSG);
    }
    isobox_close_received();
}

static void reset_signals(void)
{
    /* struct sigaction of the kernel: handler, flags, restorer, mask; all 0 is SIG_DFL. */
    unsigned long action[4] = {0, 0, 0, 0};
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &all_signals, 0, sizeof all_signals);
    for (int signal = 1; signal <= 64; signal++)
        SYS4(__NR_rt_sigaction, signal, action, 0, 8);
}

void isobox_main(void);

__attribute__((noreturn, used)) void isobox_main(void)
{
    const uint64_t child = 1ull << (SIGCHLD - 1);
    reset_signals();
    SYS0(__NR_setsid); /* the host program's terminal is none of ours */
    for (int fd = 0; fd <= ISOBOX_FD_OWNER; fd++)
        set_cloexec(fd);
    long opened = SYS4(__NR_signalfd4, -1, &child, sizeof child, O_CLOEXEC | O_NONBLOCK);
    if (opened < 0)
        isobox_leave(1);
    signal_fd = (int)opened;

    struct pollfd watched[3] = {
        {ISOBOX_FD_CONTROL, POLLIN, 0}, {ISOBOX_FD_OWNER, POLLIN, 0}, {signal_fd, POLLIN, 0}};
    int ready = 0;
    for (;;) {
        /* It fails where the container's root has taken our descriptors away (RLIMIT_NOFILE): we would not see the
         * owner's end, and outlive it. */
        if (SYS5(__NR_ppoll, watched, 3, 0, 0, 0) < 0)
            isobox_leave(1);
        if (watched[1].revents)
            isobox_leave(0);
        if (watched[2].revents) {
            unsigned char info[128 * 8];
            SYS3(__NR_read, signal_fd, info, sizeof info);
            isobox_reap();
        }
        if (!watched[0].revents)
            continue;
        if (ready) {
            serve();
            continue;
        }
        long size = isobox_take_message();
        struct isobox_request request;
        if (size < (long)sizeof request || !isobox_received_all)
            isobox_leave(0);
        memcpy(&request, isobox_message, sizeof request);
        if (request.kind == ISOBOX_THAW)
            thaw_at_end(&request, size);
        if (request.kind != ISOBOX_SETUP && request.kind != ISOBOX_PREPARE)
            isobox_leave(1);
        setup(&request, size);
        isobox_close_received();
        ready = request.kind == ISOBOX_SETUP;
    }
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall isobox_main\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tbl isobox_main\n\tbrk #1\n");
#endif
