/*
 * The small matrix product inside attention: C (+)= A . B with C and B in cache, and the transposing pack that feeds it.
 *
 * Every element of C is one chain of fused multiply-adds over k ascending, whatever M is and however a product is cut into
 * several over k; that is what keeps a query's bits independent of its neighbours. Not a GEMM: it does not block for caches.
 * Tile of registers (rows x vectors of 16): 6 x 4 on AVX-512, 6 x 1 on AVX2 and NEON, 2 x 1 on WebAssembly.
 */
#ifndef MOE_TILE_H
#define MOE_TILE_H
#include "vec.h"

#if V_PARTS == 1
enum { TILE_ROWS = 6, TILE_VECTORS = 4 };
#elif defined(__wasm__)
enum { TILE_ROWS = 2, TILE_VECTORS = 1 };
#else
enum { TILE_ROWS = 6, TILE_VECTORS = 1 };
#endif

/* A is read at a[r * am + k * ak]; C and B are row-major with rows of whole vectors. `rows` and `vectors` are compile-time constants. */
VFN void tile_step(float *restrict c, ptrdiff_t ldc, const float *a, ptrdiff_t am, ptrdiff_t ak, const float *b, ptrdiff_t ldb, ptrdiff_t K, int accumulate, const int rows, const int vectors) {
  v16 acc[TILE_ROWS][TILE_VECTORS];
  MOE_UNROLL
  for (int r = 0; r < rows; r++) {
    MOE_UNROLL
    for (int n = 0; n < vectors; n++) acc[r][n] = accumulate ? v_load(c + r * ldc + n * V_LANES) : v_set(0);
  }
  for (ptrdiff_t k = 0; k < K; k++, a += ak, b += ldb) {
    v16 bk[TILE_VECTORS];
    MOE_UNROLL
    for (int n = 0; n < vectors; n++) bk[n] = v_load(b + n * V_LANES);
    MOE_UNROLL
    for (int r = 0; r < rows; r++) {
      v16 x = v_set(a[r * am]);
      MOE_UNROLL
      for (int n = 0; n < vectors; n++) acc[r][n] = v_fma(x, bk[n], acc[r][n]);
    }
  }
  MOE_UNROLL
  for (int r = 0; r < rows; r++) {
    MOE_UNROLL
    for (int n = 0; n < vectors; n++) v_store(c + r * ldc + n * V_LANES, acc[r][n]);
  }
}

#define TILE_CASE(r, n) case (r) * 8 + (n): tile_step(c, ldc, a, am, ak, b, ldb, K, accumulate, r, n); break;
static __attribute__((noinline, unused)) void tile_block(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t am, ptrdiff_t ak, const float *b, ptrdiff_t ldb, ptrdiff_t K, int accumulate, int rows, int vectors) {
  switch (rows * 8 + vectors) {
    TILE_CASE(1, 1) TILE_CASE(2, 1)
#if !defined(__wasm__)
    TILE_CASE(3, 1) TILE_CASE(4, 1) TILE_CASE(5, 1) TILE_CASE(6, 1)
#endif
#if V_PARTS == 1
    TILE_CASE(1, 2) TILE_CASE(2, 2) TILE_CASE(3, 2) TILE_CASE(4, 2) TILE_CASE(5, 2) TILE_CASE(6, 2)
    TILE_CASE(1, 3) TILE_CASE(2, 3) TILE_CASE(3, 3) TILE_CASE(4, 3) TILE_CASE(5, 3) TILE_CASE(6, 3)
    TILE_CASE(1, 4) TILE_CASE(2, 4) TILE_CASE(3, 4) TILE_CASE(4, 4) TILE_CASE(5, 4) TILE_CASE(6, 4)
#endif
  }
}

/* C[M, 16 * vectors] (+)= A[M, K] . B[K, 16 * vectors]. */
VFN void tile_multiply(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t am, ptrdiff_t ak, const float *b, ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t vectors, ptrdiff_t K, int accumulate) {
  for (ptrdiff_t n = 0; n < vectors; n += TILE_VECTORS)
    for (ptrdiff_t m = 0; m < M; m += TILE_ROWS)
      tile_block(c + m * ldc + n * V_LANES, ldc, a + m * am, am, ak, b + n * V_LANES, ldb, K, accumulate, (int)moe_min(TILE_ROWS, M - m), (int)moe_min(TILE_VECTORS, vectors - n));
}

/* ---- transposing ---- */

#if V_PARTS == 1
#define p_low(a, b) _mm512_unpacklo_ps(a, b)
#define p_high(a, b) _mm512_unpackhi_ps(a, b)
#define p_low2(a, b) _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
#define p_high2(a, b) _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
#elif V_PARTS == 2
#define p_low(a, b) _mm256_unpacklo_ps(a, b)
#define p_high(a, b) _mm256_unpackhi_ps(a, b)
#define p_low2(a, b) _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)))
#define p_high2(a, b) _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)))
#elif defined(__ARM_NEON)
#define p_low(a, b) vzip1q_f32(a, b)
#define p_high(a, b) vzip2q_f32(a, b)
#define p_low2(a, b) vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)))
#define p_high2(a, b) vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)))
#else
#define p_low(a, b) wasm_i32x4_shuffle(a, b, 0, 4, 1, 5)
#define p_high(a, b) wasm_i32x4_shuffle(a, b, 2, 6, 3, 7)
#define p_low2(a, b) wasm_i64x2_shuffle(a, b, 0, 2)
#define p_high2(a, b) wasm_i64x2_shuffle(a, b, 1, 3)
#endif

