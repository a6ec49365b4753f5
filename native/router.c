/*
 * The router of a mixture of experts: scores of E experts, the k chosen, their weights; and its exact backward.
 * All f32; sums over experts in f64, ascending. Legend: T tokens, E experts, k chosen.
 *
 * normalize = 1 is the gating logit normalization of Skywork-MoE (arXiv 2406.06563, section 4.1): z = lambda * y,
 * y = (x - mean) / sqrt(variance + eps), variance over n = E, or E - 1 with unbiased; y = 0 where variance + eps is 0.
 */
#include "moe_math.h"

enum { TOKENS = 64 }; /* a chunk */
enum { SOFTMAX = 0, SOFTMAX_OF_TOP_K = 1, SIGMOID = 2 };

typedef struct {
  moe_context *ctx;
  float *probs, *weights, *d_logits;
  int32_t *indices;
  const float *logits, *bias, *d_weights, *d_probs;
  const int32_t *valid;
  ptrdiff_t T, E, k, num_groups, top_groups;
  int scoring, normalize, unbiased, renormalize, forced;
  float lambda, eps, scale;
} router_args;

/* y[E] = (x - mean) / sqrt(variance + eps); returns 1 / sqrt(variance + eps), or 0 where that is no number. */
static double normalized(float *y, const float *x, const router_args *a) {
  double mean = 0.0, square = 0.0;
  for (ptrdiff_t e = 0; e < a->E; e++) mean += (double)x[e];
  mean /= (double)a->E;
  for (ptrdiff_t e = 0; e < a->E; e++) square += ((double)x[e] - mean) * ((double)x[e] - mean);
  double variance = square / (double)moe_max(1, a->E - (a->unbiased ? 1 : 0)) + (double)a->eps;
  double r = variance == 0.0 ? 0.0 : 1.0 / __builtin_sqrt(variance);
  for (ptrdiff_t e = 0; e < a->E; e++) y[e] = (float)(((double)x[e] - mean) * r);
  return r;
}

/* p = softmax(z * scale); p may be z. */
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

/* s = sigmoid(z * scale); returns the sum. */
static double sigmoids(float *s, const float *z, ptrdiff_t E, float scale) {
  double sum = 0.0;
  for (ptrdiff_t i = 0; i < E; i += 16) {
    ptrdiff_t n = v_step(E - i);
    put(s, i, n, v_sigmoid(v_mul(get(z, i, n, MOE_F32), v_set(scale))), MOE_F32);
  }
  for (ptrdiff_t e = 0; e < E; e++) sum += (double)s[e];
  return sum;
}

/* Keeps the best k so far in order. Only a strictly larger one passes another, so ties go to the lower index. With `allowed`, e takes
   part only where allowed[e / run]. p holds no NaN, or nothing else. */
static void top_k(int32_t *indices, const float *p, ptrdiff_t E, ptrdiff_t k, const char *allowed, ptrdiff_t run) {
  ptrdiff_t found = 0;
  for (ptrdiff_t e = 0; e < E; e++) {
    if (allowed && !allowed[e / run]) continue;
    ptrdiff_t j = found;
    if (j == k && !(p[e] > p[indices[k - 1]])) continue;
    if (j == k) j--;
    else found++;
    for (; j > 0 && p[e] > p[indices[j - 1]]; j--) indices[j] = indices[j - 1];
    indices[j] = (int32_t)e;
  }
}

static float number(float x) { return x == x ? x : -__builtin_inff(); }

/* allowed[num_groups]: the groups with the largest sum of their two best of `select`. score and best are room for num_groups each. */
static void choose_groups(char *allowed, float *score, int32_t *best, const float *select, const router_args *a) {
  const ptrdiff_t run = a->E / a->num_groups;
  for (ptrdiff_t g = 0; g < a->num_groups; g++) {
    float first = -__builtin_inff(), second = first;
    for (ptrdiff_t e = g * run; e < (g + 1) * run; e++) {
      if (select[e] > first) {
        second = first;
        first = select[e];
      } else if (select[e] > second) second = select[e];
    }
    score[g] = number(run > 1 ? first + second : first);
    allowed[g] = 0;
  }
  top_k(best, score, a->num_groups, a->top_groups, 0, 1);
  for (ptrdiff_t i = 0; i < a->top_groups; i++) allowed[best[i]] = 1;
}

