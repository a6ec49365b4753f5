/*
 * Running a planned job (gemm.h): packing tasks, then chunks, each ending in an epilogue that adds bias and old values and rounds.
 */
#ifndef MOE_GEMM_RUN_H
#define MOE_GEMM_RUN_H
#include "gemm.h"

static void group_operands(const gemm_plan *plan, const gemm_group *g, gemm_operand *i, gemm_operand *j) {
  const gemm_job *job = &plan->job;
  const gemm_operand w = {(const char *)job->w + g->expert * job->N * job->K * (ptrdiff_t)dtype_size(job->wType), job->K, job->wType, job->kind == GEMM_FORWARD, plan->pairs};
  const gemm_operand x = {(const char *)job->x + g->row * job->K * (ptrdiff_t)dtype_size(job->xType), job->K, job->xType, job->kind == GEMM_FORWARD, plan->pairs};
  const gemm_operand y = {(const char *)job->y + g->row * job->N * (ptrdiff_t)dtype_size(job->yType), job->N, job->yType, job->kind == GEMM_INPUT, plan->pairs};
  *i = job->kind == GEMM_INPUT ? w : x;
  *j = job->kind == GEMM_FORWARD ? w : y;
}

/* One panel's worth of rows of x, once for all chunks. */
static void pack_task(void *argument, ptrdiff_t number, int thread) {
  const gemm_plan *plan = argument;
  const gemm_group *g = group_of(plan, number, 1);
  const ptrdiff_t line = (number - g->firstPack) * PANEL_ROWS, lines = min_size(g->rows - line, PANEL_ROWS), K = plan->job.K;
  gemm_operand i, j;
  (void)thread;
  group_operands(plan, g, &i, &j);
  if (g->gemv) {
    pack_lines(g->prepared + line * round_up(K, VL), round_up(K, VL), &i, line, lines, 0, K);
    return;
  }
  pack_panel(g->prepared + line * words_of(K, plan->pairs), round_up(lines, VL), &i, line, lines, 0, K);
}

static vf with_old(const gemm_job *job, ptrdiff_t index, vf sum, int n) {
  return job->accumulate ? v_add(sum, v_load_as_n(job->out, index, job->outType, n)) : sum;
}

static void store_some(const gemm_job *job, ptrdiff_t index, vf sum, int n) {
  if (n >= VL) v_store_as(job->out, index, job->outType, sum);
  else v_store_as_n(job->out, index, job->outType, sum, n);
}

/* out[line + i][column + j] from acc[j][width]: forward. `base` is the index of out[line][column]; `bias` starts at `column`. */
static void write_transposed(const gemm_job *job, ptrdiff_t base, ptrdiff_t ld, const float *bias, const float *acc, ptrdiff_t width, ptrdiff_t lines, ptrdiff_t columns) {
  for (ptrdiff_t j = 0; j < columns; j += VL) {
    const int n = (int)min_size(columns - j, VL);
    const vf b = bias ? v_load_n(bias + j, n) : v_zero();
    for (ptrdiff_t i = 0; i < lines; i += VL) {
      vf t[VL];
      MOE_UNROLL(16)
      for (int q = 0; q < VL; q++) t[q] = v_load(acc + (j + q) * width + i);
      v_transpose(t);
      const ptrdiff_t height = min_size(lines - i, VL);
      for (ptrdiff_t q = 0; q < height; q++) store_some(job, base + (i + q) * ld + j, bias ? v_add(t[q], b) : t[q], n);
    }
  }
}

/* out[column + j][line + i] from acc[j][width]: both backward jobs. `base` is the index of out[column][line]. */
static void write_rows(const gemm_job *job, ptrdiff_t base, ptrdiff_t ld, const float *acc, ptrdiff_t width, ptrdiff_t lines, ptrdiff_t columns) {
  for (ptrdiff_t j = 0; j < columns; j++)
    for (ptrdiff_t i = 0; i < lines; i += VL) {
      const int n = (int)min_size(lines - i, VL);
      const ptrdiff_t index = base + j * ld + i;
      store_some(job, index, with_old(job, index, v_load(acc + j * width + i), n), n);
    }
}

