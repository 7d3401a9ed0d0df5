/* System calls without libc, and the constants that older headers lack. Used by the floor and by the two programs
 * that it runs. Every wrapper returns the kernel's own result: a negative errno on failure. */
#ifndef ISOBOX_BENCH_RAW_H
#define ISOBOX_BENCH_RAW_H

#define RAW_CLONE_VM 0x100UL
#define RAW_CLONE_VFORK 0x4000UL
#define RAW_CLONE_PIDFD 0x1000UL
#define RAW_SIGCHLD 17UL

#if defined(__x86_64__)
#define NR_read 0
#define NR_write 1
#define NR_close 3
#define NR_dup2 33
#define NR_recvmsg 47
#define NR_wait4 61
#define NR_exit 60
#define NR_exit_group 231
#define NR_pause 34
#define NR_execveat 322
#define NR_clone 56
#define NR_seccomp 317

static inline long raw6(long n, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

/* clone onto a stack of its own: the child calls fn(arg) and exits with what it returns. */
static inline long raw_clone(unsigned long flags, void *stack_top, int (*fn)(void *), void *arg, int *pidfd)
{
    void **sp = (void **)((unsigned long)stack_top & ~15UL);
    long ret;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    *--sp = arg;
    *--sp = (void *)fn;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "pop %%rax\n\t"
                     "pop %%rdi\n\t"
                     "call *%%rax\n\t"
                     "mov %%eax, %%edi\n\t"
                     "mov $60, %%eax\n\t"
                     "syscall\n"
                     "1:"
                     : "=a"(ret)
                     : "a"(NR_clone), "D"(flags), "S"(sp), "d"(pidfd), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return ret;
}
#define RAW_START(entry)                                                                                              \
    __asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall " #entry "\n\thlt\n")

#elif defined(__aarch64__)
#define NR_read 63
#define NR_write 64
#define NR_close 57
#define NR_dup3 24
#define NR_recvmsg 212
#define NR_wait4 260
#define NR_exit 93
#define NR_exit_group 94
#define NR_ppoll 73
#define NR_execveat 281
#define NR_clone 220
#define NR_seccomp 277

static inline long raw6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

static inline long raw_clone(unsigned long flags, void *stack_top, int (*fn)(void *), void *arg, int *pidfd)
{
    void **sp = (void **)((unsigned long)stack_top & ~15UL);
    register long x8 __asm__("x8") = NR_clone;
    register long x0 __asm__("x0") = (long)flags;
    register void *x1 __asm__("x1");
    register int *x2 __asm__("x2") = pidfd;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    *--sp = arg;
    *--sp = (void *)fn;
    x1 = sp;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "ldp x1, x0, [sp], #16\n\t"
                     "blr x1\n\t"
                     "mov x8, #93\n\t"
                     "svc 0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "memory", "x30");
    return x0;
}
#define RAW_START(entry)                                                                                              \
    __asm__(".globl _start\n_start:\n\tmov x29,xzr\n\tmov x0,sp\n\tand sp,x0,#-16\n\tbl " #entry "\n\tbrk 1\n")
#else
#error "x86-64 and aarch64 only"
#endif

#define raw0(n) raw6(n, 0, 0, 0, 0, 0, 0)
#define raw1(n, a) raw6(n, (long)(a), 0, 0, 0, 0, 0)
#define raw2(n, a, b) raw6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define raw3(n, a, b, c) raw6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define raw4(n, a, b, c, d) raw6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define raw5(n, a, b, c, d, e) raw6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

#endif
