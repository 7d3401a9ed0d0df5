/* The physical limit: what the kernel charges for the work that isobox does, with no Python and no library above it.
 *
 *   floor oneshot [options]        a container made, `true` run in it, everything gone
 *   floor exec [--filter]          `true` in a live container by its init, which gets descriptors (SCM_RIGHTS)
 *   floor exec-fork                the same by fork + setns from outside
 *   floor teardown --processes N   a container with N waiting processes killed and reaped
 *   floor spawn                    vfork + exec + wait of `true` on the host, nothing isolated
 *   floor pipe                     seconds that 1 GiB takes through a pipe of 1 MiB
 *   floor idle --containers N      memory of idle containers, bytes each
 *   floor phases [options]         like oneshot, prints what each step took
 *
 * Prints one sample a line: nanoseconds, or bytes for idle. See usage() for the options. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "box.h"
#include "groups.h"
#include "raw.h"

struct step_name {
    const char *name;
    unsigned step;
};
static const struct step_name STEPS[] = {
    {"user", STEP_USER},       {"net", STEP_NET},         {"ipc", STEP_IPC},       {"uts", STEP_UTS},
    {"cgroupns", STEP_CGROUPNS}, {"overlay", STEP_OVERLAY}, {"proc", STEP_PROC},     {"sys", STEP_SYS},
    {"dev", STEP_DEV},         {"pts", STEP_PTS},         {"shm", STEP_SHM},       {"mqueue", STEP_MQUEUE},
    {"lo", STEP_LO},           {"cgroup", STEP_CGROUP},   {"limits", STEP_LIMITS}, {"seccomp", STEP_SECCOMP},
    {"caps", STEP_CAPS},       {"init", STEP_INIT},       {"views", STEP_VIEWS},
};
enum { STEP_COUNT = sizeof STEPS / sizeof *STEPS };

static struct box_options options = {.steps = STEP_ALL};
static long count = 200, warm_up = 10, gap_ms, processes, containers = 100, measured, filtered;

static void usage(void)
{
    fprintf(stderr,
            "floor oneshot|phases|exec|exec-fork|teardown|spawn|pipe|idle\n"
            "  --count N --warm-up N --gap MS (pause before each) --program PATH --init PATH\n"
            "  --lower DIR (repeatable, topmost first; `hide` is a layer of whiteouts; default: hide, /)\n"
            "  --without STEP,...  --pooled-cgroups\n"
            "  --processes N --containers N --filter --measure\n  steps:");
    for (int i = 0; i < STEP_COUNT; i++)
        fprintf(stderr, " %s", STEPS[i].name);
    fprintf(stderr, "\n");
    exit(2);
}

static void leave_out(char *names)
{
    for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
        int found = 0;
        for (int i = 0; i < STEP_COUNT; i++) {
            if (!strcmp(STEPS[i].name, name)) {
                options.steps &= ~STEPS[i].step;
                found = 1;
            }
        }
        if (!found)
            usage();
    }
}

static void parse(int argc, char **argv)
{
    static const struct option longs[] = {
        {"count", 1, 0, 'n'},          {"warm-up", 1, 0, 'w'},       {"gap", 1, 0, 'g'},
        {"program", 1, 0, 'p'},        {"init", 1, 0, 'i'},          {"lower", 1, 0, 'l'},
        {"without", 1, 0, 'x'},        {"pooled-cgroups", 0, 0, 'c'}, {"processes", 1, 0, 'P'},
        {"containers", 1, 0, 'C'},     {"filter", 0, 0, 'F'},        {"measure", 0, 0, 'M'},
        {0, 0, 0, 0},
    };
    int letter;
    while ((letter = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (letter) {
        case 'n': count = atol(optarg); break;
        case 'w': warm_up = atol(optarg); break;
        case 'g': gap_ms = atol(optarg); break;
        case 'p': options.program = optarg; break;
        case 'i': options.init = optarg; break;
        case 'l':
            if (options.lower_count == MAX_LOWERS)
                usage();
            options.lowers[options.lower_count++] = optarg;
            break;
        case 'x': leave_out(optarg); break;
        case 'c': options.pooled_cgroups = 1; break;
        case 'P': processes = atol(optarg); break;
        case 'C': containers = atol(optarg); break;
        case 'F': filtered = 1; break;
        case 'M': measured = 1; break;
        default: usage();
        }
    }
    if (!options.lower_count) {
        options.lowers[options.lower_count++] = "hide";
        options.lowers[options.lower_count++] = "/";
    }
}

static void beside(const char *argv0, const char *name, char *path, size_t size)
{
    const char *slash = strrchr(argv0, '/');
    snprintf(path, size, "%.*s%s", slash ? (int)(slash - argv0 + 1) : 0, argv0, name);
}

static void pause_between(void)
{
    if (gap_ms)
        usleep((unsigned)gap_ms * 1000);
}

static void one_container(struct box *box)
{
    box_start(box, "run");
    int status = box_wait(box);
    if (status)
        die(box->failed ? box->failed : "the program inside", box->error);
    box_remove(box);
}

static void oneshot(void)
{
    struct box box;
    for (long i = -warm_up; i < count; i++) {
        pause_between();
        int64_t begin = now_ns();
        one_container(&box);
        if (i >= 0)
            printf("%lld\n", (long long)(now_ns() - begin));
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, long n)
{
    qsort(values, (size_t)n, sizeof *values, by_size);
    return values[n / 2];
}

static void phases(void)
{
    double *in[MAX_PHASES], *out[MAX_PHASES];
    struct box box;
    for (int k = 0; k < MAX_PHASES; k++) {
        in[k] = calloc((size_t)count, sizeof(double));
        out[k] = calloc((size_t)count, sizeof(double));
    }
    for (long i = -warm_up; i < count; i++) {
        pause_between();
        one_container(&box);
        for (int k = 1; i >= 0 && k < box.inside_count; k++)
            in[k][i] = (double)(box.inside[k].at - box.inside[k - 1].at) / 1000;
        for (int k = 1; i >= 0 && k < box.outside_count; k++)
            out[k][i] = (double)(box.outside[k].at - box.outside[k - 1].at) / 1000;
    }
    printf("microseconds, medians; the parent:\n");
    for (int k = 1; k < box.outside_count; k++)
        printf("  %8.1f  %s\n", median(out[k], count), box.outside[k].name);
    printf("the child, at the same time:\n");
    for (int k = 1; k < box.inside_count; k++)
        printf("  %8.1f  %s\n", median(in[k], count), box.inside[k].name);
}

static void send_job(int socket, const int *fds, int fd_count)
{
    char control[CMSG_SPACE((3 + MAX_GROUPS) * sizeof(int))] = {0};
    struct iovec part = {.iov_base = (void *)"x", .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int))};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
    memcpy(CMSG_DATA(head), fds, (size_t)fd_count * sizeof(int));
    if (sendmsg(socket, &message, 0) != 1)
        die("sendmsg", -errno);
}

static void one_exec(struct box *box, int group)
{
    int out[2], done[2], status = -1, fds[3 + MAX_GROUPS], group_count = 0;
    char buffer[4096];
    if (measured) {
        group_make(group, 1);
        group_open_tasks(group, fds + 3, &group_count);
    }
    if (pipe2(out, O_CLOEXEC) || pipe2(done, O_CLOEXEC))
        die("pipe", -errno);
    fds[0] = box_program();
    fds[1] = out[1];
    fds[2] = done[1];
    send_job(box->socket, fds, 3 + group_count);
    for (int i = 1; i < 3 + group_count; i++)
        close(fds[i]);
    while (read(out[0], buffer, sizeof buffer) > 0)
        ;
    if (read(done[0], &status, sizeof status) != sizeof status || status)
        die("exec in the container", -EIO);
    close(out[0]);
    close(done[0]);
    if (measured) {
        group_read(group);
        group_remove(group);
    }
}

/* The floor keeps the filter in init, whence the program inherits it; --filter installs it once for each program, as an
 * init without one has to. --measure: groups of its own, with limits, joined, read and removed. */