/* Transposes the 16 x 16 block x in place: first 4 x 4 blocks within 128-bit lanes (u[i] of lane L holds column 4 L + i), then the lanes. */
VFN void v_transpose(v16 *x) {
  v16 u[4][4];
  MOE_UNROLL
  for (int g = 0; g < 4; g++) {
    MOE_UNROLL
    for (int p = 0; p < V_PARTS; p++) {
      vp a = p_low(x[4 * g].p[p], x[4 * g + 1].p[p]), b = p_high(x[4 * g].p[p], x[4 * g + 1].p[p]);
      vp c = p_low(x[4 * g + 2].p[p], x[4 * g + 3].p[p]), d = p_high(x[4 * g + 2].p[p], x[4 * g + 3].p[p]);
      u[g][0].p[p] = p_low2(a, c);
      u[g][1].p[p] = p_high2(a, c);
      u[g][2].p[p] = p_low2(b, d);
      u[g][3].p[p] = p_high2(b, d);
    }
  }
  MOE_UNROLL
  for (int i = 0; i < 4; i++) {
#if V_PARTS == 1
    vp even01 = _mm512_shuffle_f32x4(u[0][i].p[0], u[1][i].p[0], 0x88), odd01 = _mm512_shuffle_f32x4(u[0][i].p[0], u[1][i].p[0], 0xdd);
    vp even23 = _mm512_shuffle_f32x4(u[2][i].p[0], u[3][i].p[0], 0x88), odd23 = _mm512_shuffle_f32x4(u[2][i].p[0], u[3][i].p[0], 0xdd);
    x[i].p[0] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    x[4 + i].p[0] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    x[8 + i].p[0] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    x[12 + i].p[0] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
#elif V_PARTS == 2
    MOE_UNROLL
    for (int p = 0; p < 2; p++) {
      MOE_UNROLL
      for (int g = 0; g < 2; g++) {
        x[8 * p + i].p[g] = _mm256_permute2f128_ps(u[2 * g][i].p[p], u[2 * g + 1][i].p[p], 0x20);
        x[8 * p + 4 + i].p[g] = _mm256_permute2f128_ps(u[2 * g][i].p[p], u[2 * g + 1][i].p[p], 0x31);
      }
    }
#else
    MOE_UNROLL
    for (int p = 0; p < 4; p++) {
      MOE_UNROLL
      for (int g = 0; g < 4; g++) x[4 * p + i].p[g] = u[g][i].p[p];
    }
#endif
  }
}

/* Rows of 16 f32, or of 16 pairs of bf16, from element d on; rows outside first..last-1 are zeros and not read. */
VFN void load_block(v16 *block, const void *x, ptrdiff_t stride, ptrdiff_t c, ptrdiff_t d, ptrdiff_t first, ptrdiff_t last, int dtype) {
  if (c >= first && c + 16 <= last) {
    MOE_UNROLL
    for (int r = 0; r < 16; r++) block[r] = v_load(at(x, (c + r) * stride + d, dtype));
  } else {
    for (int r = 0; r < 16; r++) block[r] = c + r >= first && c + r < last ? v_load(at(x, (c + r) * stride + d, dtype)) : v_set(0);
  }
}

/* t[D][64] (f32) = transpose of rows first..last-1 of x (row r at x + r * stride, at most 64). Columns of the 16-wide
   groups that hold none of these rows are left as they were; the other columns of a touched group are zeros. */
VFN void pack_transposed(float *t, const void *x, ptrdiff_t stride, ptrdiff_t first, ptrdiff_t last, ptrdiff_t D, int dtype) {
  for (ptrdiff_t c = first / 16 * 16; c < last; c += 16) {
    v16 block[16];
    ptrdiff_t d = 0;
    if (dtype == MOE_BF16) {
      for (; d + 32 <= D; d += 32) {
        load_block(block, x, stride, c, d, first, last, dtype);
        v_transpose(block);
        MOE_UNROLL
        for (int i = 0; i < 16; i++) {
          v_store(t + (d + 2 * i) * 64 + c, v_low_half(block[i]));
          v_store(t + (d + 2 * i + 1) * 64 + c, v_high_half(block[i]));
        }
      }
    } else {
      for (; d + 16 <= D; d += 16) {
        load_block(block, x, stride, c, d, first, last, dtype);
        v_transpose(block);
        MOE_UNROLL
        for (int i = 0; i < 16; i++) v_store(t + (d + i) * 64 + c, block[i]);
      }
    }
    for (; d < D; d += 16) {
      const ptrdiff_t n = v_step(D - d);
      for (int r = 0; r < 16; r++) block[r] = c + r >= first && c + r < last ? get(at(x, (c + r) * stride, dtype), d, n, dtype) : v_set(0);
      v_transpose(block);
      for (int i = 0; i < n; i++) v_store(t + (d + i) * 64 + c, block[i]);
    }
  }
}

/* Asks for rows of D elements, `stride` apart, before they are needed. A hint: reads nothing. */
VFN void prefetch_rows(const void *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t D, int dtype) {
  const ptrdiff_t line = 64 / moe_element_bytes(dtype);
  for (ptrdiff_t r = 0; r < rows; r++)
    for (ptrdiff_t d = 0; d < D; d += line) __builtin_prefetch(at(x, r * stride + d, dtype), 0, 2);
}

/* out[rows][padded] (f32) = x[rows][D] (rows `stride` elements apart) * scale, the padding up to whole vectors zeros. */
VFN void pack_rows(float *out, ptrdiff_t padded, const void *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t D, float scale, int dtype) {
  for (ptrdiff_t r = 0; r < rows; r++)
    for (ptrdiff_t d = 0; d < D; d += 16) v_store(out + r * padded + d, v_mul(get(at(x, r * stride, dtype), d, v_step(D - d), dtype), v_set(scale)));
}
#endif
