/* The child's side: from fresh namespaces to the exec. It shares the parent's memory (CLONE_VM), which keeps its start
 * as cheap whatever the parent holds; so it uses raw system calls only, since libc's errno is the parent's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "filter.h"
#include "job.h"
#include "raw.h"

#define AT_EMPTY 0x1000
#define UMOUNT_DETACH 2
#define MS_RECURSIVE 16384
#define MS_SLAVE_TREE (1 << 19)
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *const NODES[] = {"null", "zero", "full", "random", "urandom", "tty"};
static const char *const LINKS[][2] = {
    {"/proc/self/fd", "fd"},       {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
    {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
};
static const char *const SKELETON[] = {"proc", "sys", "dev", "tmp", "run", "root"};
static const char *const VIEWS[] = {"proc/meminfo", "proc/cpuinfo", "proc/stat", "sys/devices/system/cpu/online"};

static struct sock_filter filter[FILTER_MAX];

static int has(unsigned steps)
{
    return (job.options.steps & steps) == steps;
}

/* An overlay whose upper lies on a tmpfs of its own; the directories that get mounts are made in the upper before. */
static long new_root(void)
{
    static const char *const options[] = {"mode", "0755", "size", "134217728", "nr_inodes", "65536", 0};
    char path[64];
    if (!has(STEP_OVERLAY)) {
        snprintf(path, sizeof path, "/%d", job.options.lower_count - 1);
        return clone_tree(path);
    }
    attach(new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), AT_FDCWD, STAGE_SCRATCH);
    must("upper", raw3(SYS_mkdirat, AT_FDCWD, STAGE_SCRATCH "/upper", 0755));
    must("work", raw3(SYS_mkdirat, AT_FDCWD, STAGE_SCRATCH "/work", 0755));
    for (size_t i = 0; i < COUNT(SKELETON); i++) {
        snprintf(path, sizeof path, STAGE_SCRATCH "/upper/%s", SKELETON[i]);
        must("skeleton", raw3(SYS_mkdirat, AT_FDCWD, path, 0755));
    }
    inside("scratch tmpfs + upper + skeleton");
    long fs = must("overlay", raw2(SYS_fsopen, "overlay", 1));
    for (int i = 0; i < job.options.lower_count; i++) {
        snprintf(path, sizeof path, "/%d", i);
        must("lowerdir+", raw5(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "lowerdir+", path, 0));
    }
    must("upperdir", raw5(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "upperdir", STAGE_SCRATCH "/upper", 0));
    must("workdir", raw5(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "workdir", STAGE_SCRATCH "/work", 0));
    if (has(STEP_USER))
        must("userxattr", raw5(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "userxattr", 0, 0));
    must("overlay", raw5(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0));
    long root = must("overlay", raw3(SYS_fsmount, fs, 1, 0));
    inside("overlay");
    return root;
}

static void mount_dev(long root)
{
    static const char *const options[] = {"mode", "0755", "size", "65536", 0};
    static const char *const pts_options[] = {"ptmxmode", "0666", "mode", "0620", 0};
    static const char *const shm_options[] = {"mode", "1777", "size", "67108864", 0};
    char path[32];
    long dev = new_mount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    must("dev", raw5(SYS_move_mount, dev, "", root, "dev", MOVE_MOUNT_F_EMPTY_PATH));
    for (size_t i = 0; i < COUNT(NODES); i++) {
        raw1(SYS_close, must(NODES[i], raw4(SYS_openat, dev, NODES[i], O_CREAT | O_WRONLY | O_CLOEXEC, 0666)));
        snprintf(path, sizeof path, "/dev/%s", NODES[i]);
        attach(clone_tree(path), dev, NODES[i]);
    }
    for (size_t i = 0; i < COUNT(LINKS); i++)
        must(LINKS[i][1], raw3(SYS_symlinkat, LINKS[i][0], dev, LINKS[i][1]));
    must("dev/pts", raw3(SYS_mkdirat, dev, "pts", 0755));
    must("dev/shm", raw3(SYS_mkdirat, dev, "shm", 01777));
    must("dev/mqueue", raw3(SYS_mkdirat, dev, "mqueue", 0755));
    inside("/dev + 6 nodes + links");
    if (has(STEP_PTS)) {
        attach(new_mount("devpts", pts_options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), dev, "pts");
        inside("/dev/pts");
    }
    if (has(STEP_SHM)) {
        attach(new_mount("tmpfs", shm_options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), dev, "shm");
        inside("/dev/shm");
    }
    if (has(STEP_MQUEUE | STEP_IPC)) {
        attach(new_mount("mqueue", 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), dev, "mqueue");
        inside("/dev/mqueue");
    }
    raw1(SYS_close, dev);
}

