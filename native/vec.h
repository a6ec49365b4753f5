/*
 * v16: sixteen f32 lanes, the one vector that every kernel outside the matrix multiplications is written in.
 *
 * The logical width is fixed, so a sum over lanes has one order and every native instruction set gives the same bits: one
 * 512-bit register on AVX-512, two of 256 bits on AVX2, four of 128 bits on NEON and WebAssembly. v_fma is one rounding
 * natively; WebAssembly has no fused multiply-add and rounds twice. Not here: matrix tiles (tile.h), exp and the rest (moe_math.h).
 *
 * v_max(a, b) is a > b ? a : b and v_min(a, b) is a < b ? a : b: with a constant first, a NaN in b comes through.
 */
#ifndef MOE_VEC_H
#define MOE_VEC_H
#include "moe.h"

#define VFN static inline __attribute__((always_inline, unused))
#if defined(__clang__)
#define MOE_UNROLL _Pragma("unroll")
#else
#define MOE_UNROLL _Pragma("GCC unroll 16")
#endif

/* ---- the native register: p (f32), pi (i32) ---- */
#if defined(__AVX512F__)
#include <immintrin.h>
#define V_PARTS 1
typedef __m512 vp;
typedef __m512i vpi;
#define p_set(x) _mm512_set1_ps(x)
#define p_load(q) _mm512_loadu_ps(q)
#define p_store(q, a) _mm512_storeu_ps(q, a)
#define p_add(a, b) _mm512_add_ps(a, b)
#define p_sub(a, b) _mm512_sub_ps(a, b)
#define p_mul(a, b) _mm512_mul_ps(a, b)
#define p_div(a, b) _mm512_div_ps(a, b)
#define p_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define p_max(a, b) _mm512_max_ps(a, b)
#define p_min(a, b) _mm512_min_ps(a, b)
#define p_sqrt(a) _mm512_sqrt_ps(a)
VFN vp p_scale2(vp a, vp n, vp bits) {
  (void)bits;
  return _mm512_scalef_ps(a, n);
}
#define p_clear_below(a, x, limit) _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a)
#define p_low_half(a) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 16))
#define p_high_half(a) _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32((int)0xffff0000)))
VFN vp p_load_bf16(const moe_bf16 *q) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)q)), 16)); }
VFN void p_store_bf16(moe_bf16 *q, vp a) {
  __m512i u = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  _mm256_storeu_si256((__m256i *)q, _mm512_cvtepi32_epi16(r));
}
#elif defined(__AVX2__)
#include <immintrin.h>
#define V_PARTS 2
typedef __m256 vp;
typedef __m256i vpi;
#define p_set(x) _mm256_set1_ps(x)
#define p_load(q) _mm256_loadu_ps(q)
#define p_store(q, a) _mm256_storeu_ps(q, a)
#define p_add(a, b) _mm256_add_ps(a, b)
#define p_sub(a, b) _mm256_sub_ps(a, b)
#define p_mul(a, b) _mm256_mul_ps(a, b)
#define p_div(a, b) _mm256_div_ps(a, b)
#define p_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define p_max(a, b) _mm256_max_ps(a, b)
#define p_min(a, b) _mm256_min_ps(a, b)
#define p_sqrt(a) _mm256_sqrt_ps(a)
/* a * 2^n in two steps, because 2^128 is no float; bits: n + 1.5 * 2^23 as a float's bits. */
VFN vp p_scale2(vp a, vp n, vp bits) {
  __m256i i = _mm256_sub_epi32(_mm256_castps_si256(bits), _mm256_set1_epi32(0x4b400000)), half = _mm256_srai_epi32(i, 1);
  __m256i bias = _mm256_set1_epi32(127), rest = _mm256_sub_epi32(i, half);
  (void)n;
  a = _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
#define p_clear_below(a, x, limit) _mm256_and_ps(a, _mm256_cmp_ps(x, limit, _CMP_NLT_UQ))
#define p_low_half(a) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16))
#define p_high_half(a) _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32((int)0xffff0000)))
VFN vp p_load_bf16(const moe_bf16 *q) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)q)), 16)); }
VFN void p_store_bf16(moe_bf16 *q, vp a) {
  __m256i u = _mm256_castps_si256(a), high = _mm256_srli_epi32(u, 16), odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
  r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  _mm_storeu_si128((__m128i *)q, _mm256_castsi256_si128(r));
}
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define V_PARTS 4
typedef float32x4_t vp;
#define p_set(x) vdupq_n_f32(x)
#define p_load(q) vld1q_f32(q)
#define p_store(q, a) vst1q_f32(q, a)
#define p_add(a, b) vaddq_f32(a, b)
#define p_sub(a, b) vsubq_f32(a, b)
#define p_mul(a, b) vmulq_f32(a, b)
#define p_div(a, b) vdivq_f32(a, b)
#define p_fma(a, b, c) vfmaq_f32(c, a, b)
#define p_max(a, b) vbslq_f32(vcgtq_f32(a, b), a, b)
#define p_min(a, b) vbslq_f32(vcltq_f32(a, b), a, b)
#define p_sqrt(a) vsqrtq_f32(a)
VFN vp p_scale2(vp a, vp n, vp bits) {
  int32x4_t i = vsubq_s32(vreinterpretq_s32_f32(bits), vdupq_n_s32(0x4b400000)), half = vshrq_n_s32(i, 1);
  int32x4_t bias = vdupq_n_s32(127), rest = vsubq_s32(i, half);
  (void)n;
  a = vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23)));
  return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23)));
}
#define p_clear_below(a, x, limit) vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vcltq_f32(x, limit)))
#define p_low_half(a) vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 16))
#define p_high_half(a) vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0xffff0000u)))
VFN vp p_load_bf16(const moe_bf16 *q) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(q), 16)); }
VFN void p_store_bf16(moe_bf16 *q, vp a) {
  uint32x4_t u = vreinterpretq_u32_f32(a), high = vshrq_n_u32(u, 16), odd = vandq_u32(high, vdupq_n_u32(1));
  uint32x4_t r = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
  vst1_u16(q, vmovn_u32(vbslq_u32(vceqq_f32(a, a), r, vorrq_u32(high, vdupq_n_u32(0x40)))));
}
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#define V_PARTS 4
typedef v128_t vp;
#define p_set(x) wasm_f32x4_splat(x)
#define p_load(q) wasm_v128_load(q)
#define p_store(q, a) wasm_v128_store(q, a)
#define p_add(a, b) wasm_f32x4_add(a, b)
#define p_sub(a, b) wasm_f32x4_sub(a, b)
#define p_mul(a, b) wasm_f32x4_mul(a, b)
#define p_div(a, b) wasm_f32x4_div(a, b)
#define p_fma(a, b, c) wasm_f32x4_add(wasm_f32x4_mul(a, b), c)
#define p_max(a, b) wasm_f32x4_pmax(b, a)
#define p_min(a, b) wasm_f32x4_pmin(b, a)
#define p_sqrt(a) wasm_f32x4_sqrt(a)
VFN vp p_scale2(vp a, vp n, vp bits) {
  v128_t i = wasm_i32x4_sub(bits, wasm_i32x4_splat(0x4b400000)), half = wasm_i32x4_shr(i, 1);
  v128_t bias = wasm_i32x4_splat(127), rest = wasm_i32x4_sub(i, half);
  (void)n;
  a = wasm_f32x4_mul(a, wasm_i32x4_shl(wasm_i32x4_add(half, bias), 23));
  return wasm_f32x4_mul(a, wasm_i32x4_shl(wasm_i32x4_add(rest, bias), 23));
}
#define p_clear_below(a, x, limit) wasm_v128_andnot(a, wasm_f32x4_lt(x, limit))
#define p_low_half(a) wasm_i32x4_shl(a, 16)
#define p_high_half(a) wasm_v128_and(a, wasm_i32x4_splat((int)0xffff0000))
VFN vp p_load_bf16(const moe_bf16 *q) { return wasm_i32x4_shl(wasm_u32x4_load16x4(q), 16); }
VFN void p_store_bf16(moe_bf16 *q, vp a) {
  v128_t high = wasm_u32x4_shr(a, 16), odd = wasm_v128_and(high, wasm_i32x4_splat(1));
  v128_t r = wasm_u32x4_shr(wasm_i32x4_add(a, wasm_i32x4_add(odd, wasm_i32x4_splat(0x7fff))), 16);
  r = wasm_v128_bitselect(r, wasm_v128_or(high, wasm_i32x4_splat(0x40)), wasm_f32x4_eq(a, a));
  r = wasm_u16x8_narrow_i32x4(r, r);
  wasm_v128_store64_lane(q, r, 0);
}
#else
#error "vec.h knows AVX-512, AVX2 with FMA, NEON and WebAssembly simd128"
#endif

