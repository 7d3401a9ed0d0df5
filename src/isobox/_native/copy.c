/* Copies a directory as it is: owners, modes, times, extended attributes, hard links, holes in files, device
 * nodes (the whiteouts of overlayfs are such) and what else there may be.
 *
 * What is copied may be hostile and change meanwhile: all is done by name below open directories, no link is
 * followed, and what vanishes is left out. Nobody else reaches the copy before it is whole. */
#include "ops.h"

enum {
    O_OUT = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
    O_FOLDER = O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
    DEEPEST = 1000, /* directories in each other; two descriptors for each */
    ATTRIBUTE_ROOM = 65536, /* XATTR_LIST_MAX and XATTR_SIZE_MAX */
    ENTRIES_ROOM = 4096,
    ENTRY_HEAD = 19, /* of a struct linux_dirent64: two 64-bit numbers, its size, a type; then its name */
};

struct level {
    int from, to;
    unsigned int at, size; /* in entries */
    struct statx status;
    unsigned char entries[ENTRIES_ROOM] __attribute__((aligned(8)));
};

struct room {
    char names[ATTRIBUTE_ROOM];
    char value[ATTRIBUTE_ROOM];
    char link[4096 + 1];
    struct level levels[DEEPEST];
};

static const char LINKS[] = ".links"; /* in the copy while it is made: files of several names, by their inode */
static int links = -1;
static int no_range; /* copy_file_range(2) does not serve between these two */

static int same(const char *one, const char *other)
{
    while (*one && *one == *other)
        one++, other++;
    return *one == *other;
}

static int begins(const char *text, const char *with)
{
    while (*with)
        if (*text++ != *with++)
            return 0;
    return 1;
}

/* What overlayfs notes of an upper directory and its lower ones: of the copy it isn't true. Nor is any note of its
 * true of a directory that only looks like another. */
static int is_of_the_mount(const char *name, int like)
{
    const char *rest = begins(name, "user.overlay.") ? name + 13 : begins(name, "trusted.overlay.") ? name + 16 : "";
    return *rest && (like || same(rest, "origin") || same(rest, "impure") || same(rest, "uuid"));
}

static long copy_attributes(struct room *room, int from, int to, int like)
{
    long size = SYS3(__NR_flistxattr, from, room->names, ATTRIBUTE_ROOM);
    if (size == -EOPNOTSUPP)
        return 0;
    if (size < 0)
        return size;
    for (long at = 0; at < size; at++) {
        const char *name = room->names + at;
        while (at < size && room->names[at])
            at++;
        if (at == size)
            break; /* the kernel ends each with a NUL */
        if (is_of_the_mount(name, like))
            continue;
        long length = SYS4(__NR_fgetxattr, from, name, room->value, ATTRIBUTE_ROOM);
        if (length == -ENODATA)
            continue;
        if (length < 0)
            return length;
        long failed = SYS5(__NR_fsetxattr, to, name, room->value, length, 0);
        /* Labels of a security module are its own to give. */
        if ((failed == -EPERM || failed == -EOPNOTSUPP) && begins(name, "security.") &&
            !same(name, "security.capability"))
            failed = 0;
        if (failed)
            return failed;
    }
    return 0;
}

static void times_of(const struct statx *status, long times[4])
{
    times[0] = status->stx_atime.tv_sec;
    times[1] = status->stx_atime.tv_nsec;
    times[2] = status->stx_mtime.tv_sec;
    times[3] = status->stx_mtime.tv_nsec;
}

/* In this order: chown(2) takes setuid bits and capabilities away, an ACL changes the mode with itself. */
static long give(struct room *room, int from, int to, const struct statx *status, int like)
{
    long times[4], failed = 0;
    if (status->stx_uid || status->stx_gid)
        failed = SYS3(__NR_fchown, to, status->stx_uid, status->stx_gid);
    if (!failed)
        failed = SYS2(__NR_fchmod, to, status->stx_mode & 07777);
    if (!failed)
        failed = copy_attributes(room, from, to, like);
    times_of(status, times);
    return failed ? failed : SYS4(__NR_utimensat, to, 0, times, 0);
}

static long stat_of(int fd, struct statx *status)
{
    return SYS5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, status);
}

static long move(int from, int to, uint64_t at, uint64_t size)
{
    long long in = (long long)at, out = in;
    if (!no_range) {
        long moved = SYS6(__NR_copy_file_range, from, &in, to, &out, size, 0);
        if (moved != -EXDEV && moved != -EINVAL && moved != -EOPNOTSUPP && moved != -ENOSYS && moved != -EPERM)
            return moved;
        no_range = 1;
        in = (long long)at;
    }
    long failed = SYS3(__NR_lseek, to, at, SEEK_SET);
    return failed < 0 ? failed : SYS4(__NR_sendfile, to, from, &in, size);
}

