/* The last ops of an exec: its streams take their places, all else is closed, and the program begins. */
#include "ops.h"

enum {
    PATH_ROOM = 4096,
};

long isobox_op_streams(struct isobox_run *run, struct isobox_decoded *op)
{
    for (int target = 0; target < 3; target++) {
        long fd = isobox_descriptor(run, op->head.arg[target]);
        if (fd < 0)
            return fd;
        long failed = SYS3(__NR_dup3, fd, target, 0);
        if (failed < 0)
            return failed;
    }
    /* All are close-on-exec; but the name of the program may be a link that goes through one of them. */
    return isobox_close_from(3, isobox_ruleset);
}

/* Fills the room for pointers with the addresses of `count` strings packed in `packed`. */
static long point(char *room, const char *packed, unsigned int size, long long count)
{
    unsigned int at = 0;
    for (long long i = 0; i < count; i++) {
        const char *text = packed + at;
        while (at < size && packed[at])
            at++;
        if (at >= size)
            return -EBADMSG;
        at++;
        memcpy(room + i * sizeof text, &text, sizeof text);
    }
    const char *end = 0;
    memcpy(room + count * sizeof end, &end, sizeof end);
    return 0;
}

static long execute(const char *file, const char *path, char *argv, char *envp)
{
    char buffer[PATH_ROOM];
    long result = -ENOENT;
    unsigned long size = isobox_length(file);
    for (unsigned long i = 0; i < size; i++)
        if (file[i] == '/')
            return SYS3(__NR_execve, file, argv, envp);
    if (size == 0)
        return -ENOENT;
    for (;;) {
        unsigned long part = 0;
        while (path[part] && path[part] != ':')
            part++;
        if (part + 1 + size + 1 <= sizeof buffer) {
            memcpy(buffer, path, part);
            buffer[part] = '/';
            memcpy(buffer + part + (part > 0), file, size + 1);
            long failed = SYS3(__NR_execve, buffer, argv, envp);
            if (failed == -EACCES)
                result = failed;
            else if (failed != -ENOENT && failed != -ENOTDIR)
                return failed;
        }
        path += part;
        if (*path == 0)
            return result;
        path++;
    }
}

long isobox_op_exec(struct isobox_decoded *op)
{
    long long argc = op->head.arg[0], envc = op->head.arg[1];
    if (op->head.nstr != 5 || argc < 1 || envc < 0 || argc > ISOBOX_PAYLOAD_MAX || envc > ISOBOX_PAYLOAD_MAX ||
        op->len[2] < (unsigned long long)(argc + envc + 2) * sizeof(char *))
        return -EBADMSG;
    /* The caller left the room in its own message: writable, ours, and read by no one else. */
    char *room = (char *)(uintptr_t)op->str[2];
    long failed = point(room, op->str[3], op->len[3], argc);
    if (!failed)
        failed = point(room + (argc + 1) * sizeof(char *), op->str[4], op->len[4], envc);
    if (failed)
        return failed;
    return execute(op->str[0], op->str[1], room, room + (argc + 1) * sizeof(char *));
}