/* The choice by scores[E]; room: 4 E floats. */
static void choose(int32_t *indices, const float *scores, ptrdiff_t t, float *room, const router_args *a) {
  if (a->forced) {
    for (ptrdiff_t j = 0; j < a->k; j++) indices[j] = (int32_t)((t * a->k + j) % a->E);
    return;
  }
  float *select = room;
  for (ptrdiff_t e = 0; e < a->E; e++) select[e] = number(a->bias ? scores[e] + a->bias[e] : scores[e]);
  char *allowed = 0;
  if (a->num_groups > 1) {
    allowed = (char *)(room + 3 * a->E);
    choose_groups(allowed, room + a->E, (int32_t *)(room + 2 * a->E), select, a);
  }
  top_k(indices, select, a->E, a->k, allowed, a->E / a->num_groups);
}

/* Weights of the chosen from the scores of all. */
static void weigh(float *w, const float *scores, const int32_t *indices, const router_args *a) {
  double sum = 0.0;
  for (ptrdiff_t j = 0; j < a->k; j++) sum += (double)scores[indices[j]];
  if (!a->renormalize) sum = 1.0;
  for (ptrdiff_t j = 0; j < a->k; j++) w[j] = sum == 0.0 ? 0.0f : (float)((double)scores[indices[j]] / sum * (double)a->scale);
}

static void router_forward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const router_args *a = argument;
  const ptrdiff_t E = a->E, k = a->k;
  float *y = moe_thread_scratch(a->ctx, thread, (size_t)E * 6 * sizeof(float)), *s = y + E, *room = s + E;
  const float scale = a->normalize ? a->lambda : 1.0f;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * TOKENS);
  for (ptrdiff_t t = chunk * TOKENS; t < end; t++) {
    const float *x = a->logits + t * E, *z = a->normalize ? y : x;
    float *p = a->probs + t * E, *w = a->weights + t * k;
    int32_t *indices = a->indices + t * k;
    if (a->valid && !a->valid[t]) {
      for (ptrdiff_t e = 0; e < E; e++) p[e] = 0.0f;
      for (ptrdiff_t j = 0; j < k; j++) w[j] = 0.0f, indices[j] = -1;
      continue;
    }
    if (a->normalize) normalized(y, x, a);
    if (a->scoring == SOFTMAX) {
      softmax(p, z, E, scale);
      choose(indices, p, t, room, a);
      weigh(w, p, indices, a);
    } else if (a->scoring == SIGMOID) {
      double sum = sigmoids(s, z, E, scale);
      for (ptrdiff_t e = 0; e < E; e++) p[e] = sum == 0.0 ? 0.0f : (float)((double)s[e] / sum);
      choose(indices, s, t, room, a);
      weigh(w, s, indices, a);
    } else {
      for (ptrdiff_t e = 0; e < E; e++) s[e] = z[e] * scale, p[e] = 0.0f;
      choose(indices, s, t, room, a);
      for (ptrdiff_t j = 0; j < k; j++) w[j] = s[indices[j]];
      softmax(w, w, k, 1.0f);
      for (ptrdiff_t j = 0; j < k; j++) p[indices[j]] = w[j], w[j] = (float)((double)w[j] * (double)a->scale);
    }
  }
}

/* probs[T,E], weights[T,k], indices i32[T,k] (descending, ties to the lower index) from logits[T,E]; bias f32[E] and valid i32[T] or
   0. 1 <= k <= E, num_groups divides E, k <= top_groups * E / num_groups. */
void MOE_KERNEL(router_forward)(moe_context *ctx, float *probs, float *weights, int32_t *indices, const float *logits, const float *bias, const int32_t *valid, ptrdiff_t T, ptrdiff_t E, ptrdiff_t k, ptrdiff_t num_groups, ptrdiff_t top_groups, int scoring, int normalize, int unbiased, int renormalize, int forced, float lambda, float eps, float scale) {
  router_args a = {.ctx = ctx, .probs = probs, .weights = weights, .indices = indices, .logits = logits, .bias = bias, .valid = valid, .T = T, .E = E, .k = k, .num_groups = num_groups, .top_groups = top_groups,
                   .scoring = scoring, .normalize = normalize, .unbiased = unbiased, .renormalize = renormalize, .forced = forced, .lambda = lambda, .eps = eps, .scale = scale};
  if (E > 0) moe_parallel_for(ctx, moe_chunks(T, TOKENS), router_forward_chunk, &a);
}

