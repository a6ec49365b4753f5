/*
 * Softmax attention with online softmax (arXiv 2205.14135) and grouped query heads, forward. The backward is attention_backward.c.
 *
 * Legend: T queries, S keys, Hq query heads, Hkv key heads, D head dim; a group is the Hq / Hkv query heads of one key head.
 * Query t sees keys lo[t]..hi[t]-1. One task is one key head and a tile of queries with the same keyBase; its rows are
 * (query, head of the group), so the packed keys serve the whole group; 48 rows at a time go through a block, near their scores and keys.
 *
 * A row's order, whatever tile it is in: blocks of 64 keys counted from keyBase; a score is one chain over d of (scale * q) * k; a block's sum of
 * exp is four vectors added pairwise and the lane tree; an output element is one chain over its visible keys ascending. Keys that a row does
 * not see are never multiplied in, so what lies there (NaN, unwritten cache) does not matter; keys no row sees are not read.
 *
 * Paged: key_base and key_end are rows of a space whose block j of 64 rows is rows blocks[j] * 64 and on of k and v. Nothing else differs.
 */
#include "moe_math.h"
#include "tile.h"

enum { BLOCK = 64, MAX_ROWS = 192, MAX_QUERIES = 96, PART_ROWS = 48 };

typedef struct {
  moe_context *ctx;
  void *out;
  float *lse;
  const void *q, *k, *v;
  const int32_t *key_base, *key_end, *blocks; /* blocks: 0 for none */
  ptrdiff_t T, S, Hq, Hkv, D, q_stride, k_stride, v_stride, window;
  float scale;
  int dtype;
  ptrdiff_t group, padded, num_tiles;
  ptrdiff_t *tiles; /* num_tiles + 1 first queries */
} attention_args;

/* One task's working memory: parts of a thread's scratch. */
typedef struct {
  float *keys;   /* [D][64] */
  float *values; /* [64][padded] */
  float *q;      /* [rows][padded] */
  float *p;      /* [rows][64] scores, then probabilities */
  float *o;      /* [rows][padded] */
  float *m, *l;  /* [rows] running maximum and sum */
  float *factor; /* [rows] what the last block multiplied earlier sums by; first holds the new maximum */
  int32_t *lo, *hi; /* [rows] keys lo..hi-1 are visible */
} tile_memory;

static ptrdiff_t queries_per_tile(ptrdiff_t group) { return moe_max(1, moe_min(MAX_QUERIES, MAX_ROWS / group)); }

static void tile_memory_init(tile_memory *s, const attention_args *a, int thread) {
  const ptrdiff_t rows = (queries_per_tile(a->group) * a->group + 15) / 16 * 16, padded = a->padded;
  float *next = moe_thread_scratch(a->ctx, thread, (size_t)(padded * BLOCK * 2 + rows * (padded * 2 + BLOCK + 5)) * sizeof(float));
  s->keys = next;
  s->values = s->keys + padded * BLOCK;
  s->q = s->values + padded * BLOCK;
  s->o = s->q + rows * padded;
  s->p = s->o + rows * padded;
  s->m = s->p + rows * BLOCK;
  s->l = s->m + rows;
  s->factor = s->l + rows;
  s->lo = (int32_t *)(s->factor + rows);
  s->hi = s->lo + rows;
}

/* Masks the scores of row r against the block at key `start` and puts the new maximum of the row in factor[r]. */
VFN void mask_row(tile_memory *s, ptrdiff_t r, ptrdiff_t start) {
  const ptrdiff_t from = s->lo[r] - start, to = s->hi[r] - start;
  float *p = s->p + r * BLOCK;
  v16 x[4];
  MOE_UNROLL
  for (int c = 0; c < 4; c++) x[c] = v_load(p + 16 * c);
  if (from > 0 || to < BLOCK) {
    MOE_UNROLL
    for (int c = 0; c < 4; c++) {
      x[c] = v_keep(x[c], (int)moe_min(16, moe_max(0, from - 16 * c)), (int)moe_min(16, moe_max(0, to - 16 * c)), -__builtin_inff());
      v_store(p + 16 * c, x[c]);
    }
  }
  const float largest = v_largest(v_max(v_max(x[0], x[1]), v_max(x[2], x[3])));
  s->factor[r] = s->m[r] > largest ? s->m[r] : largest;
}

