/* How isobox-init is started: from a sealed memfd, by clone and execveat, in new namespaces. The host program is never
 * forked: its child shares its memory, does a few raw system calls on a stack of its own, and becomes isobox-init. */
#define _GNU_SOURCE
#include "extension.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
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
    long pid = isobox_clone_into(spawn->cgroup_fd, flags, stack, STACK, &pidfd, 0, newborn_main, &self);
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
