/*
 * FP8 weights (E4M3, one byte each; src/util/fp8.ts defines the format) to f32 registers, and back.
 *
 * Widening is bit work on codes that lie in the top byte of a 32-bit lane or of a 16-bit half: shifting right by four (the sign copies
 * itself) and masking puts exponent and mantissa where f32, or bf16, has them. The biases differ by 120; setting the bits of 112, which are free,
 * takes no addition and gives the value divided by FP8_UNIT = 2^8. Whoever applies a scale multiplies it by FP8_UNIT, which is exact. Codes with
 * exponent 0 (zero and subnormals) and NaN do not obey; they are rare in scaled weights, so codes are first asked whether there are
 * any, and only then go the longer way. Both are exact. Not here: scales, and what is done with the values (gemv_fp8.h, gemm_pack.h).
 */
#ifndef MOE_FP8_H
#define MOE_FP8_H
#include "simd.h"

#define FP8_UNIT 256.0f

/* Bit operations on lanes of 32 bits; v_halves_* on 16. v_pick_zero: a where (x & mask) is 0, else b. */
#if defined(__AVX512F__)
#define V_INT(v) _mm512_castps_si512(v)
#define V_FLT(v) _mm512_castsi512_ps(v)
MOE_INLINE vf v_bits_and(vf a, uint32_t mask) { return V_FLT(_mm512_and_si512(V_INT(a), _mm512_set1_epi32((int)mask))); }
MOE_INLINE vf v_bits_xor(vf a, uint32_t mask) { return V_FLT(_mm512_xor_si512(V_INT(a), _mm512_set1_epi32((int)mask))); }
MOE_INLINE vf v_bits_or(vf a, vf b) { return V_FLT(_mm512_or_si512(V_INT(a), V_INT(b))); }
MOE_INLINE vf v_bits_sra4(vf a) { return V_FLT(_mm512_srai_epi32(V_INT(a), 4)); }
#define v_bits_shl(a, n) V_FLT(_mm512_slli_epi32(V_INT(a), n))
MOE_INLINE vf v_pick_zero(vf x, uint32_t mask, vf a, vf b) { return _mm512_mask_mov_ps(b, _mm512_testn_epi32_mask(V_INT(x), _mm512_set1_epi32((int)mask)), a); }
/* Codes in the high halves' top bytes, and in the low ones moved there, as bf16 (normal codes only). */
MOE_INLINE vf v_halves_high(vf w) {
  /* (a & b) | c */
  return V_FLT(_mm512_ternarylogic_epi32(_mm512_srai_epi16(V_INT(w), 4), _mm512_set1_epi16((short)0x87f0), _mm512_set1_epi16(0x3800), 0xea));
}
MOE_INLINE vf v_halves_low(vf w) { return v_halves_high(V_FLT(_mm512_slli_epi16(V_INT(w), 8))); }
/* The larger of `most` and, in each byte, of a number that is 0xee or more for exponent 0 and NaN alone: the codes without sign, less 8. */
MOE_INLINE vf v_codes_note(vf most, vf w) {
  return V_FLT(_mm512_max_epu8(V_INT(most), _mm512_sub_epi8(_mm512_add_epi8(V_INT(w), V_INT(w)), _mm512_set1_epi8(0x10))));
}
MOE_INLINE int v_codes_noted(vf most) { return _mm512_cmpge_epu8_mask(V_INT(most), _mm512_set1_epi8((char)0xee)) != 0; }
MOE_INLINE vf v_codes_load(const uint8_t *p) { return V_FLT(_mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 24)); }
#elif defined(__AVX2__)
#define V_INT(v) _mm256_castps_si256(v)
#define V_FLT(v) _mm256_castsi256_ps(v)
MOE_INLINE vf v_bits_and(vf a, uint32_t mask) { return V_FLT(_mm256_and_si256(V_INT(a), _mm256_set1_epi32((int)mask))); }
MOE_INLINE vf v_bits_xor(vf a, uint32_t mask) { return V_FLT(_mm256_xor_si256(V_INT(a), _mm256_set1_epi32((int)mask))); }
MOE_INLINE vf v_bits_or(vf a, vf b) { return V_FLT(_mm256_or_si256(V_INT(a), V_INT(b))); }
MOE_INLINE vf v_bits_sra4(vf a) { return V_FLT(_mm256_srai_epi32(V_INT(a), 4)); }
#define v_bits_shl(a, n) V_FLT(_mm256_slli_epi32(V_INT(a), n))
MOE_INLINE vf v_pick_zero(vf x, uint32_t mask, vf a, vf b) {
  const __m256i zero = _mm256_cmpeq_epi32(_mm256_and_si256(V_INT(x), _mm256_set1_epi32((int)mask)), _mm256_setzero_si256());
  return _mm256_blendv_ps(b, a, V_FLT(zero));
}
MOE_INLINE vf v_halves_high(vf w) {
  const __m256i t = _mm256_and_si256(_mm256_srai_epi16(V_INT(w), 4), _mm256_set1_epi16((short)0x87f0));
  return V_FLT(_mm256_or_si256(t, _mm256_set1_epi16(0x3800)));
}
MOE_INLINE vf v_halves_low(vf w) { return v_halves_high(V_FLT(_mm256_slli_epi16(V_INT(w), 8))); }
MOE_INLINE vf v_codes_note(vf most, vf w) {
  return V_FLT(_mm256_max_epu8(V_INT(most), _mm256_sub_epi8(_mm256_add_epi8(V_INT(w), V_INT(w)), _mm256_set1_epi8(0x10))));
}
MOE_INLINE int v_codes_noted(vf most) {
  return _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(V_INT(most), _mm256_set1_epi8((char)0xee)), V_INT(most))) != 0;
}
MOE_INLINE vf v_codes_load(const uint8_t *p) { return V_FLT(_mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)), 24)); }
#elif defined(__aarch64__)
#define V_INT(v) vreinterpretq_u32_f32(v)
#define V_FLT(v) vreinterpretq_f32_u32(v)
MOE_INLINE vf v_bits_and(vf a, uint32_t mask) { return V_FLT(vandq_u32(V_INT(a), vdupq_n_u32(mask))); }
MOE_INLINE vf v_bits_xor(vf a, uint32_t mask) { return V_FLT(veorq_u32(V_INT(a), vdupq_n_u32(mask))); }
MOE_INLINE vf v_bits_or(vf a, vf b) { return V_FLT(vorrq_u32(V_INT(a), V_INT(b))); }
MOE_INLINE vf v_bits_sra4(vf a) { return vreinterpretq_f32_s32(vshrq_n_s32(vreinterpretq_s32_f32(a), 4)); }
#define v_bits_shl(a, n) V_FLT(vshlq_n_u32(V_INT(a), n))
MOE_INLINE vf v_pick_zero(vf x, uint32_t mask, vf a, vf b) { return vbslq_f32(vtstq_u32(V_INT(x), vdupq_n_u32(mask)), b, a); }
MOE_INLINE vf v_halves_high(vf w) {
  const uint16x8_t t = vandq_u16(vreinterpretq_u16_s16(vshrq_n_s16(vreinterpretq_s16_f32(w), 4)), vdupq_n_u16(0x87f0));
  return vreinterpretq_f32_u16(vorrq_u16(t, vdupq_n_u16(0x3800)));
}
MOE_INLINE vf v_halves_low(vf w) { return v_halves_high(vreinterpretq_f32_u16(vshlq_n_u16(vreinterpretq_u16_f32(w), 8))); }
MOE_INLINE vf v_codes_note(vf most, vf w) {
  const uint8x16_t u = vreinterpretq_u8_f32(w);
  return vreinterpretq_f32_u8(vmaxq_u8(vreinterpretq_u8_f32(most), vsubq_u8(vaddq_u8(u, u), vdupq_n_u8(0x10))));
}
MOE_INLINE int v_codes_noted(vf most) { return vmaxvq_u8(vreinterpretq_u8_f32(most)) >= 0xee; }
MOE_INLINE vf v_codes_load(const uint8_t *p) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  return V_FLT(vshlq_n_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(word)))), 24));
}
#else
MOE_INLINE vf v_bits_and(vf a, uint32_t mask) { return wasm_v128_and(a, wasm_u32x4_splat(mask)); }
MOE_INLINE vf v_bits_xor(vf a, uint32_t mask) { return wasm_v128_xor(a, wasm_u32x4_splat(mask)); }
MOE_INLINE vf v_bits_or(vf a, vf b) { return wasm_v128_or(a, b); }
MOE_INLINE vf v_bits_sra4(vf a) { return wasm_i32x4_shr(a, 4); }
#define v_bits_shl(a, n) wasm_i32x4_shl(a, n)
MOE_INLINE vf v_pick_zero(vf x, uint32_t mask, vf a, vf b) { return wasm_v128_bitselect(a, b, wasm_i32x4_eq(v_bits_and(x, mask), wasm_i32x4_const_splat(0))); }
MOE_INLINE vf v_halves_high(vf w) { return wasm_v128_or(wasm_v128_and(wasm_i16x8_shr(w, 4), wasm_u16x8_const_splat(0x87f0)), wasm_i16x8_const_splat(0x3800)); }
MOE_INLINE vf v_halves_low(vf w) { return v_halves_high(wasm_i16x8_shl(w, 8)); }
MOE_INLINE vf v_codes_note(vf most, vf w) { return wasm_u8x16_max(most, wasm_i8x16_sub(wasm_i8x16_add(w, w), wasm_i8x16_const_splat(0x10))); }
MOE_INLINE int v_codes_noted(vf most) { return wasm_v128_any_true(wasm_u8x16_ge(most, wasm_u8x16_const_splat(0xee))); }
MOE_INLINE vf v_codes_load(const uint8_t *p) { return wasm_i32x4_shl(wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p))), 24); }
#endif

