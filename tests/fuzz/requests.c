/* isobox-init whole: any messages on its control socket, with any answers of the kernel on the way.
 *
 * The input is a row of messages: how many descriptors come along, the size in 16 bits, the bytes. The kernel
 * here keeps a table of open descriptors, which shows what is closed twice or never, and runs the children and
 * the thread that are cloned, at once and until they end or wait. */
#include "init.c"

#include "clones.c"
#include "copy.c"
#include "execs.c"
#include "messages.c"
#include "paths.c"

#include "input.h"

#include <asm/statfs.h>
#include <sanitizer/asan_interface.h>

enum { FILES = 1024, MAPS = 8, CHILDREN = 256 };

static jmp_buf over, child_over, thread_over;
static int orderly; /* it was done with the last message */
static struct {
    unsigned char open[FILES];
    unsigned char before[FILES]; /* a child has a table of its own */
    int in_child, in_thread;
    void (*thread)(void *);
    int left_root; /* openat2 has just failed */
    long next_pid;
    unsigned int count;
    int child[CHILDREN];
    void *map[MAPS];
} now_;

static const uint8_t *pending; /* a payload in a memfd: what follows its message */
static size_t pending_size;

static long new_file(void)
{
    for (int fd = 8; fd < FILES; fd++)
        if (!now_.open[fd])
            return now_.open[fd] = 1, fd;
    return -24; /* EMFILE */
}

static void close_file(long fd)
{
    if (fd < 0 || fd >= FILES || !now_.open[fd])
        wrong("closed what is not open");
    now_.open[fd] = 0;
}

static const uint8_t *take(size_t size)
{
    const uint8_t *at = input;
    if (size > input_size)
        return 0;
    input += size;
    input_size -= size;
    return at;
}

static long receive_message(struct isobox_msghdr *header)
{
    const uint8_t *head = take(3);
    orderly = !head || !(head[0] | head[1] | head[2]);
    if (orderly) /* the owner closed its end */
        return 0;
    size_t size = head[1] | (size_t)head[2] << 8;
    if (size > input_size)
        size = input_size;
    const uint8_t *data = take(size);
    unsigned int count = head[0] % (ISOBOX_FDS_MAX + 20), room = (unsigned int)(header->controllen - 16) / sizeof(int);
    struct isobox_cmsghdr *control_head = header->control;
    header->flags = 0;
    if (count > room)
        count = room, header->flags |= MSG_CTRUNC;
    if (size > header->iov->iov_len)
        size = header->iov->iov_len, header->flags |= MSG_TRUNC;
    ASAN_UNPOISON_MEMORY_REGION(isobox_message, sizeof isobox_message);
    memcpy(header->iov->iov_base, data, size);
    /* What is behind it is of another message. */
    ASAN_POISON_MEMORY_REGION(isobox_message + size, sizeof isobox_message - size);
    header->controllen = 0;
    if (count) {
        int *fds = (int *)(control_head + 1);
        for (unsigned int i = 0; i < count; i++)
            if ((fds[i] = (int)new_file()) < 0)
                count = i, header->flags |= MSG_CTRUNC;
        control_head->len = sizeof *control_head + count * sizeof(int);
        control_head->level = SOL_SOCKET;
        control_head->type = SCM_RIGHTS;
        header->controllen = control_head->len;
    }
    pending = input;
    pending_size = input_size;
    return (long)size;
}

static long add_child(void)
{
    if (now_.count == CHILDREN)
        return -EAGAIN;
    now_.child[now_.count++] = (int)++now_.next_pid;
    return now_.next_pid;
}

long kernel_clone(uint64_t flags, int *child_tid, void (*entry)(void *), void *arg)
{
    unsigned int answer = decide();
    if (answer > 0xc0)
        return -(long)(answer - 0xc0);
    if (flags & CLONE_CHILD_CLEARTID)
        *child_tid = 0;
    if (flags & CLONE_THREAD) {
        if (!(flags & CLONE_CHILD_CLEARTID)) /* the other one only waits */
            now_.thread = entry;
        return ++now_.next_pid;
    }
    if (flags & CLONE_VM) {
        memcpy(now_.before, now_.open, sizeof now_.open);
        now_.in_child++;
        if (!setjmp(child_over))
            entry(arg);
        now_.in_child--;
        memcpy(now_.open, now_.before, sizeof now_.open);
    }
    return add_child();
}

