/*
 * Communicators between threads of one process, on native memory: peers' operands are read, and sums written, where they are.
 *
 * Every rank says what it brings to an operation (`post`) and then does its part as soon as those it needs have posted: it adds up its slice of
 * the elements for all (all-reduce: and writes the sum into everybody's memory), or copies what is for it. When it is through with others'
 * memory it says so (`LEFT`); an operation is over for a rank when nobody needs its operands any more. So an all-reduce moves every byte once and
 * has two points where ranks meet.
 *
 * Nobody moves bytes for a rank that computes; but who waits does its part of all operations that it has under way, and an
 * operation of which everybody else did its part costs the last one only its own. Sending and receiving go through a list of messages for
 * each rank.
 *
 * Waiting: a short spin with yields (with as many ranks as cores the others are there within a microsecond; with more ranks the
 * yields let them run), then a futex on a bell of the rank's own, which others ring only while it sleeps. A wait returns to its caller
 * every so often: whether the group was ended from outside, and whether it took too long, is the caller's to see.
 *
 * When a group ends by an error, ranks free their memory while others may be reading it. So every access to others' memory is between
 * `touch` and `untouch`: after `moe_ranks_end` nobody begins one, and it returns when the last has finished.
 *
 * The structures: shared.h. Their making and end: shared_world.c. No globals.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "ordered_sum.h"
#include "shared.h"

enum { SPINS = 2000, SPINS_PER_YIELD = 16 };

/* ---- operations ---- */

static post *post_of(const operation *op, int rank) {
  const comm *c = op->in->comm;
  return &c->posts[(size_t)(op->sequence % WINDOW) * (size_t)c->size + (size_t)rank];
}
static uint32_t round_of(const operation *op) { return 4 * (op->sequence / WINDOW); }

static int has_reached(const operation *op, int rank, int state) {
  return (int32_t)(atomic_load_explicit(&post_of(op, rank)->state, memory_order_acquire) - (round_of(op) + (uint32_t)state)) >= 0;
}

/* Operations are posted in order, when everybody left the one that had the slot before. */
static int try_post(operation *op) {
  membership *in = op->in;
  if (in->posted != op->sequence) return 0;
  if (op->sequence >= WINDOW) {
    for (int r = 0; r < in->comm->size; r++)
      if ((int32_t)(atomic_load_explicit(&post_of(op, r)->state, memory_order_acquire) - (round_of(op) - 4 + LEFT)) < 0) return 0;
  }
  post *own = post_of(op, in->rank);
  own->kind = op->kind;
  own->dtype = op->dtype;
  own->extent = op->extent;
  own->ptr = op->ptr;
  own->lengths = op->lengths;
  own->arrive = op->arrive;
  op->arrive = op->leave;
  atomic_store(&own->state, round_of(op) + POSTED);
  in->posted++;
  op->posted = 1;
  moe_ranks_ring_all(in->comm, in->rank);
  return 1;
}

static void leave(operation *op) {
  atomic_store(&post_of(op, op->in->rank)->state, round_of(op) + LEFT);
  moe_ranks_ring_all(op->in->comm, op->in->rank);
  op->worked = 1;
}

/* 0, or -1 where that rank is somewhere else. `theirs` and `mine` are the lengths that must be equal. */
static int compare(operation *op, int rank, int64_t theirs, int64_t mine) {
  const post *other = post_of(op, rank);
  const int same = other->kind == op->kind && other->dtype == op->dtype && other->extent == op->extent;
  if (same && theirs == mine) return 0;
  const comm *c = op->in->comm;
  const int64_t found[6] = {c->members[op->in->rank], op->kind, same ? mine : op->extent,
                            c->members[rank], other->kind, same ? theirs : other->extent};
  memcpy(op->in->self->mismatch, found, sizeof found);
  return -1;
}

static int64_t sum_before(const int64_t *lengths, int rank) {
  int64_t sum = 0;
  for (int r = 0; r < rank; r++) sum += lengths[r];
  return sum;
}