/* Scores of row r become probabilities; the row's sum goes on. */
VFN void exp_row(tile_memory *s, ptrdiff_t r) {
  float *p = s->p + r * BLOCK;
  const v16 shift = v_set(s->m[r]);
  v16 x[4];
  MOE_UNROLL
  for (int c = 0; c < 4; c++) {
    x[c] = v_exp_bounded(v_sub(v_load(p + 16 * c), shift));
    v_store(p + 16 * c, x[c]);
  }
  s->l[r] = s->l[r] * s->factor[r] + v_sum(v_add(v_add(x[0], x[1]), v_add(x[2], x[3])));
}

/* Online softmax of rows r0..r1-1 over one block. A row that sees nothing of it, now or ever, is left with probabilities of no meaning. */
VFN void softmax_block(const attention_args *a, tile_memory *s, ptrdiff_t r0, ptrdiff_t r1, ptrdiff_t start) {
  for (ptrdiff_t r = r0; r < r1; r++) mask_row(s, r, start);
  for (ptrdiff_t r = r0; r < r1; r += 16) {
    const ptrdiff_t n = v_step(r1 - r);
    v16 largest = get(s->factor, r, n, MOE_F32), before = get(s->m, r, n, MOE_F32);
    put(s->m, r, n, largest, MOE_F32);
    put(s->factor, r, n, v_exp_bounded(v_sub(before, largest)), MOE_F32);
  }
  for (ptrdiff_t r = r0; r < r1; r++) exp_row(s, r);
  for (ptrdiff_t r = r0; r < r1; r++) {
    if (s->factor[r] == 1.0f) continue;
    float *o = s->o + r * a->padded;
    for (ptrdiff_t d = 0; d < a->padded; d += 16) v_store(o + d, v_mul(v_load(o + d), v_set(s->factor[r])));
  }
}

/* o[rows] += p . values over keys first..last-1 of the block, for rows of one register tile; each row over its own keys only. */
VFN void add_values(const attention_args *a, tile_memory *s, const float *values, ptrdiff_t value_stride, ptrdiff_t start, ptrdiff_t row, ptrdiff_t rows) {
  const ptrdiff_t padded = a->padded, vectors = padded / 16;
  ptrdiff_t from = 0, to = BLOCK;
  for (ptrdiff_t r = row; r < row + rows; r++) {
    from = moe_max(from, s->lo[r] - start);
    to = moe_min(to, s->hi[r] - start);
  }
  const int shared = from < to;
  if (!shared) from = to = BLOCK;
  for (ptrdiff_t r = row; r < row + rows; r++) {
    ptrdiff_t first = moe_max(0, s->lo[r] - start), last = moe_min(from, moe_min(BLOCK, s->hi[r] - start));
    if (first < last) tile_multiply(s->o + r * padded, padded, s->p + r * BLOCK + first, BLOCK, 1, values + first * value_stride, value_stride, 1, vectors, last - first, 1);
  }
  if (!shared) return;
  tile_multiply(s->o + row * padded, padded, s->p + row * BLOCK + from, BLOCK, 1, values + from * value_stride, value_stride, rows, vectors, to - from, 1);
  for (ptrdiff_t r = row; r < row + rows; r++) {
    ptrdiff_t last = moe_min(BLOCK, s->hi[r] - start);
    if (to < last) tile_multiply(s->o + r * padded, padded, s->p + r * BLOCK + to, BLOCK, 1, values + to * value_stride, value_stride, 1, vectors, last - to, 1);
  }
}

/* Where the block of keys that begins at row `start` lies. */
static ptrdiff_t row_of_block(const attention_args *a, ptrdiff_t start) { return a->blocks ? (ptrdiff_t)a->blocks[start / BLOCK] * BLOCK : start; }

