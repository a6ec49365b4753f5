/* simd.h for NEON (AArch64): 4 lanes. */
#include <arm_neon.h>

enum { VL = 4 };
typedef float32x4_t vf;

MOE_INLINE vf v_zero(void) { return vdupq_n_f32(0); }
MOE_INLINE vf v_set1(float f) { return vdupq_n_f32(f); }
MOE_INLINE vf v_load(const float *p) { return vld1q_f32(p); }
MOE_INLINE void v_store(float *p, vf v) { vst1q_f32(p, v); }
MOE_INLINE vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
MOE_INLINE vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
MOE_INLINE vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
/* Values of the low and high bf16 of each 32-bit lane. */
MOE_INLINE vf v_bf16_low(vf v) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(v), 16)); }
MOE_INLINE vf v_bf16_high(vf v) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0xffff0000u)));
}
MOE_INLINE vf v_load_bf16(const moe_bf16 *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
MOE_INLINE void v_store_bf16(moe_bf16 *p, vf v) {
  uint32x4_t u = vreinterpretq_u32_f32(v), high = vshrq_n_u32(u, 16);
  uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
  uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
  uint32x4_t nan = vorrq_u32(high, vdupq_n_u32(0x40));
  vst1_u16(p, vmovn_u32(vbslq_u32(vceqq_f32(v, v), rounded, nan)));
}
MOE_INLINE void v_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
MOE_INLINE void v_prefetch_l2(const void *p) { __builtin_prefetch(p, 0, 2); }

/* Transposes the 4 x 4 block whose rows are r[0..3]. */
MOE_INLINE void v_transpose(vf *r) {
  float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
  r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}
#include "simd_tail4.h"
