/*
 * Linear layers, forward and backward, plain and grouped over experts (mixture of experts). The method is in gemm.h.
 *
 * Legend: M rows, K input features, N output features, E experts; rows offsets[e]..offsets[e + 1] belong to expert e.
 * All matrices are row-major and dense; f32 or bf16 as the type arguments say, sums in f32. Each output is one chain of fused
 * multiply-adds over the reduced index, ascending from 0 (WebAssembly: a product and a sum; AVX-512 BF16 with two bf16 operands: the
 * chain steps over pairs; AMX with two bf16 operands: the order of tiles.h); then the bias, then the old value with `accumulate`, is added, and the result rounded once.
 * FP8 weights (E4M3) are widened as they are read (with bf16 rows, in the set `amx`, to bf16 for its tiles). Their scale by tensor [1] or channel [N] multiplies the finished sum; by block
 * [ceil(N / 128), ceil(K / 128)] the widened weight, rounded to f32.
 */
#include "gemm_run.h"

/* out[M,N] = x[M,K] . w[N,K]^T + bias[N] (f32, or 0). Overwrites. */
void MOE_KERNEL(linear_forward)(moe_context *ctx, void *out, const void *x, const void *w, const float *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                                int xType, int wType, int outType) {
  const gemm_job job = {.out = out, .x = x, .w = w, .bias = bias, .groups = 1, .rows = M, .N = N, .K = K, .kind = GEMM_FORWARD, .xType = xType, .wType = wType, .outType = outType};
  gemm_run(ctx, &job);
}

/* dx[M,K] (+)= dy[M,N] . w[N,K]. */
void MOE_KERNEL(linear_backward_input)(moe_context *ctx, void *dx, const void *dy, const void *w, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                                       int dyType, int wType, int dxType, int accumulate) {
  const gemm_job job = {.out = dx, .y = dy, .w = w, .groups = 1, .rows = M, .N = N, .K = K, .kind = GEMM_INPUT, .yType = dyType, .wType = wType, .outType = dxType, .accumulate = accumulate};
  gemm_run(ctx, &job);
}

/* dw[N,K] (f32) (+)= dy[M,N]^T . x[M,K]. */
void MOE_KERNEL(linear_backward_weight)(moe_context *ctx, float *dw, const void *dy, const void *x, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                                        int dyType, int xType, int accumulate) {
  const gemm_job job = {.out = dw, .y = dy, .x = x, .groups = 1, .rows = M, .N = N, .K = K, .kind = GEMM_WEIGHT, .yType = dyType, .xType = xType, .outType = MOE_F32, .accumulate = accumulate};
  gemm_run(ctx, &job);
}

/* out[R,N] = x[R,K] . w[e][N,K]^T + bias[N] (f32, or 0) with w[E,N,K], by group. Overwrites. */
void MOE_KERNEL(grouped_linear_forward)(moe_context *ctx, void *out, const void *x, const void *w, const int32_t *offsets, ptrdiff_t E, ptrdiff_t N, ptrdiff_t K,
                                        int xType, int wType, int outType) {
  const gemm_job job = {.out = out, .x = x, .w = w, .offsets = offsets, .groups = E, .N = N, .K = K, .kind = GEMM_FORWARD, .xType = xType, .wType = wType, .outType = outType};
  gemm_run(ctx, &job);
}

/* dx[R,K] (+)= dy[R,N] . w[e][N,K], by group. */
void MOE_KERNEL(grouped_linear_backward_input)(moe_context *ctx, void *dx, const void *dy, const void *w, const int32_t *offsets, ptrdiff_t E, ptrdiff_t N, ptrdiff_t K,
                                               int dyType, int wType, int dxType, int accumulate) {
  const gemm_job job = {.out = dx, .y = dy, .w = w, .offsets = offsets, .groups = E, .N = N, .K = K, .kind = GEMM_INPUT, .yType = dyType, .wType = wType, .outType = dxType, .accumulate = accumulate};
  gemm_run(ctx, &job);
}

