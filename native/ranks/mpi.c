/*
 * Communicators between processes over MPI: the same operations, and the same bits, as between threads (shared.c).
 *
 * MPI moves bytes; sums are made here, in rank order. MPI_Allreduce with MPI_SUM may add in any order, and implementations choose it by message
 * size, number of ranks and hosts, so that the same training would give other losses on another cluster; and it cannot add bf16 in f32. So
 * an all-reduce is a scatter of slices, an ordered sum of this rank's slice, and a gather of the sums: the bytes on the wire are those of a
 * ring, 2 (R - 1) / R of the operand.
 *
 * Every transfer is a non-blocking MPI operation that is tested, never waited for inside MPI: a wait looks at all operations of this rank, spins
 * briefly, then sleeps, the longer it has waited the longer (up to a millisecond), and returns to its caller every so often.
 *
 * What MPI does not tell is that a rank is gone: a cut link leaves the others waiting for TCP's patience, a quarter of an hour. So a thread of each
 * rank, the pulse, tells all others every two seconds that it is there, and takes who was silent for too long for lost. An error of
 * one rank travels the same way. It needs MPI_THREAD_MULTIPLE; without it ranks find out by the timeouts of their waits.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "ordered_sum.h"
#include "ranks_mpi.h"

#define SPIN_NS 30e3

/* ---- operations ---- */

static int64_t sum_before(const int64_t *lengths, int rank) {
  int64_t sum = 0;
  for (int r = 0; r < rank; r++) sum += lengths[r];
  return sum;
}

/* Elements of slice r of a sum, and where it begins. */
static size_t slice_of(const operation *op, int r, size_t *start) {
  if (op->kind == ALL_REDUCE) {
    *start = slice_start((size_t)op->extent, op->in->size, r);
    return slice_start((size_t)op->extent, op->in->size, r + 1) - *start;
  }
  *start = (size_t)sum_before(op->lengths, r);
  return (size_t)op->lengths[r];
}

/* To every other rank its slice; from every other rank its part of mine. Empty ones are not sent. */
static int begin_sum(operation *op) {
  const membership *in = op->in;
  const size_t element = sum_element_bytes(op->dtype);
  size_t start, own = slice_of(op, in->rank, &start);
  op->parts = moe_mpi_take_buffer(in->self, own * element * (size_t)in->size);
  if (!op->parts.data) return -3;
  for (int i = 1; i < in->size; i++) {
    const int to = (in->rank + i) % in->size, from = (in->rank - i + in->size) % in->size;
    const size_t n = slice_of(op, to, &start);
    int code = own ? moe_mpi_receive_from(op, from, op->parts.data + (size_t)from * own * element, (int64_t)(own * element), 0) : 0;
    if (code == 0 && n) code = moe_mpi_send_to(op, to, op->ptr + start * element, (int64_t)(n * element), 0);
    if (code == 0) code = moe_mpi_exchange_stamp(op, to, 1, 0);
    if (code == 0) code = moe_mpi_exchange_stamp(op, from, 0, 1);
    if (code != 0) return code;
  }
  return 0;
}

static void add_up(operation *op) {
  const membership *in = op->in;
  const size_t element = sum_element_bytes(op->dtype);
  size_t start;
  const size_t own = slice_of(op, in->rank, &start);
  const void *parts[in->size];
  for (int r = 0; r < in->size; r++)
    parts[r] = r == in->rank ? op->ptr + start * element : op->parts.data + (size_t)r * own * element;
  void *out = op->kind == ALL_REDUCE ? op->ptr + start * element : op->out;
  ordered_sum(&out, 1, parts, in->size, own, op->dtype);
}

/* The sums of all slices to all ranks. */
static int begin_gather_of_sums(operation *op) {
  const membership *in = op->in;
  const size_t element = sum_element_bytes(op->dtype);
  size_t start, own_start;
  const size_t own = slice_of(op, in->rank, &own_start);
  for (int i = 1; i < in->size; i++) {
    const int to = (in->rank + i) % in->size, from = (in->rank - i + in->size) % in->size;
    const size_t n = slice_of(op, from, &start);
    int code = n ? moe_mpi_receive_from(op, from, op->ptr + start * element, (int64_t)(n * element), 1) : 0;
    if (code == 0 && own) code = moe_mpi_send_to(op, to, op->ptr + own_start * element, (int64_t)(own * element), 1);
    if (code != 0) return code;
  }
  return 0;
}

