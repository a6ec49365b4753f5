/*
 * Up to three linear layers of one input in one call: query, key and value, or gate and up.
 *
 * Each output has the bits of linear_forward. What is saved at few rows (decoding): one pack of x and one meeting of the threads instead
 * of three. At more rows this is three products one after another. Legend: M rows, K input features, N0..N2 output features.
 */
/* Of the engine only gemv is used here; the rest belongs to linear.c. */
#pragma GCC diagnostic ignored "-Wunused-function"
#include "gemm_run.h"

void MOE_KERNEL(linear_fp8_forward)(moe_context *ctx, void *out, const void *x, const void *w, const float *scales, const float *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int xType, int scaling, int outType);
void MOE_KERNEL(linear_forward)(moe_context *ctx, void *out, const void *x, const void *w, const float *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int xType, int wType, int outType);

enum { MANY = 3 };

typedef struct {
  gemm_plan plans[MANY];
  gemm_group groups[MANY];
  ptrdiff_t vectors[MANY]; /* groups of VL columns */
  ptrdiff_t count, each;   /* matrices; vectors of one task */
} many_job;

static void few_rows_chunk(const gemm_plan *plan, const gemm_group *g, int thread, ptrdiff_t j, ptrdiff_t columns) {
  (void)thread;
#if MOE_TILES
  if (plan->tiles) {
    tiles_chunk(plan, g, thread, 0, g->rows, j, columns);
    return;
  }
#endif
  gemv_chunk(plan, g, j, columns);
}

static void many_task(void *argument, ptrdiff_t chunk, int thread) {
  const many_job *job = argument;
  ptrdiff_t from = chunk * job->each, left = job->each;
  for (ptrdiff_t i = 0; i < job->count && left > 0; i++) {
    if (from >= job->vectors[i]) {
      from -= job->vectors[i];
      continue;
    }
    const ptrdiff_t take = min_size(left, job->vectors[i] - from), j = from * VL;
    few_rows_chunk(job->plans + i, job->groups + i, thread, j, min_size(job->groups[i].J - j, take * VL));
    left -= take;
    from = 0;
  }
}

/* All products by gemv, or by tiles: the first is planned and its rows packed, the others differ in w, bias, out and N alone. */
static void many_few_rows(moe_context *ctx, const gemm_job *jobs, ptrdiff_t count) {
  many_job many = {.count = count};
  ptrdiff_t total = 0;
  gemm_plan first = {.ctx = ctx, .job = jobs[0]};
  plan_job(&first);
  for (ptrdiff_t c = 0; c < first.packs; c++) pack_task(&first, c, 0);
  for (ptrdiff_t i = 0; i < count; i++) {
    many.plans[i] = first;
    many.plans[i].job = jobs[i];
    many.groups[i] = first.groups[0];
    many.groups[i].J = jobs[i].N;
    many.vectors[i] = ceil_div(jobs[i].N, VL);
    total += many.vectors[i];
  }
  if ((double)total * VL * (double)jobs[0].rows * (double)jobs[0].K <= ALONE_WORK) {
    many.each = total;
    many_task(&many, 0, 0);
    return;
  }
  many.each = vectors_of_chunk(&first, total);
  moe_parallel_for(ctx, ceil_div(total, many.each), many_task, &many);
}

/* out_i[M,N_i] = x[M,K] . w_i[N_i,K]^T + bias_i[N_i] (f32, or 0) for every i with N_i above 0. Overwrites. */
void MOE_KERNEL(linear_forward_many)(moe_context *ctx, void *out0, void *out1, void *out2, const void *x, const void *w0, const void *w1, const void *w2, const float *bias0,
                                     const float *bias1, const float *bias2, ptrdiff_t M, ptrdiff_t N0, ptrdiff_t N1, ptrdiff_t N2, ptrdiff_t K, int xType, int wType, int outType) {
  void *const outs[MANY] = {out0, out1, out2};
  const void *const ws[MANY] = {w0, w1, w2};
  const float *const biases[MANY] = {bias0, bias1, bias2};
  const ptrdiff_t sizes[MANY] = {N0, N1, N2};
  gemm_job jobs[MANY];
  ptrdiff_t count = 0;
  for (int i = 0; i < MANY; i++)
    if (sizes[i] > 0)
      jobs[count++] = (gemm_job){.out = outs[i], .x = x, .w = ws[i], .bias = biases[i], .groups = 1, .rows = M, .N = sizes[i], .K = K, .kind = GEMM_FORWARD, .xType = xType, .wType = wType, .outType = outType};
  if (M <= 0 || count == 0) return;
  if (M <= GEMV_ROWS) many_few_rows(ctx, jobs, count);
  else
    for (ptrdiff_t i = 0; i < count; i++) MOE_CAT(moe_, linear_forward, MOE_ISA)(ctx, jobs[i].out, x, jobs[i].w, jobs[i].bias, M, jobs[i].N, K, xType, wType, outType);
}

/* The same of FP8 weights: scales_i of w_i, all of one kind (linear_fp8_forward). Overwrites. */
void MOE_KERNEL(linear_fp8_forward_many)(moe_context *ctx, void *out0, void *out1, void *out2, const void *x, const void *w0, const void *w1, const void *w2, const float *scales0, const float *scales1,
                                         const float *scales2, const float *bias0, const float *bias1, const float *bias2, ptrdiff_t M, ptrdiff_t N0, ptrdiff_t N1, ptrdiff_t N2, ptrdiff_t K, int xType, int scaling,
                                         int outType) {
  void *const outs[MANY] = {out0, out1, out2};
  const void *const ws[MANY] = {w0, w1, w2};
  const float *const scales[MANY] = {scales0, scales1, scales2}, *const biases[MANY] = {bias0, bias1, bias2};
  const ptrdiff_t sizes[MANY] = {N0, N1, N2};
  gemm_job jobs[MANY];
  ptrdiff_t count = 0;
  for (int i = 0; i < MANY; i++)
    if (sizes[i] > 0)
      jobs[count++] = (gemm_job){.out = outs[i], .x = x, .w = ws[i], .scales = scales[i], .scaling = scaling, .bias = biases[i], .groups = 1, .rows = M, .N = sizes[i], .K = K, .kind = GEMM_FORWARD, .xType = xType, .wType = MOE_FP8, .outType = outType};
  if (M <= 0 || count == 0) return;
  const int tiles = MOE_TILES && xType == MOE_BF16 && K > 0 && scaling != MOE_SCALE_BLOCK128;
  if (M <= (tiles ? (ptrdiff_t)TILE_FEW_ROWS : GEMV_ROWS)) many_few_rows(ctx, jobs, count);
  else
    for (ptrdiff_t i = 0; i < count; i++) MOE_CAT(moe_, linear_fp8_forward, MOE_ISA)(ctx, jobs[i].out, x, jobs[i].w, jobs[i].scales, jobs[i].bias, M, jobs[i].N, K, xType, scaling, outType);
}
