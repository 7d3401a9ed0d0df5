/* remount.c: any text in /proc/self/mountinfo, and any answer of the kernel on the way. */
#include "remount.c"

#include "input.h"

static const uint8_t *text;
static size_t text_size;
static int open_files;
static struct found area; /* made clean again by hand: it is large, and mostly untouched */
static int mapped;
static size_t last; /* size of the input before */

long kernel_clone(uint64_t flags, int *child_tid, void (*entry)(void *), void *arg)
{
    (void)flags, (void)child_tid, (void)entry, (void)arg;
    wrong("an unexpected clone");
}

long kernel(long n, long a, long b, long c, long d, long e, long f)
{
    (void)d, (void)f;
    unsigned int answer = decide();
    long failed = answer > 0xc0 ? -(long)(answer - 0xc0) : 0;
    switch (n) {
    case __NR_openat:
        touch_text(b);
        open_files += !failed;
        return failed ? failed : strcmp((const char *)b, "/proc/self/mountinfo") ? 8 : 7;
    case __NR_close:
        if (open_files-- <= 0)
            wrong("closed twice");
        return 0;
    case __NR_read: {
        size_t some = text_size < (size_t)c ? text_size : (size_t)c;
        if (failed || a != 7)
            return failed;
        if (answer && some > answer)
            some = answer;
        memcpy((void *)b, text, some);
        text += some;
        text_size -= some;
        return (long)some;
    }
    case __NR_statx: {
        struct isobox_statx *about = (void *)e;
        memset(about, 0, sizeof *about);
        about->mask = answer == 1 ? 0 : STATX_MNT_ID;
        about->mount_id = a == 5 ? 20 : answer; /* 5 is the tree */
        return failed;
    }
    case __NR_fstatfs:
        memset((void *)b, (int)answer, sizeof(struct statfs));
        return failed;
    case __NR_mount:
        touch_text(b);
        return failed;
    case __NR_mmap:
        mapped += !failed;
        return failed ? failed : (long)&area;
    case __NR_munmap:
        mapped--;
        return 0;
    default:
        wrong("an unexpected system call");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t end = size - size * data[0] / 256; /* from there on: the kernel's answers */
    if (end < 2)
        end = 2;
    text = data + 2;
    text_size = end - 2;
    input = data + end;
    input_size = size - end;
    open_files = 0;
    memset(area.text, 0, last);
    memset(area.line, 0, area.count * sizeof area.line[0]);
    memset(area.inside, 0, area.count);
    area.count = 0;
    last = size;
    isobox_remount(5, data[1] & 15, data[1] & 16);
    if (open_files || mapped)
        wrong("something was not given back");
    return 0;
}