MOE_INLINE int v_codes_special(vf w) { return v_codes_noted(v_codes_note(v_zero(), w)); }

/* Value / FP8_UNIT of any code in the top byte of each lane. The lower bytes may hold anything. */
MOE_INLINE vf v_code_value(vf t) {
  /* (1 + m / 8) 2^(e - 15); with exponent 0 that is 2^-15 + m 2^-18, where m 2^-17 is meant: twice it less 2^-14. */
  const vf normal = v_bits_xor(v_bits_and(v_bits_sra4(t), 0x87f00000u), 0x38000000u), sign = v_bits_and(t, 0x80000000u);
  const vf small = v_bits_or(v_add(v_add(normal, normal), v_bits_xor(sign, 0xb8800000u)), sign);
  const vf finite = v_pick_zero(t, 0x78000000u, small, normal);
  return v_pick_zero(v_bits_xor(t, 0x7f000000u), 0x7f000000u, v_bits_xor(v_zero(), 0x7fc00000u), finite);
}

/* Values / FP8_UNIT of the four codes in each lane, the lowest byte first. `normal`: it is known that none is special. */
MOE_INLINE void v_code_words(vf w, vf *out, const int normal) {
  if (normal || __builtin_expect(!v_codes_special(w), 1)) {
    const vf even = v_halves_low(w), odd = v_halves_high(w);
    out[0] = v_bf16_low(even);
    out[1] = v_bf16_low(odd);
    out[2] = v_bf16_high(even);
    out[3] = v_bf16_high(odd);
  } else {
    out[0] = v_code_value(v_bits_shl(w, 24));
    out[1] = v_code_value(v_bits_shl(w, 16));
    out[2] = v_code_value(v_bits_shl(w, 8));
    out[3] = v_code_value(w);
  }
}

