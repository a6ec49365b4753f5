/*
 * What the two native implementations of a communicator (shared.c, mpi.c) have in common with their caller, src/parallel/native-driver.ts:
 * the numbers of operations, what a wait returns, and how elements are cut over ranks.
 */
#ifndef MOE_OPERATION_H
#define MOE_OPERATION_H
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* In the order of `requestKinds`. */
enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, ALL_TO_ALL, BROADCAST, SEND, RECV, BARRIER };

/* What a wait or a poll returns; a positive number is the time at which the operation was complete (ns; 1 where no link is emulated). */
#define STATUS_PENDING 0.0
#define STATUS_ENDED -1.0    /* the group was ended */
#define STATUS_MISMATCH -2.0 /* another rank is somewhere else: see the ..._mismatch function */
#define STATUS_FAILED -3.0   /* MPI reported an error */

static inline double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Where slice r of `count` elements over `size` ranks begins: the first count % size ranks have one more (src/util/partition.ts). */
static inline size_t slice_start(size_t count, int size, int r) {
  size_t whole = count / (size_t)size, more = count % (size_t)size;
  return whole * (size_t)r + ((size_t)r < more ? (size_t)r : more);
}

#endif
