/*
 * What is measured of a router over all tokens: the z loss of its logits with the gradient, and how decided its probabilities are.
 * Sums in f64: of chunks of 64 tokens, ascending, then of the chunks in order. Legend: T tokens, E experts.
 */
#include "moe_math.h"

enum { TOKENS = 64 }; /* a chunk */

typedef struct {
  double *partial;
  float *d_logits;
  const float *x;
  const int32_t *valid;
  ptrdiff_t T, E;
  float grad_scale;
} losses_args;

static void z_loss_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const losses_args *a = argument;
  const ptrdiff_t E = a->E, end = moe_min(a->T, (chunk + 1) * TOKENS);
  double total = 0.0;
  (void)thread;
  for (ptrdiff_t t = chunk * TOKENS; t < end; t++) {
    const float *x = a->x + t * E;
    float *d = a->d_logits ? a->d_logits + t * E : 0, largest = -__builtin_inff();
    double sum = 0.0;
    if (a->valid && !a->valid[t]) {
      for (ptrdiff_t e = 0; d && e < E; e++) d[e] = 0.0f;
      continue;
    }
    for (ptrdiff_t e = 0; e < E; e++) largest = x[e] > largest ? x[e] : largest;
    for (ptrdiff_t i = 0; i < E; i += 16) {
      ptrdiff_t n = v_step(E - i);
      float exps[V_LANES];
      v_store(exps, v_exp(v_sub(get(x, i, n, MOE_F32), v_set(largest))));
      for (ptrdiff_t j = 0; j < n; j++) sum += (double)exps[j];
      if (d) put(d, i, n, v_load(exps), MOE_F32);
    }
    double lse = sum == sum ? (double)largest + moe_log(sum) : sum, factor = 2.0 * (double)a->grad_scale * lse / sum;
    total += lse * lse;
    for (ptrdiff_t e = 0; d && e < E; e++) d[e] = (float)(factor * (double)d[e]);
  }
  if (a->partial) a->partial[chunk] = total;
}

static void add_partials(double *out, const double *partial, ptrdiff_t chunks, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i++) {
    double sum = 0.0;
    for (ptrdiff_t c = 0; c < chunks; c++) sum += partial[c * count + i];
    out[i] = sum;
  }
}

/* sum f64 (0 for none) = sum over tokens of logsumexp(logits[T,E])^2; dLogits[T,E] (0 for none) overwritten: grad_scale times the
   gradient. valid i32[T] or 0. (arXiv 2202.08906, equation 5) */
void MOE_KERNEL(router_z_loss)(moe_context *ctx, double *sum, float *d_logits, const float *logits, const int32_t *valid, ptrdiff_t T, ptrdiff_t E, float grad_scale) {
  const ptrdiff_t chunks = E > 0 ? moe_chunks(T, TOKENS) : 0;
  losses_args a = {.d_logits = d_logits, .x = logits, .valid = valid, .T = T, .E = E, .grad_scale = grad_scale};
  if (sum) a.partial = moe_scratch(ctx, 0, (size_t)chunks * sizeof(double) + 64);
  moe_parallel_for(ctx, chunks, z_loss_chunk, &a);
  if (sum) add_partials(sum, a.partial, chunks, 1);
}

static void statistics_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const losses_args *a = argument;
  const ptrdiff_t E = a->E, end = moe_min(a->T, (chunk + 1) * TOKENS);
  const double least = 1e-20;
  double first = 0.0, second = 0.0, entropy = 0.0;
  (void)thread;
  for (ptrdiff_t t = chunk * TOKENS; t < end; t++) {
    const float *p = a->x + t * E;
    float top[3] = {0.0f, 0.0f, 0.0f};
    for (ptrdiff_t e = 0; e < E; e++) {
      float value = p[e];
      if (value > 0.0f) entropy -= (double)value * moe_log((double)value);
      for (int i = 0; i < 3; i++) {
        if (!(value > top[i])) continue;
        float moved = top[i];
        top[i] = value;
        value = moved;
      }
    }
    first += (double)top[0] / ((double)top[1] < least ? least : (double)top[1]);
    second += (double)top[1] / ((double)top[2] < least ? least : (double)top[2]);
  }
  a->partial[chunk * 3] = first;
  a->partial[chunk * 3 + 1] = second;
  a->partial[chunk * 3 + 2] = entropy;
}

/* out f64[3] = sums over the rows of probs[T,E] of max1/max2, max2/max3 (denominators at least 1e-20) and the entropy. */
void MOE_KERNEL(router_statistics)(moe_context *ctx, double *out, const float *probs, ptrdiff_t T, ptrdiff_t E) {
  const ptrdiff_t chunks = moe_chunks(T, TOKENS);
  losses_args a = {.partial = moe_scratch(ctx, 0, (size_t)chunks * 3 * sizeof(double) + 64), .x = probs, .T = T, .E = E};
  moe_parallel_for(ctx, chunks, statistics_chunk, &a);
  add_partials(out, a.partial, chunks, 3);
}
