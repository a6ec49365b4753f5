/*
 * Running a planned job (gemm.h): packing tasks, then chunks, each ending in an epilogue that adds bias and old values and rounds.
 */
#ifndef MOE_GEMM_RUN_H
#define MOE_GEMM_RUN_H
#include "gemm.h"

static void group_operands(const gemm_plan *plan, const gemm_group *g, gemm_operand *i, gemm_operand *j) {
  const gemm_job *job = &plan->job;
  const float *blocks = job->scales && job->scaling == MOE_SCALE_BLOCK128 ? job->scales + g->expert * scales_of(job) : 0;
  const gemm_operand w = {(const char *)job->w + g->expert * job->N * job->K * (ptrdiff_t)dtype_size(job->wType), job->K, job->wType, job->kind == GEMM_FORWARD, plan->pairs, blocks, ceil_div(job->K, FP8_BLOCK)};
  const gemm_operand x = {(const char *)job->x + g->row * job->K * (ptrdiff_t)dtype_size(job->xType), job->K, job->xType, job->kind == GEMM_FORWARD, plan->pairs, 0, 0};
  const gemm_operand y = {(const char *)job->y + g->row * job->N * (ptrdiff_t)dtype_size(job->yType), job->N, job->yType, job->kind == GEMM_INPUT, plan->pairs, 0, 0};
  *i = job->kind == GEMM_INPUT || g->swapped ? w : x;
  *j = g->swapped ? x : job->kind == GEMM_FORWARD ? w : y;
}

#if MOE_TILES
/* Tiles of x of one TILE_SIDE of rows. */
static void pack_tiles(const gemm_plan *plan, const gemm_group *g, ptrdiff_t number) {
  const gemm_job *job = &plan->job;
  const ptrdiff_t row = number * TILE_SIDE;
  const int width = tile_width(g->rows);
  uint32_t *dst = (uint32_t *)(void *)g->prepared + row * TILE_SIDE * ceil_div(job->K, TILE_K);
  tiles_pack(dst, width, (const moe_bf16 *)job->x + (g->row + row) * job->K, job->K, min_size(g->rows - row, TILE_SIDE), job->K);
}
#endif

/* One panel's worth of lines, once for all chunks. */
static void pack_task(void *argument, ptrdiff_t number, int thread) {
  const gemm_plan *plan = argument;
  const gemm_group *g = group_of(plan, number, 1);
#if MOE_TILES
  if (plan->tiles) {
    pack_tiles(plan, g, number - g->firstPack);
    return;
  }
#endif
  const ptrdiff_t line = (number - g->firstPack) * PANEL_ROWS, lines = min_size(g->I - line, PANEL_ROWS), R = g->R;
  gemm_operand i, j;
  (void)thread;
  group_operands(plan, g, &i, &j);
  if (g->gemv) {
    i.pairs = plan->pairs && !MOE_TILES; /* its order is that of tiles, its rows are f32 */
    pack_lines(g->prepared + line * round_up(R, VL), round_up(R, VL), &i, line, lines, 0, R);
    return;
  }
  pack_panel(g->prepared + line * words_of(R, plan->pairs), round_up(lines, VL), &i, line, lines, 0, R);
}

static vf with_old(const gemm_job *job, ptrdiff_t index, vf sum, int n) {
  return job->accumulate ? v_add(sum, v_load_as_n(job->out, index, job->outType, n)) : sum;
}

static void store_some(const gemm_job *job, ptrdiff_t index, vf sum, int n) {
  if (n >= VL) v_store_as(job->out, index, job->outType, sum);
  else v_store_as_n(job->out, index, job->outType, sum, n);
}

