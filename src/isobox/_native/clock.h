/* CLOCK_MONOTONIC in nanoseconds, as deadlines are. */
#ifndef ISOBOX_CLOCK_H
#define ISOBOX_CLOCK_H

#include <time.h>

static inline long long monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
