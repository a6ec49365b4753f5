/*
 * The pulse: a thread of each rank that tells all others every BEAT_SECONDS that it is there, hears the same from them, and passes errors on.
 *
 * A rank of whom nothing was heard for `lost_seconds` is lost: its process is gone, its machine, or the link. The thread runs beside a computation, so a rank that
 * computes for minutes is not lost. Messages of the pulse are small and have a communicator of their own; to a rank that does not take them, one at a
 * time is under way.
 *
 * When ranks are through they say goodbye and wait for the others' goodbyes: then nobody misses them, and MPI can end.
 */
#define _GNU_SOURCE
#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "operation.h"
#include "pulse.h"

enum { TEXT_BYTES = 1000, POLL_US = 20000 };
#define BEAT_SECONDS 2.0
/* How long an error may take to leave. */
#define END_SECONDS 1.0
/* How long this process may live on after the group was ended: it may be deep in a computation, or in a call of MPI that does not return. */
#define GRACE_SECONDS 10.0

enum { BEAT = 0, ERROR = 1, GOODBYE = 2 };

typedef struct {
  int kind;
  char text[TEXT_BYTES];
} letter;

typedef struct {
  MPI_Request receive, send;
  letter incoming, outgoing;
  double heard;
  int is_gone; /* said goodbye */
} peer;

struct pulse {
  MPI_Comm comm;
  pthread_t thread;
  int rank, size;
  double lost_ns;
  peer *peers;
  _Atomic int has_ended, to_end, error_sent, to_stop, stopped;
  int reason_rank;
  double ended_ns; /* of the thread alone */
  char host[64], reason[TEXT_BYTES + 128], own_reason[TEXT_BYTES];
};

static void end_here(pulse *p, int rank, const char *text) {
  if (atomic_load(&p->has_ended)) return;
  p->reason_rank = rank;
  snprintf(p->reason, sizeof p->reason, "%s", text);
  atomic_store(&p->has_ended, 1);
}

static void post_receive(pulse *p, int r) {
  peer *other = &p->peers[r];
  MPI_Irecv(&other->incoming, sizeof(letter), MPI_BYTE, r, 0, p->comm, &other->receive);
}

static void hear(pulse *p, int r) {
  peer *other = &p->peers[r];
  for (int flag = 1; flag && !other->is_gone;) {
    if (MPI_Test(&other->receive, &flag, MPI_STATUS_IGNORE) != MPI_SUCCESS || !flag) return;
    other->heard = now_ns();
    other->incoming.text[TEXT_BYTES - 1] = 0;
    if (other->incoming.kind == ERROR) end_here(p, r, other->incoming.text);
    if (other->incoming.kind == GOODBYE) other->is_gone = 1;
    else post_receive(p, r);
  }
}

/* Whether it left, or an earlier one is still under way. */
static int tell(pulse *p, int r, int kind, const char *text) {
  peer *other = &p->peers[r];
  int flag = 1;
  if (other->send != MPI_REQUEST_NULL) MPI_Test(&other->send, &flag, MPI_STATUS_IGNORE);
  if (!flag) return 0;
  memset(&other->outgoing, 0, sizeof other->outgoing);
  other->outgoing.kind = kind;
  snprintf(other->outgoing.text, TEXT_BYTES, "%s", text);
  MPI_Isend(&other->outgoing, sizeof(letter), MPI_BYTE, r, 0, p->comm, &other->send);
  return 1;
}

/* Whether every rank that can take it was told. `told` [size] says who was before. */
static int tell_all(pulse *p, int kind, const char *text, char *told) {
  int all = 1;
  for (int r = 0; r < p->size; r++) {
    if (r == p->rank || told[r]) continue;
    told[r] = (char)tell(p, r, kind, text);
    all &= told[r];
  }
  return all;
}

/* Lower ranks notice first, and tell the others before those notice too. */
static double patience_ns(const pulse *p) { return p->lost_ns + 0.5e9 * (p->rank < 8 ? p->rank : 8); }

static void look_for_lost(pulse *p) {
  if (atomic_load(&p->has_ended)) return;
  for (int r = 0; r < p->size; r++) {
    if (r == p->rank || p->peers[r].is_gone || now_ns() - p->peers[r].heard < patience_ns(p)) continue;
    char text[512];
    snprintf(text, sizeof text, "rank %d is lost: rank %d on %s has heard nothing from it for %.0f s (its process, its machine or the network is gone)", r,
             p->rank, p->host, p->lost_ns / 1e9);
    snprintf(p->own_reason, sizeof p->own_reason, "%s", text);
    end_here(p, -1, text);
    atomic_store(&p->to_end, 1);
    return;
  }
}