/* ---- sixteen lanes ---- */
typedef struct { vp p[V_PARTS]; } v16;
enum { V_LANES = 16, V_PART_LANES = V_LANES / V_PARTS };
#if V_PARTS == 1
#define V_EACH(S, op) S(0, op)
#elif V_PARTS == 2
#define V_EACH(S, op) S(0, op) S(1, op)
#else
#define V_EACH(S, op) S(0, op) S(1, op) S(2, op) S(3, op)
#endif
#define V_S1(i, op) r.p[i] = op(a.p[i]);
#define V_S2(i, op) r.p[i] = op(a.p[i], b.p[i]);
#define V_S3(i, op) r.p[i] = op(a.p[i], b.p[i], c.p[i]);
#define V_SET(i, x) r.p[i] = p_set(x);
#define V_LOAD(i, op) r.p[i] = op(q + i * V_PART_LANES);
#define V_STORE(i, op) op(q + i * V_PART_LANES, a.p[i]);
#define V_OP2(name, op) VFN v16 name(v16 a, v16 b) { v16 r; V_EACH(V_S2, op) return r; }

VFN v16 v_set(float x) { v16 r; V_EACH(V_SET, x) return r; }
VFN v16 v_load(const float *q) { v16 r; V_EACH(V_LOAD, p_load) return r; }
VFN void v_store(float *q, v16 a) { V_EACH(V_STORE, p_store) }
VFN v16 v_load_bf16(const moe_bf16 *q) { v16 r; V_EACH(V_LOAD, p_load_bf16) return r; }
VFN void v_store_bf16(moe_bf16 *q, v16 a) { V_EACH(V_STORE, p_store_bf16) }
V_OP2(v_add, p_add)
V_OP2(v_sub, p_sub)
V_OP2(v_mul, p_mul)
V_OP2(v_div, p_div)
V_OP2(v_max, p_max)
V_OP2(v_min, p_min)
VFN v16 v_sqrt(v16 a) { v16 r; V_EACH(V_S1, p_sqrt) return r; }
/* The two bf16 numbers of each 32-bit lane, widened: v_low_half the one at the lower address. */
VFN v16 v_low_half(v16 a) { v16 r; V_EACH(V_S1, p_low_half) return r; }
VFN v16 v_high_half(v16 a) { v16 r; V_EACH(V_S1, p_high_half) return r; }
/* a * b + c, one rounding where the instruction set has it. */
VFN v16 v_fma(v16 a, v16 b, v16 c) { v16 r; V_EACH(V_S3, p_fma) return r; }
/* a * 2^n for integral -126 <= n <= 128; bits = n + 1.5 * 2^23. */
VFN v16 v_scale2(v16 a, v16 b, v16 c) { v16 r; V_EACH(V_S3, p_scale2) return r; }

