/* isobox-init's parts for an ordinary process: compiled with this in front, they make their system calls to
 * `kernel` and `kernel_clone`, which a target defines, and nothing is really done. */
#ifndef FUZZ_KERNEL_H
#define FUZZ_KERNEL_H

#include <stdint.h>

long kernel(long n, long a, long b, long c, long d, long e, long f);
long kernel_clone(uint64_t flags, int *child_tid, void (*entry)(void *), void *arg);

/* What is in assembly there gets other names; what calls it comes to us. */
#define isobox_syscall6 real_syscall6
#define isobox_clone3 real_clone3
#define isobox_clone real_clone
#define isobox_clone_into real_clone_into
#define isobox_close_from real_close_from
#include "syscalls.h"
#undef isobox_syscall6
#undef isobox_clone
#undef isobox_clone_into
#undef isobox_close_from
#define isobox_syscall6 kernel
#define isobox_clone(flags, stack, pidfd, child_tid, entry, arg) \
    ((void)(stack), kernel_clone(flags, child_tid, entry, arg))
#define isobox_clone_into(cgroup_fd, flags, stack, size, pidfd, child_tid, entry, arg) \
    ((void)(cgroup_fd), isobox_clone(flags, stack, pidfd, child_tid, entry, arg))
#define isobox_close_from(first, spared) kernel(__NR_close_range, first, ~0U, spared, 0, 0, 0)

/* memory.c has its own, which the sanitizers look into this way; init.c has its own _start. */
#define memcpy isobox_memcpy
#define memset isobox_memset
#define __asm__(code) _Static_assert(1, "")

#endif
