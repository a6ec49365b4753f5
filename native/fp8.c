/*
 * Conversions between floats and the 8-bit floats E4M3 and E5M2 (src/util/fp8.ts; fp8.h), with a factor on the side of the floats.
 * n elements, cut in chunks. A code is a function of its element alone.
 */
#include "fp8.h"

enum { FP8_CHUNK = 16384 };

typedef struct {
  void *out;
  const void *x;
  ptrdiff_t n;
  float factor;
  int type, format;
} fp8_job;

MOE_INLINE void encode_span(const fp8_job *job, ptrdiff_t i, ptrdiff_t end, const int type, const int format) {
  uint8_t *out = job->out;
  for (; i < end; i++) out[i] = fp8_encode(load_as(job->x, i, type) / job->factor, format);
}

static void encode_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const fp8_job *job = argument;
  const ptrdiff_t first = chunk * FP8_CHUNK, end = first + FP8_CHUNK < job->n ? first + FP8_CHUNK : job->n;
  (void)thread;
  if (job->format == MOE_E5M2) encode_span(job, first, end, job->type, MOE_E5M2);
  else if (job->type == MOE_F32) encode_span(job, first, end, MOE_F32, MOE_E4M3);
  else encode_span(job, first, end, MOE_BF16, MOE_E4M3);
}

/* out[n] (codes) = nearest to x (f32 or bf16) / divisor, ties to even, saturating, NaN kept. */
void MOE_KERNEL(cast_to_fp8)(moe_context *ctx, uint8_t *out, const void *x, ptrdiff_t n, float divisor, int xType, int format) {
  fp8_job job = {out, x, n, divisor, xType, format};
  moe_parallel_for(ctx, (n + FP8_CHUNK - 1) / FP8_CHUNK, encode_chunk, &job);
}

static void decode_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const fp8_job *job = argument;
  const uint8_t *x = job->x;
  ptrdiff_t i = chunk * FP8_CHUNK;
  const ptrdiff_t end = i + FP8_CHUNK < job->n ? i + FP8_CHUNK : job->n;
  const vf factor = v_set1(job->factor * FP8_UNIT);
  (void)thread;
  if (job->format == MOE_E4M3) {
    for (; i + VL <= end; i += VL) v_store_as(job->out, i, job->type, v_mul(v_load_codes(x + i), factor));
  }
  for (; i < end; i++) store_as(job->out, i, job->type, fp8_decode(x[i], job->format) * job->factor);
}

/* out[n] (f32 or bf16) = value of x (codes) * factor. */
void MOE_KERNEL(cast_from_fp8)(moe_context *ctx, void *out, const uint8_t *x, ptrdiff_t n, float factor, int outType, int format) {
  fp8_job job = {out, x, n, factor, outType, format};
  moe_parallel_for(ctx, (n + FP8_CHUNK - 1) / FP8_CHUNK, decode_chunk, &job);
}

typedef struct {
  float *out;
  const void *x;
  ptrdiff_t K, group;
  int type;
} fp8_rows_job;

/*
 * One group of a row. E4M3 has 3 bits below the leading one, and steps of 2^-9 below 2^-6: added to 1.5 * 2^20 times its own power of two (at
 * least that of 2^-6) a float keeps those and is rounded to nearest even, and taking the sum's large part away again is exact.
 */
MOE_INLINE void round_group(float *out, const void *x, ptrdiff_t first, ptrdiff_t n, const int type) {
  uint32_t largest = 0;
  for (ptrdiff_t i = 0; i < n; i++) {
    const float value = load_as(x, first + i, type);
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float most, scale;
  __builtin_memcpy(&most, &largest, 4);
  scale = most / 448.0f;
  if (scale < 0x1p-126f) scale = most == 0.0f ? 1.0f : 0x1p-126f;
  if (largest >= 0x7f800000u) scale = __builtin_nanf("");
  for (ptrdiff_t i = 0; i < n; i++) {
    const float value = load_as(x, first + i, type) / scale;
    uint32_t power;
    float magic;
    __builtin_memcpy(&power, &value, 4);
    power &= 0x7f800000u;
    power = power < (121u << 23) ? 121u << 23 : power;
    power = (power + (20u << 23)) | 0x400000u;
    __builtin_memcpy(&magic, &power, 4);
    out[first + i] = ((value + magic) - magic) * scale;
  }
}

static void round_row(void *argument, ptrdiff_t row, int thread) {
  const fp8_rows_job *job = argument;
  (void)thread;
  for (ptrdiff_t k = 0; k < job->K; k += job->group) {
    const ptrdiff_t n = k + job->group < job->K ? job->group : job->K - k;
    if (job->type == MOE_F32) round_group(job->out, job->x, row * job->K + k, n, MOE_F32);
    else round_group(job->out, job->x, row * job->K + k, n, MOE_BF16);
  }
}

/*
 * out[M,K] (f32) = x (f32 or bf16) as E4M3 with dynamic scales would hold it: in each row, each run of `group` values has the scale of its
 * largest magnitude over 448 (at least 2^-126; 1 where all are 0). Zeros keep no sign. A run that holds a NaN or an infinity becomes NaN.
 */
void MOE_KERNEL(round_rows_to_fp8)(moe_context *ctx, float *out, const void *x, ptrdiff_t M, ptrdiff_t K, ptrdiff_t group, int xType) {
  fp8_rows_job job = {out, x, K, group, xType};
  if (K > 0) moe_parallel_for(ctx, M, round_row, &job);
}
