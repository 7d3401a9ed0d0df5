/* Landlock: rules that a process takes on for itself and its children, for good. See landlock(7).
 *
 * One ruleset is in hand. isobox-init makes it once; the child of an exec, which shares our memory, only
 * takes it on: one system call. */
#include "ops.h"

enum {
    RULE_PATH_BENEATH = 1,
    RULE_NET_PORT = 2,
    /* EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV: the rights that a file has too. */
    ACCESS_FILE = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15,
};

int isobox_ruleset = -1;

long isobox_landlock_ruleset(long long fs, long long net, long long scoped)
{
    /* Kernels that know less of it take it all the same, as long as the rest is 0. */
    struct {
        uint64_t fs, net, scoped;
    } attr = {(uint64_t)fs, (uint64_t)net, (uint64_t)scoped};
    /* close-on-exec: the kernel makes no other */
    return isobox_hold(&isobox_ruleset, SYS3(__NR_landlock_create_ruleset, &attr, sizeof attr, 0));
}

long isobox_landlock_path(const char *path, long long access)
{
    struct {
        uint64_t allowed;
        int parent_fd;
    } __attribute__((packed)) rule = {(uint64_t)access, -1};
    long fd = isobox_open_resolving(AT_FDCWD, path, O_PATH, 0);
    if (fd < 0)
        return fd;
    rule.parent_fd = (int)fd;
    long failed = SYS4(__NR_landlock_add_rule, isobox_ruleset, RULE_PATH_BENEATH, &rule, 0);
    if (failed == -EINVAL && access & ~ACCESS_FILE) { /* not a directory: the rights of directories don't fit */
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
        return -EBADF;
    long failed = SYS2(__NR_landlock_restrict_self, isobox_ruleset, 0);
    if (drop) /* never in the child of an exec: the number is our parent's too */
        isobox_let_go(&isobox_ruleset);
    return failed;
}
