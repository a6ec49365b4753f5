/*
 * The inner loops of matrix multiplication in tile registers (set `amx`, both operands bf16): what gemm_micro.h does with pairs, in the order of tiles.h.
 *
 * acc[j][V * VL] (+)= sum over r of a[r][V * VL] * b[j][r], where an element of a and b is a 32-bit pair of bf16. The packed panel `a` is a
 * right side as it lies, the lines `b` are left sides. Depths that begin a slice are multiples of a step, so that steps lie at multiples of
 * TILE_K of the whole reduced index, whatever the slices; a last step that is not whole meets zeros. Lines are read, and sums written, by
 * whole TILE_SIDE: both have room, and what is beyond `columns` is not kept.
 */
#ifndef MOE_GEMM_MICRO_TILES_H
#define MOE_GEMM_MICRO_TILES_H
#include "tiles.h"

/* Pairs of a step. */
enum { TILE_WORDS = TILE_K / 2 };

/* What a block of tiles works on; rows of `a` and of `acc` are `width` words apart. */
typedef struct {
  float *acc;
  const float *a, *b, *rest; /* `rest`: the last step of `a` with its zeros, or 0 */
  ptrdiff_t width, steps;    /* whole ones */
  int first;
  const char *const *lines; /* of cache to ask for, `each` a step */
  ptrdiff_t each;
} micro_block;

#define MICRO_OPEN(t, j, i) \
  if (m->first) TILE_ZERO(t); \
  else TILE_LOAD(t, m->acc + (j) * TILE_SIDE * m->width + (i) * VL, stride)
#define MICRO_CLOSE(t, j, i) TILE_STORE(t, m->acc + (j) * TILE_SIDE * m->width + (i) * VL, stride)

/* One step of J by I tiles: four sums at most, so J = 2 goes with I of 1 or 2. */
MOE_INLINE void micro_tiles_step(const int J, const int I, const float *a, const float *b, ptrdiff_t stride) {
  enum { LINE = TILE_DEPTH * 4 };
  TILE_LOAD(4, b, LINE);
  TILE_LOAD(6, a, stride);
  TILE_DOT(0, 4, 6);
  if (I > 1) {
    TILE_LOAD(7, a + VL, stride);
    TILE_DOT(1, 4, 7);
  }
  if (J > 1) {
    TILE_LOAD(5, b + TILE_SIDE * TILE_DEPTH, LINE);
    TILE_DOT(2, 5, 6);
    if (I > 1) TILE_DOT(3, 5, 7);
    return;
  }
  if (I > 2) {
    TILE_LOAD(6, a + 2 * VL, stride);
    TILE_DOT(2, 4, 6);
  }
  if (I > 3) {
    TILE_LOAD(7, a + 3 * VL, stride);
    TILE_DOT(3, 4, 7);
  }
}

MOE_INLINE void micro_tiles(const int J, const int I, const micro_block *m) {
  const ptrdiff_t stride = m->width * 4;
  const char *const *lines = m->lines;
  MICRO_OPEN(0, 0, 0);
  if (I > 1) { MICRO_OPEN(1, 0, 1); }
  if (J > 1) { MICRO_OPEN(2, 1, 0); }
  if (J > 1 && I > 1) { MICRO_OPEN(3, 1, 1); }
  if (I > 2) { MICRO_OPEN(2, 0, 2); }
  if (I > 3) { MICRO_OPEN(3, 0, 3); }
  MOE_UNROLL(1)
  for (ptrdiff_t s = 0; s < m->steps; s++) {
    MOE_UNROLL(1)
    for (ptrdiff_t l = 0; l < m->each; l++) v_prefetch_l2(*lines++);
    micro_tiles_step(J, I, m->a + s * TILE_WORDS * m->width, m->b + s * TILE_WORDS, stride);
  }
  if (m->rest) micro_tiles_step(J, I, m->rest, m->b + m->steps * TILE_WORDS, stride);
  MICRO_CLOSE(0, 0, 0);
  if (I > 1) MICRO_CLOSE(1, 0, 1);
  if (J > 1) MICRO_CLOSE(2, 1, 0);
  if (J > 1 && I > 1) MICRO_CLOSE(3, 1, 1);
  if (I > 2) MICRO_CLOSE(2, 0, 2);
  if (I > 3) MICRO_CLOSE(3, 0, 3);
}

/* The tiles of `vectors` (1 to 4) by one or two TILE_SIDE of columns. */
static void micro_tiles_columns(int two, int vectors, micro_block m, ptrdiff_t advance) {
  if (!two) {
    switch (vectors) {
      case 1: micro_tiles(1, 1, &m); break;
      case 2: micro_tiles(1, 2, &m); break;
      case 3: micro_tiles(1, 3, &m); break;
      default: micro_tiles(1, 4, &m); break;
    }
    return;
  }
  for (int v = 0; v < vectors; v += 2) {
    if (vectors - v > 1) micro_tiles(2, 2, &m);
    else micro_tiles(2, 1, &m);
    m.acc += 2 * VL;
    m.a += 2 * VL;
    if (m.rest) m.rest += 2 * VL;
    m.lines += advance;
  }
}

static void micro_columns_tiles(int vectors, float *acc, const float *a, const float *b, ptrdiff_t columns, ptrdiff_t depth, int first, const micro_ahead *ahead) {
  const char *lines[MICRO_LINES * 2]; /* with padding */
  _Alignas(64) float last[TILE_WORDS * PANEL_ROWS];
  const ptrdiff_t width = vectors * VL, steps = depth / TILE_WORDS, rest = depth % TILE_WORDS, pairs = (columns + 2 * TILE_SIDE - 1) / (2 * TILE_SIDE);
  const ptrdiff_t each = list_ahead(lines, ahead, pairs * ((vectors + 1) / 2), steps);
  if (rest) {
    __builtin_memset(last, 0, sizeof last);
    __builtin_memcpy(last, a + steps * TILE_WORDS * width, (size_t)(rest * width) * sizeof(float));
  }
  micro_block m = {.acc = acc, .a = a, .b = b, .rest = rest ? last : 0, .width = width, .steps = steps, .first = first, .lines = lines, .each = each};
  for (ptrdiff_t left = columns; left > 0; left -= 2 * TILE_SIDE) {
    micro_tiles_columns(left > TILE_SIDE, vectors, m, each * steps);
    m.acc += 2 * TILE_SIDE * width;
    m.b += 2 * TILE_SIDE * TILE_DEPTH;
    m.lines += each * steps * ((vectors + 1) / 2);
  }
}
#endif
