/* Requests about files: a path is resolved as the container's root does, below "/" (which is the container's) or below
 * a base, never through a link that leads out. */
#include "init.h"

static long base_directory(const struct isobox_request *request)
{
    if (request->arg[2] == 0)
        return 0;
    if (request->arg[2] < 0 || request->arg[2] > isobox_base_count)
        return -EBADMSG;
    return isobox_bases[request->arg[2] - 1];
}

/* Opens below "/" (which is the container's) or below a base; never through /proc's magic links. */
static long open_inside(long base, const char *path, uint64_t flags, uint64_t mode)
{
    struct isobox_open_how how = {flags | O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    if (base == 0) {
        long root = SYS4(__NR_openat, AT_FDCWD, "/", O_PATH | O_CLOEXEC, 0);
        if (root < 0)
            return root;
        long fd = SYS4(__NR_openat2, root, path, &how, sizeof how);
        SYS1(__NR_close, root);
        return fd;
    }
    return SYS4(__NR_openat2, base, path, &how, sizeof how);
}

void isobox_serve_open(const struct isobox_request *request, long size)
{
    const char *path = isobox_request_string(request, size, 0);
    long base = base_directory(request);
    if (!path || base < 0) {
        isobox_answer_code(-EBADMSG);
        return;
    }
    uint64_t flags = (uint64_t)request->arg[0];
    if (!(flags & O_PATH))
        flags |= O_NONBLOCK | O_NOCTTY; /* a FIFO or a terminal inside must not hold PID 1 up */
    long fd = open_inside(base, path, flags, (uint64_t)request->arg[1]);
    if (fd < 0) {
        isobox_answer_code(fd);
        return;
    }
    struct isobox_reply reply;
    memset(&reply, 0, sizeof reply);
    reply.kind = ISOBOX_DONE;
    isobox_answer(&reply, (int)fd, 0);
    SYS1(__NR_close, fd);
}

/* mkdir, symlink and unlink: the parent is opened inside, then the *at call takes the last name. */
void isobox_serve_name(const struct isobox_request *request, long size)
{
    static char parent[4096];
    const char *path = isobox_request_string(request, size, 0);
    long base = base_directory(request);
    if (!path || base < 0) {
        isobox_answer_code(-EBADMSG);
        return;
    }
    unsigned int cut = 0;
    for (unsigned int i = 0; path[i]; i++)
        if (path[i] == '/')
            cut = i + 1;
    if (cut >= sizeof parent) {
        isobox_answer_code(-ENAMETOOLONG);
        return;
    }
    memcpy(parent, path, cut);
    parent[cut] = 0;
    long directory = open_inside(base, cut ? parent : ".", O_PATH, 0);
    long failed = directory;
    if (directory >= 0) {
        const char *name = path + cut;
        const char *target = isobox_request_string(request, size, 1);
        if (request->kind == ISOBOX_MKDIR)
            failed = SYS3(__NR_mkdirat, directory, name, request->arg[1]);
        else if (request->kind == ISOBOX_UNLINK)
            failed = SYS3(__NR_unlinkat, directory, name, request->arg[0]);
        else
            failed = target ? SYS3(__NR_symlinkat, target, directory, name) : -EBADMSG;
        SYS1(__NR_close, directory);
    }
    isobox_answer_code(failed < 0 ? failed : 0);
}
