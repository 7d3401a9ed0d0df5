/* memcpy and memset, which the compiler calls by itself, and the length of a text. */
#include "ops.h"

/* gcc would otherwise see through these loops and call the functions from within themselves. */
#pragma GCC optimize("no-tree-loop-distribute-patterns")

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    unsigned char *t = to;
    const unsigned char *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memset(void *at, int byte, size_t size)
{
    unsigned char *t = at;
    while (size--)
        *t++ = (unsigned char)byte;
    return at;
}

unsigned long isobox_length(const char *text)
{
    unsigned long n = 0;
    while (text[n])
        n++;
    return n;
}
