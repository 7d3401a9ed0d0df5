/* The execs that run: one slot each, from the program's start until its end has been told.
 *
 * A slot is taken once the program has become a child of ours, and given back when it (and its keeper, if it has
 * one: see clones.c) has been reaped. Only we reap, so a pid in a slot is that exec's: no other process gets it. */
#include "init.h"

enum {
    PID_ENDED = -1,
};

struct exec_slot {
    long long id;
    long long start_ns;
    int pid; /* 0: free; PID_ENDED: it has ended, its keeper not yet */
    int status_fd;
    int held[2]; /* stdout and stderr of an exec whose caller waits for the end only; -1 */
    int keeper;  /* the first process of its own PID namespace, 0: it has none */
};

static struct exec_slot slots[ISOBOX_EXECS_MAX];
static int slots_used; /* slots at and above were never used */
static struct isobox_reply endings[ISOBOX_EXECS_MAX]; /* of those whose keeper has not ended */

static int free_slot(void)
{
    for (int i = 0; i < slots_used; i++)
        if (slots[i].pid == 0)
            return i;
    return slots_used < ISOBOX_EXECS_MAX ? slots_used++ : -1;
}

/* fds[0] is the exec's status pipe; the plan refers to the others by their index. */
void isobox_serve_exec(const struct isobox_request *request, long size)
{
    struct isobox_reply reply;
    struct isobox_child child;
    void *mapped;
    long pid = -EBADMSG;
    memset(&reply, 0, sizeof reply);
    if (isobox_received_count == 0 && !isobox_received_all)
        isobox_leave(1); /* its caller would wait for an end that nobody tells */
    if (isobox_received_count == 0)
        return;
    int slot = free_slot();
    int cgroup_fd = -1, keeper = 0;
    if (request->flags & ISOBOX_CGROUP_FD && request->arg[1] >= 0 && request->arg[1] < isobox_received_count)
        cgroup_fd = isobox_received[request->arg[1]];
    child.run = isobox_plan_of(request, size, &mapped);
    child.failed = 0;
    reply.start_ns = isobox_now();
    if (slot < 0) {
        pid = -ENOSPC;
    } else if (!child.run.ops) {
        pid = isobox_received_all ? -EBADMSG : -EMFILE;
    } else if (request->flags & ISOBOX_OWN_PIDNS) {
        pid = isobox_clone_into_own_pids(&child, &keeper);
    } else if (request->flags & ISOBOX_FILTERED) {
        pid = cgroup_fd < 0 ? isobox_clone_filtered(&child) : -EBADMSG;
    } else if (request->flags & ISOBOX_OWN_MEMORY) {
        pid = isobox_clone_limited(&child, cgroup_fd);
    } else {
        pid = isobox_clone_exec(&child, cgroup_fd);
    }
    if (mapped)
        SYS2(__NR_munmap, mapped, request->size);
    if (pid < 0 || child.failed) {
        reply.kind = ISOBOX_FAILED;
        reply.op = pid < 0 ? -1 : child.run.op;
        reply.error = (int)-(pid < 0 ? pid : child.failed);
        isobox_report(isobox_received[0], &reply);
        return;
    }
    slots[slot].id = request->id;
    slots[slot].start_ns = reply.start_ns;
    slots[slot].pid = (int)pid;
    slots[slot].keeper = keeper;
    slots[slot].status_fd = isobox_received[0];
    for (unsigned int i = 0; i < 2; i++) {
        unsigned int place = 2 + i; /* after the status and stdin */
        int hold = request->flags & ISOBOX_HOLD && place < isobox_received_count;
        slots[slot].held[i] = hold ? isobox_received[place] : -1;
        if (hold)
            isobox_received[place] = -1;
    }
    if (request->flags & ISOBOX_WANT_START) {
        reply.kind = ISOBOX_STARTED;
        reply.status = (int)pid;
        isobox_report(isobox_received[0], &reply);
    }
    isobox_received[0] = -1;
}

static struct exec_slot *find_exec(long long id)
{
    for (int i = 0; i < slots_used; i++)
        if (slots[i].pid > 0 && slots[i].id == id)
            return &slots[i];
    return 0;
}

/* Only we reap, so a pid in the table is that exec's until we take it out: no reuse race. */
void isobox_serve_signal(const struct isobox_request *request)
{
    struct exec_slot *exec = find_exec(request->arg[0]);
    isobox_answer_code(exec ? SYS2(__NR_kill, exec->pid, request->arg[1]) : -ESRCH);
}

void isobox_serve_locate(const struct isobox_request *request)
{
    struct isobox_reply reply;
    struct exec_slot *exec = find_exec(request->arg[0]);
    if (!exec) {
        isobox_answer_code(-ESRCH);
        return;
    }
    memset(&reply, 0, sizeof reply);
    reply.kind = ISOBOX_DONE;
    reply.status = exec->pid;
    isobox_answer(&reply, 0, exec->pid);
}

static void add_usage(struct isobox_reply *reply, const long *rusage)
{
    reply->user_us += (long long)rusage[0] * 1000000 + rusage[1];
    reply->system_us += (long long)rusage[2] * 1000000 + rusage[3];
    if (reply->maxrss_kib < rusage[4])
        reply->maxrss_kib = rusage[4];
}

static void tell_end(int slot, struct isobox_reply *reply)
{
    isobox_report(slots[slot].status_fd, reply);
    SYS1(__NR_close, slots[slot].status_fd);
    for (int held = 0; held < 2; held++)
        if (slots[slot].held[held] >= 0)
            SYS1(__NR_close, slots[slot].held[held]);
    slots[slot].pid = slots[slot].keeper = 0;
}

/* The end of a program with a keeper is told once its keeper, and so everything that it started, has
 * ended. A keeper can't end before: the kernel keeps it until we have reaped the program. */
void isobox_reap(void)
{
    for (;;) {
        int status = 0;
        long rusage[18];
        long pid = SYS4(__NR_wait4, -1, &status, WNOHANG, rusage);
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
            reply.end_ns = isobox_now();
            add_usage(&reply, rusage);
            if (slots[i].keeper) {
                endings[i] = reply;
                slots[i].pid = PID_ENDED;
                SYS2(__NR_kill, slots[i].keeper, SIGKILL);
            } else {
                tell_end(i, &reply);
            }
            break;
        }
    }
}