/* out[line + i][column + j] from acc[j][width]: forward. `base` is the index of out[line][column]; `bias` starts at `column`. */
static void write_transposed(const gemm_job *job, ptrdiff_t expert, ptrdiff_t column, ptrdiff_t base, ptrdiff_t ld, const float *bias, const float *acc, ptrdiff_t width, ptrdiff_t lines, ptrdiff_t columns) {
  for (ptrdiff_t i = 0; i < lines; i += VL) {
    const ptrdiff_t height = min_size(lines - i, VL);
    for (ptrdiff_t j = 0; j < columns; j += VL) {
      const int n = (int)min_size(columns - j, VL);
      const vf b = bias ? v_load_n(bias + j, n) : v_zero();
      vf t[VL];
      MOE_UNROLL(16)
      for (int q = 0; q < VL; q++) t[q] = v_load(acc + (j + q) * width + i);
      v_transpose(t);
      for (ptrdiff_t q = 0; q < height; q++) {
        const vf sum = scaled_sum(job, expert, column + j, t[q], n);
        store_some(job, base + (i + q) * ld + j, bias ? v_add(sum, b) : sum, n);
      }
    }
  }
}

/* out[column + j][line + i] from acc[j][width]: backward, and forward when swapped. `base` is the index of out[column][line];
   `bias` starts at `line`. */
static void write_rows(const gemm_job *job, ptrdiff_t expert, ptrdiff_t line, ptrdiff_t base, ptrdiff_t ld, const float *bias, const float *acc, ptrdiff_t width, ptrdiff_t lines, ptrdiff_t columns) {
  for (ptrdiff_t j = 0; j < columns; j++)
    for (ptrdiff_t i = 0; i < lines; i += VL) {
      const int n = (int)min_size(lines - i, VL);
      const ptrdiff_t index = base + j * ld + i;
      const vf sum = scaled_sum(job, expert, line + i, v_load(acc + j * width + i), n);
      store_some(job, index, bias ? v_add(sum, v_load_n(bias + i, n)) : with_old(job, index, sum, n), n);
    }
}

static void gemv_store(const gemm_job *job, const gemm_group *g, const float *sums, ptrdiff_t m, ptrdiff_t column, int n) {
  const vf sum = scaled_sum(job, g->expert, column, v_load(sums), n);
  store_some(job, (g->row + m) * job->N + column, job->bias ? v_add(sum, v_load_n(job->bias + column, n)) : sum, n);
}

/* gemv_chunk of FP8 weights. Columns begin at a multiple of VL, so VL of them lie in one block of scales. */
static void gemv_fp8_chunk(const gemm_job *job, const gemm_group *g, ptrdiff_t j0, ptrdiff_t columns, const float *x, ptrdiff_t ldx) {
  const int blocks = job->scaling == MOE_SCALE_BLOCK128;
  const uint8_t *w = (const uint8_t *)job->w + g->expert * job->N * job->K;
  float sums[GEMV_ROWS * VL > FP8_FEW * FP8_GROUPS * VL ? GEMV_ROWS * VL : FP8_FEW * FP8_GROUPS * VL];
  for (ptrdiff_t j = j0, end = j0 + columns; j < end;) {
    const float *scales = blocks ? job->scales + g->expert * scales_of(job) + j / FP8_BLOCK * ceil_div(job->K, FP8_BLOCK) : 0;
    const int together = g->rows <= FP8_FEW && end - j >= FP8_GROUPS * VL && j / FP8_BLOCK == (j + FP8_GROUPS * VL - 1) / FP8_BLOCK;
    const int groups = together ? FP8_GROUPS : 1, n = (int)min_size(end - j, VL);
    gemv_fp8_choose(g->rows, blocks, together)(sums, w + j * job->K, job->K, n, x, ldx, scales);
    for (ptrdiff_t m = 0; m < g->rows; m++)
      for (int v = 0; v < groups; v++) gemv_store(job, g, sums + (m * groups + v) * VL, m, j + v * VL, n);
    j += groups * VL;
  }
}

