/*
 * FP8 weights times bf16 rows in the tile registers of AMX (Intel, set `amx` only): y[m][n] = sum over k of x[m][k] * w[n][k].
 *
 * A code of E4M3 is exact in bf16, so codes are widened to bf16, 16 rows of w by 32 k, a tile of the left side as it lies in memory: nothing is
 * transposed. Rows of x are packed once as tiles of the right side, pairs of k by up to 16 rows. A product of two tiles costs the same
 * for 1 row of x as for 16, so all numbers of rows go this way, and a row has the same bits among any others.
 *
 * The order of the sum is in tiles.h. Scales (by tensor or channel) multiply the finished sum, as everywhere (linear.c); scales of blocks,
 * which multiply weights, and rows in f32 do not come here.
 *
 * Legend: M rows of x, N rows of w, K long. A step is TILE_K of k.
 */
#ifndef MOE_TILES_AMX_H
#define MOE_TILES_AMX_H
#include "fp8.h"
#include "tiles.h"

enum { TILE_FEW_ROWS = 32, TILE_BLOCK_ROWS = 512, TILE_SLAB = 18 /* steps: a panel of 36 KB stays in the first cache */ };

#if MOE_TILES
/* Rows of x as tiles of the right side: [K / TILE_K][16][width] pairs of bf16. `rows` of `width`; what lies beyond rows or K is 0. */
static void tiles_pack(uint32_t *dst, int width, const moe_bf16 *x, ptrdiff_t ld, ptrdiff_t rows, ptrdiff_t K) {
  for (ptrdiff_t k = 0; k < K; k += TILE_K, dst += TILE_SIDE * width) {
    const __mmask32 mask = K - k >= TILE_K ? ~(__mmask32)0 : (__mmask32)((1u << (K - k)) - 1);
    if (width == 1) {
      _mm512_storeu_si512(dst, _mm512_maskz_loadu_epi16(mask, x + k));
      continue;
    }
    vf t[VL];
    for (int i = 0; i < VL; i++) t[i] = i < rows ? V_FLT(_mm512_maskz_loadu_epi16(mask, x + i * ld + k)) : v_zero();
    v_transpose(t);
    for (int j = 0; j < TILE_SIDE; j++) _mm512_mask_storeu_epi32(dst + j * width, v_mask(width), V_INT(t[j]));
  }
}

/* 32 codes as bf16 (divided by FP8_UNIT), none of them special. */
MOE_INLINE __m512i tiles_widen(__m256i codes) {
  const __m512i shifted = _mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 4);
  /* (a & b) | c: sign, exponent and mantissa; the sign's copies go, the bias comes. */
  return _mm512_ternarylogic_epi32(shifted, _mm512_set1_epi16((short)0x87f0), _mm512_set1_epi16(0x3800), 0xea);
}
/* Two steps of any codes of one row. */
static __attribute__((noinline)) void tiles_widen_row(moe_bf16 *dst, const uint8_t *p) {
  for (int q = 0; q < 4; q++) {
    const __m256i value = _mm512_cvtepi32_epi16(_mm512_srli_epi32(V_INT(v_load_codes(p + 16 * q)), 16));
    _mm256_storeu_si256((__m256i *)(void *)(dst + 16 * q), value);
  }
}

/* Elements from one row of a panel to the next: an odd number of lines, so that the rows of a tile do not meet in the same places of the cache. */
MOE_INLINE ptrdiff_t tiles_panel_line(ptrdiff_t steps) { return (steps | 1) * TILE_K; }
/* Elements of a panel of 32 rows, with the step more that widening may write. */
MOE_INLINE ptrdiff_t tiles_panel_size(ptrdiff_t steps) { return 2 * TILE_SIDE * tiles_panel_line(steps) + 2 * TILE_K; }

/*
 * Steps s0 to s0 + steps of 32 rows of w (`rows` of them are there), each K long, as panel[32][line]. Rows one after the other, as they lie in memory: the processor's own prefetching then runs ahead, which asking for lines does not match.
 * What is not there becomes 0, and meets only zeros of x or sums that are not kept.
 */
