/* Many small files of a tar archive, made by one call: what images are for the most part. Only what is plain in
 * every way is taken; the caller looks at everything else, and at what fails here. No policy, no names of its own:
 * files are made in a directory that the caller has made, and nothing is followed or replaced. */
#define _GNU_SOURCE
#include "extension.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BLOCK = 512,
    LONGEST_PLACE = 4096,
    LONGEST_NAME = 100 + 155 + 1, /* of a header without extensions */
};

/* A number as nearly all programs write it: octal digits, then NULs and spaces. 0 where it is something else. */
static int octal(const unsigned char *field, unsigned int size, unsigned long long *value)
{
    unsigned int at = 0;
    *value = 0;
    for (; at < size && field[at] >= '0' && field[at] <= '7'; at++)
        *value = *value << 3 | (unsigned long long)(field[at] - '0');
    if (!at)
        return 0;
    for (; at < size; at++)
        if (field[at] && field[at] != ' ')
            return 0;
    return 1;
}

static int is_verified(const unsigned char *header)
{
    unsigned long long claimed;
    if (!octal(header + 148, 8, &claimed))
        return 0;
    unsigned long long sum = 8 * ' ';
    for (unsigned int at = 0; at < BLOCK; at++)
        if (at < 148 || at >= 156)
            sum += header[at];
    return sum == claimed;
}

/* The name of a header in `name`, which has room for it; its size. */
static unsigned long read_name(const unsigned char *header, char *name)
{
    unsigned long size = 0;
    if (!memcmp(header + 257, "ustar", 6) && header[345]) { /* with its NUL: POSIX, which has a prefix */
        size = strnlen((const char *)header + 345, 155);
        memcpy(name, header + 345, size);
        name[size++] = '/';
    }
    unsigned long more = strnlen((const char *)header, 100);
    memcpy(name + size, header, more);
    return size + more;
}

/* The last part of a name in the directory that is meant; NULL for any other name, and for those with a meaning. */
static const char *last_part(const struct isobox_files *files, char *name, unsigned long size)
{
    const char *slash = memrchr(name, '/', size);
    if (!slash || (unsigned long)(slash - name) != files->above_size ||
        memcmp(name, files->above, files->above_size))
        return 0;
    name[size] = 0;
    const char *last = slash + 1;
    if (!last[0] || !strcmp(last, ".") || !strcmp(last, "..") || !strncmp(last, ".wh.", 4))
        return 0;
    return last;
}

static int write_all(int fd, const unsigned char *data, unsigned long long size)
{
    while (size) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return -1;
        data += written;
        size -= (unsigned long long)written;
    }
    return 0;
}

struct plain {
    unsigned long long mode, uid, gid, size, mtime;
};

static int read_plain(const unsigned char *header, struct plain *plain)
{
    return (header[156] == '0' || header[156] == 0) && is_verified(header) && octal(header + 100, 8, &plain->mode) &&
           octal(header + 108, 8, &plain->uid) && octal(header + 116, 8, &plain->gid) &&
           octal(header + 124, 12, &plain->size) && octal(header + 136, 12, &plain->mtime);
}

static int make_file(const struct isobox_files *files, const char *path, const struct plain *plain,
                     const unsigned char *data)
{
    int fd = openat(files->root_fd, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    struct timespec times[2] = {{(time_t)plain->mtime, 0}, {(time_t)plain->mtime, 0}};
    int failed = write_all(fd, data, plain->size) ||
                 /* before the mode: it clears setuid bits */
                 (files->keep_owners && fchown(fd, (uid_t)plain->uid, (gid_t)plain->gid)) ||
                 fchmod(fd, (mode_t)plain->mode & files->modes);
    if (!failed)
        (void)!futimens(fd, times); /* a time that this file system can't keep; the file is right all the same */
    close(fd);
    if (failed)
        unlinkat(files->root_fd, path, 0);
    return failed ? -1 : 0;
}

/* Makes the files whose entries begin at `data`, as long as each is whole in there and plain: an ordinary file with
 * a short name and octal numbers, in the directory `place` below the root, whose name in the archive is `above`.
 * Stops before the first that is anything else, or can't be made. Returns how many there were; `used` and `bytes`
 * are their sizes in the archive and as files. */
unsigned long isobox_make_files(struct isobox_files *files, const unsigned char *data, unsigned long size)
{
    char path[LONGEST_PLACE + 1 + LONGEST_NAME + 1];
    unsigned long count = 0;
    files->used = 0;
    files->bytes = 0;
    if (!files->place_size || files->place_size > LONGEST_PLACE)
        return 0;
    memcpy(path, files->place, files->place_size);
    path[files->place_size] = '/';
    while (count < files->most && size - files->used >= BLOCK) {
        const unsigned char *header = data + files->used;
        unsigned long room = size - files->used - BLOCK;
        char name[LONGEST_NAME + 1];
        struct plain plain;
        if (!read_plain(header, &plain) || plain.size > room)
            break;
        unsigned long padded = ((unsigned long)plain.size + BLOCK - 1) / BLOCK * BLOCK;
        const char *last = last_part(files, name, read_name(header, name));
        if (!last || padded > room)
            break;
        memcpy(path + files->place_size + 1, last, strlen(last) + 1);
        if (make_file(files, path, &plain, header + BLOCK))
            break;
        files->used += BLOCK + padded;
        files->bytes += plain.size;
        count++;
    }
    return count;
}