#if MOE_TILES
/* Writes sums[n 16][m width], of `columns` (at most 16) columns from j by the rows of x from `row` on. */
static void tiles_write(const gemm_job *job, const gemm_group *g, const float *sums, int width, ptrdiff_t row, ptrdiff_t j, ptrdiff_t columns) {
  const int n = (int)min_size(columns, VL);
  if (columns <= 0) return;
  if (width == 1) {
    gemv_store(job, g, sums, row, j, n);
    return;
  }
  const vf scale = scaled_sum(job, g->expert, j, v_set1(1.0f), n), bias = job->bias ? v_load_n(job->bias + j, n) : v_zero();
  const ptrdiff_t base = (g->row + row) * job->N + j, rows = min_size(g->rows - row, width);
  vf t[VL];
  MOE_UNROLL(16)
  for (int i = 0; i < VL; i++) t[i] = v_load(sums + i * TILE_SIDE);
  v_transpose(t);
  MOE_UNROLL(16)
  for (int m = 0; m < VL; m++) {
    if (m >= rows) break;
    const vf sum = v_mul(t[m], scale);
    store_some(job, base + m * job->N, job->bias ? v_add(sum, bias) : sum, n);
  }
}

/* A chunk of tiles: a block of rows of a group by columns j0... */
typedef struct {
  const gemm_job *job;
  const gemm_group *g;
  const uint8_t *w;   /* of column j0 */
  const uint32_t *x;  /* tiles of row i0 */
  ptrdiff_t i0, rows, j0, columns, steps, apart;
  int width;
} tiles_block;

/* 32 columns at a time are widened over a slab of k, and meet all rows while they are near; sums wait between slabs in `acc`. */
static void tiles_run(const tiles_block *b, ptrdiff_t slab, moe_bf16 *panel, float *acc) {
  const gemm_job *job = b->job;
  const ptrdiff_t size = TILE_SIDE * TILE_SIDE, line = b->width == 1 ? 4 : 4 * TILE_SIDE;
  for (ptrdiff_t j = 0; j < b->columns; j += 2 * TILE_SIDE) {
    const ptrdiff_t there = b->columns - j;
    for (ptrdiff_t s0 = 0; s0 < b->steps; s0 += slab) {
      const ptrdiff_t steps = min_size(slab, b->steps - s0);
      const uint8_t *w = b->w + j * job->K;
      /* Whole tiles of few rows need no panel. */
      const int few = b->rows <= TILE_FEW_ROWS && there >= 2 * TILE_SIDE && job->K % (2 * TILE_K) == 0;
      const uint8_t *next = there >= 4 * TILE_SIDE ? w + 2 * TILE_SIDE * job->K : 0;
      if (!few) tiles_widen_panel(panel, w, job->K, there, s0, steps);
      for (ptrdiff_t i = 0; i < b->rows; i += 2 * TILE_SIDE) {
        const int two = b->rows - i > TILE_SIDE;
        float *sums = acc + i * 2 * TILE_SIDE;
        const uint32_t *x = b->x + i * TILE_SIDE * b->steps + s0 * TILE_SIDE * b->width;
        if (few && two) tiles_few_sums(1, w, job->K, x, b->apart, b->width, next, sums, line);
        else if (few) tiles_few_sums(0, w, job->K, x, b->apart, b->width, next, sums, line);
        else if (two) tiles_panel(1, panel, steps, x, b->apart, b->width, sums, line, s0 > 0);
        else tiles_panel(0, panel, steps, x, b->apart, b->width, sums, line, s0 > 0);
        if (s0 + steps < b->steps) continue;
        for (int t = 0; t < 4; t++)
          if (t < 2 || two) tiles_write(job, b->g, sums + t * size, b->width, b->i0 + i + (t >> 1) * TILE_SIDE, b->j0 + j + (t & 1) * TILE_SIDE, there - (t & 1) * TILE_SIDE);
      }
    }
  }
}

