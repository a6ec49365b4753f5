/*
 * Gradient of attention.c, flash style (arXiv 2205.14135, appendix B.4): probabilities are recomputed from lse, never stored.
 *   p = exp(scale * q.k - lse);  dv = p^T dOut;  dp = dOut v^T;  ds = p * (dp - delta) * scale;  dq = ds k;  dk = ds^T q;
 *   delta = rowsum(dOut * out).
 *
 * One task is one key head and one group of queries that shares keys with no other group (a packed document, usually); it owns its
 * keys' gradients. Key blocks of 64 are the outer loop, tiles of queries ascending the inner one: dk and dv of a block gather in
 * cache, dq in f32 scratch. Blocks that a tile does not see are skipped. Within a tile, a key that a row does not see has
 * p = ds = 0 and is multiplied in; so unlike the forward, NaN in such a key reaches the rows of its tile.
 */
#include "moe_math.h"
#include "tile.h"

enum { BLOCK = 64, MAX_ROWS = 48 /* what a tile touches stays in a cache of 48 KB */ };

/* Queries t0..t1-1 see keys k0..k1-1 and own the gradients of own0..own1-1. */
typedef struct {
  ptrdiff_t t0, t1, k0, k1, own0, own1;
} query_group;

typedef struct {
  moe_context *ctx;
  void *dq, *dk, *dv;
  const void *d_out, *q, *k, *v, *out;
  const float *lse;
  const int32_t *key_base, *key_end;
  ptrdiff_t T, S, Hq, Hkv, D, q_stride, k_stride, v_stride, window;
  float scale;
  int dtype, accumulate;
  ptrdiff_t heads, padded, num_groups, tile_queries; /* heads: query heads of one key head */
  query_group *groups;
} backward_args;

typedef struct {
  float *keys_t, *values_t; /* [D][64] */
  float *keys;              /* [64][padded] */
  float *dk, *dv;           /* [64][padded] */
  float *p, *ds;            /* [rows][64] */
  float *q, *d_out, *dq;    /* [queries of the group * heads][padded] */
  float *delta;             /* [queries of the group * heads] */
} backward_memory;

static void backward_memory_init(backward_memory *s, const backward_args *a, ptrdiff_t queries, int thread) {
  const ptrdiff_t rows = a->tile_queries * a->heads, block = BLOCK * a->padded, all = queries * a->heads * a->padded;
  float *next = moe_thread_scratch(a->ctx, thread, (size_t)(block * 5 + rows * BLOCK * 2 + all * 3 + queries * a->heads) * sizeof(float));
  s->keys_t = next;
  s->values_t = s->keys_t + block;
  s->keys = s->values_t + block;
  s->dk = s->keys + block;
  s->dv = s->dk + block;
  s->p = s->dv + block;
  s->ds = s->p + rows * BLOCK;
  s->q = s->ds + rows * BLOCK;
  s->d_out = s->q + all;
  s->dq = s->d_out + all;
  s->delta = s->dq + all;
}

static ptrdiff_t last_key(const backward_args *a, ptrdiff_t t) { return moe_min(a->S, a->key_end[t]); }
static ptrdiff_t first_key(const backward_args *a, ptrdiff_t t) {
  return a->window > 0 ? moe_max(a->key_base[t], last_key(a, t) - a->window) : a->key_base[t];
}

/* p becomes exp(scale * score - lse), ds becomes p * (dp - delta) * scale; both 0 outside keys from..to-1. Vectors v0..v1-1 of 4. */
VFN void probabilities(float *p, float *ds, ptrdiff_t from, ptrdiff_t to, ptrdiff_t v0, ptrdiff_t v1, float scale, float lse, float delta) {
  for (ptrdiff_t c = v0 * 16; c < v1 * 16; c += 16) {
    v16 x = v_exp(v_fma(v_load(p + c), v_set(scale), v_set(-lse))), d = v_mul(v_mul(x, v_sub(v_load(ds + c), v_set(delta))), v_set(scale));
    if (c < from || c + 16 > to) {
      const int first = (int)moe_min(16, moe_max(0, from - c)), last = (int)moe_min(16, moe_max(0, to - c));
      x = v_keep(x, first, last, 0.0f);
      d = v_keep(d, first, last, 0.0f);
    }
    v_store(p + c, x);
    v_store(ds + c, d);
  }
}

