/*
 * Rows to experts and back: the plan (a stable counting sort with capacity), the gradient of gathering, the weighted combination.
 * Legend: T tokens, k choices each, E experts, R = offsets[E] rows sorted by expert, H features.
 * slotRow[t,j] is the row of token t's choice j, or -1 where it was dropped. Tokens form G groups, each with capacities of its own.
 */
#include "vec.h"

/* f32 -> u32 that orders like the floats, NaN as infinity. */
static uint32_t ordered(float f) {
  uint32_t u = f == f ? moe_f32_to_bits(f) : 0x7f800000u;
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/* The value that would be at `rank` if keys[n] were sorted ascending; keys are all different and are reordered. */
static uint64_t select_rank(uint64_t *keys, ptrdiff_t n, ptrdiff_t rank) {
  ptrdiff_t low = 0, high = n - 1;
  while (low < high) {
    uint64_t pivot = keys[low + (high - low) / 2];
    ptrdiff_t i = low, j = high;
    while (i <= j) {
      while (keys[i] < pivot) i++;
      while (keys[j] > pivot) j--;
      if (i > j) break;
      uint64_t t = keys[i];
      keys[i++] = keys[j];
      keys[j--] = t;
    }
    if (rank <= j) high = j;
    else if (rank >= i) low = i;
    else break;
  }
  return keys[rank];
}

/* Smaller for what is kept first: the larger weight, then the lower slot. */
static uint64_t drop_key(const float *weights, ptrdiff_t slot) { return (uint64_t)(~ordered(weights[slot])) << 32 | (uint64_t)slot; }

/* Marks with -1 the assignments (slots first..end-1) of each expert beyond `capacity`: all but the largest weights, ties to the lower
   token. counts[E] of these slots; room for end - first keys and for E thresholds and positions. */
static void drop_smallest(int32_t *slot_row, uint64_t *keys, uint64_t *last, const int32_t *indices, const float *weights, ptrdiff_t first, ptrdiff_t end, const int32_t *counts, ptrdiff_t E, ptrdiff_t capacity) {
  ptrdiff_t total = 0;
  uint64_t *next = last + E;
  for (ptrdiff_t e = 0; e < E; e++) {
    next[e] = (uint64_t)total;
    total += counts[e];
  }
  for (ptrdiff_t i = first; i < end; i++)
    if (slot_row[i] >= 0) keys[next[indices[i]]++] = drop_key(weights, i);
  for (ptrdiff_t e = 0; e < E; e++)
    last[e] = counts[e] <= capacity ? UINT64_MAX : capacity == 0 ? 0 : select_rank(keys + next[e] - counts[e], counts[e], capacity - 1);
  for (ptrdiff_t i = first; i < end; i++)
    if (slot_row[i] >= 0 && (capacity == 0 || drop_key(weights, i) > last[indices[i]])) slot_row[i] = -1;
}

/* counts[E] of slots first..end-1; slot_row 0 where the index is an expert, otherwise -1. */
static void count_slots(int32_t *counts, int32_t *slot_row, const int32_t *indices, ptrdiff_t first, ptrdiff_t end, ptrdiff_t E) {
  for (ptrdiff_t e = 0; e < E; e++) counts[e] = 0;
  for (ptrdiff_t i = first; i < end; i++) {
    int valid = indices[i] >= 0 && indices[i] < E;
    slot_row[i] = valid ? 0 : -1;
    if (valid) counts[indices[i]]++;
  }
}

/*
 * offsets i32[E+1], rowToken i32[R], slotRow i32[T,k], counts i32[G,E] (before dropping) from indices i32[T,k] and groupOffsets
 * i32[G+1]; weights f32[T,k] only with by_probability. capacities i32[G], or 0: dropless; an expert keeps capacities[g] rows of group
 * g, the first tokens or the largest weights; kept rows stay in token order. pad: exactly capacities[g] rows, the rest of them
 * with rowToken -1. An index outside 0..E-1 is no assignment.
 */
void MOE_KERNEL(dispatch_plan)(moe_context *ctx, int32_t *offsets, int32_t *row_token, int32_t *slot_row, int32_t *counts, const int32_t *indices, const float *weights, const int32_t *group_offsets, const int32_t *capacities, ptrdiff_t T, ptrdiff_t k, ptrdiff_t E, ptrdiff_t G, int by_probability, int pad) {
  uint64_t *keys = moe_scratch(ctx, 0, (size_t)(T * k) * sizeof(uint64_t) + 64);
  uint64_t *last = moe_scratch(ctx, 1, (size_t)E * 2 * sizeof(uint64_t) + 64);
  int32_t *next = moe_scratch(ctx, 2, (size_t)E * 2 * sizeof(int32_t) + 64), *limit = next + E;
  for (ptrdiff_t e = 0; e <= E; e++) offsets[e] = 0;
  for (ptrdiff_t g = 0; g < G; g++) {
    int32_t *of_group = counts + g * E;
    const ptrdiff_t first = group_offsets[g] * k, end = group_offsets[g + 1] * k;
    count_slots(of_group, slot_row, indices, first, end, E);
    for (ptrdiff_t e = 0; e < E; e++) offsets[e + 1] += !capacities || (!pad && of_group[e] < capacities[g]) ? of_group[e] : capacities[g];
    if (capacities && by_probability) drop_smallest(slot_row, keys, last, indices, weights, first, end, of_group, E, capacities[g]);
  }
  for (ptrdiff_t e = 0; e < E; e++) offsets[e + 1] += offsets[e];
  for (ptrdiff_t r = 0; pad && r < offsets[E]; r++) row_token[r] = -1;
  for (ptrdiff_t e = 0; e < E; e++) next[e] = offsets[e];
  for (ptrdiff_t g = 0; g < G; g++) {
    for (ptrdiff_t e = 0; e < E; e++) limit[e] = next[e] + (!capacities || (!pad && counts[g * E + e] < capacities[g]) ? counts[g * E + e] : capacities[g]);
    for (ptrdiff_t i = group_offsets[g] * k; i < group_offsets[g + 1] * k; i++) {
      if (slot_row[i] < 0) continue;
      int32_t e = indices[i];
      slot_row[i] = next[e] < limit[e] ? next[e]++ : -1;
      if (slot_row[i] >= 0) row_token[slot_row[i]] = (int32_t)(i / k);
    }
    for (ptrdiff_t e = 0; e < E; e++) next[e] = limit[e];
  }
}

typedef struct {
  void *out;
  float *d_weights;
  const void *x, *y;
  const float *weights;
  const int32_t *slot_row;
  ptrdiff_t T, k, H, tokens;
  int dtype, accumulate;
} rows_args;

/* out[t] (+)= sum over j of weights[t,j] (1 without weights) * x[slotRow[t,j]], j ascending. */
VFN void sum_slots(const rows_args *a, ptrdiff_t t, int dtype) {
  const int32_t *rows = a->slot_row + t * a->k;
  void *out = at_out(a->out, t * a->H, dtype);
  for (ptrdiff_t i = 0; i < a->H; i += 16) {
    ptrdiff_t n = v_step(a->H - i);
    v16 sum = v_set(0);
    for (ptrdiff_t j = 0; j < a->k; j++) {
      if (rows[j] < 0) continue;
      v16 x = get(at(a->x, rows[j] * a->H, dtype), i, n, dtype);
      sum = a->weights ? v_fma(v_set(a->weights[t * a->k + j]), x, sum) : v_add(sum, x);
    }
    if (a->accumulate) sum = v_add(sum, get(out, i, n, dtype));
    put(out, i, n, sum, dtype);
  }
}

static void sum_slots_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const rows_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * a->tokens);
  if (a->dtype == MOE_BF16)
    for (ptrdiff_t t = chunk * a->tokens; t < end; t++) sum_slots(a, t, MOE_BF16);
  else
    for (ptrdiff_t t = chunk * a->tokens; t < end; t++) sum_slots(a, t, MOE_F32);
}

