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
#include <dlfcn.h>
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif

#include "operation.h"
#include "ordered_sum.h"
#include "pulse.h"

#define EXPORT __attribute__((visibility("default")))

/* Bytes of one MPI message: counts are ints. Tags of collectives: 16 phases of 2048 operations. */
enum { MAX_MESSAGE = 1 << 30, PHASES = 16, TAGS = 32768, STAMP_PHASE = 15, STAMP_TAG = 16384, SPARE_BUFFERS = 8 };
#define SPIN_NS 30e3

typedef struct {
  char *data;
  size_t bytes;
} buffer;

struct operation;
struct membership;

typedef struct {
  MPI_Comm world;
  int rank, size, provided;
  struct operation *active;
  struct membership *memberships;
  buffer spare[SPARE_BUFFERS];
  double mismatch[6];
  char error[MPI_MAX_ERROR_STRING + 64];
  pulse *pulse; /* NULL without MPI_THREAD_MULTIPLE */
} member_rank;

typedef struct membership {
  struct membership *next;
  member_rank *self;
  MPI_Comm collective, direct;
  int rank, size;
  int *members;
  uint32_t begun;
} membership;

/* A transfer of one MPI message, and what must come of it. */
typedef struct {
  MPI_Request request;
  int peer, bytes, receives;
} transfer;

typedef struct operation {
  struct operation *next;
  membership *in;
  uint32_t sequence;
  int kind, dtype, peer, tag, phase, done;
  int64_t extent;
  char *ptr, *out;
  int64_t *lengths, *receives;
  double leave, arrive;
  double *stamps; /* of each rank, where a link is emulated */
  double stamp;
  buffer parts; /* slices that came, or a copy of a message */
  transfer *transfers;
  int num_transfers, capacity;
} operation;

/* ---- buffers ---- */

static buffer take_buffer(member_rank *self, size_t bytes) {
  int best = -1;
  for (int i = 0; i < SPARE_BUFFERS; i++)
    if (self->spare[i].bytes >= bytes && (best < 0 || self->spare[i].bytes < self->spare[best].bytes)) best = i;
  if (best >= 0 && self->spare[best].data) {
    buffer found = self->spare[best];
    self->spare[best] = (buffer){NULL, 0};
    return found;
  }
  return (buffer){malloc(bytes ? bytes : 1), bytes};
}

static void keep_buffer(member_rank *self, buffer used) {
  int least = 0;
  if (!used.data) return;
  for (int i = 1; i < SPARE_BUFFERS; i++)
    if (self->spare[i].bytes < self->spare[least].bytes) least = i;
  buffer out = self->spare[least].bytes < used.bytes ? self->spare[least] : used;
  if (out.data != used.data) self->spare[least] = used;
  free(out.data);
}

/* ---- transfers ---- */

static int failed(member_rank *self, const char *what, int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  snprintf(self->error, sizeof self->error, "%s: %.*s", what, length, text);
  return -3;
}

static int add_transfer(operation *op, MPI_Comm comm, char *data, int64_t bytes, int peer, int tag, int receives) {
  member_rank *self = op->in->self;
  do {
    const int n = (int)(bytes < MAX_MESSAGE ? bytes : MAX_MESSAGE);
    if (op->num_transfers == op->capacity) {
      const int capacity = op->capacity ? 2 * op->capacity : 8;
      transfer *grown = realloc(op->transfers, (size_t)capacity * sizeof *grown);
      if (!grown) return -3;
      op->transfers = grown;
      op->capacity = capacity;
    }
    transfer *t = &op->transfers[op->num_transfers];
    *t = (transfer){MPI_REQUEST_NULL, peer, n, receives};
    const int code = receives ? MPI_Irecv(data, n, MPI_BYTE, peer, tag, comm, &t->request) : MPI_Isend(data, n, MPI_BYTE, peer, tag, comm, &t->request);
    if (code != MPI_SUCCESS) return failed(self, receives ? "MPI_Irecv" : "MPI_Isend", code);
    op->num_transfers++;
    data += n;
    bytes -= n;
  } while (bytes > 0);
  return 0;
}

static int tag_of(const operation *op, int phase) { return (int)((op->sequence * PHASES + (uint32_t)phase) % TAGS); }

static int send_to(operation *op, int r, char *data, int64_t bytes, int phase) {
  return add_transfer(op, op->in->collective, data, bytes, r, tag_of(op, phase), 0);
}
static int receive_from(operation *op, int r, char *data, int64_t bytes, int phase) {
  return add_transfer(op, op->in->collective, data, bytes, r, tag_of(op, phase), 1);
}

/* Where a link is emulated: tells when what was sent arrives. */
static int exchange_stamp(operation *op, int r, int sends, int receives) {
  if (!op->stamps) return 0;
  int code = sends ? send_to(op, r, (char *)&op->stamp, sizeof op->stamp, STAMP_PHASE) : 0;
  if (code == 0 && receives) code = receive_from(op, r, (char *)&op->stamps[r], sizeof op->stamp, STAMP_PHASE);
  return code;
}