static long copy_data(int from, int to, uint64_t size)
{
    uint64_t at = 0;
    while (at < size) {
        long start = SYS3(__NR_lseek, from, at, SEEK_DATA);
        if (start == -ENXIO)
            break; /* a hole to the end */
        if (start < 0)
            return start;
        long end = SYS3(__NR_lseek, from, start, SEEK_HOLE);
        if (end < 0 && end != -ENXIO)
            return end;
        at = end <= start ? (uint64_t)start + 1 : (uint64_t)end;
        for (uint64_t place = (uint64_t)start, to_place = at < size ? at : size; place < to_place;) {
            long moved = move(from, to, place, to_place - place);
            if (moved < 0)
                return moved;
            if (moved == 0)
                break; /* cut off meanwhile */
            place += (uint64_t)moved;
        }
    }
    return SYS2(__NR_ftruncate, to, size);
}

/* What is no copy at all: it vanished, or is something else by now. */
static int changed(long failed)
{
    return failed == -ENOENT || failed == -ENOTDIR || failed == -ELOOP || failed == -ENXIO || failed == -EEXIST;
}

static long copy_file(struct room *room, const struct level *level, const char *name)
{
    struct statx status;
    long from = SYS4(__NR_openat, level->from, name,
                     O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_NOATIME | O_CLOEXEC, 0);
    if (from < 0)
        return from;
    long failed = stat_of((int)from, &status);
    if (!failed && (status.stx_mode & S_IFMT) != S_IFREG)
        failed = -ENOENT;
    if (!failed) {
        long to = SYS4(__NR_openat, level->to, name, O_OUT, 0600);
        failed = to;
        if (to >= 0) {
            failed = copy_data((int)from, (int)to, status.stx_size);
            if (!failed)
                failed = give(room, (int)from, (int)to, &status, 0);
            SYS1(__NR_close, to);
        }
    }
    SYS1(__NR_close, from);
    return failed;
}

/* Symbolic links, whiteouts, FIFOs, sockets, devices. */
static long copy_node(struct room *room, const struct level *level, const char *name, const struct statx *status)
{
    long times[4], failed;
    unsigned int type = status->stx_mode & S_IFMT;
    uint64_t major = status->stx_rdev_major, minor = status->stx_rdev_minor;
    if (type == S_IFLNK) {
        long size = SYS4(__NR_readlinkat, level->from, name, room->link, sizeof room->link);
        if (size < 0)
            return size == -EINVAL ? -ENOENT : size;
        if (size == (long)sizeof room->link)
            return -ENAMETOOLONG;
        room->link[size] = 0;
        failed = SYS3(__NR_symlinkat, room->link, level->to, name);
    } else {
        uint64_t device = (minor & 0xff) | major << 8 | (minor & ~0xffull) << 12;
        failed = SYS4(__NR_mknodat, level->to, name, type | (status->stx_mode & 07777), device);
    }
    if (!failed && (status->stx_uid || status->stx_gid)) {
        failed = SYS5(__NR_fchownat, level->to, name, status->stx_uid, status->stx_gid, AT_SYMLINK_NOFOLLOW);
        if (!failed && type != S_IFLNK)
            failed = SYS3(__NR_fchmodat, level->to, name, status->stx_mode & 07777);
    }
    times_of(status, times);
    return failed ? failed : SYS4(__NR_utimensat, level->to, name, times, AT_SYMLINK_NOFOLLOW);
}

static void number(uint64_t value, char text[17])
{
    for (int i = 15; i >= 0; i--, value >>= 4)
        text[i] = "0123456789abcdef"[value & 15];
    text[16] = 0;
}

/* The second name of a file that is there already: 0; -ENOENT if it isn't. */
static long link_to(int top, const struct level *level, const char *name, const char *inode)
{
    if (links < 0) {
        long failed = SYS3(__NR_mkdirat, top, LINKS, 0700);
        if (failed && failed != -EEXIST)
            return failed;
        failed = SYS4(__NR_openat, top, LINKS, O_FOLDER, 0);
        if (failed < 0)
            return failed == -ENOENT ? -EINVAL : failed;
        links = (int)failed;
    }
    return SYS5(__NR_linkat, links, inode, level->to, name, 0);
}

static long copy_entry(struct room *room, int top, const struct level *level, const char *name,
                       const struct statx *status)
{
    char inode[17];
    long failed = -ENOENT;
    number(status->stx_ino, inode);
    if (status->stx_nlink > 1)
        failed = link_to(top, level, name, inode);
    if (failed != -ENOENT)
        return failed;
    if ((status->stx_mode & S_IFMT) == S_IFREG)
        failed = copy_file(room, level, name);
    else
        failed = copy_node(room, level, name, status);
    if (!failed && status->stx_nlink > 1)
        failed = SYS5(__NR_linkat, level->to, name, links, inode, 0);
    return failed;
}

