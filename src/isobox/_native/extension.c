/* The host's side: what `os` lacks, and the loop that waits for an exec. Every function releases the
 * GIL (cffi does) and returns 0 or a positive value, or a negative errno. No policy, no paths. */
#define _GNU_SOURCE
#include "extension.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
#ifndef MFD_EXEC
#define MFD_EXEC 0x10U
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#define ISOBOX_MOUNT_ATTR_IDMAP 0x00100000

/* isobox-init in memory that nothing can change any more. `mode` 0100 makes it unreadable for the
 * container, which with an unmapped owner also makes its PID 1 untraceable from inside. */
int isobox_init_memfd(const unsigned char *program, unsigned long size, unsigned int mode)
{
    int fd = memfd_create("isobox-init", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create("isobox-init", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    unsigned long done = 0;
    while (done < size) {
        ssize_t written = write(fd, program + done, size - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            goto failed;
        done += (unsigned long)written;
    }
    if (fchmod(fd, mode) || fcntl(fd, F_ADD_SEALS, 0xf /* seal, shrink, grow, write */))
        goto failed;
    return fd;
failed:;
    int error = errno ? errno : EIO;
    close(fd);
    return -error;
}

/* Between clone and execveat: in the host program's memory, its thread suspended. Raw calls only. */
struct newborn {
    struct isobox_spawn *spawn;
    int fds[3]; /* control, owner, init */
};

__attribute__((no_sanitize("address", "undefined"))) static void fail(struct newborn *self, int stage, long error)
{
    self->spawn->stage = stage;
    self->spawn->error = (int)-error;
    for (;;)
        SYS1(__NR_exit_group, 127);
}

/* A program exec'd in a fresh user namespace loses its capabilities unless they are ambient. */
__attribute__((no_sanitize("address", "undefined"))) static void keep_capabilities(struct newborn *self)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    long failed = SYS2(__NR_capget, &header, data);
    for (int half = 0; half < 2; half++)
        data[half].inheritable = data[half].permitted;
    if (!failed)
        failed = SYS2(__NR_capset, &header, data);
    if (failed)
        fail(self, ISOBOX_SPAWN_CAPABILITIES, failed);
    for (int capability = 0; capability < 64; capability++) {
        failed = SYS5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
        if (failed == -EINVAL)
            break; /* past the kernel's last */
    }
}

__attribute__((no_sanitize("address", "undefined"))) static void newborn_main(void *argument)
{
    struct newborn *self = argument;
    static const char name[] = "isobox-init";
    static const char *const argv[] = {name, 0};
    static const char *const envp[] = {0};
    long failed;
    if (self->spawn->flags & CLONE_NEWUSER)
        keep_capabilities(self);
    /* First out of the way of the numbers that they are to have, then into place. */
    for (int i = 0; i < 3; i++) {
        failed = SYS3(__NR_fcntl, self->fds[i], F_DUPFD_CLOEXEC, 16);
        if (failed < 0)
            fail(self, ISOBOX_SPAWN_DESCRIPTORS, failed);
        self->fds[i] = (int)failed;
    }
    for (int target = 0; target <= ISOBOX_FD_OWNER; target++) {
        /* 0 to 2 hold the owner's pidfd too, so that no descriptor of an exec gets these numbers. */
        failed = SYS3(__NR_dup3, self->fds[target == ISOBOX_FD_CONTROL ? 0 : 1], target, 0);
        if (failed < 0)
            fail(self, ISOBOX_SPAWN_DESCRIPTORS, failed);
    }
    failed = SYS3(__NR_dup3, self->fds[2], ISOBOX_FD_OWNER + 1, O_CLOEXEC);
    if (failed < 0)
        fail(self, ISOBOX_SPAWN_DESCRIPTORS, failed);
    /* A host program may hold descriptors without CLOEXEC: none of them may come along. */
    failed = isobox_close_from(ISOBOX_FD_OWNER + 2, -1);
    if (failed < 0)
        fail(self, ISOBOX_SPAWN_DESCRIPTORS, failed);
    failed = SYS5(__NR_execveat, ISOBOX_FD_OWNER + 1, "", argv, envp, AT_EMPTY_PATH);
    fail(self, ISOBOX_SPAWN_EXEC, failed);
}

/* clone(CLONE_VM | CLONE_VFORK): costs the same whatever the host program has resident. */
int isobox_spawn_init(struct isobox_spawn *spawn)
{
    enum { STACK = 16384 };
    unsigned char stack[STACK] __attribute__((aligned(16)));
    struct newborn self = {spawn, {spawn->control_fd, spawn->owner_fd, spawn->init_fd}};
    sigset_t all, before;
    int pidfd = -1;

    /* No exit signal until its execve, which makes it SIGCHLD (de_thread in fs/exec.c). */
    uint64_t flags = spawn->flags | CLONE_VM | CLONE_VFORK | CLONE_PIDFD;
    spawn->error = 0;
    spawn->stage = ISOBOX_SPAWN_CLONE;
    /* A signal handler of the host program must not run in the child, which shares its memory. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    long pid = isobox_clone_into(spawn->cgroup_fd, flags, stack, STACK, &pidfd, newborn_main, &self);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    if (pid < 0) {
        spawn->error = (int)-pid;
        return spawn->error ? -spawn->error : -EIO;
    }
    if (spawn->error) { /* the child is gone already: reap it here */
        siginfo_t info;
        while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | __WALL) < 0 && errno == EINTR)
            ;
        close(pidfd);
        return -spawn->error;
    }
    spawn->pid = (int)pid;
    spawn->pidfd = pidfd;
    return 0;
}