static void run_thread(void)
{
    if (!now_.thread)
        wrong("waits for a thread that is not there");
    now_.in_thread = 1;
    if (!setjmp(thread_over))
        now_.thread(0);
    now_.in_thread = 0;
}

static long wait_for(int *status, long *rusage)
{
    if (!now_.count)
        return -10; /* ECHILD */
    if (!decide())
        return 0;
    unsigned int which = decide() % now_.count;
    int pid = now_.child[which];
    now_.child[which] = now_.child[--now_.count];
    if (status)
        *status = (int)(decide() << 8 | decide());
    for (int i = 0; rusage && i < 18; i++)
        rusage[i] = i;
    return pid;
}

static long map(size_t size, long fd)
{
    if (size > 1 << 16 && fd >= 0)
        return -12; /* ENOMEM */
    for (int i = 0; i < MAPS; i++)
        if (!now_.map[i]) {
            now_.map[i] = calloc(1, size);
            if (fd >= 0)
                memcpy(now_.map[i], pending, size < pending_size ? size : pending_size);
            return (long)now_.map[i];
        }
    return -12;
}

static long unmap(long at)
{
    for (int i = 0; i < MAPS; i++)
        if (at && now_.map[i] == (void *)at) {
            free(now_.map[i]);
            now_.map[i] = 0;
            return 0;
        }
    wrong("unmapped what is not mapped");
}

static void __attribute__((noreturn)) end(void)
{
    if (now_.in_child)
        longjmp(child_over, 1);
    longjmp(over, 1);
}

static void creates(long directory, long path)
{
    touch_text(path);
    if (directory == AT_FDCWD && now_.left_root)
        wrong("made on the host what belongs below the new root");
}

static long check_message(const struct isobox_msghdr *header)
{
    const struct isobox_cmsghdr *ancillary = header->control;
    touch(header->iov->iov_base, header->iov->iov_len);
    touch(ancillary, header->controllen);
    if (ancillary && ancillary->type == SCM_RIGHTS && !now_.open[*(const int *)(ancillary + 1)])
        wrong("sent a descriptor that is not open");
    return (long)header->iov->iov_len;
}

static long check_strings(long at)
{
    for (char **text = (char **)at;; text++) {
        char *one;
        memcpy(&one, text, sizeof one);
        if (!one)
            return 0;
        touch_text((long)one);
    }
}

static long poll_(struct pollfd *watched, long count)
{
    if (count != 3)
        longjmp(over, 1);
    watched[1].revents = 0;
    watched[2].revents = decide() & 1;
    watched[0].revents = 1;
    return 1;
}