/* a, but 0 in lanes where b < c. */
VFN v16 v_clear_below(v16 a, v16 b, v16 c) { v16 r; V_EACH(V_S3, p_clear_below) return r; }

/* Lane sums and maxima in the fixed tree (i, i+8), (i, i+4), (i, i+2), (i, i+1). */
#if V_PARTS <= 2
#if V_PARTS == 1
#define V_FOLD8(op, a) op(_mm512_castps512_ps256(a.p[0]), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.p[0]), 1)))
#else
#define V_FOLD8(op, a) op(a.p[0], a.p[1])
#endif
#define V_REDUCE(name, op8, op4) VFN float name(v16 a) { \
  __m256 e = V_FOLD8(op8, a); \
  __m128 f = op4(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1)); \
  f = op4(f, _mm_movehl_ps(f, f)); \
  return _mm_cvtss_f32(op4(f, _mm_movehdup_ps(f))); }
V_REDUCE(v_sum, _mm256_add_ps, _mm_add_ps)
V_REDUCE(v_largest, _mm256_max_ps, _mm_max_ps)
#else
#define V_REDUCE(name, op, scalar) VFN float name(v16 a) { \
  float t[4]; \
  p_store(t, op(op(a.p[0], a.p[2]), op(a.p[1], a.p[3]))); \
  float even = scalar(t[0], t[2]), odd = scalar(t[1], t[3]); \
  return scalar(even, odd); }
#define V_ADD_SCALAR(a, b) ((a) + (b))
#define V_MAX_SCALAR(a, b) ((a) > (b) ? (a) : (b))
V_REDUCE(v_sum, p_add, V_ADD_SCALAR)
V_REDUCE(v_largest, p_max, V_MAX_SCALAR)
#endif