/* The mask of blocked signals of this thread, signal n as bit n - 1: adds to it, returns what it was. */
unsigned long long isobox_block_signals(unsigned long long more)
{
    uint64_t before = 0;
    SYS4(__NR_rt_sigprocmask, SIG_BLOCK, &more, &before, sizeof before);
    return before;
}

void isobox_set_signals(unsigned long long blocked)
{
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &blocked, 0, sizeof blocked);
}

union ancillary {
    struct cmsghdr head;
    unsigned char bytes[CMSG_SPACE(sizeof(int) * ISOBOX_FDS_MAX)];
};

/* One message with descriptors on a SOCK_SEQPACKET socket. */
int isobox_send(int sock, const unsigned char *data, unsigned long size, const int *fds, unsigned int nfds)
{
    struct iovec iov = {(void *)(uintptr_t)data, size};
    union ancillary control;
    struct msghdr header;
    memset(&header, 0, sizeof header);
    header.msg_iov = &iov;
    header.msg_iovlen = 1;
    if (nfds > ISOBOX_FDS_MAX)
        return -E2BIG;
    if (nfds) {
        memset(&control.head, 0, sizeof control.head);
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        memcpy(CMSG_DATA(&control.head), fds, sizeof(int) * nfds);
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
    }
    ssize_t sent;
    do
        sent = sendmsg(sock, &header, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

static long long monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* What is left until `deadline_ns` (CLOCK_MONOTONIC), for ppoll; 0 where it waits for ever. */
static struct timespec *time_left(long long deadline_ns, struct timespec *timeout)
{
    if (deadline_ns < 0)
        return 0;
    long long left = deadline_ns - monotonic_ns();
    if (left < 0)
        left = 0;
    timeout->tv_sec = left / 1000000000;
    timeout->tv_nsec = left % 1000000000;
    return timeout;
}

/* One reply from inside: untrusted. A wrong size is EBADMSG; surplus descriptors are closed. `fd` and
 * `pid` (as this process sees it) are -1 where the reply carried none. 0 on success. */
int isobox_receive(int sock, struct isobox_reply *reply, int *fd, int *pid, int timeout_ms)
{
    struct iovec iov = {reply, sizeof *reply};
    union ancillary control;
    struct msghdr header;
    struct pollfd watched = {sock, POLLIN, 0};
    long long deadline = monotonic_ns() + timeout_ms * 1000000LL, left = timeout_ms;
    int ready;
    *fd = *pid = -1;
    if (sock < 0) /* closed: poll would ignore it */
        return -EBADF;
    /* Signals wait: an answer that is not taken would be the next request's. */
    while ((ready = poll(&watched, 1, (int)left)) < 0 && errno == EINTR) {
        left = (deadline - monotonic_ns()) / 1000000;
        if (left < 0)
            left = 0;
    }
    if (ready <= 0)
        return ready == 0 ? -ETIMEDOUT : -errno;
    memset(&header, 0, sizeof header);
    header.msg_iov = &iov;
    header.msg_iovlen = 1;
    header.msg_control = &control;
    header.msg_controllen = sizeof control;
    ssize_t size = recvmsg(sock, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && errno == ECONNRESET) /* once: it ended with requests unread; what it said comes next */
        size = recvmsg(sock, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0)
        return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len >= CMSG_LEN(sizeof(struct ucred))) {
            struct ucred sender;
            memcpy(&sender, CMSG_DATA(c), sizeof sender);
            *pid = sender.pid;
        }
        if (c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int got;
            memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
            if (*fd < 0)
                *fd = got;
            else
                close(got);
        }
    }
    if (size == 0 && *fd < 0 && *pid < 0) /* the end; an empty message has its sender's credentials */
        return -EPIPE;
    if (size != (ssize_t)sizeof *reply || header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        if (*fd >= 0)
            close(*fd);
        *fd = -1;
        return -EBADMSG;
    }
    return 0;
}