/* All transfers are over: 1. Not yet: 0. What came is not what must come: -1. An error of MPI: -3. */
static int test_transfers(operation *op) {
  member_rank *self = op->in->self;
  for (; op->num_transfers > 0; op->num_transfers--) {
    transfer *t = &op->transfers[op->num_transfers - 1];
    int flag = 0, count = 0;
    MPI_Status status;
    const int code = MPI_Test(&t->request, &flag, &status);
    int class = MPI_SUCCESS;
    if (code != MPI_SUCCESS) MPI_Error_class(code, &class);
    if (code != MPI_SUCCESS && class != MPI_ERR_TRUNCATE) return failed(self, "MPI_Test", code);
    if (code == MPI_SUCCESS && !flag) return 0;
    if (t->receives && code == MPI_SUCCESS) MPI_Get_count(&status, MPI_BYTE, &count);
    if (!t->receives || (code == MPI_SUCCESS && count == t->bytes)) continue;
    const membership *in = op->in;
    /* Its operation is not known: only that it sent something else. */
    const double found[6] = {in->members[in->rank], op->kind, t->bytes, in->members[t->peer], -1, code == MPI_SUCCESS ? count : -1};
    memcpy(self->mismatch, found, sizeof found);
    return -1;
  }
  return 1;
}

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
  op->parts = take_buffer(in->self, own * element * (size_t)in->size);
  if (!op->parts.data) return -3;
  for (int i = 1; i < in->size; i++) {
    const int to = (in->rank + i) % in->size, from = (in->rank - i + in->size) % in->size;
    const size_t n = slice_of(op, to, &start);
    int code = own ? receive_from(op, from, op->parts.data + (size_t)from * own * element, (int64_t)(own * element), 0) : 0;
    if (code == 0 && n) code = send_to(op, to, op->ptr + start * element, (int64_t)(n * element), 0);
    if (code == 0) code = exchange_stamp(op, to, 1, 0);
    if (code == 0) code = exchange_stamp(op, from, 0, 1);
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
    int code = n ? receive_from(op, from, op->ptr + start * element, (int64_t)(n * element), 1) : 0;
    if (code == 0 && own) code = send_to(op, to, op->ptr + own_start * element, (int64_t)(own * element), 1);
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
    int code = receives ? receive_from(op, from, target, receives, 0) : 0;
    if (code == 0 && sends) code = send_to(op, to, source, sends, 0);
    if (code == 0) code = exchange_stamp(op, to, 1, 0);
    if (code == 0) code = exchange_stamp(op, from, 0, 1);
    if (code != 0) return code;
  }
  return 0;
}

static int begin_broadcast(operation *op) {
  const membership *in = op->in;
  if (in->rank != op->peer) {
    const int code = receive_from(op, op->peer, op->ptr, op->extent, 0);
    return code ? code : exchange_stamp(op, op->peer, 0, 1);
  }
  for (int i = 1; i < in->size; i++) {
    const int to = (in->rank + i) % in->size;
    int code = send_to(op, to, op->ptr, op->extent, 0);
    if (code == 0) code = exchange_stamp(op, to, 1, 0);
    if (code != 0) return code;
  }
  return 0;
}

/* Round k of a dissemination barrier (Hensgen, Finkel, Manber 1988): after log2 of the size, everybody knows of everybody. */
static int begin_barrier_round(operation *op, int round) {
  const membership *in = op->in;
  const int step = 1 << round, to = (in->rank + step) % in->size, from = (in->rank - step % in->size + in->size) % in->size;
  const int code = receive_from(op, from, NULL, 0, round);
  return code ? code : send_to(op, to, NULL, 0, round);
}

static int begin_message(operation *op, int buffered) {
  const membership *in = op->in;
  char *data = op->ptr;
  if (op->kind == SEND && buffered) {
    op->parts = take_buffer(in->self, (size_t)op->extent);
    if (!op->parts.data) return -3;
    data = memcpy(op->parts.data, op->ptr, (size_t)op->extent);
  }
  const int receives = op->kind == RECV;
  int code = add_transfer(op, in->direct, data, op->extent, op->peer, op->tag, receives);
  if (code == 0 && op->stamps) {
    char *stamp = (char *)(receives ? &op->stamps[op->peer] : &op->stamp);
    code = add_transfer(op, in->direct, stamp, sizeof op->stamp, op->peer, op->tag + STAMP_TAG, receives);
  }
  return code;
}