/* When all have posted: adds up this rank's slice. 1 done, 0 not yet, -1 somebody is somewhere else, -2 the group was ended. */
static int work_on_sum(operation *op) {
  const comm *c = op->in->comm;
  for (; op->cursor < c->size; op->cursor++) {
    if (!has_reached(op, op->cursor, POSTED)) return 0;
    const post *other = post_of(op, op->cursor);
    const int has_counts = op->kind == REDUCE_SCATTER && other->kind == op->kind;
    const int64_t theirs = has_counts ? other->lengths[op->in->rank] : 0, mine = has_counts ? op->lengths[op->in->rank] : 0;
    if (compare(op, op->cursor, theirs, mine) != 0) return -1;
    const double arrive = other->arrive;
    if (op->cursor != op->in->rank && arrive > op->arrive) op->arrive = arrive;
  }
  const int rank = op->in->rank, is_all = op->kind == ALL_REDUCE;
  const size_t element = sum_element_bytes(op->dtype);
  const size_t start = is_all ? slice_start((size_t)op->extent, c->size, rank) : (size_t)sum_before(op->lengths, rank);
  const size_t n = is_all ? slice_start((size_t)op->extent, c->size, rank + 1) - start : (size_t)op->lengths[rank];
  const void *parts[c->size];
  void *outs[c->size];
  for (int r = 0; r < c->size; r++) parts[r] = outs[r] = post_of(op, r)->ptr + start * element;
  if (!is_all) outs[0] = op->out;
  if (!moe_ranks_touch(op->in->self)) return -2;
  ordered_sum(outs, is_all ? c->size : 1, parts, c->size, n, op->dtype);
  moe_ranks_untouch(op->in->self);
  leave(op);
  return 1;
}

/* Copies what is for this rank from each other as it posts. As above. */
static int work_on_copies(operation *op) {
  const comm *c = op->in->comm;
  const int rank = op->in->rank;
  for (; op->cursor < c->size; op->cursor++) {
    const int r = (rank + op->cursor) % c->size;
    if (op->kind == BROADCAST && r != op->peer) continue;
    if (!has_reached(op, r, POSTED)) return 0;
    const post *other = post_of(op, r);
    const int to_all = op->kind == ALL_GATHER;
    int64_t theirs = 0, mine = 0;
    if (op->kind == BROADCAST) theirs = mine = rank == op->peer ? 0 : op->extent;
    /* Lengths are this rank's to read only where the other is in the same operation. */
    else if (op->kind != BARRIER && other->kind == op->kind) {
      theirs = other->lengths[to_all ? r : rank];
      mine = op->receives[r];
    }
    if (compare(op, r, theirs, mine) != 0) return -1;
    if (r != rank && other->arrive > op->arrive) op->arrive = other->arrive;
    if (mine == 0) continue;
    char *to = op->kind == BROADCAST ? op->ptr : op->out + sum_before(op->receives, r);
    const char *from = other->ptr + (op->kind == ALL_TO_ALL ? sum_before(other->lengths, rank) : 0);
    if (to == from) continue;
    if (!moe_ranks_touch(op->in->self)) return -2;
    memcpy(to, from, (size_t)mine);
    moe_ranks_untouch(op->in->self);
  }
  leave(op);
  return 1;
}

/* Whether nobody needs this rank's operands any more. */
static int all_left(const operation *op) {
  if (op->kind == BARRIER || (op->kind == BROADCAST && op->in->rank != op->peer)) return 1;
  for (int r = 0; r < op->in->comm->size; r++)
    if (!has_reached(op, r, LEFT)) return 0;
  return 1;
}

