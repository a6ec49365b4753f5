/* simd.h for WebAssembly simd128: 4 lanes, no fused multiply-add (it multiplies, rounds, then adds). */
#include <wasm_simd128.h>

enum { VL = 4 };
typedef v128_t vf;

MOE_INLINE vf v_zero(void) { return wasm_f32x4_const_splat(0); }
MOE_INLINE vf v_set1(float f) { return wasm_f32x4_splat(f); }
MOE_INLINE vf v_load(const float *p) { return wasm_v128_load(p); }
MOE_INLINE void v_store(float *p, vf v) { wasm_v128_store(p, v); }
MOE_INLINE vf v_add(vf a, vf b) { return wasm_f32x4_add(a, b); }
MOE_INLINE vf v_mul(vf a, vf b) { return wasm_f32x4_mul(a, b); }
MOE_INLINE vf v_fma(vf a, vf b, vf c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }
/* Values of the low and high bf16 of each 32-bit lane. */
MOE_INLINE vf v_bf16_low(vf v) { return wasm_i32x4_shl(v, 16); }
MOE_INLINE vf v_bf16_high(vf v) { return wasm_v128_and(v, wasm_i32x4_const_splat((int)0xffff0000)); }
MOE_INLINE vf v_load_bf16(const moe_bf16 *p) { return wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16); }
MOE_INLINE void v_store_bf16(moe_bf16 *p, vf v) {
  v128_t high = wasm_u32x4_shr(v, 16);
  v128_t odd = wasm_v128_and(high, wasm_i32x4_const_splat(1));
  v128_t rounded = wasm_u32x4_shr(wasm_i32x4_add(v, wasm_i32x4_add(odd, wasm_i32x4_const_splat(0x7fff))), 16);
  v128_t nan = wasm_v128_or(high, wasm_i32x4_const_splat(0x40));
  v128_t w = wasm_v128_bitselect(rounded, nan, wasm_f32x4_eq(v, v));
  wasm_v128_store64_lane(p, wasm_u16x8_narrow_i32x4(w, w), 0);
}
MOE_INLINE void v_prefetch(const void *p) { (void)p; }
MOE_INLINE void v_prefetch_l2(const void *p) { (void)p; }

/* Transposes the 4 x 4 block whose rows are r[0..3]. */
MOE_INLINE void v_transpose(vf *r) {
  v128_t a = wasm_i32x4_shuffle(r[0], r[1], 0, 4, 1, 5), b = wasm_i32x4_shuffle(r[2], r[3], 0, 4, 1, 5);
  v128_t c = wasm_i32x4_shuffle(r[0], r[1], 2, 6, 3, 7), d = wasm_i32x4_shuffle(r[2], r[3], 2, 6, 3, 7);
  r[0] = wasm_i64x2_shuffle(a, b, 0, 2);
  r[1] = wasm_i64x2_shuffle(a, b, 1, 3);
  r[2] = wasm_i64x2_shuffle(c, d, 0, 2);
  r[3] = wasm_i64x2_shuffle(c, d, 1, 3);
}
#include "simd_tail4.h"
