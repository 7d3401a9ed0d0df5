/* The extension: anything on a control socket and on the pipes of an exec, with real sockets and pipes.
 *
 * The input's first byte chooses: answers on a socket, or the streams of an exec. */
#include "sockets.c"

#include "pump.c"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>

static const uint8_t *input;
static size_t input_size;
static int sent = -1; /* the descriptor that comes along; no socket, which the kernel would have to collect */

static void __attribute__((noreturn)) wrong(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

static unsigned int byte(void)
{
    return input_size ? input_size--, *input++ : 0;
}

static size_t take(size_t size, const uint8_t **at)
{
    *at = input;
    if (size > input_size)
        size = input_size;
    input += size;
    input_size -= size;
    return size;
}

static int lowest_free(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}

/* What was opened since then took the next numbers. */
static void check_closed(int from)
{
    for (int fd = from; fd < from + 16; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            wrong("a descriptor was left open");
}

static void say(int sock, unsigned int nfds)
{
    union {
        struct cmsghdr head;
        unsigned char bytes[CMSG_SPACE(sizeof(int) * 253)];
    } control;
    const uint8_t *data;
    size_t size = take(byte(), &data);
    struct iovec iov = {(void *)(uintptr_t)data, size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (nfds) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        for (unsigned int i = 0; i < nfds; i++)
            memcpy(CMSG_DATA(&control.head) + i * sizeof sent, &sent, sizeof sent);
    }
    sendmsg(sock, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void answers(void)
{
    int pair[2], one = 1, nothing = lowest_free();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return;
    if (byte() & 1)
        setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one);
    for (int i = 0; i < 8 && input_size; i++) {
        struct isobox_reply reply;
        int fd, pid;
        unsigned int nfds = byte();
        say(pair[1], nfds < 200 ? nfds % 5 : nfds % 254);
        int result = isobox_receive(pair[0], &reply, &fd, &pid, 0);
        if (result > 0 || (result && fd >= 0))
            wrong("an answer that is none has a descriptor");
        if (fd >= 0 && fcntl(fd, F_GETFD) != FD_CLOEXEC)
            wrong("a descriptor that programs would inherit");
        if (fd >= 0)
            close(fd);
    }
    close(pair[0]);
    close(pair[1]);
    check_closed(nothing);
}

struct told {
    int fd;
    size_t size;
    uint8_t data[4096];
};

static void tell(struct told *told)
{
    const uint8_t *data;
    size_t size = take(byte(), &data);
    if (told->size + size > sizeof told->data || told->fd < 0)
        return;
    ssize_t done = write(told->fd, data, size);
    if (done > 0) {
        memcpy(told->data + told->size, data, (size_t)done);
        told->size += (size_t)done;
    }
}

static void check(const struct isobox_pump *pump, const struct told *told)
{
    size_t sum = 0;
    for (int i = 0; i < 2; i++) {
        const struct isobox_stream *stream = &pump->stream[i];
        if (stream->size > told[i].size || (stream->size && memcmp(stream->data, told[i].data, stream->size)))
            wrong("read what was not written");
        sum += stream->size;
    }
    if (sum > pump->limit)
        wrong("more than the limit");
    if (pump->have_status && pump->reply.kind != ISOBOX_ENDED && pump->reply.kind != ISOBOX_FAILED)
        wrong("a record that tells no end");
}

static void streams(void)
{
    static struct told told[3]; /* stdout, stderr, the status pipe */
    int reader[3], fed[2], nothing = lowest_free();
    struct isobox_pump pump;
    uint8_t text[64] = "fed";
    memset(&pump, 0, sizeof pump);
    for (int i = 0; i < 3; i++) {
        int ends[2];
        if (pipe2(ends, O_NONBLOCK | O_CLOEXEC))
            abort();
        reader[i] = ends[0];
        told[i].fd = ends[1];
        told[i].size = 0;
    }
    if (pipe2(fed, O_CLOEXEC))
        abort();
    pump.status_fd = reader[2];
    pump.stream[0].fd = reader[0];
    pump.stream[1].fd = reader[1];
    pump.stdin_fd = fed[1];
    pump.watch_fd = -1;
    pump.input = text;
    pump.input_size = byte() % sizeof text;
    pump.limit = byte() * 16;
    for (int i = 0; i < 16 && input_size; i++) {
        unsigned int what = byte();
        if (what < 0xc0) {
            tell(&told[what % 3]);
        } else if (what < 0xd0 && told[what % 3].fd >= 0) {
            close(told[what % 3].fd);
            told[what % 3].fd = -1;
        } else if (what < 0xe0) {
            isobox_pump_first(&pump, 0);
            pump.have_status = 0;
        } else if (isobox_pump_run(&pump, 0) == ISOBOX_PUMP_LIMIT) {
            isobox_pump_stop_reading(&pump);
        }
        check(&pump, told);
    }
    isobox_pump_close(&pump);
    close(fed[0]);
    close(reader[2]);
    for (int i = 0; i < 3; i++)
        if (told[i].fd >= 0)
            close(told[i].fd);
    check_closed(nothing);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = data;
    input_size = size;
    if (sent < 0) {
        sent = open("/dev/null", O_RDONLY | O_CLOEXEC);
        signal(SIGPIPE, SIG_IGN); /* as in Python */
    }
    if (byte() & 1)
        answers();
    else
        streams();
    return 0;
}
