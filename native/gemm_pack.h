/*
 * Packing: copies of operand blocks in the layout and the f32 width that the inner loops of gemm_micro.h read.
 *
 * Four routines for the four ways an operand can lie: rows kept or transposed, elements widened one by one or (AVX-512 BF16) kept
 * in pairs along the reduced index, two bf16 in a 32-bit word. Destinations are written in whole vectors: what lies
 * beyond the source up to a multiple of VL is 0. Sources are never read past their last element.
 */
#ifndef MOE_GEMM_PACK_H
#define MOE_GEMM_PACK_H
#include "fp8.h"
#include "gemm_micro.h"

/* dst[r][ld] = src[r][c] for rows x cols. */
MOE_INLINE void pack_copy_of(const int dtype, float *dst, ptrdiff_t dstLd, const void *src, ptrdiff_t srcLd, ptrdiff_t rows, ptrdiff_t cols) {
  for (ptrdiff_t r = 0; r < rows; r++) {
    ptrdiff_t c = 0;
    for (; c + VL <= cols; c += VL) v_store(dst + r * dstLd + c, v_load_as(src, r * srcLd + c, dtype));
    if (c < cols) v_store(dst + r * dstLd + c, v_load_as_n(src, r * srcLd + c, dtype, (int)(cols - c)));
  }
}

static void pack_copy(float *dst, ptrdiff_t dstLd, const void *src, int dtype, ptrdiff_t srcLd, ptrdiff_t rows, ptrdiff_t cols) {
  if (dtype == MOE_F32) pack_copy_of(MOE_F32, dst, dstLd, src, srcLd, rows, cols);
  else pack_copy_of(MOE_BF16, dst, dstLd, src, srcLd, rows, cols);
}

/* dst[c][ld] = src[r][c]: column c of the source becomes row c. */
MOE_INLINE void pack_transposed_of(const int dtype, float *dst, ptrdiff_t dstLd, const void *src, ptrdiff_t srcLd, ptrdiff_t rows, ptrdiff_t cols) {
  for (ptrdiff_t r = 0; r < rows; r += VL) {
    const int height = rows - r < VL ? (int)(rows - r) : VL;
    for (ptrdiff_t c = 0; c < cols; c += VL) {
      const int width = cols - c < VL ? (int)(cols - c) : VL;
      vf t[VL];
      if (height == VL && width == VL) {
        MOE_UNROLL(16)
        for (int i = 0; i < VL; i++) t[i] = v_load_as(src, (r + i) * srcLd + c, dtype);
        v_transpose(t);
        MOE_UNROLL(16)
        for (int i = 0; i < VL; i++) v_store(dst + (c + i) * dstLd + r, t[i]);
      } else {
        for (int i = 0; i < VL; i++) t[i] = i < height ? v_load_as_n(src, (r + i) * srcLd + c, dtype, width) : v_zero();
        v_transpose(t);
        for (int i = 0; i < width; i++) v_store(dst + (c + i) * dstLd + r, t[i]);
      }
    }
  }
}

static void pack_transposed(float *dst, ptrdiff_t dstLd, const void *src, int dtype, ptrdiff_t srcLd, ptrdiff_t rows, ptrdiff_t cols) {
  if (dtype == MOE_F32) pack_transposed_of(MOE_F32, dst, dstLd, src, srcLd, rows, cols);
  else pack_transposed_of(MOE_BF16, dst, dstLd, src, srcLd, rows, cols);
}

#if MOE_PAIRS
/* Words of a row of bf16: element pairs (2c, 2c + 1); the word count is for `cols` elements, an odd last one paired with 0. */
MOE_INLINE vf load_pairs_n(const moe_bf16 *p, ptrdiff_t elements) {
  if (elements >= 2 * VL) return v_load((const float *)(const void *)p);
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32)((1ull << elements) - 1), p));
}

/* Words of two rows: (upper[c], lower[c]); `lower` may be 0. */
MOE_INLINE vf load_row_pairs_n(const moe_bf16 *upper, const moe_bf16 *lower, int n) {
  const __mmask16 mask = v_mask(n);
  __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, upper));
  __m512i high = lower ? _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, lower)), 16) : _mm512_setzero_si512();
  return _mm512_castsi512_ps(_mm512_or_si512(low, high));
}

