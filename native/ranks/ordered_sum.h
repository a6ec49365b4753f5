/*
 * Element sums of several ranks in rank order: the twin of src/parallel/ordered-sum.ts, shared by the ranks of one process (shared.c) and
 * by those of MPI (mpi.c), so that all give the same bits.
 *
 * sum[i] = ((part[0][i] + part[1][i]) + part[2][i]) + ..., every step rounded to f32. bf16 is widened to f32 and the sum rounded once, to
 * nearest, ties to even; NaN stays NaN. A single part keeps its bits.
 */
#ifndef MOE_ORDERED_SUM_H
#define MOE_ORDERED_SUM_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUM_F32 = 0, SUM_BF16 = 1, SUM_BLOCK = 2048 };

static inline size_t sum_element_bytes(int dtype) { return dtype == SUM_F32 ? 4 : 2; }

static inline void sum_widen(float *restrict to, const uint16_t *restrict from, size_t n) {
  uint32_t *bits = (uint32_t *)(void *)to;
  for (size_t i = 0; i < n; i++) bits[i] = (uint32_t)from[i] << 16;
}

static inline void sum_narrow(uint16_t *restrict to, const float *restrict from, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint32_t b;
    memcpy(&b, from + i, 4);
    uint32_t rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16;
    to[i] = (uint16_t)((b & 0x7fffffff) > 0x7f800000 ? b >> 16 | 0x40 : rounded);
  }
}

static inline void sum_add(float *restrict sum, const float *restrict part, size_t n) {
  for (size_t i = 0; i < n; i++) sum[i] += part[i];
}

/*
 * outs[o][0..n-1] = the sum of parts[r][0..n-1] over r, for every o. An out may be one of the parts: a block is written when it was read of
 * all. parts: num_parts pointers to n elements of `dtype`; outs: num_outs pointers to as many.
 */
static inline void ordered_sum(void *const *outs, int num_outs, const void *const *parts, int num_parts, size_t n, int dtype) {
  float sum[SUM_BLOCK], wide[SUM_BLOCK];
  uint16_t narrow[SUM_BLOCK];
  const size_t element = sum_element_bytes(dtype);
  if (num_parts == 1) {
    for (int o = 0; o < num_outs; o++)
      if (outs[o] != parts[0]) memcpy(outs[o], parts[0], n * element);
    return;
  }
  for (size_t from = 0; from < n; from += SUM_BLOCK) {
    const size_t m = n - from < SUM_BLOCK ? n - from : SUM_BLOCK;
    const void *block = sum;
    if (dtype == SUM_F32) {
      const float *a = (const float *)parts[0] + from, *b = (const float *)parts[1] + from;
      for (size_t i = 0; i < m; i++) sum[i] = a[i] + b[i];
      for (int r = 2; r < num_parts; r++) sum_add(sum, (const float *)parts[r] + from, m);
    } else {
      sum_widen(sum, (const uint16_t *)parts[0] + from, m);
      for (int r = 1; r < num_parts; r++) {
        sum_widen(wide, (const uint16_t *)parts[r] + from, m);
        sum_add(sum, wide, m);
      }
      sum_narrow(narrow, sum, m);
      block = narrow;
    }
    for (int o = 0; o < num_outs; o++) memcpy((char *)outs[o] + from * element, block, m * element);
  }
}

#endif
