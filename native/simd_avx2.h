/* simd.h for AVX2 with FMA: 8 lanes. */
#include <immintrin.h>

enum { VL = 8 };
typedef __m256 vf;

/* All ones in the first n lanes: a window into eight ones followed by eight zeros. */
MOE_INLINE __m256i v_mask(int n) {
  static const int32_t window[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256((const __m256i *)(window + 8 - n));
}
MOE_INLINE vf v_zero(void) { return _mm256_setzero_ps(); }
MOE_INLINE vf v_set1(float f) { return _mm256_set1_ps(f); }
MOE_INLINE vf v_load(const float *p) { return _mm256_loadu_ps(p); }
MOE_INLINE vf v_load_n(const float *p, int n) { return _mm256_maskload_ps(p, v_mask(n)); }
MOE_INLINE void v_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
MOE_INLINE void v_store_n(float *p, vf v, int n) { _mm256_maskstore_ps(p, v_mask(n), v); }
MOE_INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
MOE_INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
MOE_INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
/* Values of the low and high bf16 of each 32-bit lane. */
MOE_INLINE vf v_bf16_low(vf v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 16)); }
MOE_INLINE vf v_bf16_high(vf v) {
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32((int)0xffff0000)));
}
MOE_INLINE vf v_widen_(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
MOE_INLINE vf v_load_bf16(const moe_bf16 *p) { return v_widen_(_mm_loadu_si128((const __m128i *)p)); }
MOE_INLINE vf v_load_bf16_n(const moe_bf16 *p, int n) {
  moe_bf16 t[8] = {0};
  for (int i = 0; i < n; i++) t[i] = p[i];
  return v_load_bf16(t);
}
MOE_INLINE __m128i v_narrow_(vf v) {
  __m256i u = _mm256_castps_si256(v), high = _mm256_srli_epi32(u, 16);
  __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  __m256i nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  __m256i isNan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  __m256i w = _mm256_blendv_epi8(rounded, nan, isNan);
  return _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
}
MOE_INLINE void v_store_bf16(moe_bf16 *p, vf v) { _mm_storeu_si128((__m128i *)p, v_narrow_(v)); }
MOE_INLINE void v_store_bf16_n(moe_bf16 *p, vf v, int n) {
  moe_bf16 t[8];
  v_store_bf16(t, v);
  for (int i = 0; i < n; i++) p[i] = t[i];
}
MOE_INLINE void v_prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
MOE_INLINE void v_prefetch_l2(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }

/* Transposes the 8 x 8 block whose rows are r[0..7]. */
MOE_INLINE void v_transpose(vf *r) {
  __m256 t[8], u[8];
  MOE_UNROLL(4)
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  MOE_UNROLL(2)
  for (int i = 0; i < 2; i++) {
    __m256d a = _mm256_castps_pd(t[4 * i]), b = _mm256_castps_pd(t[4 * i + 1]);
    __m256d c = _mm256_castps_pd(t[4 * i + 2]), d = _mm256_castps_pd(t[4 * i + 3]);
    u[4 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    u[4 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    u[4 * i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    u[4 * i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
  MOE_UNROLL(4)
  for (int c = 0; c < 4; c++) {
    r[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
    r[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
  }
}