static int all_gone(const pulse *p) {
  for (int r = 0; r < p->size; r++)
    if (r != p->rank && !p->peers[r].is_gone) return 0;
  return 1;
}

/* Sends that are still under way; nothing more is expected of who is gone. */
static int all_sent(pulse *p) {
  int all = 1;
  for (int r = 0; r < p->size; r++) {
    int flag = 1;
    if (r != p->rank && p->peers[r].send != MPI_REQUEST_NULL) MPI_Test(&p->peers[r].send, &flag, MPI_STATUS_IGNORE);
    all &= flag;
  }
  return all;
}

/* Only a rank that saw another one vanish speaks: the others' errors were said by whom they befell. */
static void end_process_after_grace(pulse *p) {
  if (!atomic_load(&p->has_ended)) return;
  if (p->ended_ns == 0) p->ended_ns = now_ns();
  if (now_ns() - p->ended_ns < GRACE_SECONDS * 1e9) return;
  if (p->reason_rank < 0) fprintf(stderr, "moe: %s\n", p->reason);
  _exit(1);
}

static void *run(void *argument) {
  pulse *p = argument;
  char *told_error = calloc((size_t)p->size, 1), *told_goodbye = calloc((size_t)p->size, 1);
  double last_beat = 0;
  while (told_error && told_goodbye) {
    for (int r = 0; r < p->size; r++)
      if (r != p->rank) hear(p, r);
    look_for_lost(p);
    end_process_after_grace(p);
    const double now = now_ns();
    if (atomic_load(&p->to_end)) {
      if (tell_all(p, ERROR, p->own_reason, told_error) && all_sent(p)) atomic_store(&p->error_sent, 1);
    } else if (atomic_load(&p->to_stop)) {
      if (tell_all(p, GOODBYE, "", told_goodbye) && all_sent(p) && all_gone(p)) break;
    } else if (now - last_beat >= BEAT_SECONDS * 1e9) {
      last_beat = now;
      for (int r = 0; r < p->size; r++)
        if (r != p->rank) tell(p, r, BEAT, "");
    }
    usleep(POLL_US);
  }
  free(told_error);
  free(told_goodbye);
  atomic_store(&p->stopped, 1);
  return NULL;
}

pulse *pulse_start(int rank, int size, double lost_seconds) {
  pulse *p = calloc(1, sizeof *p);
  if (!p) return NULL;
  p->peers = calloc((size_t)size, sizeof *p->peers);
  if (!p->peers || MPI_Comm_dup(MPI_COMM_WORLD, &p->comm) != MPI_SUCCESS) {
    free(p->peers);
    free(p);
    return NULL;
  }
  MPI_Comm_set_errhandler(p->comm, MPI_ERRORS_RETURN);
  p->rank = rank;
  p->size = size;
  p->lost_ns = lost_seconds * 1e9;
  if (gethostname(p->host, sizeof p->host) != 0) p->host[0] = 0;
  p->host[sizeof p->host - 1] = 0;
  for (int r = 0; r < size; r++) {
    p->peers[r].send = p->peers[r].receive = MPI_REQUEST_NULL;
    p->peers[r].heard = now_ns();
    if (r != rank) post_receive(p, r);
  }
  if (pthread_create(&p->thread, NULL, run, p) != 0) {
    free(p->peers);
    free(p);
    return NULL;
  }
  return p;
}

void pulse_end(pulse *p, const char *reason) {
  if (!p) return;
  if (!atomic_load(&p->to_end)) {
    snprintf(p->own_reason, sizeof p->own_reason, "%s", reason);
    end_here(p, p->rank, reason);
    atomic_store(&p->to_end, 1);
  }
  for (int i = 0; i < (int)(END_SECONDS * 1e6 / POLL_US) && !atomic_load(&p->error_sent); i++) usleep(POLL_US);
}

int pulse_has_ended(const pulse *p) { return p != NULL && atomic_load_explicit(&p->has_ended, memory_order_acquire); }
const char *pulse_reason(const pulse *p) { return p->reason; }
int pulse_reason_rank(const pulse *p) { return p->reason_rank; }

int pulse_stop(pulse *p) {
  if (!p) return 0;
  atomic_store(&p->to_stop, 1);
  while (!atomic_load(&p->stopped) && !atomic_load(&p->has_ended)) usleep(1000);
  if (atomic_load(&p->has_ended)) return -1;
  pthread_join(p->thread, NULL);
  for (int r = 0; r < p->size; r++) {
    if (r == p->rank || p->peers[r].receive == MPI_REQUEST_NULL) continue;
    MPI_Cancel(&p->peers[r].receive);
    MPI_Wait(&p->peers[r].receive, MPI_STATUS_IGNORE);
  }
  MPI_Comm_free(&p->comm);
  free(p->peers);
  free(p);
  return 0;
}