static void close_stream(struct isobox_stream *stream)
{
    if (stream->fd >= 0)
        close(stream->fd);
    stream->fd = -1;
}

/* Reads once. 1: got something, 0: nothing more now or ever (fd closed at EOF), -errno, 2: past the limit. */
static int read_stream(struct isobox_pump *pump, struct isobox_stream *stream)
{
    if (stream->room - stream->size < 4096) {
        unsigned long room = stream->room ? stream->room * 2 : 16384;
        unsigned char *data = realloc(stream->data, room);
        if (!data)
            return -ENOMEM;
        stream->data = data;
        stream->room = room;
    }
    ssize_t got = read(stream->fd, stream->data + stream->size, stream->room - stream->size);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (got <= 0) { /* EIO: the other end of a terminal is gone */
        close_stream(stream);
        return 0;
    }
    if (stream->size < 65536 && stream->size + (unsigned long)got >= 65536)
        fcntl(stream->fd, F_SETPIPE_SZ, 1 << 20); /* a flood: fewer, larger reads; may be refused */
    stream->size += (unsigned long)got;
    if (pump->stream[0].size + pump->stream[1].size > pump->limit) {
        stream->size -= pump->stream[0].size + pump->stream[1].size - pump->limit;
        return 2;
    }
    return 1;
}

/* Whether it has read so much since the end that all of it can't have been in the pipe then. */
static int is_refilled(const struct isobox_stream *stream, unsigned long drained)
{
    if (drained < 65536)
        return 0;
    int room = fcntl(stream->fd, F_GETPIPE_SZ);
    return drained >= (room < 65536 ? 65536 : (unsigned long)room);
}

/* What is in the pipes now; those that wrote have ended. Another program, to which one of them gave its end of a
 * pipe, may write on for ever: at most what the pipe holds is read. */
static int drain(struct isobox_pump *pump)
{
    for (int i = 0; i < 2; i++) {
        struct isobox_stream *stream = &pump->stream[i];
        unsigned long before = stream->size;
        while (stream->fd >= 0 && !is_refilled(stream, stream->size - before)) {
            struct pollfd watched = {stream->fd, POLLIN, 0};
            if (poll(&watched, 1, 0) <= 0)
                break;
            int result = read_stream(pump, stream);
            if (result < 0 || result == 2)
                return result;
        }
    }
    return 0;
}

static int pump_failed(struct isobox_pump *pump, int error)
{
    pump->error = error;
    return ISOBOX_PUMP_ERROR;
}

static void feed(struct isobox_pump *pump)
{
    ssize_t written = write(pump->stdin_fd, pump->input + pump->input_done, pump->input_size - pump->input_done);
    if (written > 0)
        pump->input_done += (unsigned long)written;
    int over = pump->input_done >= pump->input_size;
    if (over || (written < 0 && errno != EAGAIN && errno != EINTR)) { /* EPIPE: it doesn't want to know */
        close(pump->stdin_fd);
        pump->stdin_fd = -1;
    }
}