static ptrdiff_t tokens_per_chunk(ptrdiff_t k, ptrdiff_t H) { return moe_max(1, 16384 / moe_max(1, k * H)); }

/* dx[T,H] (dtype; overwritten or added to) = sum over j of dOut[slotRow[t,j],H]: the backward of gathering rows by rowToken. */
void MOE_KERNEL(permute_backward)(moe_context *ctx, void *dx, const void *d_out, const int32_t *slot_row, ptrdiff_t T, ptrdiff_t k, ptrdiff_t H, int dtype, int accumulate) {
  rows_args a = {.out = dx, .x = d_out, .slot_row = slot_row, .T = T, .k = k, .H = H, .tokens = tokens_per_chunk(k, H), .dtype = dtype, .accumulate = accumulate};
  moe_parallel_for(ctx, moe_chunks(T, a.tokens), sum_slots_chunk, &a);
}

/* out[T,H] (dtype, overwritten) = sum over j of weights[t,j] * y[slotRow[t,j],H]. */
void MOE_KERNEL(combine_forward)(moe_context *ctx, void *out, const void *y, const int32_t *slot_row, const float *weights, ptrdiff_t T, ptrdiff_t k, ptrdiff_t H, int dtype) {
  rows_args a = {.out = out, .x = y, .slot_row = slot_row, .weights = weights, .T = T, .k = k, .H = H, .tokens = tokens_per_chunk(k, H), .dtype = dtype};
  moe_parallel_for(ctx, moe_chunks(T, a.tokens), sum_slots_chunk, &a);
}

