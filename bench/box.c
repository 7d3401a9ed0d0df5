/* See box.h: the parent's side of making a container, waiting for it, and taking it away. */
#define _GNU_SOURCE
#include "box.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "groups.h"
#include "job.h"
#include "raw.h"

#define AT_EMPTY 0x1000
#define UMOUNT_DETACH 2
#define MS_RECURSIVE 16384
#define MS_PRIVATE_TREE (1 << 18)
#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { ID_BASE = 1879048192, ID_STEP = 65536, ID_RANGES = 4096 };

static const char *const HIDDEN[] = {"root", "home", "tmp", "run", "mnt", "media", "srv", "boot", "proc", "sys", "dev"};
static char child_stack[256 * 1024] __attribute__((aligned(4096)));
static int next_group, pool_made;
struct job job;

int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void die(const char *what, long error)
{
    fprintf(stderr, "floor: %s: %s\n", what, error < 0 ? strerror((int)-error) : "failed");
    exit(1);
}

void inside(const char *name)
{
    struct box *box = job.box;
    if (box->inside_count < MAX_PHASES)
        box->inside[box->inside_count++] = (struct phase){name, now_ns()};
}

static void outside(struct box *box, const char *name)
{
    if (box->outside_count < MAX_PHASES)
        box->outside[box->outside_count++] = (struct phase){name, now_ns()};
}

long must(const char *step, long result)
{
    if (result < 0) {
        if (!job.child_runs)
            die(step, result);
        job.box->failed = step;
        job.box->error = result;
        raw1(NR_exit_group, 99);
    }
    return result;
}

long new_mount(const char *type, const char *const *options, unsigned attributes)
{
    long fs = must(type, raw2(SYS_fsopen, type, 1));
    for (; options && *options; options += 2)
        must(options[0], raw5(SYS_fsconfig, fs, FSCONFIG_SET_STRING, options[0], options[1], 0));
    must(type, raw5(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0));
    long mount = must(type, raw3(SYS_fsmount, fs, 1, attributes));
    raw1(SYS_close, fs);
    return mount;
}

void attach(long mount, long where, const char *target)
{
    must(target, raw5(SYS_move_mount, mount, "", where, target, MOVE_MOUNT_F_EMPTY_PATH));
    raw1(SYS_close, mount);
}

