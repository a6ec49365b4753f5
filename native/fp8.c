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
