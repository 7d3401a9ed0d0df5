/* In the place of isobox-init: a program that behaves as badly as WAY says. Read by test_init.py. */
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CONTROL = 3, OWNER = 4, READY = 1, REPLY_SIZE = 56 };

static char message[1 << 17];

static long take(void)
{
    return recv(CONTROL, message, sizeof message, 0);
}

static long say(const void *data, size_t size, unsigned int fds)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int) * 253)];
    } control;
    struct iovec iov = {(void *)data, size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fds) {
        memset(&control, 0, sizeof control);
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof(int) * fds);
        for (unsigned int i = 0; i < fds; i++)
            memcpy(CMSG_DATA(&control.head) + i * sizeof(int), &(int){CONTROL}, sizeof(int));
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * fds);
    }
    return sendmsg(CONTROL, &header, MSG_NOSIGNAL);
}

static void ready(unsigned int fds)
{
    unsigned int reply[REPLY_SIZE / 4] = {READY};
    take();
    take();
    say(reply, sizeof reply, fds);
}

/* Bad as it is, it ends with its owner: a test that is killed leaves nothing that runs. */
static void stay(void)
{
    struct pollfd owner = {OWNER, POLLIN, 0};
    while (poll(&owner, 1, -1) < 0)
        ;
    _exit(0);
}

int main(void)
{
    static const char zeros[60000];
    signal(SIGTERM, SIG_IGN);
    switch (WAY) {
    case 0: return 1;                          /* ends at once */
    case 1: stay();                            /* says nothing, reads nothing */
    case 2: take(); return 1;                  /* ends after the first part of the plan */
    case 3: take(); take(); return 1;          /* ends after all of it */
    case 4: say("garbage", 7, 0); stay();      /* before it was asked */
    case 5: take(); take(); say("x", 1, 250); stay();
    case 6: take(); take(); say(zeros, sizeof zeros, 3); stay();
    case 7: close(CONTROL); stay();            /* hangs up */
    case 8: take(); *(volatile int *)1 = 0; stay(); /* crashes */
    case 9: ready(0); return 1;                /* ends when it is ready */
    case 10: ready(100); stay();               /* is ready, and then deaf */
    case 11: ready(0); close(CONTROL); stay();
    case 12: ready(0); while (say(zeros, REPLY_SIZE, 1) > 0) {} return 1; /* talks until nobody listens */
    case 13: take(); take(); for (int i = 0; i < 1000; i++) if (fork() == 0) stay(); stay();
    default: return 2;
    }
}
