/* Raw system calls for code that must not touch libc: isobox-init, and the extension's child
 * between clone and execveat, which shares the host program's memory.
 *
 * A call returns what the kernel returned: a negative errno on failure. Nothing here sets errno.
 * Constants that older headers lack are defined with the kernel's values (include/uapi/linux). */
#ifndef ISOBOX_SYSCALLS_H
#define ISOBOX_SYSCALLS_H

#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

#ifndef __NR_clone3
#define __NR_clone3 435
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef __NR_openat2
#define __NR_openat2 437
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif
#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#endif
#ifndef __NR_landlock_add_rule
#define __NR_landlock_add_rule 445
#endif
#ifndef __NR_landlock_restrict_self
#define __NR_landlock_restrict_self 446
#endif

struct isobox_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        set_tid_size, cgroup;
};

struct isobox_open_how {
    uint64_t flags, mode, resolve;
};

struct isobox_mount_attr {
    uint64_t set, clear, propagation, userns_fd;
};

#if defined(__x86_64__)

static inline long isobox_syscall6(long n, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The child runs entry(arg) on the stack that args names and never comes back. See isobox_clone_into. */
static inline long isobox_clone3(struct isobox_clone_args *args, void (*entry)(void *), void *arg)
{
    long result;
    register void (*r8)(void *) __asm__("r8") = entry;
    register void *r9 __asm__("r9") = arg;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r9, %%rdi\n\t"
                     "call *%%r8\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "a"(__NR_clone3), "D"(args), "S"(sizeof *args), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The child runs entry(arg) on the stack that ends at `stack` (0: a copy of ours) and never comes back.
 * `flags` has the exit signal too. Not clone3, whose flags no seccomp filter can look at: some forbid it. */
static inline long isobox_clone(uint64_t flags, void *stack, int *pidfd, int *child_tid, void (*entry)(void *),
                                void *arg)
{
    long result;
    register int *r10 __asm__("r10") = child_tid;
    register long r8 __asm__("r8") = 0;
    register void (*r9)(void *) __asm__("r9") = entry;
    register void *r12 __asm__("r12") = arg;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r12, %%rdi\n\t"
                     "call *%%r9\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "a"(__NR_clone), "D"(flags), "S"(stack), "d"(pidfd), "r"(r10), "r"(r8), "r"(r9), "r"(r12)
                     : "rcx", "r11", "memory");
    return result;
}

#elif defined(__aarch64__)

static inline long isobox_syscall6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

static inline long isobox_clone3(struct isobox_clone_args *args, void (*entry)(void *), void *arg)
{
    register long x8 __asm__("x8") = __NR_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    register void (*x2)(void *) __asm__("x2") = entry;
    register void *x3 __asm__("x3") = arg;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "mov x0, x3\n\t"
                     "blr x2\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3)
                     : "memory");
    return x0;
}

static inline long isobox_clone(uint64_t flags, void *stack, int *pidfd, int *child_tid, void (*entry)(void *),
                                void *arg)
{
    register long x8 __asm__("x8") = __NR_clone;
    register long x0 __asm__("x0") = (long)flags;
    register long x1 __asm__("x1") = (long)stack;
    register int *x2 __asm__("x2") = pidfd;
    register long x3 __asm__("x3") = 0;
    register int *x4 __asm__("x4") = child_tid;
    register void (*x5)(void *) __asm__("x5") = entry;
    register void *x6 __asm__("x6") = arg;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "mov x0, x6\n\t"
                     "blr x5\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5), "r"(x6)
                     : "memory");
    return x0;
}

#else
#error "isobox runs on x86-64 and aarch64"
#endif

#define SYS0(n) isobox_syscall6(n, 0, 0, 0, 0, 0, 0)
#define SYS1(n, a) isobox_syscall6(n, (long)(a), 0, 0, 0, 0, 0)
#define SYS2(n, a, b) isobox_syscall6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS3(n, a, b, c) isobox_syscall6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS4(n, a, b, c, d) isobox_syscall6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS5(n, a, b, c, d, e) \
    isobox_syscall6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYS6(n, a, b, c, d, e, f) \
    isobox_syscall6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* The same on a stack of `size` bytes that begins at `stack`, in the v2 cgroup of a descriptor from birth
 * (CLONE_INTO_CGROUP, Linux 5.7), or by isobox_clone in ours where that is negative. */
__attribute__((no_sanitize("address", "undefined"), unused)) static long
isobox_clone_into(int cgroup_fd, uint64_t flags, unsigned char *stack, unsigned long size, int *pidfd, int *child_tid,
                  void (*entry)(void *), void *arg)
{
    if (cgroup_fd < 0)
        return isobox_clone(flags, stack + size, pidfd, child_tid, entry, arg);
    struct isobox_clone_args args = {0};
    args.flags = (flags & ~(uint64_t)0xff) | 0x200000000ULL;
    args.exit_signal = flags & 0xff;
    args.pidfd = (uint64_t)(uintptr_t)pidfd;
    args.child_tid = (uint64_t)(uintptr_t)child_tid;
    args.stack = (uint64_t)(uintptr_t)stack;
    args.stack_size = size;
    args.cgroup = (uint64_t)cgroup_fd;
    return isobox_clone3(&args, entry, arg);
}

/* Closes every descriptor from `first` on, but for `spared` (-1: none). Without close_range (Linux 5.9) by
 * what /proc lists. */
__attribute__((no_sanitize("address", "undefined"), unused)) static long
isobox_close_from(long first, long spared)
{
    enum { HEAD = 19 }; /* of a struct linux_dirent64: two 64-bit numbers, its size, a type; then its name */
    unsigned char entries[1024] __attribute__((aligned(8)));
    long failed = 0;
    if (spared > first)
        failed = SYS3(__NR_close_range, first, spared - 1, 0);
    if (failed == 0)
        failed = SYS3(__NR_close_range, spared >= first ? spared + 1 : first, ~0U, 0);
    if (failed == 0)
        return 0;
    long listing = SYS4(__NR_openat, -100 /* AT_FDCWD */, "/proc/self/fd", 02000000 /* O_CLOEXEC */, 0);
    if (listing < 0)
        return failed;
    for (;;) {
        long size = SYS3(__NR_getdents64, listing, entries, sizeof entries);
        if (size <= 0) {
            SYS1(__NR_close, listing);
            return size;
        }
        for (long at = 0; at < size; at += entries[at + 16] | entries[at + 17] << 8) {
            const unsigned char *name = entries + at + HEAD;
            long fd = 0;
            if (*name < '0' || *name > '9')
                continue; /* "." and ".." */
            for (; *name; name++)
                fd = fd * 10 + (*name - '0');
            if (fd >= first && fd != spared && fd != listing)
                SYS1(__NR_close, fd);
        }
    }
}

#endif
