/* What the extension offers to Python; read by cffi too, so declarations only. Every function releases the GIL (cffi
 * does) and returns 0 or a positive value, or a negative errno. No policy, no paths. */
#ifndef ISOBOX_EXTENSION_H
#define ISOBOX_EXTENSION_H

#include "isobox.h"

/* Plain files of one directory of an archive: see files.c. */
struct isobox_files {
    int root_fd;
    int keep_owners;
    unsigned int modes;         /* the bits that a mode may have */
    const unsigned char *place; /* the directory below the root, without links on the way; not the root itself */
    unsigned long place_size;
    const unsigned char *above; /* its name in the archive */
    unsigned long above_size;
    unsigned long most; /* files */
    unsigned long used; /* out: bytes of the archive, and of the files */
    unsigned long long bytes;
};

/* spawn.c */
int isobox_init_memfd(const unsigned char *program, unsigned long size, unsigned int mode);
int isobox_spawn_init(struct isobox_spawn *spawn);
unsigned long long isobox_block_signals(unsigned long long more);
void isobox_set_signals(unsigned long long blocked);

/* sockets.c */
int isobox_send(int sock, const unsigned char *data, unsigned long size, const int *fds, unsigned int nfds);
int isobox_receive(int sock, struct isobox_reply *reply, int *fd, int *pid, int timeout_ms);

/* pump.c */
int isobox_pump_run(struct isobox_pump *pump, long long deadline_ns);
int isobox_pump_first(struct isobox_pump *pump, long long deadline_ns);
void isobox_pump_stop_reading(struct isobox_pump *pump);
void isobox_pump_close(struct isobox_pump *pump);

/* calls.c */
int isobox_clone_tree(int dirfd, const char *path, int recursive);
int isobox_mount_setattr(int fd, unsigned long long set, int recursive, int userns_fd);
int isobox_sync_file_system(int fd);
int isobox_try_call(long number);
int isobox_landlock_abi(void);
int isobox_mount_file(const char *type, const char *path);
int isobox_new_tmpfs(const char *size, const char *mode);
int isobox_load_device_program(const unsigned char *code, unsigned long size);
int isobox_attach_device_program(int group_fd, int program_fd);

/* files.c */
unsigned long isobox_make_files(struct isobox_files *files, const unsigned char *data, unsigned long size);

#endif