/* One assignment: dy[row] = weight * dOut[t]; returns dot(dOut[t], y[row]), two chains in turn. */
VFN float combine_backward_row(const rows_args *a, ptrdiff_t t, ptrdiff_t row, float weight, int dtype) {
  const void *g = at(a->x, t * a->H, dtype), *y = at(a->y, row * a->H, dtype);
  void *dy = at_out(a->out, row * a->H, dtype);
  v16 even = v_set(0), odd = v_set(0), w = v_set(weight);
  for (ptrdiff_t i = 0; i < a->H; i += 16) {
    ptrdiff_t n = v_step(a->H - i);
    v16 d = get(g, i, n, dtype), next = v_fma(d, get(y, i, n, dtype), odd);
    put(dy, i, n, v_mul(w, d), dtype);
    odd = even;
    even = next;
  }
  return v_sum(v_add(even, odd));
}

static void combine_backward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const rows_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * a->tokens);
  for (ptrdiff_t s = chunk * a->tokens * a->k; s < end * a->k; s++) {
    ptrdiff_t row = a->slot_row[s];
    if (row < 0) a->d_weights[s] = 0.0f;
    else if (a->dtype == MOE_BF16) a->d_weights[s] = combine_backward_row(a, s / a->k, row, a->weights[s], MOE_BF16);
    else a->d_weights[s] = combine_backward_row(a, s / a->k, row, a->weights[s], MOE_F32);
  }
}

/* dy[R,H] (dtype; rows of no assignment are not touched) and dWeights[T,k] (f32) overwritten, from dOut[T,H] and y[R,H] (dtype), weights[T,k]. dy may be y. */
void MOE_KERNEL(combine_backward)(moe_context *ctx, void *dy, float *d_weights, const void *d_out, const void *y, const int32_t *slot_row, const float *weights, ptrdiff_t T, ptrdiff_t k, ptrdiff_t H, int dtype) {
  rows_args a = {.out = dy, .d_weights = d_weights, .x = d_out, .y = y, .slot_row = slot_row, .weights = weights, .T = T, .k = k, .H = H, .tokens = tokens_per_chunk(k, H), .dtype = dtype};
  moe_parallel_for(ctx, moe_chunks(T, a.tokens), combine_backward_chunk, &a);
}

typedef struct {
  char *out;
  const char *x;
  const int32_t *index;
  ptrdiff_t R, row_bytes, rows;
} gather_args;

static void gather_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const gather_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->R, (chunk + 1) * a->rows);
  for (ptrdiff_t r = chunk * a->rows; r < end; r++) {
    if (a->index[r] < 0) __builtin_memset(a->out + r * a->row_bytes, 0, (size_t)a->row_bytes);
    else __builtin_memcpy(a->out + r * a->row_bytes, a->x + a->index[r] * a->row_bytes, (size_t)a->row_bytes);
  }
}

/* out[r] = x[index[r]], zeros where index[r] < 0: R rows of row_bytes bytes. */
void MOE_KERNEL(gather_rows)(moe_context *ctx, void *out, const void *x, const int32_t *index, ptrdiff_t R, ptrdiff_t row_bytes) {
  gather_args a = {out, x, index, R, row_bytes, 1};
  if (R <= 0 || row_bytes <= 0) return;
  a.rows = moe_max(1, 65536 / row_bytes);
  moe_parallel_for(ctx, moe_chunks(R, a.rows), gather_chunk, &a);
}