static void exec_in_server(void)
{
    struct box box;
    box_start(&box, filtered ? "filter" : "serve");
    for (long i = -warm_up; i < count; i++) {
        pause_between();
        int64_t begin = now_ns();
        one_exec(&box, (int)(1000000 + i));
        if (i >= 0)
            printf("%lld\n", (long long)(now_ns() - begin));
    }
    kill(box.pid, SIGKILL);
    box_wait(&box);
    box_remove(&box);
}

static void exec_by_fork(void)
{
    struct box box;
    int program = box_program();
    box_start(&box, "serve");
    for (long i = -warm_up; i < count; i++) {
        int out[2], status;
        char buffer[4096];
        pause_between();
        int64_t begin = now_ns();
        if (pipe2(out, O_CLOEXEC))
            die("pipe", -errno);
        pid_t first = fork();
        if (first == 0) {
            int flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP;
            if (setns(box.pidfd, flags | (options.steps & STEP_USER ? CLONE_NEWUSER : 0)))
                _exit(98);
            pid_t second = vfork();
            if (second == 0) {
                char *arguments[] = {(char *)"true", NULL}, *environment[] = {NULL};
                dup2(out[1], 1);
                syscall(SYS_execveat, program, "", arguments, environment, 0x1000);
                _exit(97);
            }
            waitpid(second, &status, 0);
            _exit(WEXITSTATUS(status));
        }
        close(out[1]);
        while (read(out[0], buffer, sizeof buffer) > 0)
            ;
        waitpid(first, &status, 0);
        if (status)
            die("exec by fork and setns", -EIO);
        close(out[0]);
        if (i >= 0)
            printf("%lld\n", (long long)(now_ns() - begin));
    }
    kill(box.pid, SIGKILL);
    box_wait(&box);
    box_remove(&box);
}

