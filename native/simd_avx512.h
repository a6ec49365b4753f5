/* simd.h for AVX-512 (F, BW, VL, DQ): 16 lanes, masks for tails. */
#include <immintrin.h>

enum { VL = 16 };
typedef __m512 vf;

MOE_INLINE __mmask16 v_mask(int n) { return (__mmask16)((1u << n) - 1); }
MOE_INLINE vf v_zero(void) { return _mm512_setzero_ps(); }
MOE_INLINE vf v_set1(float f) { return _mm512_set1_ps(f); }
MOE_INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
MOE_INLINE vf v_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(v_mask(n), p); }
MOE_INLINE void v_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
MOE_INLINE void v_store_n(float *p, vf v, int n) { _mm512_mask_storeu_ps(p, v_mask(n), v); }
MOE_INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
MOE_INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
MOE_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
/* Denormals count as 0, in operands and results, until the control word that is returned is put back. */
MOE_INLINE unsigned int v_denormals_off(void) {
  const unsigned int control = _mm_getcsr();
  _mm_setcsr(control | 0x8040);
  return control;
}
MOE_INLINE void v_denormals_as(unsigned int control) { _mm_setcsr(control); }
/* Values of the low and high bf16 of each 32-bit lane. */
MOE_INLINE vf v_bf16_low(vf v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 16)); }
MOE_INLINE vf v_bf16_high(vf v) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32((int)0xffff0000)));
}
MOE_INLINE vf v_widen_(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
MOE_INLINE vf v_load_bf16(const moe_bf16 *p) { return v_widen_(_mm256_loadu_si256((const __m256i *)p)); }
MOE_INLINE vf v_load_bf16_n(const moe_bf16 *p, int n) { return v_widen_(_mm256_maskz_loadu_epi16(v_mask(n), p)); }
MOE_INLINE __m256i v_narrow_(vf v) {
  __m512i u = _mm512_castps_si512(v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  __m512i nan = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan));
}
MOE_INLINE void v_store_bf16(moe_bf16 *p, vf v) { _mm256_storeu_si256((__m256i *)p, v_narrow_(v)); }
MOE_INLINE void v_store_bf16_n(moe_bf16 *p, vf v, int n) { _mm256_mask_storeu_epi16(p, v_mask(n), v_narrow_(v)); }
MOE_INLINE void v_prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
MOE_INLINE void v_prefetch_l2(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }

/* Transposes the 16 x 16 block whose rows are r[0..15]. */
MOE_INLINE void v_transpose(vf *r) {
  __m512 t[16], u[16];
  MOE_UNROLL(8)
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  MOE_UNROLL(4)
  for (int i = 0; i < 4; i++) {
    __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    u[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    u[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    u[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    u[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  /* u[4g + c] holds column c, c + 4, c + 8, c + 12 of rows 4g..4g+3, one a 128-bit quarter. */
  MOE_UNROLL(4)
  for (int c = 0; c < 4; c++) {
    __m512 a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
    __m512 d = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88), e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
    r[c] = _mm512_shuffle_f32x4(a, d, 0x88);
    r[8 + c] = _mm512_shuffle_f32x4(a, d, 0xdd);
    r[4 + c] = _mm512_shuffle_f32x4(b, e, 0x88);
    r[12 + c] = _mm512_shuffle_f32x4(b, e, 0xdd);
  }
}