static int receive(operation *op) {
  member_rank *self = op->in->self;
  rank_line *line = &self->world->ranks[self->rank];
  moe_ranks_lock(&line->lock);
  message **link = &line->first, *before = NULL, *found = line->first;
  while (found && !(found->comm == op->in->comm && found->from == op->peer && found->tag == op->tag)) {
    before = found;
    link = &found->next;
    found = found->next;
  }
  if (found) {
    *link = found->next;
    if (line->last == found) line->last = before;
  }
  moe_ranks_unlock(&line->lock);
  if (!found) return 0;
  const int sender = op->in->comm->members[op->peer];
  if ((int64_t)found->bytes != op->extent) {
    const int64_t mismatch[6] = {self->rank, RECV, op->extent, sender, SEND, (int64_t)found->bytes};
    memcpy(self->mismatch, mismatch, sizeof mismatch);
    return -1;
  }
  if (!moe_ranks_touch(self)) return -2;
  memcpy(op->ptr, found->data, found->bytes);
  moe_ranks_untouch(self);
  if (found->arrive > op->arrive) op->arrive = found->arrive;
  if (found->owned) {
    free(found);
  } else {
    atomic_store(&found->taken, 1);
    moe_ranks_ring(self->world, sender);
  }
  return 1;
}

/* Does what can be done now: 1 all is done, 0 not yet, -1 mismatch, -2 the group was ended. */
static int step(operation *op) {
  if (op->done) return 1;
  if (op->kind == SEND) {
    if (op->sent && !atomic_load(&op->sent->taken)) return 0;
    free(op->sent);
    op->sent = NULL;
    return op->done = 1;
  }
  if (op->kind == RECV) {
    const int result = receive(op);
    if (result == 1) op->done = 1;
    return result;
  }
  if (!op->posted && !try_post(op)) return 0;
  if (!op->worked) {
    const int result = op->kind == ALL_REDUCE || op->kind == REDUCE_SCATTER ? work_on_sum(op) : work_on_copies(op);
    if (result != 1) return result;
  }
  return op->done = all_left(op);
}

/* Steps all of a rank's operations, and takes those that are done from the list. 0, or below as `step`. */
static int step_all(member_rank *self) {
  for (operation **link = &self->active; *link;) {
    operation *op = *link;
    const int result = step(op);
    if (result < 0) return result;
    if (result == 1) *link = op->next;
    else link = &op->next;
  }
  return 0;
}

static double status_of(const operation *op, int result) {
  if (result == -1) return STATUS_MISMATCH;
  if (result == -2 || atomic_load_explicit(&op->in->self->world->ended, memory_order_relaxed)) return STATUS_ENDED;
  if (!op->done || (op->arrive > 0 && op->arrive > now_ns())) return STATUS_PENDING;
  return op->arrive > 1 ? op->arrive : 1;
}

static void free_operation(operation *op) {
  free(op->lengths);
  free(op->receives);
  free(op);
}

/* ---- what is called ---- */

/* JavaScript's numbers are doubles. */
static int64_t *copied(const double *lengths, int size) {
  int64_t *copy = malloc((size_t)size * sizeof *copy);
  for (int r = 0; copy && r < size; r++) copy[r] = (int64_t)lengths[r];
  return copy;
}

/* Hands a message over. `buffered`: with a copy of its bytes, so that the operation is over at once. 0, or -1 without memory. */
static int deliver(operation *op, int buffered) {
  const comm *c = op->in->comm;
  message *m = malloc(sizeof *m + (buffered ? (size_t)op->extent : 0));
  if (!m) return -1;
  m->next = NULL;
  m->comm = c;
  m->from = op->in->rank;
  m->tag = op->tag;
  m->bytes = (size_t)op->extent;
  m->data = buffered ? memcpy(m + 1, op->ptr, m->bytes) : op->ptr;
  m->arrive = op->arrive;
  m->owned = buffered;
  atomic_init(&m->taken, 0);
  op->arrive = buffered ? 0 : op->leave;
  op->sent = buffered ? NULL : m;
  rank_line *line = &c->world->ranks[c->members[op->peer]];
  moe_ranks_lock(&line->lock);
  if (line->last && line->first) line->last->next = m;
  else line->first = m;
  line->last = m;
  moe_ranks_unlock(&line->lock);
  moe_ranks_ring(c->world, c->members[op->peer]);
  return 0;
}