/* Queries i0..i1-1 of the tile against the keys first..last-1 of the block that begins at key `start`. */
VFN void attend_block(const attention_args *a, tile_memory *s, ptrdiff_t head, ptrdiff_t start, ptrdiff_t first, ptrdiff_t last, ptrdiff_t i0, ptrdiff_t i1, int dtype) {
  const ptrdiff_t group = a->group, padded = a->padded, D = a->D, v0 = first / 16 * 16, row = row_of_block(a, start);
  const void *k = at(a->k, row * a->k_stride + head * D, dtype), *v = at(a->v, row * a->v_stride + head * D, dtype);
  /* With few rows memory is the limit, and rows strides apart are beyond the processor's own foresight. */
  if ((i1 - i0) * group <= 16) {
    prefetch_rows(at(v, first * a->v_stride, dtype), a->v_stride, last - first, D, dtype);
    if (start + 2 * BLOCK <= a->S) prefetch_rows(at(a->k, row_of_block(a, start + BLOCK) * a->k_stride + head * D, dtype), a->k_stride, BLOCK, D, dtype);
  }
  pack_transposed(s->keys, k, a->k_stride, first, last, D, dtype);
  const float *values = v;
  ptrdiff_t value_stride = a->v_stride;
  if (dtype == MOE_BF16 || padded != D) {
    pack_rows(s->values + first * padded, padded, at(v, first * a->v_stride, dtype), a->v_stride, last - first, D, 1.0f, dtype);
    values = s->values;
    value_stride = padded;
  }
  for (ptrdiff_t r0 = i0 * group; r0 < i1 * group; r0 += PART_ROWS) {
    const ptrdiff_t r1 = moe_min(i1 * group, r0 + PART_ROWS), from = moe_max(v0, s->lo[r0] - start) / 16 * 16, to = moe_min(last, s->hi[r1 - 1] - start);
    tile_multiply(s->p + r0 * BLOCK + from, BLOCK, s->q + r0 * padded, padded, 1, s->keys + from, BLOCK, r1 - r0, (to - from + 15) / 16, D, 0);
    softmax_block(a, s, r0, r1, start);
    for (ptrdiff_t r = r0; r < r1; r += TILE_ROWS) add_values(a, s, values, value_stride, start, r, moe_min(TILE_ROWS, r1 - r));
  }
}

VFN void finish_tile(const attention_args *a, const tile_memory *s, ptrdiff_t head, ptrdiff_t t0, ptrdiff_t queries, int dtype) {
  for (ptrdiff_t r = 0; r < queries * a->group; r++) {
    const ptrdiff_t t = t0 + r / a->group, h = head * a->group + r % a->group;
    const int empty = s->lo[r] >= s->hi[r];
    const v16 inverse = v_set(1.0f / s->l[r]);
    for (ptrdiff_t d = 0; d < a->D; d += 16) put(a->out, (t * a->Hq + h) * a->D + d, v_step(a->D - d), empty ? v_set(0) : v_mul(v_load(s->o + r * a->padded + d), inverse), dtype);
    if (a->lse) a->lse[h * a->T + t] = empty ? -__builtin_inff() : (float)((double)s->m[r] + moe_log((double)s->l[r]));
  }
}

VFN void attend_tile(const attention_args *a, tile_memory *s, ptrdiff_t head, ptrdiff_t t0, ptrdiff_t queries, int dtype) {
  const ptrdiff_t group = a->group, padded = a->padded, D = a->D, base = a->key_base[t0];
  ptrdiff_t first = a->S, last = 0;
  for (ptrdiff_t i = 0; i < queries; i++) {
    const ptrdiff_t hi = moe_min(a->S, a->key_end[t0 + i]), lo = a->window > 0 ? moe_max(base, hi - a->window) : base;
    for (ptrdiff_t r = i * group; r < (i + 1) * group; r++) {
      s->lo[r] = (int32_t)lo;
      s->hi[r] = (int32_t)hi;
      s->m[r] = -__builtin_inff();
      s->l[r] = 0.0f;
    }
    if (lo < hi) {
      first = moe_min(first, lo);
      last = moe_max(last, hi);
    }
    pack_rows(s->q + i * group * padded, padded, at(a->q, (t0 + i) * a->q_stride + head * group * D, dtype), D, group, D, a->scale, dtype);
  }
  __builtin_memset(s->o, 0, (size_t)(queries * group * padded) * sizeof(float));
  ptrdiff_t i0 = 0, i1 = 0;
  for (ptrdiff_t start = base + (first - base) / BLOCK * BLOCK; start < last; start += BLOCK) {
    while (i0 < queries && s->hi[i0 * group] <= start) i0++;
    while (i1 < queries && s->lo[i1 * group] < start + BLOCK) i1++;
    if (i0 < i1) attend_block(a, s, head, start, moe_max(0, s->lo[i0 * group] - start), moe_min(BLOCK, s->hi[(i1 - 1) * group] - start), i0, i1, dtype);
  }
  finish_tile(a, s, head, t0, queries, dtype);
}

