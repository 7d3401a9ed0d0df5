/* Landlock: rules that a process takes on for itself and its children, for good. See landlock(7).
 *
 * One ruleset is in hand. isobox-init makes it once; the child of an exec, which shares our memory, only
 * takes it on: one system call. */
#include "ops.h"

enum {
    EBADF_ = 9,
    EINVAL_ = 22,
    AT_FDCWD_ = -100,
    O_CLOEXEC_ = 02000000,
    O_PATH_ = 010000000,
    RESOLVE_NO_MAGICLINKS_ = 0x02,
    RULE_PATH_BENEATH = 1,
    RULE_NET_PORT = 2,
    /* EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV: the rights that a file has too. */
    ACCESS_FILE = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15,
};

int isobox_ruleset = -1;

static void drop_ruleset(void)
{
    if (isobox_ruleset >= 0)
        SYS1(__NR_close, isobox_ruleset);
    isobox_ruleset = -1;
}

long isobox_landlock_ruleset(long long fs, long long net, long long scoped)
{
    /* Kernels that know less of it take it all the same, as long as the rest is 0. */
    struct {
        uint64_t fs, net, scoped;
    } attr = {(uint64_t)fs, (uint64_t)net, (uint64_t)scoped};
    drop_ruleset();
    long fd = SYS3(__NR_landlock_create_ruleset, &attr, sizeof attr, 0);
    if (fd < 0)
        return fd;
    isobox_ruleset = (int)fd; /* close-on-exec: the kernel makes no other */
    return 0;
}

long isobox_landlock_path(const char *path, long long access)
{
    struct {
        uint64_t allowed;
        int parent_fd;
    } __attribute__((packed)) rule = {(uint64_t)access, -1};
    struct isobox_open_how how = {O_PATH_ | O_CLOEXEC_, 0, RESOLVE_NO_MAGICLINKS_};
    long fd = SYS4(__NR_openat2, AT_FDCWD_, path, &how, sizeof how);
    if (fd < 0)
        return fd;
    rule.parent_fd = (int)fd;
    long failed = SYS4(__NR_landlock_add_rule, isobox_ruleset, RULE_PATH_BENEATH, &rule, 0);
    if (failed == -EINVAL_ && access & ~ACCESS_FILE) { /* not a directory: the rights of directories don't fit */
        rule.allowed &= ACCESS_FILE;
        failed = SYS4(__NR_landlock_add_rule, isobox_ruleset, RULE_PATH_BENEATH, &rule, 0);
    }
    SYS1(__NR_close, fd);
    return failed;
}

long isobox_landlock_port(long long access, long long port)
{
    struct {
        uint64_t allowed, port;
    } rule = {(uint64_t)access, (uint64_t)port};
    return SYS4(__NR_landlock_add_rule, isobox_ruleset, RULE_NET_PORT, &rule, 0);
}

long isobox_landlock_restrict(int drop)
{
    if (isobox_ruleset < 0)
        return -EBADF_;
    long failed = SYS2(__NR_landlock_restrict_self, isobox_ruleset, 0);
    if (drop) /* never in the child of an exec: the number is our parent's too */
        drop_ruleset();
    return failed;
}
