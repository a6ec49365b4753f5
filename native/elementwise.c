/*
 * Elementwise operations, copies, conversions and two reductions over whole arrays. n elements; work is cut in chunks of CHUNK.
 */
#include "vec.h"

enum { CHUNK = 16384, SUM_CHUNK = 4096 };

typedef struct {
  void *out;
  const void *a, *b;
  ptrdiff_t n, N;
  float s;
  int dtype, x_dtype;
} span_args;

/* Defines <name>_chunk from a span function (const span_args *, first, end, dtype). */
#define SPAN_CHUNK(name) \
  static void name##_chunk(void *argument, ptrdiff_t chunk, int thread) { \
    const span_args *a = argument; \
    ptrdiff_t end = moe_min(a->n, (chunk + 1) * CHUNK); \
    (void)thread; \
    if (a->dtype == MOE_BF16) name##_span(a, chunk * CHUNK, end, MOE_BF16); \
    else name##_span(a, chunk * CHUNK, end, MOE_F32); \
  }

VFN void add_span(const span_args *a, ptrdiff_t i, ptrdiff_t end, int dtype) {
  for (; i < end; i += 16) {
    ptrdiff_t n = v_step(end - i);
    put(a->out, i, n, v_add(get(a->a, i, n, dtype), get(a->b, i, n, dtype)), dtype);
  }
}
SPAN_CHUNK(add)

/* out[n] = a[n] + b[n]; out may be a or b. */
void MOE_KERNEL(add)(moe_context *ctx, void *out, const void *a, const void *b, ptrdiff_t n, int dtype) {
  span_args s = {.out = out, .a = a, .b = b, .n = n, .dtype = dtype};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), add_chunk, &s);
}

VFN void scale_span(const span_args *a, ptrdiff_t i, ptrdiff_t end, int dtype) {
  for (; i < end; i += 16) {
    ptrdiff_t n = v_step(end - i);
    put(a->out, i, n, v_mul(get(a->a, i, n, dtype), v_set(a->s)), dtype);
  }
}
SPAN_CHUNK(scale)

/* out[n] = x[n] * s; out may be x. */
void MOE_KERNEL(scale)(moe_context *ctx, void *out, const void *x, ptrdiff_t n, float s, int dtype) {
  span_args a = {.out = out, .a = x, .n = n, .s = s, .dtype = dtype};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), scale_chunk, &a);
}

VFN void accumulate_span(const span_args *a, ptrdiff_t i, ptrdiff_t end, int dtype) {
  for (; i < end; i += 16) {
    ptrdiff_t n = v_step(end - i);
    put(a->out, i, n, v_fma(get(a->a, i, n, dtype), v_set(a->s), get(a->out, i, n, MOE_F32)), MOE_F32);
  }
}
SPAN_CHUNK(accumulate)

/* out[n] (f32) += x[n] (dtype) * s. */
void MOE_KERNEL(accumulate)(moe_context *ctx, float *out, const void *x, ptrdiff_t n, float s, int dtype) {
  span_args a = {.out = out, .a = x, .n = n, .s = s, .dtype = dtype};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), accumulate_chunk, &a);
}

/* Rows first..end-1. */
VFN void add_bias_rows(const span_args *a, ptrdiff_t first, ptrdiff_t end, int dtype) {
  for (ptrdiff_t m = first; m < end; m++) {
    void *x = at_out(a->out, m * a->N, dtype);
    for (ptrdiff_t i = 0; i < a->N; i += 16) {
      ptrdiff_t n = v_step(a->N - i);
      put(x, i, n, v_add(get(x, i, n, dtype), get(a->b, i, n, MOE_F32)), dtype);
    }
  }
}

static void add_bias_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const span_args *a = argument;
  ptrdiff_t rows = moe_max(1, CHUNK / a->N), end = moe_min(a->n, (chunk + 1) * rows);
  (void)thread;
  if (a->dtype == MOE_BF16) add_bias_rows(a, chunk * rows, end, MOE_BF16);
  else add_bias_rows(a, chunk * rows, end, MOE_F32);
}

