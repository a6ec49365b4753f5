/*
 * The inner loops of matrix multiplication: a tile of V vectors by C columns of accumulators held in registers.
 *
 * acc[j][V * VL] (+)= sum over r of a[r][V * VL] * b[j][r], r ascending: one chain of fused multiply-adds an element. `a` is a packed panel,
 * `b` rows of TILE_DEPTH floats; both were widened to f32 when packed. With pairs (AVX-512 BF16, AMX) an element of a and b is
 * a 32-bit pair of bf16 and a step adds both products (AMX: gemm_micro_tiles.h, with an order of its own). Tile shapes fill the register file of each instruction set and give at
 * least eight independent chains (two multiply-adds a cycle, four cycles each) whenever there are columns enough.
 */
#ifndef MOE_GEMM_MICRO_H
#define MOE_GEMM_MICRO_H
#include "simd.h"
#include "tiles.h"

#if defined(__AVX512F__)
enum { TILE_VECTORS = 4, TILE_DEPTH = 192 };
#elif defined(__AVX2__)
enum { TILE_VECTORS = 2, TILE_DEPTH = 256 };
#elif defined(__aarch64__)
enum { TILE_VECTORS = 4, TILE_DEPTH = 256 };
#else
enum { TILE_VECTORS = 2, TILE_DEPTH = 256 };
#endif
enum { PANEL_ROWS = TILE_VECTORS * VL };

#if defined(__wasm__)
#define MOE_PREFETCH 0 /* it has no such instruction */
#else
#define MOE_PREFETCH 1
#endif

#if defined(__AVX512BF16__)
#define MOE_PAIRS 1
MOE_INLINE vf v_pair_fma(vf a, vf b, vf c) {
  return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}
#else
#define MOE_PAIRS MOE_TILES
MOE_INLINE vf v_pair_fma(vf a, vf b, vf c) { return v_fma(a, b, c); }
#endif

/* Where nothing can be prefetched (WebAssembly) a group is one step: four unrolled ones spill there (25 against 31 GFLOP/s). */
enum { MICRO_AHEADS = 3, MICRO_LINES = 1024, MICRO_GROUP = MOE_PREFETCH ? 4 : 1 };