long clone_tree(const char *path)
{
    return must(path, raw3(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
}

static int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int failed = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return failed;
}

/* A layer above the host's "/" that hides directories: whiteouts, on a file system of their own, since overlayfs refuses
 * a layer that lies inside another. */
static long hiding_layer(void)
{
    static const char *const options[] = {"mode", "0755", 0};
    long layer = new_mount("tmpfs", options, MOUNT_ATTR_NOSUID);
    must("var", raw3(SYS_mkdirat, layer, "var", 0755));
    for (size_t i = 0; i < COUNT(HIDDEN); i++)
        must("whiteout", raw4(SYS_mknodat, layer, HIDDEN[i], S_IFCHR, 0));
    must("whiteout", raw4(SYS_mknodat, layer, "var/tmp", S_IFCHR, 0));
    return layer;
}

/* The mount namespace that containers are cloned from: a tmpfs with the lower directories, /proc, /sys and /dev, nothing
 * else. Fewer mounts are copied; and it has to be so: an overlay in a user namespace takes a lower layer only from that
 * namespace's own mounts (not a descriptor of the parent's), and refuses one below which a mount is locked, as is the
 * case for "/" in a plain copy of the host's. */
static void staging_namespace(void)
{
    static const char *const kept[] = {"/proc", "/sys", "/dev"};
    char target[32];
    long lower[MAX_LOWERS], keep[COUNT(kept)];
    for (int i = 0; i < job.options.lower_count; i++) {
        const char *path = job.options.lowers[i];
        lower[i] = strcmp(path, "hide") ? clone_tree(path) : hiding_layer();
    }
    for (size_t i = 0; i < COUNT(kept); i++)
        keep[i] = clone_tree(kept[i]);
    must("unshare", raw1(SYS_unshare, CLONE_NEWNS));
    must("private", raw5(SYS_mount, 0, "/", 0, MS_RECURSIVE | MS_PRIVATE_TREE, 0));
    long root = new_mount("tmpfs", 0, MOUNT_ATTR_NOSUID);
    must("stage", raw5(SYS_move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    for (int i = 0; i < job.options.lower_count; i++) {
        snprintf(target, sizeof target, "%d", i);
        must(target, raw3(SYS_mkdirat, root, target, 0755));
        attach(lower[i], root, target);
    }
    for (size_t i = 0; i < COUNT(kept); i++) {
        must(kept[i], raw3(SYS_mkdirat, root, kept[i] + 1, 0755));
        attach(keep[i], root, kept[i] + 1);
    }
    must("stage", raw3(SYS_mkdirat, root, STAGE_SCRATCH + 1, 0755));
    must("fchdir", raw1(SYS_fchdir, root));
    must("pivot_root", raw2(SYS_pivot_root, ".", "."));
    must("umount", raw2(SYS_umount2, ".", UMOUNT_DETACH));
    must("chdir", raw1(SYS_chdir, "/"));
    close((int)root);
}

/* Out of the way of 0 to 3, which the program inside gets. */
static int open_high(const char *path)
{
    int low = open(path, O_PATH | O_CLOEXEC), high = fcntl(low, F_DUPFD_CLOEXEC, 100);
    if (low < 0 || high < 0)
        die(path, -errno);
    close(low);
    return high;
}

int box_program(void)
{
    return job.program;
}

void box_prepare(const struct box_options *options)
{
    job.options = *options;
    if (geteuid())
        die("needs root", -EPERM);
    job.program = open_high(options->program);
    job.init = open_high(options->init);
    if (options->steps & STEP_CGROUP)
        groups_prepare();
    staging_namespace();
}

static unsigned long namespaces(void)
{
    unsigned steps = job.options.steps;
    unsigned long flags = CLONE_NEWPID | CLONE_NEWNS;
    flags |= steps & STEP_USER ? CLONE_NEWUSER : 0;
    flags |= steps & STEP_NET ? CLONE_NEWNET : 0;
    flags |= steps & STEP_IPC ? CLONE_NEWIPC : 0;
    flags |= steps & STEP_UTS ? CLONE_NEWUTS : 0;
    return flags;
}

static void write_id_maps(long pid)
{
    static unsigned range;
    char path[64], map[64];
    snprintf(map, sizeof map, "0 %u %u", ID_BASE + (range++ % ID_RANGES) * ID_STEP, ID_STEP);
    snprintf(path, sizeof path, "/proc/%ld/uid_map", pid);
    long error = write_text(path, map);
    snprintf(path, sizeof path, "/proc/%ld/gid_map", pid);
    error = error ? error : write_text(path, map);
    if (error)
        die("id map", error);
}

static void join_groups(struct box *box)
{
    int pooled = job.options.pooled_cgroups;
    box->group = pooled ? next_group : next_group++;
    if (!pooled || !pool_made)
        group_make(box->group, !!(job.options.steps & STEP_LIMITS));
    pool_made = 1;
    group_open_tasks(box->group, job.tasks, &job.task_count);
    outside(box, "groups made, limits written");
}

void box_start(struct box *box, const char *mode)
{
    int out[2], go[2], pair[2] = {-1, -1};
    int serves = !strcmp(mode, "serve") || !strcmp(mode, "filter");
    sigset_t all, before;
    memset(box, 0, sizeof *box);
    outside(box, "begin");
    job.box = box;
    job.mode = mode;
    job.child_runs = 0;
    job.task_count = 0;
    if (job.options.steps & STEP_CGROUP)
        join_groups(box);
    if (pipe2(out, O_CLOEXEC) || pipe2(go, O_CLOEXEC) ||
        (serves && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)))
        die("pipe", -errno);
    job.out = out[1];
    job.go = go[0];
    job.socket = pair[1];
    sigfillset(&all); /* a handler of ours must not run in the child */
    sigprocmask(SIG_SETMASK, &all, &before);
    long pid = raw_clone(CLONE_VM | CLONE_PIDFD | SIGCHLD | namespaces(), child_stack + sizeof child_stack, child_body,
                         NULL, &box->pidfd);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0)
        die("clone", pid);
    box->pid = (pid_t)pid;
    outside(box, "clone");
    close(out[1]);
    close(go[0]);
    if (serves)
        close(pair[1]);
    for (int i = 0; i < job.task_count; i++)
        close(job.tasks[i]);
    if (job.options.steps & STEP_USER) {
        write_id_maps(pid);
        outside(box, "id maps written");
    }
    if (write(go[1], "g", 1) != 1)
        die("go", -errno);
    close(go[1]);
    box->out = out[0];
    box->socket = pair[0];
    outside(box, "descriptors closed, go");
    char byte;
    if (*mode != 'r' && read(box->out, &byte, 1) != 1) {
        box_wait(box);
        die(box->failed ? box->failed : "the container's init", box->error);
    }
}

int box_wait(struct box *box)
{
    char buffer[4096];
    int status;
    while (read(box->out, buffer, sizeof buffer) > 0)
        ;
    outside(box, "output at its end");
    if (waitpid(box->pid, &status, 0) != box->pid)
        die("wait", -errno);
    outside(box, "reaped");
    close(box->out);
    close(box->pidfd);
    if (box->socket >= 0)
        close(box->socket);
    return status;
}

void box_remove(struct box *box)
{
    if (job.options.steps & STEP_CGROUP && !job.options.pooled_cgroups) {
        group_remove(box->group);
        outside(box, "groups removed");
    }
}