/* Adds the part of `queries` queries from t0 and those of the keys first..last-1 of the block at key `start` that one of them sees. */
VFN void backward_tile(const backward_args *a, backward_memory *s, const query_group *g, ptrdiff_t head, ptrdiff_t start, ptrdiff_t first, ptrdiff_t last, ptrdiff_t t0, ptrdiff_t queries) {
  const ptrdiff_t heads = a->heads, padded = a->padded, vectors = padded / 16, D = a->D, rows = queries * heads, at = (t0 - g->t0) * heads * padded;
  const float *q = s->q + at, *d_out = s->d_out + at;
  first = moe_max(first, first_key(a, t0) - start);
  last = moe_min(last, last_key(a, t0 + queries - 1) - start);
  if (first >= last) return;
  const ptrdiff_t v0 = first / 16, v1 = (last + 15) / 16, keys = last - first;
  tile_multiply(s->p + v0 * 16, BLOCK, q, padded, 1, s->keys_t + v0 * 16, BLOCK, rows, v1 - v0, D, 0);
  tile_multiply(s->ds + v0 * 16, BLOCK, d_out, padded, 1, s->values_t + v0 * 16, BLOCK, rows, v1 - v0, D, 0);
  for (ptrdiff_t r = 0; r < rows; r++) {
    const ptrdiff_t t = t0 + r / heads, h = head * heads + r % heads;
    probabilities(s->p + r * BLOCK, s->ds + r * BLOCK, first_key(a, t) - start, last_key(a, t) - start, v0, v1, a->scale, a->lse[h * a->T + t], s->delta[(t0 - g->t0) * heads + r]);
  }
  tile_multiply(s->dv + first * padded, padded, s->p + first, 1, BLOCK, d_out, padded, keys, vectors, rows, 1);
  tile_multiply(s->dk + first * padded, padded, s->ds + first, 1, BLOCK, q, padded, keys, vectors, rows, 1);
  tile_multiply(s->dq + at, padded, s->ds + first, BLOCK, 1, s->keys + first * padded, padded, rows, vectors, keys, 1);
}

/* to[rows][D] (dtype, rows stride apart) (+)= from[rows][padded] (f32; 0 for zeros). */
VFN void write_rows(void *to, ptrdiff_t stride, const float *from, ptrdiff_t padded, ptrdiff_t rows, ptrdiff_t D, int accumulate, int dtype) {
  for (ptrdiff_t r = 0; r < rows; r++)
    for (ptrdiff_t d = 0; d < D; d += 16) {
      ptrdiff_t n = v_step(D - d);
      v16 x = from ? v_load(from + r * padded + d) : v_set(0);
      if (accumulate) x = v_add(x, get(to, r * stride + d, n, dtype));
      put(to, r * stride + d, n, x, dtype);
    }
}

/* All queries of the group against keys first..last-1 of the block at key `start`. */
VFN void backward_block(const backward_args *a, backward_memory *s, const query_group *g, ptrdiff_t head, ptrdiff_t start, ptrdiff_t first, ptrdiff_t last, int dtype) {
  const ptrdiff_t padded = a->padded, D = a->D;
  const void *k = at(a->k, start * a->k_stride + head * D, dtype), *v = at(a->v, start * a->v_stride + head * D, dtype);
  pack_transposed(s->keys_t, k, a->k_stride, first, last, D, dtype);
  pack_transposed(s->values_t, v, a->v_stride, first, last, D, dtype);
  pack_rows(s->keys + first * padded, padded, at(k, first * a->k_stride, dtype), a->k_stride, last - first, D, 1.0f, dtype);
  __builtin_memset(s->dk, 0, (size_t)(BLOCK * padded) * sizeof(float));
  __builtin_memset(s->dv, 0, (size_t)(BLOCK * padded) * sizeof(float));
  ptrdiff_t t = g->t0, end;
  while (t < g->t1 && last_key(a, t) <= start + first) t++;
  for (end = t; end < g->t1 && first_key(a, end) < start + last;) end++;
  for (; t < end; t += a->tile_queries) backward_tile(a, s, g, head, start, first, last, t, moe_min(a->tile_queries, end - t));
  write_rows(at_out(a->dk, ((start + first) * a->Hkv + head) * D, dtype), a->Hkv * D, s->dk + first * padded, padded, last - first, D, a->accumulate, dtype);
  write_rows(at_out(a->dv, ((start + first) * a->Hkv + head) * D, dtype), a->Hkv * D, s->dv + first * padded, padded, last - first, D, a->accumulate, dtype);
}

/* Copies of the group's queries and gradients for one key head, and its deltas. */
VFN void pack_queries(const backward_args *a, backward_memory *s, const query_group *g, ptrdiff_t head, int dtype) {
  const ptrdiff_t D = a->D, heads = a->heads, padded = a->padded;
  for (ptrdiff_t t = g->t0; t < g->t1; t++) {
    const ptrdiff_t r = (t - g->t0) * heads, dense = (t * a->Hq + head * heads) * D;
    const void *q = at(a->q, t * a->q_stride + head * heads * D, dtype), *d_out = at(a->d_out, dense, dtype), *out = at(a->out, dense, dtype);
    pack_rows(s->q + r * padded, padded, q, D, heads, D, 1.0f, dtype);
    pack_rows(s->d_out + r * padded, padded, d_out, D, heads, D, 1.0f, dtype);
    for (ptrdiff_t h = 0; h < heads; h++) {
      v16 sum = v_set(0);
      for (ptrdiff_t d = 0; d < D; d += 16) sum = v_fma(v_load(s->d_out + (r + h) * padded + d), get(at(out, h * D, dtype), d, v_step(D - d), dtype), sum);
      s->delta[r + h] = v_sum(sum);
    }
  }
}