/*
 * Begins an operation. `lengths`: counts (reduce-scatter) or bytes of each rank (all-gather) or to each (all-to-all); `receives`: bytes from
 * each. `extent`: elements (all-reduce) or bytes. `peer`: the root or the other side. `leave`, `arrive`: of what is sent, by an emulated link; 0 at
 * once. NULL without memory.
 */
MOE_EXPORT operation *moe_ranks_begin(membership *in, int kind, char *ptr, char *out, int64_t extent, const double *lengths,
                                      const double *receives, int dtype, int peer, int tag, int buffered, double leave, double arrive) {
  operation *op = calloc(1, sizeof *op);
  if (!op) return NULL;
  op->in = in;
  op->kind = kind;
  op->dtype = dtype;
  op->ptr = ptr;
  op->out = out;
  op->extent = extent;
  op->peer = peer;
  op->tag = tag;
  op->leave = leave;
  op->arrive = arrive;
  const int has_lengths = kind == REDUCE_SCATTER || kind == ALL_GATHER || kind == ALL_TO_ALL;
  if (has_lengths) op->lengths = copied(lengths, in->comm->size);
  if (has_lengths) op->receives = copied(kind == ALL_TO_ALL ? receives : lengths, in->comm->size);
  if (has_lengths && (!op->lengths || !op->receives)) {
    free_operation(op);
    return NULL;
  }
  if (kind == SEND && deliver(op, buffered) != 0) {
    free_operation(op);
    return NULL;
  }
  if (kind == RECV) op->arrive = 0;
  if (kind != SEND && kind != RECV) op->sequence = in->begun++;
  operation **link = &in->self->active;
  while (*link) link = &(*link)->next;
  *link = op;
  if (kind != SEND && kind != RECV) try_post(op);
  return op;
}

/* After a step of all: the status of one. An operation that is over (positive status) is gone. */
MOE_EXPORT double moe_ranks_poll(operation *op) {
  const int result = step_all(op->in->self);
  const double status = status_of(op, result);
  if (status > 0) free_operation(op);
  return status;
}

/* Waits at most `ns`, doing this rank's part of all its operations. As `moe_ranks_poll`. */
MOE_EXPORT double moe_ranks_wait(operation *op, double ns) {
  member_rank *self = op->in->self;
  rank_line *line = &self->world->ranks[self->rank];
  double end = 0;
  for (int looks = 0;; looks++) {
    const uint32_t seen = atomic_load(&line->bell);
    const int sleeps = looks > SPINS;
    if (sleeps) atomic_store(&line->sleeping, 1);
    const double status = status_of(op, step_all(self));
    if (status != STATUS_PENDING || (end > 0 && now_ns() >= end)) {
      if (sleeps) atomic_store(&line->sleeping, 0);
      if (status > 0) free_operation(op);
      return status;
    }
    if (!sleeps && !op->done) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
      if (looks % SPINS_PER_YIELD == SPINS_PER_YIELD - 1) sched_yield();
      continue;
    }
    const double now = now_ns();
    if (end == 0) end = now + ns;
    /* What is done and on its way over an emulated link is slept for. */
    const double until = op->done && op->arrive < end ? op->arrive : end;
    if (!sleeps) {
      looks = SPINS;
      continue;
    }
    if (until > now) moe_ranks_sleep(line, seen, until - now);
    atomic_store(&line->sleeping, 0);
  }
}

/* World ranks that have not come to an operation, into `ranks`; how many. */
MOE_EXPORT int moe_ranks_missing(const operation *op, int32_t *ranks) {
  const comm *c = op->in->comm;
  int n = 0;
  if (op->done) return 0;
  if (op->kind == SEND || op->kind == RECV) {
    ranks[n++] = c->members[op->peer];
    return n;
  }
  for (int r = 0; r < c->size; r++)
    if (r != op->in->rank && !has_reached(op, r, op->worked ? LEFT : POSTED)) ranks[n++] = c->members[r];
  return n;
}

/* Rank, its operation, its extent; the other's. */
MOE_EXPORT void moe_ranks_mismatch(const operation *op, double *found) {
  for (int i = 0; i < 6; i++) found[i] = (double)op->in->self->mismatch[i];
}
