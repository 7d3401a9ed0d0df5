/* What mount_setattr does, by mount(2): for kernels before Linux 5.12, and where a seccomp filter hides it.
 *
 * mount(2) changes one mount at a time, and only in the mount namespace of the caller. So the mounts are
 * attached before, and those below one are found in /proc/self/mountinfo. In between nobody sees them: no
 * program runs yet in this namespace. What can't be changed for certain is an error. */
#include "ops.h"

#include <asm/statfs.h>

enum {
    ROOM = 4 << 20, /* of the text of mountinfo, tens of thousands of mounts; untouched pages cost nothing */
    MOUNTS = 1 << 16,
    SETTABLE = 1 | 2 | 4 | 8,  /* MOUNT_ATTR_*, MS_* and ST_* have the same RDONLY, NOSUID, NODEV and NOEXEC */
    SEEN_NOSYMFOLLOW = 0x2000, /* ST_NOSYMFOLLOW of libc */
};

struct isobox_statx {
    uint32_t mask;
    unsigned char other[140];
    uint64_t mount_id;
    unsigned char rest[104];
};

/* One line of mountinfo: proc(5). */
struct line {
    uint64_t id, parent;
    char *path; /* as it is, no longer escaped */
};

/* The mounts of this namespace, and which of them lie in the tree that is to be changed. */
static struct found {
    char text[ROOM];
    struct line line[MOUNTS];
    unsigned char inside[MOUNTS];
    unsigned int count;
} * found;

static long mount_id(long fd, uint64_t *id)
{
    struct isobox_statx about;
    long failed = SYS5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &about);
    if (!failed && !(about.mask & STATX_MNT_ID)) /* before Linux 5.8 */
        failed = -ENOSYS;
    *id = about.mount_id;
    return failed;
}

/* Adds attributes to those that one mount has; times of access stay as they are (mount(2), "MS_REMOUNT"). */
static long remount(long fd, long long attributes)
{
    char path[32] = "/proc/self/fd/", digits[16];
    unsigned int at = 14, count = 0;
    struct statfs about;
    for (long left = fd; left || !count; left /= 10)
        digits[count++] = (char)('0' + left % 10);
    while (count)
        path[at++] = digits[--count];
    path[at] = 0;
    long failed = SYS2(__NR_fstatfs, fd, &about);
    if (failed)
        return failed;
    unsigned long flags = MS_REMOUNT | MS_BIND | ((unsigned long)about.f_flags & SETTABLE) | (unsigned long)attributes;
    if (about.f_flags & SEEN_NOSYMFOLLOW)
        flags |= MS_NOSYMFOLLOW;
    return SYS5(__NR_mount, 0, path, 0, flags, 0);
}

static uint64_t number(char **at)
{
    uint64_t value = 0;
    while (**at >= '0' && **at <= '9')
        value = value * 10 + (uint64_t)(*(*at)++ - '0');
    while (**at == ' ')
        (*at)++;
    return value;
}

static int is_octal(char digit)
{
    return digit >= '0' && digit <= '7';
}

/* Turns \040 and the like of the word at `at` into what they stand for, and ends it; what follows it. */
static char *unescape(char *at)
{
    char *to = at;
    while (*at && *at != ' ' && *at != '\n') {
        if (*at == '\\' && is_octal(at[1]) && is_octal(at[2]) && is_octal(at[3])) {
            *to++ = (char)((at[1] - '0') << 6 | (at[2] - '0') << 3 | (at[3] - '0'));
            at += 4;
        } else {
            *to++ = *at++;
        }
    }
    char *rest = *at == ' ' ? at + 1 : at;
    *to = 0;
    return rest;
}

static long read_mounts(void)
{
    unsigned long size = 0;
    long got, fd = SYS4(__NR_openat, AT_FDCWD, "/proc/self/mountinfo", O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    while ((got = SYS3(__NR_read, fd, found->text + size, ROOM - 1 - size)) > 0)
        size += (unsigned long)got;
    SYS1(__NR_close, fd);
    if (got < 0)
        return got;
    if (size == ROOM - 1)
        return -EFBIG;
    for (char *at = found->text; *at;) {
        if (found->count == MOUNTS)
            return -EFBIG;
        struct line *line = &found->line[found->count++];
        line->id = number(&at);
        line->parent = number(&at);
        for (int word = 0; word < 2; word++) /* the device, and the root within its file system */
            for (; *at && *at++ != ' ';)
                ;
        line->path = at;
        at = unescape(at);
        while (*at && *at != '\n')
            at++;
        if (*at)
            at++;
    }
    return 0;
}

/* Marks what lies below a mount, in whatever order the kernel lists it. */
static void mark(uint64_t top)
{
    for (int more = 1; more;) {
        more = 0;
        for (unsigned int i = 0; i < found->count; i++) {
            if (found->inside[i] || found->line[i].id == top)
                continue;
            int inside = found->line[i].parent == top;
            for (unsigned int j = 0; j < found->count && !inside; j++)
                inside = found->inside[j] && found->line[j].id == found->line[i].parent;
            found->inside[i] = (unsigned char)inside;
            more |= inside;
        }
    }
}

/* One below: where the path leads to another mount than it or what it is on, that one covers it, and nobody
 * inside gets behind it. Where it leads to what it is on, somebody is renaming things. */
static long remount_below(const struct line *line, long long attributes)
{
    uint64_t id;
    long fd = SYS4(__NR_openat, AT_FDCWD, line->path, O_PATH | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long failed = mount_id(fd, &id);
    if (!failed && id == line->id)
        failed = remount(fd, attributes);
    else if (!failed && id == line->parent)
        failed = -EBUSY;
    SYS1(__NR_close, fd);
    return failed;
}

static long remount_all_below(uint64_t top, long long attributes)
{
    long failed = read_mounts();
    if (!failed)
        mark(top);
    for (unsigned int i = 0; i < found->count && !failed; i++)
        if (found->inside[i])
            failed = remount_below(&found->line[i], attributes);
    return failed;
}

long isobox_remount(int tree, long long attributes, int recursive)
{
    uint64_t top;
    if (attributes & ~SETTABLE)
        return -EINVAL;
    long failed = mount_id(tree, &top);
    if (!failed)
        failed = remount(tree, attributes);
    if (failed || !recursive)
        return failed;
    long at = SYS6(__NR_mmap, 0, sizeof *found, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at < 0 && at > -4096)
        return at;
    found = (struct found *)at;
    failed = remount_all_below(top, attributes);
    SYS2(__NR_munmap, at, sizeof *found);
    return failed;
}