static int begin_copies(operation *op) {
  const membership *in = op->in;
  const int to_all = op->kind == ALL_GATHER;
  for (int i = 0; i < in->size; i++) {
    const int to = (in->rank + i) % in->size, from = (in->rank - i + in->size) % in->size;
    char *source = op->ptr + (to_all ? 0 : sum_before(op->lengths, to));
    char *target = op->out + sum_before(op->receives, from);
    const int64_t sends = op->lengths[to_all ? in->rank : to], receives = op->receives[from];
    if (i == 0) {
      if (sends != receives) return -1;
      if (target != source && sends) memcpy(target, source, (size_t)sends);
      continue;
    }
    int code = receives ? moe_mpi_receive_from(op, from, target, receives, 0) : 0;
    if (code == 0 && sends) code = moe_mpi_send_to(op, to, source, sends, 0);
    if (code == 0) code = moe_mpi_exchange_stamp(op, to, 1, 0);
    if (code == 0) code = moe_mpi_exchange_stamp(op, from, 0, 1);
    if (code != 0) return code;
  }
  return 0;
}

static int begin_broadcast(operation *op) {
  const membership *in = op->in;
  if (in->rank != op->peer) {
    const int code = moe_mpi_receive_from(op, op->peer, op->ptr, op->extent, 0);
    return code ? code : moe_mpi_exchange_stamp(op, op->peer, 0, 1);
  }
  for (int i = 1; i < in->size; i++) {
    const int to = (in->rank + i) % in->size;
    int code = moe_mpi_send_to(op, to, op->ptr, op->extent, 0);
    if (code == 0) code = moe_mpi_exchange_stamp(op, to, 1, 0);
    if (code != 0) return code;
  }
  return 0;
}

/* Round k of a dissemination barrier (Hensgen, Finkel, Manber 1988): after log2 of the size, everybody knows of everybody. */
static int begin_barrier_round(operation *op, int round) {
  const membership *in = op->in;
  const int step = 1 << round, to = (in->rank + step) % in->size, from = (in->rank - step % in->size + in->size) % in->size;
  const int code = moe_mpi_receive_from(op, from, NULL, 0, round);
  return code ? code : moe_mpi_send_to(op, to, NULL, 0, round);
}

static int begin_message(operation *op, int buffered) {
  const membership *in = op->in;
  char *data = op->ptr;
  if (op->kind == SEND && buffered) {
    op->parts = moe_mpi_take_buffer(in->self, (size_t)op->extent);
    if (!op->parts.data) return -3;
    data = memcpy(op->parts.data, op->ptr, (size_t)op->extent);
  }
  const int receives = op->kind == RECV;
  int code = moe_mpi_add_transfer(op, in->direct, data, op->extent, op->peer, op->tag, receives);
  if (code == 0 && op->stamps) {
    char *stamp = (char *)(receives ? &op->stamps[op->peer] : &op->stamp);
    code = moe_mpi_add_transfer(op, in->direct, stamp, sizeof op->stamp, op->peer, op->tag + STAMP_TAG, receives);
  }
  return code;
}

/* Does what can be done now: 1 all is done, 0 not yet, below 0 an error. */
static int step(operation *op) {
  if (op->done) return 1;
  const int size = op->in->size;
  for (;;) {
    const int result = moe_mpi_test_transfers(op);
    if (result != 1) return result;
    int next = 0;
    if (op->kind == BARRIER && 1 << (op->phase + 1) < size) next = begin_barrier_round(op, ++op->phase);
    else if (op->kind == REDUCE_SCATTER && op->phase++ == 0) add_up(op);
    else if (op->kind == ALL_REDUCE && op->phase++ == 0) {
      add_up(op);
      next = begin_gather_of_sums(op);
    } else break;
    if (next != 0) return next;
  }
  for (int r = 0; op->stamps && r < size; r++)
    if (op->stamps[r] > op->leave) op->leave = op->stamps[r];
  op->arrive = op->leave;
  return op->done = 1;
}

static void free_operation(operation *op) {
  moe_mpi_keep_buffer(op->in->self, op->parts);
  free(op->lengths);
  free(op->receives);
  free(op->stamps);
  free(op->transfers);
  free(op);
}

int moe_mpi_step_all(member_rank *self) {
  for (operation **link = &self->active; *link;) {
    operation *op = *link;
    const int result = step(op);
    if (result < 0) return result;
    if (result == 0) {
      link = &op->next;
      continue;
    }
    *link = op->next;
    if (op->kind == SEND && op->parts.data) free_operation(op);
  }
  return 0;
}

