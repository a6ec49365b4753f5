/*
 * Rows of logits: cross-entropy with its gradient, softmax, argmax. All f32. Legend: M rows of V (or N).
 *
 * A row is read once for its maximum and the sum of exp together, in blocks: a block's maximum first (from cache the second
 * time), then its sum of exp in f32, which joins a running f64 sum rescaled to the new maximum. So V may be any size.
 */
#include "moe_math.h"

enum { BLOCK = 1024 };

typedef struct {
  float *loss, *out;
  int32_t *indices;
  const float *x;
  const int32_t *targets;
  ptrdiff_t M, N, rows;
  float grad_scale;
} rows_args;

VFN float block_max(const float *x, ptrdiff_t n) {
  v16 m[2] = {v_set(-__builtin_inff()), v_set(-__builtin_inff())};
  ptrdiff_t i = 0;
  for (; i + 32 <= n; i += 32) {
    m[0] = v_max(v_load(x + i), m[0]);
    m[1] = v_max(v_load(x + i + 16), m[1]);
  }
  for (; i < n; i += 16) {
    ptrdiff_t w = v_step(n - i);
    m[0] = v_max(v_keep(get(x, i, w, MOE_F32), 0, (int)w, -__builtin_inff()), m[0]);
  }
  return v_largest(v_max(m[0], m[1]));
}

/* Maximum of x[n] and the sum of exp(x - maximum). */
VFN float row_max_sum(const float *x, ptrdiff_t n, double *sum_out) {
  float largest = -__builtin_inff();
  double sum = 0.0;
  for (ptrdiff_t start = 0; start < n; start += BLOCK) {
    const ptrdiff_t size = moe_min(BLOCK, n - start);
    float here = block_max(x + start, size), before = largest;
    if (here > largest) largest = here;
    v16 shift = v_set(largest), s[2] = {v_set(0), v_set(0)};
    ptrdiff_t i = 0;
    if (largest == -__builtin_inff()) shift = v_set(0); /* nothing but -inf so far: exp gives 0, not exp(-inf + inf) */
    for (; i + 32 <= size; i += 32) {
      s[0] = v_add(s[0], v_exp(v_sub(v_load(x + start + i), shift)));
      s[1] = v_add(s[1], v_exp(v_sub(v_load(x + start + i + 16), shift)));
    }
    for (; i < size; i += 16) {
      ptrdiff_t w = v_step(size - i);
      s[0] = v_add(s[0], v_keep(v_exp(v_sub(get(x, start + i, w, MOE_F32), shift)), 0, (int)w, 0.0f));
    }
    if (before != largest && sum != 0.0) sum *= (double)moe_exp(before - largest);
    sum += (double)v_sum(v_add(s[0], s[1]));
  }
  *sum_out = sum;
  return largest;
}

/* out = exp(x - shift) * scale; out may be x. */
VFN void row_exp(float *out, const float *x, ptrdiff_t n, float shift, float scale) {
  for (ptrdiff_t i = 0; i < n; i += 16) {
    ptrdiff_t w = v_step(n - i);
    put(out, i, w, v_mul(v_exp(v_sub(get(x, i, w, MOE_F32), v_set(shift))), v_set(scale)), MOE_F32);
  }
}

static void cross_entropy_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const rows_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->M, (chunk + 1) * a->rows), V = a->N;
  for (ptrdiff_t m = chunk * a->rows; m < end; m++) {
    const float *x = a->x + m * V;
    float *d = a->out ? a->out + m * V : 0;
    const int32_t target = a->targets[m];
    if (target < 0 || target >= V) {
      a->loss[m] = 0.0f;
      if (d) __builtin_memset(d, 0, (size_t)V * sizeof(float));
      continue;
    }
    double sum;
    float largest = row_max_sum(x, V, &sum);
    a->loss[m] = (float)(moe_log(sum) + ((double)largest - (double)x[target]));
    if (!d) continue;
    row_exp(d, x, V, largest, (float)((double)a->grad_scale / sum));
    d[target] -= a->grad_scale;
  }
}

/* loss[M] = logsumexp(logits) - logits[target]; a target outside 0..V-1 gives loss and gradient 0.
   dLogits[M,V] (0 for none; may be logits) overwritten: (softmax - onehot) * grad_scale. */
void MOE_KERNEL(cross_entropy)(moe_context *ctx, float *loss, float *d_logits, const float *logits, const int32_t *targets, ptrdiff_t M, ptrdiff_t V, float grad_scale) {
  rows_args a = {.loss = loss, .out = d_logits, .x = logits, .targets = targets, .M = M, .N = V, .grad_scale = grad_scale};
  if (M <= 0) return;
  a.rows = moe_max(1, 16384 / moe_max(1, V));
  moe_parallel_for(ctx, moe_chunks(M, a.rows), cross_entropy_chunk, &a);
}

static void softmax_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const rows_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->M, (chunk + 1) * a->rows);
  for (ptrdiff_t m = chunk * a->rows; m < end; m++) {
    double sum;
    float largest = row_max_sum(a->x + m * a->N, a->N, &sum);
    row_exp(a->out + m * a->N, a->x + m * a->N, a->N, largest, (float)(1.0 / sum));
  }
}

/* out[M,N] = softmax of rows of x[M,N]; out may be x. */
void MOE_KERNEL(softmax_rows)(moe_context *ctx, float *out, const float *x, ptrdiff_t M, ptrdiff_t N) {
  rows_args a = {.out = out, .x = x, .M = M, .N = N};
  if (M <= 0 || N <= 0) return;
  a.rows = moe_max(1, 16384 / N);
  moe_parallel_for(ctx, moe_chunks(M, a.rows), softmax_chunk, &a);
}

static void argmax_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const rows_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->M, (chunk + 1) * a->rows);
  for (ptrdiff_t m = chunk * a->rows; m < end; m++) {
    const float *x = a->x + m * a->N;
    ptrdiff_t best = 0;
    float largest = -__builtin_inff();
    for (ptrdiff_t start = 0; start < a->N; start += BLOCK) {
      float here = block_max(x + start, moe_min(BLOCK, a->N - start));
      if (!(here > largest)) continue;
      largest = here;
      for (best = start; x[best] != largest;) best++;
    }
    a->indices[m] = (int32_t)best;
  }
}

/* out i32[M]: index of the largest of x[M,N], ties to the lower; NaN is never the largest (a row without numbers gives 0). */
void MOE_KERNEL(argmax_rows)(moe_context *ctx, int32_t *out, const float *x, ptrdiff_t M, ptrdiff_t N) {
  rows_args a = {.indices = out, .x = x, .M = M, .N = N};
  if (M <= 0) return;
  a.rows = moe_max(1, 65536 / moe_max(1, N));
  moe_parallel_for(ctx, moe_chunks(M, a.rows), argmax_chunk, &a);
}
