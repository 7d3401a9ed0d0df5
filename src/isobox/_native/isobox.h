/* The one list of requests, ops and records that the library and isobox-init share.
 *
 * Read three times: by the C compiler for isobox-init, by the C compiler for the extension, and by
 * cffi (build.py strips the preprocessor's lines). So it holds enums and structs and nothing else.
 */
#ifndef ISOBOX_H
#define ISOBOX_H

/* Descriptors that isobox-init finds open. */
enum isobox_descriptor {
    ISOBOX_FD_CONTROL = 3,
    ISOBOX_FD_OWNER = 4,
};

enum isobox_bound {
    ISOBOX_MESSAGE_MAX = 65536,  /* bytes of one message; more travels in a memfd */
    ISOBOX_PAYLOAD_MAX = 67108864,
    ISOBOX_FDS_MAX = 200,        /* below SCM_MAX_FD, 253 */
    ISOBOX_STRINGS_MAX = 8,      /* strings of one op */
    ISOBOX_EXECS_MAX = 4096,     /* execs running at once in one container */
    ISOBOX_BASES_MAX = 64,       /* directories that a file request may start from */
};

/* What a message on the control socket asks for. */
enum isobox_request_kind {
    ISOBOX_SETUP = 1,   /* run the rest of the plan, become PID 1 of the container */
    ISOBOX_EXEC = 2,    /* run the plan in a child; it ends in ISOBOX_OP_EXEC */
    ISOBOX_SIGNAL = 3,  /* arg0: exec, arg1: signal */
    ISOBOX_OPEN = 4,    /* str0: path; arg0: flags, arg1: mode, arg2: base */
    ISOBOX_MKDIR = 5,   /* str0: path; arg1: mode, arg2: base */
    ISOBOX_SYMLINK = 6, /* str0: path, str1: target; arg2: base */
    ISOBOX_UNLINK = 7,  /* str0: path; arg0: AT_REMOVEDIR or 0, arg2: base */
    ISOBOX_LOCATE = 8,  /* arg0: exec; the reply's credentials carry its pid */
    ISOBOX_PREPARE = 9, /* before SETUP: run the first part of the plan; answers only a failure */
    ISOBOX_CHANGE = 10, /* after SETUP: run a few ops more, on the root that is there */
    ISOBOX_FILTER = 11, /* after SETUP: run the ops, a SECCOMP, in a thread that makes execs from then on */
    ISOBOX_THAW = 12,   /* instead of SETUP: answer, and write the payload to fds[0] once the owner ends */
};

enum isobox_request_flag {
    ISOBOX_PAYLOAD_FD = 1,  /* the ops are in a memfd, the last descriptor */
    ISOBOX_WANT_START = 2,  /* exec: report the start, not only a failure or the end */
    ISOBOX_OWN_PIDNS = 4,   /* exec: a PID namespace of its own, so that its end ends all of it */
    ISOBOX_CGROUP_FD = 8,   /* exec: descriptor fds[arg1] is a cgroup of v2 to be born in */
    ISOBOX_HOLD = 16,       /* exec: keep stdout and stderr open until its end is told: one wake-up, not three */
    ISOBOX_FILTERED = 32,   /* exec: made by the thread of ISOBOX_FILTER, so under its filter */
    ISOBOX_OWN_MEMORY = 64, /* exec: has a limit of memory of its own, which may be too little for its beginning */
};

struct isobox_request {
    unsigned int kind;
    unsigned int flags;
    unsigned int size; /* bytes of ops that follow, here or in the memfd */
    unsigned int nfds;
    long long id;      /* exec: the caller's number for it */
    long long arg[3];
};

/* An op: this header, then nstr strings, each a 32-bit length, the bytes, and a NUL. */
struct isobox_op {
    unsigned short code;
    unsigned short nstr;
    unsigned int size; /* header and strings, in bytes */
    long long arg[4];
};

