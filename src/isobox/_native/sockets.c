/* Messages to and from isobox-init: requests with their descriptors out, one reply at a time in. What comes from inside
 * is untrusted. */
#define _GNU_SOURCE
#include "clock.h"
#include "extension.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union ancillary {
    struct cmsghdr head;
    unsigned char bytes[CMSG_SPACE(sizeof(int) * ISOBOX_FDS_MAX)];
};

/* One message with descriptors on a SOCK_SEQPACKET socket. */
int isobox_send(int sock, const unsigned char *data, unsigned long size, const int *fds, unsigned int nfds)
{
    struct iovec iov = {(void *)(uintptr_t)data, size};
    union ancillary control;
    struct msghdr header;
    memset(&header, 0, sizeof header);
    header.msg_iov = &iov;
    header.msg_iovlen = 1;
    if (nfds > ISOBOX_FDS_MAX)
        return -E2BIG;
    if (nfds) {
        memset(&control.head, 0, sizeof control.head);
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        memcpy(CMSG_DATA(&control.head), fds, sizeof(int) * nfds);
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
    }
    ssize_t sent;
    do
        sent = sendmsg(sock, &header, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

/* One reply from inside: untrusted. A wrong size is EBADMSG; surplus descriptors are closed. `fd` and
 * `pid` (as this process sees it) are -1 where the reply carried none. 0 on success. */
int isobox_receive(int sock, struct isobox_reply *reply, int *fd, int *pid, int timeout_ms)
{
    struct iovec iov = {reply, sizeof *reply};
    union ancillary control;
    struct msghdr header;
    struct pollfd watched = {sock, POLLIN, 0};
    long long deadline = monotonic_ns() + timeout_ms * 1000000LL, left = timeout_ms;
    int ready;
    *fd = *pid = -1;
    if (sock < 0) /* closed: poll would ignore it */
        return -EBADF;
    /* Signals wait: an answer that is not taken would be the next request's. */
    while ((ready = poll(&watched, 1, (int)left)) < 0 && errno == EINTR) {
        left = (deadline - monotonic_ns()) / 1000000;
        if (left < 0)
            left = 0;
    }
    if (ready <= 0)
        return ready == 0 ? -ETIMEDOUT : -errno;
    memset(&header, 0, sizeof header);
    header.msg_iov = &iov;
    header.msg_iovlen = 1;
    header.msg_control = &control;
    header.msg_controllen = sizeof control;
    ssize_t size = recvmsg(sock, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && errno == ECONNRESET) /* once: it ended with requests unread; what it said comes next */
        size = recvmsg(sock, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0)
        return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len >= CMSG_LEN(sizeof(struct ucred))) {
            struct ucred sender;
            memcpy(&sender, CMSG_DATA(c), sizeof sender);
            *pid = sender.pid;
        }
        if (c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int got;
            memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
            if (*fd < 0)
                *fd = got;
            else
                close(got);
        }
    }
    if (size == 0 && *fd < 0 && *pid < 0) /* the end; an empty message has its sender's credentials */
        return -EPIPE;
    if (size != (ssize_t)sizeof *reply || header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        if (*fd >= 0)
            close(*fd);
        *fd = -1;
        return -EBADMSG;
    }
    return 0;
}