VFN void backward_group(const backward_args *a, const query_group *g, ptrdiff_t head, int dtype, int thread) {
  const ptrdiff_t D = a->D, heads = a->heads, padded = a->padded, row = a->Hkv * D;
  backward_memory s;
  backward_memory_init(&s, a, g->t1 - g->t0, thread);
  pack_queries(a, &s, g, head, dtype);
  __builtin_memset(s.dq, 0, (size_t)((g->t1 - g->t0) * heads * padded) * sizeof(float));
  for (ptrdiff_t start = g->k0; start < g->k1; start += BLOCK) backward_block(a, &s, g, head, start, 0, moe_min(BLOCK, g->k1 - start), dtype);
  for (ptrdiff_t t = g->t0; t < g->t1; t++)
    write_rows(at_out(a->dq, (t * a->Hq + head * heads) * D, dtype), D, s.dq + (t - g->t0) * heads * padded, padded, heads, D, a->accumulate, dtype);
  if (a->accumulate) return;
  for (int side = 0; side < 2; side++) {
    const ptrdiff_t from = side ? moe_max(g->k1, g->own0) : g->own0, to = side ? g->own1 : g->k0;
    if (from >= to) continue;
    write_rows(at_out(a->dk, from * row + head * D, dtype), row, 0, 0, to - from, D, 0, dtype);
    write_rows(at_out(a->dv, from * row + head * D, dtype), row, 0, 0, to - from, D, 0, dtype);
  }
}

static void backward_task(void *argument, ptrdiff_t chunk, int thread) {
  const backward_args *a = argument;
  if (a->dtype == MOE_BF16) backward_group(a, a->groups + chunk / a->Hkv, chunk % a->Hkv, MOE_BF16, thread);
  else backward_group(a, a->groups + chunk / a->Hkv, chunk % a->Hkv, MOE_F32, thread);
}

/* Cuts the queries where the next one sees no key that an earlier one saw; every key of 0..S-1 gets one owner. There is at least one group. */
static void find_groups(backward_args *a) {
  query_group *g = a->groups;
  *g = (query_group){0, 0, 0, 0, 0, a->S};
  int empty = 1; /* the group has seen no key yet */
  for (ptrdiff_t t = 0; t < a->T; t++) {
    const ptrdiff_t lo = first_key(a, t), hi = last_key(a, t);
    if (lo < hi && !empty && lo >= g->k1) {
      g->t1 = t;
      g->own1 = lo;
      *++g = (query_group){t, t, lo, hi, lo, a->S};
    } else if (lo < hi) {
      if (empty) g->k0 = lo;
      g->k1 = hi;
      empty = 0;
    }
  }
  g->t1 = a->T;
  a->num_groups = g - a->groups + 1;
}

/*
 * dq[T,Hq,D], dk and dv[S,Hkv,D] (dense, dtype; overwritten, or added to with accumulate) from dOut[T,Hq,D] (dense), q, k, v as the
 * forward saw them, its out[T,Hq,D] and lse[Hq,T]. keyBase and keyEnd are non-decreasing.
 */
void MOE_KERNEL(attention_backward)(moe_context *ctx, void *dq, void *dk, void *dv, const void *d_out, const void *q, const void *k, const void *v, const void *out, const float *lse, const int32_t *key_base, const int32_t *key_end, ptrdiff_t T, ptrdiff_t S, ptrdiff_t Hq, ptrdiff_t Hkv, ptrdiff_t D, ptrdiff_t q_stride, ptrdiff_t k_stride, ptrdiff_t v_stride, ptrdiff_t window, float scale, int dtype, int accumulate) {
  if (Hq <= 0 || Hkv <= 0 || D <= 0) return;
  backward_args a = {ctx, dq, dk, dv, d_out, q, k, v, out, lse, key_base, key_end, T, S, Hq, Hkv, D, q_stride, k_stride, v_stride, window, scale, dtype, accumulate, Hq / Hkv, (D + 15) / 16 * 16, 0, 1, 0};
  a.tile_queries = moe_max(1, MAX_ROWS / a.heads);
  a.groups = moe_scratch(ctx, 0, (size_t)(T + 1) * sizeof(query_group));
  find_groups(&a);
  moe_parallel_for(ctx, a.num_groups * Hkv, backward_task, &a);
}