static void teardown(void)
{
    char mode[32] = "idle";
    if (processes)
        snprintf(mode, sizeof mode, "fork:%ld", processes);
    for (long i = -warm_up; i < count; i++) {
        struct box box;
        pause_between();
        box_start(&box, mode);
        int64_t begin = now_ns();
        kill(box.pid, SIGKILL);
        box_wait(&box);
        box_remove(&box);
        if (i >= 0)
            printf("%lld\n", (long long)(now_ns() - begin));
    }
}

static int spawned(void *opaque)
{
    char *arguments[] = {(char *)"true", NULL}, *environment[] = {NULL};
    raw5(SYS_execveat, *(int *)opaque, "", arguments, environment, 0x1000);
    return 127;
}

static void spawn(void)
{
    static char stack[65536] __attribute__((aligned(16)));
    int program = open(options.program, O_PATH | O_CLOEXEC), status;
    for (long i = -warm_up; i < count; i++) {
        pause_between();
        int64_t begin = now_ns();
        long pid = raw_clone(RAW_CLONE_VM | RAW_CLONE_VFORK | RAW_SIGCHLD, stack + sizeof stack, spawned, &program, 0);
        if (pid < 0 || waitpid((pid_t)pid, &status, 0) != pid || status)
            die("spawn", -errno);
        if (i >= 0)
            printf("%lld\n", (long long)(now_ns() - begin));
    }
}

static void through_pipe(void)
{
    static char block[1 << 20];
    const int64_t total = 1LL << 30;
    memset(block, 1, sizeof block);
    for (long i = -1; i < count; i++) {
        int ends[2], status;
        if (pipe2(ends, O_CLOEXEC))
            die("pipe", -errno);
        fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
        int64_t begin = now_ns(), got = 0;
        pid_t child = fork();
        if (child == 0) {
            for (int64_t left = total; left > 0;) {
                ssize_t done = write(ends[1], block, sizeof block);
                if (done <= 0)
                    _exit(1);
                left -= done;
            }
            _exit(0);
        }
        close(ends[1]);
        for (ssize_t n; (n = read(ends[0], block, sizeof block)) > 0;)
            got += n;
        close(ends[0]);
        waitpid(child, &status, 0);
        if (got < total)
            die("pipe", -EIO);
        if (i >= 0)
            printf("%lld\n", (long long)(now_ns() - begin));
    }
}

static long long field(const char *path, const char *name)
{
    char line[256];
    long long kib = 0;
    size_t length = strlen(name);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        if (!strncmp(line, name, length) && line[length] == ':')
            sscanf(line + length + 1, "%lld", &kib);
    }
    if (file)
        fclose(file);
    return kib * 1024;
}

/* What the kernel itself holds, and files in memory; others' programs and the page cache don't disturb it. */
static long long kernel_memory(void)
{
    static const char *const parts[] = {"Slab", "KernelStack", "PageTables", "Percpu", "Shmem"};
    long long sum = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        sum += field("/proc/meminfo", parts[i]);
    return sum;
}

/* Once it has come to rest: the kernel takes network namespaces apart in the background. */
static long long settled_memory(void)
{
    long long before = kernel_memory(), after = before;
    for (int i = 0; i < 15; i++, before = after) {
        usleep(200000);
        after = kernel_memory();
        if (llabs(after - before) < 65536)
            break;
    }
    return after;
}

static void idle(void)
{
    struct box *boxes = calloc((size_t)containers, sizeof *boxes);
    struct box first;
    char path[64];
    one_container(&first);
    long long before = settled_memory(), own = 0;
    for (long i = 0; i < containers; i++)
        box_start(&boxes[i], "idle");
    long long after = settled_memory();
    for (long i = 0; i < containers; i++) {
        snprintf(path, sizeof path, "/proc/%d/smaps_rollup", boxes[i].pid);
        own += field(path, "Private_Dirty");
    }
    printf("%lld\n", (after - before + own) / containers);
    for (long i = 0; i < containers; i++) {
        kill(boxes[i].pid, SIGKILL);
        box_wait(&boxes[i]);
        box_remove(&boxes[i]);
    }
}

int main(int argc, char **argv)
{
    static char program[4096], init[4096];
    beside(argv[0], "true", program, sizeof program);
    beside(argv[0], "init", init, sizeof init);
    options.program = program;
    options.init = init;
    if (argc < 2)
        usage();
    const char *what = argv[1];
    parse(argc - 1, argv + 1);
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(what, "exec") && filtered)
        options.steps &= ~STEP_SECCOMP;
    if (!strcmp(what, "spawn") || !strcmp(what, "pipe")) {
        if (*what == 's')
            spawn();
        else
            through_pipe();
        return 0;
    }
    box_prepare(&options);
    if (!strcmp(what, "oneshot"))
        oneshot();
    else if (!strcmp(what, "phases"))
        phases();
    else if (!strcmp(what, "exec"))
        exec_in_server();
    else if (!strcmp(what, "exec-fork"))
        exec_by_fork();
    else if (!strcmp(what, "teardown"))
        teardown();
    else if (!strcmp(what, "idle"))
        idle();
    else
        usage();
    return 0;
}