static void tiles_widen_panel(moe_bf16 *panel, const uint8_t *w, ptrdiff_t K, ptrdiff_t rows, ptrdiff_t s0, ptrdiff_t steps) {
  const ptrdiff_t first = s0 * TILE_K, end = K < first + steps * TILE_K ? K : first + steps * TILE_K, whole = first + (end - first) / (2 * TILE_K) * (2 * TILE_K);
  const ptrdiff_t line = tiles_panel_line(steps);
  for (ptrdiff_t i = 0; i < 2 * TILE_SIDE; i++, panel += line) {
    moe_bf16 *dst = panel;
    const uint8_t *p = w + i * K;
    if (i >= rows) {
      for (ptrdiff_t s = 0; s < steps; s++) _mm512_storeu_si512(dst + s * TILE_K, _mm512_setzero_si512());
      continue;
    }
    vf most = v_zero();
    ptrdiff_t k = first;
    for (; k < whole; k += 2 * TILE_K, dst += 2 * TILE_K) {
      most = v_codes_note(most, v_load((const float *)(const void *)(p + k)));
      _mm512_storeu_si512(dst, tiles_widen(_mm256_loadu_si256((const __m256i *)(const void *)(p + k))));
      _mm512_storeu_si512(dst + TILE_K, tiles_widen(_mm256_loadu_si256((const __m256i *)(const void *)(p + k + TILE_K))));
    }
    if (k < end) {
      uint8_t t[2 * TILE_K];
      _mm512_storeu_si512(t, _mm512_maskz_loadu_epi8(((__mmask64)1 << (end - k)) - 1, p + k));
      tiles_widen_row(dst, t);
    }
    if (__builtin_expect(!v_codes_noted(most), 1)) continue;
    for (k = first, dst = panel; k < whole; k += 2 * TILE_K, dst += 2 * TILE_K)
      if (v_codes_special(v_load((const float *)(const void *)(p + k)))) tiles_widen_row(dst, p + k);
  }
}

/* One step: sums of two tiles of w (at a and a + second, rows `line` elements apart) with one or two tiles of x (b0, b1). */
MOE_INLINE void tiles_step(const int two, const moe_bf16 *a, ptrdiff_t second, ptrdiff_t line, const uint32_t *b0, const uint32_t *b1, ptrdiff_t stride) {
  TILE_LOAD(6, b0, stride);
  TILE_LOAD(4, a, 2 * line);
  TILE_DOT(0, 4, 6);
  TILE_LOAD(5, a + second, 2 * line);
  TILE_DOT(1, 5, 6);
  if (two) {
    TILE_LOAD(7, b1, stride);
    TILE_DOT(2, 4, 7);
    TILE_DOT(3, 5, 7);
  }
}
MOE_INLINE void tiles_clear(void) {
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
}

MOE_INLINE void tiles_store(const int two, float *sums, ptrdiff_t line) {
  enum { SIZE = TILE_SIDE * TILE_SIDE };
  TILE_STORE(0, sums, line);
  TILE_STORE(1, sums + SIZE, line);
  if (two) {
    TILE_STORE(2, sums + 2 * SIZE, line);
    TILE_STORE(3, sums + 3 * SIZE, line);
  }
}

/* Two steps of 16 rows of w (each K after the last) into two tiles of 16 x TILE_K at dst; the 16 lines at `ahead` (or 0) are asked for on the way, one
   a row: all at once they would hold up the loads. */
