#ifndef ISOBOX_BENCH_GROUPS_H
#define ISOBOX_BENCH_GROUPS_H

/* Finds our own group in each hierarchy and makes a base directory there; _finish removes it. */
void groups_prepare(void);
void groups_finish(void);
/* A numbered group below the base, in every hierarchy. */
int group_make(int number, int with_limits);
void group_open_tasks(int number, int *fds, int *count);
/* Reads what a measurement needs of it. */
void group_read(int number);
void group_remove(int number);

#endif