/* One step of the chains: element r of `a` and `b`. */
MOE_INLINE void micro_step(const int V, const int C, const int pairs, vf (*c)[TILE_VECTORS], const float *a, const float *b, ptrdiff_t r) {
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

/* The tile of V x C. Every MICRO_GROUP steps it asks for `each` more of the cache lines that `lines` points to. */
MOE_INLINE void micro_tile(const int V, const int C, const int pairs, float *acc, const float *a, const float *b, ptrdiff_t depth, int first, const char *const *lines, ptrdiff_t each) {
  vf c[16][TILE_VECTORS];
  MOE_UNROLL(16)
  for (int j = 0; j < C; j++) {
    MOE_UNROLL(4)
    for (int v = 0; v < V; v++) c[j][v] = first ? v_zero() : v_load(acc + (j * V + v) * VL);
  }
  ptrdiff_t r = 0;
  MOE_UNROLL(1)
  for (; r + MICRO_GROUP <= depth; r += MICRO_GROUP) {
    MOE_UNROLL(1)
    for (ptrdiff_t l = 0; l < each; l++) v_prefetch_l2(*lines++);
    MOE_UNROLL(4)
    for (int i = 0; i < MICRO_GROUP; i++) micro_step(V, C, pairs, c, a, b, r + i);
  }
  MOE_UNROLL(1)
  for (; r < depth; r++) micro_step(V, C, pairs, c, a, b, r);
  MOE_UNROLL(16)
  for (int j = 0; j < C; j++) {
    MOE_UNROLL(4)
    for (int v = 0; v < V; v++) v_store(acc + (j * V + v) * VL, c[j][v]);
  }
}

/* What to bring near while computing: `runs` runs of `bytes`, `stride` apart, spread evenly over the steps of a call: a burst of
   requests would hold up the loads of the tile. */
typedef struct {
  const char *data;
  ptrdiff_t stride, bytes, runs;
} micro_ahead;

/* Lists the lines of `aheads` for `tiles` tiles of `groups` groups, MICRO_LINES at most; returns how many a group asks for. */
static ptrdiff_t list_ahead(const char **lines, const micro_ahead *aheads, ptrdiff_t tiles, ptrdiff_t groups) {
  ptrdiff_t n = 0;
  if (!MOE_PREFETCH || tiles * groups == 0) return 0;
  for (int i = 0; i < MICRO_AHEADS; i++) {
    micro_ahead h = aheads[i];
    if (h.bytes == h.stride) h.bytes *= h.runs, h.runs = h.runs > 0;
    for (ptrdiff_t run = 0; run < h.runs; run++, h.data += h.stride) {
      ptrdiff_t count = (h.bytes + 63) / 64;
      if (count > MICRO_LINES - n) count = MICRO_LINES - n;
      for (ptrdiff_t l = 0; l < count; l++) lines[n + l] = h.data + l * 64;
      n += count;
    }
  }
  if (n == 0) return 0;
  const ptrdiff_t each = (n + tiles * groups - 1) / (tiles * groups), padded = each * tiles * groups;
  for (const char *last = lines[n - 1]; n < padded; n++) lines[n] = last;
  return each;
}

/* All `columns` of one panel: full tiles of C, then 4, 2 and 1. */
#define MOE_MICRO_COLUMNS(V, C, pairs)                                                                  \
  static void micro_##V##_##pairs(float *acc, const float *a, const float *b, ptrdiff_t columns, ptrdiff_t depth, int first, const micro_ahead *ahead) { \
    const char *lines[MICRO_LINES * 2]; /* with padding */                                              \
    const ptrdiff_t groups = depth / MICRO_GROUP, each = list_ahead(lines, ahead, columns / C, groups); \
    const char **next = lines;                                                                          \
    for (; columns >= C; columns -= C, acc += C * V * VL, b += C * TILE_DEPTH, next += groups * each)   \
      micro_tile(V, C, pairs, acc, a, b, depth, first, next, each);                                     \
    for (; columns >= 4; columns -= 4, acc += 4 * V * VL, b += 4 * TILE_DEPTH) micro_tile(V, 4, pairs, acc, a, b, depth, first, 0, 0); \
    for (; columns >= 2; columns -= 2, acc += 2 * V * VL, b += 2 * TILE_DEPTH) micro_tile(V, 2, pairs, acc, a, b, depth, first, 0, 0); \
    if (columns > 0) micro_tile(V, 1, pairs, acc, a, b, depth, first, 0, 0);                            \
  }

#if defined(__AVX512F__) || defined(__aarch64__)
#define MOE_MICRO_SET(pairs) MOE_MICRO_COLUMNS(1, 16, pairs) MOE_MICRO_COLUMNS(2, 12, pairs) MOE_MICRO_COLUMNS(3, 8, pairs) MOE_MICRO_COLUMNS(4, 6, pairs)
#elif defined(__AVX2__)
#define MOE_MICRO_SET(pairs) MOE_MICRO_COLUMNS(1, 12, pairs) MOE_MICRO_COLUMNS(2, 6, pairs)
#else
#define MOE_MICRO_SET(pairs) MOE_MICRO_COLUMNS(1, 8, pairs) MOE_MICRO_COLUMNS(2, 4, pairs)
#endif
MOE_MICRO_SET(0)
#if MOE_TILES
#include "gemm_micro_tiles.h"
#endif
#if MOE_PAIRS && !MOE_TILES
MOE_MICRO_SET(1)
#else
#define micro_1_1 micro_1_0
#define micro_2_1 micro_2_0
#define micro_3_1 micro_3_0
#define micro_4_1 micro_4_0
#endif

static void micro_columns(int vectors, int pairs, float *acc, const float *a, const float *b, ptrdiff_t columns, ptrdiff_t depth, int first, const micro_ahead *ahead) {
#if MOE_TILES
  if (pairs) {
    micro_columns_tiles(vectors, acc, a, b, columns, depth, first, ahead);
    return;
  }
#endif
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