enum isobox_op_code {
    ISOBOX_OP_JOIN_CGROUP = 1,     /* arg0: index of a descriptor of `tasks`; writes "0" */
    ISOBOX_OP_UNSHARE = 2,         /* arg0: CLONE_NEW* */
    ISOBOX_OP_IDS = 3,             /* arg0: uid, arg1: gid */
    ISOBOX_OP_GROUPS = 4,          /* str0: 32-bit gids; arg0: count */
    ISOBOX_OP_HOSTNAME = 5,        /* str0 */
    ISOBOX_OP_LOOPBACK = 6,
    ISOBOX_OP_PROPAGATION = 7,     /* arg0: MS_*; on "/" */
    ISOBOX_OP_FSOPEN = 8,          /* str0: type; a file system context to configure */
    ISOBOX_OP_FSCONFIG_STRING = 9, /* str0: key, str1: value */
    ISOBOX_OP_FSCONFIG_FLAG = 10,  /* str0: key */
    ISOBOX_OP_FSCONFIG_FD = 11,    /* str0: key; arg0: index of a descriptor */
    ISOBOX_OP_FSMOUNT = 12,        /* arg0: MOUNT_ATTR_*; makes the context the mount in hand */
    ISOBOX_OP_OPEN_TREE = 13,      /* str0: path; arg0: OPEN_TREE_* and AT_*, arg1: 1 = below the new root */
    ISOBOX_OP_TAKE_TREE = 14,      /* arg0: index of a descriptor of a detached mount */
    ISOBOX_OP_SETATTR = 15,        /* arg0: MOUNT_ATTR_* for the mount in hand, which is attached; arg1: AT_RECURSIVE or 0 */
    ISOBOX_OP_ATTACH = 16,         /* str0: target; arg0: 1 = below the new root, 2 = there and not through a link,
                                      0 = host path; it stays in hand */
    ISOBOX_OP_ROOT = 17,           /* str0: host path of the new root */
    ISOBOX_OP_BASE = 18,           /* str0: host path that file requests may start from */
    ISOBOX_OP_MKDIR = 19,          /* str0: path; arg0: mode, arg1: 1 = below the new root, arg2: 1 = may exist, 2 = if possible */
    ISOBOX_OP_FILE = 20,           /* str0: path, str1: content; arg0: mode, arg1: as MKDIR's, arg2: 1 = leave one that exists */
    ISOBOX_OP_SYMLINK = 21,        /* str0: path, str1: target; arg1: as MKDIR's */
    ISOBOX_OP_PIVOT = 22,          /* the new root becomes "/", the host's tree is gone */
    ISOBOX_OP_AFFINITY = 23,       /* str0: cpu mask */
    ISOBOX_OP_RLIMIT = 24,         /* arg0: resource, arg1: soft, arg2: hard */
    ISOBOX_OP_UMASK = 25,          /* arg0 */
    ISOBOX_OP_CHDIR = 26,          /* str0; not through links of /proc to what is open */
    ISOBOX_OP_BOUNDING = 27,       /* arg0: capabilities to keep */
    ISOBOX_OP_CAPABILITIES = 28,   /* arg0: permitted and effective, of those there are; inheritable and ambient empty */
    ISOBOX_OP_NO_NEW_PRIVS = 29,
    ISOBOX_OP_SECCOMP = 30,        /* str0: struct sock_filter[] */
    ISOBOX_OP_DUMPABLE = 31,       /* arg0 */
    ISOBOX_OP_SESSION = 32,        /* setsid */
    ISOBOX_OP_TERMINAL = 33,       /* descriptor 0 becomes the controlling terminal; arg0: uid */
    ISOBOX_OP_STREAMS = 34,        /* arg0..2: indices for stdin, stdout, stderr; all others are closed */
    ISOBOX_OP_EXEC = 35,           /* str0: file, str1: PATH, str2: room for pointers, str3: argv, str4: env; arg0, arg1: counts */
    ISOBOX_OP_MKNOD = 36,          /* str0: path; arg0: mode, arg1: as MKDIR's, arg2: device */
    ISOBOX_OP_KEYRING = 37,        /* an empty session keyring */
    ISOBOX_OP_LANDLOCK_RULESET = 38,  /* arg0: LANDLOCK_ACCESS_FS_*, arg1: _NET_*, arg2: LANDLOCK_SCOPE_*; it stays in hand */
    ISOBOX_OP_LANDLOCK_PATH = 39,     /* str0: path inside, after PIVOT; arg0: LANDLOCK_ACCESS_FS_* allowed beneath */
    ISOBOX_OP_LANDLOCK_PORT = 40,     /* arg0: LANDLOCK_ACCESS_NET_* allowed, arg1: port */
    ISOBOX_OP_LANDLOCK_RESTRICT = 41, /* takes the ruleset in hand on; arg0: 1 = and drops it */
    ISOBOX_OP_SETNS = 42,             /* arg0: index of a descriptor of a namespace, arg1: CLONE_NEW* */
    ISOBOX_OP_CLONE_TREE = 43,        /* arg0: index of a descriptor of a detached mount, of which a copy is made */
    ISOBOX_OP_COPY = 44,              /* arg0: index of a descriptor of a directory; str0: its name in the mount in hand */
    ISOBOX_OP_KEEP = 45,              /* ends the copying; the mount in hand goes to the owner with READY, or
                                         with the answer to a CHANGE */
    ISOBOX_OP_LIKE = 46,              /* str0: host path of a directory that becomes, itself, as that of str1 is */
    ISOBOX_OP_MOUNT = 47,             /* str0: type, str1: host path, str2: options; arg0: MOUNT_ATTR_* up to NOEXEC; it
                                         becomes the mount in hand */
};

