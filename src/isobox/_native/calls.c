/* System calls that `os` lacks: mounts by descriptors, what the kernel knows, programs that decide about devices. */
#define _GNU_SOURCE
#include "extension.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/mount.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef MOUNT_ATTR_IDMAP /* since Linux 5.12 */
#define MOUNT_ATTR_IDMAP 0x00100000
#endif

/* A detached copy of the mount at `path` (relative to dirfd), without the mounts below it unless `recursive`. */
int isobox_clone_tree(int dirfd, const char *path, int recursive)
{
    unsigned int flags = OPEN_TREE_CLONE | O_CLOEXEC | (recursive ? AT_RECURSIVE : 0);
    if (!path[0])
        flags |= AT_EMPTY_PATH;
    int fd = (int)syscall(SYS_open_tree, dirfd, path, flags);
    return fd < 0 ? -errno : fd;
}

/* mount_setattr on a detached mount; `userns_fd` >= 0 makes it an idmapped mount. */
int isobox_mount_setattr(int fd, unsigned long long set, int recursive, int userns_fd)
{
    struct isobox_mount_attr attr = {set, 0, 0, 0};
    if (userns_fd >= 0) {
        attr.set |= MOUNT_ATTR_IDMAP;
        attr.userns_fd = (uint64_t)userns_fd;
    }
    unsigned int flags = AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0);
    return syscall(__NR_mount_setattr, fd, "", flags, &attr, sizeof attr) < 0 ? -errno : 0;
}

/* All that was written to the file system of `fd` is on its disk: syncfs(2). */
int isobox_sync_file_system(int fd)
{
    return syncfs(fd) < 0 ? -errno : 0;
}

/* What the kernel says to a call with every flag and no descriptor: a negative errno. For calls that take flags. */
int isobox_try_call(long number)
{
    return syscall(number, -1L, -1L, -1L, -1L, -1L, -1L) < 0 ? -errno : 0;
}

/* The version of Landlock's ABI, or a negative errno: LANDLOCK_CREATE_RULESET_VERSION in landlock(7). */
int isobox_landlock_abi(void)
{
    int version = (int)syscall(__NR_landlock_create_ruleset, (void *)0, (size_t)0, 1U);
    return version < 0 ? -errno : version;
}

/* The detached mount of a context, whose configuration may have failed; closes the context. */
static int mount_of(int context, int failed, unsigned int attributes)
{
    int fd = -1;
    if (!failed && syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, (char *)0, (char *)0, 0) == 0)
        fd = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
    int error = errno;
    close(context);
    return fd < 0 ? -error : fd;
}

/* A detached tmpfs; its owner in every sense is the caller. */
int isobox_new_tmpfs(const char *size, const char *mode)
{
    int context = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
    if (context < 0)
        return -errno;
    int failed = syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", size, 0) ||
                 syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "mode", mode, 0);
    return mount_of(context, failed, 0);
}

/* A detached, read-only mount of the file system of this type that lies in a file. */
int isobox_mount_file(const char *type, const char *path)
{
    int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return -errno;
    int failed = syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "source", path, 0) ||
                 syscall(SYS_fsconfig, context, FSCONFIG_SET_FLAG, "ro", (char *)0, 0);
    return mount_of(context, failed, MOUNT_ATTR_RDONLY);
}

/* A loaded BPF_PROG_TYPE_CGROUP_DEVICE program: `code` is an array of struct bpf_insn. */
int isobox_load_device_program(const unsigned char *code, unsigned long size)
{
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attr.insns = (uint64_t)(uintptr_t)code;
    attr.insn_cnt = (uint32_t)(size / sizeof(struct bpf_insn));
    attr.license = (uint64_t)(uintptr_t) "Apache-2.0";
    int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
    return fd < 0 ? -errno : fd;
}

/* Have it decide for a v2 group and all below, beside what groups above and below have (all must agree). */
int isobox_attach_device_program(int group_fd, int program_fd)
{
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.target_fd = (uint32_t)group_fd;
    attr.attach_bpf_fd = (uint32_t)program_fd;
    attr.attach_type = BPF_CGROUP_DEVICE;
    attr.attach_flags = BPF_F_ALLOW_MULTI;
    return syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof attr) < 0 ? -errno : 0;
}
