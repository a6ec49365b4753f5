/*
 * Threads as ranks, under a thread sanitizer: the same random operations on all, several under way at once, results compared with what they
 * must be. Prints `ok`, or says what is wrong and ends with 1. Usage: ranks <threads> <rounds> <seed>.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ranks/shared.h"

world *moe_ranks_world_create(int size);
member_rank *moe_ranks_join(world *w, int rank);
void moe_ranks_leave(member_rank *self);
membership *moe_ranks_open(member_rank *self, const membership *parent, int split, int index, const int32_t *members, int size, int rank);
operation *moe_ranks_begin(membership *in, int kind, char *ptr, char *out, int64_t extent, const double *lengths, const double *receives,
                           int dtype, int peer, int tag, int buffered, double leave, double arrive);
double moe_ranks_wait(operation *op, double ns);

enum { MAX_COUNT = 3000, AT_ONCE = 5, MAX_THREADS = 16 };

static int num_threads, num_rounds;
static unsigned seed;
static world *shared;

static void require(int condition, const char *what, int rank, int round) {
  if (condition) return;
  printf("rank %d, round %d: %s\n", rank, round, what);
  exit(1);
}

static void finish(operation *op, int rank, int round) {
  require(op != NULL, "no memory", rank, round);
  for (int slices = 0; slices < 6000; slices++) {
    const double status = moe_ranks_wait(op, 10e6);
    if (status > 0) return;
    require(status == STATUS_PENDING, "the group ended", rank, round);
  }
  require(0, "an operation does not end", rank, round);
}

/* Every rank makes the same choices. */
static unsigned next(unsigned *state) { return *state = *state * 1664525u + 1013904223u, *state >> 8; }

static void *run(void *argument) {
  const int rank = (int)(intptr_t)argument, size = num_threads;
  member_rank *self = moe_ranks_join(shared, rank);
  int32_t all[MAX_THREADS];
  for (int r = 0; r < size; r++) all[r] = r;
  membership *in = moe_ranks_open(self, NULL, 0, 0, all, size, rank);
  float *data[AT_ONCE], *out[AT_ONCE];
  for (int i = 0; i < AT_ONCE; i++) {
    data[i] = malloc(sizeof(float) * MAX_COUNT * MAX_THREADS);
    out[i] = malloc(sizeof(float) * MAX_COUNT * MAX_THREADS);
  }
  unsigned state = seed;
  for (int round = 0; round < num_rounds; round++) {
    int kinds[AT_ONCE], counts[AT_ONCE];
    operation *pending[AT_ONCE];
    const int num = 1 + (int)(next(&state) % AT_ONCE), from = (int)(next(&state) % (unsigned)size);
    for (int i = 0; i < num; i++) {
      const int choices[5] = {ALL_REDUCE, ALL_GATHER, ALL_TO_ALL, BROADCAST, BARRIER};
      kinds[i] = choices[next(&state) % 5];
      counts[i] = (int)(next(&state) % MAX_COUNT);
      double lengths[MAX_THREADS];
      for (int r = 0; r < size; r++) lengths[r] = 4.0 * counts[i];
      for (int j = 0; j < counts[i] * size; j++) data[i][j] = (float)(rank + j % 17);
      const int64_t extent = kinds[i] == ALL_REDUCE ? counts[i] : kinds[i] == BROADCAST ? 4 * counts[i] : kinds[i] == ALL_GATHER ? 4 * counts[i] * size : 0;
      pending[i] = moe_ranks_begin(in, kinds[i], (char *)data[i], (char *)out[i], extent, lengths, lengths, 0, from, 0, 0, 0, 0);
    }
    /* A message to the next rank, buffered or not, beside them. */
    int payload = rank * 1000 + round, received = -1;
    operation *send = size > 1 ? moe_ranks_begin(in, SEND, (char *)&payload, NULL, 4, NULL, NULL, 0, (rank + 1) % size, 3, round % 2, 0, 0) : NULL;
    operation *receive = size > 1 ? moe_ranks_begin(in, RECV, (char *)&received, NULL, 4, NULL, NULL, 0, (rank + size - 1) % size, 3, 0, 0, 0) : NULL;
    /* Waited for in an order that differs from rank to rank. */
    for (int i = 0; i < num; i++) finish(pending[(i + rank) % num], rank, round);
    if (size > 1) {
      finish(receive, rank, round);
      finish(send, rank, round);
      require(received == (rank + size - 1) % size * 1000 + round, "another message", rank, round);
    }
    for (int i = 0; i < num; i++) {
      for (int j = 0; j < counts[i]; j++) {
        const float first = (float)(j % 17);
        if (kinds[i] == ALL_REDUCE) require(data[i][j] == (float)(size * (size - 1) / 2) + (float)size * first, "another sum", rank, round);
        if (kinds[i] == BROADCAST) require(data[i][j] == (float)from + first, "not the root's", rank, round);
        if (kinds[i] == ALL_GATHER)
          for (int r = 0; r < size; r++) require(out[i][r * counts[i] + j] == (float)r + first, "not what was gathered", rank, round);
        if (kinds[i] == ALL_TO_ALL)
          for (int r = 0; r < size; r++)
            require(out[i][r * counts[i] + j] == (float)(r + (rank * counts[i] + j) % 17), "not what was sent here", rank, round);
      }
    }
  }
  for (int i = 0; i < AT_ONCE; i++) {
    free(data[i]);
    free(out[i]);
  }
  moe_ranks_leave(self);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  num_threads = atoi(argv[1]);
  num_rounds = atoi(argv[2]);
  seed = (unsigned)atoi(argv[3]);
  if (num_threads < 1 || num_threads > MAX_THREADS) return 2;
  shared = moe_ranks_world_create(num_threads);
  pthread_t threads[MAX_THREADS];
  for (int r = 0; r < num_threads; r++) pthread_create(&threads[r], NULL, run, (void *)(intptr_t)r);
  for (int r = 0; r < num_threads; r++) pthread_join(threads[r], NULL);
  puts("ok");
  return 0;
}
