/* A seccomp filter of the size and shape that engines use: 60 ranges of system call numbers as a balanced tree, some of
 * the last answered with EPERM. */
#ifndef ISOBOX_BENCH_FILTER_H
#define ISOBOX_BENCH_FILTER_H

#include <linux/filter.h>
#include <linux/seccomp.h>

enum { FILTER_RANGES = 60, FILTER_MAX = 4 * FILTER_RANGES };

static inline int filter_tree(struct sock_filter *out, int low, int high, int at)
{
    if (high - low == 1) {
        unsigned answer = low % 2 && low > 56 ? SECCOMP_RET_ERRNO | 1 : SECCOMP_RET_ALLOW;
        out[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, answer);
        return at;
    }
    int middle = (low + high) / 2, jump = at;
    int right = filter_tree(out, low, middle, at + 1);
    out[jump] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (unsigned)middle * 8,
                                             (unsigned char)(right - jump - 1), 0);
    return filter_tree(out, middle, high, right);
}

static inline unsigned short filter_build(struct sock_filter *out)
{
    out[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
    return (unsigned short)filter_tree(out, 0, FILTER_RANGES, 1);
}

#endif