/*
 * From gradients of weights and probs to g[E], the gradient of z. c is the scale, w = c q.
 * q_j = s_j / S over the chosen (renormalize): ds_j = (c dw_j - sum_i dw_i w_i) / S; otherwise ds_j = c dw_j.
 * softmax, s = p:   dz_e = p_e (dp_e - sum p dp), dp = dProbs + ds. Of the top k: the same over the chosen, with q = p.
 * sigmoid, p = s/P: ds_e += (dProbs_e - sum p dProbs) / P; dz_e = s_e (1 - s_e) ds_e.
 */
static void scores_backward(double *g, const float *s, double score_sum, const float *p, const float *w, const float *dw, const float *dp, const int32_t *indices, const router_args *a) {
  const ptrdiff_t E = a->E, k = a->k;
  double chosen = 0.0, mixed = 0.0, dot = 0.0;
  for (ptrdiff_t e = 0; e < E; e++) g[e] = dp ? (double)dp[e] : 0.0;
  if (a->scoring == SIGMOID && dp) {
    for (ptrdiff_t e = 0; e < E; e++) dot += (double)p[e] * g[e];
    for (ptrdiff_t e = 0; e < E; e++) g[e] = score_sum == 0.0 ? 0.0 : (g[e] - dot) / score_sum;
    dot = 0.0;
  }
  if (a->renormalize && a->scoring != SOFTMAX_OF_TOP_K) {
    for (ptrdiff_t j = 0; j < k; j++) {
      chosen += (double)s[indices[j]];
      mixed += (double)dw[j] * (double)w[j];
    }
    for (ptrdiff_t j = 0; j < k; j++) g[indices[j]] += chosen == 0.0 ? 0.0 : ((double)a->scale * (double)dw[j] - mixed) / chosen;
  } else {
    for (ptrdiff_t j = 0; j < k; j++) g[indices[j]] += (double)a->scale * (double)dw[j];
  }
  if (a->scoring == SIGMOID) {
    for (ptrdiff_t e = 0; e < E; e++) g[e] *= (double)s[e] * (1.0 - (double)s[e]);
    return;
  }
  for (ptrdiff_t e = 0; e < E; e++) dot += (double)p[e] * g[e];
  for (ptrdiff_t e = 0; e < E; e++) g[e] = (double)p[e] * (g[e] - dot);
}

/* Normalization, n the divisor of the variance and r = 1 / sqrt(variance + eps):
     dx_e = lambda * r * (dz_e - mean(dz) - y_e * sum(dz y) / n). */
static void router_backward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const router_args *a = argument;
  const ptrdiff_t E = a->E, k = a->k;
  double *g = moe_thread_scratch(a->ctx, thread, (size_t)E * (2 * sizeof(float) + sizeof(double)));
  float *y = (float *)(g + E), *s = y + E;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * TOKENS);
  for (ptrdiff_t t = chunk * TOKENS; t < end; t++) {
    const float *p = a->probs + t * E, *x = a->logits + t * E, *scores = p;
    const int32_t *indices = a->indices + t * k;
    float *dx = a->d_logits + t * E;
    if (indices[0] < 0) {
      for (ptrdiff_t e = 0; e < E; e++) dx[e] = 0.0f;
      continue;
    }
    double r = a->normalize ? normalized(y, x, a) : 0.0, sum = 0.0;
    if (a->scoring == SIGMOID) {
      sum = sigmoids(s, a->normalize ? y : x, E, a->normalize ? a->lambda : 1.0f);
      scores = s;
    }
    scores_backward(g, scores, sum, p, a->weights + t * k, a->d_weights + t * k, a->d_probs ? a->d_probs + t * E : 0, indices, a);
    if (a->normalize) {
      double mean = 0.0, slope = 0.0;
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
void MOE_KERNEL(router_backward)(moe_context *ctx, float *d_logits, const float *d_weights, const float *d_probs, float *probs, float *weights, int32_t *indices, const float *logits, ptrdiff_t T, ptrdiff_t E, ptrdiff_t k, int scoring, int normalize, int unbiased, int renormalize, float lambda, float eps, float scale) {
  router_args a = {.ctx = ctx, .d_logits = d_logits, .d_weights = d_weights, .d_probs = d_probs, .probs = probs, .weights = weights, .indices = indices, .logits = logits, .T = T, .E = E, .k = k,
                   .scoring = scoring, .normalize = normalize, .unbiased = unbiased, .renormalize = renormalize, .lambda = lambda, .eps = eps, .scale = scale};
  if (E > 0) moe_parallel_for(ctx, moe_chunks(T, TOKENS), router_backward_chunk, &a);
}