/* Files of our own over those of /proc and /sys that tell of the machine: they show the container's limits. */
static void mount_views(long root)
{
    static const char content[1400];
    char path[64];
    for (size_t i = 0; i < COUNT(VIEWS); i++) {
        snprintf(path, sizeof path, STAGE_SCRATCH "/view%zu", i);
        long file = must("view", raw4(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_CLOEXEC, 0444));
        must("view", raw3(SYS_write, file, content, sizeof content));
        raw1(SYS_close, file);
        attach(clone_tree(path), root, VIEWS[i]);
    }
    inside("views of /proc and /sys");
}

static void kernel_file_systems(long root)
{
    const unsigned usual = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    if (has(STEP_PROC)) {
        attach(new_mount("proc", 0, usual), root, "proc");
        inside("/proc");
    }
    if (has(STEP_SYS | STEP_NET)) { /* a new sysfs is for those who own the network namespace */
        attach(new_mount("sysfs", 0, usual | MOUNT_ATTR_RDONLY), root, "sys");
        inside("/sys");
    }
    if (has(STEP_DEV))
        mount_dev(root);
    if (has(STEP_VIEWS | STEP_OVERLAY | STEP_PROC | STEP_SYS | STEP_NET))
        mount_views(root);
}

static void enter(long root)
{
    must("fchdir", raw1(SYS_fchdir, root));
    must("pivot_root", raw2(SYS_pivot_root, ".", "."));
    must("umount", raw2(SYS_umount2, ".", UMOUNT_DETACH));
    must("chdir", raw1(SYS_chdir, "/"));
    raw1(SYS_close, root);
    inside("pivot_root, old root gone");
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

static void install_filter(void)
{
    struct sock_fprog program = {filter_build(filter), filter};
    must("seccomp", raw3(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
    inside("seccomp filter");
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

static void identity(void)
{
    for (int i = 0; i < job.task_count; i++)
        must("join", raw3(SYS_write, job.tasks[i], "0", 1));
    if (job.task_count)
        inside("joined the groups");
    if (has(STEP_CGROUPNS)) {
        must("cgroup namespace", raw1(SYS_unshare, CLONE_NEWCGROUP));
        inside("cgroup namespace");
    }
    if (has(STEP_USER)) {
        must("setgroups", raw2(SYS_setgroups, 0, 0));
        must("setresgid", raw3(SYS_setresgid, 0, 0, 0));
        must("setresuid", raw3(SYS_setresuid, 0, 0, 0));
    } else
        must("propagation", raw5(SYS_mount, 0, "/", 0, MS_RECURSIVE | MS_SLAVE_TREE, 0));
    if (has(STEP_UTS))
        must("hostname", raw2(SYS_sethostname, "isobox", 6));
    if (has(STEP_LO | STEP_NET))
        loopback_up();
}

int child_body(void *unused)
{
    static const char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", 0};
    const char *arguments[] = {"init", job.mode, 0};
    char byte;
    (void)unused;
    job.child_runs = 1;
    inside("clone returned in the child");
    must("go", raw3(SYS_read, job.go, &byte, 1));
    inside("waited for the maps");
    identity();
    long root = new_root();
    must("attach root", raw5(SYS_move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    kernel_file_systems(root);
    enter(root);
    if (has(STEP_CAPS))
        drop_capabilities();
    raw5(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    raw5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (has(STEP_SECCOMP))
        install_filter();
    raw3(SYS_dup3, job.out, 1, 0);
    if (has(STEP_INIT)) {
        raw3(SYS_dup3, job.socket >= 0 ? job.socket : job.program, 3, 0);
        must("exec of init", raw5(SYS_execveat, job.init, "", arguments, environment, AT_EMPTY));
    }
    must("exec", raw5(SYS_execveat, job.program, "", arguments, environment, AT_EMPTY));
    return 99;
}
