/*
 * Messages of operations over MPI: begun, tested, and the memory that they need. The operations: mpi.c.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ranks_mpi.h"

/* ---- buffers ---- */

buffer moe_mpi_take_buffer(member_rank *self, size_t bytes) {
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

void moe_mpi_keep_buffer(member_rank *self, buffer used) {
  int least = 0;
  if (!used.data) return;
  for (int i = 1; i < SPARE_BUFFERS; i++)
    if (self->spare[i].bytes < self->spare[least].bytes) least = i;
  buffer out = self->spare[least].bytes < used.bytes ? self->spare[least] : used;
  if (out.data != used.data) self->spare[least] = used;
  free(out.data);
}

/* ---- transfers ---- */

int moe_mpi_failed(member_rank *self, const char *what, int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  snprintf(self->error, sizeof self->error, "%s: %.*s", what, length, text);
  return -3;
}

int moe_mpi_add_transfer(operation *op, MPI_Comm comm, char *data, int64_t bytes, int peer, int tag, int receives) {
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
    if (code != MPI_SUCCESS) return moe_mpi_failed(self, receives ? "MPI_Irecv" : "MPI_Isend", code);
    op->num_transfers++;
    data += n;
    bytes -= n;
  } while (bytes > 0);
  return 0;
}

static int tag_of(const operation *op, int phase) { return (int)((op->sequence * PHASES + (uint32_t)phase) % TAGS); }

int moe_mpi_send_to(operation *op, int r, char *data, int64_t bytes, int phase) {
  return moe_mpi_add_transfer(op, op->in->collective, data, bytes, r, tag_of(op, phase), 0);
}
int moe_mpi_receive_from(operation *op, int r, char *data, int64_t bytes, int phase) {
  return moe_mpi_add_transfer(op, op->in->collective, data, bytes, r, tag_of(op, phase), 1);
}

int moe_mpi_exchange_stamp(operation *op, int r, int sends, int receives) {
  if (!op->stamps) return 0;
  int code = sends ? moe_mpi_send_to(op, r, (char *)&op->stamp, sizeof op->stamp, STAMP_PHASE) : 0;
  if (code == 0 && receives) code = moe_mpi_receive_from(op, r, (char *)&op->stamps[r], sizeof op->stamp, STAMP_PHASE);
  return code;
}

int moe_mpi_test_transfers(operation *op) {
  member_rank *self = op->in->self;
  for (; op->num_transfers > 0; op->num_transfers--) {
    transfer *t = &op->transfers[op->num_transfers - 1];
    int flag = 0, count = 0;
    MPI_Status status;
    const int code = MPI_Test(&t->request, &flag, &status);
    int class = MPI_SUCCESS;
    if (code != MPI_SUCCESS) MPI_Error_class(code, &class);
    if (code != MPI_SUCCESS && class != MPI_ERR_TRUNCATE) return moe_mpi_failed(self, "MPI_Test", code);
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
