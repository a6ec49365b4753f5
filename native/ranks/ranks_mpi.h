/*
 * The structures of communicators over MPI, and how mpi.c (operations), mpi_transfers.c (messages) and mpi_world.c (start and end) call each
 * other. What it is about: mpi.c.
 */
#ifndef MOE_MPI_H
#define MOE_MPI_H
#include <mpi.h>
#include <stddef.h>
#include <stdint.h>

#include "operation.h"
#include "pulse.h"

#define EXPORT __attribute__((visibility("default")))

/* Bytes of one MPI message: counts are ints. Tags of collectives: 16 phases of 2048 operations. */
enum { MAX_MESSAGE = 1 << 30, PHASES = 16, TAGS = 32768, STAMP_PHASE = 15, STAMP_TAG = 16384, SPARE_BUFFERS = 8 };

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

/* ---- mpi_transfers.c ---- */

/* Memory of at least so many bytes, of those kept where one fits; `data` is NULL without memory. */
buffer moe_mpi_take_buffer(member_rank *self, size_t bytes);
void moe_mpi_keep_buffer(member_rank *self, buffer used);
/* Remembers what MPI says of an error. Returns -3. */
int moe_mpi_failed(member_rank *self, const char *what, int code);
/* Begins messages of an operation; to or from rank `r` of its communicator. 0, or -3. */
int moe_mpi_add_transfer(operation *op, MPI_Comm comm, char *data, int64_t bytes, int peer, int tag, int receives);
int moe_mpi_send_to(operation *op, int r, char *data, int64_t bytes, int phase);
int moe_mpi_receive_from(operation *op, int r, char *data, int64_t bytes, int phase);
/* Where a link is emulated: tells when what was sent arrives. */
int moe_mpi_exchange_stamp(operation *op, int r, int sends, int receives);
/* All transfers are over: 1. Not yet: 0. What came is not what must come: -1. An error of MPI: -3. */
int moe_mpi_test_transfers(operation *op);

/* ---- mpi.c ---- */

/* Steps all operations of a rank: 0, or an error as above. Buffered messages that have left go. */
int moe_mpi_step_all(member_rank *self);

#endif
