/* The cgroups of a container: made below this process's own group in each hierarchy, limits written, joined, removed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "box.h"
#include "groups.h"

struct hierarchy {
    const char *controller;
    int own;  /* descriptor of this process's own group */
    int base; /* descriptor of our directory in it */
    int is_v2;
};

struct limit {
    const char *controller;
    const char *file;
    const char *value;
};

static const char *const WANTED[] = {"memory", "cpu", "cpuacct", "pids", "freezer", "blkio"};
static const struct limit LIMITS[] = {
    {"memory", "memory.limit_in_bytes", "268435456"},
    {"memory", "memory.memsw.limit_in_bytes", "268435456"},
    {"cpu", "cpu.cfs_quota_us", "100000"},
    {"pids", "pids.max", "1024"},
    {"v2", "memory.max", "268435456"},
    {"v2", "memory.swap.max", "0"},
    {"v2", "cpu.max", "100000 100000"},
    {"v2", "pids.max", "1024"},
};
static struct hierarchy hierarchies[MAX_GROUPS];
static int hierarchy_count;
static char base_name[64];

static int has_word(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += length) {
        if ((at == list || at[-1] == ',') && (at[length] == 0 || at[length] == ',' || at[length] == '\n'))
            return 1;
    }
    return 0;
}

/* The directory of our own group in one hierarchy, from /proc/self/cgroup and the mount table. */
static int own_directory(const char *controller, char *path, size_t size)
{
    char line[4096], group[2048] = "", mount[2048] = "";
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file)) {
        char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;
        if (!second)
            continue;
        *second = 0;
        if (*controller ? has_word(first + 1, controller) : first[1] == 0) {
            snprintf(group, sizeof group, "%s", second + 1);
            group[strcspn(group, "\n")] = 0;
        }
    }
    if (file)
        fclose(file);
    file = fopen("/proc/self/mountinfo", "re");
    while (file && fgets(line, sizeof line, file)) {
        char *tail = strstr(line, " - "), options[1024], type[64], at[2048];
        if (!tail || sscanf(tail, " - %63s %*s %1023s", type, options) != 2)
            continue;
        if (sscanf(line, "%*s %*s %*s %*s %2047s", at) != 1)
            continue;
        if (*controller ? !strcmp(type, "cgroup") && has_word(options, controller) : !strcmp(type, "cgroup2"))
            snprintf(mount, sizeof mount, "%s", at);
    }
    if (file)
        fclose(file);
    if (!*group || !*mount)
        return -1;
    return snprintf(path, size, "%s%s", mount, strcmp(group, "/") ? group : "") < (int)size ? 0 : -1;
}

static void add(const char *controller, const char *discover)
{
    struct hierarchy *here = &hierarchies[hierarchy_count];
    char path[4096];
    if (own_directory(discover, path, sizeof path))
        return;
    here->own = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (here->own < 0 || (mkdirat(here->own, base_name, 0755) && errno != EEXIST))
        return;
    here->controller = controller;
    here->is_v2 = !strcmp(controller, "v2");
    here->base = openat(here->own, base_name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (here->base < 0)
        die(path, -errno);
    hierarchy_count++;
}

/* A group is busy for a moment after its last process is gone. */
static void remove_directory(int below, const char *name)
{
    for (int tries = 0; unlinkat(below, name, AT_REMOVEDIR) && errno == EBUSY && tries < 10000; tries++)
        usleep(50);
}

void groups_prepare(void)
{
    snprintf(base_name, sizeof base_name, "isobox-floor-%d", getpid());
    atexit(groups_finish);
    for (size_t i = 0; i < sizeof WANTED / sizeof *WANTED; i++)
        add(WANTED[i], WANTED[i]);
    if (!hierarchy_count)
        add("v2", "");
    if (!hierarchy_count)
        fprintf(stderr, "floor: no cgroup is writable here; measured without\n");
}

/* Also after an error: what is left below our base is killed by nobody but us, so it is empty or its init is going. */
void groups_finish(void)
{
    if (!hierarchy_count)
        return;
    for (int i = 0; i < hierarchy_count; i++) {
        int directory = openat(hierarchies[i].own, base_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *list = directory < 0 ? NULL : fdopendir(directory);
        for (struct dirent *entry; list && (entry = readdir(list));) {
            if (entry->d_type == DT_DIR && *entry->d_name != '.')
                remove_directory(hierarchies[i].base, entry->d_name);
        }
        if (list)
            closedir(list);
        remove_directory(hierarchies[i].own, base_name);
    }
    hierarchy_count = 0;
}

int group_make(int number, int with_limits)
{
    char name[96];
    snprintf(name, sizeof name, "%d", number);
    for (int i = 0; i < hierarchy_count; i++) {
        if (mkdirat(hierarchies[i].base, name, 0755) && errno != EEXIST)
            die("mkdir of a group", -errno);
    }
    for (size_t k = 0; with_limits && k < sizeof LIMITS / sizeof *LIMITS; k++) {
        for (int i = 0; i < hierarchy_count; i++) {
            if (strcmp(hierarchies[i].controller, LIMITS[k].controller))
                continue;
            snprintf(name, sizeof name, "%d/%s", number, LIMITS[k].file);
            int fd = openat(hierarchies[i].base, name, O_WRONLY | O_CLOEXEC);
            if (fd < 0)
                continue;
            if (write(fd, LIMITS[k].value, strlen(LIMITS[k].value)) < 0)
                die(LIMITS[k].file, -errno);
            close(fd);
        }
    }
    return number;
}

void group_open_tasks(int number, int *fds, int *count)
{
    char name[64];
    *count = 0;
    for (int i = 0; i < hierarchy_count; i++) {
        snprintf(name, sizeof name, "%d/%s", number, hierarchies[i].is_v2 ? "cgroup.procs" : "tasks");
        int fd = openat(hierarchies[i].base, name, O_WRONLY | O_CLOEXEC);
        if (fd < 0)
            die(name, -errno);
        fds[(*count)++] = fd;
    }
}

void group_read(int number)
{
    static const struct limit files[] = {
        {"memory", "memory.max_usage_in_bytes", 0},
        {"memory", "memory.oom_control", 0},
        {"cpu", "cpu.stat", 0},
        {"cpuacct", "cpuacct.usage", 0},
        {"cpuacct", "cpuacct.usage_user", 0},
        {"pids", "pids.peak", 0},
        {"blkio", "blkio.throttle.io_service_bytes_recursive", 0},
        {"v2", "memory.peak", 0},
        {"v2", "memory.events", 0},
        {"v2", "cpu.stat", 0},
        {"v2", "pids.peak", 0},
        {"v2", "io.stat", 0},
    };
    char name[96], buffer[4096];
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        for (int i = 0; i < hierarchy_count; i++) {
            if (strcmp(hierarchies[i].controller, files[k].controller))
                continue;
            snprintf(name, sizeof name, "%d/%s", number, files[k].file);
            int fd = openat(hierarchies[i].base, name, O_RDONLY | O_CLOEXEC);
            if (fd < 0)
                continue;
            if (read(fd, buffer, sizeof buffer) < 0)
                die(files[k].file, -errno);
            close(fd);
        }
    }
}

void group_remove(int number)
{
    char name[64];
    snprintf(name, sizeof name, "%d", number);
    for (int i = 0; i < hierarchy_count; i++)
        remove_directory(hierarchies[i].base, name);
}