/* Rows i0.. of a group (a multiple of TILE_SIDE) by columns j0..: two tiles of w at a time, with two of x at a time. */
static void tiles_chunk(const gemm_plan *plan, const gemm_group *g, int thread, ptrdiff_t i0, ptrdiff_t rows, ptrdiff_t j0, ptrdiff_t columns) {
  const gemm_job *job = &plan->job;
  const ptrdiff_t steps = ceil_div(job->K, TILE_K);
  const int width = tile_width(g->rows);
  const tiles_block b = {.job = job, .g = g, .w = (const uint8_t *)job->w + (g->expert * job->N + j0) * job->K,
                         .x = (const uint32_t *)(const void *)g->prepared + i0 * TILE_SIDE * steps,
                         .i0 = i0, .rows = rows, .j0 = j0, .columns = columns, .steps = steps, .apart = steps * TILE_SIDE * width, .width = width};
  /* Few rows use each weight once or twice: a slab is then all of k, read in order. */
  const ptrdiff_t slab = rows <= TILE_FEW_ROWS ? steps : ceil_div(steps, ceil_div(steps, TILE_SLAB));
  const ptrdiff_t panel = round_up(tiles_panel_size(slab), 32), sums = round_up(rows, 2 * TILE_SIDE) * 2 * TILE_SIDE;
  moe_bf16 *scratch = moe_thread_scratch(plan->ctx, thread, (size_t)panel * sizeof(moe_bf16) + (size_t)sums * sizeof(float));
  tiles_configure(width);
  tiles_run(&b, slab, scratch, (float *)(void *)(scratch + panel));
  tiles_release();
}
#endif

static void gemv_chunk(const gemm_plan *plan, const gemm_group *g, ptrdiff_t j0, ptrdiff_t columns) {
  const gemm_job *job = &plan->job;
  const ptrdiff_t rowBytes = job->K * (ptrdiff_t)dtype_size(job->wType);
  const char *w = (const char *)job->w + (g->expert * job->N + j0) * rowBytes;
  const float *x = g->prepared ? g->prepared : (const float *)job->x + g->row * job->K;
  const ptrdiff_t ldx = g->prepared ? round_up(job->K, VL) : job->K;
  if (job->wType == MOE_FP8) {
    gemv_fp8_chunk(job, g, j0, columns, x, ldx);
    return;
  }
  const int tiles = MOE_TILES && plan->pairs;
  gemv_function *run = gemv_choose(g->rows, tiles ? GEMV_TILES : plan->pairs ? GEMV_PAIRS : job->wType == MOE_F32 ? GEMV_F32 : GEMV_BF16);
  float sums[GEMV_ROWS * VL];
  for (ptrdiff_t j = 0; j < columns; j += VL) {
    const int n = (int)min_size(columns - j, VL);
#if MOE_TILES
    const unsigned int control = tiles ? v_denormals_off() : 0;
#endif
    run(sums, w + j * rowBytes, rowBytes, n, x, ldx);
#if MOE_TILES
    if (tiles) v_denormals_as(control);
#endif
    for (ptrdiff_t m = 0; m < g->rows; m++) gemv_store(job, g, sums + m * VL, m, j0 + j, n);
  }
}

/* The index in out of I line `line` and J column `j`. */
static ptrdiff_t output_index(const gemm_job *job, const gemm_group *g, ptrdiff_t line, ptrdiff_t j) {
  if (g->swapped) return (g->row + j) * job->N + line;
  if (job->kind == GEMM_FORWARD) return (g->row + line) * job->N + j;
  return ((job->kind == GEMM_INPUT ? g->row : g->expert * job->N) + j) * job->K + line;
}

/* Writes one panel's `columns` from column j, when their sums are complete. */
static void write_panel(const gemm_plan *plan, const gemm_group *g, const float *acc, ptrdiff_t line, ptrdiff_t height, ptrdiff_t j, ptrdiff_t columns) {
  const gemm_job *job = &plan->job;
  const ptrdiff_t width = round_up(height, VL), base = output_index(job, g, line, j);
  if (g->swapped) write_rows(job, g->expert, line, base, job->N, job->bias ? job->bias + line : 0, acc, width, height, columns);
  else if (job->kind == GEMM_FORWARD) write_transposed(job, g->expert, j, base, job->N, job->bias ? job->bias + j : 0, acc, width, height, columns);
  else write_rows(job, g->expert, line, base, job->K, 0, acc, width, height, columns);
}

/* A chunk's place and buffers. */
typedef struct {
  const gemm_plan *plan;
  const gemm_group *group;
  ptrdiff_t i0, lines, j0, columns;
  float *acc, *panel, *other;
  gemm_operand i, j;
} gemm_block;

