/* Waiting for an exec: its streams are read and fed until its record arrives on its status pipe. What comes through the
 * pipes is untrusted. */
#define _GNU_SOURCE
#include "clock.h"
#include "extension.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* What is left until `deadline_ns` (CLOCK_MONOTONIC), for ppoll; 0 where it waits for ever. */
static struct timespec *time_left(long long deadline_ns, struct timespec *timeout)
{
    if (deadline_ns < 0)
        return 0;
    long long left = deadline_ns - monotonic_ns();
    if (left < 0)
        left = 0;
    timeout->tv_sec = left / 1000000000;
    timeout->tv_nsec = left % 1000000000;
    return timeout;
}

static void close_stream(struct isobox_stream *stream)
{
    if (stream->fd >= 0)
        close(stream->fd);
    stream->fd = -1;
}

/* Reads once. 1: got something, 0: nothing more now or ever (fd closed at EOF), -errno, 2: past the limit. */
static int read_stream(struct isobox_pump *pump, struct isobox_stream *stream)
{
    if (stream->room - stream->size < 4096) {
        unsigned long room = stream->room ? stream->room * 2 : 16384;
        unsigned char *data = realloc(stream->data, room);
        if (!data)
            return -ENOMEM;
        stream->data = data;
        stream->room = room;
    }
    ssize_t got = read(stream->fd, stream->data + stream->size, stream->room - stream->size);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (got <= 0) { /* EIO: the other end of a terminal is gone */
        close_stream(stream);
        return 0;
    }
    if (stream->size < 65536 && stream->size + (unsigned long)got >= 65536)
        fcntl(stream->fd, F_SETPIPE_SZ, 1 << 20); /* a flood: fewer, larger reads; may be refused */
    stream->size += (unsigned long)got;
    if (pump->stream[0].size + pump->stream[1].size > pump->limit) {
        stream->size -= pump->stream[0].size + pump->stream[1].size - pump->limit;
        return 2;
    }
    return 1;
}

/* Whether it has read so much since the end that all of it can't have been in the pipe then. */
static int is_refilled(const struct isobox_stream *stream, unsigned long drained)
{
    if (drained < 65536)
        return 0;
    int room = fcntl(stream->fd, F_GETPIPE_SZ);
    return drained >= (room < 65536 ? 65536 : (unsigned long)room);
}

/* What is in the pipes now; those that wrote have ended. Another program, to which one of them gave its end of a
 * pipe, may write on for ever: at most what the pipe holds is read. */
static int drain(struct isobox_pump *pump)
{
    for (int i = 0; i < 2; i++) {
        struct isobox_stream *stream = &pump->stream[i];
        unsigned long before = stream->size;
        while (stream->fd >= 0 && !is_refilled(stream, stream->size - before)) {
            struct pollfd watched = {stream->fd, POLLIN, 0};
            if (poll(&watched, 1, 0) <= 0)
                break;
            int result = read_stream(pump, stream);
            if (result < 0 || result == 2)
                return result;
        }
    }
    return 0;
}

static int pump_failed(struct isobox_pump *pump, int error)
{
    pump->error = error;
    return ISOBOX_PUMP_ERROR;
}

/* write(2) without its SIGPIPE: a program may close its stdin at any time, and would end a host program by that which
 * has this signal at its default. One that was pending before stays so. */
static ssize_t write_quietly(int fd, const unsigned char *data, unsigned long size)
{
    const struct timespec at_once = {0, 0};
    sigset_t broken, before, pending;
    sigemptyset(&broken);
    sigaddset(&broken, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &broken, &before);
    sigpending(&pending);
    ssize_t written = write(fd, data, size);
    int error = errno;
    if (written < 0 && error == EPIPE && !sigismember(&pending, SIGPIPE))
        sigtimedwait(&broken, 0, &at_once);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    errno = error;
    return written;
}

static void feed(struct isobox_pump *pump)
{
    const unsigned char *rest = pump->input + pump->input_done;
    ssize_t written = write_quietly(pump->stdin_fd, rest, pump->input_size - pump->input_done);
    if (written > 0)
        pump->input_done += (unsigned long)written;
    int over = pump->input_done >= pump->input_size;
    if (over || (written < 0 && errno != EAGAIN && errno != EINTR)) { /* EPIPE: it doesn't want to know */
        close(pump->stdin_fd);
        pump->stdin_fd = -1;
    }
}