/* Makes the directory that `from` is copied to; takes `from` over. */
static long begin(long from, int to, const char *name, struct level *level)
{
    level->from = (int)from;
    level->at = level->size = 0;
    long failed = stat_of(level->from, &level->status);
    if (!failed)
        failed = SYS3(__NR_mkdirat, to, name, 0700);
    if (!failed) {
        level->to = (int)SYS4(__NR_openat, to, name, O_FOLDER, 0);
        failed = level->to < 0 ? level->to : 0;
    }
    if (failed)
        SYS1(__NR_close, from);
    return failed;
}

static long enter(int from, int to, const char *name, struct level *level)
{
    long opened = SYS4(__NR_openat, from, name, O_FOLDER | O_NOATIME, 0);
    return opened < 0 ? opened : begin(opened, to, name, level);
}

static void leave_level(const struct level *level)
{
    SYS1(__NR_close, level->from);
    SYS1(__NR_close, level->to);
}

/* Goes on in levels[0], which is open, and closes it. */
static long walk(struct room *room, int top)
{
    struct level *level = room->levels;
    long failed = 0;
    for (;;) {
        if (level->at >= level->size) {
            long size = SYS3(__NR_getdents64, level->from, level->entries, ENTRIES_ROOM);
            failed = size < 0 && size != -ENOENT ? size : 0;
            if (!failed && size <= 0)
                failed = give(room, level->from, level->to, &level->status, 0);
            if (failed)
                break;
            if (size <= 0) {
                leave_level(level);
                if (level == room->levels)
                    return 0;
                level--;
                continue;
            }
            level->size = (unsigned int)size;
            level->at = 0;
        }
        const unsigned char *entry = level->entries + level->at;
        const char *name = (const char *)entry + ENTRY_HEAD;
        level->at += entry[16] | entry[17] << 8;
        if (same(name, ".") || same(name, ".."))
            continue;
        struct statx status;
        failed = SYS5(__NR_statx, level->from, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &status);
        if (!failed && (status.stx_mode & S_IFMT) == S_IFDIR) {
            if (level == room->levels + DEEPEST - 1) {
                failed = -ELOOP;
                break;
            }
            failed = enter(level->from, level->to, name, level + 1);
            if (!failed)
                level++;
        } else if (!failed) {
            failed = copy_entry(room, top, level, name, &status);
        }
        if (failed && !changed(failed))
            break;
    }
    for (; level >= room->levels; level--)
        leave_level(level);
    return failed;
}

static struct room *make_room(void)
{
    long at = SYS6(__NR_mmap, 0, sizeof(struct room), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at < 0 && at > -4096 ? 0 : (struct room *)at;
}

long isobox_copy(int from, int top, const char *name)
{
    struct room *room = make_room();
    if (!room)
        return -ENOMEM;
    long failed = SYS4(__NR_openat, from, ".", O_FOLDER | O_NOATIME, 0);
    if (failed >= 0)
        failed = begin(failed, top, name, &room->levels[0]);
    if (!failed)
        failed = walk(room, top);
    SYS2(__NR_munmap, room, sizeof *room);
    return failed;
}

long isobox_copy_end(int top)
{
    long failed = -ENOTEMPTY;
    if (links < 0)
        return 0;
    while (failed == -ENOTEMPTY) {
        unsigned char entries[ENTRIES_ROOM] __attribute__((aligned(8)));
        long size = SYS3(__NR_lseek, links, 0, SEEK_SET);
        while (size >= 0 && (size = SYS3(__NR_getdents64, links, entries, sizeof entries)) > 0)
            for (long at = 0; at < size; at += entries[at + 16] | entries[at + 17] << 8)
                SYS3(__NR_unlinkat, links, entries + at + ENTRY_HEAD, 0); /* not "." and ".." */
        failed = size < 0 ? size : SYS3(__NR_unlinkat, top, LINKS, AT_REMOVEDIR);
    }
    SYS1(__NR_close, links);
    links = -1;
    return failed;
}

long isobox_like(const char *path, const char *model)
{
    struct statx status;
    struct room *room = make_room();
    long to = -1, from = SYS4(__NR_openat, AT_FDCWD, model, O_FOLDER, 0);
    long failed = !room ? -ENOMEM : from < 0 ? from : stat_of((int)from, &status);
    if (!failed) {
        to = SYS4(__NR_openat, AT_FDCWD, path, O_FOLDER, 0);
        failed = to < 0 ? to : give(room, (int)from, (int)to, &status, 1);
    }
    if (to >= 0)
        SYS1(__NR_close, to);
    if (from >= 0)
        SYS1(__NR_close, from);
    if (room)
        SYS2(__NR_munmap, room, sizeof *room);
    return failed;
}