/* The strip of the J side that follows column j at reduced index r: of the next columns, or of the next slice. */
static micro_ahead strip_after(const gemm_block *b, ptrdiff_t j, ptrdiff_t r, ptrdiff_t step) {
  j += STRIP;
  if (j >= b->columns) j = 0, r += step;
  if (r >= b->group->R) return (micro_ahead){0, 0, 0, 0};
  const ptrdiff_t columns = min_size(b->columns - j, STRIP), depth = min_size(b->group->R - r, step), size = (ptrdiff_t)dtype_size(b->j.dtype);
  return (micro_ahead){operand_at(&b->j, b->j0 + j, r), b->j.ld * size, (b->j.along ? depth : columns) * size, b->j.along ? columns : depth};
}

/* The part that the strip at column j brings of the panel after (p, r): packed already, or where it will be packed from. */
static micro_ahead panel_after(const gemm_block *b, ptrdiff_t p, ptrdiff_t r, ptrdiff_t step, ptrdiff_t j) {
  const gemm_plan *plan = b->plan;
  p += PANEL_ROWS;
  if (p >= b->lines) p = 0, r += step;
  if (r >= b->group->R) return (micro_ahead){0, 0, 0, 0};
  const ptrdiff_t depth = min_size(b->group->R - r, step), line = b->i0 + p, height = min_size(b->lines - p, PANEL_ROWS), width = round_up(height, VL);
  micro_ahead all;
  if (b->group->prepared) {
    const float *packed = b->group->prepared + line * words_of(b->group->R, plan->pairs) + (r >> plan->pairs) * width;
    all = (micro_ahead){(const char *)packed, width * 4, width * 4, words_of(depth, plan->pairs)};
  } else {
    const ptrdiff_t size = (ptrdiff_t)dtype_size(b->i.dtype);
    all = (micro_ahead){operand_at(&b->i, line, r), b->i.ld * size, (b->i.along ? depth : height) * size, b->i.along ? height : depth};
  }
  const ptrdiff_t from = all.runs * j / b->columns, to = all.runs * min_size(j + STRIP, b->columns) / b->columns;
  return (micro_ahead){all.data + from * all.stride, all.stride, all.bytes, to - from};
}

/* Where the strip at column j of the panel at `line` will be written. */
static micro_ahead output_of(const gemm_block *b, ptrdiff_t line, ptrdiff_t height, ptrdiff_t j, ptrdiff_t columns) {
  const gemm_job *job = &b->plan->job;
  const gemm_group *g = b->group;
  const ptrdiff_t size = (ptrdiff_t)dtype_size(job->outType), ld = job->kind == GEMM_FORWARD ? job->N : job->K;
  const ptrdiff_t base = output_index(job, g, line, b->j0 + j);
  const int forward = job->kind == GEMM_FORWARD && !g->swapped;
  return (micro_ahead){(const char *)job->out + base * size, ld * size, (forward ? columns : height) * size, forward ? height : columns};
}

/* One panel times all columns of the block over one slice of the reduced index, strip by strip: the first panel packs the strips
   just before it reads them, the last slice writes them out while they are near. Memory far away is asked for one strip early. */
static void panel_slice(const gemm_block *b, ptrdiff_t p, ptrdiff_t r, ptrdiff_t step) {
  const gemm_plan *plan = b->plan;
  const ptrdiff_t R = b->group->R, depth = min_size(R - r, step), words = words_of(depth, plan->pairs);
  const ptrdiff_t line = b->i0 + p, height = min_size(b->lines - p, PANEL_ROWS), width = round_up(height, VL);
  const int last = r + step >= R;
  float *acc = b->acc + p * (b->columns + VL);
  const float *a = b->panel;
  if (b->group->prepared) a = b->group->prepared + line * words_of(R, plan->pairs) + (r >> plan->pairs) * width;
  else pack_panel(b->panel, width, &b->i, line, height, r, depth);
  for (ptrdiff_t j = 0; j < b->columns; j += STRIP) {
    const ptrdiff_t columns = min_size(b->columns - j, STRIP);
    micro_ahead ahead[MICRO_AHEADS] = {{0, 0, 0, 0}, panel_after(b, p, r, step, j), {0, 0, 0, 0}};
    if (p == 0) {
      pack_lines(b->other + j * TILE_DEPTH, TILE_DEPTH, &b->j, b->j0 + j, columns, r, depth);
      ahead[0] = strip_after(b, j, r, step);
    }
    if (last) ahead[2] = output_of(b, line, height, j, columns);
    micro_columns((int)(width / VL), plan->pairs, acc + j * width, a, b->other + j * TILE_DEPTH, columns, words, r == 0, ahead);
    if (last) write_panel(plan, b->group, acc + j * width, line, height, b->j0 + j, columns);
  }
}