static int read_status(struct isobox_pump *pump)
{
    struct isobox_reply reply;
    ssize_t got = read(pump->status_fd, &reply, sizeof reply);
    if (got < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : pump_failed(pump, errno);
    if (got == 0)
        return ISOBOX_PUMP_LOST;
    if (got != (ssize_t)sizeof reply)
        return pump_failed(pump, EBADMSG);
    if (reply.kind == ISOBOX_STARTED && !pump->started++) /* once: without end they would keep us here */
        return 0;
    if (reply.kind != ISOBOX_ENDED && reply.kind != ISOBOX_FAILED)
        return pump_failed(pump, EBADMSG);
    pump->reply = reply;
    pump->have_status = 1;
    int drained = drain(pump);
    if (drained < 0)
        return pump_failed(pump, -drained);
    return drained == 2 ? ISOBOX_PUMP_LIMIT : ISOBOX_PUMP_ENDED;
}

enum {
    AT_A_TIME = 16 << 20, /* bytes: some milliseconds of a flood */
};

static unsigned long bytes_moved(const struct isobox_pump *pump)
{
    return pump->stream[0].size + pump->stream[1].size + pump->input_done;
}

/* Waits for an exec: reads its streams, feeds its stdin, until its record arrives, the deadline
 * (CLOCK_MONOTONIC, -1: none) passes, the limit is passed, or watch_fd stirs. Call again to go on. With
 * have_status set it only drains. Returns enum isobox_pump_event. */
int isobox_pump_run(struct isobox_pump *pump, long long deadline_ns)
{
    if (pump->have_status) {
        int drained = drain(pump);
        if (drained < 0)
            return pump_failed(pump, -drained);
        return drained == 2 ? ISOBOX_PUMP_LIMIT : ISOBOX_PUMP_ENDED;
    }
    if (pump->stdin_fd >= 0)
        fcntl(pump->stdin_fd, F_SETFL, fcntl(pump->stdin_fd, F_GETFL) | O_NONBLOCK);
    unsigned long before = bytes_moved(pump);
    for (;;) {
        struct pollfd watched[5] = {
            {pump->status_fd, POLLIN, 0},
            {pump->stream[0].fd, POLLIN, 0},
            {pump->stream[1].fd, POLLIN, 0},
            {pump->stdin_fd, POLLOUT, 0},
            {pump->watch_fd, (short)pump->watch_events, 0},
        };
        struct timespec timeout;
        int ready = ppoll(watched, 5, time_left(deadline_ns, &timeout), 0);
        if (ready < 0)
            return errno == EINTR ? ISOBOX_PUMP_INTERRUPTED : pump_failed(pump, errno);
        if (ready == 0)
            return ISOBOX_PUMP_DEADLINE;
        for (int i = 0; i < 2; i++) {
            if (!watched[1 + i].revents)
                continue;
            int result = read_stream(pump, &pump->stream[i]);
            if (result < 0)
                return pump_failed(pump, -result);
            if (result == 2)
                return ISOBOX_PUMP_LIMIT;
        }
        if (watched[3].revents)
            feed(pump);
        if (watched[0].revents) {
            int event = read_status(pump);
            if (event)
                return event;
        }
        if (deadline_ns >= 0 && monotonic_ns() >= deadline_ns) /* first: what stirs all the time must not hide it */
            return ISOBOX_PUMP_DEADLINE;
        if (watched[4].revents)
            return ISOBOX_PUMP_WATCH;
        if (bytes_moved(pump) - before >= AT_A_TIME) /* signals seldom meet ppoll in a flood */
            return ISOBOX_PUMP_INTERRUPTED;
    }
}

/* The first record of an exec whose start was asked for, into `reply`. 0, DEADLINE, LOST, INTERRUPTED or ERROR. */
int isobox_pump_first(struct isobox_pump *pump, long long deadline_ns)
{
    struct isobox_reply reply;
    struct pollfd watched = {pump->status_fd, POLLIN, 0};
    struct timespec timeout;
    int ready = ppoll(&watched, 1, time_left(deadline_ns, &timeout), 0);
    if (ready < 0)
        return errno == EINTR ? ISOBOX_PUMP_INTERRUPTED : pump_failed(pump, errno);
    if (ready == 0)
        return ISOBOX_PUMP_DEADLINE;
    ssize_t got = read(pump->status_fd, &reply, sizeof reply);
    if (got < 0)
        return errno == EINTR ? ISOBOX_PUMP_INTERRUPTED : pump_failed(pump, errno);
    if (got == 0)
        return ISOBOX_PUMP_LOST;
    if (got != (ssize_t)sizeof reply || (reply.kind != ISOBOX_STARTED && reply.kind != ISOBOX_FAILED))
        return pump_failed(pump, EBADMSG);
    pump->reply = reply;
    return 0;
}

void isobox_pump_stop_reading(struct isobox_pump *pump)
{
    for (int i = 0; i < 2; i++)
        close_stream(&pump->stream[i]);
}

/* Frees the buffers and closes what the pump still holds open; the status and watch descriptors are the caller's. */
void isobox_pump_close(struct isobox_pump *pump)
{
    for (int i = 0; i < 2; i++) {
        close_stream(&pump->stream[i]);
        free(pump->stream[i].data);
        pump->stream[i].data = 0;
        pump->stream[i].size = pump->stream[i].room = 0;
    }
    if (pump->stdin_fd >= 0)
        close(pump->stdin_fd);
    pump->stdin_fd = -1;
}
