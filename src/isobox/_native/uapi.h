/* What isobox-init uses of the kernel's interface: from the kernel's own headers, since it has no libc.
 *
 * Defined here, with the kernel's values, is what older ones lack and what none of them has. Not included is what
 * would not stand beside libc's headers (asm/signal.h, linux/time.h), where a fuzzer compiles our files with those. */
#ifndef ISOBOX_UAPI_H
#define ISOBOX_UAPI_H

#include <asm/errno.h>
#include <asm/poll.h>
#include <asm/socket.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <linux/time_types.h>
#include <linux/uio.h>
#include <linux/wait.h>

#include "syscalls.h"

#ifndef RESOLVE_IN_ROOT /* linux/openat2.h, since Linux 5.6 */
#define RESOLVE_NO_MAGICLINKS 0x02
#define RESOLVE_NO_SYMLINKS 0x04
#define RESOLVE_IN_ROOT 0x10
#endif
#ifndef STATX_MNT_ID /* since Linux 5.8 */
#define STATX_MNT_ID 0x1000
#endif
#ifndef MS_NOSYMFOLLOW /* since Linux 5.10 */
#define MS_NOSYMFOLLOW 256
#endif

#ifndef SIGCHLD /* asm/signal.h */
#define SIGKILL 9
#define SIGCHLD 17
#define SIG_SETMASK 2
#endif
#ifndef S_IFMT /* linux/stat.h, unless libc's headers were there before */
#define S_IFMT 0170000
#define S_IFLNK 0120000
#define S_IFREG 0100000
#define S_IFDIR 0040000
#endif
#define MNT_DETACH 2 /* include/linux/fs.h */
#define IFF_UP 1     /* linux/if.h, which includes libc's */

/* include/linux/socket.h */
#define MSG_CTRUNC 8
#define MSG_TRUNC 0x20
#define MSG_NOSIGNAL 0x4000
#define MSG_CMSG_CLOEXEC 0x40000000
#define SCM_RIGHTS 1
#define SCM_CREDENTIALS 2

struct isobox_msghdr {
    void *name;
    int namelen;
    struct iovec *iov;
    size_t iovlen;
    void *control;
    size_t controllen;
    unsigned int flags;
};

struct isobox_cmsghdr {
    size_t len;
    int level;
    int type;
};

#endif
