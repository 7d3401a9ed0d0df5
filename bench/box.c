/* See box.h. The child shares our memory until it execs (CLONE_VM), so starting costs the same whatever we hold, and
 * it can leave its time stamps and its error in our memory. It uses raw system calls only: libc's errno is ours. */
#define _GNU_SOURCE
#include "box.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "filter.h"
#include "groups.h"
#include "raw.h"

#define AT_EMPTY 0x1000
#define AT_WHOLE_TREE 0x8000 /* AT_RECURSIVE */
#define UMOUNT_DETACH 2
#define ID_BASE 1879048192U
#define ID_STEP 65536U

static const char *const NODES[] = {"null", "zero", "full", "random", "urandom", "tty"};
static const char *const LINKS[][2] = {
    {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
    {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
};
static const char *const SKELETON[] = {"proc", "sys", "dev", "tmp", "run", "root"};
static const char *const HIDDEN[] = {"root", "home", "tmp", "run", "mnt", "media", "srv", "boot", "proc", "sys", "dev"};
static const char *const VIEWS[] = {"proc/meminfo", "proc/cpuinfo", "proc/stat", "sys/devices/system/cpu/online"};

static struct box_options opt;
static struct sock_filter filter[FILTER_MAX];
static struct sock_fprog program_filter = {0, filter};
static char child_stack[256 * 1024] __attribute__((aligned(4096)));
static long scratch;
static int program_fd, init_fd, hiding, dev_template = -1, next_group;

/* What the parent hands to the child of the moment. */
static struct {
    struct box *box;
    const char *mode;
    int go, out, socket, lower[MAX_LOWERS], root, dev, tasks[MAX_GROUPS], task_count;
} job;

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

static void inside(const char *name)
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

static long must(const char *step, long result)
{
    if (result < 0) {
        job.box->failed = step;
        job.box->error = result;
        raw1(NR_exit_group, 99);
    }
    return result;
}

static int clone_tree(int from, const char *path, unsigned flags)
{
    long fd = raw3(SYS_open_tree, from, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY | flags);
    if (fd < 0)
        die(path, fd);
    return (int)fd;
}

/* --- inside ------------------------------------------------------------------------------------------------------- */

static long new_mount(const char *type, const char *const *options, unsigned attributes)
{
    long fs = must(type, raw2(SYS_fsopen, type, 1));
    for (; options && *options; options += 2)
        must(options[0], raw5(SYS_fsconfig, fs, FSCONFIG_SET_STRING, options[0], options[1], 0));
    must(type, raw5(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0));
    long mount = must(type, raw3(SYS_fsmount, fs, 1, attributes));
    raw1(SYS_close, fs);
    return mount;
}

static void attach(long mount, long where, const char *target)
{
    must(target, raw5(SYS_move_mount, mount, "", where, target, MOVE_MOUNT_F_EMPTY_PATH));
    raw1(SYS_close, mount);
}

static long overlay_root(unsigned owner);

static long new_root(void)
{
    if (opt.root_in_parent)
        return job.root;
    char path[32];
    snprintf(path, sizeof path, "/%d", opt.lower_count - 1);
    if (!(opt.steps & STEP_OVERLAY))
        return must("open_tree", raw3(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
    return overlay_root(0);
}

static long overlay_root(unsigned owner)
{
    char path[32];
    static const char *const scratch_options[] = {"mode", "0755", "size", "134217728", "nr_inodes", "65536", 0};
    scratch = new_mount("tmpfs", scratch_options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    must("upper", raw3(SYS_mkdirat, scratch, "upper", 0755));
    must("work", raw3(SYS_mkdirat, scratch, "work", 0755));
    long upper = must("upper", raw4(SYS_openat, scratch, "upper", O_PATH | O_CLOEXEC, 0));
    long work = must("work", raw4(SYS_openat, scratch, "work", O_PATH | O_CLOEXEC, 0));
    if (!opt.late_skeleton) {
        for (size_t i = 0; i < sizeof SKELETON / sizeof *SKELETON; i++)
            must("skeleton", raw3(SYS_mkdirat, upper, SKELETON[i], 0755));
    }
    if (owner)
        must("chown", raw5(SYS_fchownat, upper, "", owner, owner, AT_EMPTY));
    inside("scratch tmpfs + upper + skeleton");
    long fs = must("overlay", raw2(SYS_fsopen, "overlay", 1));
    for (int i = 0; i < opt.lower_count; i++) {
        if (opt.root_in_parent)
            must("lowerdir+", raw5(SYS_fsconfig, fs, FSCONFIG_SET_FD, "lowerdir+", 0, job.lower[i]));
        else {
            snprintf(path, sizeof path, "/%d", i);
            must("lowerdir+", raw5(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "lowerdir+", path, 0));
        }
    }
    must("upperdir", raw5(SYS_fsconfig, fs, FSCONFIG_SET_FD, "upperdir", 0, upper));
    must("workdir", raw5(SYS_fsconfig, fs, FSCONFIG_SET_FD, "workdir", 0, work));
    must("userxattr", raw5(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "userxattr", 0, 0));
    must("volatile", raw5(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "volatile", 0, 0));
    must("overlay", raw5(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0));
    long root = must("overlay", raw3(SYS_fsmount, fs, 1, 0));
    inside("overlay");
    return root;
}

static void mount_dev(long root)
{
    long dev;
    if (opt.pooled_dev) {
        attach(job.dev, root, "dev");
        inside("/dev (cloned whole)");
        return;
    }
    static const char *const options[] = {"mode", "0755", "size", "65536", 0};
    long mount = new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    must("dev", raw5(SYS_move_mount, mount, "", root, "dev", MOVE_MOUNT_F_EMPTY_PATH));
    dev = mount;
    for (int i = 0; i < 6; i++) {
        raw1(SYS_close, must(NODES[i], raw4(SYS_openat, dev, NODES[i], O_CREAT | O_WRONLY | O_CLOEXEC, 0666)));
        char path[32];
        snprintf(path, sizeof path, "/dev/%s", NODES[i]);
        attach(must(path, raw3(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)), dev, NODES[i]);
    }
    for (size_t i = 0; i < sizeof LINKS / sizeof *LINKS; i++)
        must(LINKS[i][1], raw3(SYS_symlinkat, LINKS[i][0], dev, LINKS[i][1]));
    must("dev/pts", raw3(SYS_mkdirat, dev, "pts", 0755));
    must("dev/shm", raw3(SYS_mkdirat, dev, "shm", 01777));
    must("dev/mqueue", raw3(SYS_mkdirat, dev, "mqueue", 0755));
    raw1(SYS_close, dev);
    inside("/dev + 6 nodes + links");
}

/* Files of our own over those of /proc and /sys that tell of the machine: they show the container's limits. */
static void mount_views(long root)
{
    static const char content[1400];
    static const char *const options[] = {"mode", "0755", "size", "65536", 0};
    long files = scratch >= 0 ? scratch : new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    for (size_t i = 0; i < sizeof VIEWS / sizeof *VIEWS; i++) {
        char name[8] = {'v', (char)('0' + i), 0};
        long file = must("view", raw4(SYS_openat, files, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0444));
        must("view", raw3(SYS_write, file, content, sizeof content));
        raw1(SYS_close, file);
        attach(must("view", raw3(SYS_open_tree, files, name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)), root, VIEWS[i]);
    }
    inside("views of /proc and /sys");
}

static void drop_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    unsigned keep = 0xa80425fb; /* the fourteen that OCI engines leave */
    for (int i = 0; i <= 40; i++) {
        if (i > 31 || !(keep >> i & 1))
            raw5(SYS_prctl, PR_CAPBSET_DROP, i, 0, 0, 0);
    }
    memset(data, 0, sizeof data);
    data[0].effective = data[0].permitted = keep;
    must("capset", raw2(SYS_capset, &header, data));
    inside("capabilities");
}

static void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    long fd = must("socket", raw3(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    must("loopback", raw3(SYS_ioctl, fd, SIOCSIFFLAGS, &request));
    raw1(SYS_close, fd);
    inside("loopback up");
}

static int body(void *unused)
{
    (void)unused;
    char byte;
    scratch = -1;
    inside("clone returned in the child");
    must("go", raw3(SYS_read, job.go, &byte, 1));
    inside("waited for the maps");
    for (int i = 0; i < job.task_count; i++)
        must("join", raw3(SYS_write, job.tasks[i], "0", 1));
    if (job.task_count)
        inside("joined the groups");
    if (opt.steps & STEP_CGROUPNS) {
        must("cgroup namespace", raw1(SYS_unshare, CLONE_NEWCGROUP));
        inside("cgroup namespace");
    }
    if (opt.steps & STEP_USER) {
        must("setgroups", raw2(SYS_setgroups, 0, 0));
        must("setresgid", raw3(SYS_setresgid, 0, 0, 0));
        must("setresuid", raw3(SYS_setresuid, 0, 0, 0));
    } else
        must("private", raw5(SYS_mount, 0, "/", 0, MS_REC | MS_SLAVE, 0));
    if (opt.steps & STEP_UTS)
        must("hostname", raw2(SYS_sethostname, "isobox", 6));
    if (opt.steps & STEP_LO && opt.steps & STEP_NET)
        loopback_up();
    long root = new_root();
    must("attach root", raw5(SYS_move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    if (opt.late_skeleton && opt.steps & STEP_OVERLAY) {
        for (size_t i = 0; i < sizeof SKELETON / sizeof *SKELETON; i++)
            must("skeleton", raw3(SYS_mkdirat, root, SKELETON[i], 0755));
        inside("skeleton in the merged root");
    }
    if (opt.steps & STEP_PROC) {
        attach(new_mount("proc", 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC), root, "proc");
        inside("/proc");
    }
    if (opt.steps & STEP_SYS && opt.steps & STEP_NET) {
        unsigned attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY;
        attach(new_mount("sysfs", 0, attributes), root, "sys");
        inside("/sys");
    }
    if (opt.steps & STEP_DEV) {
        mount_dev(root);
        if (opt.steps & STEP_PTS) {
            static const char *const options[] = {"ptmxmode", "0666", "mode", "0620", 0};
            attach(new_mount("devpts", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), root, "dev/pts");
            inside("/dev/pts");
        }
        if (opt.steps & STEP_SHM) {
            static const char *const options[] = {"mode", "1777", "size", "67108864", 0};
            attach(new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), root, "dev/shm");
            inside("/dev/shm");
        }
        if (opt.steps & STEP_MQUEUE && opt.steps & STEP_IPC) {
            attach(new_mount("mqueue", 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), root, "dev/mqueue");
            inside("/dev/mqueue");
        }
    }
    if (opt.steps & STEP_VIEWS && opt.steps & STEP_PROC && opt.steps & STEP_SYS && opt.steps & STEP_NET)
        mount_views(root);
    must("fchdir", raw1(SYS_fchdir, root));
    must("pivot_root", raw2(SYS_pivot_root, ".", "."));
    must("umount", raw2(SYS_umount2, ".", UMOUNT_DETACH));
    must("chdir", raw1(SYS_chdir, "/"));
    raw1(SYS_close, root);
    inside("pivot_root, old root gone");
    if (opt.steps & STEP_CAPS)
        drop_capabilities();
    raw5(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    raw5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (opt.steps & STEP_SECCOMP) {
        must("seccomp", raw3(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program_filter));
        inside("seccomp filter");
    }
    raw3(SYS_dup3, job.out, 1, 0);
    static const char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", 0};
    const char *arguments[] = {"init", job.mode, 0};
    if (opt.steps & STEP_INIT) {
        raw3(SYS_dup3, job.socket >= 0 ? job.socket : program_fd, 3, 0);
        must("exec of init", raw5(SYS_execveat, init_fd, "", arguments, environment, AT_EMPTY));
    }
    must("exec", raw5(SYS_execveat, program_fd, "", arguments, environment, AT_EMPTY));
    return 99;
}

/* --- outside ------------------------------------------------------------------------------------------------------ */

static int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int failed = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return failed;
}

static void make_dev_template(void)
{
    static const char *const options[] = {"mode", "0755", "size", "65536", 0};
    long dev = new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    for (int i = 0; i < 6; i++) {
        close((int)must(NODES[i], raw4(SYS_openat, dev, NODES[i], O_CREAT | O_WRONLY | O_CLOEXEC, 0666)));
        char path[32];
        snprintf(path, sizeof path, "/dev/%s", NODES[i]);
        attach(clone_tree(AT_FDCWD, path, 0), dev, NODES[i]);
    }
    for (size_t i = 0; i < sizeof LINKS / sizeof *LINKS; i++)
        must("link", raw3(SYS_symlinkat, LINKS[i][0], dev, LINKS[i][1]));
    raw3(SYS_mkdirat, dev, "pts", 0755);
    raw3(SYS_mkdirat, dev, "shm", 01777);
    raw3(SYS_mkdirat, dev, "mqueue", 0755);
    dev_template = (int)dev;
}

/* A layer above the host's "/" that hides directories: whiteouts, on a file system of their own, since overlayfs refuses
 * a layer that lies inside another. */
static int hiding_layer(void)
{
    static const char *const options[] = {"mode", "0755", 0};
    long layer = new_mount("tmpfs", options, MOUNT_ATTR_NOSUID);
    must("var", raw3(SYS_mkdirat, layer, "var", 0755));
    for (size_t i = 0; i < sizeof HIDDEN / sizeof *HIDDEN; i++)
        must("whiteout", raw4(SYS_mknodat, layer, HIDDEN[i], S_IFCHR, 0));
    must("whiteout", raw4(SYS_mknodat, layer, "var/tmp", S_IFCHR, 0));
    return (int)layer;
}

/* The mount namespace that containers are cloned from: a tmpfs with the lower directories, /proc, /sys and /dev, nothing
 * else. Fewer mounts are copied; and it has to be so: since Linux 6.15 an overlay in a user namespace takes a lower
 * layer only from that namespace's own mounts (not a descriptor of the parent's), and refuses one below which a mount
 * is locked, as is the case for "/" in a plain copy of the host's. */
static void staging_namespace(void)
{
    char target[32];
    int lower[MAX_LOWERS];
    for (int i = 0; i < opt.lower_count; i++)
        lower[i] = strcmp(opt.lowers[i], "hide") ? clone_tree(AT_FDCWD, opt.lowers[i], 0) : hiding_layer();
    static const char *const kept[] = {"proc", "sys", "dev"};
    int keep[3];
    for (int i = 0; i < 3; i++) {
        snprintf(target, sizeof target, "/%s", kept[i]);
        keep[i] = clone_tree(AT_FDCWD, target, 0);
    }
    if (opt.steps & STEP_DEV && opt.pooled_dev)
        make_dev_template();
    if (unshare(CLONE_NEWNS))
        die("unshare", -errno);
    raw5(SYS_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0);
    long root = new_mount("tmpfs", 0, MOUNT_ATTR_NOSUID);
    must("stage", raw5(SYS_move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    for (int i = 0; i < opt.lower_count; i++) {
        snprintf(target, sizeof target, "%d", i);
        mkdirat((int)root, target, 0755);
        attach(lower[i], root, target);
    }
    for (int i = 0; i < 3; i++) {
        mkdirat((int)root, kept[i], 0755);
        attach(keep[i], root, kept[i]);
    }
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
    return program_fd;
}

void box_prepare(const struct box_options *options)
{
    opt = *options;
    program_filter.len = filter_build(filter);
    program_fd = open_high(opt.program);
    init_fd = open_high(opt.init);
    if (opt.steps & STEP_CGROUP)
        groups_prepare();
    struct box unused = {0};
    job.box = &unused;
    if (opt.root_in_parent)
        hiding = hiding_layer();
    else
        staging_namespace();
}

void box_start(struct box *box, const char *mode)
{
    int out[2], go[2], pair[2] = {-1, -1};
    memset(box, 0, sizeof *box);
    box->socket = -1;
    outside(box, "begin");
    job.box = box;
    job.mode = mode;
    job.task_count = 0;
    if (opt.steps & STEP_CGROUP) {
        box->group = opt.pooled_cgroups ? next_group : next_group++;
        if (!opt.pooled_cgroups || !box->made) {
            static int pool_made;
            if (!opt.pooled_cgroups || !pool_made)
                group_make(box->group, !!(opt.steps & STEP_LIMITS));
            pool_made = 1;
        }
        group_open_tasks(box->group, job.tasks, &job.task_count);
        outside(box, "groups made, limits written");
    }
    static unsigned range;
    unsigned first_id = ID_BASE + (range++ % 4096) * ID_STEP;
    if (opt.root_in_parent) {
        for (int i = 0; i < opt.lower_count; i++)
            job.lower[i] = strcmp(opt.lowers[i], "hide") ? clone_tree(AT_FDCWD, opt.lowers[i], 0)
                                                         : fcntl(hiding, F_DUPFD_CLOEXEC, 100);
        job.root = (int)overlay_root(first_id);
        box->inside_count = 0;
        for (int i = 0; i < opt.lower_count; i++)
            close(job.lower[i]);
        outside(box, "overlay in the parent");
    }
    if (opt.steps & STEP_DEV && opt.pooled_dev) {
        if (dev_template < 0)
            make_dev_template();
        job.box = box;
        job.dev = clone_tree(dev_template, "", AT_WHOLE_TREE);
    }
    outside(box, "mounts cloned");
    if (pipe2(out, O_CLOEXEC) || pipe2(go, O_CLOEXEC))
        die("pipe", -errno);
    if ((!strcmp(mode, "serve") || !strcmp(mode, "filter")) && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        die("socketpair", -errno);
    job.out = out[1];
    job.go = go[0];
    job.socket = pair[1];
    unsigned long flags = CLONE_VM | CLONE_PIDFD | CLONE_NEWPID | CLONE_NEWNS | SIGCHLD;
    if (opt.steps & STEP_USER)
        flags |= CLONE_NEWUSER;
    if (opt.steps & STEP_NET)
        flags |= CLONE_NEWNET;
    if (opt.steps & STEP_IPC)
        flags |= CLONE_NEWIPC;
    if (opt.steps & STEP_UTS)
        flags |= CLONE_NEWUTS;
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    long pid = raw_clone(flags, child_stack + sizeof child_stack, body, NULL, &box->pidfd);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0)
        die("clone", pid);
    box->pid = (pid_t)pid;
    outside(box, "clone");
    close(out[1]);
    close(go[0]);
    if (pair[1] >= 0)
        close(pair[1]);
    if (opt.root_in_parent)
        close(job.root);
    if (opt.steps & STEP_DEV && opt.pooled_dev)
        close(job.dev);
    for (int i = 0; i < job.task_count; i++)
        close(job.tasks[i]);
    if (opt.steps & STEP_USER) {
        char path[64], map[64];
        snprintf(map, sizeof map, "0 %u %u", first_id, ID_STEP);
        snprintf(path, sizeof path, "/proc/%ld/uid_map", pid);
        long error = write_text(path, map);
        snprintf(path, sizeof path, "/proc/%ld/gid_map", pid);
        if (!error)
            error = write_text(path, map);
        if (error)
            die("id map", error);
        outside(box, "id maps written");
    }
    if (write(go[1], "g", 1) != 1)
        die("go", -errno);
    close(go[1]);
    box->out = out[0];
    box->socket = pair[0];
    box->made = 1;
    outside(box, "descriptors closed, go");
    if (*mode != 'r') {
        char byte;
        if (read(box->out, &byte, 1) != 1) {
            box_wait(box);
            die(box->failed ? box->failed : "container did not start", box->error);
        }
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
    if (opt.steps & STEP_CGROUP && !opt.pooled_cgroups) {
        group_remove(box->group);
        outside(box, "groups removed");
    }
}

void box_finish(void)
{
    if (opt.steps & STEP_CGROUP) {
        if (opt.pooled_cgroups)
            group_remove(next_group);
        groups_finish();
    }
}
