/* PID 1's parts: init.c (its life, and which part serves a request), messages.c, execs.c, clones.c, paths.c. */
#ifndef ISOBOX_INIT_H
#define ISOBOX_INIT_H

#include "ops.h"

/* messages.c: the message in hand, with its descriptors; those that somebody has taken over are -1. Not all of them came
 * where we may open no more: the container's root can lower our limit. */
extern unsigned char isobox_message[ISOBOX_MESSAGE_MAX + sizeof(struct isobox_request)];
extern int isobox_received[ISOBOX_FDS_MAX];
extern unsigned int isobox_received_count;
extern int isobox_received_all;

void __attribute__((noreturn)) isobox_leave(int code);
long long isobox_now(void); /* CLOCK_MONOTONIC, ns */
long isobox_take_message(void);
void isobox_close_received(void);
void isobox_answer(struct isobox_reply *reply, int fd, int pid);
void isobox_answer_code(long failed);
void isobox_report(int status_fd, struct isobox_reply *reply);
struct isobox_run isobox_plan_of(const struct isobox_request *request, long size, void **mapped);
const char *isobox_request_string(const struct isobox_request *request, long size, unsigned int number);

/* What the child of an exec needs; it shares our memory until it execs. */
struct isobox_child {
    struct isobox_run run;
    long failed;
};

/* clones.c: the child's pid, or a negative errno. */
long isobox_clone_exec(struct isobox_child *child, int cgroup_fd);
long isobox_clone_limited(struct isobox_child *child, int cgroup_fd);
long isobox_clone_into_own_pids(struct isobox_child *child, int *keeper);
long isobox_clone_filtered(struct isobox_child *child);
void isobox_serve_filter(const struct isobox_request *request, long size);

/* execs.c */
void isobox_serve_exec(const struct isobox_request *request, long size);
void isobox_serve_signal(const struct isobox_request *request);
void isobox_serve_locate(const struct isobox_request *request);
void isobox_reap(void);

/* paths.c */
void isobox_serve_open(const struct isobox_request *request, long size);
void isobox_serve_name(const struct isobox_request *request, long size);

#endif
