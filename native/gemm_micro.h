/*
 * The inner loops of matrix multiplication: a tile of V vectors by C columns of accumulators held in registers.
 *
 * acc[j][V * VL] (+)= sum over r of a[r][V * VL] * b[j][r], r ascending: one chain of fused multiply-adds an element. `a` is a packed panel,
 * `b` rows of TILE_DEPTH floats; both were widened to f32 when packed. With pairs (AVX-512 BF16 alone) an element of a and b is
 * a 32-bit pair of bf16 and a step adds both products. Tile shapes fill the register file of each instruction set and give at
 * least eight independent chains (two multiply-adds a cycle, four cycles each) whenever there are columns enough.
 */
#ifndef MOE_GEMM_MICRO_H
#define MOE_GEMM_MICRO_H
#include "simd.h"

#if defined(__AVX512F__)
enum { TILE_VECTORS = 4, TILE_DEPTH = 128 };
#elif defined(__AVX2__)
enum { TILE_VECTORS = 2, TILE_DEPTH = 256 };
#elif defined(__aarch64__)
enum { TILE_VECTORS = 4, TILE_DEPTH = 256 };
#else
enum { TILE_VECTORS = 2, TILE_DEPTH = 256 };
#endif
enum { PANEL_ROWS = TILE_VECTORS * VL };

#if defined(__AVX512BF16__)
#define MOE_PAIRS 1
MOE_INLINE vf v_pair_fma(vf a, vf b, vf c) {
  return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}
#else
#define MOE_PAIRS 0
MOE_INLINE vf v_pair_fma(vf a, vf b, vf c) { return v_fma(a, b, c); }
#endif

MOE_INLINE void micro_tile(const int V, const int C, const int pairs, float *acc, const float *a, const float *b, ptrdiff_t depth, int first) {
  vf c[16][TILE_VECTORS];
  MOE_UNROLL(16)
  for (int j = 0; j < C; j++) {
    MOE_UNROLL(4)
    for (int v = 0; v < V; v++) c[j][v] = first ? v_zero() : v_load(acc + (j * V + v) * VL);
  }
  MOE_UNROLL(1)
  for (ptrdiff_t r = 0; r < depth; r++) {
    vf x[TILE_VECTORS];
    MOE_UNROLL(4)
    for (int v = 0; v < V; v++) x[v] = v_load(a + r * (V * VL) + v * VL);
    MOE_UNROLL(16)
    for (int j = 0; j < C; j++) {
      vf y = v_set1(b[j * TILE_DEPTH + r]);
      MOE_UNROLL(4)
      for (int v = 0; v < V; v++) c[j][v] = pairs ? v_pair_fma(x[v], y, c[j][v]) : v_fma(x[v], y, c[j][v]);
    }
  }
  MOE_UNROLL(16)
  for (int j = 0; j < C; j++) {
    MOE_UNROLL(4)
    for (int v = 0; v < V; v++) v_store(acc + (j * V + v) * VL, c[j][v]);
  }
}

/* What to bring near while computing: `runs` runs of `bytes`, `stride` apart, spread evenly over the tiles of a call. */
typedef struct {
  const char *data;
  ptrdiff_t stride, bytes, runs;
} micro_ahead;
enum { MICRO_AHEADS = 3 };

MOE_INLINE void fetch_ahead(const micro_ahead *ahead, ptrdiff_t column, ptrdiff_t next, ptrdiff_t total) {
  for (int i = 0; i < MICRO_AHEADS; i++) {
    const micro_ahead h = ahead[i];
    if (h.runs == 0) continue;
    const ptrdiff_t end = h.runs * next / total;
    for (ptrdiff_t run = h.runs * column / total; run < end; run++)
      for (ptrdiff_t b = 0; b < h.bytes; b += 64) v_prefetch_l2(h.data + run * h.stride + b);
  }
}

/* All `columns` of one panel: full tiles of C, then 4, 2 and 1. */
#define MOE_MICRO_COLUMNS(V, C, pairs)                                                                  \
  static void micro_##V##_##pairs(float *acc, const float *a, const float *b, ptrdiff_t columns, ptrdiff_t depth, int first, const micro_ahead *ahead) { \
    const ptrdiff_t total = columns;                                                                    \
    for (ptrdiff_t j = 0; columns >= C; columns -= C, acc += C * V * VL, b += C * TILE_DEPTH, j += C) {  \
      fetch_ahead(ahead, j, j + C, total);                                                              \
      micro_tile(V, C, pairs, acc, a, b, depth, first);                                                 \
    }                                                                                                   \
    for (; columns >= 4; columns -= 4, acc += 4 * V * VL, b += 4 * TILE_DEPTH) micro_tile(V, 4, pairs, acc, a, b, depth, first); \
    for (; columns >= 2; columns -= 2, acc += 2 * V * VL, b += 2 * TILE_DEPTH) micro_tile(V, 2, pairs, acc, a, b, depth, first); \
    if (columns > 0) micro_tile(V, 1, pairs, acc, a, b, depth, first);                                  \
  }

#if defined(__AVX512F__) || defined(__aarch64__)
#define MOE_MICRO_SET(pairs) MOE_MICRO_COLUMNS(1, 16, pairs) MOE_MICRO_COLUMNS(2, 12, pairs) MOE_MICRO_COLUMNS(3, 8, pairs) MOE_MICRO_COLUMNS(4, 6, pairs)
#elif defined(__AVX2__)
#define MOE_MICRO_SET(pairs) MOE_MICRO_COLUMNS(1, 12, pairs) MOE_MICRO_COLUMNS(2, 6, pairs)
#else
#define MOE_MICRO_SET(pairs) MOE_MICRO_COLUMNS(1, 8, pairs) MOE_MICRO_COLUMNS(2, 4, pairs)
#endif
MOE_MICRO_SET(0)
#if MOE_PAIRS
MOE_MICRO_SET(1)
#else
#define micro_1_1 micro_1_0
#define micro_2_1 micro_2_0
#define micro_3_1 micro_3_0
#define micro_4_1 micro_4_0
#endif

static void micro_columns(int vectors, int pairs, float *acc, const float *a, const float *b, ptrdiff_t columns, ptrdiff_t depth, int first, const micro_ahead *ahead) {
  switch (vectors) {
    case 1: (pairs ? micro_1_1 : micro_1_0)(acc, a, b, columns, depth, first, ahead); break;
    case 2: (pairs ? micro_2_1 : micro_2_0)(acc, a, b, columns, depth, first, ahead); break;
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3: (pairs ? micro_3_1 : micro_3_0)(acc, a, b, columns, depth, first, ahead); break;
    default: (pairs ? micro_4_1 : micro_4_0)(acc, a, b, columns, depth, first, ahead); break;
#else
    default: break;
#endif
  }
}
#endif