static void attention_task(void *argument, ptrdiff_t chunk, int thread) {
  const attention_args *a = argument;
  /* Late tiles see most keys: they go first, so that the last task is a short one. */
  const ptrdiff_t tile = a->num_tiles - 1 - chunk / a->Hkv, head = chunk % a->Hkv, t0 = a->tiles[tile], queries = a->tiles[tile + 1] - t0;
  tile_memory s;
  tile_memory_init(&s, a, thread);
  if (a->dtype == MOE_BF16) attend_tile(a, &s, head, t0, queries, MOE_BF16);
  else attend_tile(a, &s, head, t0, queries, MOE_F32);
}

static void attention_run(attention_args *a) {
  if (a->T <= 0 || a->Hq <= 0 || a->Hkv <= 0 || a->D <= 0) return;
  a->group = a->Hq / a->Hkv;
  a->padded = (a->D + 15) / 16 * 16;
  a->tiles = moe_scratch(a->ctx, 0, (size_t)(a->T + 1) * sizeof(ptrdiff_t));
  const ptrdiff_t most = queries_per_tile(a->group);
  for (ptrdiff_t t = 0, begin = 0; t <= a->T; t++)
    if (t == 0 || t == a->T || t - begin == most || a->key_base[t] != a->key_base[t - 1]) a->tiles[t == a->T ? a->num_tiles : a->num_tiles++] = begin = t;
  moe_parallel_for(a->ctx, a->num_tiles * a->Hkv, attention_task, a);
}

/*
 * out[T,Hq,D] (dtype), lse[Hq,T] (f32, may be 0) from q[T,Hq,D], k and v[S,Hkv,D] (dtype, rows strides apart, elements),
 * keyBase and keyEnd i32[T]; window 0 for none. Hq is a multiple of Hkv. A query without keys: zeros, lse -inf.
 */
void MOE_KERNEL(attention_forward)(moe_context *ctx, void *out, float *lse, const void *q, const void *k, const void *v, const int32_t *key_base, const int32_t *key_end, ptrdiff_t T, ptrdiff_t S, ptrdiff_t Hq, ptrdiff_t Hkv, ptrdiff_t D, ptrdiff_t q_stride, ptrdiff_t k_stride, ptrdiff_t v_stride, ptrdiff_t window, float scale, int dtype) {
  attention_args a = {ctx, out, lse, q, k, v, key_base, key_end, 0, T, S, Hq, Hkv, D, q_stride, k_stride, v_stride, window, scale, dtype, 0, 0, 0, 0};
  attention_run(&a);
}

/*
 * The same with k and v[P,Hkv,D] in blocks of 64 rows: blocks i32[S / 64] says which. keyBase are multiples of 64.
 */
void MOE_KERNEL(attention_paged_forward)(moe_context *ctx, void *out, const void *q, const void *k, const void *v, const int32_t *key_base, const int32_t *key_end, const int32_t *blocks, ptrdiff_t T, ptrdiff_t S, ptrdiff_t P, ptrdiff_t Hq, ptrdiff_t Hkv, ptrdiff_t D, ptrdiff_t q_stride, ptrdiff_t k_stride, ptrdiff_t v_stride, ptrdiff_t window, float scale, int dtype) {
  (void)P;
  attention_args a = {ctx, out, 0, q, k, v, key_base, key_end, blocks, T, S, Hq, Hkv, D, q_stride, k_stride, v_stride, window, scale, dtype, 0, 0, 0, 0};
  attention_run(&a);
}