/* Length of equal slices of the reduced index that fit TILE_DEPTH words. */
static ptrdiff_t slice_of(ptrdiff_t R, int pairs) { return R > 0 ? block_size(R, TILE_DEPTH << pairs, VL << pairs) : 1; }

static void gemm_chunk(void *argument, ptrdiff_t number, int thread) {
  const gemm_plan *plan = argument;
  const gemm_group *g = group_of(plan, number, 0);
  const ptrdiff_t at = number - g->firstChunk, step = slice_of(g->R, plan->pairs);
  gemm_block b = {.plan = plan, .group = g, .i0 = at % g->blocksI * g->sizeI, .j0 = at / g->blocksI * g->sizeJ};
  b.lines = min_size(g->I - b.i0, g->sizeI);
  b.columns = min_size(g->J - b.j0, g->sizeJ);
#if MOE_TILES
  if (plan->tiles) {
    tiles_chunk(plan, g, thread, b.i0, b.lines, b.j0, b.columns);
    return;
  }
#endif
  if (g->gemv) {
    gemv_chunk(plan, g, b.j0, b.columns);
    return;
  }
  /* Tiles read and write whole TILE_SIDE of columns. */
  const ptrdiff_t accFloats = round_up(b.lines, PANEL_ROWS) * (b.columns + VL), panelFloats = PANEL_ROWS * TILE_DEPTH;
  b.acc = moe_thread_scratch(plan->ctx, thread, (size_t)(accFloats + panelFloats + round_up(b.columns, TILE_SIDE) * TILE_DEPTH) * sizeof(float));
  b.panel = b.acc + accFloats;
  b.other = b.panel + panelFloats;
  group_operands(plan, g, &b.i, &b.j);
#if MOE_TILES
  if (plan->pairs) tiles_configure(TILE_SIDE);
#endif
  for (ptrdiff_t r = 0; r < g->R; r += step)
    for (ptrdiff_t p = 0; p < b.lines; p += PANEL_ROWS) panel_slice(&b, p, r, step);
#if MOE_TILES
  if (plan->pairs) tiles_release();
#endif
  if (g->R > 0) return;
  __builtin_memset(b.acc, 0, (size_t)accFloats * sizeof(float));
  for (ptrdiff_t p = 0; p < b.lines; p += PANEL_ROWS) write_panel(plan, g, b.acc, b.i0 + p, min_size(b.lines - p, PANEL_ROWS), b.j0, b.columns);
}

static void gemm_run(moe_context *ctx, const gemm_job *job) {
  gemm_plan plan = {.ctx = ctx, .job = *job};
  plan_job(&plan);
  double work = 0;
  for (ptrdiff_t i = 0; i < plan.count; i++) work += (double)plan.groups[i].I * (double)plan.groups[i].J * (double)plan.groups[i].R;
  if (work <= ALONE_WORK) {
    for (ptrdiff_t c = 0; c < plan.packs; c++) pack_task(&plan, c, 0);
    for (ptrdiff_t c = 0; c < plan.chunks; c++) gemm_chunk(&plan, c, 0);
    return;
  }
  if (plan.tiles && plan.packs <= FEW_PACKS)
    for (ptrdiff_t c = 0; c < plan.packs; c++) pack_task(&plan, c, 0);
  else moe_parallel_for(ctx, plan.packs, pack_task, &plan);
  moe_parallel_for(ctx, plan.chunks, gemm_chunk, &plan);
}
#endif