static double status_of(const operation *op, int result) {
  if (result == -1) return STATUS_MISMATCH;
  if (result < 0) return STATUS_FAILED;
  if (pulse_has_ended(op->in->self->pulse)) return STATUS_ENDED;
  if (!op->done || (op->arrive > 1 && op->arrive > now_ns())) return STATUS_PENDING;
  return op->arrive > 1 ? op->arrive : 1;
}

/* ---- what is called ---- */

static int64_t *copied(const double *lengths, int size) {
  int64_t *copy = malloc((size_t)size * sizeof *copy);
  for (int r = 0; copy && r < size; r++) copy[r] = (int64_t)lengths[r];
  return copy;
}

static int begin(operation *op, int buffered) {
  switch (op->kind) {
    case ALL_REDUCE:
    case REDUCE_SCATTER: return begin_sum(op);
    case ALL_GATHER:
    case ALL_TO_ALL: return begin_copies(op);
    case BROADCAST: return begin_broadcast(op);
    case BARRIER: return op->in->size > 1 ? begin_barrier_round(op, 0) : 0;
    default: return begin_message(op, buffered);
  }
}

/* As moe_ranks_begin. `arrive` above 0: a link is emulated. NULL without memory, or where MPI failed. */
EXPORT operation *moe_mpi_begin(membership *in, int kind, char *ptr, char *out, int64_t extent, const double *lengths, const double *receives,
                                int dtype, int peer, int tag, int buffered, double leave, double arrive) {
  operation *op = calloc(1, sizeof *op);
  if (!op) return NULL;
  *op = (operation){.in = in, .kind = kind, .dtype = dtype, .peer = peer, .tag = tag, .extent = extent, .ptr = ptr, .out = out, .leave = leave};
  const int has_lengths = kind == REDUCE_SCATTER || kind == ALL_GATHER || kind == ALL_TO_ALL, is_direct = kind == SEND || kind == RECV;
  if (has_lengths) op->lengths = copied(lengths, in->size);
  if (has_lengths) op->receives = copied(kind == ALL_TO_ALL ? receives : lengths, in->size);
  if (arrive > 0 && kind != BARRIER) op->stamps = calloc((size_t)in->size, sizeof *op->stamps);
  op->stamp = arrive;
  if (!is_direct) op->sequence = in->begun++;
  if (has_lengths && (!op->lengths || !op->receives)) {
    free_operation(op);
    return NULL;
  }
  if (begin(op, buffered) != 0) return NULL;
  operation **link = &in->self->active;
  while (*link) link = &(*link)->next;
  *link = op;
  return op;
}

EXPORT double moe_mpi_poll(operation *op) {
  /* A buffered message is over at once, and frees itself. */
  if (op->kind == SEND && op->parts.data) return 1;
  const double status = status_of(op, moe_mpi_step_all(op->in->self));
  if (status > 0) free_operation(op);
  return status;
}

static void nap(double ns) {
  const struct timespec t = {(time_t)(ns / 1e9), (long)(ns - 1e9 * (double)(time_t)(ns / 1e9))};
  nanosleep(&t, NULL);
}

EXPORT double moe_mpi_wait(operation *op, double ns) {
  double start = 0;
  for (int looks = 1;; looks++) {
    const double status = moe_mpi_poll(op);
    if (status != STATUS_PENDING) return status;
    if (looks % 16 != 0 && !op->done) continue;
    const double now = now_ns();
    if (start == 0) start = now;
    if (now - start >= ns) return STATUS_PENDING;
    if (op->done) {
      nap(op->arrive - now < start + ns - now ? op->arrive - now : start + ns - now);
    } else if (now - start < SPIN_NS) {
      sched_yield();
    } else {
      const double part = (now - start) / 20;
      nap(part < 10e3 ? 10e3 : part > 1e6 ? 1e6 : part);
    }
  }
}

/* Ranks of whom something is still expected. */
EXPORT int moe_mpi_missing(const operation *op, int32_t *ranks) {
  const membership *in = op->in;
  int n = 0;
  for (int i = 0; i < op->num_transfers; i++) {
    const int32_t rank = in->members[op->transfers[i].peer];
    int is_over = 0, is_new = 1;
    MPI_Request_get_status(op->transfers[i].request, &is_over, MPI_STATUS_IGNORE);
    if (is_over) continue;
    for (int j = 0; j < n; j++) is_new &= ranks[j] != rank;
    if (is_new) ranks[n++] = rank;
  }
  return n;
}

EXPORT void moe_mpi_mismatch(const operation *op, double *found) { memcpy(found, op->in->self->mismatch, sizeof op->in->self->mismatch); }