static void tiles_widen_two(moe_bf16 *dst, const uint8_t *w, ptrdiff_t K, const uint8_t *ahead) {
  enum { TILE = TILE_SIDE * TILE_K };
  vf most = v_zero();
  MOE_UNROLL(4)
  for (int i = 0; i < TILE_SIDE; i++) {
    const __m256i *p = (const __m256i *)(const void *)(w + i * K);
    if (ahead) v_prefetch_l2(ahead + i * 64);
    most = v_codes_note(most, v_load((const float *)(const void *)p));
    _mm512_storeu_si512(dst + i * TILE_K, tiles_widen(_mm256_loadu_si256(p)));
    _mm512_storeu_si512(dst + TILE + i * TILE_K, tiles_widen(_mm256_loadu_si256(p + 1)));
  }
  if (__builtin_expect(!v_codes_noted(most), 1)) return;
  for (int i = 0; i < TILE_SIDE; i++)
    if (v_codes_special(v_load((const float *)(const void *)(w + i * K)))) {
      moe_bf16 t[2 * TILE_K];
      tiles_widen_row(t, w + i * K);
      __builtin_memcpy(dst + i * TILE_K, t, 2 * TILE_K);
      __builtin_memcpy(dst + TILE + i * TILE_K, t + TILE_K, 2 * TILE_K);
    }
}

/*
 * Sums of 32 rows of w with one or two tiles of x over `steps` (an even number of whole ones): for few rows of x, where each weight is used once.
 * Widening is two steps ahead of the products, so that these do not wait for its stores; the 32 rows of w at `next` (or 0) are asked for.
 */
MOE_INLINE void tiles_few(const int two, const uint8_t *w, ptrdiff_t K, ptrdiff_t steps, const uint32_t *x, ptrdiff_t apart, int width, const uint8_t *next) {
  enum { TILE = TILE_SIDE * TILE_K };
  _Alignas(64) moe_bf16 wide[2][4 * TILE]; /* rows 0 to 15 of both steps, then rows 16 to 31 */
  const ptrdiff_t size = TILE_SIDE * width;
  for (ptrdiff_t s = -2; s < steps; s += 2) {
    if (s + 2 < steps) {
      const ptrdiff_t k = (s + 2) * TILE_K;
      const uint8_t *ahead = next ? next + 2 * TILE_SIDE * k : 0;
      moe_bf16 *dst = wide[s >> 1 & 1];
      tiles_widen_two(dst, w + k, K, ahead);
      tiles_widen_two(dst + 2 * TILE, w + TILE_SIDE * K + k, K, ahead ? ahead + 64 * TILE_SIDE : 0);
    }
    if (s < 0) continue;
    const moe_bf16 *now = wide[(s >> 1 & 1) ^ 1];
    for (int i = 0; i < 2; i++) tiles_step(two, now + i * TILE, 2 * TILE, TILE_K, x + (s + i) * size, x + apart + (s + i) * size, 4 * width);
  }
}

/* Sums of a widened panel with one or two tiles of x (`apart` words), to sums[x 2][w 2][16 lines of `line` bytes], from there where `more` is set. */
MOE_INLINE void tiles_panel(const int two, const moe_bf16 *panel, ptrdiff_t steps, const uint32_t *x, ptrdiff_t apart, int width, float *sums, ptrdiff_t line, int more) {
  enum { SIZE = TILE_SIDE * TILE_SIDE };
  if (more) {
    TILE_LOAD(0, sums, line);
    TILE_LOAD(1, sums + SIZE, line);
    if (two) {
      TILE_LOAD(2, sums + 2 * SIZE, line);
      TILE_LOAD(3, sums + 3 * SIZE, line);
    }
  } else tiles_clear();
  const ptrdiff_t row = tiles_panel_line(steps);
  for (ptrdiff_t s = 0; s < steps; s++, x += TILE_SIDE * width) tiles_step(two, panel + s * TILE_K, TILE_SIDE * row, row, x, x + apart, 4 * width);
  tiles_store(two, sums, line);
}

/* tiles_few to `sums` as tiles_panel has them. */
MOE_INLINE void tiles_few_sums(const int two, const uint8_t *w, ptrdiff_t K, const uint32_t *x, ptrdiff_t apart, int width, const uint8_t *next, float *sums, ptrdiff_t line) {
  tiles_clear();
  tiles_few(two, w, K, K / TILE_K, x, apart, width, next);
  tiles_store(two, sums, line);
}
#endif
#endif