/* x[M,N] (dtype, in place) += bias[N] (f32). */
void MOE_KERNEL(add_bias)(moe_context *ctx, void *x, const float *bias, ptrdiff_t M, ptrdiff_t N, int dtype) {
  span_args a = {.out = x, .b = bias, .n = M, .N = N, .dtype = dtype};
  if (M > 0 && N > 0) moe_parallel_for(ctx, moe_chunks(M, moe_max(1, CHUNK / N)), add_bias_chunk, &a);
}

/* ---- conversions: one element each, branch-free, for the compiler to vectorize ---- */

VFN float from_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  uint32_t normal = (magnitude << 13) + 0x38000000u;                      /* exponent bias 15 -> 127 */
  uint32_t special = (magnitude << 13) | 0x7f800000u;                     /* infinity, NaN (made quiet below) */
  uint32_t tiny = moe_f32_to_bits((float)(int32_t)magnitude * 0x1p-24f);  /* zero and subnormals: exact */
  uint32_t u = magnitude < 0x400u ? tiny : magnitude >= 0x7c00u ? special : normal;
  return moe_bits_to_f32(sign | u | (magnitude > 0x7c00u ? 0x400000u : 0u));
}

VFN uint16_t to_f16(float f) {
  uint32_t u = moe_f32_to_bits(f), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  /* Below 2^-14: adding 0.5 rounds at 2^-24, the spacing of subnormals, to nearest even. */
  uint32_t tiny = moe_f32_to_bits(moe_bits_to_f32(magnitude < 0x38800000u ? magnitude : 0u) + 0.5f) - 0x3f000000u;
  uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  uint32_t h = magnitude < 0x38800000u ? tiny : magnitude < 0x477ff000u ? normal : magnitude <= 0x7f800000u ? 0x7c00u : nan;
  return (uint16_t)(sign | h);
}

/* Branch-free twin of moe_to_bf16. */
VFN moe_bf16 round_bf16(float f) {
  uint32_t u = moe_f32_to_bits(f), rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
  return (moe_bf16)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

#define CAST_LOOP(from, to, read, write) do { \
    const from *restrict x = a->a; \
    to *restrict out = a->out; \
    for (ptrdiff_t i = first; i < end; i++) out[i] = (to)write(read(x[i])); } while (0)
#define SAME(x) (x)

static void cast_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const span_args *a = argument;
  ptrdiff_t first = chunk * CHUNK, end = moe_min(a->n, first + CHUNK), bytes = moe_element_bytes(a->dtype);
  (void)thread;
  if (a->dtype == a->x_dtype) __builtin_memmove((char *)a->out + first * bytes, (const char *)a->a + first * bytes, (size_t)((end - first) * bytes));
  else if (a->dtype == MOE_F32 && a->x_dtype == MOE_BF16) CAST_LOOP(moe_bf16, float, moe_from_bf16, SAME);
  else if (a->dtype == MOE_F32) CAST_LOOP(uint16_t, float, from_f16, SAME);
  else if (a->dtype == MOE_BF16 && a->x_dtype == MOE_F32) CAST_LOOP(float, moe_bf16, SAME, round_bf16);
  else if (a->dtype == MOE_BF16) CAST_LOOP(uint16_t, moe_bf16, from_f16, round_bf16);
  else if (a->x_dtype == MOE_F32) CAST_LOOP(float, uint16_t, SAME, to_f16);
  else CAST_LOOP(moe_bf16, uint16_t, moe_from_bf16, to_f16);
}

/* out[n] (out_dtype) = x[n] (x_dtype), of f32, bf16, f16: nearest even, subnormals exact, overflow to infinity, NaN kept quiet. */
void MOE_KERNEL(cast)(moe_context *ctx, void *out, const void *x, ptrdiff_t n, int out_dtype, int x_dtype) {
  span_args a = {.out = out, .a = x, .n = n, .dtype = out_dtype, .x_dtype = x_dtype};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), cast_chunk, &a);
}

/* ---- fills and copies ---- */

