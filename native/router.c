/*
 * The router of a mixture of experts: softmax over E experts, the k largest, their weights made to sum to 1; and its exact backward.
 * All f32; sums over experts in f64, ascending. Legend: T tokens, E experts, k chosen.
 *
 * normalize = 1 is the gating logit normalization of Skywork-MoE (arXiv 2406.06563, section 4.1):
 * z = lambda * y, y = (x - mean) / sqrt(variance + eps), variance over n = E, or E - 1 with unbiased.
 */
#include "moe_math.h"

enum { TOKENS = 64 }; /* a chunk */

typedef struct {
  moe_context *ctx;
  float *probs, *weights, *d_logits;
  int32_t *indices;
  const float *logits, *d_weights, *d_probs;
  ptrdiff_t T, E, k;
  int normalize, unbiased;
  float lambda, eps;
} router_args;

/* y[E] = (x - mean) / sqrt(variance + eps); returns 1 / sqrt(variance + eps). */
static double normalized(float *y, const float *x, const router_args *a) {
  double mean = 0.0, square = 0.0;
  for (ptrdiff_t e = 0; e < a->E; e++) mean += (double)x[e];
  mean /= (double)a->E;
  for (ptrdiff_t e = 0; e < a->E; e++) square += ((double)x[e] - mean) * ((double)x[e] - mean);
  double r = 1.0 / __builtin_sqrt(square / (double)moe_max(1, a->E - (a->unbiased ? 1 : 0)) + (double)a->eps);
  for (ptrdiff_t e = 0; e < a->E; e++) y[e] = (float)(((double)x[e] - mean) * r);
  return r;
}

static void softmax(float *p, const float *z, ptrdiff_t E, float scale) {
  float largest = -__builtin_inff();
  for (ptrdiff_t e = 0; e < E; e++) largest = z[e] * scale > largest ? z[e] * scale : largest;
  for (ptrdiff_t i = 0; i < E; i += 16) {
    ptrdiff_t n = v_step(E - i);
    put(p, i, n, v_exp(v_sub(v_mul(get(z, i, n, MOE_F32), v_set(scale)), v_set(largest))), MOE_F32);
  }
  double sum = 0.0;
  for (ptrdiff_t e = 0; e < E; e++) sum += (double)p[e];
  for (ptrdiff_t e = 0; e < E; e++) p[e] = (float)((double)p[e] / sum);
}

/* Keeps the best k so far in order. Only a strictly larger one passes another, so ties go to the lower index; a row of NaN still
   gives k different experts. */
static void top_k(int32_t *indices, const float *p, ptrdiff_t E, ptrdiff_t k) {
  for (ptrdiff_t e = 0; e < E; e++) {
    ptrdiff_t j = moe_min(e, k);
    if (j == k && !(p[e] > p[indices[k - 1]])) continue;
    if (j == k) j--;
    for (; j > 0 && p[e] > p[indices[j - 1]]; j--) indices[j] = indices[j - 1];
    indices[j] = (int32_t)e;
  }
}

static void router_forward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const router_args *a = argument;
  float *y = moe_thread_scratch(a->ctx, thread, (size_t)a->E * sizeof(float));
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * TOKENS);
  for (ptrdiff_t t = chunk * TOKENS; t < end; t++) {
    const float *x = a->logits + t * a->E;
    float *p = a->probs + t * a->E, *w = a->weights + t * a->k;
    int32_t *indices = a->indices + t * a->k;
    if (a->normalize) normalized(y, x, a);
    softmax(p, a->normalize ? y : x, a->E, a->normalize ? a->lambda : 1.0f);
    top_k(indices, p, a->E, a->k);
    double sum = 0.0;
    for (ptrdiff_t j = 0; j < a->k; j++) sum += (double)p[indices[j]];
    for (ptrdiff_t j = 0; j < a->k; j++) w[j] = (float)((double)p[indices[j]] / sum);
  }
}

