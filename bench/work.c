/* Work whose speed is compared inside and outside a container. Prints the nanoseconds that it took.
 *   work cpu             arithmetic in registers and in the cache
 *   work files DIR       1,000 files of 4 KiB made, read and removed; one of 64 MiB written and read
 *   work loopback        5,000 one-byte round trips and 128 MiB over TCP on 127.0.0.1
 *   work calls           1,000,000 system calls: what a seccomp filter costs */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 1000, FILE_SIZE = 4096, BIG = 64 << 20, TRIPS = 5000, STREAM = 128 << 20, BLOCK = 1 << 16, CALLS = 1000000 };
static char block[1 << 20];

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void check(int fine, const char *what)
{
    if (!fine) {
        perror(what);
        exit(1);
    }
}

static void cpu(void)
{
    static uint64_t table[1 << 14];
    uint64_t x = 88172645463325252ULL;
    for (int i = 0; i < 60000000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        table[x & ((1 << 14) - 1)] += x;
    }
    if (table[1] == 1)
        puts("");
}

static void one_file(const char *path, long size)
{
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    check(fd >= 0, path);
    long step = size < (long)sizeof block ? size : (long)sizeof block;
    for (long done = 0; done < size; done += step)
        check(write(fd, block, (size_t)step) == step, "write");
    check(lseek(fd, 0, SEEK_SET) == 0, "lseek");
    for (long done = 0; done < size; done += step)
        check(read(fd, block, (size_t)step) == step, "read");
    close(fd);
}

static void files(const char *directory)
{
    char path[4096];
    for (int i = 0; i < FILES; i++) {
        snprintf(path, sizeof path, "%s/%d", directory, i);
        one_file(path, FILE_SIZE);
    }
    for (int i = 0; i < FILES; i++) {
        snprintf(path, sizeof path, "%s/%d", directory, i);
        check(unlink(path) == 0, "unlink");
    }
    snprintf(path, sizeof path, "%s/big", directory);
    one_file(path, BIG);
    check(unlink(path) == 0, "unlink");
}

static void *echo(void *listener)
{
    char byte;
    static char sink[BLOCK];
    int fd = accept(*(int *)listener, NULL, NULL), one = 1;
    check(fd >= 0, "accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int i = 0; i < TRIPS; i++)
        check(read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1, "echo");
    for (long left = STREAM; left > 0;) {
        ssize_t n = read(fd, sink, sizeof sink);
        check(n > 0, "sink");
        left -= n;
    }
    check(write(fd, "", 1) == 1, "last");
    close(fd);
    return NULL;
}

static void loopback(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    pthread_t thread;
    char byte = 0;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
    check(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0, "listen");
    check(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
    check(pthread_create(&thread, NULL, echo, &listener) == 0, "thread");
    check(connect(fd, (struct sockaddr *)&address, size) == 0, "connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int i = 0; i < TRIPS; i++)
        check(write(fd, &byte, 1) == 1 && read(fd, &byte, 1) == 1, "trip");
    for (long left = STREAM; left > 0;) {
        ssize_t n = write(fd, block, BLOCK);
        check(n > 0, "stream");
        left -= n;
    }
    check(read(fd, &byte, 1) == 1, "last");
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    if (!strcmp(what, "loopback")) /* both ends on one core: the software's way, not the scheduler's luck */
        sched_setaffinity(0, sizeof here, &here);
    memset(block, 7, sizeof block);
    int64_t begin = now();
    if (!strcmp(what, "cpu"))
        cpu();
    else if (!strcmp(what, "files") && argc > 2)
        files(argv[2]);
    else if (!strcmp(what, "loopback"))
        loopback();
    else if (!strcmp(what, "calls"))
        for (int i = 0; i < CALLS; i++)
            syscall(SYS_getppid);
    else
        return 2;
    printf("%lld\n", (long long)(now() - begin));
    return 0;
}
