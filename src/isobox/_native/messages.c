/* PID 1's messages: requests with their descriptors come in on the control socket, answers go out on it; what becomes
 * of an exec goes out on that exec's own pipe.
 *
 * One message is in hand at a time: isobox_take_message, then whoever serves it takes what it needs of
 * isobox_message and isobox_received, then isobox_close_received. */
#include "init.h"

unsigned char isobox_message[ISOBOX_MESSAGE_MAX + sizeof(struct isobox_request)];
int isobox_received[ISOBOX_FDS_MAX];
unsigned int isobox_received_count;
int isobox_received_all;
static union {
    struct isobox_cmsghdr head;
    unsigned char bytes[sizeof(struct isobox_cmsghdr) + sizeof(int) * ISOBOX_FDS_MAX + 64];
} control;

void __attribute__((noreturn)) isobox_leave(int code)
{
    for (;;)
        SYS1(__NR_exit_group, code);
}

long long isobox_now(void)
{
    struct __kernel_timespec t = {0, 0};
    SYS2(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, &t);
    return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

void isobox_close_received(void)
{
    for (unsigned int i = 0; i < isobox_received_count; i++)
        if (isobox_received[i] >= 0)
            SYS1(__NR_close, isobox_received[i]);
    isobox_received_count = 0;
}

/* One message with its descriptors into `isobox_message` and `isobox_received`. Its size, 0 at the end, or -errno. */
long isobox_take_message(void)
{
    struct iovec iov = {isobox_message, sizeof isobox_message};
    struct isobox_msghdr header = {0, 0, &iov, 1, &control, sizeof control, 0};
    long size;
    isobox_received_count = 0;
    do
        size = SYS3(__NR_recvmsg, ISOBOX_FD_CONTROL, &header, MSG_CMSG_CLOEXEC);
    while (size == -EINTR);
    if (size <= 0)
        return size;
    if (header.controllen >= sizeof(struct isobox_cmsghdr) && control.head.level == SOL_SOCKET &&
        control.head.type == SCM_RIGHTS && control.head.len <= header.controllen) {
        isobox_received_count = (unsigned int)((control.head.len - sizeof(struct isobox_cmsghdr)) / sizeof(int));
        if (isobox_received_count > ISOBOX_FDS_MAX)
            isobox_leave(1);
        memcpy(isobox_received, control.bytes + sizeof(struct isobox_cmsghdr), isobox_received_count * sizeof(int));
    }
    isobox_received_all = !(header.flags & MSG_CTRUNC);
    if (header.flags & MSG_TRUNC) {
        isobox_close_received();
        return -EBADMSG;
    }
    return size;
}

/* Answers on the control socket; `fd` and `pid` travel as ancillary data where they are not 0. */
void isobox_answer(struct isobox_reply *reply, int fd, int pid)
{
    struct iovec iov = {reply, sizeof *reply};
    struct isobox_msghdr header = {0, 0, &iov, 1, 0, 0, 0};
    struct {
        struct isobox_cmsghdr head;
        int data[4];
    } ancillary;
    memset(&ancillary, 0, sizeof ancillary);
    ancillary.head.level = SOL_SOCKET;
    if (fd > 0 || pid > 0) {
        /* For credentials: pid here, which the kernel translates for the owner; uid 0, gid 0. */
        ancillary.head.type = fd > 0 ? SCM_RIGHTS : SCM_CREDENTIALS;
        ancillary.head.len = sizeof(struct isobox_cmsghdr) + (fd > 0 ? sizeof(int) : 3 * sizeof(int));
        ancillary.data[0] = fd > 0 ? fd : pid;
        header.control = &ancillary;
        header.controllen = ancillary.head.len;
    }
    SYS3(__NR_sendmsg, ISOBOX_FD_CONTROL, &header, MSG_NOSIGNAL);
}

void isobox_answer_code(long failed)
{
    struct isobox_reply reply;
    memset(&reply, 0, sizeof reply);
    reply.kind = failed < 0 ? ISOBOX_FAILED : ISOBOX_DONE;
    reply.error = failed < 0 ? (int)-failed : 0;
    isobox_answer(&reply, 0, 0);
}

/* An exec's own descriptor is a pipe: a record is far below PIPE_BUF, so it arrives whole. */
void isobox_report(int status_fd, struct isobox_reply *reply)
{
    SYS3(__NR_write, status_fd, reply, sizeof *reply);
}

/* The ops of the request in `isobox_message`: behind the header, or, where `mapped` allows that, in a memfd mapped
 * for the request's time. */
static const unsigned char *payload(const struct isobox_request *request, long size, void **mapped)
{
    if (mapped)
        *mapped = 0;
    if (!isobox_received_all)
        return 0;
    if (!(request->flags & ISOBOX_PAYLOAD_FD))
        return (long)request->size <= size - (long)sizeof *request ? isobox_message + sizeof *request : 0;
    if (!mapped || isobox_received_count == 0 || request->size == 0 || request->size > ISOBOX_PAYLOAD_MAX)
        return 0;
    int fd = isobox_received[isobox_received_count - 1];
    long at = SYS6(__NR_mmap, 0, request->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (at < 0 && at > -4096)
        return 0;
    *mapped = (void *)at;
    return *mapped;
}

/* The run of a request's ops, none where its payload is not as it says or descriptors of it did not come. */
struct isobox_run isobox_plan_of(const struct isobox_request *request, long size, void **mapped)
{
    struct isobox_run run;
    memset(&run, 0, sizeof run);
    run.ops = payload(request, size, mapped);
    run.size = request->size;
    run.fds = isobox_received;
    run.nfds = isobox_received_count;
    run.root = -1;
    return run;
}

/* The next NUL-ended string of a file request. */
const char *isobox_request_string(const struct isobox_request *request, long size, unsigned int number)
{
    long end = (long)sizeof *request + (long)request->size;
    long at = sizeof *request;
    if (end > size || request->size == 0 || isobox_message[end - 1] != 0)
        return 0;
    while (number--) {
        while (at < end && isobox_message[at])
            at++;
        at++;
    }
    return at < end ? (const char *)isobox_message + at : 0;
}