static int read_status(struct isobox_pump *pump)
{
    struct isobox_reply reply;
    ssize_t got = read(pump->status_fd, &reply, sizeof reply);
    if (got < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : pump_failed(pump, errno);
    if (got == 0)
        return ISOBOX_PUMP_LOST;
    if (got != (ssize_t)sizeof reply)
        return pump_failed(pump, EBADMSG);
    if (reply.kind == ISOBOX_STARTED && !pump->started++) /* once: without end they would keep us here */
        return 0;
    if (reply.kind != ISOBOX_ENDED && reply.kind != ISOBOX_FAILED)
        return pump_failed(pump, EBADMSG);
    pump->reply = reply;
    pump->have_status = 1;
    int drained = drain(pump);
    if (drained < 0)
        return pump_failed(pump, -drained);
    return drained == 2 ? ISOBOX_PUMP_LIMIT : ISOBOX_PUMP_ENDED;
}

enum {
    AT_A_TIME = 16 << 20, /* bytes: some milliseconds of a flood */
};

static unsigned long bytes_moved(const struct isobox_pump *pump)
{
    return pump->stream[0].size + pump->stream[1].size + pump->input_done;
}

/* Waits for an exec: reads its streams, feeds its stdin, until its record arrives, the deadline
 * (CLOCK_MONOTONIC, -1: none) passes, the limit is passed, or watch_fd stirs. Call again to go on. With
 * have_status set it only drains. Returns enum isobox_pump_event. */
int isobox_pump_run(struct isobox_pump *pump, long long deadline_ns)
{
    if (pump->have_status) {
        int drained = drain(pump);
        if (drained < 0)
            return pump_failed(pump, -drained);
        return drained == 2 ? ISOBOX_PUMP_LIMIT : ISOBOX_PUMP_ENDED;
    }
    if (pump->stdin_fd >= 0)
        fcntl(pump->stdin_fd, F_SETFL, fcntl(pump->stdin_fd, F_GETFL) | O_NONBLOCK);
    unsigned long before = bytes_moved(pump);
    for (;;) {
        struct pollfd watched[5] = {
            {pump->status_fd, POLLIN, 0},
            {pump->stream[0].fd, POLLIN, 0},
            {pump->stream[1].fd, POLLIN, 0},
            {pump->stdin_fd, POLLOUT, 0},
            {pump->watch_fd, (short)pump->watch_events, 0},
        };
        struct timespec timeout;
        int ready = ppoll(watched, 5, time_left(deadline_ns, &timeout), 0);
        if (ready < 0)
            return errno == EINTR ? ISOBOX_PUMP_INTERRUPTED : pump_failed(pump, errno);
        if (ready == 0)
            return ISOBOX_PUMP_DEADLINE;
        for (int i = 0; i < 2; i++) {
            if (!watched[1 + i].revents)
                continue;
            int result = read_stream(pump, &pump->stream[i]);
            if (result < 0)
                return pump_failed(pump, -result);
            if (result == 2)
                return ISOBOX_PUMP_LIMIT;
        }
        if (watched[3].revents)
            feed(pump);
        if (watched[0].revents) {
            int event = read_status(pump);
            if (event)
                return event;
        }
        if (deadline_ns >= 0 && monotonic_ns() >= deadline_ns) /* first: what stirs all the time must not hide it */
            return ISOBOX_PUMP_DEADLINE;
        if (watched[4].revents)
            return ISOBOX_PUMP_WATCH;
        if (bytes_moved(pump) - before >= AT_A_TIME) /* signals seldom meet ppoll in a flood */
            return ISOBOX_PUMP_INTERRUPTED;
    }
}

/* The first record of an exec whose start was asked for, into `reply`. 0, DEADLINE, LOST, INTERRUPTED or ERROR. */
int isobox_pump_first(struct isobox_pump *pump, long long deadline_ns)
{
    struct isobox_reply reply;
    struct pollfd watched = {pump->status_fd, POLLIN, 0};
    struct timespec timeout;
    int ready = ppoll(&watched, 1, time_left(deadline_ns, &timeout), 0);
    if (ready < 0)
        return errno == EINTR ? ISOBOX_PUMP_INTERRUPTED : pump_failed(pump, errno);
    if (ready == 0)
        return ISOBOX_PUMP_DEADLINE;
    ssize_t got = read(pump->status_fd, &reply, sizeof reply);
    if (got < 0)
        return errno == EINTR ? ISOBOX_PUMP_INTERRUPTED : pump_failed(pump, errno);
    if (got == 0)
        return ISOBOX_PUMP_LOST;
    if (got != (ssize_t)sizeof reply || (reply.kind != ISOBOX_STARTED && reply.kind != ISOBOX_FAILED))
        return pump_failed(pump, EBADMSG);
    pump->reply = reply;
    return 0;
}

void isobox_pump_stop_reading(struct isobox_pump *pump)
{
    for (int i = 0; i < 2; i++)
        close_stream(&pump->stream[i]);
}

/* Frees the buffers and closes what the pump still holds open; the status and watch descriptors are the caller's. */
void isobox_pump_close(struct isobox_pump *pump)
{
    for (int i = 0; i < 2; i++) {
        close_stream(&pump->stream[i]);
        free(pump->stream[i].data);
        pump->stream[i].data = 0;
        pump->stream[i].size = pump->stream[i].room = 0;
    }
    if (pump->stdin_fd >= 0)
        close(pump->stdin_fd);
    pump->stdin_fd = -1;
}

/* A detached copy of the mount at `path` (relative to dirfd), without the mounts below it unless `recursive`. */
int isobox_clone_tree(int dirfd, const char *path, int recursive)
{
    unsigned int flags = OPEN_TREE_CLONE | O_CLOEXEC | (recursive ? 0x8000U /* AT_RECURSIVE */ : 0U);
    if (!path[0])
        flags |= AT_EMPTY_PATH;
    int fd = (int)syscall(SYS_open_tree, dirfd, path, flags);
    return fd < 0 ? -errno : fd;
}

/* mount_setattr on a detached mount; `userns_fd` >= 0 makes it an idmapped mount. */
int isobox_mount_setattr(int fd, unsigned long long set, int recursive, int userns_fd)
{
    struct isobox_mount_attr attr = {set, 0, 0, 0};
    if (userns_fd >= 0) {
        attr.set |= ISOBOX_MOUNT_ATTR_IDMAP;
        attr.userns_fd = (uint64_t)userns_fd;
    }
    unsigned int flags = AT_EMPTY_PATH | (recursive ? 0x8000U : 0U);
    return syscall(__NR_mount_setattr, fd, "", flags, &attr, sizeof attr) < 0 ? -errno : 0;
}

/* All that was written to the file system of `fd` is on its disk: syncfs(2). */
int isobox_sync_file_system(int fd)
{
    return syncfs(fd) < 0 ? -errno : 0;
}

/* What the kernel says to a call with every flag and no descriptor: a negative errno. For calls that take flags. */
int isobox_try_call(long number)
{
    return syscall(number, -1L, -1L, -1L, -1L, -1L, -1L) < 0 ? -errno : 0;
}

/* The version of Landlock's ABI, or a negative errno: LANDLOCK_CREATE_RULESET_VERSION in landlock(7). */
int isobox_landlock_abi(void)
{
    int version = (int)syscall(444, (void *)0, (size_t)0, 1U);
    return version < 0 ? -errno : version;
}

/* A detached tmpfs; its owner in every sense is the caller. */
int isobox_new_tmpfs(const char *size, const char *mode)
{
    int context = (int)syscall(SYS_fsopen, "tmpfs", 1U);
    if (context < 0)
        return -errno;
    int fd = -1;
    if (syscall(SYS_fsconfig, context, 1U, "size", size, 0) == 0 &&
        syscall(SYS_fsconfig, context, 1U, "mode", mode, 0) == 0 &&
        syscall(SYS_fsconfig, context, 6U, (char *)0, (char *)0, 0) == 0)
        fd = (int)syscall(SYS_fsmount, context, 1U, 0U);
    int error = errno;
    close(context);
    return fd < 0 ? -error : fd;
}

/* A detached, read-only mount of the file system of this type that lies in a file. */
int isobox_mount_file(const char *type, const char *path)
{
    int context = (int)syscall(SYS_fsopen, type, 1U);
    if (context < 0)
        return -errno;
    int fd = -1;
    if (syscall(SYS_fsconfig, context, 1U, "source", path, 0) == 0 &&
        syscall(SYS_fsconfig, context, 0U, "ro", (char *)0, 0) == 0 &&
        syscall(SYS_fsconfig, context, 6U, (char *)0, (char *)0, 0) == 0)
        fd = (int)syscall(SYS_fsmount, context, 1U, 1U /* MOUNT_ATTR_RDONLY */);
    int error = errno;
    close(context);
    return fd < 0 ? -error : fd;
}

/* A loaded BPF_PROG_TYPE_CGROUP_DEVICE program: `code` is an array of struct bpf_insn. */
int isobox_load_device_program(const unsigned char *code, unsigned long size)
{
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attr.insns = (uint64_t)(uintptr_t)code;
    attr.insn_cnt = (uint32_t)(size / sizeof(struct bpf_insn));
    attr.license = (uint64_t)(uintptr_t) "Apache-2.0";
    int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
    return fd < 0 ? -errno : fd;
}

/* Have it decide for a v2 group and all below, beside what groups above and below have (all must agree). */
int isobox_attach_device_program(int group_fd, int program_fd)
{
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.target_fd = (uint32_t)group_fd;
    attr.attach_bpf_fd = (uint32_t)program_fd;
    attr.attach_type = BPF_CGROUP_DEVICE;
    attr.attach_flags = BPF_F_ALLOW_MULTI;
    return syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof attr) < 0 ? -errno : 0;
}
