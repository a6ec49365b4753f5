/*
 * The tile registers of AMX (Intel, set `amx` only): eight of 16 rows of 64 bytes, and the product of two of bf16.
 *
 * Order of a sum (TDPBF16PS): for each TILE_K of the reduced index, two chains of fused multiply-adds from 0, over its even and over its odd
 * elements; their sum is added to the accumulator. Denormals count as 0, in operands and in results. Instructions are written as
 * assembly: gcc 12's intrinsics do not tell the compiler what memory they read.
 */
#ifndef MOE_TILES_H
#define MOE_TILES_H
#include "simd.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define MOE_TILES 1
#else
#define MOE_TILES 0
#endif

enum { TILE_SIDE = 16, TILE_K = 32 };

#if MOE_TILES
typedef struct {
  uint8_t palette, start, reserved[14];
  uint16_t columnBytes[16];
  uint8_t rows[16];
} tile_config;

/* Registers 0 to 3: sums [16][width]. 4, 5: left sides [16][TILE_K]. 6, 7: right sides [TILE_K / 2][width][2]. */
static void tiles_configure(int width) {
  tile_config config = {.palette = 1};
  for (int t = 0; t < 8; t++) {
    config.rows[t] = TILE_SIDE;
    config.columnBytes[t] = (uint16_t)(t == 4 || t == 5 ? 64 : 4 * width);
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
static void tiles_release(void) { __asm__ volatile("tilerelease"); }
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define TILE_LOAD(t, p, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(p), "r"((ptrdiff_t)(stride)) : "memory")
#define TILE_STORE(t, p, stride) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(p), "r"((ptrdiff_t)(stride)) : "memory")
#define TILE_DOT(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)
#endif
#endif
