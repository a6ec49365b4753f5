/*
 * A thin vector layer: one register of floats per instruction set, and only the operations our kernels use.
 *
 * AVX-512 has 16 lanes, AVX2 8, NEON and WebAssembly 4. It hides names, not cost: every function here
 * is one to a few instructions, and tile sizes stay with the kernels. `v_fma` is fused everywhere but on WebAssembly,
 * which multiplies and then adds. `_n` variants touch only the first n elements in memory, 0 <= n <= VL; lanes not
 * loaded are 0. Pointers need only the alignment of their element. Bit views of floats use the v_..._bits functions.
 */
#ifndef MOE_SIMD_H
#define MOE_SIMD_H
#include "moe.h"


#define MOE_INLINE static inline __attribute__((always_inline, unused))
#define MOE_PRAGMA_(x) _Pragma(#x)
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed" /* loops of one step, after inlining */
#define MOE_UNROLL(n) MOE_PRAGMA_(unroll)
#else
#define MOE_UNROLL(n) MOE_PRAGMA_(GCC unroll n)
#endif

MOE_INLINE float bf16_to_f32(moe_bf16 h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

/* Round to nearest even; a NaN stays a NaN (made quiet). */
MOE_INLINE moe_bf16 f32_to_bf16(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (moe_bf16)((u >> 16) | 0x40);
  return (moe_bf16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__aarch64__)
#include "simd_neon.h"
#elif defined(__wasm_simd128__)
#include "simd_wasm.h"
#else
#error "simd.h: no instruction set chosen (compile a kernel file with the flags of its set)"
#endif

/* Loads and stores of either storage type; `dtype` is a constant after inlining in hot loops. `index` counts elements. */
MOE_INLINE vf v_load_as(const void *p, ptrdiff_t index, int dtype) {
  return dtype == MOE_F32 ? v_load((const float *)p + index) : v_load_bf16((const moe_bf16 *)p + index);
}
MOE_INLINE vf v_load_as_n(const void *p, ptrdiff_t index, int dtype, int n) {
  return dtype == MOE_F32 ? v_load_n((const float *)p + index, n) : v_load_bf16_n((const moe_bf16 *)p + index, n);
}
MOE_INLINE void v_store_as(void *p, ptrdiff_t index, int dtype, vf v) {
  if (dtype == MOE_F32) v_store((float *)p + index, v);
  else v_store_bf16((moe_bf16 *)p + index, v);
}
MOE_INLINE void v_store_as_n(void *p, ptrdiff_t index, int dtype, vf v, int n) {
  if (dtype == MOE_F32) v_store_n((float *)p + index, v, n);
  else v_store_bf16_n((moe_bf16 *)p + index, v, n);
}
MOE_INLINE float load_as(const void *p, ptrdiff_t index, int dtype) {
  return dtype == MOE_F32 ? ((const float *)p)[index] : bf16_to_f32(((const moe_bf16 *)p)[index]);
}
MOE_INLINE void store_as(void *p, ptrdiff_t index, int dtype, float f) {
  if (dtype == MOE_F32) ((float *)p)[index] = f;
  else ((moe_bf16 *)p)[index] = f32_to_bf16(f);
}

/* Bytes of an element of a storage type that kernels compute on. */
MOE_INLINE size_t dtype_size(int dtype) { return dtype == MOE_F32 || dtype == MOE_I32 ? 4 : dtype == MOE_FP8 ? 1 : 2; }
#endif
