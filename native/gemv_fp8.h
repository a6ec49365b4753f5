/*
 * Few rows times an FP8 matrix: gemv.h with weights of one byte. y[m][n] = chain over k ascending of x[m][k] * w[n][k].
 *
 * VL rows of w stream side by side; VL x VL blocks of 32-bit words (four codes, four k) are transposed in registers and widened
 * afterwards, so lanes run over n. A byte of w gives so little to read that with one or two rows of x the latency of the chains would be the
 * limit: FP8_GROUPS groups of VL rows of w then run together. Scales of blocks of 128 x 128 multiply the widened weights; those of
 * a tensor or of its rows multiply the finished sums, which is the caller's.
 */
#ifndef MOE_GEMV_FP8_H
#define MOE_GEMV_FP8_H
#include "gemm_pack.h"
#include "gemv.h"

enum { FP8_GROUPS = VL == 16 ? 2 : 4, FP8_FEW = 2 };

/* Four codes of VL rows of w, widened and scaled, into the chains of M rows of x. */
MOE_INLINE void gemv_fp8_words(const int M, const int blocks, const int normal, vf *acc, vf words, vf scale, const float *x, ptrdiff_t ldx, ptrdiff_t k, int count) {
  vf value[4];
  v_code_words(words, value, normal);
  MOE_UNROLL(4)
  for (int q = 0; q < 4; q++) {
    if (q >= count) break;
    if (blocks) value[q] = v_mul(value[q], scale);
    MOE_UNROLL(8)
    for (int m = 0; m < M; m++) acc[m] = v_fma(value[q], v_set1(x[m * ldx + k + q]), acc[m]);
  }
}

/* out[m][G][VL] for G groups of VL rows of w (G 1: `rows` of them), K long; x[m] is f32, ldx apart; one scale per FP8_BLOCK k. */
MOE_INLINE void gemv_fp8_block(const int M, const int G, const int blocks, float *out, const uint8_t *w, ptrdiff_t K, int rows, const float *x, ptrdiff_t ldx, const float *scales) {
  vf acc[FP8_GROUPS][8];
  const ptrdiff_t step = VL * 4;
  for (int g = 0; g < G; g++)
    for (int m = 0; m < M; m++) acc[g][m] = v_zero();
  for (ptrdiff_t at = 0; at < K; at += step) {
    const vf scale = blocks ? v_set1(scales[at / FP8_BLOCK] * FP8_UNIT) : v_zero();
    const ptrdiff_t bytes = K - at < step ? K - at : step;
    const int whole = bytes == step && rows == VL;
    /* Past the end of a row comes the same row of the next group. */
    const ptrdiff_t ahead = at + GEMV_AHEAD < K ? GEMV_AHEAD : GEMV_AHEAD + (G * VL - 1) * K;
    vf t[FP8_GROUPS][VL], most = v_zero();
    MOE_UNROLL(4)
    for (int g = 0; g < G; g++) {
      const uint8_t *p = w + g * VL * K + at;
      if (whole) {
        MOE_UNROLL(16)
        for (int i = 0; i < VL; i++) {
          t[g][i] = v_load((const float *)(const void *)(p + i * K));
          most = v_codes_note(most, t[g][i]);
        }
        v_transpose(t[g]);
      } else fp8_transposed(t[g], p, K, rows, bytes);
    }
    if (whole && !v_codes_noted(most)) {
      for (int i = 0; i < VL; i++)
        MOE_UNROLL(4)
        for (int g = 0; g < G; g++) {
          v_prefetch_l2(w + (g * VL + i) * K + at + ahead);
          gemv_fp8_words(M, blocks, 1, acc[g], t[g][i], scale, x, ldx, at + 4 * i, 4);
        }
    } else {
      for (int i = 0; i < VL && 4 * i < bytes; i++) {
        const int count = bytes - 4 * i < 4 ? (int)(bytes - 4 * i) : 4;
        MOE_UNROLL(4)
        for (int g = 0; g < G; g++) gemv_fp8_words(M, blocks, 0, acc[g], t[g][i], scale, x, ldx, at + 4 * i, count);
      }
    }
  }
  for (int g = 0; g < G; g++)
    for (int m = 0; m < M; m++) v_store(out + (m * G + g) * VL, acc[g][m]);
}

typedef void gemv_fp8_function(float *out, const uint8_t *w, ptrdiff_t K, int rows, const float *x, ptrdiff_t ldx, const float *scales);
#define MOE_GEMV_FP8_ONE(M, G, blocks) \
  static void gemv_fp8_##M##_##G##_##blocks(float *out, const uint8_t *w, ptrdiff_t K, int rows, const float *x, ptrdiff_t ldx, const float *scales) { \
    gemv_fp8_block(M, G, blocks, out, w, K, rows, x, ldx, scales); \
  }
#define MOE_GEMV_FP8_SET(b) \
  MOE_GEMV_FP8_ONE(1, 1, b) MOE_GEMV_FP8_ONE(2, 1, b) MOE_GEMV_FP8_ONE(3, 1, b) MOE_GEMV_FP8_ONE(4, 1, b)
#if defined(__AVX512F__)
#define MOE_GEMV_FP8_ALL(b) \
  MOE_GEMV_FP8_SET(b) MOE_GEMV_FP8_ONE(5, 1, b) MOE_GEMV_FP8_ONE(6, 1, b) MOE_GEMV_FP8_ONE(7, 1, b) MOE_GEMV_FP8_ONE(8, 1, b) \
  MOE_GEMV_FP8_ONE(1, 2, b) MOE_GEMV_FP8_ONE(2, 2, b)
#define MOE_GEMV_FP8_NAMES(b) {gemv_fp8_1_1_##b, gemv_fp8_2_1_##b, gemv_fp8_3_1_##b, gemv_fp8_4_1_##b, gemv_fp8_5_1_##b, gemv_fp8_6_1_##b, gemv_fp8_7_1_##b, gemv_fp8_8_1_##b}
#define MOE_GEMV_FP8_TOGETHER(b) {gemv_fp8_1_2_##b, gemv_fp8_2_2_##b}
#else
#define MOE_GEMV_FP8_ALL(b) MOE_GEMV_FP8_SET(b) MOE_GEMV_FP8_ONE(1, 4, b) MOE_GEMV_FP8_ONE(2, 4, b)
#define MOE_GEMV_FP8_NAMES(b) {gemv_fp8_1_1_##b, gemv_fp8_2_1_##b, gemv_fp8_3_1_##b, gemv_fp8_4_1_##b}
#define MOE_GEMV_FP8_TOGETHER(b) {gemv_fp8_1_4_##b, gemv_fp8_2_4_##b}
#endif
MOE_GEMV_FP8_ALL(0)
MOE_GEMV_FP8_ALL(1)

/* The function for `rows` rows of x (1..GEMV_ROWS): of one group of VL rows of w, or of FP8_GROUPS together (at most FP8_FEW rows). */
static gemv_fp8_function *gemv_fp8_choose(ptrdiff_t rows, int blocks, int together) {
  static gemv_fp8_function *const plain[] = MOE_GEMV_FP8_NAMES(0), *const scaled[] = MOE_GEMV_FP8_NAMES(1);
  static gemv_fp8_function *const plainTogether[] = MOE_GEMV_FP8_TOGETHER(0), *const scaledTogether[] = MOE_GEMV_FP8_TOGETHER(1);
  if (together) return blocks ? scaledTogether[rows - 1] : plainTogether[rows - 1];
  return blocks ? scaled[rows - 1] : plain[rows - 1];
}
#endif