static void fill_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const span_args *a = argument;
  float *out = a->out;
  ptrdiff_t end = moe_min(a->n, (chunk + 1) * CHUNK);
  (void)thread;
  for (ptrdiff_t i = chunk * CHUNK; i < end; i++) out[i] = a->s;
}

/* out[n] = value. */
void MOE_KERNEL(fill_f32)(moe_context *ctx, float *out, ptrdiff_t n, float value) {
  span_args a = {.out = out, .n = n, .s = value};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), fill_chunk, &a);
}

typedef struct {
  char *out;
  const char *x;
  ptrdiff_t M, row_bytes, out_stride, x_stride, rows;
} copy_args;

static void copy_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const copy_args *a = argument;
  ptrdiff_t end = moe_min(a->M, (chunk + 1) * a->rows);
  (void)thread;
  for (ptrdiff_t m = chunk * a->rows; m < end; m++) __builtin_memcpy(a->out + m * a->out_stride, a->x + m * a->x_stride, (size_t)a->row_bytes);
}

/* Copies M rows of row_bytes bytes, out_stride and x_stride bytes apart; the buffers do not overlap. */
void MOE_KERNEL(copy_rows)(moe_context *ctx, void *out, const void *x, ptrdiff_t M, ptrdiff_t row_bytes, ptrdiff_t out_stride, ptrdiff_t x_stride) {
  copy_args a = {out, x, M, row_bytes, out_stride, x_stride, 1};
  if (M <= 0 || row_bytes <= 0) return;
  a.rows = moe_max(1, 65536 / row_bytes);
  moe_parallel_for(ctx, moe_chunks(M, a.rows), copy_chunk, &a);
}

/* ---- reductions ---- */

static void sum_squares_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const span_args *a = argument;
  const float *x = a->a;
  double *partial = a->out, sum[16] = {0};
  ptrdiff_t i = chunk * SUM_CHUNK, end = moe_min(a->n, i + SUM_CHUNK);
  (void)thread;
  for (; i + 16 <= end; i += 16)
    for (int j = 0; j < 16; j++) sum[j] += (double)x[i + j] * (double)x[i + j];
  for (int j = 0; i < end; i++, j++) sum[j] += (double)x[i] * (double)x[i];
  for (int width = 8; width > 0; width /= 2)
    for (int j = 0; j < width; j++) sum[j] += sum[j + width];
  partial[chunk] = sum[0];
}

/* out (one f64) = sum of x[n]^2: f64 sums of chunks of 4096 (16 lanes, then a fixed tree), added in order. */
void MOE_KERNEL(sum_squares)(moe_context *ctx, double *out, const float *x, ptrdiff_t n) {
  ptrdiff_t chunks = moe_chunks(n, SUM_CHUNK);
  double *partial = moe_scratch(ctx, 0, (size_t)chunks * sizeof(double) + 64), sum = 0.0;
  span_args a = {.out = partial, .a = x, .n = n};
  moe_parallel_for(ctx, chunks, sum_squares_chunk, &a);
  for (ptrdiff_t c = 0; c < chunks; c++) sum += partial[c];
  *out = sum;
}

static void all_finite_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const span_args *a = argument;
  const float *x = a->a;
  int32_t *finite = a->out, bad = 0;
  ptrdiff_t end = moe_min(a->n, (chunk + 1) * CHUNK);
  (void)thread;
  for (ptrdiff_t i = chunk * CHUNK; i < end; i++) bad |= (moe_f32_to_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
  finite[chunk] = !bad;
}

/* out (one i32) = 1 if every element of x[n] (f32) is finite, else 0. */
void MOE_KERNEL(all_finite)(moe_context *ctx, int32_t *out, const float *x, ptrdiff_t n) {
  ptrdiff_t chunks = moe_chunks(n, CHUNK);
  int32_t *finite = moe_scratch(ctx, 0, (size_t)chunks * sizeof(int32_t) + 64), all = 1;
  span_args a = {.out = finite, .a = x, .n = n};
  moe_parallel_for(ctx, chunks, all_finite_chunk, &a);
  for (ptrdiff_t c = 0; c < chunks; c++) all &= finite[c];
  *out = all;
}
