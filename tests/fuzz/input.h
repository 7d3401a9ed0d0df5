/* What the targets share that stand in for the kernel. Its answers are fuzzed too: `decide` takes them from the
 * end of the input, and all is well where that is used up. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#undef memcpy
#undef memset
#undef __asm__

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t *input;
static size_t input_size;

/* The next byte from the end: 0 where there is none. */
static unsigned int decide(void)
{
    return input_size ? input[--input_size] : 0;
}

static void __attribute__((noreturn)) wrong(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

/* Reads what the kernel would read, so that the sanitizers see where it lies. */
static void touch(const void *at, size_t size)
{
    const volatile unsigned char *byte = at;
    for (size_t i = 0; i < size; i++)
        (void)byte[i];
}

static void touch_text(long at)
{
    if (at)
        touch((const void *)at, strlen((const char *)at) + 1);
}

#endif
