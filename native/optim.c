/*
 * Decoupled AdamW (arXiv 1711.05101), one fused pass over n parameters:
 *   g = grad * gradScale;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
 *   master -= lr * (weightDecay * master + (m / c1) / (sqrt(v / c2) + eps));  weight = rounded master.
 */
#include "vec.h"

enum { CHUNK = 16384 };

typedef struct {
  void *weight;
  float *master, *m, *v;
  const float *grad;
  ptrdiff_t n;
  float lr, beta1, beta2, eps, decay, c1, c2, grad_scale;
  int dtype;
} adamw_args;

VFN void adamw_span(const adamw_args *a, ptrdiff_t i, ptrdiff_t end, int dtype) {
  const v16 b1 = v_set(a->beta1), b2 = v_set(a->beta2), r1 = v_set(1.0f - a->beta1), r2 = v_set(1.0f - a->beta2);
  const v16 i1 = v_set((float)(1.0 / (double)a->c1)), i2 = v_set((float)(1.0 / (double)a->c2));
  const v16 lr = v_set(-a->lr), decay = v_set(a->decay), eps = v_set(a->eps), gs = v_set(a->grad_scale);
  for (; i < end; i += 16) {
    ptrdiff_t k = v_step(end - i);
    v16 g = v_mul(get(a->grad, i, k, MOE_F32), gs), w = get(a->master, i, k, MOE_F32);
    v16 m = v_fma(b1, get(a->m, i, k, MOE_F32), v_mul(r1, g));
    v16 v = v_fma(b2, get(a->v, i, k, MOE_F32), v_mul(r2, v_mul(g, g)));
    v16 step = v_div(v_mul(m, i1), v_add(v_sqrt(v_mul(v, i2)), eps));
    w = v_fma(lr, v_fma(decay, w, step), w);
    put(a->m, i, k, m, MOE_F32);
    put(a->v, i, k, v, MOE_F32);
    put(a->master, i, k, w, MOE_F32);
    if (a->weight) put(a->weight, i, k, w, dtype);
  }
}

static void adamw_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const adamw_args *a = argument;
  ptrdiff_t end = moe_min(a->n, (chunk + 1) * CHUNK);
  (void)thread;
  if (a->dtype == MOE_BF16) adamw_span(a, chunk * CHUNK, end, MOE_BF16);
  else adamw_span(a, chunk * CHUNK, end, MOE_F32);
}

/* master, m, v [n] f32 in place; weight[n] (weight_dtype; 0 for none) overwritten; grad[n] f32 read. master may be weight when f32. */
void MOE_KERNEL(adamw_step)(moe_context *ctx, void *weight, float *master, float *m, float *v, const float *grad, ptrdiff_t n, float learning_rate, float beta1, float beta2, float eps, float weight_decay, float bias_correction1, float bias_correction2, float grad_scale, int weight_dtype) {
  adamw_args a = {weight == (void *)master ? 0 : weight, master, m, v, grad, n, learning_rate, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale, weight_dtype};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), adamw_chunk, &a);
}