/* Does what can be done now: 1 all is done, 0 not yet, below 0 an error. */
static int step(operation *op) {
  if (op->done) return 1;
  const int size = op->in->size;
  for (;;) {
    const int result = test_transfers(op);
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
  keep_buffer(op->in->self, op->parts);
  free(op->lengths);
  free(op->receives);
  free(op->stamps);
  free(op->transfers);
  free(op);
}

/* Buffered messages belong to nobody any more: they go when they have left. */
static int step_all(member_rank *self) {
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

/* Plugins of Open MPI look its symbols up globally, and whoever loaded this library did so locally. */
static void make_mpi_global(void) {
  Dl_info info;
  if (dladdr((void *)(uintptr_t)MPI_Init_thread, &info) && info.dli_fname) dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

/* Starts MPI and the pulse, which takes a rank for lost after `lost_seconds` of silence. NULL where MPI does not start. */
EXPORT member_rank *moe_mpi_init(double lost_seconds) {
  int is_initialized = 0;
  make_mpi_global();
  MPI_Initialized(&is_initialized);
  member_rank *self = calloc(1, sizeof *self);
  if (!self || is_initialized) {
    free(self);
    return NULL;
  }
  if (MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &self->provided) != MPI_SUCCESS) {
    free(self);
    return NULL;
  }
#if defined(__linux__)
  prctl(PR_SET_TIMERSLACK, 1000); /* ns: short sleeps are as short as they say */
#endif
  MPI_Comm_dup(MPI_COMM_WORLD, &self->world);
  MPI_Comm_set_errhandler(self->world, MPI_ERRORS_RETURN);
  MPI_Comm_rank(self->world, &self->rank);
  MPI_Comm_size(self->world, &self->size);
  if (self->provided == MPI_THREAD_MULTIPLE && self->size > 1) self->pulse = pulse_start(self->rank, self->size, lost_seconds);
  return self;
}
EXPORT int moe_mpi_rank(const member_rank *self) { return self->rank; }
EXPORT int moe_mpi_size(const member_rank *self) { return self->size; }
EXPORT int moe_mpi_has_pulse(const member_rank *self) { return self->pulse != NULL; }

/* Ends the group: tells all others why. */
EXPORT void moe_mpi_end(member_rank *self, const char *reason) { pulse_end(self->pulse, reason); }
/* Whether another rank ended the group, or is lost; then `moe_mpi_reason` says why. */
EXPORT int moe_mpi_has_ended(const member_rank *self) { return pulse_has_ended(self->pulse); }
EXPORT const char *moe_mpi_reason(const member_rank *self) { return self->pulse ? pulse_reason(self->pulse) : ""; }
/* The rank that gave the reason; -1 where it was this one's observation that another is lost. */
EXPORT int moe_mpi_reason_rank(const member_rank *self) { return self->pulse ? pulse_reason_rank(self->pulse) : -1; }
EXPORT const char *moe_mpi_error(const member_rank *self) { return self->error; }

static void *exit_soon(void *argument) {
  (void)argument;
  sleep(3);
  _exit(1);
}

/* Ends all processes of the job with this exit code, this one within three seconds even where MPI cannot reach the others. */
EXPORT void moe_mpi_abort(member_rank *self, int code) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, exit_soon, NULL) == 0) pthread_detach(thread);
  MPI_Abort(self->world, code);
  _exit(code);
}

/* When all ranks are through: says so, and ends MPI; the process lives on. 0, or -1 where the group was ended instead: then abort. */
EXPORT int moe_mpi_finalize(member_rank *self) {
  /* Buffered messages may still be on their way. */
  while (self->active && !pulse_has_ended(self->pulse) && step_all(self) == 0) usleep(100);
  if (pulse_stop(self->pulse) != 0) return -1;
  for (membership *in = self->memberships, *next; in; in = next) {
    next = in->next;
    MPI_Comm_free(&in->collective);
    MPI_Comm_free(&in->direct);
    free(in->members);
    free(in);
  }
  for (int i = 0; i < SPARE_BUFFERS; i++) free(self->spare[i].data);
  MPI_Comm_free(&self->world);
  MPI_Finalize();
  free(self);
  return 0;
}

/* A part of `parent` (NULL: of all ranks), in the order of `members`. All ranks of the parent call it; those in no group with size 0, who get NULL. */
EXPORT membership *moe_mpi_open(member_rank *self, membership *parent, int split, int index, const int32_t *members, int size, int rank) {
  (void)split;
  MPI_Comm above = parent ? parent->collective : self->world, collective, direct;
  if (MPI_Comm_split(above, size > 0 ? index : MPI_UNDEFINED, rank, &collective) != MPI_SUCCESS) return NULL;
  if (size == 0) return NULL;
  membership *in = calloc(1, sizeof *in);
  int *copy = malloc((size_t)size * sizeof *copy);
  if (!in || !copy || MPI_Comm_dup(collective, &direct) != MPI_SUCCESS) {
    free(in);
    free(copy);
    return NULL;
  }
  for (int r = 0; r < size; r++) copy[r] = members[r];
  MPI_Comm_set_errhandler(collective, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(direct, MPI_ERRORS_RETURN);
  *in = (membership){self->memberships, self, collective, direct, rank, size, copy, 0};
  self->memberships = in;
  return in;
}

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
  const double status = status_of(op, step_all(op->in->self));
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