/* dw[E,N,K] (f32) (+)= dy^T . x of each group; an empty group writes zeros, or adds nothing. */
void MOE_KERNEL(grouped_linear_backward_weight)(moe_context *ctx, float *dw, const void *dy, const void *x, const int32_t *offsets, ptrdiff_t E, ptrdiff_t N, ptrdiff_t K,
                                                int dyType, int xType, int accumulate) {
  const gemm_job job = {.out = dw, .y = dy, .x = x, .offsets = offsets, .groups = E, .N = N, .K = K, .kind = GEMM_WEIGHT, .yType = dyType, .xType = xType, .outType = MOE_F32, .accumulate = accumulate};
  gemm_run(ctx, &job);
}

/* out[M,N] = x[M,K] . (w[N,K] scaled)^T + bias[N] (f32, or 0). Overwrites. */
void MOE_KERNEL(linear_fp8_forward)(moe_context *ctx, void *out, const void *x, const void *w, const float *scales, const float *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                                    int xType, int scaling, int outType) {
  const gemm_job job = {.out = out, .x = x, .w = w, .scales = scales, .scaling = scaling, .bias = bias, .groups = 1, .rows = M, .N = N, .K = K, .kind = GEMM_FORWARD, .xType = xType, .wType = MOE_FP8, .outType = outType};
  gemm_run(ctx, &job);
}

/* out[R,N] = x[R,K] . (w[e][N,K] scaled)^T with w[E,N,K] and scales[E,..], by group. Overwrites. */
void MOE_KERNEL(grouped_linear_fp8_forward)(moe_context *ctx, void *out, const void *x, const void *w, const float *scales, const int32_t *offsets, ptrdiff_t E, ptrdiff_t N, ptrdiff_t K,
                                            int xType, int scaling, int outType) {
  const gemm_job job = {.out = out, .x = x, .w = w, .scales = scales, .scaling = scaling, .offsets = offsets, .groups = E, .N = N, .K = K, .kind = GEMM_FORWARD, .xType = xType, .wType = MOE_FP8, .outType = outType};
  gemm_run(ctx, &job);
}

typedef struct {
  float *db;
  const void *dy;
  ptrdiff_t M, N;
  int dyType, accumulate;
} bias_job;

enum { BIAS_VECTORS = 4, BIAS_COLUMNS = 256 };

/* Sums `n` columns (at most BIAS_VECTORS * VL) from column c, rows ascending. */
MOE_INLINE void bias_columns(const bias_job *job, ptrdiff_t c, int n) {
  vf sum[BIAS_VECTORS];
  for (int v = 0; v < BIAS_VECTORS; v++) sum[v] = v_zero();
  if (n == BIAS_VECTORS * VL) {
    for (ptrdiff_t m = 0; m < job->M; m++)
      MOE_UNROLL(4)
      for (int v = 0; v < BIAS_VECTORS; v++) sum[v] = v_add(sum[v], v_load_as(job->dy, m * job->N + c + v * VL, job->dyType));
  } else {
    for (ptrdiff_t m = 0; m < job->M; m++)
      for (int v = 0; v * VL < n; v++) sum[v] = v_add(sum[v], v_load_as_n(job->dy, m * job->N + c + v * VL, job->dyType, n - v * VL < VL ? n - v * VL : VL));
  }
  for (int v = 0; v * VL < n; v++) {
    const int lanes = n - v * VL < VL ? n - v * VL : VL;
    float *db = job->db + c + v * VL;
    v_store_n(db, job->accumulate ? v_add(sum[v], v_load_n(db, lanes)) : sum[v], lanes);
  }
}

static void bias_task(void *argument, ptrdiff_t chunk, int thread) {
  const bias_job *job = argument;
  const ptrdiff_t end = min_size(job->N, (chunk + 1) * BIAS_COLUMNS);
  (void)thread;
  for (ptrdiff_t c = chunk * BIAS_COLUMNS; c < end; c += BIAS_VECTORS * VL) bias_columns(job, c, (int)min_size(end - c, BIAS_VECTORS * VL));
}

/* db[N] (f32) (+)= sum over m of dy[M,N], m ascending. */
void MOE_KERNEL(linear_backward_bias)(moe_context *ctx, float *db, const void *dy, ptrdiff_t M, ptrdiff_t N, int dyType, int accumulate) {
  bias_job job = {db, dy, M, N, dyType, accumulate};
  moe_parallel_for(ctx, ceil_div(N, BIAS_COLUMNS), bias_task, &job);
}