/* probs[T,E], weights[T,k], indices i32[T,k] (descending, ties to the lower index) from logits[T,E]. 1 <= k <= E. */
void MOE_KERNEL(router_forward)(moe_context *ctx, float *probs, float *weights, int32_t *indices, const float *logits, ptrdiff_t T, ptrdiff_t E, ptrdiff_t k, int normalize, int unbiased, float lambda, float eps) {
  router_args a = {.ctx = ctx, .probs = probs, .weights = weights, .indices = indices, .logits = logits, .T = T, .E = E, .k = k, .normalize = normalize, .unbiased = unbiased, .lambda = lambda, .eps = eps};
  if (E > 0) moe_parallel_for(ctx, moe_chunks(T, TOKENS), router_forward_chunk, &a);
}

/*
 * Weights: w_j = p_j / P, P the sum of the chosen: dp_j = dProbs_j + (dw_j - sum_i dw_i w_i) / P.
 * Softmax: dz_e = p_e * (dp_e - sum p dp).
 * Normalization, n the divisor of the variance and r = 1 / sqrt(variance + eps):
 *   dx_e = lambda * r * (dz_e - mean(dz) - y_e * sum(dz y) / n).
 */
static void router_backward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const router_args *a = argument;
  const ptrdiff_t E = a->E, k = a->k;
  float *y = moe_thread_scratch(a->ctx, thread, (size_t)E * (sizeof(float) + sizeof(double)) + 8);
  double *g = (double *)(y + (E + 1) / 2 * 2);
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * TOKENS);
  for (ptrdiff_t t = chunk * TOKENS; t < end; t++) {
    const float *p = a->probs + t * E, *w = a->weights + t * k, *dw = a->d_weights + t * k;
    const int32_t *indices = a->indices + t * k;
    float *dx = a->d_logits + t * E;
    double chosen = 0.0, mixed = 0.0, dot = 0.0;
    for (ptrdiff_t e = 0; e < E; e++) g[e] = a->d_probs ? (double)a->d_probs[t * E + e] : 0.0;
    for (ptrdiff_t j = 0; j < k; j++) {
      chosen += (double)p[indices[j]];
      mixed += (double)dw[j] * (double)w[j];
    }
    for (ptrdiff_t j = 0; j < k; j++) g[indices[j]] += ((double)dw[j] - mixed) / chosen;
    for (ptrdiff_t e = 0; e < E; e++) dot += (double)p[e] * g[e];
    for (ptrdiff_t e = 0; e < E; e++) g[e] = (double)p[e] * (g[e] - dot);
    if (a->normalize) {
      double r = normalized(y, a->logits + t * E, a), mean = 0.0, slope = 0.0;
      for (ptrdiff_t e = 0; e < E; e++) {
        mean += g[e];
        slope += g[e] * (double)y[e];
      }
      mean /= (double)E;
      slope /= (double)moe_max(1, E - (a->unbiased ? 1 : 0));
      for (ptrdiff_t e = 0; e < E; e++) g[e] = (double)a->lambda * r * (g[e] - mean - (double)y[e] * slope);
    }
    for (ptrdiff_t e = 0; e < E; e++) dx[e] = (float)g[e];
  }
}

/* dLogits[T,E] overwritten, from dWeights[T,k], dProbs[T,E] (0 for none) and what the forward saw and made. */
void MOE_KERNEL(router_backward)(moe_context *ctx, float *d_logits, const float *d_weights, const float *d_probs, float *probs, float *weights, int32_t *indices, const float *logits, ptrdiff_t T, ptrdiff_t E, ptrdiff_t k, int normalize, int unbiased, float lambda, float eps) {
  router_args a = {.ctx = ctx, .d_logits = d_logits, .d_weights = d_weights, .d_probs = d_probs, .probs = probs, .weights = weights, .indices = indices, .logits = logits, .T = T, .E = E, .k = k, .normalize = normalize, .unbiased = unbiased, .lambda = lambda, .eps = eps};
  if (E > 0) moe_parallel_for(ctx, moe_chunks(T, TOKENS), router_backward_chunk, &a);
}