static void pack_pairs_copy(float *dst, ptrdiff_t dstLd, const moe_bf16 *src, ptrdiff_t srcLd, ptrdiff_t rows, ptrdiff_t cols) {
  for (ptrdiff_t r = 0; r < rows; r++)
    for (ptrdiff_t c = 0; c < cols; c += 2 * VL) v_store(dst + r * dstLd + c / 2, load_pairs_n(src + r * srcLd + c, cols - c));
}

static void pack_pairs_transposed(float *dst, ptrdiff_t dstLd, const moe_bf16 *src, ptrdiff_t srcLd, ptrdiff_t rows, ptrdiff_t cols) {
  for (ptrdiff_t r = 0; r < rows; r += VL)
    for (ptrdiff_t c = 0; c < cols; c += 2 * VL) {
      const ptrdiff_t words = (cols - c + 1) / 2 < VL ? (cols - c + 1) / 2 : VL;
      vf t[VL];
      for (int i = 0; i < VL; i++) t[i] = r + i < rows ? load_pairs_n(src + (r + i) * srcLd + c, cols - c) : v_zero();
      v_transpose(t);
      for (int i = 0; i < words; i++) v_store(dst + (c / 2 + i) * dstLd + r, t[i]);
    }
}

/* dst[r / 2][c] = (src[r][c], src[r + 1][c]). */
static void pack_row_pairs_copy(float *dst, ptrdiff_t dstLd, const moe_bf16 *src, ptrdiff_t srcLd, ptrdiff_t rows, ptrdiff_t cols) {
  for (ptrdiff_t r = 0; r < rows; r += 2)
    for (ptrdiff_t c = 0; c < cols; c += VL) {
      const moe_bf16 *p = src + r * srcLd + c;
      v_store(dst + r / 2 * dstLd + c, load_row_pairs_n(p, r + 1 < rows ? p + srcLd : 0, cols - c < VL ? (int)(cols - c) : VL));
    }
}

/* dst[c][r / 2] = (src[r][c], src[r + 1][c]). */
static void pack_row_pairs_transposed(float *dst, ptrdiff_t dstLd, const moe_bf16 *src, ptrdiff_t srcLd, ptrdiff_t rows, ptrdiff_t cols) {
  for (ptrdiff_t r = 0; r < rows; r += 2 * VL)
    for (ptrdiff_t c = 0; c < cols; c += VL) {
      const int width = cols - c < VL ? (int)(cols - c) : VL;
      vf t[VL];
      for (int i = 0; i < VL; i++) {
        const ptrdiff_t row = r + 2 * i;
        const moe_bf16 *p = src + row * srcLd + c;
        t[i] = row < rows ? load_row_pairs_n(p, row + 1 < rows ? p + srcLd : 0, width) : v_zero();
      }
      v_transpose(t);
      for (int i = 0; i < width; i++) v_store(dst + (c + i) * dstLd + r / 2, t[i]);
    }
}
#endif

/*
 * An operand block of `lines` (rows of the product's I or J side) by `depth` reduced elements, from line `line` and depth `from`.
 * `along` says that the source has the reduced index contiguous (src[line][depth]), else src[depth][line].
 */
typedef struct {
  const void *data;
  ptrdiff_t ld;
  int dtype, along, pairs;
  const float *scales; /* of 128 x 128 blocks of an FP8 matrix (src[line][depth]), or 0 */
  ptrdiff_t scalesLd;
} gemm_operand;

enum { FP8_BLOCK = 128 };

MOE_INLINE const void *operand_at(const gemm_operand *o, ptrdiff_t line, ptrdiff_t from) {
  const ptrdiff_t index = o->along ? line * o->ld + from : from * o->ld + line;
  return (const char *)o->data + index * (ptrdiff_t)dtype_size(o->dtype);
}

/* dst[lines][ld] of FP8: widened (divided by FP8_UNIT, which scales make good), and scaled where blocks have scales. `from` is a multiple of VL, so a vector lies in one block. */
static void pack_fp8_copy(float *dst, ptrdiff_t dstLd, const gemm_operand *o, ptrdiff_t line, ptrdiff_t lines, ptrdiff_t from, ptrdiff_t depth) {
  for (ptrdiff_t r = 0; r < lines; r++) {
    const uint8_t *p = operand_at(o, line + r, from);
    const float *scales = o->scales ? o->scales + (line + r) / FP8_BLOCK * o->scalesLd : 0;
    for (ptrdiff_t c = 0; c < depth; c += VL) {
      const vf v = c + VL <= depth ? v_load_codes(p + c) : v_load_codes_n(p + c, (int)(depth - c));
      v_store(dst + r * dstLd + c, scales ? v_mul(v, v_set1(scales[(from + c) / FP8_BLOCK] * FP8_UNIT)) : v);
    }
  }
}

