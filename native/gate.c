/*
 * Small pieces around a router: tanh (two-layer gate), the sigmoid gate of a shared expert, multiplicative noise on a router's
 * input. Legend: T tokens, H features, n elements.
 */
#include "moe_math.h"

enum { CHUNK = 8192 };

typedef struct {
  void *out;
  float *d_gate;
  const void *x, *d_out;
  const float *gate;
  ptrdiff_t T, H, rows, first_row;
  uint32_t high, low;
  float scale;
  int dtype;
} gate_args;

static void tanh_forward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const gate_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * CHUNK);
  for (ptrdiff_t i = chunk * CHUNK; i < end; i += 16) {
    ptrdiff_t n = v_step(end - i);
    put(a->out, i, n, v_tanh(get(a->x, i, n, MOE_F32)), MOE_F32);
  }
}

/* out[n] = tanh(x), f32; out may be x. */
void MOE_KERNEL(tanh_forward)(moe_context *ctx, float *out, const float *x, ptrdiff_t n) {
  gate_args a = {.out = out, .x = x, .T = n};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), tanh_forward_chunk, &a);
}

static void tanh_backward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const gate_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * CHUNK);
  for (ptrdiff_t i = chunk * CHUNK; i < end; i += 16) {
    ptrdiff_t n = v_step(end - i);
    v16 y = get(a->x, i, n, MOE_F32), one = v_set(1.0f);
    put(a->out, i, n, v_mul(get(a->d_out, i, n, MOE_F32), v_mul(v_sub(one, y), v_add(one, y))), MOE_F32);
  }
}

/* dx[n] = dOut * (1 - out^2), f32; dx may be dOut. */
void MOE_KERNEL(tanh_backward)(moe_context *ctx, float *dx, const float *d_out, const float *out, ptrdiff_t n) {
  gate_args a = {.out = dx, .d_out = d_out, .x = out, .T = n};
  moe_parallel_for(ctx, moe_chunks(n, CHUNK), tanh_backward_chunk, &a);
}

static float sigmoid(float x) {
  float t[V_LANES];
  v_store(t, v_sigmoid(v_set(x)));
  return t[0];
}

VFN void sigmoid_gate_row(const gate_args *a, ptrdiff_t t, int dtype) {
  const void *x = at(a->x, t * a->H, dtype);
  void *out = at_out(a->out, t * a->H, dtype);
  const v16 factor = v_set(a->scale * sigmoid(a->gate[t]));
  for (ptrdiff_t i = 0; i < a->H; i += 16) {
    ptrdiff_t n = v_step(a->H - i);
    put(out, i, n, v_mul(factor, get(x, i, n, dtype)), dtype);
  }
}

static void sigmoid_gate_forward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const gate_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * a->rows);
  for (ptrdiff_t t = chunk * a->rows; t < end; t++) {
    if (a->dtype == MOE_BF16) sigmoid_gate_row(a, t, MOE_BF16);
    else sigmoid_gate_row(a, t, MOE_F32);
  }
}

static ptrdiff_t rows_per_chunk(ptrdiff_t H) { return moe_max(1, 16384 / moe_max(1, H)); }

/* out[T,H] (dtype) = scale * sigmoid(gate[t]) * x[t], gate f32[T]; out may be x. */
void MOE_KERNEL(sigmoid_gate_forward)(moe_context *ctx, void *out, const void *x, const float *gate, ptrdiff_t T, ptrdiff_t H, float scale, int dtype) {
  gate_args a = {.out = out, .x = x, .gate = gate, .T = T, .H = H, .rows = rows_per_chunk(H), .scale = scale, .dtype = dtype};
  moe_parallel_for(ctx, moe_chunks(T, a.rows), sigmoid_gate_forward_chunk, &a);
}

/* With s = sigmoid(gate): dx = scale s dOut, dGate = scale s (1 - s) dot(dOut, x), the dot in two chains in turn. */
VFN void sigmoid_gate_backward_row(const gate_args *a, ptrdiff_t t, int dtype) {
  const void *x = at(a->x, t * a->H, dtype), *d_out = at(a->d_out, t * a->H, dtype);
  void *dx = at_out(a->out, t * a->H, dtype);
  const float s = sigmoid(a->gate[t]);
  v16 even = v_set(0), odd = v_set(0), factor = v_set(a->scale * s);
  for (ptrdiff_t i = 0; i < a->H; i += 16) {
    ptrdiff_t n = v_step(a->H - i);
    v16 d = get(d_out, i, n, dtype), next = v_fma(d, get(x, i, n, dtype), odd);
    put(dx, i, n, v_mul(factor, d), dtype);
    odd = even;
    even = next;
  }
  a->d_gate[t] = a->scale * s * (1.0f - s) * v_sum(v_add(even, odd));
}

static void sigmoid_gate_backward_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const gate_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * a->rows);
  for (ptrdiff_t t = chunk * a->rows; t < end; t++) {
    if (a->dtype == MOE_BF16) sigmoid_gate_backward_row(a, t, MOE_BF16);
    else sigmoid_gate_backward_row(a, t, MOE_F32);
  }
}

/* dx[T,H] (dtype) and dGate f32[T] overwritten, from dOut[T,H], x[T,H] and gate f32[T]. */
void MOE_KERNEL(sigmoid_gate_backward)(moe_context *ctx, void *dx, float *d_gate, const void *d_out, const void *x, const float *gate, ptrdiff_t T, ptrdiff_t H, float scale, int dtype) {
  gate_args a = {.out = dx, .d_gate = d_gate, .d_out = d_out, .x = x, .gate = gate, .T = T, .H = H, .rows = rows_per_chunk(H), .scale = scale, .dtype = dtype};
  moe_parallel_for(ctx, moe_chunks(T, a.rows), sigmoid_gate_backward_chunk, &a);
}

static inline uint32_t mix(uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

static void jitter_chunk(void *argument, ptrdiff_t chunk, int thread) {
  const gate_args *a = argument;
  (void)thread;
  ptrdiff_t end = moe_min(a->T, (chunk + 1) * a->rows);
  for (ptrdiff_t t = chunk * a->rows; t < end; t++) {
    const uint32_t row = mix(mix(mix(a->high) ^ a->low) ^ (uint32_t)(a->first_row + t));
    const float *x = (const float *)a->x + t * a->H, epsilon = a->scale;
    float *out = (float *)a->out + t * a->H;
    for (ptrdiff_t i = 0; i < a->H; i++) {
      float v = (float)(int32_t)(mix(row + (uint32_t)i * 0x9e3779b9u) >> 8) * 0x1p-23f - 1.0f;
      out[i] = x[i] * (1.0f + epsilon * v);
    }
  }
}

/* out[T,H] = x * u, u in [1 - epsilon, 1 + epsilon) a function of the key, the row's number (first_row + t) and the column; f32. */
void MOE_KERNEL(jitter)(moe_context *ctx, float *out, const float *x, ptrdiff_t T, ptrdiff_t H, ptrdiff_t first_row, int key_high, int key_low, float epsilon) {
  gate_args a = {.out = out, .x = x, .T = T, .H = H, .rows = rows_per_chunk(H), .first_row = first_row, .high = (uint32_t)key_high, .low = (uint32_t)key_low, .scale = epsilon};
  moe_parallel_for(ctx, moe_chunks(T, a.rows), jitter_chunk, &a);
}
