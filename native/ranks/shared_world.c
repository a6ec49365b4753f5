/*
 * What ranks of one process share: its making and its end, bells on which they sleep, locks. The operations: shared.c.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shared.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* ---- bells, locks ---- */

static void wake(rank_line *line) {
  atomic_fetch_add(&line->bell, 1);
#if defined(__linux__)
  syscall(SYS_futex, &line->bell, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
#endif
}

void moe_ranks_ring(world *w, int rank) {
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load(&w->ranks[rank].sleeping)) wake(&w->ranks[rank]);
}

void moe_ranks_ring_all(const comm *c, int except) {
  for (int r = 0; r < c->size; r++)
    if (r != except) moe_ranks_ring(c->world, c->members[r]);
}

void moe_ranks_sleep(rank_line *line, uint32_t seen, double ns) {
  struct timespec t = {(time_t)(ns / 1e9), (long)(ns - 1e9 * (double)(time_t)(ns / 1e9))};
#if defined(__linux__)
  syscall(SYS_futex, &line->bell, FUTEX_WAIT_PRIVATE, seen, &t, NULL, 0);
#else
  (void)line;
  (void)seen;
  if (ns > 100e3) t = (struct timespec){0, 100000};
  nanosleep(&t, NULL);
#endif
}

void moe_ranks_lock(_Atomic uint32_t *word) {
  while (atomic_exchange_explicit(word, 1, memory_order_acquire)) sched_yield();
}
void moe_ranks_unlock(_Atomic uint32_t *word) { atomic_store_explicit(word, 0, memory_order_release); }

int moe_ranks_touch(member_rank *self) {
  atomic_store(&self->world->ranks[self->rank].touching, 1);
  if (!atomic_load(&self->world->ended)) return 1;
  atomic_store(&self->world->ranks[self->rank].touching, 0);
  return 0;
}
void moe_ranks_untouch(member_rank *self) { atomic_store_explicit(&self->world->ranks[self->rank].touching, 0, memory_order_release); }

/* ---- the world and its communicators ---- */

/* For `size` ranks; each leaves once. NULL without memory. */
MOE_EXPORT world *moe_ranks_world_create(int size) {
  const size_t bytes = sizeof(world) + (size_t)size * sizeof(rank_line);
  world *w = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!w) return NULL;
  memset(w, 0, bytes);
  w->size = size;
  atomic_store(&w->holders, size);
  return w;
}

MOE_EXPORT member_rank *moe_ranks_join(world *w, int rank) {
  member_rank *self = calloc(1, sizeof *self);
  if (self) {
    self->world = w;
    self->rank = rank;
  }
  return self;
}

/* Ends the group: returns when no other rank accesses this one's memory any more, nor will. */
MOE_EXPORT void moe_ranks_end(member_rank *self) {
  world *w = self->world;
  atomic_store(&w->ended, 1);
  for (int r = 0; r < w->size; r++) wake(&w->ranks[r]);
  for (int r = 0; r < w->size; r++)
    while (r != self->rank && atomic_load(&w->ranks[r].touching)) sched_yield();
}

static void free_comm(comm *c) {
  free(c->members);
  free(c->posts);
  free(c);
}

static void free_world(world *w) {
  for (int r = 0; r < w->size; r++) {
    for (message *m = w->ranks[r].first, *next; m; m = next) {
      next = m->next;
      if (m->owned) free(m);
    }
  }
  for (comm *c = w->comms, *next; c; c = next) {
    next = c->next;
    free_comm(c);
  }
  free(w);
}

/*
 * A rank goes, and the last one frees what they shared. Operations that are not over (the group was ended) are not freed: others may still look
 * at their lengths.
 */
MOE_EXPORT void moe_ranks_leave(member_rank *self) {
  world *w = self->world;
  for (membership *in = self->memberships, *next; in && !self->active; in = next) {
    next = in->next;
    free(in);
  }
  if (!self->active) free(self);
  if (atomic_fetch_sub(&w->holders, 1) == 1) free_world(w);
}

static comm *create_comm(world *w, const comm *parent, int split, int index, const int32_t *members, int size) {
  comm *c = calloc(1, sizeof *c);
  if (!c) return NULL;
  c->world = w;
  c->parent = parent;
  c->split = split;
  c->index = index;
  c->size = size;
  c->members = malloc((size_t)size * sizeof(int));
  const size_t bytes = (size_t)size * WINDOW * sizeof(post);
  c->posts = aligned_alloc(64, bytes);
  if (!c->members || !c->posts) {
    free_comm(c);
    return NULL;
  }
  memset(c->posts, 0, bytes);
  for (int r = 0; r < size; r++) c->members[r] = members[r];
  return c;
}

/*
 * This rank's place in the communicator of `members` (world ranks, of which it is number `rank`): group `index` of split number `split` of `parent`
 * (NULL: all ranks). Whoever comes first makes it. NULL without memory, and for who is in no group (size 0).
 */
MOE_EXPORT membership *moe_ranks_open(member_rank *self, const membership *parent, int split, int index, const int32_t *members, int size,
                                      int rank) {
  if (size == 0) return NULL;
  world *w = self->world;
  const comm *above = parent ? parent->comm : NULL;
  membership *in = calloc(1, sizeof *in);
  if (!in) return NULL;
  moe_ranks_lock(&w->lock);
  comm *c = w->comms;
  while (c && !(c->parent == above && c->split == split && c->index == index)) c = c->next;
  if (!c && (c = create_comm(w, above, split, index, members, size)) != NULL) {
    c->next = w->comms;
    w->comms = c;
  }
  moe_ranks_unlock(&w->lock);
  if (!c) {
    free(in);
    return NULL;
  }
  *in = (membership){self->memberships, self, c, rank, 0, 0};
  self->memberships = in;
  return in;
}