/* Values / FP8_UNIT of VL consecutive codes; the first n of them, 0 elsewhere. */
MOE_INLINE vf v_load_codes(const uint8_t *p) { return v_code_value(v_codes_load(p)); }
MOE_INLINE vf v_load_codes_n(const uint8_t *p, int n) {
  uint8_t t[16] = {0};
  for (int i = 0; i < n; i++) t[i] = p[i];
  return v_load_codes(t);
}

/* The code nearest to a float, ties to even, saturating; NaN is 0x7f. `mantissa` bits, bias of the exponent, largest code. */
MOE_INLINE uint8_t fp8_code(float f, const int mantissa, const int bias, const uint32_t largest) {
  uint32_t u, code;
  __builtin_memcpy(&u, &f, 4);
  const uint32_t magnitude = u & 0x7fffffffu, sign = u >> 24 & 0x80u;
  const int shift = 23 - mantissa;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >> 23 > (uint32_t)(127 - bias)) {
    code = ((magnitude + ((1u << (shift - 1)) - 1) + (magnitude >> shift & 1)) >> shift) - ((uint32_t)(127 - bias) << mantissa);
    if (code > largest) code = largest;
  } else {
    /* Added to a power of two whose last place is the step of subnormals, the float rounds itself. */
    const uint32_t magic = (uint32_t)(127 + 23 + 1 - bias - mantissa) << 23;
    float a, b;
    __builtin_memcpy(&a, &magnitude, 4);
    __builtin_memcpy(&b, &magic, 4);
    a += b;
    __builtin_memcpy(&code, &a, 4);
    code -= magic;
  }
  return (uint8_t)(code | sign);
}
MOE_INLINE uint8_t fp8_encode(float f, int format) { return format == MOE_E4M3 ? fp8_code(f, 3, 7, 0x7e) : fp8_code(f, 2, 15, 0x7b); }

/* One code of either format. */
MOE_INLINE float fp8_decode(uint8_t code, int format) {
  const int mantissa = format == MOE_E4M3 ? 3 : 2, bias = format == MOE_E4M3 ? 7 : 15;
  const uint32_t magnitude = code & 0x7f, exponent = magnitude >> mantissa, fraction = magnitude & ((1u << mantissa) - 1);
  const uint32_t sign = (uint32_t)(code & 0x80) << 24;
  uint32_t u;
  float f;
  if (format == MOE_E4M3 ? magnitude == 0x7f : magnitude > 0x7c) u = 0x7fc00000u;
  else if (format == MOE_E5M2 && magnitude == 0x7c) u = sign | 0x7f800000u;
  else if (exponent > 0) u = sign | ((exponent + 127 - (uint32_t)bias) << 23 | fraction << (23 - mantissa));
  else {
    f = (float)fraction * (format == MOE_E4M3 ? 0x1p-9f : 0x1p-16f);
    __builtin_memcpy(&u, &f, 4);
    u |= sign;
  }
  __builtin_memcpy(&f, &u, 4);
  return f;
}
#endif
