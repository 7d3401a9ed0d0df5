/* The program that every engine is made to run: static, without libc, exits with 0. With arguments it is what a
 * measurement needs of a program inside: `true sleep` waits until it is killed; `true fork N` keeps N children that
 * wait; `true write MIB` writes that many MiB of zero bytes to its standard output. */
#include "raw.h"

#define MIB (1L << 20)

static char block[MIB];

static long number(const char *text)
{
    long value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

static void wait_for_ever(void)
{
    for (;;) {
#ifdef NR_pause
        raw0(NR_pause);
#else
        raw4(NR_ppoll, 0, 0, 0, 0);
#endif
    }
}

void start(long *stack);
void start(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    if (argc > 1 && argv[1][0] == 's')
        wait_for_ever();
    if (argc > 2 && argv[1][0] == 'f') {
        for (long left = number(argv[2]); left > 0; left--) {
            if (raw5(NR_clone, RAW_SIGCHLD, 0, 0, 0, 0) == 0)
                wait_for_ever();
        }
        raw3(NR_write, 1, "ready\n", 6);
        wait_for_ever();
    }
    if (argc > 2 && argv[1][0] == 'w') {
        long left = number(argv[2]) * MIB;
        while (left > 0) {
            long done = raw3(NR_write, 1, block, left < MIB ? left : MIB);
            if (done <= 0)
                raw1(NR_exit_group, 1);
            left -= done;
        }
    }
    raw1(NR_exit_group, 0);
    for (;;)
        ;
}

RAW_START(start);