/* Every answer of isobox-init, on the control socket and on an exec's status pipe. */
enum isobox_reply_kind {
    ISOBOX_READY = 1,
    ISOBOX_FAILED = 2, /* at op `op`, with `error` */
    ISOBOX_STARTED = 3,
    ISOBOX_ENDED = 4,
    ISOBOX_DONE = 5,
};

struct isobox_reply {
    unsigned int kind;
    int op;
    int error;
    int status;         /* ENDED: as wait(2) gives it; STARTED: pid inside; FAILED: the request's kind */
    long long start_ns; /* CLOCK_MONOTONIC */
    long long end_ns;
    long long user_us;  /* of the program and the children it waited for */
    long long system_us;
    long long maxrss_kib;
};

/* clone and execveat of isobox-init, for the extension. */
struct isobox_spawn {
    unsigned long long flags; /* CLONE_NEW* */
    int init_fd;
    int control_fd;
    int owner_fd;
    int cgroup_fd; /* a cgroup of v2 to be born in; -1: none */
    int pid;   /* out */
    int pidfd; /* out */
    int error; /* out: errno of the failing step */
    int stage; /* out: enum isobox_spawn_stage */
};

enum isobox_spawn_stage {
    ISOBOX_SPAWN_CLONE = 1,
    ISOBOX_SPAWN_CAPABILITIES = 2,
    ISOBOX_SPAWN_DESCRIPTORS = 3,
    ISOBOX_SPAWN_EXEC = 4,
};

/* One stream that the pump reads into memory. */
struct isobox_stream {
    int fd; /* -1: closed */
    unsigned char *data;
    unsigned long size;
    unsigned long room;
};

enum isobox_pump_event {
    ISOBOX_PUMP_ENDED = 1,       /* the status record arrived and the pipes are drained */
    ISOBOX_PUMP_DEADLINE = 2,
    ISOBOX_PUMP_LIMIT = 3,       /* more output than `limit` */
    ISOBOX_PUMP_WATCH = 4,       /* `watch_fd` is readable */
    ISOBOX_PUMP_INTERRUPTED = 5, /* a signal, or many bytes without one: let Python look */
    ISOBOX_PUMP_LOST = 6,        /* the status pipe closed without a record: init is gone */
    ISOBOX_PUMP_ERROR = 7,       /* `error` */
    ISOBOX_PUMP_STATUS = 8,      /* the status record arrived; pump again to drain */
};

/* Everything that waiting for one exec needs; see isobox_pump_run in pump.c. */
struct isobox_pump {
    int status_fd;
    int stdin_fd;
    int watch_fd;
    int watch_events;
    int have_status;
    int started; /* the record that says so has been here */
    int error;
    const unsigned char *input;
    unsigned long input_size;
    unsigned long input_done;
    unsigned long limit; /* bytes of both streams together; ULONG_MAX: none */
    struct isobox_stream stream[2];
    struct isobox_reply reply;
};

#endif
