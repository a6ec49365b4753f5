/*
 * SwiGLU (arXiv 2002.05202): out = silu(gate) * up, silu(g) = g * sigmoid(g). Elementwise over n elements of dtype.
 */
#include "moe_math.h"

enum { CHUNK = 16384 };

typedef struct {
  void *out, *d_gate, *d_up;
  const void *d_out, *gate, *up;
  ptrdiff_t n;
  int dtype, accumulate;
} swiglu_args;

VFN void swiglu_forward_span(const swiglu_args *a, ptrdiff_t i, ptrdiff_t end, int dtype) {
  for (; i < end; i += 16) {
    ptrdiff_t n = v_step(end - i);
    v16 g = get(a->gate, i, n, dtype);
    put(a->out, i, n, v_mul(v_mul(g, v_sigmoid(g)), get(a->up, i, n, dtype)), dtype);
  }
}

static void swiglu_forward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const swiglu_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->n, (chunk + 1) * CHUNK);
  if (a->dtype == MOE_BF16) swiglu_forward_span(a, chunk * CHUNK, end, MOE_BF16);
  else swiglu_forward_span(a, chunk * CHUNK, end, MOE_F32);
}

/* out[n] = silu(gate[n]) * up[n]. out may be gate or up. */
void MOE_KERNEL(swiglu_forward)(moe_context *ctx, void *out, const void *gate, const void *up, ptrdiff_t n, int dtype) {
  swiglu_args a = {.out = out, .gate = gate, .up = up, .n = n, .dtype = dtype};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), swiglu_forward_chunk, &a);
}

/* With s = sigmoid(g): dUp = dOut * g * s, dGate = dOut * up * s * (1 + g * (1 - s)). */
VFN void swiglu_backward_span(const swiglu_args *a, ptrdiff_t i, ptrdiff_t end, int dtype) {
  const v16 one = v_set(1.0f);
  for (; i < end; i += 16) {
    ptrdiff_t n = v_step(end - i);
    v16 g = get(a->gate, i, n, dtype), u = get(a->up, i, n, dtype), d = get(a->d_out, i, n, dtype), s = v_sigmoid(g);
    v16 d_up = v_mul(d, v_mul(g, s)), d_gate = v_mul(v_mul(d, u), v_mul(s, v_fma(g, v_sub(one, s), one)));
    if (a->accumulate) {
      d_gate = v_add(d_gate, get(a->d_gate, i, n, dtype));
      d_up = v_add(d_up, get(a->d_up, i, n, dtype));
    }
    put(a->d_gate, i, n, d_gate, dtype);
    put(a->d_up, i, n, d_up, dtype);
  }
}

static void swiglu_backward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const swiglu_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->n, (chunk + 1) * CHUNK);
  if (a->dtype == MOE_BF16) swiglu_backward_span(a, chunk * CHUNK, end, MOE_BF16);
  else swiglu_backward_span(a, chunk * CHUNK, end, MOE_F32);
}

/* dGate[n], dUp[n] overwritten (dGate may be gate, dUp may be up), or added to with accumulate. */
void MOE_KERNEL(swiglu_backward)(moe_context *ctx, void *d_gate, void *d_up, const void *d_out, const void *gate, const void *up, ptrdiff_t n, int dtype, int accumulate) {
  swiglu_args a = {.d_gate = d_gate, .d_up = d_up, .d_out = d_out, .gate = gate, .up = up, .n = n, .dtype = dtype, .accumulate = accumulate};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), swiglu_backward_chunk, &a);
}