long kernel(long n, long a, long b, long c, long d, long e, long f)
{
    (void)f;
    switch (n) { /* what can't fail, or has its own way to */
    case __NR_exit:
    case __NR_exit_group: end();
    case __NR_ppoll: return poll_((void *)a, b);
    case __NR_recvmsg: return receive_message((void *)b);
    case __NR_sendmsg:
        now_.left_root = 0; /* the end of that request */
        return check_message((void *)b);
    case __NR_close:
        if (now_.in_child && a >= 0 && a < FILES && !now_.open[a]) /* close_range may have been there before */
            return -9; /* EBADF */
        return close_file(a), 0;
    case __NR_munmap: return unmap(a);
    case __NR_wait4: return wait_for((void *)b, (void *)d);
    case __NR_clock_gettime: return 0; /* midnight */
    case __NR_signalfd4: return new_file();
    case __NR_getpid: return 1;
    case __NR_setns:
    case __NR_rt_sigprocmask:
    case __NR_rt_sigaction: return 0;
    case __NR_futex:
        if (b == FUTEX_WAIT && now_.in_thread)
            longjmp(thread_over, 1);
        if (b == FUTEX_WAIT)
            run_thread();
        return 0;
    default: break;
    }
    unsigned int answer = decide();
    long failed = answer > 0x80 ? -(long)(answer - 0x80) : 0;
    int left_root = now_.left_root;
    now_.left_root = 0;
    switch (n) {
    case __NR_openat2:
        touch_text(b);
        touch((void *)c, (size_t)d);
        now_.left_root = failed != 0;
        return failed ? failed : new_file();
    case __NR_openat:
        now_.left_root = left_root && c & O_CREAT;
        creates(a, b);
        return failed ? failed : new_file();
    case __NR_mkdirat:
    case __NR_mknodat:
    case __NR_unlinkat:
        now_.left_root = left_root;
        creates(a, b);
        return failed;
    case __NR_symlinkat:
        now_.left_root = left_root;
        touch_text(a);
        creates(b, c);
        return failed;
    case __NR_open_tree:
        touch_text(b);
        return failed ? failed : new_file();
    case __NR_fsopen:
        touch_text(a);
        return failed ? failed : new_file();
    case __NR_fsmount:
    case __NR_pidfd_open:
    case __NR_socket: return failed ? failed : new_file();
    case __NR_fcntl: return failed ? failed : b == F_DUPFD_CLOEXEC ? new_file() : 0;
    case __NR_fsconfig:
        touch_text(c);
        if (b == FSCONFIG_SET_STRING)
            touch_text(d);
        return failed;
    case __NR_mount:
        touch_text(a), touch_text(b);
        return failed;
    case __NR_move_mount:
        touch_text(b), touch_text(d);
        return failed;
    case __NR_chdir: return touch_text(a), failed;
    case __NR_execve:
        touch_text(a);
        check_strings(b), check_strings(c);
        if (!failed)
            end();
        return failed;
    case __NR_write:
        touch((void *)b, (size_t)c);
        return failed ? failed : answer && answer < c ? (long)answer : c;
    case __NR_read: return failed; /* no mounts: mountinfo.c has them */
    case __NR_close_range:
        for (long fd = a; now_.in_child && !failed && fd < FILES; fd++)
            now_.open[fd] &= fd == c; /* the one that is spared */
        return failed;
    case __NR_landlock_create_ruleset: return touch((void *)a, (size_t)b), failed ? failed : new_file();
    case __NR_setgroups: return touch((void *)b, (size_t)a * 4), failed;
    case __NR_sethostname: return touch((void *)a, (size_t)b), failed;
    case __NR_sched_setaffinity: return touch((void *)c, (size_t)b), failed;
    case __NR_seccomp: {
        struct {
            unsigned short count;
            const void *filter;
        } *program = (void *)c;
        return touch(program->filter, program->count * 8u), failed;
    }
    case __NR_capget: return memset((void *)b, (int)answer, 24), failed;
    case __NR_statx:
        memset((void *)e, (int)answer, sizeof(struct statx));
        return failed;
    case __NR_fstatfs: return memset((void *)b, (int)answer, sizeof(struct statfs)), failed;
    case __NR_mmap: return failed ? failed : map((size_t)b, d & MAP_ANONYMOUS ? -1 : e);
    default: return failed;
    }
}

static void reset(void)
{
    memset(&now_, 0, sizeof now_);
    now_.next_pid = 1;
    memset(slots, 0, sizeof slots[0] * (unsigned int)slots_used);
    memset(&filtered, 0, sizeof filtered);
    slots_used = 0;
    new_root = -1;
    own_pids = -1;
    isobox_ruleset = -1;
    isobox_kept = -1;
    links = -1;
    isobox_received_count = 0;
    isobox_base_count = 0;
}

/* What init holds on to between two messages, and nothing else. */
static void check_files(void)
{
    close_file(signal_fd);
    if (own_pids >= 0)
        close_file(own_pids);
    if (new_root >= 0)
        close_file(new_root);
    if (isobox_ruleset >= 0)
        close_file(isobox_ruleset);
    if (isobox_kept >= 0)
        close_file(isobox_kept);
    if (links >= 0)
        close_file(links);
    for (unsigned int i = 0; i < isobox_base_count; i++)
        close_file(isobox_bases[i]);
    for (int i = 0; i < slots_used; i++) {
        if (!slots[i].pid)
            continue;
        close_file(slots[i].status_fd);
        for (int held = 0; held < 2; held++)
            if (slots[i].held[held] >= 0)
                close_file(slots[i].held[held]);
    }
    for (int fd = 0; fd < FILES; fd++)
        if (now_.open[fd])
            wrong("a descriptor was left open");
    for (int i = 0; i < MAPS; i++)
        if (now_.map[i])
            wrong("memory was left mapped");
}

static void serve_all(void)
{
    if (setjmp(over))
        return;
    isobox_main();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = data;
    input_size = size;
    orderly = 0;
    reset();
    serve_all();
    if (orderly) /* else it left in the middle, and the kernel closes what is open */
        check_files();
    for (int i = 0; i < MAPS; i++)
        free(now_.map[i]);
    return 0;
}