/* VL lines of `bytes` (at most 4 VL) codes as transposed words: t[i] holds codes 4 i to 4 i + 3 of each. */
static void fp8_transposed(vf *t, const uint8_t *p, ptrdiff_t stride, ptrdiff_t lines, ptrdiff_t bytes) {
  if (lines >= VL && bytes == 4 * VL) {
    MOE_UNROLL(16)
    for (int i = 0; i < VL; i++) t[i] = v_load((const float *)(const void *)(p + i * stride));
  } else {
    float block[VL][VL];
    __builtin_memset(block, 0, sizeof block);
    for (int i = 0; i < VL && i < lines; i++) __builtin_memcpy(block[i], p + i * stride, (size_t)bytes);
    for (int i = 0; i < VL; i++) t[i] = v_load(block[i]);
  }
  v_transpose(t);
}

/* dst[depth][ld] of FP8: lines across a vector; `line` is a multiple of VL. */
static void pack_fp8_transposed(float *dst, ptrdiff_t dstLd, const gemm_operand *o, ptrdiff_t line, ptrdiff_t lines, ptrdiff_t from, ptrdiff_t depth) {
  for (ptrdiff_t r = 0; r < lines; r += VL) {
    const float *scales = o->scales ? o->scales + (line + r) / FP8_BLOCK * o->scalesLd : 0;
    for (ptrdiff_t c = 0; c < depth; c += 4 * VL) {
      const ptrdiff_t bytes = depth - c < 4 * VL ? depth - c : 4 * VL;
      vf t[VL], value[4];
      fp8_transposed(t, operand_at(o, line + r, from + c), o->ld, lines - r, bytes);
      for (ptrdiff_t k = 0; k < bytes; k += 4) {
        v_code_words(t[k / 4], value, 0);
        const vf scale = scales ? v_set1(scales[(from + c + k) / FP8_BLOCK] * FP8_UNIT) : v_zero();
        for (ptrdiff_t q = 0; q < 4 && k + q < bytes; q++) v_store(dst + (c + k + q) * dstLd + r, scales ? v_mul(value[q], scale) : value[q]);
      }
    }
  }
}

/* dst[depth][width]: lines across a vector, for the panel side; width is a multiple of VL that holds `lines`. */
static void pack_panel(float *dst, ptrdiff_t width, const gemm_operand *o, ptrdiff_t line, ptrdiff_t lines, ptrdiff_t from, ptrdiff_t depth) {
  const void *src = operand_at(o, line, from);
  if (o->dtype == MOE_FP8) {
    pack_fp8_transposed(dst, width, o, line, lines, from, depth);
    return;
  }
#if MOE_PAIRS
  if (o->pairs) {
    if (o->along) pack_pairs_transposed(dst, width, src, o->ld, lines, depth);
    else pack_row_pairs_copy(dst, width, src, o->ld, depth, lines);
    return;
  }
#endif
  if (o->along) pack_transposed(dst, width, src, o->dtype, o->ld, lines, depth);
  else pack_copy(dst, width, src, o->dtype, o->ld, depth, lines);
}

/* dst[line][dstLd]: the broadcast side; dstLd is a multiple of VL that holds the depth. */
static void pack_lines(float *dst, ptrdiff_t dstLd, const gemm_operand *o, ptrdiff_t line, ptrdiff_t lines, ptrdiff_t from, ptrdiff_t depth) {
  const void *src = operand_at(o, line, from);
  if (o->dtype == MOE_FP8) {
    pack_fp8_copy(dst, dstLd, o, line, lines, from, depth);
    return;
  }
#if MOE_PAIRS
  if (o->pairs) {
    if (o->along) pack_pairs_copy(dst, dstLd, src, o->ld, lines, depth);
    else pack_row_pairs_transposed(dst, dstLd, src, o->ld, depth, lines);
    return;
  }
#endif
  if (o->along) pack_copy(dst, dstLd, src, o->dtype, o->ld, lines, depth);
  else pack_transposed(dst, dstLd, src, o->dtype, o->ld, depth, lines);
}
#endif