/* Lanes first..last-1 of a, `other` in the rest (0 <= first, last <= 16). */
VFN v16 v_keep(v16 a, int first, int last, float other) {
#if V_PARTS == 1
  v16 r;
  unsigned mask = last > first ? ((1u << last) - 1u) & ~((1u << first) - 1u) : 0u;
  r.p[0] = _mm512_mask_mov_ps(_mm512_set1_ps(other), (__mmask16)mask, a.p[0]);
  return r;
#else
  float t[V_LANES];
  v_store(t, a);
  for (int i = 0; i < V_LANES; i++)
    if (i < first || i >= last) t[i] = other;
  return v_load(t);
#endif
}

/* ---- storage types: dtype is a compile-time constant at every call, n is 1..16 elements ---- */
VFN float moe_bits_to_f32(uint32_t u) { float f; __builtin_memcpy(&f, &u, 4); return f; }
VFN uint32_t moe_f32_to_bits(float f) { uint32_t u; __builtin_memcpy(&u, &f, 4); return u; }
VFN float moe_from_bf16(moe_bf16 h) { return moe_bits_to_f32((uint32_t)h << 16); }
VFN moe_bf16 moe_to_bf16(float f) {
  uint32_t u = moe_f32_to_bits(f);
  return (moe_bf16)(f != f ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
VFN v16 ld(const void *p, ptrdiff_t i, int dtype) { return dtype == MOE_BF16 ? v_load_bf16((const moe_bf16 *)p + i) : v_load((const float *)p + i); }
VFN void st(void *p, ptrdiff_t i, v16 a, int dtype) {
  if (dtype == MOE_BF16) v_store_bf16((moe_bf16 *)p + i, a);
  else v_store((float *)p + i, a);
}
/* Tails: lanes n.. are zero when loaded and are not stored. */
VFN v16 ld_n(const void *p, ptrdiff_t i, ptrdiff_t n, int dtype) {
#if V_PARTS == 1
  __mmask16 mask = (__mmask16)((1u << n) - 1u);
  v16 r;
  if (dtype == MOE_BF16) r.p[0] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const moe_bf16 *)p + i)), 16));
  else r.p[0] = _mm512_maskz_loadu_ps(mask, (const float *)p + i);
  return r;
#else
  float t[V_LANES] = {0};
  for (ptrdiff_t j = 0; j < n; j++) t[j] = dtype == MOE_BF16 ? moe_from_bf16(((const moe_bf16 *)p)[i + j]) : ((const float *)p)[i + j];
  return v_load(t);
#endif
}
VFN void st_n(void *p, ptrdiff_t i, ptrdiff_t n, v16 a, int dtype) {
  float t[V_LANES];
  v_store(t, a);
  for (ptrdiff_t j = 0; j < n; j++) {
    if (dtype == MOE_BF16) ((moe_bf16 *)p)[i + j] = moe_to_bf16(t[j]);
    else ((float *)p)[i + j] = t[j];
  }
}
VFN ptrdiff_t moe_element_bytes(int dtype) { return dtype == MOE_BF16 || dtype == MOE_F16 ? 2 : 4; }
VFN ptrdiff_t moe_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
VFN ptrdiff_t moe_max(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
VFN ptrdiff_t moe_chunks(ptrdiff_t n, ptrdiff_t size) { return (n + size - 1) / size; }
/* Address of element i. */
VFN const void *at(const void *p, ptrdiff_t i, int dtype) { return (const char *)p + i * moe_element_bytes(dtype); }
VFN void *at_out(void *p, ptrdiff_t i, int dtype) { return (char *)p + i * moe_element_bytes(dtype); }

/* w elements from i, 1 <= w <= 16: the step of every loop over a row, `for (i = 0; i < n; i += 16)` with w = v_step(n - i). */
VFN ptrdiff_t v_step(ptrdiff_t left) { return left < V_LANES ? left : V_LANES; }
VFN v16 get(const void *p, ptrdiff_t i, ptrdiff_t w, int dtype) { return w == V_LANES ? ld(p, i, dtype) : ld_n(p, i, w, dtype); }
VFN void put(void *p, ptrdiff_t i, ptrdiff_t w, v16 a, int dtype) {
  if (w == V_LANES) st(p, i, a, dtype);
  else st_n(p, i, w, a, dtype);
}
#endif