static void gemv_chunk(const gemm_plan *plan, const gemm_group *g, ptrdiff_t j0, ptrdiff_t columns) {
  const gemm_job *job = &plan->job;
  const ptrdiff_t rowBytes = job->K * (ptrdiff_t)dtype_size(job->wType);
  const char *w = (const char *)job->w + (g->expert * job->N + j0) * rowBytes;
  gemv_function *run = gemv_choose(g->rows, plan->pairs ? GEMV_PAIRS : job->wType == MOE_F32 ? GEMV_F32 : GEMV_BF16);
  const float *x = g->prepared ? g->prepared : (const float *)job->x + g->row * job->K;
  const ptrdiff_t ldx = g->prepared ? round_up(job->K, VL) : job->K;
  float sums[GEMV_ROWS * VL];
  for (ptrdiff_t j = 0; j < columns; j += VL) {
    const int n = (int)min_size(columns - j, VL);
    run(sums, w + j * rowBytes, rowBytes, n, x, ldx);
    for (ptrdiff_t m = 0; m < g->rows; m++) {
      const vf sum = v_load(sums + m * VL);
      store_some(job, (g->row + m) * job->N + j0 + j, job->bias ? v_add(sum, v_load_n(job->bias + j0 + j, n)) : sum, n);
    }
  }
}

static void write_chunk(const gemm_plan *plan, const gemm_group *g, const float *acc, ptrdiff_t accStride, ptrdiff_t i0, ptrdiff_t lines, ptrdiff_t j0, ptrdiff_t columns) {
  const gemm_job *job = &plan->job;
  for (ptrdiff_t p = 0; p < lines; p += PANEL_ROWS, acc += accStride) {
    const ptrdiff_t height = min_size(lines - p, PANEL_ROWS), width = round_up(height, VL), line = i0 + p;
    if (job->kind == GEMM_FORWARD)
      write_transposed(job, (g->row + line) * job->N + j0, job->N, job->bias ? job->bias + j0 : 0, acc, width, height, columns);
    else
      write_rows(job, ((job->kind == GEMM_INPUT ? g->row : g->expert * job->N) + j0) * job->K + line, job->K, acc, width, height, columns);
  }
}

static void gemm_chunk(void *argument, ptrdiff_t number, int thread) {
  const gemm_plan *plan = argument;
  const gemm_group *g = group_of(plan, number, 0);
  const ptrdiff_t at = number - g->firstChunk;
  const ptrdiff_t i0 = at % g->blocksI * g->sizeI, lines = min_size(g->I - i0, g->sizeI);
  const ptrdiff_t j0 = at / g->blocksI * g->sizeJ, columns = min_size(g->J - j0, g->sizeJ);
  if (g->gemv) {
    gemv_chunk(plan, g, j0, columns);
    return;
  }
  const ptrdiff_t accStride = PANEL_ROWS * (columns + VL), accFloats = ceil_div(lines, PANEL_ROWS) * accStride;
  const ptrdiff_t panelFloats = PANEL_ROWS * TILE_DEPTH, step = TILE_DEPTH << plan->pairs;
  float *acc = moe_thread_scratch(plan->ctx, thread, (size_t)(accFloats + panelFloats + columns * TILE_DEPTH) * sizeof(float));
  float *panel = acc + accFloats, *other = panel + panelFloats;
  gemm_operand i, j;
  group_operands(plan, g, &i, &j);
  if (g->R == 0) __builtin_memset(acc, 0, (size_t)accFloats * sizeof(float));
  for (ptrdiff_t r = 0; r < g->R; r += step) {
    const ptrdiff_t depth = min_size(g->R - r, step), words = words_of(depth, plan->pairs);
    pack_lines(other, TILE_DEPTH, &j, j0, columns, r, depth);
    for (ptrdiff_t p = 0; p < lines; p += PANEL_ROWS) {
      const ptrdiff_t line = i0 + p, height = min_size(lines - p, PANEL_ROWS), width = round_up(height, VL);
      const float *a = panel;
      if (g->prepared) a = g->prepared + line * words_of(g->R, plan->pairs) + (r >> plan->pairs) * width;
      else pack_panel(panel, width, &i, line, height, r, depth);
      micro_columns((int)(width / VL), plan->pairs, acc + p / PANEL_ROWS * accStride, a, other, columns, words, r == 0);
    }
  }
  write_chunk(plan, g, acc, accStride, i0, lines, j0, columns);
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
  moe_parallel_for(ctx, plan.packs, pack_task, &plan);
  moe_parallel_for(ctx, plan.chunks, gemm_chunk, &plan);
}
#endif
