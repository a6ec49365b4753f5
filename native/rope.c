/*
 * Rotary position embedding (arXiv 2104.09864) with the "neox" pairing: element j of a head turns with element j + half.
 * Elements from 2 * half on are left alone (partial rotary).
 */
#include "moe_math.h"

typedef struct {
  float *table;
  const float *inv_freq;
  ptrdiff_t P, half, rows;
  float scale;
} table_args;

enum { TABLE_CHUNK = 4096 };

static void rope_table_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const table_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->P, (chunk + 1) * a->rows);
  for (ptrdiff_t p = chunk * a->rows; p < end; p++)
    for (ptrdiff_t j = 0; j < a->half; j++) {
      double sine, cosine;
      moe_sincos((double)((float)p * a->inv_freq[j]), &sine, &cosine);
      float *entry = a->table + (p * a->half + j) * 2;
      entry[0] = (float)cosine * a->scale;
      entry[1] = (float)sine * a->scale;
    }
}

/* table[P,half,2] (f32: cos, sin) of the angle float(p) * inv_freq[half], times attention_scale. */
void MOE_KERNEL(rope_table)(moe_context *ctx, float *table, const float *inv_freq, ptrdiff_t P, ptrdiff_t half, float attention_scale) {
  table_args a = {table, inv_freq, P, half, 1, attention_scale};
  if (P <= 0 || half <= 0) return;
  a.rows = moe_max(1, TABLE_CHUNK / half);
  moe_parallel_for(ctx, moe_chunks(P, a.rows), rope_table_chunk, &a);
}

typedef struct {
  moe_context *ctx;
  void *x;
  const float *table;
  const int32_t *positions;
  ptrdiff_t M, heads, head_dim, row_stride, half, rows;
  int inverse, dtype;
} rope_args;

VFN void rope_row(const rope_args *a, float *cosine, float *sine, ptrdiff_t m, int dtype) {
  const ptrdiff_t half = a->half;
  const float *entry = a->table + a->positions[m] * half * 2;
  for (ptrdiff_t j = 0; j < half; j++) {
    cosine[j] = entry[2 * j];
    sine[j] = a->inverse ? -entry[2 * j + 1] : entry[2 * j + 1];
  }
  for (ptrdiff_t h = 0; h < a->heads; h++) {
    void *x = at_out(a->x, m * a->row_stride + h * a->head_dim, dtype);
    for (ptrdiff_t j = 0; j < half; j += 16) {
      ptrdiff_t n = v_step(half - j);
      v16 c = get(cosine, j, n, MOE_F32), s = get(sine, j, n, MOE_F32), x0 = get(x, j, n, dtype), x1 = get(x, j + half, n, dtype);
      put(x, j, n, v_sub(v_mul(x0, c), v_mul(x1, s)), dtype);
      put(x, j + half, n, v_add(v_mul(x1, c), v_mul(x0, s)), dtype);
    }
  }
}

static void rope_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const rope_args *a = argument;
  float *cosine = moe_thread_scratch(a->ctx, thread, (size_t)a->half * 2 * sizeof(float));
  ptrdiff_t end = moe_min(a->M, (chunk + 1) * a->rows);
  if (a->dtype == MOE_BF16)
    for (ptrdiff_t m = chunk * a->rows; m < end; m++) rope_row(a, cosine, cosine + a->half, m, MOE_BF16);
  else
    for (ptrdiff_t m = chunk * a->rows; m < end; m++) rope_row(a, cosine, cosine + a->half, m, MOE_F32);
}

/* x (dtype, in place): M rows row_stride elements apart, each heads x head_dim; table[P,half,2], positions i32[M]. inverse turns back. */
void MOE_KERNEL(rope_apply)(moe_context *ctx, void *x, const float *table, const int32_t *positions, ptrdiff_t M, ptrdiff_t heads, ptrdiff_t head_dim, ptrdiff_t row_stride, ptrdiff_t half, int inverse, int dtype) {
  rope_args a = {ctx, x, table, positions, M, heads, head_dim, row_stride, half, 1, inverse, dtype};
  if (M <= 0 || heads <= 0 || half <= 0) return;
  a.rows = moe_max(1, 16384 / (heads * head_dim));
  moe_parallel_for(ctx, moe_chunks(M, a.rows), rope_chunk, &a);
}
