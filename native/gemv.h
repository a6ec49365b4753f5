/*
 * Few rows times a matrix: y[m][n] = chain over k of x[m][k] * w[n][k], for at most GEMV_ROWS rows m. The speed of decoding.
 *
 * Such a product is bound by reading w once, but each output must still be one chain over k ascending, so lanes cannot split
 * k. Instead VL rows of w stream side by side, VL x VL blocks are transposed in registers, and lanes run over n.
 * bf16 is transposed as 32-bit words (two k at a time) and widened afterwards, or (AVX-512 BF16, x also bf16) used in pairs. In the set `amx`
 * products of two bf16 have the order of its tiles (tiles.h), so that few rows have the bits of many.
 */
#ifndef MOE_GEMV_H
#define MOE_GEMV_H
#include "gemm_micro.h"

enum { GEMV_F32 = 0, GEMV_BF16 = 1, GEMV_PAIRS = 2, GEMV_TILES = 3 };
/* Bytes that a row is asked for ahead of its use: of 512, 1024 and 2048, 512 was best with two threads and no worse with one. */
enum { GEMV_AHEAD = 512 };
#if defined(__AVX512F__)
enum { GEMV_ROWS = 8 };
#else
enum { GEMV_ROWS = 4 };
#endif

/* One transposed vector of w: `index` counts floats of x's row, that is k, or pairs of k. */
MOE_INLINE void gemv_step(const int M, const int mode, vf *acc, vf w, const float *x, ptrdiff_t ldx, ptrdiff_t index) {
  if (mode == GEMV_BF16) {
    const vf low = v_bf16_low(w), high = v_bf16_high(w);
    MOE_UNROLL(8)
    for (int m = 0; m < M; m++) acc[m] = v_fma(low, v_set1(x[m * ldx + 2 * index]), acc[m]);
    MOE_UNROLL(8)
    for (int m = 0; m < M; m++) acc[m] = v_fma(high, v_set1(x[m * ldx + 2 * index + 1]), acc[m]);
  } else {
    MOE_UNROLL(8)
    for (int m = 0; m < M; m++) {
      const vf value = v_set1(x[m * ldx + index]);
      acc[m] = mode == GEMV_PAIRS ? v_pair_fma(w, value, acc[m]) : v_fma(w, value, acc[m]);
    }
  }
}

/* VL transposed vectors of w (TILE_K of k) in the order of tiles.h: even and odd k apart, from 0, then both to the accumulator. x is f32. */
MOE_INLINE void gemv_step_tiles(const int M, vf *acc, const vf *w, const float *x, ptrdiff_t ldx) {
  vf even[8], odd[8];
  MOE_UNROLL(8)
  for (int m = 0; m < M; m++) even[m] = odd[m] = v_zero();
  MOE_UNROLL(16)
  for (int i = 0; i < VL; i++) {
    const vf low = v_bf16_low(w[i]), high = v_bf16_high(w[i]);
    MOE_UNROLL(8)
    for (int m = 0; m < M; m++) even[m] = v_fma(low, v_set1(x[m * ldx + 2 * i]), even[m]);
    MOE_UNROLL(8)
    for (int m = 0; m < M; m++) odd[m] = v_fma(high, v_set1(x[m * ldx + 2 * i + 1]), odd[m]);
  }
  MOE_UNROLL(8)
  for (int m = 0; m < M; m++) acc[m] = v_add(acc[m], v_add(even[m], odd[m]));
}

/* The ragged parts: fewer than VL rows of w, or fewer than a block's worth of k. */
MOE_INLINE void gemv_ragged(const int M, const int mode, vf *acc, const char *w, ptrdiff_t stride, int rows, ptrdiff_t bytes, const float *x, ptrdiff_t ldx, ptrdiff_t index) {
  float block[VL][VL];
  vf t[VL];
  __builtin_memset(block, 0, sizeof block);
  for (int i = 0; i < rows; i++) __builtin_memcpy(block[i], w + i * stride, (size_t)bytes);
  for (int i = 0; i < VL; i++) t[i] = v_load(block[i]);
  v_transpose(t);
  if (mode == GEMV_TILES) {
    float padded[8][2 * VL];
    for (int m = 0; m < M; m++) {
      __builtin_memset(padded[m], 0, sizeof padded[m]);
      __builtin_memcpy(padded[m], x + m * ldx + 2 * index, (size_t)(bytes / 2) * sizeof(float));
    }
    gemv_step_tiles(M, acc, t, padded[0], 2 * VL);
    return;
  }
  for (int i = 0; i < VL; i++) v_store(block[i], t[i]);
  for (int i = 0; i < bytes / 4; i++) gemv_step(M, mode, acc, v_load(block[i]), x, ldx, index + i);
  if (bytes % 4 == 0) return;
  /* An odd last bf16: its partner in the word is no element, so it must not enter the chain (pairs have a zero there). */
  const ptrdiff_t last = index + bytes / 4;
  const vf word = v_load(block[bytes / 4]);
  if (mode == GEMV_PAIRS) gemv_step(M, mode, acc, word, x, ldx, last);
  else
    for (int m = 0; m < M; m++) acc[m] = v_fma(v_bf16_low(word), v_set1(x[m * ldx + 2 * last]), acc[m]);
}

