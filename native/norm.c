/*
 * RMSNorm (arXiv 1910.07467): out = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps). Legend: M rows of H.
 *
 * A row's sum of squares has one order: four vector accumulators taken in turn over the row, added pairwise, then the lane tree.
 */
#include "vec.h"

typedef struct {
  void *out, *dx;
  float *rstd, *dw, *partial;
  const void *x, *dy;
  const float *w;
  ptrdiff_t M, H, rows;
  float eps;
  int dtype, accumulate;
} norm_args;

VFN void norm_forward_row(const norm_args *a, ptrdiff_t m, int dtype) {
  const ptrdiff_t H = a->H;
  const void *x = at(a->x, m * H, dtype);
  void *out = at_out(a->out, m * H, dtype);
  v16 s[4] = {v_set(0), v_set(0), v_set(0), v_set(0)};
  ptrdiff_t i = 0;
  for (; i + 64 <= H; i += 64) {
    v16 x0 = ld(x, i, dtype), x1 = ld(x, i + 16, dtype), x2 = ld(x, i + 32, dtype), x3 = ld(x, i + 48, dtype);
    s[0] = v_fma(x0, x0, s[0]);
    s[1] = v_fma(x1, x1, s[1]);
    s[2] = v_fma(x2, x2, s[2]);
    s[3] = v_fma(x3, x3, s[3]);
  }
  for (; i < H; i += 16) {
    v16 v = get(x, i, v_step(H - i), dtype);
    s[0] = v_fma(v, v, s[0]);
  }
  float sum = v_sum(v_add(v_add(s[0], s[1]), v_add(s[2], s[3])));
  float rstd = 1.0f / __builtin_sqrtf(sum / (float)H + a->eps);
  if (a->rstd) a->rstd[m] = rstd;
  v16 r = v_set(rstd);
  for (i = 0; i < H; i += 16) {
    ptrdiff_t n = v_step(H - i);
    put(out, i, n, v_mul(v_mul(get(x, i, n, dtype), r), get(a->w, i, n, MOE_F32)), dtype);
  }
}

static void norm_forward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const norm_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->M, (chunk + 1) * a->rows);
  if (a->dtype == MOE_BF16)
    for (ptrdiff_t m = chunk * a->rows; m < end; m++) norm_forward_row(a, m, MOE_BF16);
  else
    for (ptrdiff_t m = chunk * a->rows; m < end; m++) norm_forward_row(a, m, MOE_F32);
}

/* out[M,H] (dtype), rstd[M] (f32, may be 0) from x[M,H] (dtype), w[H] (f32). out may be x. */
void MOE_KERNEL(rms_norm_forward)(moe_context *ctx, void *out, float *rstd, const void *x, const float *w, ptrdiff_t M, ptrdiff_t H, float eps, int dtype) {
  norm_args a = {.out = out, .rstd = rstd, .x = x, .w = w, .M = M, .H = H, .eps = eps, .dtype = dtype};
  if (M <= 0 || H <= 0) return;
  a.rows = moe_max(1, 16384 / H);
  moe_parallel_for(ctx, moe_chunks(M, a.rows), norm_forward_chunk, &a);
}

/* With g = dy * w: dx = rstd * (g - x * rstd^2 * mean(g * x)); dw = sum over rows of dy * x * rstd. */
VFN void norm_backward_row(const norm_args *a, float *dw, ptrdiff_t m, int dtype) {
  const ptrdiff_t H = a->H;
  const void *x = at(a->x, m * H, dtype), *dy = at(a->dy, m * H, dtype);
  void *dx = at_out(a->dx, m * H, dtype);
  const float rstd = a->rstd[m];
  v16 even = v_set(0), odd = v_set(0), r = v_set(rstd);
  for (ptrdiff_t i = 0; i < H; i += 16) {
    ptrdiff_t n = v_step(H - i);
    v16 g = get(dy, i, n, dtype), v = get(x, i, n, dtype);
    if (dw) put(dw, i, n, v_fma(g, v_mul(v, r), get(dw, i, n, MOE_F32)), MOE_F32);
    v16 next = v_fma(v_mul(g, get(a->w, i, n, MOE_F32)), v, odd); /* two chains in turn */
    odd = even;
    even = next;
  }
  v16 c = v_set(v_sum(v_add(even, odd)) / (float)H * rstd * rstd);
  for (ptrdiff_t i = 0; i < H; i += 16) {
    ptrdiff_t n = v_step(H - i);
    v16 g = v_mul(get(dy, i, n, dtype), get(a->w, i, n, MOE_F32)), v = get(x, i, n, dtype);
    v16 d = v_mul(r, v_sub(g, v_mul(v, c)));
    if (a->accumulate) d = v_add(d, get(dx, i, n, dtype));
    put(dx, i, n, d, dtype);
  }
}

static void norm_backward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const norm_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->M, (chunk + 1) * a->rows);
  float *dw = a->dw ? a->partial + chunk * a->H : 0;
  if (dw) __builtin_memset(dw, 0, (size_t)a->H * sizeof(float));
  if (a->dtype == MOE_BF16)
    for (ptrdiff_t m = chunk * a->rows; m < end; m++) norm_backward_row(a, dw, m, MOE_BF16);
  else
    for (ptrdiff_t m = chunk * a->rows; m < end; m++) norm_backward_row(a, dw, m, MOE_F32);
}

/* dx[M,H] (dtype; overwritten, or added to with accumulate), dw[H] (f32, added to; 0 for none) from dy, x, w and rstd of the forward.
   dw is summed in chunks of rows whose number depends on M alone; the chunks are added in order. dx may be dy. */
void MOE_KERNEL(rms_norm_backward)(moe_context *ctx, void *dx, float *dw, const void *dy, const void *x, const float *w, float *rstd, ptrdiff_t M, ptrdiff_t H, int dtype, int accumulate) {
  norm_args a = {.dx = dx, .dw = dw, .dy = dy, .x = x, .w = w, .rstd = rstd, .M = M, .H = H, .dtype = dtype, .accumulate = accumulate};
  if (M <= 0 || H <= 0) return;
  a.rows = moe_max(moe_max(1, 16384 / H), moe_chunks(M, 64)); /* at most 64 chunks */
  ptrdiff_t chunks = moe_chunks(M, a.rows);
  a.partial = dw ? moe_scratch(ctx, 0, (size_t)(chunks * H) * sizeof(float)) : 0;
  moe_parallel_for(ctx, chunks, norm_backward_chunk, &a);
  if (dw)
    for (ptrdiff_t i = 0; i < H; i += 16) {
      ptrdiff_t n = v_step(H - i);
      v16 sum = get(a.partial, i, n, MOE_F32);
      for (ptrdiff_t c = 1; c < chunks; c++) sum = v_add(sum, get(a.partial + c * H, i, n, MOE_F32));
      put(dw, i, n, v_add(sum, get(dw, i, n, MOE_F32)), MOE_F32);
    }
}
