/*
 * The structures of shared.c and shared_world.c: what ranks of one process share, and how they call each other. See shared.c.
 *
 * Nothing here belongs to a context, because it belongs to several; it lives in malloc's heap.
 */
#ifndef MOE_SHARED_H
#define MOE_SHARED_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../moe.h"
#include "operation.h"

/* Operations of one communicator that may be under way; more wait in the rank that begins them. */
enum { WINDOW = 16 };
/* What a rank did in a round of a slot; the state of a rank in a slot is 4 * round + this. */
enum { POSTED = 1, LEFT = 3 };

typedef struct message {
  struct message *next;
  const struct comm *comm;
  int from, tag;
  const char *data; /* of the sender, or this message's own */
  size_t bytes;
  double arrive;
  int owned; /* the receiver frees it */
  _Atomic uint32_t taken;
} message;

typedef struct {
  _Alignas(64) _Atomic uint32_t bell;
  _Atomic uint32_t sleeping, touching;
  _Alignas(64) _Atomic uint32_t lock; /* of the messages */
  message *first, *last;
} rank_line;

struct comm;

typedef struct {
  int size;
  _Atomic int holders;
  _Atomic uint32_t ended;
  _Atomic uint32_t lock; /* of the communicators */
  struct comm *comms;
  rank_line ranks[];
} world;

typedef struct {
  _Alignas(64) _Atomic uint32_t state;
  int kind, dtype;
  int64_t extent;
  char *ptr;
  const int64_t *lengths; /* what this rank sends to each (all-to-all) or brings of each */
  double arrive;
} post;

/* Found by its parent, how often that was split before, and which of the groups it is. */
typedef struct comm {
  struct comm *next;
  world *world;
  const struct comm *parent;
  int split, index, size;
  int *members; /* world ranks */
  post *posts;  /* [WINDOW, size] */
} comm;

struct operation;

/* A rank of the world, and a rank's place in a communicator. */
typedef struct {
  world *world;
  int rank;
  struct operation *active; /* oldest first */
  struct membership *memberships;
  int64_t mismatch[6];      /* rank, kind, extent; other rank, its kind, its extent */
} member_rank;

typedef struct membership {
  struct membership *next;
  member_rank *self;
  comm *comm;
  int rank;
  uint32_t begun, posted;
} membership;

typedef struct operation {
  struct operation *next;
  membership *in;
  uint32_t sequence;
  int kind, dtype, peer, tag;
  int posted, worked, done, cursor;
  int64_t extent;
  char *ptr, *out;
  int64_t *lengths, *receives;
  double leave, arrive;
  message *sent;
} operation;

/* ---- shared_world.c ---- */

/* After something was written that the rank may be waiting for: it sleeps only if it looked after it said that it sleeps. */
void moe_ranks_ring(world *w, int rank);
void moe_ranks_ring_all(const comm *c, int except);
/* Sleeps until the bell rings, or rang since it was `seen`, or for so long. */
void moe_ranks_sleep(rank_line *line, uint32_t seen, double ns);

void moe_ranks_lock(_Atomic uint32_t *word);
void moe_ranks_unlock(_Atomic uint32_t *word);

/* Whether others' memory may be accessed; then `moe_ranks_untouch` must follow. */
int moe_ranks_touch(member_rank *self);
void moe_ranks_untouch(member_rank *self);

#endif