/* acc[m][VL] for `rows` (at most VL) rows of w, `rowBytes` long; x[m] is f32 or words of pairs, ldx apart. */
MOE_INLINE void gemv_block(const int M, const int mode, float *out, const char *w, ptrdiff_t rowBytes, int rows, const float *x, ptrdiff_t ldx) {
  vf acc[8];
  ptrdiff_t at = 0, index = 0;
  const ptrdiff_t step = VL * 4;
  MOE_UNROLL(8)
  for (int m = 0; m < M; m++) acc[m] = v_zero();
  if (rows == VL) {
    for (; at + step <= rowBytes; at += step, index += VL) {
      vf t[VL];
      /* Past the end of a row comes the same row of the next VL: short rows would otherwise start cold every time. */
      const ptrdiff_t ahead = at + GEMV_AHEAD < rowBytes ? GEMV_AHEAD : GEMV_AHEAD + (VL - 1) * rowBytes;
      MOE_UNROLL(4)
      for (int g = 0; g < VL; g += 4) {
        const char *p = w + g * rowBytes + at;
        MOE_UNROLL(4)
        for (int i = 0; i < 4; i++) {
          t[g + i] = v_load((const float *)(const void *)(p + i * rowBytes));
          v_prefetch(p + i * rowBytes + ahead);
        }
      }
      v_transpose(t);
      if (mode == GEMV_TILES) {
        gemv_step_tiles(M, acc, t, x + 2 * index, ldx);
        continue;
      }
      MOE_UNROLL(16)
      for (int i = 0; i < VL; i++) gemv_step(M, mode, acc, t[i], x, ldx, index + i);
    }
  }
  for (; at < rowBytes; at += step, index += VL)
    gemv_ragged(M, mode, acc, w + at, rowBytes, rows, rowBytes - at < step ? rowBytes - at : step, x, ldx, index);
  MOE_UNROLL(8)
  for (int m = 0; m < M; m++) v_store(out + m * VL, acc[m]);
}

typedef void gemv_function(float *out, const char *w, ptrdiff_t rowBytes, int rows, const float *x, ptrdiff_t ldx);
#define MOE_GEMV_ONE(M, mode) \
  static void gemv_##M##_##mode(float *out, const char *w, ptrdiff_t rowBytes, int rows, const float *x, ptrdiff_t ldx) { gemv_block(M, mode, out, w, rowBytes, rows, x, ldx); }
#if defined(__AVX512F__)
#define MOE_GEMV_SET(mode) \
  MOE_GEMV_ONE(1, mode) MOE_GEMV_ONE(2, mode) MOE_GEMV_ONE(3, mode) MOE_GEMV_ONE(4, mode) MOE_GEMV_ONE(5, mode) MOE_GEMV_ONE(6, mode) MOE_GEMV_ONE(7, mode) MOE_GEMV_ONE(8, mode)
#define MOE_GEMV_NAMES(mode) {gemv_1_##mode, gemv_2_##mode, gemv_3_##mode, gemv_4_##mode, gemv_5_##mode, gemv_6_##mode, gemv_7_##mode, gemv_8_##mode}
#else
#define MOE_GEMV_SET(mode) MOE_GEMV_ONE(1, mode) MOE_GEMV_ONE(2, mode) MOE_GEMV_ONE(3, mode) MOE_GEMV_ONE(4, mode)
#define MOE_GEMV_NAMES(mode) {gemv_1_##mode, gemv_2_##mode, gemv_3_##mode, gemv_4_##mode}
#endif
MOE_GEMV_SET(0)
MOE_GEMV_SET(1)
#if MOE_TILES
MOE_GEMV_SET(3)
#elif MOE_PAIRS
MOE_GEMV_SET(2)
#endif

/* The function for `rows` rows of x (1..GEMV_ROWS). */
static gemv_function *gemv_choose(ptrdiff_t rows, int mode) {
  static gemv_function *const f32[] = MOE_GEMV_NAMES(0);
  static gemv_function *const bf16[] = MOE_GEMV_NAMES(1);
#if MOE_TILES
  static gemv_function *const tiles[] = MOE_GEMV_NAMES(3);
  if (mode == GEMV_TILES) return tiles[rows - 1];
#elif MOE_PAIRS
  static gemv_function *const pairs[] = MOE_GEMV_NAMES(2);
  if (mode == GEMV_PAIRS) return pairs[rows - 1];
#endif
  return mode == GEMV_F32 ? f32[rows - 1] : bf16[rows - 1];
}
#endif
